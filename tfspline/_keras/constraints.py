"""The weights of a model, and constraints that keep entries of them at zero. Optimizers apply constraints after each
update."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspline._keras.graph import layer_paths
from tfspline._keras.layers import builtin_class_name
from tfspline._keras.layers import weights as weights_of
from tfspline._keras.modules import is_model, of_class
from tfspline._keras.types import KerasModel, KerasVariable


class Zeros:
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

    Returns whether the weight got a new constraint, which train steps traced before do not apply.
    """
    held = is_held(weight)
    if held:
        weight.constraint.on.assign(on)
    else:
        _set_constraint(weight, Zeros(on, weight.constraint))
    weight.assign(weight.constraint.masked(weight))
    return not held


def is_held(weight: KerasVariable) -> bool:
    """Whether `hold` keeps entries of a weight at zero."""
    return isinstance(weight.constraint, Zeros)


def let_go(weight: KerasVariable) -> bool:
    """Removes the constraint of `hold` from a weight, restores the user's own, and returns whether there was one.

    Zeros stay zero until the next step.
    """
    held = is_held(weight)
    if held:
        weight.assign(weight.constraint.masked(weight))
        _set_constraint(weight, weight.constraint.own)
    return held


def _set_constraint(variable: KerasVariable, constraint: Callable | None) -> None:
    if isinstance(variable, keras.Variable):
        variable.constraint = constraint
        return
    # tf_keras has no public way to set the constraint of an existing weight. `constraint` of a tf.Variable reads
    # `_constraint`. Mixed precision wraps the variable, and a strategy has one for each replica.
    variable = getattr(variable, "_variable", variable)
    for copy in getattr(variable, "values", [variable]):
        copy._constraint = constraint


def weights(model: KerasModel) -> Iterator[tuple[tuple[str, int], Any]]:
    """Yields the weights of a model, each once: the path of its first layer, its index in `_keras.weights`, and it."""
    seen = set()
    for path, layer in layer_paths(model).items():
        if not is_model(layer):
            for index, weight in enumerate(weights_of(layer)):
                if id(weight) not in seen:
                    seen.add(id(weight))
                    yield (path, index), weight


def not_finite(model: KerasModel) -> str | None:
    """The path of the first layer with NaN or infinite weights or a negative variance, or None. Training cannot recover
    from them."""
    layers = layer_paths(model)
    for (path, _), weight in weights(model):
        layer, value = layers[path], np.asarray(tf.convert_to_tensor(weight))
        if not tf.as_dtype(value.dtype).is_floating:
            continue
        norm = of_class(layer, "BatchNormalization")
        if not (weight.trainable or norm or builtin_class_name(layer)):
            value = value[~np.isinf(value)]  # may be the mask of an attention
        if norm and weight is layer.moving_variance:
            with np.errstate(divide="ignore", invalid="ignore"):
                value = np.stack([value, 1 / np.sqrt(value.astype(np.float32) + layer.epsilon)])
        if not np.isfinite(value).all():
            return path
    return None


def check_finite(model: KerasModel) -> None:
    """Raises a ValueError that names the layer if `not_finite` finds one."""
    path = not_finite(model)
    if path is not None:
        raise ValueError(
            f"Layer {path!r} has NaN or Inf weights, or a negative variance, so nothing can be said about the units of "
            f"{model.name!r}. Load weights from before the training diverged, or assign finite numbers to the layer."
        )
