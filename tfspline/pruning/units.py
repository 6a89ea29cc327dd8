"""Units: what a criterion knows about the units of a group. Costly arrays are computed only when they are used."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import Probe
from tfspline._keras.types import KerasModel
from tfspline.graph.layer_specs.registry import spec_of
from tfspline.graph.structure import Graph, Group
from tfspline.graph.weights import folded, value_of
from tfspline.pruning import gradients
from tfspline.pruning.placement import Placement, channels_last, places_of, rows, side_by_side, take

_MOST = 2**25  # the most numbers in memory at a time when units are compared by their shares in an output


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
    def of_own(cls, values: tf.Tensor, kernel: np.ndarray) -> "Reader":
        """A `Reader` for units with several numbers each, which one layer makes and reads, such as heads.

        The value of a unit is its share in the output, `values` [samples, n, d] times `kernel` [n, d, outputs].
        """
        step = -(-len(values) * len(kernel) * kernel.shape[-1] // _MOST)  # a sample of them is enough
        shares = tf.einsum("snd,ndo->sno", values[::step], kernel)
        return cls.of(shares - tf.reduce_mean(shares, axis=0), np.ones((kernel.shape[0], 1), np.float32))

    @classmethod
    def of(cls, values: tf.Tensor, outgoing: np.ndarray) -> "Reader":
        """A `Reader` from the units' values [samples, n, places a unit] and the outgoing weights [n, m]."""
        values = tf.reshape(tf.transpose(values, [0, 2, 1]), [-1, values.shape[1]])
        centred = values - tf.reduce_mean(values, axis=0)
        on = tf.cast(values > 0, tf.float32)
        samples = float(len(values))
        covariance = tf.matmul(centred, centred, transpose_a=True) / samples
        return cls(covariance.numpy(), (tf.matmul(on, on, transpose_a=True) / samples).numpy(), outgoing)


@dataclasses.dataclass
class Gradients:
    """How the loss on labelled data depends on the n units of a group.

    Attributes:
        kernel: float32 [n, fan_in], the gradient of the mean loss with respect to the incoming weights.
        gate: float32 [batches, n], the derivative of each batch's mean loss with respect to a factor on the unit,
            at 1: the sum of gradient x weight over its incoming weights and its offset, BatchNormalization folded in.
    """

    kernel: np.ndarray
    gate: np.ndarray


@dataclasses.dataclass
class Units:
    """The n units of a group, as arrays.

    A unit that several layers produce (a residual stream) is the sum of their outputs: its weights are theirs side by
    side, its offset is the sum of theirs.

    Attributes:
        name: the group's name, for messages.
        kernel: float32 [n, fan_in], the incoming weights.
        slope: float32 [n, norms, fan_in] or [n, norms, 1], gamma / sigma of the following BatchNormalization, 1 without
            one. A layer that is called several times can have several.
        offset: float32 [n], b = beta + (bias - mu) gamma / sigma, the bias without BatchNormalization; the sum of
            several.
        scale: float32 [n], mean |gamma| of the BatchNormalizations that the unit passes; None without any.
        rng: a generator made from the plan's seed.
        measured: data from running the whole model.
        placement: where the producing weights hold the units.
    """

    name: str
    kernel: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    scale: np.ndarray | None
    rng: np.random.Generator
    measured: "Measurements"
    placement: Placement

    @property
    def weight(self) -> np.ndarray:
        """float32 [n, norms x fan_in], the incoming weights with BatchNormalization folded in, w = W gamma / sigma."""
        return (self.kernel[:, None] * self.slope).reshape(len(self.kernel), -1)

    @functools.cached_property
    def readers(self) -> list[Reader] | None:
        """The layers that read the units; None if the plan has no `data`. The first use runs the model."""
        readers = self.measured.readers
        return None if readers is None else readers[self.name]

    def gradients(self, training: bool) -> Gradients | None:
        """The gradients of the compiled loss; None if the plan has no `data` with labels.

        With `training`, BatchNormalization uses the statistics of each batch, else its moving statistics.
        """
        loss = self.measured.loss_gradients(training)
        if loss is None:
            return None
        gates = [loss.gates[name][:, at].sum(axis=2) for name, at in self.placement.places.items()]
        return Gradients(self.placement.matrix(loss.kernels), np.sum(gates, axis=0))

    def flow(self) -> np.ndarray:
        """float32 [n, fan_in], the derivative of the logarithm of the synaptic flow by the absolute incoming weights;
        see `tfspline.pruning.gradients.of_flow`."""
        return self.placement.matrix(self.measured.flow)


