"""Pictures of partitions, of one network beside another: exact polygons of small ones, and samples of any."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatter

from tfspline._utils.checks import count, instance
from tfspline.spline.codes import RegionEncoder
from tfspline.spline.polygons import bounds_of, on_plane, partition_polygons

_FINE = 300  # points a side at which outputs are sampled for a decision boundary beside exact polygons
_BATCH = 1000  # points that run at a time
_NAME = 28  # characters of a layer's name above a panel
_PARALLEL = 0.01  # degrees: less is rounding
_LAYERS = ("#0072B2", "#56B4E9", "#CC79A7")  # of Okabe and Ito, as in plots
_AXIS, _DECISION = "#D55E00", "black"


def partitions(
    models: Mapping[str, Any],
    box: Any = ((-1.0, 1.0), (-1.0, 1.0)),
    plane: Any = None,
    columns: int | None = None,
) -> Figure:
    """The exact partitions of networks side by side: each boundary in the colour of the layer that makes it.

    Boundaries parallel to an axis of the input space have a colour of their own: pruning units takes boundaries away,
    pruning weights turns those of the first layer towards the axes (You et al., "Max-Affine Spline Insights Into Deep
    Network Pruning", TMLR 2022). Shades of grey are the classes: which output is the largest, or is positive if there
    is one only. The number of regions stands above each panel.

    Args:
        models: title -> model; small ones, with the same layers.
        box: see `tfspline.partition_polygons`.
        plane: see `tfspline.partition_polygons`.
        columns: panels in a row; by default all of them.

    Returns:
        A figure with a panel a model, row by row.

    Raises:
        TypeError, ValueError: no model, one that `tfspline.partition_polygons` refuses, or less than one column.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> partitions({"dense": model, "half of it": tfspline.prune(model, 0.5)}).savefig("partitions.png")
    """
    _check(models)
    columns = len(models) if columns is None else count("columns", columns)
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(0.4 + 3.6 * columns, 1 + 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(models) :]:
        axes.set_axis_off()
    for axes, (title, model) in zip(panels.flat, models.items(), strict=False):
        found = partition_polygons(model, box, plane, logits=True)
        layers = found.codes.layers
        colors = _layer_colors(len(layers))
        decision = _Decision.of(model, box, plane, _FINE)
        decision.shade(axes)
        decision.draw(axes, _DECISION, 2.5)
        ends, made_by, parallel = _segments(found)
        for layer in reversed(range(len(layers))):  # the straight cuts of the first layer on top
            chosen = ~parallel & (made_by == layer)
            axes.add_collection(LineCollection(ends[chosen], colors=colors[layer], linewidths=0.9))
        axes.add_collection(LineCollection(ends[parallel & (made_by >= 0)], colors=_AXIS, linewidths=1.8))
        axes.set_title(f"{title}\n{len(found):,} regions", fontsize="medium")
        axes.set_aspect("equal")
    handles = [Line2D([], [], color=color, label=f"cut of {name}") for name, color in zip(layers, colors, strict=True)]
    handles.append(Line2D([], [], color=_AXIS, linewidth=1.8, label="cut parallel to an axis"))
    handles.append(Line2D([], [], color=_DECISION, linewidth=2.5, label="decision boundary"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize="small")
    _name_axes(panels, plane, rows * [None])
    return figure


def sampled_partitions(
    models: Mapping[str, Any],
    box: Any = ((-1.0, 1.0), (-1.0, 1.0)),
    plane: Any = None,
    samples: int = 100,
    layers: int = 4,
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """The partitions of networks of any size, sampled, layer by layer.

    The region codes are taken on a grid of points of the box. Where codes of neighbours differ there are boundaries
    between them, as many at least as bits differ: this number is drawn, on one scale for all panels. Only a few rows
    of the grid are in memory at a time.

    Args:
        models: title -> model, see `tfspline.region_codes`; those that follow have the layers of the first.
        box: ((low, high), (low, high)), the smallest and largest first and second coordinate.
        plane: two inputs (x0, x1) without their batch dimension: the points of the box are a * x0 + b * x1. Left out
            for models whose inputs are two numbers.
        samples: points of the grid, each way, at least 2.
        layers: how many layers to draw, at even distances from the first to the last.
        marks: name -> point of the box, to be marked.

    Returns:
        A figure with a row a model and a column a layer, the decision boundary on top.

    Raises:
        TypeError, ValueError: no model, one that `tfspline.region_codes` refuses, or other arguments out of range.

    Example:

    >>> images = np.random.default_rng(0).normal(size=(2, 4))
    >>> sampled_partitions({"mine": model}, ((0, 1), (0, 1)), images, samples=20).savefig("plane.png")
    """
    _check(models)
    count("samples", samples, least=2)
    count("layers", layers)
    cuts = {title: _cuts(model, box, plane, samples) for title, model in models.items()}
    names = list(next(iter(cuts.values())))
    for found in cuts.values():
        if not set(names) <= set(found):
            raise ValueError(f"Expected models with the layers {names} of the first. Received: {list(found)}")
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, layers).round().astype(int))]
    most = max(found[name].max() for found in cuts.values() for name in chosen)
    norm = LogNorm(1, max(most, 2))
    colors = ListedColormap(colormaps["YlGnBu"](np.linspace(0.25, 1, 256)))  # the palest would look like none
    size = (1.3 + 2.1 * len(chosen), 1.1 + 2.1 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(models), len(chosen), sharex=True, sharey=True, squeeze=False)
    extent = np.ravel(box)
    for row, (title, model) in zip(panels, models.items(), strict=True):
        decision = _Decision.of(model, box, plane, samples)
        for axes, name in zip(row, chosen, strict=True):
            found = np.ma.masked_equal(cuts[title][name], 0)  # white
            image = axes.imshow(found, colors, norm=norm, extent=extent, origin="lower", interpolation="nearest")
            decision.draw(axes, _AXIS, 1.5)
            _mark(axes, marks or {})
    for axes, name in zip(panels[0], chosen, strict=True):
        # More would run into the next panel.
        axes.set_title(name if len(name) <= _NAME else f"…{name[1 - _NAME :]}", fontsize="small")
    bar = figure.colorbar(image, ax=panels, label="boundaries between neighbouring samples", aspect=30)
    bar.ax.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
    bar.ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 1)))
    handle = Line2D([], [], color=_AXIS, linewidth=1.5, label="decision boundary")
    figure.legend(handles=[handle], loc="outside lower center", fontsize="small")
    _name_axes(panels, plane, models)
    return figure


def _check(models):
    if not instance("models", models, Mapping):
        raise ValueError("Expected at least one model. Received: none")


def _layer_colors(count) -> Sequence:
    return _LAYERS[:count] if count <= len(_LAYERS) else colormaps["viridis"](np.linspace(0, 0.9, count))


def _segments(polygons):
    """All edges: their ends [n, 2, 2], the layer that made each, and whether it is parallel to an axis."""
    ends = np.concatenate([np.stack([corners, np.roll(corners, -1, axis=0)], 1) for corners in polygons.vertices])
    steps = np.abs(ends[:, 1] - ends[:, 0])
    angles = np.degrees(np.arctan2(steps.min(axis=1), steps.max(axis=1)))
    return ends, np.concatenate(polygons.edges), angles < _PARALLEL


def _grid(box, samples):
    """The two coordinates of a grid of points, [samples] each, and its points, a few rows [rows, samples, 2] a time."""
    first, second = (np.linspace(*bounds, samples) for bounds in bounds_of(box))
    points = np.stack(np.meshgrid(first, second), axis=2)
    rows = max(1, _BATCH // samples)
    return first, second, (points[start : start + rows] for start in range(0, samples, rows))


def _cuts(model, box, plane, samples):
    """Of each layer in how many bits samples differ from their next ones along both axes, int [samples - 1] * 2."""
    encoder = RegionEncoder(model)
    *_, grid = _grid(box, samples)
    cuts, last = {}, {}
    for points in grid:
        codes = encoder(on_plane(model, points.reshape(-1, 2), plane), batch_size=_BATCH)
        for name in codes.layers:
            bits = codes[name].reshape(*points.shape[:2], -1)
            rows = np.concatenate([last[name], bits]) if name in last else bits
            along, across = rows[:-1, 1:] ^ rows[:-1, :-1], rows[1:, :-1] ^ rows[:-1, :-1]
            count = sum(np.bitwise_count(differ).sum(axis=2, dtype=np.int64) for differ in (along, across))
            cuts.setdefault(name, []).append(count)
            last[name] = bits[-1:]
    return {name: np.concatenate(counts) for name, counts in cuts.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class _Decision:
    """Which output is the largest where in a box: `outputs` [second, first, classes] on a grid."""

    box: Any
    first: np.ndarray
    second: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, model, box, plane, samples):
        first, second, grid = _grid(box, samples)
        run = tf.function(lambda x: model(x, training=False), autograph=False)
        dtype = model.inputs[0].dtype
        made = [run(tf.cast(on_plane(model, points.reshape(-1, 2), plane), dtype)) for points in grid]
        outputs = np.concatenate(made).astype(np.float64).reshape(samples, samples, -1)
        if outputs.shape[2] == 1:
            outputs = np.concatenate([-outputs, outputs], axis=2)
        return cls(box, first, second, outputs)

    def shade(self, axes):
        """Each class in another grey."""
        classes = self.outputs.shape[2]
        greys = ListedColormap(np.repeat(np.linspace(1, 0.82, classes)[:, None], 3, axis=1))
        chosen = self.outputs.argmax(axis=2)
        axes.imshow(chosen, greys, vmin=0, vmax=classes - 1, extent=np.ravel(self.box), origin="lower")

    def draw(self, axes, color, width):
        """A line between the classes."""
        # Between two classes it need not be drawn from both sides.
        for one in np.unique(self.outputs.argmax(axis=2))[1:]:
            margin = self.outputs[:, :, one] - np.delete(self.outputs, one, axis=2).max(axis=2)
            axes.contour(self.first, self.second, margin, [0.0], colors=[color], linewidths=width, zorder=3)


def _mark(axes, marks):
    outline = [withStroke(linewidth=3, foreground="white")]
    for name, (first, second) in marks.items():
        axes.plot(first, second, "o", color="black", markeredgecolor="white", markersize=6, zorder=4)
        axes.annotate(
            name, (first, second), (0, 6), textcoords="offset points", ha="center", fontsize="small",
            path_effects=outline, zorder=5,
        )  # fmt: skip


def _name_axes(panels, plane, rows):
    first, second = ("$x_1$", "$x_2$") if plane is None else ("share of first input", "share of second input")
    for axes in panels[-1]:
        axes.set_xlabel(first)
    for axes, title in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(f"{title}\n{second}" if title else second, fontsize="small" if title else None)
