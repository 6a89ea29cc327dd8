"""The inputs that a user gives to look at a model: arrays, lists, dicts or a tf.data.Dataset."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfspline import _keras

PROBE = 1024  # samples that are taken of a tf.data.Dataset, which may have no end


class Probe(NamedTuple):
    """What a model is looked at with.

    Attributes:
        inputs: a tensor for each of `model.inputs`, of its dtype.
        labels: as the model's loss takes them, arrays or tensors of as many samples; None without any.
    """

    inputs: list[tf.Tensor]
    labels: Any


def probe(model: Any, data: Any) -> Probe:
    """The inputs, and labels if there are any, in what a user gives to look at a model.

    Args:
        model: a model whose inputs are known.
        data: what `input_values` takes; or a tuple `(x, y ...)` of it, labels and more, as `fit` takes them out of a
            dataset; or a batched tf.data.Dataset of either, of which the first `PROBE` samples are read.

    Raises:
        ValueError: as `check_inputs`; labels of another number of samples.
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


def probe_inputs(model: Any, data: Any) -> list[tf.Tensor]:
    """The inputs of `probe`."""
    return probe(model, data).inputs


def _pair(data):
    """Inputs and labels, or None, of data that may be a tuple of them."""
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


def input_values(model: Any, x: Any) -> list:
    """What `x`, given as the model itself would take it, holds for each of `model.inputs`, in their order.

    Raises:
        ValueError: `x` lacks an input or has another number of them.
    """
    if isinstance(x, dict):
        # Both Kerases keep the inputs of a dict in the order of its sorted keys.
        names = sorted(model.input) if isinstance(model.input, dict) else [tensor.name for tensor in model.inputs]
        if not set(names) <= set(x):
            raise ValueError(f"Expected a dict with the inputs {names} of {model.name!r}. Received: {sorted(x)}")
        return [x[name] for name in names]
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    if len(values) != len(model.inputs):
        raise ValueError(f"Expected {len(model.inputs)} input(s) for {model.name!r}. Received: {len(values)}")
    return values


def check_inputs(model: Any, x: Any) -> list:
    """The arrays or tensors of `x`, one for each of `model.inputs`, if they fit.

    Raises:
        TypeError: no Keras model.
        ValueError: wrong shapes, what is no number or not finite, different numbers of samples, or no sample at all.
    """
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
    except (TypeError, ValueError) as error:  # rows that are not equally long, tensors without numbers
        raise ValueError(f"Expected an array, or what makes one. Received: {type(value).__name__} ({error})") from error


def _check_numbers(value, tensor):
    """Raises a ValueError where an input that takes numbers is given others, or some that are not finite: on which side
    of a cut these lie, nobody can say."""
    dtype = tf.as_dtype(tensor.dtype)
    if not (dtype.is_floating or dtype.is_integer):
        return
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf" and numbers.dtype.name != "bfloat16":
        raise ValueError(f"Expected numbers for {tensor.name!r}. Received: {numbers.dtype.name}")
    # NaN passes through both, and no mask of all inputs has to be made.
    if numbers.size and not np.isfinite([float(numbers.min()), float(numbers.max())]).all():
        raise ValueError(f"Expected finite numbers for {tensor.name!r}. Received: NaN or infinity among them")
