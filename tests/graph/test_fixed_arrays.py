"""Arrays of a fixed shape in initializers, regularizers and constraints."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import EXACT, between, trains
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline.graph import fixed_arrays
from tfspline.graph.reader import read


class Fixed:
    """An initializer, regularizer or constraint that holds an array."""

    def __init__(self, array):
        self.array = array

    def __call__(self, value, dtype=None, **options):
        return self.array if isinstance(value, (tuple, list, tf.TensorShape)) else value * self.array

    def get_config(self):
        return {"array": np.asarray(self.array).tolist()}


class Total(Fixed):
    """A regularizer that holds an array."""

    def __call__(self, value):
        return 1e-3 * tf.reduce_sum(tf.convert_to_tensor(value) * self.array)


FIXED_INITIALIZERS = {
    "constant": lambda keras, array: keras.initializers.Constant(array),
    "class": lambda keras, array: Fixed(array),
    "lambda": lambda keras, array: lambda shape, dtype=None, **options: tf.constant(array),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("form", FIXED_INITIALIZERS)
def test_initializers_that_return_an_array(keras, rng, form):
    def made(*shape):
        return FIXED_INITIALIZERS[form](keras, rng.normal(size=shape).astype("float32"))

    layers, inputs = keras.layers, keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 1, kernel_initializer=made(1, 1, 3, 8), bias_initializer=made(8), name="before")(inputs)
    x = layers.BatchNormalization(gamma_initializer=made(8))(x)
    x = layers.PReLU(alpha_initializer=made(4, 4, 8))(x)
    x = layers.DepthwiseConv2D(2, depthwise_initializer=made(2, 2, 8, 1))(x)
    x = layers.LSTM(4, kernel_initializer=made(8, 16))(layers.Reshape((9, 8))(x))
    model = scramble(keras.Model(inputs, layers.Dense(2)(x)), rng)
    plan, x = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    slim = plan.apply(model)
    plan.masks.apply(model)
    assert difference(model(x), slim(x)) <= EXACT and slim.get_layer("before").filters == 4
    trains(slim, rng)


def test_initializers_that_fit_are_kept(keras):
    fits = Fixed(np.ones((3, 8), "float32"))
    model = between(keras, (6, 8), lambda x: x)
    layer = model.get_layer("before")
    layer.kernel_initializer, layer.bias_initializer = fits, lambda shape, dtype=None: tf.zeros(shape)
    assert fixed_arrays.initializers(layer, [(3, 8), (8,)]) == []
    assert fixed_arrays.initializers(layer, [(3, 4), (4,)]) == ["kernel_initializer"]


HELD = {
    "kernel_regularizer": (3, 8), "bias_regularizer": (8,), "kernel_constraint": (3, 8), "bias_constraint": (8,),
    "activity_regularizer": (6, 8),
}  # fmt: skip


@pytest.mark.sweep(2)
@pytest.mark.parametrize("key", HELD)
def test_arrays_in_regularizers_and_constraints_protect_by_name(keras, rng, key):
    def why(shape):
        model = between(keras, (6, 8), lambda x: x)
        setattr(model.get_layer("before"), key, kind(np.ones(shape, "float32")))
        return {group.name: group.protected for group in read(model).groups}["before"]

    kind = Total if "regularizer" in key else Fixed
    assert f"the '{key}' of 'before' works only for the" in why(HELD[key])
    assert why([1] * len(HELD[key])) is None
