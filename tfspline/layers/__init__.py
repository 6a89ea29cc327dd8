"""`SplineUnit`: BatchNormalization and its activation as one layer, fused and with a region code.

`tfspline.layers.SplineUnit` is a Keras 3 layer; `tfspline.layers.tf_keras.SplineUnit` is its tf_keras counterpart. If
tf_keras is imported after tfspline, run `import tfspline.layers.tf_keras` so that its `load_model` knows the layer.

>>> import keras, tfspline
>>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), tfspline.layers.SplineUnit(name="unit")])
>>> tfspline.region_codes(model, np.ones((1, 3))).bits
{'unit_relu': 4}
"""

import importlib

from tfspline import _keras
from tfspline.layers.keras import SplineUnit

__all__ = ["SplineUnit"]

for _module in _keras.keras_modules():  # registers the layer with every Keras version that may load a saved model
    importlib.import_module(f"tfspline.layers.{_module.__name__}")
