"""Constraints that keep entries of weights at zero. Keras calls them after each update of the optimizer."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras


class _Zeros:
    """A constraint that sets a weight to zero where `on` is False and applies the user's own constraint elsewhere."""

    def __init__(self, on, own):
        self.on = tf.Variable(on, trainable=False)  # a variable, so that a traced step sees it change
        self.own = own

    def masked(self, value):
        # A product would leave -0.0, or NaN where a gradient overflowed.
        value = tf.convert_to_tensor(value)
        return tf.where(self.on, value, tf.zeros_like(value))

    def __call__(self, value):
        value = self.masked(value)
        # A norm in the user's constraint is that of the entries that are on.
        return value if self.own is None else self.masked(self.own(value))


def hold(weight: Any, on: np.ndarray) -> bool:
    """Sets a weight to zero where `on` (bool, of its shape) is False, now and after every step of an optimizer.

    Returns whether this added a constraint, so that train steps traced before do not know of it.
    """
    held = is_held(weight)
    if held:
        weight.constraint.on.assign(on)
    else:
        _keras.set_constraint(weight, _Zeros(on, weight.constraint))
    weight.assign(weight.constraint.masked(weight))
    return not held


def is_held(weight: Any) -> bool:
    """Whether `hold` keeps entries of a weight at zero."""
    return isinstance(weight.constraint, _Zeros)


def let_go(weight: Any) -> bool:
    """Zeroes a weight once more, removes the constraint that `hold` added and puts the user's own back.

    Returns whether there was one.
    """
    held = is_held(weight)
    if held:
        weight.assign(weight.constraint.masked(weight))
        _keras.set_constraint(weight, weight.constraint.own)
    return held


def weights(model: Any) -> Iterator[tuple[tuple[str, int], Any]]:
    """Yields the weights of a model, each with its layer's path and its index in `layer.weights`."""
    for path, layer in _keras.layer_paths(model).items():
        if not _keras.is_model(layer):
            for index, weight in enumerate(getattr(layer, "weights", ())):
                yield (path, index), weight
