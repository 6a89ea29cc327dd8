"""Layers and bare ops of either Keras: what they are, what is in them, and new ones like them."""

import inspect
from typing import Any

import keras

from tfspline._keras.modules import kerases, of_class

_COMPUTING = ("call", "convolution_op", "kernel")  # `kernel` is a property in Keras 3
_LOOKUPS = ("TextVectorization", "StringLookup", "IntegerLookup")


def op_name(layer: Any) -> str | None:
    """The name of a bare op in a graph (`x + y` gives "add", `tf.nn.relu(x)` "relu"); None for a real layer."""
    if type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda"):  # tf_keras has no public name for these
        return layer.symbol.split(".")[-1].strip("_").lower()
    if not isinstance(layer, tuple(module.layers.Layer for module in kerases())):
        return type(layer).__name__.lower()  # a keras.Operation that is no Layer: Keras 3's bare ops
    return None


def activation_name(layer: Any) -> str:
    """The name of the activation that a layer has of its own, the class of one that is a layer; "linear" without."""
    activation = getattr(layer, "activation", None)
    return "linear" if activation is None else getattr(activation, "__name__", type(activation).__name__)


def builtin_class_name(layer: Any) -> str | None:
    """The name of Keras' own class whose behaviour `layer` has; None where it has its own.

    A subclass that overrides what is computed may do anything, so it does not count as its base class.
    """
    for base in type(layer).__mro__:
        if base.__module__.partition(".")[0] in ("keras", "tf_keras"):
            own = any(getattr(type(layer), name, None) is not getattr(base, name, None) for name in _COMPUTING)
            return None if own else base.__name__
    return None


def arguments(layer: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call of a layer or bare op by their names."""
    if op_name(layer) is None:
        return inspect.signature(layer.call).bind(*args, **kwargs).arguments
    if isinstance(layer, keras.Operation):  # Keras 3 keeps all but the tensors in the op's config
        return layer.get_config() | inspect.signature(layer.call).bind(*args, **kwargs).arguments
    return inspect.signature(layer.function).bind(*args, **kwargs).arguments


def weight(layer: Any, path: str) -> Any:
    """A weight of a layer by its attribute ("kernel"), dotted for one of a layer inside it; None without one."""
    for name in path.split("."):
        layer = getattr(layer, name, None)
    return layer


def weights(layer: Any) -> list:
    """All weights of a layer or, without any, of a bare op."""
    # A vocabulary of tf_keras is among the weights, but no array.
    return [weight for weight in getattr(layer, "weights", ()) if hasattr(weight, "shape")]


def sublayers(layer: Any) -> list:
    """All layers inside a layer, at any depth."""
    # Private, but Keras 3 has no public way to them.
    return list(layer._flatten_layers(include_self=False))


def config_of(layer: Any) -> dict:
    """The config of a layer, with the vocabulary that it has adapted to, which is in no weight."""
    config = layer.get_config()
    if any(of_class(layer, name) for name in _LOOKUPS):
        config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False)
    return config


def finalize(layer: Any) -> None:
    """Lets a Normalization, which reads its weights only here, see those that it has been given."""
    if of_class(layer, "Normalization"):
        layer.finalize_state()


def from_config(layer_class: type, config: dict) -> Any:
    """A new layer from the config of one that is in memory."""
    # A layer inside this one would be built at once, for the input shape that its original had.
    config = {key: _unbuilt(value) if isinstance(value, dict) else value for key, value in config.items()}
    if issubclass(layer_class, keras.layers.Lambda):  # Keras 3 refuses Python lambdas, but this one is trusted
        return layer_class.from_config(config, safe_mode=False)
    return layer_class.from_config(config)


def _unbuilt(config):
    return {key: value for key, value in config.items() if key != "build_config"}
