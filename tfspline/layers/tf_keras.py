"""SplineUnit for tf_keras."""

import tf_keras

from tfspline.layers.base import SplineUnitBase


@tf_keras.utils.register_keras_serializable("tfspline")
class SplineUnit(SplineUnitBase, tf_keras.layers.BatchNormalization):
    """`tfspline.layers.SplineUnit` for tf_keras, whose BatchNormalization is already fused."""
