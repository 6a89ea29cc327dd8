"""The two Keras modules: importing them, to which of them an object belongs, loading models with them."""

import os
import sys
import zipfile
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

from tfspline._keras.types import KerasLayer

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tfspline needs Keras 3 on the TensorFlow backend. Received: KERAS_BACKEND="
        f"{keras.backend.backend()!r}; set KERAS_BACKEND=tensorflow before keras is imported."
    )


def keras_modules() -> list[ModuleType]:
    """The Keras modules that are loaded: `keras`, and `tf_keras` if it was imported."""
    # A tf_keras model can only exist if tf_keras was imported, so it need not be imported here.
    return [keras] + [sys.modules[name] for name in ("tf_keras",) if sys.modules.get(name)]


def keras_named(name: str) -> ModuleType:
    """The module `keras` or `tf_keras`, imported if necessary."""
    if name not in ("keras", "tf_keras"):
        raise ValueError(f"Expected 'keras' or 'tf_keras'. Received: {name!r}")
    if name == "tf_keras":
        try:
            import tf_keras
        except ModuleNotFoundError as error:
            raise ImportError("keras='tf_keras' needs tf_keras: pip install 'tfspline[tfmot]'") from error

        return tf_keras
    return keras


def tfmot() -> ModuleType:
    """tensorflow_model_optimization, imported without what it does to others: it sets TF_USE_LEGACY_KERAS, with which
    `tf.keras` becomes Keras 2 unless somebody has looked at it before."""
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    _ = tf.keras.Model
    try:
        import tensorflow_model_optimization
    except ImportError as error:  # of a module that it imports, too, such as distutils
        raise ImportError(
            f"Gradual schedules need tensorflow-model-optimization ({error}): pip install 'tfspline[tfmot]'"
        ) from error
    finally:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        if before is not None:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return tensorflow_model_optimization


def keras_of(obj: Any) -> ModuleType:
    """The Keras module that a model, layer, optimizer or callback belongs to; TypeError if it belongs to none."""
    for module in keras_modules():
        if isinstance(obj, (module.layers.Layer, module.optimizers.Optimizer, module.callbacks.Callback)):
            return module
    raise TypeError(f"Expected a model or layer of Keras 3 or tf_keras. Received: {type(obj).__name__}")


def of_class(layer: KerasLayer, *names: str) -> bool:
    """Whether `layer` is an instance of one of these classes of `keras.layers`, in either Keras version."""
    return any(
        isinstance(layer, getattr(module.layers, name))
        for module in keras_modules()
        for name in names
        if hasattr(module.layers, name)
    )


def is_model(layer: KerasLayer) -> bool:
    """Whether `layer` is a model, which may be nested in another one."""
    return any(isinstance(layer, module.Model) for module in keras_modules())


def is_layer_class(value: Any) -> bool:
    """Whether `value` is a class of layers or bare ops, in either Keras version."""
    classes: Any = (keras.Operation, *(module.layers.Layer for module in keras_modules()))
    return isinstance(value, type) and issubclass(value, classes)


def load_model(keras: ModuleType, path: str | os.PathLike) -> Any:
    """Loads a `.keras` file in Keras' safe mode, which rejects models that contain code."""
    with open(path, "rb") as file:
        zipped = zipfile.is_zipfile(file)
    try:
        if not zipped:  # tf_keras would read it as HDF5, from which it loads code even in safe mode
            raise ValueError("it is not a zip archive")
        return keras.models.load_model(path, safe_mode=True)
    except Exception as error:  # damaged files raise errors of many kinds
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Expected an undamaged .keras file without code in it. Received: {os.fspath(path)!r} ({reason})"
        ) from error
