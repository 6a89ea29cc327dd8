"""Finds layers that TensorFlow computes wrongly on CPUs with oneDNN; see docs/platform_notes.md."""

import functools

import tensorflow as tf
from absl import logging

from tfspline import _keras
from tfspline._keras.types import KerasModel

_FUSED_SLOPE = 0.2  # that of the fused kernel, whatever the layer has


def warn(model: KerasModel, graph: tf.Graph) -> None:
    """Logs a warning, once for the same layers, if this machine computes LeakyReLUs of a graph with a wrong slope."""
    ops = [op for op in graph.get_operations() if _is_fused(op)]
    if ops and _is_wrong_here():
        names = [layer.name for layer in _keras.layer_paths(model).values()]
        _log(tuple(_layer_of(op, names) for op in ops))


def _layer_of(op, names) -> str:
    """The layer that made an operation; TensorFlow may have numbered the name of the layer's scope."""
    scope = op.name.split("/")[-2:][0]
    return max((name for name in names if scope.startswith(name)), key=len, default=scope)


@functools.cache
def _log(layers):
    logging.warning(
        "TensorFlow computes %s with a slope of %s on this machine, unless it runs eagerly: oneDNN merges a "
        "convolution, its bias, an addition and a LeakyReLU. Set the environment variable TF_ENABLE_ONEDNN_OPTS=0, "
        "here and on servers with such a CPU. See docs/platform_notes.md.",
        ", ".join(map(repr, layers)),
        _FUSED_SLOPE,
    )


def _is_fused(op) -> bool:
    """Whether oneDNN would merge a LeakyReLU of another slope with the addition and the convolution before it."""
    if op.type != "LeakyRelu" or abs(op.get_attr("alpha") - _FUSED_SLOPE) < 1e-6 or op.inputs[0].dtype != tf.float32:
        return False
    add = _source(op.inputs[0])
    if add.op.type not in ("Add", "AddV2"):
        return False
    same = add.op.inputs[0].shape[1:] == add.op.inputs[1].shape[1:]  # oneDNN does not merge an addition that broadcasts
    return same and any(_is_biased_convolution(_source(tensor)) for tensor in add.op.inputs)


def _is_biased_convolution(tensor) -> bool:
    if tensor.op.type != "BiasAdd" or len(tensor.consumers()) > 1:
        return False
    op = _source(tensor.op.inputs[0]).op
    return op.type in ("Conv2D", "Conv3D") and set(op.get_attr("dilations")) == {1}


def _source(tensor):
    """The tensor before operations that do nothing, such as a Dropout in inference."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


@functools.cache
def _is_wrong_here() -> bool:
    """Whether a convolution of ones has this fault in a graph on the CPU."""

    def negative(x):
        h = tf.nn.bias_add(tf.nn.conv2d(x, tf.ones((1, 1, 1, 1)), 1, "SAME"), [1.0])
        return tf.nn.leaky_relu(h + x, 0.5)

    with tf.device("CPU"):
        x = tf.fill((1, 1, 1, 1), -3.0)
        return bool(tf.reduce_any(abs(negative(x) - tf.function(negative)(x)) > 0.1))
