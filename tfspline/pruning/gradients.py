"""Gradients with respect to the weights that produce units: of the loss on labelled data, and of the synaptic flow."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import Probe
from tfspline._keras.types import Data, KerasLayer, KerasModel, KerasVariable
from tfspline.graph.cost import check_static
from tfspline.graph.piecewise import ArgmaxChoice, Smooth
from tfspline.graph.structure import Graph, WeightSlice
from tfspline.pruning.placement import rows
from tfspline.spline.calls import CallActivation, calls_with_activations
from tfspline.spline.float64 import flat, without_activation

BATCH = 64  # samples that go through the model at a time
_OFFSETS = ("bias", "beta", "moving_mean", "mean")  # weights that are added, not multiplied


@dataclasses.dataclass
class LossGradients:
    """The derivatives of a model's loss, for each producer of units (`Graph.producers`).

    `kernels`: those of the mean loss by the weight that produces the units, float32 of its shape. `gates`: those of
    each batch's mean loss by a factor on each channel, after the bias or the BatchNormalization that directly follows,
    float32 [batches, channels].
    """

    kernels: dict[str, np.ndarray]
    gates: dict[str, np.ndarray]


def of_loss(model: KerasModel, graph: Graph, probe: Probe, training: bool) -> LossGradients:
    """Differentiates the loss that a model is compiled with, on inputs and labels.

    With `training`, BatchNormalization uses the statistics of each batch. Other layers, such as Dropout, run in
    inference mode either way.
    """
    _keras.check_loss(model)
    tape = _LossTape(model, graph, training)
    kernels = {name: np.zeros(kernel.shape, np.float32) for name, kernel in tape.kernels.items()}
    gates: dict[str, list[np.ndarray]] = {name: [] for name in kernels}
    samples = len(probe.inputs[0])
    with _restored([weight for layer in tape.norms for weight in layer.weights]):
        for rows in np.array_split(np.arange(samples), -(-samples // BATCH)):
            inputs, labels = tf.nest.map_structure(lambda value, rows=rows: tf.gather(value, rows), tuple(probe))
            of_kernels, of_gates = tape.gradients(inputs, labels)
            for name in kernels:
                kernels[name] += of_kernels[name] * (len(rows) / samples)
                gates[name].append(of_gates[name])
    return LossGradients(kernels, {name: np.stack(batches) for name, batches in gates.items()})


@contextlib.contextmanager
def _restored(weights: list[KerasVariable]):
    """Gives weights their values back at the end: BatchNormalization in training mode updates its statistics."""
    values = [weight.numpy() for weight in weights]
    try:
        yield
    finally:
        for weight, value in zip(weights, values, strict=True):
            weight.assign(value)


class _LossTape:
    """Differentiates a model's loss on one batch at a time."""

    def __init__(self, model: KerasModel, graph: Graph, training: bool):
        layers = _keras.layer_paths(model)
        self._model, self._producers, self._training = model, graph.producers, training
        self.kernels = {name: _keras.weights(layers[part.layer])[part.index] for name, part in self._producers.items()}
        self.norms = [layer for layer in layers.values() if _keras.of_class(layer, "BatchNormalization")]
        biases = {name: bias_of(graph, layers, part) for name, part in self._producers.items()}
        self._norms = {name: [*filter(None, norms)] for name, norms in graph.folded.items() if all(norms)}
        biases = {name: bias for name, bias in biases.items() if bias is not None and name not in self._norms}
        self._biases = {name: bias for name, (bias, _) in biases.items()}
        self._bias_axes = {name: axis for name, (_, axis) in biases.items()}
        # A factor on the output of each of these BatchNormalizations counts for the first producer that it follows.
        self._gates: dict[str, str] = {}
        for name, norms in self._norms.items():
            self._gates = dict.fromkeys(norms, name) | self._gates
        # Its path -> channel axis, number of channels.
        self._gated = {norm: (graph.reads[norm, 0][0] + 1, layers[norm].moving_mean.shape[0]) for norm in self._gates}

    def gradients(self, inputs: list[tf.Tensor], labels: Data) -> tuple[dict, dict]:
        """The derivatives of the batch's mean loss with respect to the kernels and to a factor on each channel."""
        factors = {norm: tf.ones([channels]) for norm, (_, channels) in self._gated.items()}
        sources = [*tf.nest.map_structure(_keras.tf_variable, (self.kernels, self._biases)), factors]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tf.nest.flatten(sources))
            loss = _loss(self._model, labels, self._outputs(inputs, factors))
        gradients = tape.gradient(loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        of_kernels, of_biases, of_factors = tf.nest.map_structure(_float32, gradients)
        gates = {name: self._gate(name, of_kernels, of_biases, of_factors) for name in self.kernels}
        return of_kernels, gates

    def _outputs(self, inputs, factors):
        def visit(node, args, kwargs):
            if self._training and node.layer in self.norms and kwargs.get("training") is None:
                kwargs = {**kwargs, "training": True}
            y = node.layer(*args, **kwargs)
            if node.path not in factors:
                return y
            axis, channels = self._gated[node.path]
            shape = [channels if i == axis else 1 for i in range(y.shape.rank)]
            return y * tf.cast(tf.reshape(factors[node.path], shape), y.dtype)

        return _keras.run(self._model, inputs, visit, nested=True)

    def _gate(self, name, of_kernels, of_biases, of_factors):
        if name in self._norms:
            gates = [of_factors[norm] for norm, first in self._gates.items() if first == name]
            return np.sum(gates, axis=0) if gates else np.zeros(len(self._producers[name].units), np.float32)
        gate = rows(_float32(self.kernels[name]) * of_kernels[name], self._producers[name].axis).sum(axis=1)
        if name in self._biases:
            gate = gate + rows(_float32(self._biases[name]) * of_biases[name], self._bias_axes[name]).sum(axis=1)
        return gate


def _loss(model, labels, outputs):
    try:
        loss = _keras.loss(model, labels, outputs)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"Expected labels in `data` that fit the loss and the outputs {[tuple(y.shape) for y in outputs]} of "
            f"{model.name!r}. Received: {tf.nest.map_structure(lambda y: tuple(y.shape), labels)} ({error})"
        ) from error
    if not tf.math.is_finite(loss):
        raise ValueError(
            f"The loss of {model.name!r} on `data` is {float(loss)}, so it has no gradient. Check inputs and labels."
        )
    return loss