class Measurements:
    """Data from running a whole model, shared by the `Units` of its groups and computed once, on first use."""

    def __init__(self, model: KerasModel, graph: Graph, groups: list[Group], probe: Probe | None):
        self._model, self._graph, self._groups, self._probe = model, graph, groups, probe
        self._loss_gradients: dict[bool, gradients.LossGradients] = {}

    @functools.cached_property
    def readers(self) -> dict[str, list[Reader]] | None:
        """The readers of each group, by name; None without inputs."""
        return self._probe and readers_of(self._model, self._graph, self._groups, self._probe.inputs)

    def loss_gradients(self, training: bool) -> gradients.LossGradients | None:
        """The gradients of the loss; None without labels."""
        if self._probe is None or self._probe.labels is None:
            return None
        if training not in self._loss_gradients:
            self._loss_gradients[training] = gradients.of_loss(self._model, self._graph, self._probe, training)
        return self._loss_gradients[training]

    @functools.cached_property
    def flow(self) -> dict[str, np.ndarray]:
        """The gradients of the synaptic flow, by producer."""
        return gradients.of_flow(self._model, self._graph)


def units_of(
    model: KerasModel, graph: Graph, groups: list[Group], rng: np.random.Generator, probe: Probe | None = None
) -> Iterator[Units]:
    """Yields the `Units` of each group. The model runs on `probe` only if a criterion asks for what that yields."""
    measured = Measurements(model, graph, groups, probe)
    layers = _keras.layer_paths(model)
    producers, scale = graph.producers, _mean_gamma(graph, layers)
    for group in groups:
        placement = Placement(producers, group)
        kernels = {
            name: value_of(_keras.weights(layers[part.layer])[part.index]) for name, part in placement.slices.items()
        }
        parts = placement.parts(kernels)
        slope, offset = _folded_norm(graph, layers, placement, parts)
        gamma = None if np.isnan(scale[group.units]).any() else scale[group.units]
        yield Units(group.name, side_by_side(parts), slope, offset, gamma, rng, measured, placement)


