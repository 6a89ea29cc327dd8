"""Affine maps: the exact affine function that a network computes on the region of an input."""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfspline._keras.inputs import check_inputs
from tfspline._keras.types import Data, KerasModel
from tfspline._utils.checks import count
from tfspline.spline.float64 import Network, at_own_piece, at_pieces_of


def affine_map(
    model: KerasModel, x: Data, outputs: int | Sequence[int] | None = None, logits: bool = False, batch_size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the affine map of a network on the region of each input: f(x') = A x' + b for all x' in the region of x.

    The region code of x selects a piece of every activation and a place of every max-pooling window. With these
    choices fixed, the network is a chain of affine maps: A is their product, and b is the image of 0 (Balestriero and
    Baraniuk, "A Spline Theory of Deep Learning", ICML 2018). All computations use float64 copies of the weights, so
    f(x) and A x + b differ only by the rounding errors of the model itself.

    Costs one forward and one backward pass per sample and output; or, if a sample has fewer numbers than there are
    outputs, two forward passes per sample and input number. A takes 8 bytes per sample, output and input number.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras, made of affine layers and
            piecewise-affine activations, max-pooling, Maximum and Minimum.
        x: an array or tensor `[samples, ...]`; for several inputs, a list in the order of `model.inputs` or a dict by
            input name.
        outputs: which numbers of the flattened output to map, an int or ints; all by default.
        logits: ignore a smooth activation (softmax, sigmoid) at the model's output, and map its input instead.
        batch_size: number of rows per batch.

    Returns:
        A, float64 `[samples, outputs, inputs]`, and b, float64 `[samples, outputs]`. Outputs and inputs are flattened;
        several of them are concatenated in the order of `model.outputs` and `model.inputs`. If `outputs` is an int, A
        and b lack the outputs axis.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model's graph is unknown or it has a layer that is not piecewise affine (named in the message),
            `x` is empty or does not fit the model, or `outputs` is out of range.

    Example:

    >>> layers = [keras.Input((2,)), keras.layers.Dense(1, "relu", kernel_initializer="ones"), keras.layers.Flatten()]
    >>> A, b = tfspline.affine_map(keras.Sequential(layers), np.array([[1.0, 2.0], [-1.0, -2.0]]))
    >>> A.tolist(), b.tolist()
    ([[[1.0, 1.0]], [[0.0, 0.0]]], [[0.0], [0.0]])
    """
    count("batch_size", batch_size)
    network = Network(model, logits)
    values = [tf.cast(value, tf.float64) for value in check_inputs(network.model, x)]
    chosen = _output_indices(outputs, network.run([value[:1] for value in values], at_own_piece).shape[1])
    b = _offsets(network, values, chosen, batch_size)
    by_output = chosen.size <= _numbers(values)
    A = _rows(network, values, chosen, batch_size) if by_output else _columns(network, values, chosen, b, batch_size)
    return (A, b) if outputs is None or np.ndim(outputs) else (A[:, 0], b[:, 0])


def _output_indices(outputs, size):
    chosen = np.arange(size) if outputs is None else np.atleast_1d(outputs)
    if chosen.ndim > 1 or chosen.dtype.kind not in "iu" or (chosen < -size).any() or (chosen >= size).any():
        raise ValueError(f"Expected `outputs` to be indices in [-{size}, {size}). Received: {outputs!r}")
    return chosen % size


def _numbers(values) -> int:
    """How many numbers a sample consists of."""
    return sum(value[0].shape.num_elements() for value in values)


def _offsets(network, values, chosen, batch_size) -> np.ndarray:
    """Compute b, the image of 0 in the region of each sample."""
    b = np.empty((len(values[0]), chosen.size))
    for rows in _chunks(np.arange(len(b)), batch_size):
        here = _take(values, rows)
        zeros = [tf.zeros_like(value) for value in here]
        b[rows] = tf.gather(network.run(zeros, at_pieces_of(network, here)), chosen, axis=1)
    return b


def _rows(network, values, chosen, batch_size) -> np.ndarray:
    """Compute A row by row: with the pieces fixed, a row is the gradient of an output."""
    A = np.empty((len(values[0]), chosen.size, _numbers(values)))
    for rows, output in _pairs(len(A), chosen.size, batch_size):
        here = _take(values, rows)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(here)
            y = tf.gather(network.run(here, at_own_piece), chosen[output], batch_dims=1)
        gradients = tape.gradient(y, here, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        A[rows, output] = tf.concat([tf.reshape(gradient, [len(gradient), -1]) for gradient in gradients], axis=1)
    return A


def _columns(network, values, chosen, b, batch_size) -> np.ndarray:
    """Compute A column by column: a column is the image of a basis vector of the input space, minus b."""
    A = np.empty((len(values[0]), _numbers(values), chosen.size))
    for rows, number in _pairs(len(A), A.shape[1], batch_size):
        here = _take(values, rows)
        basis = _split(tf.one_hot(number, A.shape[1], dtype=tf.float64), here)
        A[rows, number] = tf.gather(network.run(basis, at_pieces_of(network, here)), chosen, axis=1) - b[rows]
    return A.transpose(0, 2, 1)


def _pairs(samples: int, others: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of indices below `samples` and below `others` in batches, as two arrays."""
    for chunk in _chunks(np.arange(samples * others), batch_size):
        yield np.divmod(chunk, others)


def _chunks(array, size):
    return (array[start : start + size] for start in range(0, len(array), size))


def _take(values, rows):
    return [tf.gather(value, rows) for value in values]


def _split(rows: tf.Tensor, like: list[tf.Tensor]) -> list[tf.Tensor]:
    """Split flattened inputs `[rows, numbers]` into tensors shaped as those of `like`."""
    parts = tf.split(rows, [value[0].shape.num_elements() for value in like], axis=1)
    return [tf.reshape(part, [-1, *value.shape[1:]]) for part, value in zip(parts, like, strict=True)]
