"""Readers: how the layers of a model read the units of its groups, measured on probe data in small batches."""

import collections
import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline.graph.layer_specs.registry import spec_of
from tfspline.graph.structure import Graph, Group
from tfspline.graph.weights import folded, value_of
from tfspline.pruning.output_error import random_combination
from tfspline.pruning.placement import channels_last, places_of, rows, side_by_side, take

_BATCH = 2**27  # numbers that the layers of a model compute for the images of one batch
_IMAGES = 64  # the most images of a batch
_NUMBERS = 2**25  # the most numbers in memory at a time when units are compared by their shares in an output
_DIFFERENTIATED = 256  # samples that are enough for derivatives, which take twice the time of values
_ROWS = 256  # positions of an image that are compared, drawn at random; more tell nothing new


@dataclasses.dataclass
class Reader:
    """How a layer reads the n units of a group on probe data.

    Attributes:
        covariance: float32 [n, n], covariance of the units' values at this layer's input, over samples and positions.
        coactivity: float32 [n, n], the share of samples and positions at which both units are on, that is > 0.
        outgoing: float32 [n, m], the weights by which the layer reads each unit, all taps and outputs side by side,
            with a directly following BatchNormalization folded in.
        samples: the number of samples that were seen. Positions of a sample are not independent.
        gradients: float32 [n, n], E[g g^T] summed over the positions of a sample, with g the derivatives of
            `random_combination` by the units' values; None if they were not measured. Of several layers that read the
            same values the first has them, for all.
    """

    covariance: np.ndarray
    coactivity: np.ndarray
    outgoing: np.ndarray
    samples: float = np.inf
    gradients: np.ndarray | None = None


