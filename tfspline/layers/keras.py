"""SplineUnit for Keras 3."""

import keras
import tensorflow as tf

from tfspline import _keras
from tfspline.layers.base import SplineUnitBase

Weight, Constant = _keras.carrier_classes(keras)
_FUSED_DTYPES = ("float16", "bfloat16", "float32")


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras 3's BatchNormalization, computed by TensorFlow's fused kernel instead of op by op.

    Keras' own implementation runs where the kernel does not apply (an axis other than the last, float64, masked inputs,
    `renorm`, `synchronized`), and for inputs `[batch, features]`, where it is usually faster.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalize the inputs."""
        if not self._fusable(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        gamma = _float32(self.gamma) if self.scale else tf.ones([channels])
        beta = _float32(self.beta) if self.center else tf.zeros([channels])
        statistics = _float32(self.moving_mean), _float32(self.moving_variance)
        x = inputs if len(inputs.shape) == 4 else tf.reshape(inputs, [-1, 1, 1, channels])
        if training and self.trainable:
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=self.epsilon)
            # The kernel returns the unbiased variance, but Keras 3 averages the biased one.
            count = tf.cast(tf.size(x, tf.int64) // channels, variance.dtype)
            variance *= (count - 1) / count
            for moving, old, new in zip(
                (self.moving_mean, self.moving_variance), statistics, (mean, variance), strict=True
            ):
                moving.assign(old * self.momentum + new * (1 - self.momentum))
        else:
            y, _, _ = tf.compat.v1.nn.fused_batch_norm(
                *(x, gamma, beta, *statistics), epsilon=self.epsilon, is_training=False
            )
        return y if x is inputs else tf.reshape(y, tf.shape(inputs))

    def _fusable(self, inputs, mask):
        channels_last = len(inputs.shape) > 2 and self.axis in (-1, len(inputs.shape) - 1)
        fused_dtype = inputs.dtype == self.compute_dtype and self.compute_dtype in _FUSED_DTYPES
        plain = mask is None and not getattr(self, "renorm", False) and not self.synchronized
        return plain and channels_last and fused_dtype


def _float32(weight):
    """A weight as the kernel takes it. Under any dtype policy it computes in float32, as Keras' implementation does."""
    return tf.cast(tf.convert_to_tensor(weight), tf.float32)


@keras.saving.register_keras_serializable("tfspline")
class SplineUnit(SplineUnitBase, FusedBatchNormalization):
    """BatchNormalization and its activation as one layer that trains faster than both in Keras 3.

    Weights, their names and behaviour are those of `BatchNormalization`. Keras 3 computes it op by op: on a CPU, that
    is about half of the time of a ResNet's train step. `tfspline.wrap` replaces the layers of a model by SplineUnits,
    `tfspline.unwrap` restores them. For tf_keras, use `tfspline.layers.tf_keras.SplineUnit`.

    Args:
        activation: "relu", "leaky_relu", "relu6", None, or a ReLU, LeakyReLU or Activation layer that computes one of
            them, without a threshold.
        **kwargs: arguments of `BatchNormalization`, with the same meaning.

    Raises:
        ValueError: the activation is not supported.

    Example:

    >>> import keras, tfspline
    >>> unit = tfspline.layers.SplineUnit("relu6", center=False)
    >>> unit(keras.ops.array([[-1.0, 3.0, 8.0]])).numpy().round(1).tolist()
    [[0.0, 3.0, 6.0]]
    >>> unit.region_code(keras.ops.array([[-1.0, 3.0, 8.0]])).numpy().tolist()  # two bits per unit: z > 0, z >= 6
    [[38]]
    >>> unit.channel_mask = [True, False, True]
    >>> unit(keras.ops.array([[-1.0, 3.0, 8.0]])).numpy().round(1).tolist()
    [[0.0, 0.0, 6.0]]
    """
