"""Affine maps: what a network is on the region that an input lies in, exactly."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfspline._keras.inputs import check_inputs
from tfspline._utils.checks import count
from tfspline.spline.float64 import Network, at_own_piece, at_pieces_of


def affine_map(
    model: Any, x: Any, outputs: Any = None, logits: bool = False, batch_size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """The affine map that a network is on the region of each input: f(x') = A x' + b for all x' of x's code.

    The code of x says which piece of every activation (and which place of every max-pooling window) counts. Frozen at
    these pieces, the network is a chain of affine maps whose product is A, and b is what the chain makes of 0
    (Balestriero and Baraniuk, "A Spline Theory of Deep Learning", ICML 2018). All is computed in float64 from the
    model's weights, so that what f(x) differs from A x + b by is the rounding of the model itself.

    Known are Dense, convolutions of all kinds, BatchNormalization, average and max pooling, padding, cropping,
    upsampling, reshapes, Add, Subtract, Average, Concatenate, Maximum, Minimum, all activations in pieces, the bare
    ops that do the same, nested models, shared layers, TimeDistributed. Everything else is refused by name.

    For each sample and output number the network runs once forward and once backward, in float64; or, where a sample
    has fewer numbers than outputs are asked for, twice forward for each of its numbers. A takes 8 bytes a sample,
    output and input number: 240 KiB a 32x32x3 image of ten classes.

    Args:
        model: a built functional or Sequential model, Keras 3 or tf_keras.
        x: an array or tensor `[samples, ...]`; for several inputs a list in the order of `model.inputs`, or a
            dict by name.
        outputs: which numbers of the flattened output to map, an int or a list of ints; all by default.
        logits: leave out a smooth activation at the very output (softmax, sigmoid): the map is that of what goes into
            it.
        batch_size: how many rows run at a time.

    Returns:
        A, float64 `[samples, outputs, inputs]`, and b, float64 `[samples, outputs]`, the outputs and the inputs
        flattened; several of them lie one behind the other, in the order of `model.outputs` and `model.inputs`.
        With an int for `outputs`, both lack that axis.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: a model whose graph is not known, or with a layer that is neither affine nor in affine pieces;
            inputs that do not fit the model, or none; outputs that it does not have.

    Example:

    >>> layers = [keras.Input((2,)), keras.layers.Dense(1, "relu", kernel_initializer="ones"), keras.layers.Flatten()]
    >>> A, b = tfspline.affine_map(keras.Sequential(layers), np.array([[1.0, 2.0], [-1.0, -2.0]]))
    >>> A.tolist(), b.tolist()
    ([[[1.0, 1.0]], [[0.0, 0.0]]], [[0.0], [0.0]])
    """
    count("batch_size", batch_size)
    network = Network(model, logits)
    values = [tf.cast(value, tf.float64) for value in check_inputs(network.model, x)]
    samples, inputs = len(values[0]), sum(value[0].shape.num_elements() for value in values)
    chosen = _chosen(outputs, network.run([value[:1] for value in values], at_own_piece).shape[1])

    b = np.empty((samples, chosen.size))
    for rows in _chunks(np.arange(samples), batch_size):
        here = _take(values, rows)
        b[rows] = tf.gather(network.run(_zeros(here), at_pieces_of(network, here)), chosen, axis=1)

    if chosen.size <= inputs:
        A = np.empty((samples, chosen.size, inputs))
        for rows, output in _pairs(samples, chosen.size, batch_size):
            A[rows, output] = _transposed(network, _take(values, rows), chosen[output])
    else:
        A = np.empty((samples, inputs, chosen.size))
        for rows, number in _pairs(samples, inputs, batch_size):
            here = _take(values, rows)
            there = _split(tf.one_hot(number, inputs, dtype=tf.float64), here)
            image = network.run(there, at_pieces_of(network, here))
            A[rows, number] = tf.gather(image, chosen, axis=1) - b[rows]
        A = A.transpose(0, 2, 1)
    return (A[:, 0], b[:, 0]) if np.ndim(outputs) == 0 and outputs is not None else (A, b)


def _chosen(outputs, size):
    chosen = np.arange(size) if outputs is None else np.atleast_1d(outputs)
    if chosen.ndim > 1 or chosen.dtype.kind not in "iu" or (chosen < -size).any() or (chosen >= size).any():
        raise ValueError(f"Expected numbers of outputs in [-{size}, {size}). Received: {outputs!r}")
    return chosen % size


def _pairs(samples, others, batch_size):
    """All pairs of a sample and another number, as two arrays a chunk."""
    for chunk in _chunks(np.arange(samples * others), batch_size):
        yield np.divmod(chunk, others)


def _chunks(array, size):
    return (array[start : start + size] for start in range(0, len(array), size))


def _take(values, rows):
    return [tf.gather(value, rows) for value in values]


def _zeros(values):
    return [tf.zeros_like(value) for value in values]


def _split(rows, like):
    """Flattened inputs [rows, numbers] as tensors of the shapes of `like`."""
    parts = tf.split(rows, [value[0].shape.num_elements() for value in like], axis=1)
    return [tf.reshape(part, [-1, *value.shape[1:]]) for part, value in zip(parts, like, strict=True)]


def _transposed(network, values, outputs):
    """Row `outputs[i]` of the map of sample i: the frozen network, which is affine, run backwards."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        y = tf.gather(network.run(values, at_own_piece), outputs, batch_dims=1)
    rows = tape.gradient(y, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.concat([tf.reshape(row, [len(row), -1]) for row in rows], axis=1)
