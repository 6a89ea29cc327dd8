"""Pooling, and layers that pad, crop or repeat positions: every channel stays where it is."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.dependence import everywhere, moved
from tfspline.graph.layer_specs.spec import LayerSpec, each_dimension, unknown
from tfspline.graph.piecewise import Activation, ArgmaxChoice, Smooth


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
        return unknown(call, "reduces the batch as well")
    ids, reduced = call.inputs[0], tuple(call.axis(axis) for axis in axes)
    if max(ids.shape[axis] for axis in reduced) > 1:
        rest = np.delete(ids.shape, reduced)
        if rest.size == 0 or rest.max() == 1:
            return unknown(call, "reduces over different units")
        ids = call.tie_groups(np.moveaxis(ids, reduced, range(len(reduced))), ids.size // rest.prod())
        ids = np.expand_dims(ids.reshape(rest), reduced)
    return ids if call.argument("keepdims") else ids.squeeze(reduced)


def _resize_images(call: Call) -> np.ndarray:
    """The op; TensorFlow's has its channels last."""
    axis = 0 if call.argument("data_format") == "channels_first" else -1
    return call.place(call.channels(axis=axis), axis)


def _max_pooling(layer: KerasLayer) -> ArgmaxChoice:
    return _choice(lambda x: _windows(x, layer))


def _global_max_pooling(layer: KerasLayer) -> ArgmaxChoice:
    channel_axis = 1 if layer.data_format == "channels_first" else -1
    return _choice(lambda x: _over_axes(x, np.delete(np.arange(x.shape.rank), [0, channel_axis]), layer.keepdims))


def _choice(candidates: Callable, sign: int = 1) -> ArgmaxChoice:
    return ArgmaxChoice(lambda args, kwargs: candidates(_keras.first_argument(args, kwargs)), sign, pooled=True)


def _choice_over_axes(sign: int, node: _keras.Node) -> Activation:
    arguments = _keras.arguments(node.layer, *node.fill(dict.fromkeys(node.inputs)))
    axes, keepdims = arguments.get("axis"), bool(arguments.get("keepdims"))
    if axes is None or 0 in np.atleast_1d(axes) or not node.output_shapes[0]:
        return Smooth(f"the op {_keras.op_name(node.layer)!r} over the batch", None)
    return _choice(lambda x: _over_axes(x, axes, keepdims), sign)


def _over_axes(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    """The candidates of a maximum over some axes of x, but not over the batch."""
    rank = x.shape.rank
    axes = sorted(int(axis) % rank for axis in np.atleast_1d(axes))
    others = [axis for axis in range(rank) if axis not in axes]
    moved = tf.transpose(x, [*others, *axes])
    shape = [1 if axis in axes else x.shape[axis] for axis in range(rank) if keepdims or axis not in axes]
    return tf.reshape(moved, [*shape, math.prod(x.shape[axis] for axis in axes)])


def _windows(x: tf.Tensor, layer: KerasLayer, padding: float | None = None) -> tf.Tensor:
    """The numbers in each window of a pooling layer, one position after the other along a last axis.

    `padding` is the number beyond the border; by default the least of the dtype, which no maximum chooses.
    """
    first = layer.data_format == "channels_first"
    rank = x.shape.rank - 2
    if first:
        x = tf.transpose(x, [0, *range(2, rank + 2), 1])
    size, stride = (np.broadcast_to(value, rank).tolist() for value in (layer.pool_size, layer.strides))
    pads = [[0, 0]] * (rank + 2)
    if layer.padding == "same":
        for i, (n, k, s) in enumerate(zip(x.shape[1:-1], size, stride, strict=True)):
            total = max((math.ceil(n / s) - 1) * s + k - n, 0)
            pads[i + 1] = [total // 2, total - total // 2]
    x = tf.pad(x, pads, constant_values=x.dtype.min if padding is None else padding)
    ends = [(n - k) // s * s + 1 for n, k, s in zip(x.shape[1:-1], size, stride, strict=True)]
    z = tf.stack([x[_strided(start, ends, stride)] for start in itertools.product(*map(range, size))], axis=-1)
    return tf.transpose(z, [0, rank + 1, *range(1, rank + 1), rank + 2]) if first else z


def _strided(start, ends, stride) -> tuple:
    """The index of every stride-th position from `start` on, in a tensor [batch, *positions, channels]."""
    return slice(None), *(slice(i, i + end, step) for i, end, step in zip(start, ends, stride, strict=True))


def _mean_of_windows(layer: KerasLayer, x: tf.Tensor) -> tf.Tensor:
    """AveragePooling3D, which TensorFlow has in float32 only."""
    count, total = (tf.reduce_sum(_windows(value, layer, 0), axis=-1) for value in (tf.ones_like(x), x))
    return total / count


_MOVES = LayerSpec(_keep_channels, affine=True, dependence=moved)

LAYERS: dict[str, LayerSpec] = {
    **dict.fromkeys(each_dimension("AveragePooling", "ZeroPadding", "Cropping", "UpSampling"), _MOVES),
    **dict.fromkeys(["Resizing", *each_dimension("AdaptiveAveragePooling")], _MOVES),
    **dict.fromkeys(each_dimension("AdaptiveMaxPooling"), LayerSpec(_keep_channels, dependence=moved)),
    "AveragePooling3D": LayerSpec(_keep_channels, affine=True, dependence=moved, float64=_mean_of_windows),
    **dict.fromkeys(each_dimension("MaxPooling"), LayerSpec(_keep_channels, activation=_max_pooling, dependence=moved)),
    **dict.fromkeys(each_dimension("GlobalAveragePooling"), LayerSpec(_global_pool, affine=True, dependence=moved)),
    **dict.fromkeys(
        each_dimension("GlobalMaxPooling"), LayerSpec(_global_pool, activation=_global_max_pooling, dependence=moved)
    ),
}

OPS: dict[str, LayerSpec] = {
    "resize": LayerSpec(_resize_images, affine=True, dependence=moved),
    **dict.fromkeys(["mean", "sum", "reducemean", "reducesum"], LayerSpec(_reduce, affine=True, dependence=moved)),
    **dict.fromkeys(
        ["max", "amax", "reducemax"],
        LayerSpec(_reduce, activation=functools.partial(_choice_over_axes, 1), dependence=moved),
    ),
    **dict.fromkeys(  # a minimum of masks would miss the numbers that depend on the input
        ["min", "amin", "reducemin"],
        LayerSpec(_reduce, activation=functools.partial(_choice_over_axes, -1), dependence=everywhere),
    ),
}
