"""Least squares: ridge regression, and the rows that the kernel of a layer multiplies."""

import itertools

import numpy as np
import tensorflow as tf

from tfspline._keras.types import KerasLayer

_FLAT = 1e-3  # share of the square of a mean that counts as variance: far above its rounding error, far below a signal


class Ridge:
    """Ridge regression on x, float32 [groups, rows, features], each group on its own; `shifted`: with an offset."""

    def __init__(self, x: tf.Tensor, shifted: bool):
        self._shifted = shifted
        self._mean = self._mean_of(x)
        self._x = x - self._mean
        _, rows, self._features = x.shape
        self._few = rows < self._features  # then X X^T is smaller than X^T X
        self._gram = tf.cast(tf.matmul(self._x, self._x, transpose_a=not self._few, transpose_b=self._few), tf.float64)
        # Rounding errors of inputs that hardly vary must not be taken for a variance.
        squares = rows * tf.reduce_sum(tf.square(tf.cast(self._mean, tf.float64)), [1, 2])
        self._size = (tf.linalg.trace(self._gram) + _FLAT * squares) / self._features

    def _mean_of(self, values):
        return tf.reduce_mean(values, 1, keepdims=True) if self._shifted else tf.zeros_like(values[:, :1])

    def set_ridge(self, share: float) -> None:
        """Sets the ridge, as a share of the mean sum of squares of a feature."""
        ridge = share * self._size + np.finfo(np.float32).tiny
        self._factor = tf.linalg.cholesky(self._gram + ridge[:, None, None] * np.eye(self._gram.shape[-1]))

    def solve(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The W, float32 [groups, features, outputs], and b, [groups, 1, outputs], that minimise |X W + b - y|^2 +
        ridge |W|^2 for y, float32 [groups, rows, outputs]; b = 0 unless `shifted`."""
        mean = self._mean_of(y)
        target = y - mean if self._few else tf.matmul(self._x, y - mean, transpose_a=True)
        solution = tf.cast(tf.linalg.cholesky_solve(self._factor, tf.cast(target, tf.float64)), tf.float32)
        weights = tf.matmul(self._x, solution, transpose_a=True) if self._few else solution
        return weights, mean - tf.matmul(self._mean, weights)


class Windows:
    """The rows that the kernel of a layer multiplies: for a convolution its windows, for a Dense layer its inputs.

    A kernel [*window, inputs of a group, outputs] is a matrix [features, outputs of a group] for each group.
    """

    def __init__(self, layer: KerasLayer, sizes: tuple[int, ...]):
        self._window, self._shape = tuple(layer.kernel.shape[:-2]), layer.kernel.shape
        self._groups = getattr(layer, "groups", 1)
        self.positions: tuple[int, ...] = sizes  # of the output, from those of the input
        if self._window:
            self._strides, self._dilation = layer.strides, layer.dilation_rate
            spans = [(size - 1) * step + 1 for size, step in zip(self._window, self._dilation, strict=True)]
            self.positions, self._padding = _geometry(layer.padding, sizes, spans, self._strides)

    @property
    def features(self) -> int:
        """The number of inputs of an output, over all groups."""
        return int(np.prod(self._shape[:-1])) * self._groups

    def rows(self, x: tf.Tensor, at: np.ndarray) -> tf.Tensor:
        """The windows in channels-last inputs x, float32 [groups, rows, features of a group], at these indices into the
        flattened samples and positions of the output, int [rows]."""
        if not self._window:
            return tf.gather(tf.reshape(x, [-1, x.shape[-1]]), at)[None]
        x = tf.pad(x, [(0, 0), *self._padding, (0, 0)])
        sample, *place = np.unravel_index(at, [len(x), *self.positions])
        flat, taps = tf.reshape(x, [-1, x.shape[-1]]), []
        for tap in itertools.product(*map(range, self._window)):
            steps = zip(place, self._strides, tap, self._dilation, strict=True)
            index = (sample, *(start * stride + i * step for start, stride, i, step in steps))
            taps.append(tf.gather(flat, np.ravel_multi_index(index, x.shape[:-1])))
        rows = tf.reshape(tf.stack(taps, 1), [len(at), len(taps), self._groups, -1])
        return tf.reshape(tf.transpose(rows, [2, 0, 1, 3]), [self._groups, len(at), -1])

    def matrices(self, kernel: np.ndarray) -> tf.Tensor:
        """A kernel as matrices [groups, features of a group, outputs of a group]."""
        return self.by_group(tf.reshape(kernel, [-1, kernel.shape[-1]]))

    def kernel(self, matrices: tf.Tensor) -> tf.Tensor:
        """The kernel that `matrices` makes these of."""
        return tf.reshape(tf.transpose(matrices, [1, 0, 2]), self._shape)

    def by_group(self, y: tf.Tensor) -> tf.Tensor:
        """Outputs [rows, channels] as [groups, rows, channels of a group]."""
        return tf.transpose(tf.reshape(y, [y.shape[0], self._groups, -1]), [1, 0, 2])

    @staticmethod
    def product(rows: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
        """What the kernel computes from rows, [rows, channels]."""
        y = tf.transpose(tf.matmul(rows, matrices), [1, 0, 2])
        return tf.reshape(y, [y.shape[0], -1])


def _geometry(padding, sizes, spans, strides):
    """The output's sizes and the input's padding before and after, along each axis."""
    if padding == "same":
        outputs = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        axes = zip(outputs, strides, spans, sizes, strict=True)
        missing = [max((output - 1) * stride + span - size, 0) for output, stride, span, size in axes]
        return tuple(outputs), [(total // 2, total - total // 2) for total in missing]
    before = [span - 1 if padding == "causal" else 0 for span in spans]
    axes = zip(sizes, before, spans, strides, strict=True)
    outputs = [(size + first - span) // stride + 1 for size, first, span, stride in axes]
    return tuple(outputs), [(first, 0) for first in before]
