"""Layers that choose one of several numbers (max pooling, maxout), as an index and the chosen number."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer


@dataclasses.dataclass(frozen=True, eq=False)
class ArgmaxChoice:
    """The largest or the smallest of several candidates.

    Attributes:
        candidates: args and kwargs of a call -> z, the candidates of each output along a last axis.
        sign: 1 for the largest, -1 for the smallest.
        pooled: whether it chooses between positions of one tensor rather than between tensors.
    """

    candidates: Callable[[tuple, dict], tf.Tensor]
    sign: int
    pooled: bool

    curved = False

    def code(self, z: tf.Tensor) -> tf.Tensor:
        """The index of the chosen candidate, the first of equal ones; int32 of the output's shape."""
        return tf.argmax(self.sign * z, axis=-1, output_type=tf.int32)

    def bits(self, z: tf.Tensor) -> list[tf.Tensor]:
        """The index of the chosen candidate in binary, lowest bit first."""
        code = self.code(z)
        return [code & (1 << i) != 0 for i in range((z.shape[-1] - 1).bit_length())]

    def apply(self, z: tf.Tensor, code: tf.Tensor) -> tf.Tensor:
        """The candidate with the index `code`, whether it is the largest or not."""
        chosen = tf.one_hot(code, z.shape[-1], on_value=True, off_value=False)
        return tf.reduce_sum(tf.where(chosen, z, tf.zeros((), z.dtype)), axis=-1)

    def borders(self, z: tf.Tensor) -> list[tf.Tensor]:
        """Affine functions of z that are zero where the code changes; ValueError for more than two candidates."""
        # With more, the border between two candidates that are both smaller than a third would count too.
        if z.shape[-1] > 2:
            raise ValueError(f"a choice among {z.shape[-1]}")
        return [z[..., 1] - z[..., 0]] if z.shape[-1] == 2 else []

    def over_time(self) -> "ArgmaxChoice":
        """The same choice at each time step of inputs [batch, time, ...], as TimeDistributed makes it."""

        def candidates(args, kwargs):
            x = _keras.first_argument(args, kwargs)
            z = self.candidates((tf.reshape(x, [-1, *x.shape[2:]]),), {})
            return tf.reshape(z, [-1, x.shape[1], *z.shape[1:]])

        return dataclasses.replace(self, candidates=candidates)


def merged(args: tuple, kwargs: dict) -> tf.Tensor:
    """The candidates of Maximum and Minimum: the arguments of the call, broadcast against each other."""
    values = [value for value in tf.nest.flatten((args, kwargs)) if not isinstance(value, (str, bool, type(None)))]
    dtype = next(value.dtype for value in values if tf.is_tensor(value))
    values = [tf.cast(value, dtype) for value in values]
    shape = values[0].shape
    for value in values[1:]:
        shape = tf.broadcast_static_shape(shape, value.shape)
    return tf.stack([tf.broadcast_to(value, shape) for value in values], axis=-1)


def over_axes(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    """The candidates of a maximum over some axes of x, but not over the batch."""
    rank = x.shape.rank
    axes = sorted(int(axis) % rank for axis in np.atleast_1d(axes))
    others = [axis for axis in range(rank) if axis not in axes]
    moved = tf.transpose(x, [*others, *axes])
    shape = [1 if axis in axes else x.shape[axis] for axis in range(rank) if keepdims or axis not in axes]
    return tf.reshape(moved, [*shape, math.prod(x.shape[axis] for axis in axes)])


def windows(x: tf.Tensor, layer: KerasLayer, padding: float | None = None) -> tf.Tensor:
    """The numbers in each window of a pooling layer, one position after the other along a last axis.

    Args:
        x: the layer's input.
        layer: a pooling layer.
        padding: the number beyond the border; by default the least of the dtype, which no maximum chooses.
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
