"""`SplineUnit`: BatchNormalization and its activation as one layer, fused and with a region code.

`tfspline.layers.SplineUnit` is a Keras 3 layer; `tfspline.layers.tf_keras.SplineUnit` is its tf_keras counterpart. If
tf_keras is imported after tfspline, run `import tfspline.layers.tf_keras` so that its `load_model` knows the layer.

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

for _module in _keras.keras_modules():  # registers the layer with every Keras version that may load a saved model
    importlib.import_module(f"tfspline.layers.{_module.__name__}")
