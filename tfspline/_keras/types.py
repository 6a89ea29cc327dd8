"""Names for what is one class in Keras 3 and another in tf_keras, so that a signature says which kind it takes."""

from typing import Any, TypeAlias

KerasModel: TypeAlias = Any  # keras.Model or tf_keras.Model
KerasLayer: TypeAlias = Any  # keras.layers.Layer, tf_keras.layers.Layer, or a bare op in a model's graph
KerasVariable: TypeAlias = Any  # keras.Variable, or a tf.Variable of tf_keras
KerasTensor: TypeAlias = Any  # a symbolic tensor of either version, or a tf.Tensor
InputShape: TypeAlias = Any  # a tuple of integers; a list or dict of tuples for several inputs; or None
Data: TypeAlias = Any  # what a model takes as inputs: arrays or tensors, one or a list or dict of them, or a Dataset
