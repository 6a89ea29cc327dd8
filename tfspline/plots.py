"""Pictures of a run, as matplotlib figures that belong to nobody's global state."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tfspline.callbacks import EarlyBird

# Colours of Okabe and Ito, which colour-blind readers can tell apart.
_COLORS = {"search": "#0072B2", "retrain": "#D55E00", "baseline": "#7F7F7F"}
_DISTANCES = {
    "partition": "partition distance\n(share of code bits)",
    "mask": "mask distance\n(share of units)",
}
_LABELS = {"search": "dense search", "retrain": "slim network", "baseline": "dense baseline"}


def training(history: Sequence[Mapping], early_bird: EarlyBird) -> Figure:
    """Accuracy and distance by epoch, phase by phase, with the epoch of the early bird.

    Args:
        history: the rows of `history.jsonl`: mappings with `phase` (`"search"`, `"retrain"` or `"baseline"`),
            `epoch`, `accuracy`, and where there are any `val_accuracy` and the early bird's distance.
        early_bird: the callback of the search.

    Returns:
        A figure of two panels above each other.

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
    figure = Figure(figsize=(8, 6), layout="constrained")
    accuracy, distance = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for phase, rows in phases.items():
        _line(accuracy, rows, "accuracy", color=_COLORS[phase], label=_LABELS[phase])
        _line(accuracy, rows, "val_accuracy", color=_COLORS[phase], linestyle="--")
        _line(distance, rows, f"{early_bird.metric}_distance", color=_COLORS[phase])
    threshold = early_bird.threshold
    distance.axhline(threshold, color="black", linestyle=":", label=f"threshold {threshold:g}")
    if early_bird.found:
        accuracy.axvline(early_bird.epoch, color="black", linewidth=1, label=f"early bird, epoch {early_bird.epoch}")
        distance.axvline(early_bird.epoch, color="black", linewidth=1)
    handles, _ = accuracy.get_legend_handles_labels()
    validated = any("val_accuracy" in row for row in history)
    if validated:
        handles += [
            Line2D([], [], color="black", label="training"),
            Line2D([], [], color="black", linestyle="--", label="validation"),
        ]
    accuracy.legend(handles=handles, loc="lower right")
    distance.legend(loc="upper right")
    accuracy.set_ylabel(f"{'' if validated else 'training '}accuracy\n(share of images)")
    distance.set_ylabel(_DISTANCES[early_bird.metric])
    distance.set_xlabel("epoch")
    distance.set_ylim(0, 1.1 * distance.get_ylim()[1])  # room above the threshold's line
    distance.xaxis.get_major_locator().set_params(integer=True)
    return figure


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