def _float32(value):
    return np.asarray(tf.cast(tf.convert_to_tensor(value), tf.float32))


def of_flow(model: KerasModel, graph: Graph) -> dict[str, np.ndarray]:
    """Differentiates the synaptic flow R of a network, as the criterion `synflow` defines it, in float64.

    Returns, for each producer of units (`Graph.producers`), the derivative of log R with respect to |w|, w the weight
    that produces them, float32 of its shape.
    """
    check_static(model, graph.input_shapes)
    copies: dict[int, KerasLayer] = {}
    calls = {call.node.key: _linear_call(call, copies) for call in calls_with_activations(model)}
    _flow(model, graph, calls)  # fills `copies` with the float64 copies of the layers
    for weight in (weight for copy in copies.values() for weight in _keras.weights(copy)):
        if tf.as_dtype(weight.dtype).is_floating:
            name = weight.name.split("/")[-1].split(":")[0]
            weight.assign(tf.zeros_like(weight) if name in _OFFSETS else tf.abs(tf.convert_to_tensor(weight)))
    layers = _keras.layer_paths(model)
    kernels = {
        name: _keras.tf_variable(_keras.weights(copies[id(layers[part.layer])])[part.index])
        for name, part in graph.producers.items()
    }
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tf.nest.flatten(kernels))
        total = _flow(model, graph, calls)
    if not 0 < abs(total) < np.inf:
        raise ValueError(
            f"The synaptic flow of {model.name!r} is {float(total)}; criterion 'synflow' needs a finite number other "
            "than zero. Check for layers whose weights are all zero, or choose another criterion."
        )
    slopes = tape.gradient(total, kernels, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {name: _float32(tf.convert_to_tensor(slope) / total) for name, slope in slopes.items()}


def _flow(model, graph, calls):
    """The sum of the outputs for an input of ones, with every node replaced by its function in `calls`."""
    inputs = [tf.ones([1, *shape], tf.float64) for shape in graph.input_shapes]
    outputs = _keras.run(model, inputs, lambda node, args, kwargs: calls[node.key](args, kwargs), nested=True)
    return tf.reduce_sum(flat(outputs))


def _linear_call(call: CallActivation, copies: dict):
    """A call without its activation; a choice, such as max pooling, is kept."""
    activation = call.activation
    if _keras.is_lookup(call.node.layer):  # words and indices have no flow: it starts behind them
        return lambda args, kwargs: [tf.ones([size or 1 for size in shape]) for shape in call.node.output_shapes]
    if isinstance(activation, ArgmaxChoice):
        return lambda args, kwargs: _chosen(activation, activation.candidates(args, kwargs))
    hidden = isinstance(activation, Smooth) and activation.sign is None
    if activation is None or call.fused or hidden:
        return without_activation(call.node, copies)
    return _keras.first_argument


def _chosen(choice, z):
    return choice.apply(z, choice.code(z))


def bias_of(graph: Graph, layers: Mapping[str, Any], part: WeightSlice) -> tuple[KerasVariable, int] | None:
    """The bias that is added to what a weight produces, and its axis of units; None without one."""
    bias = graph.bias_of(part)
    return None if bias is None else (_keras.weights(layers[bias.layer])[bias.index], bias.axis)
