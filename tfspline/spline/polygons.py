"""Exact partitions of a plane: the polygons on which a network is one affine map."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import check_inputs
from tfspline._utils.checks import count, several
from tfspline.spline.codes import Codes, unique
from tfspline.spline.float64 import Network, flat

# Pieces that are narrower than this share of the box are not cut off: rounding makes them where lines meet.
_NARROW = 1e-10


@dataclasses.dataclass(frozen=True)
class Polygons:
    """The regions of a network's partition inside a box, convex polygons that fill it.

    Attributes:
        vertices: float64 [k, 2] for each polygon, counter-clockwise, in the coordinates of the box.
        edges: int64 [k] for each polygon: which of `codes.layers` has cut the edge from vertex i to the next one, -1
            for the border of the box.
        codes: the `Codes` of the regions, a row a polygon, as `region_codes` with `max_pooling` gives them for any
            point inside.
        A: float64 [polygons, outputs, 2], and
        b: float64 [polygons, outputs]: the outputs are A p + b at a point p of the polygon.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu")])
    >>> partition = tfspline.partition_polygons(model, ((-1, 1), (1, 3)))
    >>> [len(corners) for corners in partition.vertices], partition.codes.unpack("relu").tolist()
    ([4, 4], [[1, 1], [0, 1]])
    >>> partition.A[0].tolist(), partition.A[1].tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]])
    """

    vertices: list[np.ndarray]
    edges: list[np.ndarray]
    codes: Codes
    A: np.ndarray
    b: np.ndarray

    def __len__(self):
        return len(self.vertices)


def partition_polygons(
    model: Any,
    box: Any = ((-1.0, 1.0), (-1.0, 1.0)),
    plane: Any = None,
    logits: bool = False,
    max_regions: int = 100_000,
) -> Polygons:
    """The exact partition of a two-dimensional input space, or of a plane in a larger one, inside a box.

    Starts with the box and cuts it layer by layer: on each polygon that is there, what goes into a layer is an affine
    function of the point, so each unit cuts it along a line or not at all. All in float64. n lines in general
    position, the units of one hidden layer, make 1 + n + n (n - 1) / 2 regions of a large enough box (Montufar et al.,
    "On the Number of Linear Regions of Deep Neural Networks", NeurIPS 2014); pieces narrower than 1e-10 of the box
    are not told apart from the line beside them.

    Meant for small networks and pictures: it takes time by the number of units times that of regions, and a layer
    can multiply the regions.

    Args:
        model: what `tfspline.affine_map` takes, with one input of two numbers, unless there is a `plane`. Of max
            pooling and Maximum only those that choose between two.
        box: ((low, high), (low, high)), the smallest and largest first and second coordinate.
        plane: two inputs (x0, x1) without their batch dimension: the points of the box are a * x0 + b * x1, as in
            `tfspline.plane`.
        logits: leave out a smooth activation at the very output, see `tfspline.affine_map`.
        max_regions: give up beyond so many.

    Returns:
        The `Polygons`.

    Raises:
        TypeError, ValueError: a model that `affine_map` refuses, that has no units in pieces, whose input does not
            fit, that chooses among more than two, or with more than `max_regions` regions; a box that is none.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu"), keras.layers.Dense(1)])
    >>> partition = tfspline.partition_polygons(model)  # cut along both axes
    >>> len(partition), sorted(partition.codes.unpack("relu").tolist())
    (4, [[0, 0], [0, 1], [1, 0], [1, 1]])
    """
    network = Network(model, logits)
    names = unique(step.name for step in network.steps if step.shape)
    if not names:
        raise ValueError(f"Expected a model with at least one unit in pieces. Received: {model.name!r}, which has none")
    low, high = bounds_of(box).T
    corners = np.array([low, [high[0], low[1]], [low[0], high[1]]])
    cutter = _Cutter(names, count("max_regions", max_regions))
    steps = iter(network.steps)

    def visit(node, args, kwargs):
        step = next(steps)
        args, kwargs = tf.nest.map_structure(
            lambda value: cutter.rows(value) if isinstance(value, _Sheet) else value, (args, kwargs)
        )
        made = step.affine(args, kwargs)
        made = [made] if step.shape is None else [cutter.cut(step.shape, made)]
        return [cutter.sheet(value) for value in tf.nest.flatten(made)]

    sheets = [cutter.sheet(tf.constant(on_plane(network.model, corners, plane)))]
    outputs = flat([cutter.rows(sheet) for sheet in _keras.run(network.model, sheets, visit, nested=True)])
    slopes = np.asarray(outputs).reshape(-1, 3, outputs.shape[1])
    A = np.stack([slopes[:, 1] - slopes[:, 0], slopes[:, 2] - slopes[:, 0]], axis=2) / (high - low)
    vertices, edges = cutter.polygons()
    return Polygons([low + one * (high - low) for one in vertices], edges, cutter.codes(), A, slopes[:, 0] - A @ low)


def bounds_of(box: Any) -> np.ndarray:
    """A box as float64 [2, 2]; ValueError where it is none."""
    bounds = np.asarray(box)
    numbers = bounds.shape == (2, 2) and bounds.dtype.kind in "biuf"
    if not numbers or not (bounds[:, 0] < bounds[:, 1]).all() or not np.isfinite(bounds).all():
        raise ValueError(f"Expected a box ((low, high), (low, high)), each low below its high. Received: {box}")
    return bounds.astype(np.float64)


def on_plane(model: Any, points: np.ndarray, plane: Any) -> np.ndarray:
    """Points [n, 2] as inputs of the model: as they are, or a * x0 + b * x1 for a `plane` (x0, x1)."""
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if plane is None:
        if shapes != [(2,)]:
            raise ValueError(f"Expected a model with one input of shape (2,), or a plane. Received: inputs of {shapes}")
        return points
    ends = [np.asarray(x) for x in several("plane", plane)]
    received = [x.shape for x in ends]
    if len(shapes) > 1 or received != 2 * shapes:
        raise ValueError(f"Expected a plane of two inputs of shapes {shapes} of {model.name!r}. Received: {received}")
    ((x0, x1),) = check_inputs(model, np.stack(ends))
    return np.multiply.outer(points[:, 0], x0) + np.multiply.outer(points[:, 1], x1)


@dataclasses.dataclass(frozen=True, eq=False)
class _Sheet:
    """What flows along an edge: for each polygon there was at some `time` the affine function, as its three values at
    the corners (0, 0), (1, 0) and (0, 1) of the box, [3 polygons, ...]."""

    value: tf.Tensor
    time: int


class _Cutter:
    """Polygons that are cut by one layer after the other.

    They are kept as arrays [polygons, k, 2] in coordinates in which the box is the unit square, the last vertex
    repeated where a polygon has fewer than the most.
    """

    def __init__(self, names, max_regions):
        self.max_regions = max_regions
        self._vertices = np.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
        self._edges = np.full((1, 4), -1)
        self._names, self._bits = names, []
        self._parents = []  # for each layer that has cut, of each polygon after it the one before it

    def sheet(self, value):
        return _Sheet(value, len(self._parents))

    def rows(self, sheet):
        """A sheet's value for the polygons that there are now."""
        value = sheet.value
        for parents in self._parents[sheet.time :]:
            value = _children(value, parents)
        return value

    def cut(self, shape, z):
        """Cuts the polygons where the code of `shape` changes, z given on them; returns what becomes of z."""
        name = self._names[len(self._bits)]
        try:
            borders = shape.borders(z)
        except ValueError as error:
            raise ValueError(f"Expected choices between two only. Received: layer {name!r}, {error}") from error
        parents = np.arange(len(self._vertices))
        for border in borders:
            # The border as a function c0 + c1 s + c2 t of the point, for each polygon and unit.
            corners = np.asarray(border).reshape(-1, 3, border.shape[1:].num_elements())
            lines = corners - corners[:, :1] * [[0.0], [1.0], [1.0]]
            for unit in range(lines.shape[2]):
                parents = parents[self._cut(lines[parents, :, unit], name)]
        self._parents.append(parents)

        z = _children(z, parents)
        centre = _centres(self._vertices)
        weights = np.stack([1 - centre.sum(axis=1), *centre.T], axis=1)
        z_centre = tf.einsum("pc,pc...->p...", weights, tf.reshape(z, [-1, 3, *z.shape[1:]]))
        self._bits.append(np.concatenate([np.reshape(bit, (len(parents), -1)) for bit in shape.bits(z_centre)], 1))
        return shape.apply(z, tf.repeat(shape.code(z_centre), 3, axis=0))

    def _cut(self, line, name):
        """Cuts each polygon along its own line, [polygons, 3]; returns which one each polygon was before."""
        values = line[:, :1] + np.einsum("pki,pi->pk", self._vertices, line[:, 1:])
        noise = _NARROW * np.abs(line[:, 1:]).sum(axis=1, keepdims=True) + 1e-14 * np.abs(line).max(initial=0.0)
        values[np.abs(values) <= noise] = 0.0
        crossed = (values.min(axis=1) < 0) & (values.max(axis=1) > 0)
        if not crossed.any():
            return np.arange(len(line))
        parts = [(self._vertices[~crossed], self._edges[~crossed])]
        for side in (values[crossed], -values[crossed]):
            parts.append(_side(self._vertices[crossed], self._edges[crossed], side, len(self._bits)))
        width = max(edges.shape[1] for _, edges in parts)
        self._vertices, self._edges = (
            np.concatenate([_widened(array, width) for array in arrays]) for arrays in zip(*parts, strict=True)
        )
        if len(self._edges) > self.max_regions:
            raise ValueError(
                f"Expected at most {self.max_regions} regions (max_regions). Received: more, up to layer {name!r}"
            )
        return np.concatenate([np.flatnonzero(~crossed), *2 * [np.flatnonzero(crossed)]])

    def polygons(self):
        """The vertices and edges of each polygon, without repetitions."""
        distinct = _distinct(self._vertices)
        return tuple(
            [array[mask] for array, mask in zip(arrays, distinct, strict=True)]
            for arrays in (self._vertices, self._edges)
        )

    def codes(self):
        """The bits of all layers, for the polygons that there are now."""
        arrays = {}
        for i, (name, bits) in enumerate(zip(self._names, self._bits, strict=True)):
            for parents in self._parents[i + 1 :]:
                bits = bits[parents]
            arrays[name] = bits
        packed = {name: np.packbits(bits, axis=1, bitorder="little") for name, bits in arrays.items()}
        return Codes(packed, {name: bits.shape[1] for name, bits in arrays.items()})


