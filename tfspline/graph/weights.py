"""Values of weights, and what BatchNormalization does in inference."""

import numpy as np
import tensorflow as tf

from tfspline._keras.types import KerasLayer, KerasVariable


def value_of(variable: KerasVariable) -> np.ndarray:
    """A weight as float32, whatever its dtype. Do not write to it: it may share the weight's memory."""
    return np.asarray(tf.cast(tf.convert_to_tensor(variable), tf.float32))


def folded(bn: KerasLayer) -> tuple[np.ndarray, np.ndarray]:
    """The slope and shift of each channel of a BatchNormalization in inference: y = slope * x + shift."""
    slope = 1 / np.sqrt(value_of(bn.moving_variance) + bn.epsilon)
    if bn.gamma is not None:
        slope = slope * value_of(bn.gamma)
    shift = -value_of(bn.moving_mean) * slope
    return slope, shift + value_of(bn.beta) if bn.beta is not None else shift
