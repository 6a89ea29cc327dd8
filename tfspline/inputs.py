"""The inputs that a user gives to look at a model: arrays, lists, dicts or a tf.data.Dataset."""

from typing import Any

import numpy as np
import tensorflow as tf

PROBE = 1024  # samples that are taken of a tf.data.Dataset, which may have no end


def probe_inputs(model: Any, data: Any) -> list[tf.Tensor]:
    """Unlabelled inputs of a model, one tensor for each of `model.inputs`, as the model takes them.

    Args:
        model: a model whose inputs are known.
        data: what `input_values` takes; or a batched tf.data.Dataset of it, or of tuples `(x, y ...)` as `fit` takes
            them, of which the first `PROBE` samples are read.

    Raises:
        ValueError: as `check_inputs`.
    """
    if isinstance(data, tf.data.Dataset):
        data = _first_samples(model, data)
    values = check_inputs(model, data)
    return [tf.cast(value, tensor.dtype) for value, tensor in zip(values, model.inputs, strict=True)]


def _first_samples(model, data):
    batches, samples = [], 0
    for batch in data:
        batches.append(input_values(model, batch[0] if isinstance(batch, tuple) else batch))
        samples += len(batches[-1][0])
        if samples >= PROBE:
            break
    if not batches:
        raise ValueError("Expected a dataset with at least one batch. Received: an empty one")
    return [tf.concat(values, 0)[:PROBE] for values in zip(*batches, strict=True)]


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
        ValueError: wrong shapes, different numbers of samples, or no sample at all.
    """
    values = [value if tf.is_tensor(value) else np.asarray(value) for value in input_values(model, x)]
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
    return values
