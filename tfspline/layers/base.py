"""What the SplineUnits of both Kerases have in common: all but the batch normalization itself."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.constraints import hold
from tfspline.graph.layer_specs import batch_normalization, register_channel_rule
from tfspline.spline.activations import shape_of
from tfspline.spline.codes import code_bits, pack_bits

ACTIVATIONS = ("relu", "leaky_relu", "relu6")  # rising, and zero at zero


class SplineUnitBase:
    """BatchNormalization with an activation behind it; mixed into a BatchNormalization of either Keras."""

    def __init__(self, activation: Any = "relu", **kwargs):
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
                f"Expected an activation of {ACTIVATIONS}, None, or such a layer without a threshold. "
                f"Received: {activation!r}"
            )
        return activation

    def call(self, inputs, training=None, mask=None):
        """The inputs normalized, then activated."""
        z = super().call(inputs, training=training, mask=mask)
        return z if self.activation is None else self.activation(z)

    def get_config(self):
        """BatchNormalization's config and the activation."""
        module = _keras.keras_of(self)
        return super().get_config() | {"activation": module.saving.serialize_keras_object(self.activation)}

    @property
    def code_name(self) -> str:
        """What its code is called in `tfspline.region_codes`: as that of the activation's layer."""
        return self.name if self.activation is None else self.activation.name

    def region_code(self, x: Any) -> tf.Tensor:
        """On which side of its cuts each unit is, in inference mode: the layer's part of `tfspline.region_codes`.

        Args:
            x: the layer's inputs, `[samples, ...]`.

        Returns:
            uint8 `[samples, ceil(bits / 8)]`, packed as `tfspline.Codes` has them.

        Raises:
            ValueError: the layer has no activation, and so no cuts.
        """
        if self.activation is None:
            raise ValueError(f"Expected a SplineUnit with an activation. Received: {self.name!r}, which has none")
        return pack_bits(code_bits(shape_of(self).bits_of_output(self(x, training=False))))

    @property
    def channel_mask(self) -> np.ndarray:
        """Which channels are on, bool [channels]: one that is off has gamma and beta zero, so that it emits zero.

        Set, it switches channels off and keeps them off in training, by the constraints that `tfspline.Masks.apply`
        uses. Like these it has to be set before the train function is traced; whole models are for `Masks`, which
        sees to that. A channel that is on again starts from zero.

        Raises:
            ValueError: the layer is not built or has no gamma, or a mask that is not bool [channels].
        """
        return np.any([weight.numpy() != 0 for weight in self._scales()], axis=0)

    @channel_mask.setter
    def channel_mask(self, on):
        gamma, *_ = scales = self._scales()
        on = np.asarray(on)
        if on.dtype != bool or on.shape != tuple(gamma.shape):
            raise ValueError(f"Expected bool {list(gamma.shape)}. Received: {on.dtype.name} {list(on.shape)}")
        for weight in scales:
            hold(weight, on)

    def _scales(self):
        if not self.built or self.gamma is None:
            state = "it has no scale" if self.built else "it is not built"
            raise ValueError(
                f"Expected a SplineUnit with a gamma, to mask channels by. Received: {self.name!r}, {state}"
            )
        return [self.gamma] if self.beta is None else [self.gamma, self.beta]


# Its weights travel with their channels as those of BatchNormalization do, and it acts on each number alone.
register_channel_rule(SplineUnitBase, batch_normalization)


def is_activation(layer: Any) -> bool:
    """Whether an activation layer can be part of a SplineUnit: piecewise affine, rising, and zero at zero."""
    name = _keras.builtin_class_name(layer)
    if name == "ReLU":
        return not layer.threshold
    if name == "LeakyReLU":
        return getattr(layer, "negative_slope", getattr(layer, "alpha", None)) >= 0  # tf_keras calls it alpha
    return name == "Activation" and _keras.activation_name(layer) in ACTIVATIONS
