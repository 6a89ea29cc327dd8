"""The layers that models of tfspline may have.

`SplineUnit` is BatchNormalization and its activation as one layer, fused and with a region code. `Weight` and
`Constant` hold what a composite layer has besides layers when `tfspline.functional` unrolls it.

`tfspline.layers.SplineUnit` is a Keras 3 layer; `tfspline.layers.tf_keras.SplineUnit` is its tf_keras counterpart. If
tf_keras is imported after tfspline, run `import tfspline.layers.tf_keras` so that its `load_model` knows the layers.

>>> import keras, tfspline
>>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), tfspline.layers.SplineUnit(name="unit")])
>>> tfspline.region_codes(model, np.ones((1, 3))).bits
{'unit_relu': 4}
"""

import importlib

from tfspline import _keras
from tfspline.layers.keras import Constant, SplineUnit, Weight

__all__ = ["Constant", "SplineUnit", "Weight"]

for _module in _keras.keras_modules():  # registers the layers with every Keras version that may load a saved model
    importlib.import_module(f"tfspline.layers.{_module.__name__}")
