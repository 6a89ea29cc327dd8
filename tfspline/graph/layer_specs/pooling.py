"""Pooling, and layers that pad, crop or repeat positions: every channel stays where it is."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.argmax import ArgmaxChoice, over_axes, windows
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.dependence import everywhere, moved
from tfspline.graph.layer_specs.spec import LayerSpec, each_dimension, unknown
from tfspline.graph.piecewise import Activation, Smooth


def _keep_channels(call: Call) -> np.ndarray:
    axis = call.channel_axis()
    return call.place(call.channels(axis=axis), axis)


def _global_pool(call: Call) -> np.ndarray:
    """One number for each channel."""
    ids = call.channels(axis=call.channel_axis())
    return call.place(ids, call.channel_axis()) if call.layer.keepdims else ids


def _reduce(call: Call) -> np.ndarray | list[np.ndarray]:
    """A mean, sum, maximum or minimum over axes along which the channels are the same."""
    axes = np.atleast_1d(call.argument("axis"))
    if any(axis is None or axis % (len(call.shape()) + 1) == 0 for axis in axes):
        return unknown(call)
    ids, reduced = call.inputs[0], tuple(call.axis(axis) for axis in axes)
    if any(ids.shape[axis] > 1 for axis in reduced):
        return unknown(call)
    return ids if call.argument("keepdims") else ids.squeeze(reduced)


def _max_pooling(layer: KerasLayer) -> ArgmaxChoice:
    return _pooled_choice(lambda x: windows(x, layer))


def _global_max_pooling(layer: KerasLayer) -> ArgmaxChoice:
    channel_axis = 1 if layer.data_format == "channels_first" else -1
    return _pooled_choice(lambda x: over_axes(x, np.delete(np.arange(x.shape.rank), [0, channel_axis]), layer.keepdims))


def _pooled_choice(candidates: Callable, sign: int = 1) -> ArgmaxChoice:
    return ArgmaxChoice(lambda args, kwargs: candidates(_keras.first_argument(args, kwargs)), sign, pooled=True)


def _choice_over_axes(sign: int) -> Callable[[_keras.Node], Activation]:
    def activation(node):
        arguments = _keras.arguments(node.layer, *node.fill(dict.fromkeys(node.inputs)))
        axes, keepdims = arguments.get("axis"), bool(arguments.get("keepdims"))
        if axes is None or 0 in np.atleast_1d(axes) or not node.output_shapes[0]:
            return Smooth(f"the op {_keras.op_name(node.layer)!r} over the batch", None)
        return _pooled_choice(lambda x: over_axes(x, axes, keepdims), sign)

    return activation


def _mean_of_windows(layer: KerasLayer, x: tf.Tensor) -> tf.Tensor:
    """AveragePooling3D, which TensorFlow has in float32 only."""
    count, total = (tf.reduce_sum(windows(value, layer, 0), axis=-1) for value in (tf.ones_like(x), x))
    return total / count


_MOVES = LayerSpec(_keep_channels, affine=True, dependence=moved)

LAYERS: dict[str, LayerSpec] = {
    **dict.fromkeys(each_dimension("AveragePooling", "ZeroPadding", "Cropping", "UpSampling"), _MOVES),
    "AveragePooling3D": LayerSpec(_keep_channels, affine=True, dependence=moved, float64=_mean_of_windows),
    **dict.fromkeys(each_dimension("MaxPooling"), LayerSpec(_keep_channels, activation=_max_pooling, dependence=moved)),
    **dict.fromkeys(each_dimension("GlobalAveragePooling"), LayerSpec(_global_pool, affine=True, dependence=moved)),
    **dict.fromkeys(
        each_dimension("GlobalMaxPooling"), LayerSpec(_global_pool, activation=_global_max_pooling, dependence=moved)
    ),
}

OPS: dict[str, LayerSpec] = {
    **dict.fromkeys(["mean", "sum", "reducemean", "reducesum"], LayerSpec(_reduce, affine=True, dependence=moved)),
    **dict.fromkeys(
        ["max", "amax", "reducemax"], LayerSpec(_reduce, activation=_choice_over_axes(1), dependence=moved)
    ),
    **dict.fromkeys(  # a minimum of masks would miss the numbers that depend on the input
        ["min", "amin", "reducemin"], LayerSpec(_reduce, activation=_choice_over_axes(-1), dependence=everywhere)
    ),
}
