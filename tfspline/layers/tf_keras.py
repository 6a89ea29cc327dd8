"""SplineUnit for tf_keras."""

import tf_keras

from tfspline import _keras
from tfspline.layers.base import SplineUnitBase

Weight, Constant = _keras.carrier_classes(tf_keras)


@tf_keras.utils.register_keras_serializable("tfspline")
class SplineUnit(SplineUnitBase, tf_keras.layers.BatchNormalization):
    """`tfspline.layers.SplineUnit` for tf_keras, whose BatchNormalization is already fused."""
