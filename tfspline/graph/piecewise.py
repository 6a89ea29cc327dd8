"""Activations: piecewise-affine functions of one number, choices of the largest, and those that are smooth.

`PiecewiseAffine` and `ArgmaxChoice` have the same interface. `code(z)` gives the index of the piece in which each z
lies, `bits(z)` the same as booleans, and `apply(z, code)` the affine map of that piece, for any z.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspline import _keras


@dataclasses.dataclass(frozen=True, eq=False)
class PiecewiseAffine:
    """A function of one number that is slopes[i] z + offsets[i] between breakpoints[i - 1] and breakpoints[i]."""

    breakpoints: tuple[float, ...]  # in ascending order
    slopes: tuple  # one more than breakpoints, each a number or an array that broadcasts to z; NaN for a curved piece
    offsets: tuple  # one for each slope

    @classmethod
    def of(cls, function: Callable[[tf.Tensor], tf.Tensor], breakpoints: tuple[float, ...]) -> "PiecewiseAffine":
        """The pieces of a function whose breakpoints are known; slopes and offsets are read off its values."""
        pieces = itertools.pairwise([breakpoints[0] - 4.0, *breakpoints, breakpoints[-1] + 4.0])
        points = np.array([low + (high - low) * np.array([0.25, 0.5, 0.75]) for low, high in pieces])
        values = np.asarray(function(tf.constant(points.ravel(), tf.float64))).reshape(points.shape)
        slopes, offsets = [], []
        for (start, middle, end), z in zip(values, points, strict=True):
            slope = (end - start) / (z[2] - z[0])
            straight = abs(middle - (start + end) / 2) < 1e-12 * max(1, abs(start), abs(middle), abs(end))
            slopes.append(slope if straight else math.nan)
            offsets.append(middle - slope * z[1])
        return cls(tuple(map(float, breakpoints)), tuple(slopes), tuple(offsets))

    @property
    def curved(self) -> bool:
        """Whether a piece is not affine, such as the middle one of hard swish."""
        return any(np.isnan(slope).any() for slope in self.slopes)

    @property
    def is_relu(self) -> bool:
        """Whether the function is max(z, 0)."""
        numbers = all(isinstance(slope, float) for slope in self.slopes)  # not the weights of a PReLU
        return numbers and (self.breakpoints, self.slopes, self.offsets) == ((0.0,), (0.0, 1.0), (0.0, 0.0))

    @property
    def homogeneous(self) -> bool:
        """Whether f(c z) = c f(z) for every c > 0, as for ReLU, LeakyReLU, PReLU and abs."""
        offsets = all(np.allclose(offset, 0, atol=1e-9) for offset in self.offsets)
        return offsets and not any(self.breakpoints) and not self.curved

    @property
    def constant_when_off(self) -> bool:
        """Whether the lowest piece is constant, as it is in a ReLU but not in a LeakyReLU."""
        return bool(np.all(np.asarray(self.slopes[0]) == 0))

    @property
    def flat_sides(self) -> tuple[float, float]:
        """Below the first and above the second number the function is constant."""
        low = self.breakpoints[0] if self.constant_when_off else -math.inf
        return low, self.breakpoints[-1] if np.all(np.asarray(self.slopes[-1]) == 0) else math.inf

    def bits(self, z: tf.Tensor) -> list[tf.Tensor]:
        """On which side of each breakpoint z lies."""
        # A value at the breakpoint belongs to the flat side, if there is one.
        return [
            z > point if np.any(right != 0) else z >= point
            for point, right in zip(self.breakpoints, self.slopes[1:], strict=True)
        ]

    @property
    def output_determines_piece(self) -> bool:
        """Whether `bits_of_output` works: the function never decreases, whatever training does, or it is hard swish."""
        return self.curved or all(isinstance(slope, float) and slope >= 0 for slope in self.slopes)

    def bits_of_output(self, y: tf.Tensor) -> list[tf.Tensor]:
        """On which side of each breakpoint z lies, from the function's value y."""
        if self.curved:  # hard swish is 0 only below its first breakpoint, and at z = 0
            return [y != 0, y >= self.breakpoints[1]]
        values = [
            # The value of a flat side has no rounding error.
            left[1] if np.all(left[0] == 0) else right[0] * point + right[1]
            for point, (left, right) in zip(self.breakpoints, itertools.pairwise(self._lines()), strict=True)
        ]
        return dataclasses.replace(self, breakpoints=tuple(values)).bits(y)

    def _lines(self):
        return zip(self.slopes, self.offsets, strict=True)

    def code(self, z: tf.Tensor) -> tf.Tensor:
        """The index of the piece in which z lies, int32 of z's shape."""
        return tf.add_n([tf.cast(bit, tf.int32) for bit in self.bits(z)])

    def apply(self, z: tf.Tensor, code: tf.Tensor) -> tf.Tensor:
        """The affine function of the piece `code` at z, which need not lie in that piece."""
        y = None
        for i, (slope, offset) in enumerate(self._lines()):
            piece = tf.cast(slope, z.dtype) * z + tf.cast(offset, z.dtype)
            y = piece if i == 0 else tf.where(code >= i, piece, y)
        return y

    def borders(self, z: tf.Tensor) -> list[tf.Tensor]:
        """Affine functions of z that are zero where the code changes."""
        return [z - point for point in self.breakpoints]


@dataclasses.dataclass(frozen=True, eq=False)
class ArgmaxChoice:
    """The largest or the smallest of several candidates, as in max pooling and maxout."""

    candidates: Callable[[tuple, dict], tf.Tensor]  # args and kwargs of a call -> z, the candidates along a last axis
    sign: int  # 1 for the largest, -1 for the smallest
    pooled: bool  # whether it chooses between positions of one tensor rather than between tensors

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


@dataclasses.dataclass(frozen=True)
class Smooth:
    """An activation that is not piecewise affine, not known, or hidden inside a layer."""

    description: str  # for messages
    # Input and output of the call -> the sign of the pre-activation; None if it cannot be observed.
    sign: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None

    @classmethod
    def named(cls, name: str, sign: Callable | None = lambda z, y: z > 0) -> "Smooth":
        """An activation function or layer by its name."""
        return cls(f"activation {name!r}, which is smooth or not known", sign)


Activation = PiecewiseAffine | ArgmaxChoice | Smooth
