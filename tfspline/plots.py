"""Pictures of a run, as matplotlib figures that belong to nobody's global state."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tfspline.callbacks import EarlyBird

# Colours of Okabe and Ito, which colour-blind readers can tell apart.
_COLORS = {"search": "#0072B2", "sparsify": "#CC79A7", "retrain": "#D55E00", "baseline": "#7F7F7F"}
_DISTANCES = {
    "partition": "partition distance\n(share of code bits)",
    "mask": "mask distance\n(share of units)",
}
_LABELS = {
    "search": "dense search",
    "sparsify": "units switched off",
    "retrain": "slim network",
    "baseline": "dense baseline",
}


def training(history: Sequence[Mapping], early_bird: EarlyBird) -> Figure:
    """Accuracy and distance by epoch, phase by phase, with the epoch of the early bird.

    Args:
        history: the rows of `history.jsonl`: mappings with `phase` (`"search"`, `"sparsify"`, `"retrain"` or
            `"baseline"`), `epoch`, `accuracy`, and where there are any `val_accuracy` and the early bird's distance.
        early_bird: the callback of the search.

    Returns:
        A figure of two panels above each other; of one where no early bird was looked for.

    Raises:
        ValueError: `history` holds no epoch of a known phase.

    Example:
        >>> rows = [{"phase": "search", "epoch": 1, "accuracy": 0.6, "partition_distance": 0.1}]
        >>> training(rows, tfspline.EarlyBird()).savefig("training.png")
    """
    phases = {phase: [row for row in history if row["phase"] == phase] for phase in _COLORS}
    phases = {phase: rows for phase, rows in phases.items() if rows}
    if not phases:
        raise ValueError(f"Expected rows of the phases {list(_COLORS)}. Received: {len(history)} rows of none")
    watched = any(f"{early_bird.metric}_distance" in row for row in history)
    figure = Figure(figsize=(8, 6 if watched else 4), layout="constrained")
    panels = figure.subplots(1 + watched, 1, sharex=True, squeeze=False, height_ratios=(3, 2)[: 1 + watched])[:, 0]
    accuracy = panels[0]
    for phase, rows in phases.items():
        _line(accuracy, rows, "accuracy", color=_COLORS[phase], label=_LABELS[phase])
        _line(accuracy, rows, "val_accuracy", color=_COLORS[phase], linestyle="--")
    if watched:
        _distances(panels[1], phases, early_bird)
    if early_bird.found:
        label = f"early bird, epoch {early_bird.epoch}"
        for panel in panels:
            panel.axvline(early_bird.epoch, color="black", linewidth=1, label=label)
    handles, _ = accuracy.get_legend_handles_labels()
    validated = any("val_accuracy" in row for row in history)
    if validated:
        handles += [
            Line2D([], [], color="black", label="training"),
            Line2D([], [], color="black", linestyle="--", label="validation"),
        ]
    accuracy.legend(handles=handles, loc="lower right")
    accuracy.set_ylabel(f"{'' if validated else 'training '}accuracy\n(share of images)")
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _distances(axes, phases, early_bird):
    for phase, rows in phases.items():
        _line(axes, rows, f"{early_bird.metric}_distance", color=_COLORS[phase])
    threshold = early_bird.threshold
    line = axes.axhline(threshold, color="black", linestyle=":", label=f"threshold {threshold:g}")
    axes.legend(handles=[line], loc="upper right")
    axes.set_ylabel(_DISTANCES[early_bird.metric])
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])  # room above the threshold's line


def units_kept(rows: Sequence[Mapping]) -> Figure:
    """Units of each layer before and after pruning.

    Args:
        rows: `Plan.rows()`: mappings with `layer`, `units_before` and `units_after`.

    Returns:
        A figure with one bar a row, in the order of the rows from top to bottom.

    Raises:
        ValueError: there are no rows.

    Example:
        >>> units_kept([{"layer": "conv1", "units_before": 16, "units_after": 5}]).savefig("units.png")
    """
    if not rows:
        raise ValueError("Expected at least one row of a plan. Received: none")
    places = range(len(rows))
    before = [row["units_before"] for row in rows]
    after = [row["units_after"] for row in rows]
    figure = Figure(figsize=(8, 1.4 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.barh(places, before, color="#CCCCCC", label="dense")
    axes.barh(places, after, color=_COLORS["retrain"], label="kept")
    for place, most, kept in zip(places, before, after, strict=True):
        axes.annotate(
            f"{kept} of {most} ({kept / most:.0%})",
            (most, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    axes.set_yticks(places, [row["layer"] for row in rows], fontsize="small")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(right=1.25 * max(before))
    axes.set_xlabel("units")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _line(axes, rows, key, **style):
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        # A line of one point would not be seen.
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else None, **style)
