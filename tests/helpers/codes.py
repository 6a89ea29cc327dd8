"""Pre-activations with known bits, and models that apply layers to them."""

import numpy as np

from tfspline.spline.codes import region_codes

Z = np.array([[-7.0, -1.0, 0.0, 0.5, 6.0, 6.5]], "float32")
POSITIVE = [0, 0, 0, 1, 1, 1]
AT_SIX = [0, 0, 0, 0, 1, 1]


def codes_of(keras, *stack, x=Z, **kwargs):
    """The codes of a model of the given layers and a linear head on `x`."""
    model = keras.Sequential([keras.Input(x.shape[1:]), *stack, keras.layers.Dense(1)])
    return region_codes(model, x, **kwargs)


def dense(keras, activation):
    """A Dense layer with an identity kernel and the given activation."""
    return keras.layers.Dense(6, activation=activation, use_bias=False, kernel_initializer="identity", name="unit")
