"""Functions in a layer's config that hold an array, so that they work only for a weight of one shape.

An initializer is not needed any more when a weight is cut. A regularizer and a constraint are, so the weight stays.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer


def initializers(layer: KerasLayer, shapes: list[tuple[int, ...]]) -> list[str]:
    """The config entries of initializers that cannot make the layer's weights with these shapes."""
    keys = []
    for weight, shape in zip(_keras.weights(layer), shapes, strict=True):
        key, function = _function(layer, weight.name.split("/")[-1].split(":")[0], "initializer")
        if _may_hold_an_array(function) and _result(function, shape, dtype="float32") != shape:
            keys.append(key)
    return keys


def holder(layer: KerasLayer, weight: str, axis: int) -> str | None:
    """The regularizer or constraint of a weight, by its path in the layer, that prevents cuts along an axis."""
    *owners, name = weight.split(".")
    owner = _keras.weight(layer, ".".join(owners)) if owners else layer
    grown = tuple(size + (i == axis) for i, size in enumerate(_keras.weight(layer, weight).shape))
    key, function = _function(owner, name, "regularizer")
    if _may_hold_an_array(function) and _result(function, tf.ones(grown)) is None:
        return key
    key, function = _function(owner, name, "constraint")
    return key if _may_hold_an_array(function) and _result(function, tf.ones(grown)) != grown else None


def regularizes(layer: KerasLayer, shape: tuple[int, ...]) -> bool:
    """Whether the layer's `activity_regularizer`, if it has one, works for an output of that shape."""
    function: Any = getattr(layer, "activity_regularizer", None)
    return not _may_hold_an_array(function) or _result(function, tf.ones(shape)) is not None


def _function(layer, weight, kind) -> tuple[str, Any]:
    """The initializer, regularizer or constraint of a weight, and the name of its config entry."""
    names = ["depthwise"] if weight in ("kernel", "depthwise_kernel") else [weight.removesuffix("_kernel")]
    for key in (f"{name}_{kind}" for name in (*names, weight)):
        for attribute in (key, f"_{key}"):  # MultiHeadAttention has no public one
            if getattr(layer, attribute, None) is not None:
                return key, getattr(layer, attribute)
    return "", None


def _may_hold_an_array(function: Any) -> bool:
    """Whether a function is a user's, or Keras' Constant."""
    module = getattr(function, "__module__", None) or type(function).__module__
    of_keras = module.split(".")[0] in ("keras", "tf_keras") and type(function).__name__ != "Constant"
    return callable(function) and not of_keras


def _result(function: Callable, *args: Any, **kwargs: Any) -> tuple[int, ...] | None:
    """The shape of what a function returns; None if it fails."""
    try:
        return tuple(np.shape(function(*args, **kwargs)))
    except Exception:  # whatever a user's function raises for another shape
        return None
