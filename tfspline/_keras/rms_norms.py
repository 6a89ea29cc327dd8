"""Layers of users that compute what Keras' own RMSNormalization does."""

import inspect
import weakref
from typing import Any

import keras
import numpy as np

from tfspline._keras.layers import builtin_class_name, op_name, sublayers
from tfspline._keras.modules import is_model
from tfspline._keras.types import KerasLayer

_SHAPES = (2, 3), (2, 1, 3)  # in front of the channels
_SCALES = 1e-3, 1.0, 30.0  # of random inputs; epsilon matters for the small ones
_epsilons: Any = weakref.WeakKeyDictionary()  # layer -> its epsilon as an RMSNormalization, or None


def is_rms_norm(layer: KerasLayer) -> bool:
    """Whether a user's layer computes what an RMSNormalization of Keras 3 with its weight does.

    That is found by running the layer on random inputs with random weights.
    """
    if layer not in _epsilons:
        _epsilons[layer] = _epsilon(layer) if _may_be_one(layer) else None
    return _epsilons[layer] is not None


def stock_rms_norm(layer: KerasLayer) -> Any:
    """The RMSNormalization that has the weight of a layer of which `is_rms_norm` is true."""
    stock = keras.layers.RMSNormalization(epsilon=_epsilons[layer], dtype=layer.dtype_policy, name=layer.name)
    (stock.scale,), stock.built = layer.weights, True
    stock.trainable = layer.trainable
    return stock


def _may_be_one(layer) -> bool:
    """Whether a layer has one weight [channels] and nothing that an RMSNormalization lacks."""
    if not isinstance(layer, keras.layers.Layer) or is_model(layer) or op_name(layer) or not layer.built:
        return False
    if builtin_class_name(layer) is not None or sublayers(layer) or len(layer.weights) != 1:
        return False
    (weight,) = layer.weights
    own_mask = layer.supports_masking or type(layer).compute_mask is not keras.layers.Layer.compute_mask
    regularized = layer.activity_regularizer is not None or weight.regularizer is not None
    parameters = inspect.signature(layer.call).parameters.values()
    takes_one = len(parameters) == 1 and all(one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters)
    return len(weight.shape) == 1 and takes_one and not own_mask and not regularized


def _epsilon(layer) -> float | None:
    """The attribute of a layer that is its epsilon as an RMSNormalization; None if it is none."""
    rng, (channels,) = np.random.default_rng(0), layer.weights[0].shape
    tolerance = 1e-5 if layer.compute_dtype == "float32" else 2e-2
    epsilons = {value for value in vars(layer).values() if isinstance(value, float)}
    for shape in _SHAPES:
        for size in _SCALES:
            x, weight = rng.normal(0, size, (*shape, channels)), rng.normal(size=channels)
            x, weight = (np.asarray(keras.ops.cast(value, layer.compute_dtype), float) for value in (x, weight))
            outputs = _run(layer, x, weight)
            if outputs is None or outputs.shape != x.shape:
                return None
            expected = {e: x / np.sqrt(np.square(x).mean(-1, keepdims=True) + e) * weight for e in epsilons}
            largest = np.abs(outputs).max()
            epsilons = {e for e in epsilons if np.abs(outputs - expected[e]).max() <= tolerance * largest}
    return min(epsilons, default=None)


def _run(layer, x, weight) -> np.ndarray | None:
    """The output of a layer with another weight; None if it fails."""
    weights = [keras.ops.cast(weight, layer.weights[0].dtype)]
    trainable, others = (weights, []) if layer.trainable_variables else ([], weights)
    try:
        outputs, _ = layer.stateless_call(trainable, others, keras.ops.cast(x, layer.compute_dtype))
        return np.asarray(keras.ops.cast(outputs, "float32"), float)
    except Exception:  # from the user's code
        return None