def _folded_norm(graph, layers, placement, parts):
    """The `slope` and `offset` of `Units`; `parts` are the kernels of the producers."""
    followers = {name: [*dict.fromkeys(graph.folded.get(name, (None,)))] for name in placement.slices}
    most = max(map(len, followers.values()))
    slopes, offsets = [], []
    for (name, part), kernel in zip(placement.slices.items(), parts, strict=True):
        bias = gradients.bias_of(graph, layers, part)
        bias = np.zeros(len(part.units), np.float32) if bias is None else rows(value_of(bias[0]), bias[1]).mean(axis=1)
        places = placement.places[name]
        slope = np.zeros((len(places), most, places.shape[1]), np.float32)  # zero where others have more followers
        for i, norm in enumerate(followers[name]):
            factor, shift = (np.ones_like(bias), 0) if norm is None else folded(layers[norm])
            slope[:, i] = factor[places]
            offsets.append((bias * factor + shift)[places].mean(axis=1))
        one_number = len(parts) == places.shape[1] == 1  # a unit
        slopes.append(slope if one_number else np.repeat(slope, kernel.shape[1] // places.shape[1], axis=2))
    return np.concatenate(slopes, axis=2), np.sum(offsets, axis=0, dtype=np.float32)


def _mean_gamma(graph, layers):
    """Mean |gamma|, float32 [units], of the BatchNormalizations that a unit passes; NaN where it passes none."""
    total, passed = np.zeros(graph.units), np.zeros(graph.units)
    for part in graph.slices:
        if part.weight == "gamma" and _keras.of_class(layers[part.layer], "BatchNormalization"):
            np.add.at(total, part.units, np.abs(rows(value_of(layers[part.layer].gamma), part.axis)).mean(axis=1))
            np.add.at(passed, part.units, 1)
    return np.divide(total, passed, out=np.full(graph.units, np.nan), where=passed > 0).astype(np.float32)


def readers_of(
    model: KerasModel, graph: Graph, groups: list[Group], inputs: list[tf.Tensor]
) -> dict[str, list[Reader]]:
    """Runs the model on probe inputs. Returns, by group name, a `Reader` for each call that reads the group's units."""
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
        self._layers, self._producers = _keras.layer_paths(model), graph.producers
        self._reading = {}  # layer path -> the slices of weights that read units
        for part in graph.slices:
            if part.role == "read":
                self._reading.setdefault(part.layer, []).append(part)
        self._followers = {layer: iter(norms) for layer, norms in graph.folded.items()}  # of the calls to come

    def visit(self, node, args, kwargs):
        tensors = [value for value in tf.nest.flatten((args, kwargs)) if tf.is_tensor(value)]
        norm = self._layers.get(next(self._followers.get(node.path, iter(())), None))
        producer = self._producers.get(node.path)
        kernels = [(p, _kernel_with_norm(node.layer, norm, p, producer)) for p in self._reading.get(node.path, ())]
        for i, x in enumerate(tensors if kernels else ()):
            self._record(kernels, x, *self._graph.reads.get((node.path, i), (0, np.array([], int))))
        own = spec_of(node.layer).reads_own
        if own is None or not kernels:
            return node.layer(*args, **kwargs)
        with _keras.inputs_of(_keras.weight(node.layer, own.rpartition(".")[0])) as inputs:
            outputs = node.layer(*args, **kwargs)
        self._record_own(next(part for part, _ in kernels if part.weight == own), *inputs)
        return outputs

    def _record_own(self, part, x):
        """Records how a layer reads units of its own, `x` [..., units, d], by its weight [units, d, ...]."""
        kernel = value_of(_keras.weights(self._layers[part.layer])[part.index])
        x = tf.cast(tf.reshape(x, [-1, *kernel.shape[:2]]), tf.float32)
        for group in (self._groups[i] for i in np.unique(self._group_at[part.units]) if i >= 0):
            places = places_of(part.units, group.units)
            if places.size:
                values = tf.reshape(tf.gather(x, places, axis=1), [len(x), len(places), -1])
                self.readers[group.name].append(Reader.of_own(values, kernel[places].reshape(*values.shape[1:], -1)))

    def _record(self, kernels, x, axis, units):
        """Records what a layer reads through one of its inputs `x`, whose `axis` (batch not counted) holds `units`."""
        for group in (self._groups[i] for i in np.unique(self._group_at[units]) if i >= 0):
            places = places_of(units, group.units)
            read = [(kernel, places_of(part.units, group.units)) for part, kernel in kernels]
            outgoing = [take(kernel, at) for kernel, at in read if at.size]
            if places.size and outgoing:
                values = tf.gather(channels_last(x, axis + 1), places, axis=1)
                self.readers[group.name].append(Reader.of(values, side_by_side(outgoing)))


def _kernel_with_norm(layer, norm, part, producer):
    """A weight that reads units, as a matrix [channels read, rest], with a following BatchNormalization folded in."""
    kernel = value_of(_keras.weights(layer)[part.index])
    if norm is not None and producer and producer.index == part.index:
        slope, _ = folded(norm)
        kernel = kernel * np.expand_dims(slope, [axis for axis in range(kernel.ndim) if axis != producer.axis])
    return rows(kernel, part.axis)
