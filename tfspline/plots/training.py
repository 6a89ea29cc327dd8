"""Pictures of a run, as matplotlib figures that belong to nobody's global state."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from tfspline._utils.checks import instance, several
from tfspline.callbacks.early_bird import EarlyBird

# Colours of Okabe and Ito, which colour-blind readers can tell apart.
_COLORS = {
    "search": "#0072B2",
    "sparsify": "#CC79A7",
    "retrain": "#D55E00",
    "retrain_weights": "#009E73",
    "baseline": "#7F7F7F",
}
_DISTANCES = {
    "partition": "partition distance\n(share of code bits)",
    "mask": "mask distance\n(share of units)",
}
_LABELS = {
    "search": "dense search",
    "sparsify": "units switched off",
    "retrain": "slim network",
    "retrain_weights": "weights pruned",
    "baseline": "dense baseline",
}


def training(history: Sequence[Mapping], early_bird: EarlyBird) -> Figure:
    """Accuracy and distance by epoch, phase by phase, with the epoch of the early bird.

    Args:
        history: the rows of `history.jsonl`: mappings with `phase` (`"search"`, `"sparsify"`, `"retrain"`,
            `"retrain_weights"`, `"baseline"`), `epoch`, `accuracy`, and where there are any `val_accuracy` and the
            early bird's distance.
        early_bird: the callback of the search.

    Returns:
        A figure of two panels above each other; of one where no early bird was looked for.

    Raises:
        ValueError: `history` holds no epoch of a known phase.

    Example:
        >>> rows = [{"phase": "search", "epoch": 1, "accuracy": 0.6, "partition_distance": 0.1}]
        >>> training(rows, tfspline.EarlyBird()).savefig("training.png")
    """
    instance("early_bird", early_bird, EarlyBird)
    _check_rows("history", history, "phase", "epoch")
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
    _check_rows("rows", rows, "layer", "units_before", "units_after")
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


def distance_matrix(
    distances: np.ndarray, epochs: Sequence[int], found: int | None = None, figure: FigureBase | None = None
) -> FigureBase:
    """How far the partitions of each two epochs are apart.

    Where the partition has settled, a dark square opens towards the end of the diagonal.

    Args:
        distances: [E, E], what `tfspline.partition_distances` makes of the codes of E epochs.
        epochs: their numbers, rising.
        found: the epoch of the early bird, to be marked.
        figure: what to draw in, such as one of `Figure.subfigures`; by default a new figure.

    Returns:
        A figure of one panel, the first epoch at the lower left.

    Raises:
        ValueError: distances that are not a matrix with a row and a column an epoch, or of no epoch.

    Example:
        >>> distance_matrix(np.array([[0, 0.2], [0.2, 0]]), [1, 2]).savefig("distances.png")
    """
    epochs, distances = np.asarray(epochs), np.asarray(distances)
    _check_distances(distances, epochs)
    figure = figure or Figure(figsize=(6, 4.8), layout="constrained")
    axes = figure.subplots()
    between = (epochs[1:] + epochs[:-1]) / 2
    edges = np.concatenate([epochs[:1] - 0.5, between, epochs[-1:] + 0.5])
    image = axes.pcolormesh(edges, edges, distances, cmap="viridis", vmin=0)
    figure.colorbar(image, label="partition distance (share of code bits)")
    axes.set_aspect("equal")
    axes.set(xlabel="epoch", ylabel="epoch")
    if found is not None:
        for line in (axes.axvline, axes.axhline):
            handle = line(found, color="white", linestyle=":", linewidth=2, label=f"early bird, epoch {found}")
        figure.legend(handles=[handle], loc="outside upper center", facecolor="#31688E", labelcolor="white")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return figure


def layer_distances(distances: Mapping[str, np.ndarray], epochs: Sequence[int], found: int | None = None) -> Figure:
    """How far the partition moved in each epoch, layer by layer.

    Args:
        distances: layer -> [E, E], what `tfspline.partition_distances` makes of the codes of E epochs with `per_layer`.
        epochs: their numbers, rising.
        found: the epoch of the early bird, to be marked.

    Returns:
        A figure with a line a layer, from dark to light in the order of the network, and their mean in black.

    Raises:
        ValueError: no layer, distances of another shape, or fewer than two epochs.

    Example:
        >>> matrix = np.array([[0, 0.2], [0.2, 0]])
        >>> layer_distances({"relu1": matrix, "relu2": matrix / 2}, [1, 2]).savefig("layers.png")
    """
    if not instance("distances", distances, Mapping) or len(epochs) < 2:
        raise ValueError(f"Expected layers and two epochs. Received: {len(distances)} layers, {len(epochs)} epochs")
    for matrix in distances.values():
        _check_distances(np.asarray(matrix), epochs)
    moved = {name: np.diagonal(matrix, 1) for name, matrix in distances.items()}
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(moved)))
    # A legend of dozens of lines says nothing: of many layers only some are named.
    named = {list(moved)[i] for i in np.unique(np.linspace(0, len(moved) - 1, 8).round().astype(int))}
    for (name, distance), color in zip(moved.items(), colors, strict=True):
        label = name if name in named else None
        axes.plot(epochs[1:], distance, color=color, linewidth=1.5, marker=".", label=label)
    mean = np.mean(list(moved.values()), axis=0)
    axes.plot(epochs[1:], mean, color="black", linewidth=2.5, label="mean of all layers")
    if found is not None:
        axes.axvline(found, color="black", linewidth=1, linestyle=":", label=f"early bird, epoch {found}")
    axes.set(xlabel="epoch", ylabel="distance to the epoch before\n(share of code bits)")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _check_rows(name, rows, *keys):
    for row in several(name, rows):
        if not isinstance(row, Mapping) or not set(keys) <= set(row):
            raise ValueError(f"Expected `{name}` to be mappings with {', '.join(keys)}. Received: {row!r}")


def _check_distances(distances, epochs):
    if not len(epochs) or distances.shape != (len(epochs), len(epochs)):
        raise ValueError(
            f"Expected distances of shape [E, E] for E epochs, at least one. "
            f"Received: {list(distances.shape)} for {len(epochs)} epochs"
        )
    if not (np.diff(epochs) > 0).all():
        raise ValueError(f"Expected epochs that rise. Received: {np.asarray(epochs).tolist()}")


def accuracy_flops(summaries: Sequence[Mapping]) -> Figure:
    """Test accuracy against the FLOPs that the training took, search included, of the networks of some runs.

    Args:
        summaries: what `run` returns, one a run. A dense network without a baseline has no accuracy
            and is left out.

    Returns:
        A figure with a point a network.

    Raises:
        ValueError: no run.

    Example:
        >>> dense, slim = {"accuracy": 0.9, "training_flops": 3e9}, {"accuracy": 0.89, "training_flops": 1e9}
        >>> accuracy_flops([{"dense": dense, "slim": slim}]).savefig("accuracy.png")
    """
    _check_rows("summaries", summaries, "slim")
    if not summaries:
        raise ValueError("Expected the summary of at least one run. Received: none")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    kinds = {"dense": ("baseline", "o"), "slim": ("retrain", "s"), "weights_pruned": ("retrain_weights", "^")}
    for kind, (phase, marker) in kinds.items():
        points = [run[kind] for run in summaries if "accuracy" in run.get(kind, ())]
        if points:
            flops, accuracy = ([point[name] for point in points] for name in ("training_flops", "accuracy"))
            label = _LABELS[phase]
            axes.plot(flops, 100 * np.array(accuracy), marker, color=_COLORS[phase], markersize=9, label=label)
    axes.margins(0.2)
    axes.set_xlim(left=0)
    axes.set(xlabel="training FLOPs (2 x MACs, search included)", ylabel="accuracy (%)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _line(axes, rows, key, **style):
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        # A line of one point would not be seen.
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else None, **style)
