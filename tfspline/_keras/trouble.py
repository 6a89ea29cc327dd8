"""Finds weights that are not finite, after which training cannot recover."""

import tensorflow as tf

from tfspline._keras.constraints import weights
from tfspline._keras.types import KerasModel


def not_finite(model: KerasModel) -> str | None:
    """The path of the first layer with a weight or moving statistic that is NaN or infinite; None without one.

    Example:

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="a"), keras.layers.Dense(1, name="b")])
    >>> model.get_layer("b").bias.assign([np.inf]) and not_finite(model)
    'b'
    """
    return next((path for (path, _), weight in weights(model) if not _finite(weight)), None)


def _finite(weight):
    value = tf.convert_to_tensor(weight)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))
