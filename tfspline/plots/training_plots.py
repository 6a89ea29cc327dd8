"""Plots of trainings: accuracy, partition distances, kept units."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tfspline._utils.checks import instance, several
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.early_bird_tests import TESTS

# The lines of each phase. Colour-blind readers can tell these colours, from the palette of Okabe and Ito, apart.
_STYLES: dict[str, dict[str, Any]] = {
    "search": {"label": "dense search", "color": "#0072B2"},
    "sparsify": {"label": "gradual pruning", "color": "#CC79A7"},
    "retrain": {"label": "slim network", "color": "#D55E00"},
    "retrain_weights": {"label": "weights pruned", "color": "#009E73"},
    "baseline": {"label": "dense baseline", "color": "#7F7F7F"},
}


def training(history: Sequence[Mapping[str, Any]], early_bird: EarlyBird) -> Figure:
    """Plots accuracy and partition distance by epoch, for each phase of a run, and marks the early bird.

    Args:
        history: rows of `history.jsonl`: mappings with `phase` ("search", "sparsify", "retrain", "retrain_weights",
            "baseline"; others are ignored), `epoch`, `accuracy`, and optionally `val_accuracy` and the distance.
        early_bird: the callback of the search.

    Returns:
        A figure of two panels, or of one if there are no distances.

    Raises:
        ValueError: `history` has no row of these phases.

    Example:
        >>> rows = [{"phase": "search", "epoch": 1, "accuracy": 0.6, "partition_distance": 0.1}]
        >>> training(rows, tfspline.EarlyBird()).savefig("training.png")
    """
    instance("early_bird", early_bird, EarlyBird)
    _check_rows("history", history, "phase", "epoch")
    phases = {phase: [row for row in history if row["phase"] == phase] for phase in _STYLES}
    phases = {phase: rows for phase, rows in phases.items() if rows}
    if not phases:
        raise ValueError(f"`history` must have rows of the phases {list(_STYLES)}. Received: {len(history)} others")
    has_distances = any(f"{early_bird.metric}_distance" in row for row in history)
    figure = Figure(figsize=(8, 6 if has_distances else 4), layout="constrained")
    ratios = (3, 2)[: 1 + has_distances]
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    if early_bird.found:
        for panel in panels:
            panel.axvline(early_bird.epoch, color="black", linewidth=1, label=f"early bird, epoch {early_bird.epoch}")
    _draw_accuracy(panels[0], phases)
    if has_distances:
        _draw_distances(panels[1], phases, early_bird)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(_integers())
    return figure


def _draw_accuracy(axes: Axes, phases: Mapping[str, Sequence[Mapping]]) -> None:
    for phase, rows in phases.items():
        _line(axes, rows, "accuracy", **_STYLES[phase])
        _line(axes, rows, "val_accuracy", color=_STYLES[phase]["color"], linestyle="--")
    validated = any("val_accuracy" in row for rows in phases.values() for row in rows)
    handles, _ = axes.get_legend_handles_labels()
    if validated:
        styles = {"training": "-", "validation": "--"}
        handles += [Line2D([], [], color="black", label=label, linestyle=style) for label, style in styles.items()]
    axes.legend(handles=handles, loc="lower right")
    axes.set_ylabel(f"{'' if validated else 'training '}accuracy\n(share of images)")


def _draw_distances(axes: Axes, phases: Mapping[str, Sequence[Mapping]], early_bird: EarlyBird) -> None:
    for phase, rows in phases.items():
        _line(axes, rows, f"{early_bird.metric}_distance", color=_STYLES[phase]["color"])
    threshold = early_bird.threshold
    line = axes.axhline(threshold, color="black", linestyle=":", label=f"threshold {threshold:g}")
    axes.legend(handles=[line], loc="upper right")
    axes.set_ylabel(TESTS[early_bird.metric].label)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])  # leaves room above the threshold


def _integers() -> MaxNLocator:
    return MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True)


def units_kept(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots the number of units of each layer before and after pruning.

    Args:
        rows: `Plan.rows()`: mappings with `layer`, `units_before` and `units_after`.

    Returns:
        A figure with one bar per row, from top to bottom.

    Raises:
        ValueError: there are no rows.

    Example:
        >>> units_kept([{"layer": "conv1", "units_before": 16, "units_after": 5}]).savefig("units.png")
    """
    _check_rows("rows", rows, "layer", "units_before", "units_after")
    layers, before, after = ([row[key] for row in rows] for key in ("layer", "units_before", "units_after"))
    figure = Figure(figsize=(8, 1.4 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    dense = axes.barh(range(len(rows)), before, color="#CCCCCC", label="dense")
    axes.barh(range(len(rows)), after, color=_STYLES["retrain"]["color"], label="kept")
    labels = [f"{kept} of {most} ({kept / most:.0%})" for kept, most in zip(after, before, strict=True)]
    axes.bar_label(dense, labels, padding=4, fontsize="small")
    axes.set_yticks(range(len(rows)), layers, fontsize="small")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(right=1.25 * max(before))
    axes.set_xlabel("units")
    axes.xaxis.set_major_locator(_integers())
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def distance_matrix(
    distances: npt.ArrayLike, epochs: Sequence[int], found: int | None = None, figure: FigureBase | None = None
) -> FigureBase:
    """Plots the partition distances between all pairs of epochs.

    A partition that has settled shows as a dark square at the end of the diagonal.

    Args:
        distances: [E, E], from `tfspline.partition_distances` of the codes of E epochs.
        epochs: the numbers of the epochs, increasing.
        found: the epoch of the early bird, to mark.
        figure: the figure to draw in, such as one of `Figure.subfigures`; a new one by default.

    Returns:
        The figure; the first epoch is at the lower left.

    Raises:
        ValueError: `distances` does not have one row and column per epoch, or there is no epoch.

    Example:
        >>> distance_matrix(np.array([[0, 0.2], [0.2, 0]]), [1, 2]).savefig("distances.png")
    """
    matrix, numbers = _check_distances(distances, epochs)
    figure = figure or Figure(figsize=(6, 4.8), layout="constrained")
    axes = figure.subplots()
    between = (numbers[1:] + numbers[:-1]) / 2
    edges = np.concatenate([numbers[:1] - 0.5, between, numbers[-1:] + 0.5])
    image = axes.pcolormesh(edges, edges, matrix, cmap="viridis", vmin=0)
    figure.colorbar(image, label="partition distance (share of code bits)")
    axes.set(xlabel="epoch", ylabel="epoch", aspect="equal")
    if found is not None:
        for line in (axes.axvline, axes.axhline):
            handle = line(found, color="white", linestyle=":", linewidth=2, label=f"early bird, epoch {found}")
        figure.legend(handles=[handle], loc="outside upper center", facecolor="#31688E", labelcolor="white")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_integers())
    return figure


def layer_distances(distances: Mapping[str, npt.ArrayLike], epochs: Sequence[int], found: int | None = None) -> Figure:
    """Plots how far the partition moved in each epoch, layer by layer.

    Args:
        distances: layer -> [E, E], from `tfspline.partition_distances` of the codes of E epochs with `per_layer=True`.
        epochs: the numbers of the epochs, increasing.
        found: the epoch of the early bird, to mark.

    Returns:
        A figure with one line per layer, from dark to light in the order of the network, and their mean in black.

    Raises:
        ValueError: there is no layer, a matrix has another shape, or there are fewer than two epochs.

    Example:
        >>> matrix = np.array([[0, 0.2], [0.2, 0]])
        >>> layer_distances({"relu1": matrix, "relu2": matrix / 2}, [1, 2]).savefig("layers.png")
    """
    if not instance("distances", distances, Mapping) or len(epochs) < 2:
        raise ValueError(
            "`distances` and `epochs` must have at least one layer and two epochs. "
            f"Received: {len(distances)} layers, {len(epochs)} epochs"
        )
    moved = {name: np.diagonal(_check_distances(matrix, epochs)[0], 1) for name, matrix in distances.items()}
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(moved)))
    # A legend with dozens of lines is unreadable, so only some of many layers are named.
    named = {list(moved)[i] for i in np.unique(np.linspace(0, len(moved) - 1, 8).round().astype(int))}
    for (name, distance), color in zip(moved.items(), colors, strict=True):
        label = name if name in named else None
        axes.plot(epochs[1:], distance, color=color, linewidth=1.5, marker=".", label=label)
    mean = np.mean(list(moved.values()), axis=0)
    axes.plot(epochs[1:], mean, color="black", linewidth=2.5, label="mean of all layers")
    if found is not None:
        axes.axvline(found, color="black", linewidth=1, linestyle=":", label=f"early bird, epoch {found}")
    axes.set(xlabel="epoch", ylabel="distance to the previous epoch\n(share of code bits)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(_integers())
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def accuracy_flops(summaries: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots test accuracy against training FLOPs (search included) of the networks of several runs.

    Args:
        summaries: one summary per run, as `tfspline.recipe.runner.run` returns them. A dense network without a baseline
            has no accuracy and is left out.

    Returns:
        A figure with one point per network.

    Raises:
        ValueError: there is no run.

    Example:
        >>> dense, slim = {"accuracy": 0.9, "training_flops": 3e9}, {"accuracy": 0.89, "training_flops": 1e9}
        >>> accuracy_flops([{"dense": dense, "slim": slim}]).savefig("accuracy.png")
    """
    _check_rows("summaries", summaries, "slim")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    kinds = {"dense": ("baseline", "o"), "slim": ("retrain", "s"), "weights_pruned": ("retrain_weights", "^")}
    for kind, (phase, marker) in kinds.items():
        points = [run[kind] for run in summaries if "accuracy" in run.get(kind, ())]
        if points:
            flops, accuracy = ([point[name] for point in points] for name in ("training_flops", "accuracy"))
            axes.plot(flops, 100 * np.array(accuracy), marker, markersize=9, **_STYLES[phase])
    axes.margins(0.2)
    axes.set_xlim(left=0)
    axes.set(xlabel="training FLOPs (2 x MACs, search included)", ylabel="accuracy (%)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _check_rows(name: str, rows: Sequence[Mapping], *keys: str) -> None:
    wrong = [row for row in several(name, rows) if not isinstance(row, Mapping) or not set(keys) <= set(row)]
    if wrong or not rows:
        received = repr(wrong[0]) if wrong else "none"
        raise ValueError(f"`{name}` must be mappings with {', '.join(keys)}, at least one. Received: {received}")


def _check_distances(distances: npt.ArrayLike, epochs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as arrays."""
    matrix, numbers = np.asarray(distances), np.asarray(epochs)
    if not len(numbers) or matrix.shape != (len(numbers), len(numbers)):
        raise ValueError(
            "`distances` must have shape [E, E] for E epochs, at least one. "
            f"Received: {list(matrix.shape)} for {len(numbers)} epochs"
        )
    if not (np.diff(numbers) > 0).all():
        raise ValueError(f"`epochs` must increase. Received: {numbers.tolist()}")
    return matrix, numbers


def _line(axes: Axes, rows: Sequence[Mapping], key: str, **style: Any) -> None:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        # A line with a single point is visible only with a marker.
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else None, **style)
