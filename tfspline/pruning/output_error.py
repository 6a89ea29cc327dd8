"""The error of a model's outputs, as a number to differentiate."""

import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer, KerasModel
from tfspline.graph.layer_specs import functions

_LEAST = 1e-6  # the smallest probability, and standard deviation, that is told from 0


def random_combination(model: KerasModel, outputs: list[tf.Tensor], seed: int) -> tf.Tensor:
    """The sum of a model's outputs, each number times a standard normal one.

    The mean of the squares of its derivatives by a value is the squared error in the outputs, summed over them, that a
    small error in the value causes. Each output is divided by its standard deviation; probabilities count as logits,
    in which an error is as bad for a class that is rarely predicted.
    """
    total = tf.constant(0.0)
    last = {tensor: node.layer for node in _keras.nodes(model, nested=True) for tensor in node.outputs}
    for number, (output, tensor) in enumerate(zip(outputs, model.outputs, strict=True)):
        if not output.dtype.is_floating:
            continue
        y = _as_logits(tf.cast(output, tf.float32), last.get(id(tensor)))
        deviation = tf.stop_gradient(tf.math.reduce_std(y)) + _LEAST
        total += tf.reduce_sum(y * tf.random.stateless_normal(tf.shape(y), (seed, number))) / deviation
    return total


def _as_logits(y: tf.Tensor, layer: KerasLayer | None) -> tf.Tensor:
    name = layer and _activation_name(layer)
    if name == "softmax":
        y = tf.math.log(y + _LEAST)
        return y - tf.reduce_mean(y, axis=-1, keepdims=True)
    if name == "sigmoid":
        return tf.math.log(y + _LEAST) - tf.math.log(1 - y + _LEAST)
    return y


def _activation_name(layer: KerasLayer) -> str | None:
    """The name of the function that a layer is, or applies last."""
    own = _keras.own_activation(layer)
    if own is not None:
        return functions.known_name(own)
    return _keras.op_name(layer) or (_keras.builtin_class_name(layer) or "").lower()
