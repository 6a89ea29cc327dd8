"""Plots of partitions of several networks side by side: exact for small networks, sampled for any."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatter

from tfspline._keras.types import KerasModel
from tfspline._utils.checks import count, instance
from tfspline.spline.codes import RegionEncoder
from tfspline.spline.polygons import Polygons, bounds_of, on_plane, partition_polygons

_FINE = 300  # grid points per side at which outputs are sampled for the decision boundary of exact partitions
_BATCH = 1000  # grid points per batch
_NAME = 28  # characters of a layer's name in a panel's title
_PARALLEL = 0.01  # degrees; smaller angles to an axis are rounding
_LAYERS = ("#0072B2", "#56B4E9", "#CC79A7")  # from Okabe and Ito's palette, as in training_plots
_AXIS, _DECISION = "#D55E00", "black"


def partitions(
    models: Mapping[str, KerasModel],
    box: npt.ArrayLike = ((-1.0, 1.0), (-1.0, 1.0)),
    plane: npt.ArrayLike | None = None,
    columns: int | None = None,
) -> Figure:
    """Plots the exact partitions of small networks side by side, with boundaries coloured by layer.

    Boundaries parallel to an axis of the input space have their own colour: pruning units removes boundaries, while
    pruning weights turns those of the first layer towards the axes (You et al., "Max-Affine Spline Insights Into Deep
    Network Pruning", TMLR 2022). Shades of grey show the predicted class: the largest output, or the sign of a single
    one. The title of each panel contains the number of regions.

    Args:
        models: title -> model; all with the same layers.
        box, plane: see `tfspline.partition_polygons`.
        columns: panels per row; all in one row by default.

    Returns:
        A figure with one panel per model.

    Raises:
        TypeError, ValueError: there is no model, `tfspline.partition_polygons` rejects one, or `columns` is below 1.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> partitions({"dense": model, "pruned": tfspline.prune(model, 0.5)}).savefig("partitions.png")
    """
    _check(models)
    columns = len(models) if columns is None else count("columns", columns)
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(0.4 + 3.6 * columns, 1 + 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(models) :]:
        axes.set_axis_off()
    for axes, (title, model) in zip(panels.flat, models.items(), strict=False):
        decision = _Decision.of(model, box, plane, _FINE)
        decision.shade(axes)
        decision.draw(axes, _DECISION, 2.5)
        polygons = partition_polygons(model, box, plane, logits=True)
        layers = polygons.codes.layers
        _draw_boundaries(axes, polygons)
        axes.set_title(f"{title}\n{len(polygons):,} regions", fontsize="medium")
        axes.set_aspect("equal")
    colors = zip(layers, _layer_colors(len(layers)), strict=True)
    handles = [Line2D([], [], color=color, label=f"boundary of {name}") for name, color in colors]
    handles.append(Line2D([], [], color=_AXIS, linewidth=1.8, label="boundary parallel to an axis"))
    handles.append(Line2D([], [], color=_DECISION, linewidth=2.5, label="decision boundary"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize="small")
    _name_axes(panels, plane, [None] * rows)
    return figure


def sampled_partitions(
    models: Mapping[str, KerasModel],
    box: npt.ArrayLike = ((-1.0, 1.0), (-1.0, 1.0)),
    plane: npt.ArrayLike | None = None,
    samples: int = 100,
    layers: int = 4,
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Plots sampled partitions of networks of any size, layer by layer.

    Region codes are taken on a grid of points. The number of bits in which neighbouring codes differ is a lower bound
    for the number of boundaries between them; it is drawn on one colour scale for all panels.

    Args:
        models: title -> model, see `tfspline.region_codes`; all must have the layers of the first.
        box, plane: see `tfspline.partition_polygons`.
        samples: grid points per side, at least 2.
        layers: the number of layers to draw, evenly spaced from the first to the last.
        marks: name -> point of the box to mark.

    Returns:
        A figure with a row per model and a column per layer, and the decision boundary in each panel.

    Raises:
        TypeError, ValueError: there is no model, `tfspline.region_codes` rejects one, or an argument is out of range.

    Example:

    >>> images = np.random.default_rng(0).normal(size=(2, 4))
    >>> sampled_partitions({"mine": model}, ((0, 1), (0, 1)), images, samples=20).savefig("plane.png")
    """
    _check(models)
    count("samples", samples, least=2)
    count("layers", layers)
    differing = {title: _differing_bits(model, box, plane, samples) for title, model in models.items()}
    names = list(next(iter(differing.values())))
    for title, found in differing.items():
        if not set(names) <= set(found):
            raise ValueError(f"`models` must have the same layers, {names}. Received: {list(found)} in {title!r}")
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, layers).round().astype(int))]
    most = max(found[name].max() for found in differing.values() for name in chosen)
    figure = Figure(figsize=(1.3 + 2.1 * len(chosen), 1.1 + 2.1 * len(models)), layout="constrained")
    panels = figure.subplots(len(models), len(chosen), sharex=True, sharey=True, squeeze=False)
    for row, (title, model) in zip(panels, models.items(), strict=True):
        decision = _Decision.of(model, box, plane, samples)
        for axes, name in zip(row, chosen, strict=True):
            image = _draw_differing_bits(axes, differing[title][name], most, box)
            decision.draw(axes, _AXIS, 1.5)
            _mark(axes, marks or {})
    for axes, name in zip(panels[0], chosen, strict=True):
        # Longer names would overlap the next panel.
        axes.set_title(name if len(name) <= _NAME else f"…{name[1 - _NAME :]}", fontsize="small")
    bar = figure.colorbar(image, ax=panels, label="boundaries between neighbouring samples", aspect=30)
    bar.ax.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
    bar.ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 1)))
    handle = Line2D([], [], color=_AXIS, linewidth=1.5, label="decision boundary")
    figure.legend(handles=[handle], loc="outside lower center", fontsize="small")
    _name_axes(panels, plane, list(models))
    return figure


