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

from tfspline.graph.argmax import ArgmaxChoice


@dataclasses.dataclass(frozen=True, eq=False)
class PiecewiseAffine:
    """A function of one number that is slopes[i] z + offsets[i] between breakpoints[i - 1] and breakpoints[i].

    Attributes:
        breakpoints: where the pieces meet, in ascending order.
        slopes: one more than breakpoints, each a number or an array that broadcasts to z; NaN for a curved piece.
        offsets: one for each slope.
    """

    breakpoints: tuple[float, ...]
    slopes: tuple
    offsets: tuple

    @classmethod
    def of(cls, function: Callable[[tf.Tensor], tf.Tensor], breakpoints: tuple[float, ...]) -> "PiecewiseAffine":
        """The pieces of a function whose breakpoints are known; slopes and offsets are read off its values."""
        slopes, offsets = [], []
        for low, high in itertools.pairwise([breakpoints[0] - 4.0, *breakpoints, breakpoints[-1] + 4.0]):
            points = low + (high - low) * np.array([0.25, 0.5, 0.75])
            values = np.asarray(function(tf.constant(points, tf.float64)))
            slope = (values[2] - values[0]) / (points[2] - points[0])
            straight = abs(values[1] - (values[0] + values[2]) / 2) < 1e-12 * max(1, *abs(values))
            slopes.append(slope if straight else math.nan)
            offsets.append(values[1] - slope * points[1])
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
    def constant_when_off(self) -> bool:
        """Whether the lowest piece is constant, as it is in a ReLU but not in a LeakyReLU."""
        return bool(np.all(np.asarray(self.slopes[0]) == 0))

    def bits(self, z: tf.Tensor) -> list[tf.Tensor]:
        """On which side of each breakpoint z lies."""
        # A value at the breakpoint belongs to the flat side, if there is one.
        return [
            z > point if np.any(right != 0) else z >= point
            for point, right in zip(self.breakpoints, self.slopes[1:], strict=True)
        ]

    @property
    def output_determines_piece(self) -> bool:
        """Whether `bits_of_output` works: the function never decreases, or it is hard swish."""
        return self.curved or all(np.all(np.asarray(slope) >= 0) for slope in self.slopes)

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


@dataclasses.dataclass(frozen=True)
class Smooth:
    """An activation that is not piecewise affine, not known, or hidden inside a layer.

    Attributes:
        description: what it is, for messages.
        sign: input and output of the call -> the sign of the pre-activation; None if it cannot be observed.
    """

    description: str
    sign: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None

    @classmethod
    def named(cls, name: str, sign: Callable = lambda z, y: z > 0) -> "Smooth":
        """An activation function or layer by its name."""
        return cls(f"activation {name!r}, which is smooth or not known", sign)


Activation = PiecewiseAffine | ArgmaxChoice | Smooth
