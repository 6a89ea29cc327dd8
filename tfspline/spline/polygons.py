"""Exact partitions of a plane into the polygons on which a network is one affine map."""

import dataclasses

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import check_inputs
from tfspline._keras.types import KerasModel
from tfspline._utils.checks import count, several
from tfspline.spline.calls import unique
from tfspline.spline.codes import Codes
from tfspline.spline.float64 import Network, Pieces, flat

_MIN_WIDTH = 1e-10  # share of the box: rounding makes narrower slivers where lines meet, so these are not split off


@dataclasses.dataclass(frozen=True)
class Polygons:
    """The regions of a network's partition inside a box: convex polygons that fill it.

    Attributes:
        vertices: float64 `[k, 2]` per polygon, counter-clockwise, in the coordinates of the box.
        edges: int64 `[k]` per polygon: the index in `codes.layers` of the layer whose boundary is the edge from vertex
            i to the next one, -1 for the border of the box.
        codes: the `Codes` of the regions, one row per polygon, as computed by `region_codes` with `max_pooling=True`
            for any point inside.
        A: float64 `[polygons, outputs, 2]`.
        b: float64 `[polygons, outputs]`. The outputs at a point p of a polygon are A p + b.

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

    def __len__(self) -> int:
        return len(self.vertices)


def partition_polygons(
    model: KerasModel,
    box: npt.ArrayLike = ((-1.0, 1.0), (-1.0, 1.0)),
    plane: npt.ArrayLike | None = None,
    logits: bool = False,
    max_regions: int = 100_000,
) -> Polygons:
    """Compute the exact partition of a two-dimensional input space, or of a plane in a larger one, inside a box.

    Starts with the box and splits it layer by layer, in float64: on each polygon, a layer's pre-activations are affine
    functions of the point, so a unit splits the polygon along a line or not at all. The n units of one hidden layer
    make up to 1 + n + n (n - 1) / 2 regions (Montufar et al., "On the Number of Linear Regions of Deep Neural
    Networks", NeurIPS 2014). Meant for small networks: the time grows with the number of units times that of regions.

    Args:
        model: as for `tfspline.affine_map`, with one input of shape (2,) unless `plane` is given. Max-pooling and
            Maximum may choose between two values only.
        box: ((low, high), (low, high)), the ranges of the first and of the second coordinate.
        plane: two inputs (x0, x1) without batch dimension: a point (a, b) of the box stands for a * x0 + b * x1.
        logits: ignore a smooth activation at the model's output, see `tfspline.affine_map`.
        max_regions: largest number of regions to compute.

    Returns:
        The `Polygons`. Pieces narrower than 1e-10 of the box are merged into their neighbours.

    Raises:
        TypeError: `model` is not a Keras model, or `plane` is not a pair.
        ValueError: `tfspline.affine_map` rejects the model, it has no piecewise-affine units, chooses among more than
            two values or has more than `max_regions` regions, or `box` or `plane` is invalid.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu"), keras.layers.Dense(1)])
    >>> partition = tfspline.partition_polygons(model)  # split along both axes
    >>> len(partition), sorted(partition.codes.unpack("relu").tolist())
    (4, [[0, 0], [0, 1], [1, 0], [1, 1]])
    """
    network = Network(model, logits)
    names = unique(step.name for step in network.steps.values() if step.activation)
    if not names:
        raise ValueError(f"Expected a model with at least one piecewise-affine unit. Received: {model.name!r}")
    low, high = bounds_of(box).T
    corners = np.array([low, [high[0], low[1]], [low[0], high[1]]])
    partition = _Partition(names, count("max_regions", max_regions))
    values = _propagate(network, partition, on_plane(network.model, corners, plane))
    A = np.stack([values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]], axis=2) / (high - low)
    vertices, edges = partition.tiles.polygons()
    vertices = [low + one * (high - low) for one in vertices]
    return Polygons(vertices, edges, partition.codes(), A, values[:, 0] - A @ low)


def bounds_of(box: npt.ArrayLike) -> np.ndarray:
    """Return a box as float64 `[2, 2]`; ValueError if it is not ((low, high), (low, high)) with low < high."""
    bounds = np.asarray(box)
    numbers = bounds.shape == (2, 2) and bounds.dtype.kind in "biuf"
    if not numbers or not (bounds[:, 0] < bounds[:, 1]).all() or not np.isfinite(bounds).all():
        raise ValueError(f"Expected `box` to be ((low, high), (low, high)) with low < high. Received: {box!r}")
    return bounds.astype(np.float64)


def on_plane(model: KerasModel, points: np.ndarray, plane: npt.ArrayLike | None) -> np.ndarray:
    """Return points (a, b), `[n, 2]`, as inputs of the model: unchanged, or a * x0 + b * x1 for a `plane` (x0, x1)."""
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if plane is None:
        if shapes != [(2,)]:
            raise ValueError(
                f"Without a `plane`, the model needs one input of shape (2,). Received: inputs of shapes {shapes}"
            )
        return points
    ends = [np.asarray(x) for x in several("plane", plane)]
    received = [x.shape for x in ends]
    if len(shapes) > 1 or received != 2 * shapes:
        raise ValueError(
            f"Expected `plane` to be two inputs of {model.name!r}, which takes shapes {shapes}. "
            f"Received: shapes {received}"
        )
    ((x0, x1),) = check_inputs(model, np.stack(ends))
    return np.multiply.outer(points[:, 0], x0) + np.multiply.outer(points[:, 1], x1)


def _propagate(network: Network, partition: "_Partition", corners: np.ndarray) -> np.ndarray:
    """Run the network on the corners of the box, splitting the partition at each piecewise-affine layer.

    Returns the values of each tile's affine map at the corners, float64 `[tiles, 3, outputs]`.
    """

    def visit(node, args, kwargs):
        step = network.steps[node.key]
        args, kwargs = tf.nest.map_structure(
            lambda value: partition.current(value) if isinstance(value, _Sheet) else value, (args, kwargs)
        )
        results = step.affine(args, kwargs)
        if step.activation is not None:
            results = [partition.split(step.activation, results)]
        return [partition.sheet(value) for value in tf.nest.flatten(results)]

    sheets = _keras.run(network.model, [partition.sheet(tf.constant(corners))], visit, nested=True)
    values = np.asarray(flat([partition.current(sheet) for sheet in sheets]))
    return values.reshape(-1, 3, values.shape[1])


@dataclasses.dataclass(frozen=True, eq=False)
class _Sheet:
    """An affine function of the point on each tile that existed after a number of splits."""

    value: tf.Tensor  # `[3 tiles, ...]`, at the corners (0, 0), (1, 0) and (0, 1) of the unit square
    splits: int  # how many layers had split the tiles when the value was computed


class _Partition:
    """The partition of the box by the layers visited so far."""

    def __init__(self, names: list[str], max_regions: int):
        self.tiles = _Tiles(np.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]), np.full((1, 4), -1))
        self._names, self._max_regions = names, max_regions  # names of the layers that will split the tiles, in order
        self._bits: list[np.ndarray] = []  # per layer that split the tiles: bits of each current tile
        self._parents: list[np.ndarray] = []  # per layer: index of the tile that each tile is a part of

    def sheet(self, value: tf.Tensor) -> _Sheet:
        return _Sheet(value, len(self._parents))

    def current(self, sheet: _Sheet) -> tf.Tensor:
        """Return a sheet's value on the current tiles."""
        value = sheet.value
        for parents in self._parents[sheet.splits :]:
            value = _inherited(value, parents)
        return value

    def split(self, activation: Pieces, z: tf.Tensor) -> tf.Tensor:
        """Split the tiles where the code of an activation changes; return its output on the new tiles.

        `z` is the pre-activation on the present tiles, as in `_Sheet.value`.
        """
        layer = len(self._bits)
        try:
            borders = activation.borders(z)
        except ValueError as error:
            raise ValueError(
                f"Layer {self._names[layer]!r} makes {error}; only two candidates are supported"
            ) from error
        parents = np.arange(len(self.tiles.vertices))
        for border in borders:
            at_corners = np.asarray(border).reshape(-1, 3, border.shape[1:].num_elements())
            lines = at_corners - at_corners[:, :1] * [[0.0], [1.0], [1.0]]
            for unit in range(lines.shape[2]):
                self.tiles, origin = self.tiles.split(lines[parents, :, unit], layer)
                parents = parents[origin]
                if len(parents) > self._max_regions:
                    raise ValueError(
                        f"The partition has more than max_regions={self._max_regions} regions after layer "
                        f"{self._names[layer]!r}. Increase `max_regions` or use a smaller box"
                    )
        self._parents.append(parents)
        z = _inherited(z, parents)
        z_centre = self.tiles.at_centres(z)
        self._bits = [bits[parents] for bits in self._bits]
        self._bits.append(np.concatenate([np.reshape(bit, (len(parents), -1)) for bit in activation.bits(z_centre)], 1))
        return activation.apply(z, tf.repeat(activation.code(z_centre), 3, axis=0))

    def codes(self) -> Codes:
        """Return the codes of all layers, one row per tile."""
        arrays = dict(zip(self._names, self._bits, strict=True))
        packed = {name: np.packbits(bits, axis=1, bitorder="little") for name, bits in arrays.items()}
        return Codes(packed, {name: bits.shape[1] for name, bits in arrays.items()})


def _inherited(value: tf.Tensor, parents: np.ndarray) -> tf.Tensor:
    """Return values per corner and tile, `[3 tiles, ...]`, for tiles that are parts of the tiles `parents`."""
    return tf.gather(value, (3 * parents[:, None] + np.arange(3)).ravel())


@dataclasses.dataclass(frozen=True, eq=False)
class _Tiles:
    """Convex polygons that fill the unit square."""

    vertices: np.ndarray  # float64 `[tiles, k, 2]`, counter-clockwise; tiles with fewer vertices repeat the last one
    edges: np.ndarray  # int64 `[tiles, k]`: whose boundary the edge after each vertex is, -1 for the square's border

    def split(self, lines: np.ndarray, layer: int) -> tuple["_Tiles", np.ndarray]:
        """Split each tile along its own line; return the new tiles, and for each the index of the tile it was part of.

        `lines`, float64 `[tiles, 3]`, are the coefficients of c0 + c1 s + c2 t, which is zero at the points (s, t) of
        a line. `layer` is what the new edges belong to.
        """
        values = lines[:, :1] + np.einsum("pki,pi->pk", self.vertices, lines[:, 1:])
        noise = _MIN_WIDTH * np.abs(lines[:, 1:]).sum(axis=1, keepdims=True) + 1e-14 * np.abs(lines).max(initial=0.0)
        values[np.abs(values) <= noise] = 0.0
        crossed = (values.min(axis=1) < 0) & (values.max(axis=1) > 0)
        if not crossed.any():
            return self, np.arange(len(lines))
        crossed_tiles = _Tiles(self.vertices[crossed], self.edges[crossed])
        parts = [_Tiles(self.vertices[~crossed], self.edges[~crossed])]
        parts += [crossed_tiles.positive_part(side, layer) for side in (values[crossed], -values[crossed])]
        width = max(part.edges.shape[1] for part in parts)
        vertices = np.concatenate([_padded(part.vertices, width) for part in parts])
        edges = np.concatenate([_padded(part.edges, width) for part in parts])
        return _Tiles(vertices, edges), np.concatenate([np.flatnonzero(~crossed), *2 * [np.flatnonzero(crossed)]])

    def positive_part(self, values: np.ndarray, layer: int) -> "_Tiles":
        """Return the part of each tile where an affine function is positive, given its values at the vertices."""
        next_values, next_vertices = np.roll(values, -1, axis=1), np.roll(self.vertices, -1, axis=1)
        crossing = values * next_values < 0
        share = np.divide(values, values - next_values, out=np.zeros_like(values), where=crossing)
        crossings = self.vertices + share[:, :, None] * (next_vertices - self.vertices)
        kept = (values >= 0) & self._distinct()
        # Each vertex is followed by the point where its edge crosses the line, if it does. The new edge begins where
        # the polygon's border leaves the positive side.
        points = np.stack([self.vertices, crossings], axis=2).reshape(len(values), -1, 2)
        leaving = [(values == 0) & (next_values < 0), crossing & (values > 0)]
        labels = np.stack([np.where(leaves, layer, self.edges) for leaves in leaving], axis=2)
        used = np.stack([kept, crossing], axis=2).reshape(len(values), -1)
        number = used.sum(axis=1, keepdims=True)
        order = np.argsort(~used, axis=1, kind="stable")
        order = np.take_along_axis(order, np.minimum(np.arange(number.max()), number - 1), axis=1)
        vertices = np.take_along_axis(points, order[:, :, None], axis=1)
        return _Tiles(vertices, np.take_along_axis(labels.reshape(len(values), -1), order, axis=1))

    def at_centres(self, values: tf.Tensor) -> tf.Tensor:
        """Evaluate affine functions given as in `_Sheet.value` at the mean of each tile's vertices, `[tiles, ...]`."""
        distinct = self._distinct()[:, :, None]
        centres = (self.vertices * distinct).sum(axis=1) / distinct.sum(axis=1)
        weights = np.stack([1 - centres.sum(axis=1), *centres.T], axis=1)
        return tf.einsum("pc,pc...->p...", weights, tf.reshape(values, [-1, 3, *values.shape[1:]]))

    def polygons(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the vertices and the edges of each tile without repetitions."""
        masks = self._distinct()
        vertices = [array[mask] for array, mask in zip(self.vertices, masks, strict=True)]
        return vertices, [array[mask] for array, mask in zip(self.edges, masks, strict=True)]

    def _distinct(self) -> np.ndarray:
        """Which vertices differ from the next one, bool `[tiles, k]`."""
        return (self.vertices != np.roll(self.vertices, -1, axis=1)).any(axis=2)


def _padded(array: np.ndarray, width: int) -> np.ndarray:
    """Repeat the last entries along axis 1 up to a width."""
    missing = [(0, 0)] * array.ndim
    missing[1] = (0, width - array.shape[1])
    return np.pad(array, missing, mode="edge")
