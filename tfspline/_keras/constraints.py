"""Constraints that keep entries of weights at zero: Keras' optimizers call them after each update."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras


class _Zeros:
    """A weight's constraint: zero where `on` is False, and elsewhere what the user's own constraint makes of it."""

    def __init__(self, on, own):
        self.on = tf.Variable(on, trainable=False)  # a variable, so that a step that was traced sees it change
        self.own = own

    def masked(self, value):
        # A product would leave -0.0, and NaN where a gradient overflowed.
        value = tf.convert_to_tensor(value)
        return tf.where(self.on, value, tf.zeros_like(value))

    def __call__(self, value):
        value = self.masked(value)
        # A norm that the user's constraint looks at is that of what is left.
        return value if self.own is None else self.masked(self.own(value))


def hold(weight: Any, on: np.ndarray) -> bool:
    """Makes a weight zero where `on`, bool of its shape, is False, now and after every step of an optimizer; returns
    whether it had no constraint for this yet, so that what was traced before knows nothing of it."""
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
    """Takes off what `hold` has hung on a weight, and puts the user's own constraint back; the zeros are made once
    more. Returns whether there was anything."""
    held = is_held(weight)
    if held:
        weight.assign(weight.constraint.masked(weight))
        _keras.set_constraint(weight, weight.constraint.own)
    return held


def weights(model: Any) -> Iterator[tuple[tuple[str, int], Any]]:
    """The weights of a model, each with its layer's path and its place in `layer.weights`."""
    for path, layer in _keras.layer_paths(model).items():
        if not _keras.is_model(layer):
            for index, weight in enumerate(getattr(layer, "weights", ())):
                yield (path, index), weight