def _check(models: Mapping[str, KerasModel]) -> None:
    if not instance("models", models, Mapping):
        raise ValueError("`models` must contain at least one model. Received: none")


def _layer_colors(count: int) -> Sequence:
    return _LAYERS[:count] if count <= len(_LAYERS) else list(colormaps["viridis"](np.linspace(0, 0.9, count)))


def _draw_boundaries(axes: Axes, polygons: Polygons) -> None:
    # The edges of all polygons: their ends [n, 2, 2], the layer that makes each, and which are parallel to an axis.
    ends = np.concatenate([np.stack([corners, np.roll(corners, -1, axis=0)], 1) for corners in polygons.vertices])
    made_by = np.concatenate(polygons.edges)
    steps = np.abs(ends[:, 1] - ends[:, 0])
    parallel = np.degrees(np.arctan2(steps.min(axis=1), steps.max(axis=1))) < _PARALLEL
    colors = _layer_colors(len(polygons.codes.layers))
    for layer in reversed(range(len(colors))):  # draws the straight lines of the first layer on top
        chosen = ~parallel & (made_by == layer)
        axes.add_collection(LineCollection(list(ends[chosen]), colors=colors[layer], linewidths=0.9))
    axes.add_collection(LineCollection(list(ends[parallel & (made_by >= 0)]), colors=_AXIS, linewidths=1.8))


def _draw_differing_bits(axes: Axes, bits: np.ndarray, most: int, box: npt.ArrayLike) -> Any:
    colors = ListedColormap(colormaps["YlGnBu"](np.linspace(0.25, 1, 256)))  # the palest colours look like white
    bits, norm = np.ma.masked_equal(bits, 0), LogNorm(1, max(most, 2))  # 0 is white
    return axes.imshow(bits, colors, norm=norm, extent=_extent(box), origin="lower", interpolation="nearest")


def _extent(box: npt.ArrayLike) -> tuple[float, float, float, float]:
    (left, right), (bottom, top) = bounds_of(box).tolist()
    return left, right, bottom, top


