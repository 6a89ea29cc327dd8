"""Code of users whose operations are looked at: functions, and custom layers with and without weights."""

import functools

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import cut_and_trained, group_of

import tfspline
from tfspline.graph.layer_specs.elementwise_trace import is_elementwise
from tfspline.graph.layer_specs.registry import UNKNOWN, spec_of

ELEMENTWISE = {
    "hard swish": lambda x: x * tf.nn.relu6(x + 3) / 6,
    "of Keras": lambda x: x * keras3.ops.sigmoid(1.702 * x),
    "approximate gelu": functools.partial(keras3.activations.gelu, approximate=True),
    "custom gradient": lambda x: tf.nn.silu(x) - tf.stop_gradient(x),
    "where": lambda x: tf.where(x > 0, x, tf.zeros_like(x)),
    "tf.function": tf.function(lambda x: tf.square(tf.nn.relu(x))),
    "random factor": lambda x: x * tf.random.uniform([]),
}
MIXING = {
    "softmax": tf.nn.softmax,
    "mean": lambda x: x - tf.reduce_mean(x),
    "number of channels": lambda x: x / tf.cast(tf.shape(x)[-1], tf.float32),
    "positions": lambda x: x * tf.cast(tf.range(tf.shape(x)[-1]), tf.float32),
    "array": lambda x: x * tf.constant([1.0, 2.0]),
    "slice": lambda x: x[..., ::-1],
    "known size": lambda x: x / x.shape[-1],
    "seed": lambda x: x * tf.random.stateless_uniform([], tf.cast([tf.reduce_sum(x), 1.0], tf.int32)),
    "Python": lambda x: tf.numpy_function(np.sort, [x], tf.float32),
}


@pytest.mark.parametrize("what", [*ELEMENTWISE, *MIXING])
def test_operations_tell_whether_a_function_acts_on_each_number(what):
    assert is_elementwise({**ELEMENTWISE, **MIXING}[what]) == (what in ELEMENTWISE)


def test_units_go_through_functions_and_leaf_layers_of_users(keras, rng):
    ops = keras3.ops if keras is keras3 else tf.math

    class DropPath(keras.layers.Layer):
        def call(self, x, training=None):
            if not training:
                return x
            sizes = (tf.shape(x)[0],) + (1,) * (len(x.shape) - 1)
            return x / 0.8 * tf.floor(0.8 + tf.random.uniform(sizes, dtype=x.dtype))

    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.gamma = self.add_weight(name="gamma", shape=shape[-1:], initializer="ones")
            self.shift = self.add_weight(name="shift", shape=(), initializer="ones")

        def call(self, x):
            return x * self.gamma + self.shift

    class Swish(keras.layers.Layer):
        def call(self, x):
            return x * ops.sigmoid(x)

    center = lambda x: x - (ops.mean if keras is keras3 else ops.reduce_mean)(x, [1, 2], keepdims=True)  # noqa: E731
    clipped = keras.layers.Lambda(lambda x: tf.maximum(x, -0.1))
    added = keras.layers.Lambda(lambda parts: parts[0] + parts[1])
    x = inputs = keras.Input((4, 4, 3))
    for layer in (keras.layers.Conv2D(8, 3, activation=ELEMENTWISE["hard swish"], name="conv"), DropPath(), Scale()):
        x = layer(x)
    x = keras.layers.Lambda(center)(clipped(keras.layers.Activation(ELEMENTWISE["where"])(Swish()(x))))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(added([x, x]))))
    plan, slim = cut_and_trained(model, rng)
    assert group_of(plan, "conv") == (8, 4, None)
    kept = {type(layer).__name__ for layer in slim.layers}
    assert "DropPath" in kept and not kept & {"Scale", "Swish"}  # the call of DropPath branches on `training`


def test_leaf_layers_that_may_mix_channels_protect(keras):
    class Sorted(keras.layers.Layer):
        def call(self, x):
            return tf.sort(x)

    class Odd(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.nn.softmax(x) if training else tf.nn.relu(x)

    class Singular(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.sqrt(x) if training is None else tf.sqrt(tf.abs(x))

    for layer in (Sorted, Odd, Singular):
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8), layer(), keras.layers.Dense(2)])
        with pytest.raises(ValueError, match="No unit"):
            tfspline.plan(model, 0.5)


def test_layer_that_joins_a_graph_later_is_looked_at_again(keras):
    class Halves(keras.layers.Layer):
        def call(self, x, training=None):
            return 0.5 * x if training else x / 2

    layer = Halves()
    assert spec_of(layer) is UNKNOWN
    layer(keras.Input((3,)))
    assert spec_of(layer).elementwise
