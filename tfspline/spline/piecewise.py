"""Pieces: a number's piecewise-affine function, or the choice of the largest, and the code that says which piece it is.

Both kinds have the same face. `code(z)` gives the piece in which each z lies, `bits(z)` the same as booleans,
`apply(z, code)` the affine map of that piece, whatever z is.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """A function of one number that is slopes[i] z + offsets[i] between knots[i - 1] and knots[i].

    Attributes:
        knots: where the pieces meet, rising.
        slopes: one more than knots, each a number or an array that goes with z; NaN for a piece that is curved.
        offsets: as many.
    """

    knots: tuple[float, ...]
    slopes: tuple
    offsets: tuple

    @classmethod
    def of(cls, function: Callable[[tf.Tensor], tf.Tensor], knots: tuple[float, ...]) -> "Pieces":
        """The pieces of a function whose knots are known; slopes and offsets are read off its values."""
        slopes, offsets = [], []
        for low, high in itertools.pairwise([knots[0] - 4.0, *knots, knots[-1] + 4.0]):
            points = low + (high - low) * np.array([0.25, 0.5, 0.75])
            values = np.asarray(function(tf.constant(points, tf.float64)))
            slope = (values[2] - values[0]) / (points[2] - points[0])
            straight = abs(values[1] - (values[0] + values[2]) / 2) < 1e-12 * max(1, *abs(values))
            slopes.append(slope if straight else math.nan)
            offsets.append(values[1] - slope * points[1])
        return cls(tuple(map(float, knots)), tuple(slopes), tuple(offsets))

    @property
    def curved(self) -> bool:
        """Whether a piece is not affine (the middle one of hard swish)."""
        return any(np.isnan(slope).any() for slope in self.slopes)

    def bits(self, z: tf.Tensor) -> list[tf.Tensor]:
        """On which side of each knot z lies."""
        # A value on the knot belongs to the flat side, if one is flat: there it counts for nothing.
        return [
            z > knot if np.any(right != 0) else z >= knot
            for knot, right in zip(self.knots, self.slopes[1:], strict=True)
        ]

    @property
    def told_by_output(self) -> bool:
        """Whether `bits_of_output` can tell the pieces: the function nowhere falls, or is hard swish."""
        return self.curved or all(np.all(np.asarray(slope) >= 0) for slope in self.slopes)

    def bits_of_output(self, y: tf.Tensor) -> list[tf.Tensor]:
        """The same from the function's value."""
        if self.curved:  # hard swish is 0 only outside its first knot, and at z = 0 itself
            return [y != 0, y >= self.knots[1]]
        levels = [
            # A flat side says it without rounding.
            left[1] if np.all(left[0] == 0) else right[0] * knot + right[1]
            for knot, (left, right) in zip(self.knots, itertools.pairwise(self._lines()), strict=True)
        ]
        return dataclasses.replace(self, knots=tuple(levels)).bits(y)

    def _lines(self):
        return zip(self.slopes, self.offsets, strict=True)

    def code(self, z: tf.Tensor) -> tf.Tensor:
        """The number of the piece in which z lies, int32 of z's shape."""
        return tf.add_n([tf.cast(bit, tf.int32) for bit in self.bits(z)])

    def apply(self, z: tf.Tensor, code: tf.Tensor) -> tf.Tensor:
        """The affine function of the piece `code` at z, which need not lie in it."""
        y = None
        for i, (slope, offset) in enumerate(self._lines()):
            piece = tf.cast(slope, z.dtype) * z + tf.cast(offset, z.dtype)
            y = piece if i == 0 else tf.where(code >= i, piece, y)
        return y

    def borders(self, z: tf.Tensor) -> list[tf.Tensor]:
        """Affine functions of z whose zeros are where the code changes."""
        return [z - knot for knot in self.knots]


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The largest of several candidates (max pooling, maxout), or the smallest.

    Attributes:
        candidates: args and kwargs of a call -> z, the candidates of each output along a last axis.
        sign: 1 for the largest, -1 for the smallest.
        pooled: whether it chooses among places of one tensor rather than among tensors.
    """

    candidates: Callable[[tuple, dict], tf.Tensor]
    sign: int
    pooled: bool

    curved = False

    def code(self, z: tf.Tensor) -> tf.Tensor:
        """Which candidate is chosen, the first of equal ones, int32 of the output's shape."""
        return tf.argmax(self.sign * z, axis=-1, output_type=tf.int32)

    def bits(self, z: tf.Tensor) -> list[tf.Tensor]:
        """The number of the chosen one in binary, lowest bit first."""
        code = self.code(z)
        return [code & (1 << i) != 0 for i in range((z.shape[-1] - 1).bit_length())]

    def apply(self, z: tf.Tensor, code: tf.Tensor) -> tf.Tensor:
        """The candidate that `code` names, whether it is the largest or not."""
        chosen = tf.one_hot(code, z.shape[-1], on_value=True, off_value=False)
        return tf.reduce_sum(tf.where(chosen, z, tf.zeros((), z.dtype)), axis=-1)

    def borders(self, z: tf.Tensor) -> list[tf.Tensor]:
        """As for `Pieces`; ValueError for more than two candidates, of which the losers' borders would count too."""
        if z.shape[-1] > 2:
            raise ValueError(f"a choice among {z.shape[-1]}")
        return [z[..., 1] - z[..., 0]] if z.shape[-1] == 2 else []


def merged(args: tuple, kwargs: dict) -> tf.Tensor:
    """The candidates of Maximum and Minimum: their arguments, broadcast against each other."""
    values = [value for value in tf.nest.flatten((args, kwargs)) if not isinstance(value, (str, bool, type(None)))]
    dtype = next(value.dtype for value in values if tf.is_tensor(value))
    values = [tf.cast(value, dtype) for value in values]
    shape = values[0].shape
    for value in values[1:]:
        shape = tf.broadcast_static_shape(shape, value.shape)
    return tf.stack([tf.broadcast_to(value, shape) for value in values], axis=-1)


def over_axes(x: tf.Tensor, axes: Any, keepdims: bool) -> tf.Tensor:
    """The candidates of a maximum over some axes of x (never the batch)."""
    rank = x.shape.rank
    axes = sorted(int(axis) % rank for axis in np.atleast_1d(axes))
    others = [axis for axis in range(rank) if axis not in axes]
    moved = tf.transpose(x, [*others, *axes])
    shape = [1 if axis in axes else x.shape[axis] for axis in range(rank) if keepdims or axis not in axes]
    return tf.reshape(moved, [*shape, math.prod(x.shape[axis] for axis in axes)])


def windows(x: tf.Tensor, layer: Any, padding: float | None = None) -> tf.Tensor:
    """What each window of a pooling layer holds, one place after the other along a last axis.

    Beyond the border there is `padding`, or by default the least number, which no maximum chooses.
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
    places = [
        x[(slice(None), *(slice(i, i + end, s) for i, end, s in zip(place, ends, stride, strict=True)))]
        for place in itertools.product(*map(range, size))
    ]
    z = tf.stack(places, axis=-1)
    return tf.transpose(z, [0, rank + 1, *range(1, rank + 1), rank + 2]) if first else z
