"""Readers: how layers read the units of a group on probe data, for criteria that need activations."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline.graph.structure import Graph, Group
from tfspline.graph.weights import folded, value_of
from tfspline.pruning.placement import channels_last, places_of, rows, side_by_side, take


@dataclasses.dataclass
class Reader:
    """How one layer reads the n units of a group on probe data.

    Attributes:
        covariance: float32 [n, n], covariance of the units' values at this layer's input, over samples and positions.
        coactivity: float32 [n, n], the share of samples and positions at which both units are on, that is > 0.
        outgoing: float32 [n, m], the weights by which the layer reads each unit, all taps and outputs side by side,
            with a directly following BatchNormalization folded in.
    """

    covariance: np.ndarray
    coactivity: np.ndarray
    outgoing: np.ndarray

    @classmethod
    def of(cls, values: tf.Tensor, outgoing: np.ndarray) -> "Reader":
        """A `Reader` from the units' values [samples, n, places a unit] and the outgoing weights [n, m]."""
        values = tf.reshape(tf.transpose(values, [0, 2, 1]), [-1, values.shape[1]])
        centred = values - tf.reduce_mean(values, axis=0)
        on = tf.cast(values > 0, tf.float32)
        samples = float(len(values))
        covariance = tf.matmul(centred, centred, transpose_a=True) / samples
        return cls(covariance.numpy(), (tf.matmul(on, on, transpose_a=True) / samples).numpy(), outgoing)


def readers_of(
    model: KerasModel, graph: Graph, groups: list[Group], inputs: list[tf.Tensor]
) -> dict[str, list[Reader]]:
    """Runs the model on probe inputs, one tensor for each of `model.inputs`; returns, for each group by name, one
    `Reader` for each call of a layer that reads its units."""
    recorder = _Recorder(model, graph, groups)
    _keras.run(model, inputs, recorder.visit, nested=True)
    return recorder.readers


class _Recorder:
    """Visits the calls of a model and collects a `Reader` wherever a layer reads units of a group."""

    def __init__(self, model, graph, groups):
        self.readers = {group.name: [] for group in groups}
        self._graph, self._groups = graph, groups
        self._group_at = np.full(graph.units, -1)
        for i, group in enumerate(groups):
            self._group_at[group.units] = i
        self._kernels = {}  # layer path -> the weights that read units, with their `WeightSlice`s
        layers, producers = _keras.layer_paths(model), graph.producers
        for part in graph.slices:
            if part.role == "read":
                norm = layers.get(graph.folded.get(part.layer))
                kernel = _kernel_with_norm(layers[part.layer], norm, part, producers.get(part.layer))
                self._kernels.setdefault(part.layer, []).append((part, kernel))

    def visit(self, node, args, kwargs):
        tensors = [value for value in tf.nest.flatten((args, kwargs)) if tf.is_tensor(value)]
        for i, x in enumerate(tensors if node.path in self._kernels else ()):
            self._record(node.path, x, *self._graph.reads.get((node.path, i), (0, np.array([], int))))
        return node.layer(*args, **kwargs)

    def _record(self, path, x, axis, units):
        """Records what a layer reads through one of its inputs `x`, whose `axis` (batch not counted) holds `units`."""
        for group in (self._groups[i] for i in np.unique(self._group_at[units]) if i >= 0):
            places = places_of(units, group.units)
            outgoing = [_outgoing(part, kernel, group.units) for part, kernel in self._kernels[path]]
            outgoing = [part for part in outgoing if part.size]
            if places.size and outgoing:
                values = tf.gather(channels_last(x, axis + 1), places, axis=1)
                self.readers[group.name].append(Reader.of(values, side_by_side(outgoing)))


def _kernel_with_norm(layer, norm, part, producer):
    """A weight that reads units, as a matrix [channels read, rest], with a following BatchNormalization folded in."""
    kernel = value_of(layer.weights[part.index])
    if norm is not None and producer and producer.index == part.index:
        slope, _ = folded(norm)
        kernel = kernel * np.expand_dims(slope, [axis for axis in range(kernel.ndim) if axis != producer.axis])
    return rows(kernel, part.axis)


def _outgoing(part, kernel, units):
    """The rows [n, m] of a weight that read the n units; empty if the weight does not read them."""
    places = places_of(part.units, units)
    return take(kernel, places) if places.size else places
