"""Probe data that a user gives to analyse a model: arrays, lists, dicts or a tf.data.Dataset."""

import numbers
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import Data, InputShape, KerasModel

PROBE = 1024  # samples of a tf.data.Dataset, which may be infinite, or to choose and refit weights on; more tell little


class Probe(NamedTuple):
    """Inputs, and perhaps labels, on which a model is analysed."""

    inputs: list[tf.Tensor]  # one for each of `model.inputs`, of its dtype
    labels: Any  # arrays or tensors of as many samples, as the model's loss takes them, or None

    @property
    def input_shape(self) -> list[tuple]:
        """The shapes of the inputs of one sample."""
        return [tuple(tensor.shape)[1:] for tensor in self.inputs]


def probe(model: KerasModel, data: Data) -> Probe:
    """Reads inputs, and labels if there are any, from the data that a user gives.

    That is inputs as `input_values` takes them, a tuple `(x, y, ...)` of inputs, labels and more as in a dataset for
    `fit`, or a batched tf.data.Dataset of either, of which the first `PROBE` samples are read.
    """
    x, labels = _first_samples(model, data) if isinstance(data, tf.data.Dataset) else _pair(data)
    values = check_inputs(model, x)
    inputs = [tf.cast(value, tensor.dtype) for value, tensor in zip(values, model.inputs, strict=True)]
    if labels is not None:
        labels = tf.nest.map_structure(lambda y: y if tf.is_tensor(y) else np.asarray(y), labels)
        shapes = [tuple(y.shape) for y in tf.nest.flatten(labels)]
        if any(shape[:1] != (len(inputs[0]),) for shape in shapes):
            raise ValueError(f"Expected labels of {len(inputs[0])} samples, as many as inputs. Received: {shapes}")
    return Probe(inputs, labels)


def sample(model: KerasModel, data: Data) -> Probe:
    """As `probe`, with at most `PROBE` samples, spread evenly over the data, which may be sorted."""
    seen = probe(model, data)
    samples = len(seen.inputs[0])
    if samples <= PROBE:
        return seen
    at = np.linspace(0, samples - 1, PROBE).astype(int)
    return Probe(*tf.nest.map_structure(lambda value: tf.gather(value, at), tuple(seen)))


def _pair(data):
    """Splits data, which may be a tuple, into inputs and labels (or None)."""
    if not isinstance(data, tuple):
        return data, None
    if not 1 <= len(data) <= 3:
        raise ValueError(
            f"Expected inputs, several of them in a list, or a tuple (inputs, labels). Received: a tuple of {len(data)}"
        )
    return data[0], data[1] if len(data) > 1 else None


def _first_samples(model, data):
    batches, samples = [], 0
    for batch in data:
        x, labels = _pair(batch)
        batches.append((check_inputs(model, x), labels))
        samples += len(batches[-1][0][0])
        if samples >= PROBE:
            break
    if not batches:
        raise ValueError("Expected a dataset with at least one batch. Received: an empty one")
    return tf.nest.map_structure(lambda *parts: None if parts[0] is None else tf.concat(parts, 0)[:PROBE], *batches)


def input_values(model: KerasModel, x: Data) -> list:
    """The values in `x` for each of `model.inputs`, in their order. `x` is given as the model itself would take it."""
    if isinstance(x, dict):
        # Both Keras versions order the inputs of a dict by its sorted keys.
        names = sorted(model.input) if isinstance(model.input, dict) else [tensor.name for tensor in model.inputs]
        if not set(names) <= set(x):
            raise ValueError(f"Expected a dict with the inputs {names} of {model.name!r}. Received: {sorted(x)}")
        return [x[name] for name in names]
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    if len(values) != len(model.inputs):
        raise ValueError(f"Expected {len(model.inputs)} input(s) for {model.name!r}. Received: {len(values)}")
    return values


def shapes_of_inputs(model: KerasModel, input_shape: InputShape = None) -> list[tuple]:
    """The shape of each of `model.inputs` without the batch; None for sizes that `input_shape` does not give either."""
    shapes = [tuple(tensor.shape)[1:] for tensor in model.inputs]
    if input_shape is None:
        return shapes
    if isinstance(input_shape, dict):
        given = input_values(model, input_shape)
    else:
        several = isinstance(input_shape, (list, tuple)) and any(isinstance(x, (list, tuple)) for x in input_shape)
        given = input_shape if several else [input_shape]
    if len(given) != len(shapes) or not all(map(_fits, given, shapes)):
        raise ValueError(
            f"Expected an `input_shape` without the batch for the inputs {shapes} of {model.name!r}, in which None "
            f"stands for any positive integer. Received: {input_shape}"
        )
    return [tuple(size and int(size) for size in shape) for shape in given]


def _fits(given, shape):
    return (
        isinstance(given, (list, tuple))
        and len(given) == len(shape)
        and all(
            size is known is None or (isinstance(size, numbers.Integral) and size > 0 and known in (None, size))
            for size, known in zip(given, shape, strict=True)
        )
    )


def check_inputs(model: KerasModel, x: Data) -> list:
    """The arrays or tensors in `x`, one for each of `model.inputs`, once their shapes and numbers have been checked."""
    values = [_array(value) for value in input_values(_keras.check_model(model), x)]
    for value, tensor in zip(values, model.inputs, strict=True):
        expected, received = ("samples", *tensor.shape[1:]), tuple(value.shape)
        if len(received) != len(expected) or any(
            size not in (None, given) for size, given in zip(expected[1:], received[1:], strict=True)
        ):
            raise ValueError(
                f"Expected inputs of shape ({', '.join(map(str, expected))}) for {tensor.name!r} of "
                f"{model.name!r}. Received: {received}"
            )
    samples = [len(value) for value in values]
    if len(set(samples)) > 1 or not samples[0]:
        raise ValueError(f"Expected at least one sample, and as many for every input. Received: {samples}")
    for value, tensor in zip(values, model.inputs, strict=True):
        _check_numbers(value, tensor)
    return values


def _array(value):
    try:
        return value if isinstance(value, tf.Tensor) else np.asarray(value)
    except (TypeError, ValueError) as error:  # rows of different lengths, symbolic tensors
        raise ValueError(
            f"Expected an array, or something that converts to one. Received: {type(value).__name__} ({error})"
        ) from error


def _check_numbers(value, tensor):
    """Raises a ValueError if an input of numbers gets something else, or NaN or infinity, which have no region code."""
    dtype = tf.as_dtype(tensor.dtype)
    if not (dtype.is_floating or dtype.is_integer):
        return
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf" and numbers.dtype.name != "bfloat16":
        raise ValueError(f"Expected numbers for {tensor.name!r}. Received: {numbers.dtype.name}")
    # The minimum and maximum are NaN if any number is, and need no mask of the size of the inputs.
    if numbers.size and not np.isfinite([float(numbers.min()), float(numbers.max())]).all():
        raise ValueError(f"Expected finite numbers for {tensor.name!r}. Received: NaN or infinity among them")
