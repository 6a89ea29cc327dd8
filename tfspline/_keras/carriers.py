"""`Weight`: a layer that holds one weight, for the weights that a composite layer holds itself when it is unrolled."""

import functools
from types import ModuleType
from typing import Any

import tensorflow as tf

from tfspline._keras.types import KerasLayer, KerasVariable


class Carrier:
    """What the classes `Weight` of all Keras versions have in common."""


@functools.cache
def weight_class(module: ModuleType) -> Any:
    """The class `Weight` of a Keras version, registered so that saved models with such layers can be loaded."""

    base: Any = module.layers.Layer

    @module.utils.register_keras_serializable("tfspline")
    class Weight(Carrier, base):
        """Returns its one weight, whatever it is called on."""

        def __init__(self, weight_shape, **kwargs):
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

    return Weight


def carrier(module: ModuleType, weight: KerasVariable, layer: KerasLayer, name: str) -> KerasLayer:
    """A layer `Weight` that holds a weight of another layer."""
    new = weight_class(module)(tuple(weight.shape), dtype=layer.dtype_policy, name=name)
    new.weight, new.built = weight, True
    new.trainable = layer.trainable
    return new
