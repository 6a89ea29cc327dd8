"""Gradients by the weights that make units: of the loss on labelled data, and of the synaptic flow."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import Probe
from tfspline.graph.cost import check_static
from tfspline.graph.reader import Graph, Site
from tfspline.spline.activations import Bend, Smooth, bends, first
from tfspline.spline.float64 import flat, without_activation
from tfspline.spline.piecewise import Choice

BATCH = 64  # samples that go through the model at a time
_OFFSETS = ("bias", "beta", "moving_mean", "mean")  # weights that are added


def of_loss(
    model: Any, graph: Graph, probe: Probe, training: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """How the loss that a model is compiled with changes with what its layers make.

    Args:
        model: a compiled model; its weights stay as they are.
        graph: what `graph.read` found in it.
        probe: inputs and labels.
        training: whether BatchNormalization normalizes by the statistics of each batch; the rest, Dropout for
            instance, is in inference mode anyway.

    Returns:
        For each layer that makes channels, by its path: the gradient of the mean loss by the weight that makes them,
        float32 of its shape; and the derivatives of the mean loss of each batch by a factor on each channel behind its
        bias, or behind the BatchNormalization that directly follows, float32 [batches, channels].

    Raises:
        ValueError: a model without a loss, or of tf_keras on several replicas; labels that do not fit the loss; a loss
            that is not finite.
    """
    _keras.check_loss(model)
    layers, makers = _keras.layer_paths(model), graph.makers
    kernels = {name: layers[name].weights[site.index] for name, site in makers.items()}
    biases = {name: bias_of(layers[name], site) for name, site in makers.items() if name not in graph.folded}
    biases = {name: bias for name, bias in biases.items() if bias is not None}
    axes = {bn: graph.reads[bn, 0][0] + 1 for bn in graph.folded.values()}
    norms = [layer for layer in layers.values() if _keras.of_class(layer, "BatchNormalization")]
    statistics = [(weight, weight.numpy()) for layer in norms for weight in layer.weights]

    def visit(node, args, kwargs):
        if training and node.layer in norms and kwargs.get("training") is None:
            kwargs = {**kwargs, "training": True}
        y = node.layer(*args, **kwargs)
        if node.path not in axes:
            return y
        shape = [-1 if axis == axes[node.path] else 1 for axis in range(y.shape.rank)]
        return y * tf.cast(tf.reshape(factors[node.path], shape), y.dtype)

    samples = len(probe.inputs[0])
    mean = {name: np.zeros(kernel.shape, np.float32) for name, kernel in kernels.items()}
    gates = {name: [] for name in makers}
    try:
        for rows in np.array_split(np.arange(samples), -(-samples // BATCH)):
            inputs, labels = tf.nest.map_structure(lambda value, rows=rows: tf.gather(value, rows), tuple(probe))
            factors = {bn: tf.ones([layers[bn].moving_mean.shape[0]]) for bn in axes}
            sources = [*tf.nest.map_structure(_keras.tf_variable, (kernels, biases)), factors]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(tf.nest.flatten(sources))
                loss = _loss(model, labels, _keras.run(model, inputs, visit, nested=True))
            slopes = tape.gradient(loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            of_kernels, of_biases, of_factors = tf.nest.map_structure(_float32, slopes)
            for name, site in makers.items():
                mean[name] += of_kernels[name] * (len(rows) / samples)
                if name in graph.folded:
                    gates[name].append(of_factors[graph.folded[name]])
                    continue
                others = tuple(axis for axis in range(mean[name].ndim) if axis != site.axis)
                gate = (_float32(kernels[name]) * of_kernels[name]).sum(axis=others)
                gates[name].append(gate + (_float32(biases[name]) * of_biases[name] if name in biases else 0))
    finally:
        for weight, value in statistics:
            weight.assign(value)
    return mean, {name: np.stack(batches) for name, batches in gates.items()}


def _loss(model, labels, outputs):
    try:
        loss = _keras.loss(model, labels, outputs)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"Expected labels that fit the loss and the outputs {[tuple(y.shape) for y in outputs]} of {model.name!r}. "
            f"Received: {tf.nest.map_structure(lambda y: tuple(y.shape), labels)} ({error})"
        ) from error
    if not np.isfinite(loss):
        raise ValueError(f"Expected a loss that is finite. Received: {float(loss)} from {model.name!r}")
    return loss


def _float32(value):
    return np.asarray(tf.cast(tf.convert_to_tensor(value), tf.float32))


def of_flow(model: Any, graph: Graph) -> dict[str, np.ndarray]:
    """The derivative of log R by |w| for the weights w that make channels, R the sum of the outputs for an input of
    ones of a network of absolute weights, in float64, without offsets and activations (SynFlow, Tanaka et al. 2020).

    Args:
        model: a model with a static input shape; it stays as it is.
        graph: what `graph.read` found in it.

    Returns:
        For each layer that makes channels, by its path, float32 of the weight's shape.

    Raises:
        ValueError: an input shape that is not known; R is zero, or too large for float64.
    """
    check_static(model)
    copies = {}
    calls = [
        _linear_call(node, bend, copies)
        for node, bend in zip(_keras.nodes(model, nested=True), bends(model), strict=True)
    ]
    inputs = [tf.ones([1, *tensor.shape[1:]], tf.float64) for tensor in model.inputs]

    def flow():
        remaining = iter(calls)
        outputs = _keras.run(model, inputs, lambda node, args, kwargs: next(remaining)(args, kwargs), nested=True)
        return tf.reduce_sum(flat(outputs))

    flow()  # makes the copies
    for weight in (weight for copy in copies.values() for weight in copy.weights):
        if tf.as_dtype(weight.dtype).is_floating:
            name = weight.name.split("/")[-1].split(":")[0]
            weight.assign(tf.zeros_like(weight) if name in _OFFSETS else tf.abs(tf.convert_to_tensor(weight)))
    layers = _keras.layer_paths(model)
    kernels = {
        name: _keras.tf_variable(copies[id(layers[name])].weights[site.index]) for name, site in graph.makers.items()
    }
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tf.nest.flatten(kernels))
        total = flow()
    if not 0 < abs(total) < np.inf:
        raise ValueError(
            f"Expected a network whose synaptic flow is a finite number and not zero. Received: {float(total)} of "
            f"{model.name!r}"
        )
    slopes = tape.gradient(total, kernels, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {name: _float32(tf.convert_to_tensor(slope) / total) for name, slope in slopes.items()}


def _linear_call(node, bend: Bend, copies: dict):
    """A call without its activation; what chooses (max pooling) still does."""
    shape = bend.shape
    if isinstance(shape, Choice):
        return lambda args, kwargs: _chosen(shape, shape.candidates(args, kwargs))
    out_of_sight = isinstance(shape, Smooth) and shape.sign is None
    if shape is None or bend.fused or out_of_sight:
        return without_activation(node, copies)
    return first


def _chosen(choice, z):
    return choice.apply(z, choice.code(z))


def bias_of(layer: Any, site: Site) -> Any:
    """The bias that belongs to the weight of a site; None without one."""
    return _keras.weight(layer, ".".join([*site.weight.split(".")[:-1], "bias"]))
