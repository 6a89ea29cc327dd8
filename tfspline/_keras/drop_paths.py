"""Layers of users and other packages that drop whole samples, as Dropout of Keras does with one number for each."""

import functools
import inspect
import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspline._keras.graph import computes_mask, is_symbolic, mask_of
from tfspline._keras.layers import op_name, sublayers
from tfspline._keras.modules import is_model, keras_of
from tfspline._keras.types import KerasLayer, KerasTensor

_SAMPLES = 20_000  # enough to tell the rate
# Layer -> the rank of its input and the numbers that it holds -> its rate as a Dropout; None if it is none.
_rates: Any = weakref.WeakKeyDictionary()


def stock_drop_path(layer: KerasLayer, *inputs: Any) -> Any:
    """The Dropout of Keras that computes what a layer does with these inputs, in training and inference; None without.

    That is found by running the layer on random inputs.
    """
    if len(inputs) != 1 or not is_symbolic(inputs[0]) or not _may_be_one(layer, inputs[0]):
        return None
    rank = len(inputs[0].shape)
    rates, numbers = _rates.setdefault(layer, {}), [value for value in vars(layer).values() if isinstance(value, float)]
    key = rank, *numbers
    if key not in rates:
        rates[key] = _rate(layer, rank, numbers)
    if rates[key] is None:
        return None
    noise_shape = (None, *[1] * (rank - 1))
    return keras_of(layer).layers.Dropout(rates[key], noise_shape=noise_shape, dtype=layer.dtype_policy)


def _may_be_one(layer, x: KerasTensor) -> bool:
    """Whether a layer has no weights, and nothing that a Dropout lacks."""
    if op_name(layer) is not None or is_model(layer) or layer.weights or sublayers(layer) or len(x.shape) < 2:
        return False
    loses_mask = computes_mask(layer) or not layer.supports_masking and mask_of(x) is not None
    training = inspect.signature(layer.call).parameters.get("training")
    inherits = training is not None and training.default in (None, False)
    return inherits and not loses_mask and layer.activity_regularizer is None


def _rate(layer, rank, numbers) -> float | None:
    """Which of some numbers is the rate of a layer; None if it does anything else than drop samples at a rate."""
    x = np.random.default_rng(0).normal(size=(_SAMPLES, *[2] * (rank - 1))) + 3.0
    x = np.asarray(tf.cast(x, layer.compute_dtype))
    try:
        outputs, same = map(np.asarray, tf.function(functools.partial(_run, layer), autograph=False)(x))
    except Exception:  # from the user's code
        return None
    if not np.array_equal(same, x) or outputs.shape != x.shape:
        return None
    if np.array_equal(outputs, x):
        return 0.0
    factors = (outputs / x).reshape(_SAMPLES, -1).astype(float)
    dropped, tolerance = (factors == 0).all(1), 1e-5 if layer.compute_dtype == "float32" else 2e-2
    for rate in (value for value in numbers if 0 < value < 1):
        expected = np.where(dropped, 0, 1 / (1 - rate))[:, None]
        deviation = np.sqrt(rate * (1 - rate) / _SAMPLES)  # of the fraction that is dropped
        is_rate = abs(dropped.mean() - rate) <= 5 * deviation < rate
        if is_rate and np.abs(factors - expected).max() <= tolerance * expected.max():
            return rate
    return None


def _run(layer, x):
    """The outputs of a layer in training and in inference. Its random numbers are from no generator of the user."""
    if not isinstance(layer, keras.layers.Layer):
        return [layer.call(x, training=training) for training in (True, False)]
    state = [variable.value for variable in layer.non_trainable_variables]
    return [layer.stateless_call([], state, x, training=training)[0] for training in (True, False)]
