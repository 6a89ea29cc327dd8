"""Signs that a training has failed."""

from typing import Any

import tensorflow as tf

from tfspline._keras.constraints import weights


def not_finite(model: Any) -> str | None:
    """Returns the path of the first layer with a NaN or infinite weight or statistic; None if there is none.

    Example:

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="a"), keras.layers.Dense(1, name="b")])
    >>> model.get_layer("b").bias.assign([np.inf]) and not_finite(model)
    'b'
    """
    return next((path for (path, _), weight in weights(model) if not _finite(weight)), None)


def _finite(weight):
    value = tf.convert_to_tensor(weight)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))
