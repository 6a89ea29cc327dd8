"""SplineUnit for Keras 3."""

import keras
import tensorflow as tf

from tfspline.layers.base import SplineUnitBase

FUSED_DTYPES = ("float16", "bfloat16", "float32")


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """The same function as Keras 3's, which computes moments op by op, on TensorFlow's fused kernel.

    Where that cannot do what was asked for, Keras' own code runs: an axis that is not the last, float64, masked
    inputs, `renorm` and `synchronized`; also on inputs [batch, features], where it is the faster one as a rule.
    """

    def call(self, inputs, training=None, mask=None):
        """The inputs normalized."""
        if not self._fusable(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        gamma = self.gamma if self.scale else tf.ones([channels])
        beta = self.beta if self.center else tf.zeros([channels])
        x = inputs if len(inputs.shape) == 4 else tf.reshape(inputs, [-1, 1, 1, channels])
        if training and self.trainable:
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=self.epsilon)
            # The kernel gives the unbiased variance, but Keras 3 averages the biased one.
            count = tf.cast(tf.size(x, tf.int64) // channels, variance.dtype)
            variance *= (count - 1) / count
            for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + new * (1 - self.momentum))
        else:
            y, _, _ = tf.compat.v1.nn.fused_batch_norm(
                *(x, gamma, beta, self.moving_mean, self.moving_variance), epsilon=self.epsilon, is_training=False
            )
        return y if x is inputs else tf.reshape(y, tf.shape(inputs))

    def _fusable(self, inputs, mask):
        channels_last = len(inputs.shape) > 2 and self.axis in (-1, len(inputs.shape) - 1)
        fused_dtype = inputs.dtype == self.compute_dtype and self.compute_dtype in FUSED_DTYPES
        return channels_last and fused_dtype and mask is None and not (self.renorm or self.synchronized)


@keras.saving.register_keras_serializable("tfspline")
class SplineUnit(SplineUnitBase, FusedBatchNormalization):
    """BatchNormalization and its activation as one layer, in training faster than the two of Keras 3.

    The weights, their names and what they do in training and in inference are those of `BatchNormalization`; on a CPU
    Keras 3 computes that op by op, which takes about half of the time of a step of a ResNet. For tf_keras there is
    `tfspline.layers.tf_keras.SplineUnit`. `tfspline.wrap` puts SplineUnits into a model, `tfspline.unwrap` takes them
    out.

    Args:
        activation: "relu", "leaky_relu", "relu6", None, or a ReLU, LeakyReLU or Activation layer of such a kind, the
            ReLU without a threshold.
        **kwargs: the arguments of `BatchNormalization`, which mean what they mean there.

    Raises:
        ValueError: another activation.

    Example:

    >>> import keras, tfspline
    >>> unit = tfspline.layers.SplineUnit("relu6", center=False)
    >>> unit(keras.ops.array([[-1.0, 3.0, 8.0]])).numpy().round(1).tolist()
    [[0.0, 3.0, 6.0]]
    >>> unit.region_code(keras.ops.array([[-1.0, 3.0, 8.0]])).numpy().tolist()  # two bits a unit, z > 0 and z >= 6
    [[38]]
    >>> unit.channel_mask = [True, False, True]
    >>> unit(keras.ops.array([[-1.0, 3.0, 8.0]])).numpy().round(1).tolist()
    [[0.0, 0.0, 6.0]]
    """