def readers_of(
    model: KerasModel, graph: Graph, groups: list[Group], inputs: list[tf.Tensor], gradients: bool = False
) -> dict[str, list[Reader]]:
    """Runs the model on probe inputs. Returns, by group name, a `Reader` for each call that reads the group's units."""
    recorder = _Recorder(model, graph, groups)
    step = -(-len(inputs[0]) // _DIFFERENTIATED)
    for number, batch in enumerate(_batches(model, graph, inputs)):
        differentiate = gradients and number % step == 0
        # The shares of a layer's own units are weighted by derivatives, so they cannot be without.
        recorder.run(batch, number, differentiate, own=differentiate or not gradients)
    readers: dict[str, list[Reader]] = {group.name: [] for group in groups}
    for (name, *_), moments in recorder.moments.items():
        readers[name].append(moments.reader())
    return readers


def _batches(model, graph, inputs) -> Iterator[list[tf.Tensor]]:
    """The inputs in batches that are small enough for all that a model computes to be in memory."""
    shapes = [shape for node in _keras.nodes(model, nested=True) for shape in node.output_shapes]
    largest = max((size for shape in graph.input_shapes for size in shape if size), default=1)
    numbers = sum(int(np.prod([size or largest for size in shape[1:]])) for shape in shapes)
    size = int(np.clip(_BATCH // max(numbers, 1), 1, _IMAGES))
    for start in range(0, len(inputs[0]), size):
        yield [x[start : start + size] for x in inputs]


class _Moments:
    """Sums over batches, from which a `Reader` is made."""

    def __init__(self, outgoing: np.ndarray):
        self._outgoing, self._gradients = outgoing, None
        self._samples = self._rows = self._differentiated = 0
        self._total = self._squares = self._on = 0.0

    def add(self, samples: int, values: tf.Tensor, gradients: tf.Tensor | None, positions: float) -> None:
        """Adds values, float32 [rows, n], and derivatives, [rows, n], of some samples. The rows are drawn from this
        number of positions of each sample."""
        if not self._rows:
            self._origin = tf.reduce_mean(values, axis=0)  # moments about a point near the mean keep their precision
        centred, on = values - self._origin, tf.cast(values > 0, tf.float32)
        self._samples += samples
        self._rows += len(values)
        self._total += tf.reduce_sum(centred, axis=0).numpy().astype(np.float64)
        self._squares, self._on = self._squares + _square(centred), self._on + _square(on)
        if gradients is not None:
            self._differentiated += samples
            drawn = samples * positions / len(gradients)
            self._gradients = drawn * _square(gradients) + (0 if self._gradients is None else self._gradients)

    def reader(self) -> Reader:
        """The `Reader` of all that was added."""
        mean = self._total / self._rows
        gradients = None if self._gradients is None else np.float32(self._gradients / self._differentiated)
        covariance = np.float32(self._squares / self._rows - np.outer(mean, mean))
        return Reader(covariance, np.float32(self._on / self._rows), self._outgoing, self._samples, gradients)


def _square(matrix):
    return tf.matmul(matrix, matrix, transpose_a=True).numpy().astype(np.float64)


class _Recorder:
    """Runs a model and collects `_Moments` wherever a layer reads units of a group."""

    def __init__(self, model, graph, groups):
        self.moments: dict[tuple, _Moments] = {}  # by group, layer, call, and number of the input
        self._model, self._graph, self._groups = model, graph, groups
        self._group_at = np.full(graph.units, -1)
        for i, group in enumerate(groups):
            self._group_at[group.units] = i
        self._layers, self._producers = _keras.layer_paths(model), graph.producers
        self._reading = {}  # layer path -> the slices of weights that read units
        for part in graph.slices:
            if part.role == "read":
                self._reading.setdefault(part.layer, []).append(part)

    def run(self, inputs: list[tf.Tensor], seed: int, gradients: bool, own: bool) -> None:
        """Runs the model on a batch, and differentiates its outputs if `gradients`. Only if `own`, units that a layer
        makes and reads itself are noted."""
        self._own = own
        self._followers = {layer: iter(norms) for layer, norms in self._graph.folded.items()}  # of the calls to come
        self._read: list[tuple] = []
        self._calls: collections.Counter = collections.Counter()
        self._rng = np.random.default_rng(seed)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self._tape = tape if gradients else None
            outputs = _keras.run(self._model, inputs, self._visit, nested=True)
            combination = random_combination(self._model, outputs, seed) if gradients else None
        sources = {id(source): source for _, source, _ in self._read}
        slopes = tape.gradient(combination, sources, unconnected_gradients="zero") if gradients else {}
        seen = set()
        for key, source, rows_of in self._read:
            slope = None if (key[0], id(source)) in seen else slopes.get(id(source))
            seen.add((key[0], id(source)))
            self.moments[key].add(len(inputs[0]), *rows_of(slope))

    def _visit(self, node, args, kwargs):
        parts = self._reading.get(node.path)
        norm = self._layers.get(next(self._followers.get(node.path, iter(())), None))
        if not parts:
            return node.layer(*args, **kwargs)
        producer = self._producers.get(node.path)
        kernels = [(part, _kernel_with_norm(node.layer, norm, part, producer)) for part in parts]
        self._calls[node.path] += 1
        tensors = [value for value in tf.nest.flatten((args, kwargs)) if tf.is_tensor(value)]
        for i, x in enumerate(tensors):
            self._read_tensor(node.path, i, x, kernels)
        own = spec_of(node.layer).reads_own
        if own is None or not self._own:
            return node.layer(*args, **kwargs)
        with _keras.inputs_of(_keras.weight(node.layer, own.rpartition(".")[0])) as inputs:
            outputs = node.layer(*args, **kwargs)
        self._read_own(node.path, next(part for part in parts if part.weight == own), inputs[0], outputs)
        return outputs

    def _read_tensor(self, path, i, x, kernels):
        """Notes that a layer reads units through its input number `i`, a tensor `x`."""
        axis, units = self._graph.reads.get((path, i), (0, np.array([], int)))
        for group in (self._groups[at] for at in np.unique(self._group_at[units]) if at >= 0):
            places = places_of(units, group.units)
            read = [(kernel, places_of(part.units, group.units)) for part, kernel in kernels]
            outgoing = [take(kernel, at) for kernel, at in read if at.size]
            if places.size and outgoing:
                self._note(group.name, path, i, x, side_by_side(outgoing), functools.partial(self._at, x, axis, places))

    def _read_own(self, path, part, x, outputs):
        """Notes that a layer reads units of its own, `x` [..., units, d], by its weight [units, d, ...].

        The value of a unit is its share in an output, which all units enter with a weight of 1.
        """
        kernel = value_of(_keras.weights(self._layers[path])[part.index])
        for group in (self._groups[at] for at in np.unique(self._group_at[part.units]) if at >= 0):
            places = places_of(part.units, group.units)
            if places.size:
                one = np.ones((len(places), 1), np.float32)
                rows_of = functools.partial(self._shares, x, kernel, places, outputs)
                self._note(group.name, path, part.index, tf.nest.flatten(outputs)[0], one, rows_of)

    def _note(self, group, path, i, source, outgoing, rows_of):
        if self._tape is not None:
            self._tape.watch(source)
        key = group, path, self._calls[path], i
        self.moments.setdefault(key, _Moments(outgoing))
        self._read.append((key, source, rows_of))

    def _drawn(self, count, samples, most=np.inf):
        """Indices of the rows to compare, of `count`: all, or a random part of `_ROWS` a sample and at most `most`."""
        most = int(min(samples * _ROWS, most))
        return np.arange(count) if count <= most else self._rng.integers(0, count, most)

    def _at(self, x, axis, places, slope):
        """The values of units along an axis of a tensor and the derivatives by them, [rows, n]; see `_Moments.add`."""
        matrices = [channels_last(one, axis + 1) for one in (x, slope) if one is not None]
        count = len(matrices[0])
        drawn = self._drawn(count, len(x))
        values, *slopes = (_by_unit(tf.gather(tf.gather(matrix, drawn), places, axis=1)) for matrix in matrices)
        return values, slopes[0] if slopes else None, count * places.shape[1] / len(x)

    def _shares(self, x, kernel, places, outputs, slope):
        """The shares of units in the outputs, [rows, n], times the derivatives by these; see `_Moments.add`."""
        x = tf.cast(tf.reshape(x, [-1, *kernel.shape[:2]]), tf.float32)
        kernel = kernel.reshape(*kernel.shape[:2], -1)
        samples, count = len(outputs), len(x)
        drawn = self._drawn(count, samples, _NUMBERS // (len(places) * kernel.shape[-1]))
        values = tf.gather(tf.gather(x, drawn), places, axis=1)
        shares = tf.einsum("snpd,npdo->sno", values, kernel[places])
        if slope is None:
            return _by_unit(shares), None, count / samples
        slope = tf.gather(tf.reshape(tf.cast(slope, tf.float32), [count, -1]), drawn)
        ones = tf.ones([shares.shape[0] * shares.shape[2], shares.shape[1]])
        return _by_unit(shares * slope[:, None]), ones, count * shares.shape[2] / samples


def _by_unit(values):
    """Values [rows, n, m] as a matrix [rows x m, n]."""
    return tf.reshape(tf.transpose(values, [0, 2, 1]), [-1, values.shape[1]])


def _kernel_with_norm(layer, norm, part, producer):
    """A weight that reads units, as a matrix [channels read, rest], with a following BatchNormalization folded in."""
    kernel = value_of(_keras.weights(layer)[part.index])
    if norm is not None and producer and producer.index == part.index:
        slope, _ = folded(norm)
        kernel = kernel * np.expand_dims(slope, [axis for axis in range(kernel.ndim) if axis != producer.axis])
    return rows(kernel, part.axis)