def _grid(box: npt.ArrayLike, samples: int) -> tuple[np.ndarray, np.ndarray, Iterator[np.ndarray]]:
    """Returns the coordinates of a grid, [samples] each, and its points, a few rows [rows, samples, 2] at a time."""
    first, second = (np.linspace(low, high, samples) for low, high in bounds_of(box))
    points = np.stack(np.meshgrid(first, second), axis=2)
    rows = max(1, _BATCH // samples)
    return first, second, (points[start : start + rows] for start in range(0, samples, rows))


def _differing_bits(
    model: KerasModel, box: npt.ArrayLike, plane: npt.ArrayLike | None, samples: int
) -> dict[str, np.ndarray]:
    """Returns for each layer in how many bits samples differ from their next neighbours, int [samples - 1] * 2."""
    encoder = RegionEncoder(model)
    *_, grid = _grid(box, samples)
    counts: dict[str, list[np.ndarray]] = {}
    last: dict[str, np.ndarray] = {}
    for points in grid:
        codes = encoder(on_plane(model, points.reshape(-1, 2), plane), batch_size=_BATCH)
        for name in codes.layers:
            bits = codes[name].reshape(*points.shape[:2], -1)
            rows = np.concatenate([last[name], bits]) if name in last else bits
            along, across = rows[:-1, 1:] ^ rows[:-1, :-1], rows[1:, :-1] ^ rows[:-1, :-1]
            differing = sum(np.bitwise_count(xor).sum(axis=2, dtype=np.int64) for xor in (along, across))
            counts.setdefault(name, []).append(differing)
            last[name] = bits[-1:]
    return {name: np.concatenate(rows) for name, rows in counts.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class _Decision:
    """The predicted class at each point of a box: `outputs` [second, first, classes] on a grid."""

    box: npt.ArrayLike
    first: np.ndarray
    second: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, model: KerasModel, box: npt.ArrayLike, plane: npt.ArrayLike | None, samples: int) -> "_Decision":
        first, second, grid = _grid(box, samples)
        run = tf.function(lambda x: model(x, training=False), autograph=False)
        dtype = model.inputs[0].dtype
        batches = [run(tf.cast(on_plane(model, points.reshape(-1, 2), plane), dtype)) for points in grid]
        outputs = np.concatenate(batches).astype(np.float64).reshape(samples, samples, -1)
        if outputs.shape[2] == 1:
            outputs = np.concatenate([-outputs, outputs], axis=2)
        return cls(box, first, second, outputs)

    def shade(self, axes: Axes) -> None:
        """Fills the area of each class with its own grey."""
        classes = self.outputs.shape[2]
        greys = ListedColormap(np.repeat(np.linspace(1, 0.82, classes)[:, None], 3, axis=1))
        chosen = self.outputs.argmax(axis=2)
        axes.imshow(chosen, greys, vmin=0, vmax=classes - 1, extent=_extent(self.box), origin="lower")

    def draw(self, axes: Axes, color: str, width: float) -> None:
        """Draws the boundaries between classes."""
        for one in np.unique(self.outputs.argmax(axis=2))[1:]:  # the others draw the boundary of the first
            margin = self.outputs[:, :, one] - np.delete(self.outputs, one, axis=2).max(axis=2)
            axes.contour(self.first, self.second, margin, [0.0], colors=[color], linewidths=width, zorder=3)


def _mark(axes: Axes, marks: Mapping[str, tuple[float, float]]) -> None:
    outline = [withStroke(linewidth=3, foreground="white")]
    for name, (first, second) in marks.items():
        axes.plot(first, second, "o", color="black", markeredgecolor="white", markersize=6, zorder=4)
        axes.annotate(
            name, (first, second), (0, 6), textcoords="offset points", ha="center", fontsize="small",
            path_effects=outline, zorder=5,
        )  # fmt: skip


def _name_axes(panels: np.ndarray, plane: npt.ArrayLike | None, titles: Sequence[str | None]) -> None:
    first, second = ("$x_1$", "$x_2$") if plane is None else ("share of first input", "share of second input")
    for axes in panels[-1]:
        axes.set_xlabel(first)
    for axes, title in zip(panels[:, 0], titles, strict=True):
        axes.set_ylabel(f"{title}\n{second}" if title else second, fontsize="small" if title else None)
