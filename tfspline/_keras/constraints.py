"""Constraints that keep entries of weights at zero. Optimizers apply them after each update."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasModel, KerasVariable


class _Zeros:
    """A constraint that sets entries to zero where `on` is False, and applies the user's own constraint to the rest."""

    def __init__(self, on, own):
        self.on = tf.Variable(on, trainable=False)  # a variable, so that traced train steps see it change
        self.own = own

    def masked(self, value):
        # A product would leave -0.0, and NaN where a gradient overflowed.
        value = tf.convert_to_tensor(value)
        return tf.where(self.on, value, tf.zeros_like(value))

    def __call__(self, value):
        value = self.masked(value)
        # Masked first, so that the user's constraint computes norms of the remaining entries only.
        return value if self.own is None else self.masked(self.own(value))


def hold(weight: KerasVariable, on: np.ndarray) -> bool:
    """Keeps a weight at zero where `on`, bool of its shape, is False, now and after every optimizer step.

    Returns:
        Whether the weight got a new constraint, so that train steps traced before do not apply it.
    """
    held = is_held(weight)
    if held:
        weight.constraint.on.assign(on)
    else:
        _keras.set_constraint(weight, _Zeros(on, weight.constraint))
    weight.assign(weight.constraint.masked(weight))
    return not held


def is_held(weight: KerasVariable) -> bool:
    """Whether `hold` keeps entries of a weight at zero."""
    return isinstance(weight.constraint, _Zeros)


def let_go(weight: KerasVariable) -> bool:
    """Removes the constraint of `hold` from a weight and restores the user's own. Zeros stay zero until the next step.

    Returns:
        Whether the weight had such a constraint.
    """
    held = is_held(weight)
    if held:
        weight.assign(weight.constraint.masked(weight))
        _keras.set_constraint(weight, weight.constraint.own)
    return held


def weights(model: KerasModel) -> Iterator[tuple[tuple[str, int], Any]]:
    """Yields the weights of a model, each with the path of its layer and its index in `layer.weights`."""
    for path, layer in _keras.layer_paths(model).items():
        if not _keras.is_model(layer):
            for index, weight in enumerate(getattr(layer, "weights", ())):
                yield (path, index), weight
