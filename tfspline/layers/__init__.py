"""Layers: `SplineUnit`, that is BatchNormalization and its activation as one layer, fused and with a region code.

`tfspline.layers.SplineUnit` is a layer of Keras 3; that of tf_keras is `tfspline.layers.tf_keras.SplineUnit`. Where
tf_keras is imported after tfspline, `import tfspline.layers.tf_keras` makes the layer known to its `load_model`.

Example:

>>> import keras, tfspline
>>> inputs = keras.Input((8, 8, 3))
>>> x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
>>> x = tfspline.layers.SplineUnit(name="unit")(x)
>>> model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
>>> tfspline.region_codes(model, np.ones((1, 8, 8, 3))).bits
{'unit_relu': 144}
"""

import importlib

from tfspline import _keras
from tfspline.layers.keras import SplineUnit

__all__ = ["SplineUnit"]

for _module in _keras.kerases():  # whose saved models may hold one
    importlib.import_module(f"tfspline.layers.{_module.__name__}")
