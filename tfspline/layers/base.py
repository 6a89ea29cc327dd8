"""The part of SplineUnit that both Keras versions share: everything but the normalization itself."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.constraints import hold
from tfspline._keras.types import Data, KerasLayer, KerasVariable
from tfspline.graph.layer_specs.registry import LAYERS, activation_of, register
from tfspline.graph.piecewise import PiecewiseAffine
from tfspline.spline.codes import code_bits, pack_bits

ACTIVATIONS = ("relu", "leaky_relu", "relu6")  # monotonic, and zero at zero


class SplineUnitBase:
    """A mixin that applies an activation after the BatchNormalization of either Keras version."""

    name: str
    built: bool
    gamma: KerasVariable | None
    beta: KerasVariable | None
    __call__: Callable[..., tf.Tensor]

    def __init__(self, activation: str | Callable | KerasLayer | dict | None = "relu", **kwargs):
        super().__init__(**kwargs)
        self.activation = self._as_layer(activation)

    def _as_layer(self, activation):
        module = _keras.keras_of(self)
        if activation is None or activation in ("linear", module.activations.linear):
            return None
        if isinstance(activation, dict):
            activation = module.saving.deserialize_keras_object(activation)
        if not isinstance(activation, module.layers.Layer):
            name = f"{self.name}_{getattr(activation, '__name__', activation)}"
            activation = module.layers.Activation(activation, name=name, dtype=self.dtype_policy)
        if not is_activation(activation):
            raise ValueError(
                f"Expected `activation` to be one of {ACTIVATIONS}, a layer that computes one of them without a "
                f"threshold, or None. Received: {activation!r}"
            )
        return activation

    def call(self, inputs, training=None, mask=None):
        """Normalize the inputs and apply the activation."""
        z = super().call(inputs, training=training, mask=mask)
        return z if self.activation is None else self.activation(z)

    def get_config(self):
        """Return the config of BatchNormalization with the activation added."""
        module = _keras.keras_of(self)
        return super().get_config() | {"activation": module.saving.serialize_keras_object(self.activation)}

    @property
    def code_name(self) -> str:
        """The name of this layer's code in `tfspline.region_codes`: that of the activation layer."""
        return self.name if self.activation is None else self.activation.name

    def region_code(self, x: Data) -> tf.Tensor:
        """Compute the layer's part of `tfspline.region_codes` for its inputs `[samples, ...]`, in inference mode.

        Returns uint8 `[samples, ceil(bits / 8)]`, packed as in `tfspline.Codes`. Raises a ValueError if the layer has
        no activation, and therefore no code.
        """
        pieces = activation_of(self)
        if not isinstance(pieces, PiecewiseAffine):
            raise ValueError(
                f"SplineUnit {self.name!r} has no region code because it has no `activation`. Give it one."
            )
        return pack_bits(code_bits(pieces.bits_of_output(self(x, training=False))))

    @property
    def channel_mask(self) -> np.ndarray:
        """Which channels are on, bool `[channels]`. A channel that is off has zero gamma and beta, and outputs zero.

        Assigning a mask sets the weights to zero and keeps them there in training, by the constraints that
        `tfspline.Masks.apply` uses. Assign it before the train function is traced, or use `tfspline.Masks`, which takes
        care of that for a whole model. A channel that is switched on again starts from zero. The layer must be built
        and have a gamma.
        """
        return np.any([weight.numpy() != 0 for weight in self._scales()], axis=0)

    @channel_mask.setter
    def channel_mask(self, on):
        gamma, *_ = scales = self._scales()
        on = np.asarray(on)
        if on.dtype != bool or on.shape != tuple(gamma.shape):
            raise ValueError(
                f"Expected `channel_mask` to be bool of shape {tuple(gamma.shape)}. "
                f"Received: {on.dtype.name} of shape {on.shape}"
            )
        for weight in scales:
            hold(weight, on)

    def _scales(self):
        if not self.built or self.gamma is None:
            reason = "it was made with scale=False" if self.built else "it is not built; call the layer once"
            raise ValueError(f"SplineUnit {self.name!r} has no gamma, which `channel_mask` needs: {reason}")
        return [self.gamma] if self.beta is None else [self.gamma, self.beta]


# The weights are per channel, as in BatchNormalization, and the activation acts on each number alone.
register(SplineUnitBase, LAYERS["BatchNormalization"])


def is_activation(layer: KerasLayer) -> bool:
    """Whether a SplineUnit supports an activation layer: piecewise affine, monotonic, and zero at zero."""
    name = _keras.builtin_class_name(layer)
    if name == "ReLU":
        return not layer.threshold
    if name == "LeakyReLU":
        slope = layer.negative_slope if hasattr(layer, "negative_slope") else layer.alpha  # tf_keras calls it alpha
        return bool(slope >= 0)
    return name == "Activation" and _keras.function_name(layer.activation) in ("relu", "leakyrelu", "relu6")