def _children(value, parents):
    return tf.gather(value, (3 * parents[:, None] + np.arange(3)).ravel())


def _widened(array, width):
    missing = [(0, 0)] * array.ndim
    missing[1] = (0, width - array.shape[1])
    return np.pad(array, missing, mode="edge")


def _distinct(vertices):
    """Which vertices, [polygons, k], are not repeated by the next one."""
    return (vertices != np.roll(vertices, -1, axis=1)).any(axis=2)


def _centres(vertices):
    """A point well inside each polygon: the mean of its vertices, each counted once."""
    distinct = _distinct(vertices)[:, :, None]
    return (vertices * distinct).sum(axis=1) / distinct.sum(axis=1)


def _side(vertices, edges, values, label):
    """The parts of convex polygons where the values at their vertices, and linearly between them, are positive.

    Returns:
        Their vertices [polygons, k, 2], and which cut made each edge: `label` for the new one.
    """
    following, ahead = np.roll(values, -1, axis=1), np.roll(vertices, -1, axis=1)
    crossing = values * following < 0
    share = np.divide(values, values - following, out=np.zeros_like(values), where=crossing)
    crossings = vertices + share[:, :, None] * (ahead - vertices)
    kept = (values >= 0) & _distinct(vertices)
    # Behind each vertex comes the place where its edge crosses the line, if it does; where the boundary leaves the
    # positive side, the new edge begins.
    points = np.stack([vertices, crossings], axis=2).reshape(len(values), -1, 2)
    leaving = [(values == 0) & (following < 0), crossing & (values > 0)]
    labels = np.stack([np.where(leaves, label, edges) for leaves in leaving], axis=2).reshape(len(values), -1)
    there = np.stack([kept, crossing], axis=2).reshape(len(values), -1)
    count = there.sum(axis=1, keepdims=True)
    order = np.argsort(~there, axis=1, kind="stable")
    order = np.take_along_axis(order, np.minimum(np.arange(count.max()), count - 1), axis=1)
    return np.take_along_axis(points, order[:, :, None], axis=1), np.take_along_axis(labels, order, axis=1)
