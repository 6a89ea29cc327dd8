"""Cuts: where the pieces of a layer's activation meet, as tests that give one bit a unit."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfspline import _keras

Cut = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # the input and the output of a layer -> one bit a unit

# Output levels at which the pieces of an activation meet. All of these rise wherever they are not flat, so
# that the output tells on which side of a cut the pre-activation lies, and a fused activation needs no
# surgery.
_LEVELS = {
    "relu": (0.0,),
    "leakyrelu": (0.0,),
    "relu6": (0.0, 6.0),
    "hardsigmoid": (0.0, 1.0),
    "hardtanh": (-1.0, 1.0),
}

_ACTIVATIONS = {name.replace("_", "") for name in dir(keras.activations)}


def cuts_of_calls(model: Any, approximate: bool) -> Iterator[tuple[str, list[Cut]]]:
    """The name and the cuts of each call in a model's graph, in its order, nested models in their place.

    A smooth activation at the very output has no cuts, whether approximated or not.

    Args:
        model: a model whose graph is known.
        approximate: give the sign of the pre-activation for an activation that is not piecewise affine.

    Raises:
        ValueError: a nested model whose graph is not known, or, unless `approximate`, an activation that is
            not piecewise affine.
    """
    return _calls(model, approximate, _unread(model))


def _calls(model, approximate: bool, unread: set[int], path: str = "") -> Iterator[tuple[str, list[Cut]]]:
    for node in _keras.nodes(model):
        name = path + getattr(node.layer, "code_name", node.layer.name)  # a SplineUnit has one
        if _keras.is_model(node.layer):
            inner = _keras.check_model(node.layer)
            last = unread.issuperset(node.outputs)
            yield from _calls(inner, approximate, _unread(inner) if last else set(), f"{name}/")
            continue
        cuts = cuts_of(node.layer)
        if cuts is None and unread.issuperset(node.outputs):
            cuts = []
        elif cuts is None and not approximate:
            raise ValueError(
                "Expected only piecewise-affine activations (ReLU, LeakyReLU, PReLU, ReLU6 ...) before the "
                f"output. Received: layer {name!r} with {_describe(node.layer)}; "
                "approximate=True takes the sign of the pre-activation where it is seen"
            )
        yield name, _sign(node.layer) if cuts is None else cuts


def _unread(model) -> set[int]:
    """The model's outputs that no layer of it reads."""
    read = {tensor for node in _keras.nodes(model) for tensor in node.inputs}
    return {id(tensor) for tensor in model.outputs} - read


def cuts_of(layer: Any) -> list[Cut] | None:
    """The cuts of a layer or bare op, empty if it has no activation; None if that is not piecewise affine."""
    layer = _unwrap(layer)
    if _keras.of_class(layer, "ReLU") or _keras.op_name(layer) == "relu":
        threshold, ceiling = getattr(layer, "threshold", 0.0), getattr(layer, "max_value", None)
        return [lambda z, y: z > threshold] + ([] if ceiling is None else [lambda z, y: z >= ceiling])
    # The slopes of these may be negative, so that their output does not tell; they stand alone, so the input
    # does.
    if _keras.of_class(layer, "LeakyReLU", "PReLU") or _keras.op_name(layer) in ("abs", "absolute"):
        return [lambda z, y: z > 0]
    if _hidden(layer):
        return None
    activation = _activation(layer)
    if activation is None:
        return []
    levels = _levels(activation)
    if levels is None:
        return None
    low, *high = levels
    return [lambda z, y: y > low, *(lambda z, y, level=level: y >= level for level in high)]


def _sign(layer) -> list[Cut]:
    """The sign of the pre-activation of a smooth activation, as one cut; none where it cannot be seen."""
    layer = _unwrap(layer)
    if _hidden(layer):
        return []
    activation = getattr(layer, "activation", None)
    if activation is None or _keras.of_class(layer, "Activation"):
        return [lambda z, y: z > 0]
    # A fused activation hides z, but sigmoid, tanh, GELU, swish, softplus ... are above their value at 0 just
    # where z > 0.
    return [lambda z, y: y > activation(tf.zeros_like(y))]


def _activation(layer) -> Any:
    """The activation of a layer or bare op, as a function, layer or name; None if none or linear."""
    op = _keras.op_name(layer)
    if op is not None:
        return op if op.replace("_", "") in _ACTIVATIONS else None
    if _keras.of_class(layer, "ELU", "Softmax", "ThresholdedReLU"):
        return type(layer).__name__
    activation = getattr(layer, "activation", None)
    return None if getattr(activation, "__name__", None) == "linear" else activation


def _hidden(layer) -> Any:
    """A layer inside `layer` that has an activation, out of sight from outside; None if there is none."""
    if _keras.op_name(layer) is not None:
        return None
    own = getattr(layer, "activation", None)
    return next((part for part in _keras.sublayers(layer) if part is not own and cuts_of(part) != []), None)


def _levels(activation) -> tuple | None:
    """The output levels at which the pieces of an activation meet; None if they are not known."""
    if _keras.of_class(activation, "Activation"):
        return _levels(activation.activation)
    if _keras.of_class(activation, "LeakyReLU"):
        return _LEVELS["leakyrelu"]
    if _keras.of_class(activation, "ReLU") and not activation.threshold:
        return (0.0,) if activation.max_value is None else (0.0, activation.max_value)
    name = activation if isinstance(activation, str) else getattr(activation, "__name__", "")
    return _LEVELS.get(name.replace("_", ""))


def _describe(layer) -> str:
    """What a refused layer has that is not piecewise affine, for the message."""
    layer = _unwrap(layer)
    hidden = _hidden(layer)
    if hidden:
        return f"the activation of {hidden.name!r} inside it, out of sight"
    activation = _activation(layer)
    name = getattr(activation, "__name__", None) or getattr(activation, "name", activation)
    return f"activation {name!r}, which is smooth or not known"


def _unwrap(layer):
    while _keras.of_class(layer, "Wrapper"):  # TimeDistributed, and what tfmot wraps
        layer = layer.layer
    return layer
