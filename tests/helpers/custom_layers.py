"""Layers, functions and objects as users write them: with unusual configs, shared weights or without a name."""

import functools
import itertools
import types

import numpy as np
import tensorflow as tf

_numbers = itertools.count()


def relu(x):
    """Named like Keras' function, but bounded."""
    return tf.minimum(tf.nn.relu(x), 0.1)


def halved(x):
    return tf.abs(x) * np.float32(0.5)


class Leaky:
    """A callable object, which has no `__name__`."""

    def __call__(self, x):
        return tf.maximum(x, 0.3 * x)


def functions(keras):
    """Activation functions of every form, which are elementwise."""
    own = [keras.ops.abs, keras.ops.silu] if hasattr(keras, "ops") else [tf.square, keras.activations.swish]
    return [
        *(relu, halved, Leaky(), functools.partial(tf.nn.leaky_relu, alpha=0.3), lambda x: tf.sin(x)),
        *("tanh", tf.nn.swish, tf.abs, keras.layers.LeakyReLU(), keras.layers.PReLU(), *own),
    ]


@functools.cache
def of(keras):
    """The custom classes for a Keras version."""
    layers = keras.layers

    class Mismatched(layers.Layer):
        """Its config does not have the names of its arguments."""

        def __init__(self, sr, **options):
            super().__init__(**options)
            self.sample_rate = sr

        def call(self, x):
            return x * (self.sample_rate / 2)

        def get_config(self):
            return super().get_config() | {"sample_rate": self.sample_rate}

    class Unconfigured(layers.Layer):
        """It has no config at all, and a weight that it makes at once."""

        def __init__(self, width, factor):
            super().__init__()
            self.factor = factor
            self.scale = self.add_weight(name="scale", shape=(width,), initializer="ones")

        def call(self, x):
            return x * self.scale * self.factor

    class Renamed(layers.Layer):
        """It has another name whenever it is made."""

        def __init__(self, units, **options):
            super().__init__(name=f"block_{next(_numbers)}")
            self.units, self.dense = units, layers.Dense(units, "relu")

        def build(self, shape):
            self.dense.build(shape)
            self.built = True

        def call(self, x):
            return self.dense(x)

        def compute_output_shape(self, shape):
            return (*shape[:-1], self.units)

        def get_config(self):
            return super().get_config() | {"units": self.units}

    class Tied(layers.Layer):
        """It multiplies by the transposed kernel of another layer, which it does not own and which no config holds."""

        def __init__(self, other, attribute="kernel", **options):
            super().__init__(**options)
            self.other, self.attribute = other, attribute

        def build(self, shape):
            width = getattr(self.other, self.attribute).shape[0]
            self.bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")
            self.built = True

        def call(self, x):
            matrix = tf.convert_to_tensor(getattr(self.other, self.attribute))
            return tf.einsum("...i,oi->...o", x, matrix) + self.bias

    class Holder(layers.Layer):
        """Its config holds the layer that it applies."""

        def __init__(self, inner, **options):
            super().__init__(**options)
            self.inner = inner

        def build(self, shape):
            if not self.inner.built:
                self.inner.build(shape)
            self.built = True

        def call(self, x):
            return self.inner(x)

        def get_config(self):
            return super().get_config() | {"inner": keras.saving.serialize_keras_object(self.inner)}

        @classmethod
        def from_config(cls, config):
            return cls(keras.saving.deserialize_keras_object(config.pop("inner")), **config)

    class Standardised(layers.Conv2D):
        """It replaces an operation on the instance, as published for weight standardisation."""

        def build(self, shape):
            super().build(shape)
            convolve = self.convolution_op

            def standardised(inputs, kernel):
                kernel = tf.convert_to_tensor(kernel)
                mean, variance = tf.nn.moments(kernel, [0, 1, 2], keepdims=True)
                return convolve(inputs, (kernel - mean) / tf.sqrt(variance + 1e-3))

            self.convolution_op = standardised

    class Penalty(keras.regularizers.Regularizer):
        """Without a config."""

        def __call__(self, weight):
            return 0.01 * tf.reduce_sum(tf.square(tf.convert_to_tensor(weight)))

    class Bounded(keras.constraints.Constraint):
        def __call__(self, weight):
            return tf.clip_by_value(tf.convert_to_tensor(weight), -2.0, 2.0)

    class Trainer(keras.Model):
        """A functional model with a train step of its own."""

        def train_step(self, data):
            return {**super().train_step(data), "own": tf.constant(1.0)}

    return types.SimpleNamespace(**{name: value for name, value in locals().items() if isinstance(value, type)})
