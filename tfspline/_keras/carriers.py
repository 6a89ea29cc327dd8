"""Layers that hold what a composite layer has besides layers when it is unrolled.

`Weight` holds one of its own weights, `Constant` a tensor on which it calls a layer with weights, such as positions.
"""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import tensorflow as tf

from tfspline._keras.types import KerasLayer, KerasVariable


class Carrier:
    """What the classes `Weight` and `Constant` of all Keras versions have in common."""


@functools.cache
def carrier_classes(module: ModuleType) -> Any:
    """The classes `Weight` and `Constant` of a Keras version, registered: saved models with such layers can be loaded.

    `tfspline.layers` makes them for each Keras version, which must happen before such a model is loaded.
    """
    base: Any = module.layers.Layer

    @module.utils.register_keras_serializable("tfspline")
    class Weight(Carrier, base):
        """Returns its one weight, whatever it is called on."""

        def __init__(self, weight_shape: Sequence[int], **kwargs: Any):
            super().__init__(**kwargs)
            self.weight_shape = tuple(weight_shape)
            self.weight = None

        def build(self, input_shape):
            """Adds the weight."""
            if self.weight is None:
                self.weight = self.add_weight(name="weight", shape=self.weight_shape, initializer="zeros")
            self.built = True

        def call(self, inputs):
            """Return the weight."""
            return tf.convert_to_tensor(self.weight)

        def get_config(self):
            """Return the config."""
            return super().get_config() | {"weight_shape": self.weight_shape}

    @module.utils.register_keras_serializable("tfspline")
    class Constant(Carrier, base):
        """Returns a constant, whatever it is called on: `value`, a nested list of numbers, as a tensor of a type."""

        def __init__(self, value: list | float, value_dtype: str, **kwargs: Any):
            super().__init__(**kwargs)
            self.value, self.value_dtype = value, value_dtype

        def call(self, inputs):
            """Return the constant."""
            return tf.constant(self.value, self.value_dtype)

        def get_config(self):
            """Return the config."""
            return super().get_config() | {"value": self.value, "value_dtype": self.value_dtype}

    return Weight, Constant


def carrier(module: ModuleType, weight: KerasVariable, layer: KerasLayer, name: str) -> KerasLayer:
    """A layer `Weight` that holds a weight of another layer."""
    new = carrier_classes(module)[0](tuple(weight.shape), dtype=layer.dtype_policy, name=name)
    new.weight, new.built = weight, True
    new.trainable = layer.trainable
    return new


def constant(module: ModuleType, value: Any, name: str) -> KerasLayer:
    """A layer `Constant` that returns a tensor or array."""
    value = tf.convert_to_tensor(value)
    return carrier_classes(module)[1](value.numpy().tolist(), value.dtype.name, name=name)
