"""Finds the activation of a layer or call: one that it is, or one that it holds."""

from typing import Any

import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.argmax import ArgmaxChoice
from tfspline.graph.layer_specs.activations import function_activation
from tfspline.graph.layer_specs.registry import spec_of
from tfspline.graph.piecewise import Activation, PiecewiseAffine, Smooth


def activation_of_call(node: _keras.Node) -> Activation | None:
    """The activation that a call applies; None without one."""
    if _keras.op_name(node.layer) is None:
        return activation_of(node.layer)
    activation = spec_of(node.layer).activation
    return activation and activation(node)


def activation_of(layer: KerasLayer) -> Activation | None:
    """The activation that a layer is or holds; None without one."""
    inner = _keras.innermost(layer)
    known = _of_spec(inner)
    if known is not None:
        return known.over_time() if isinstance(known, ArgmaxChoice) and inner is not layer else known
    own = getattr(inner, "activation", None)
    for part in _keras.sublayers(inner):
        if part is not own and isinstance(activation_of(part), PiecewiseAffine | Smooth):
            return Smooth(f"the activation of {part.name!r} inside it, which cannot be observed", None)
    return _of_attribute(inner)


def is_fused(layer: KerasLayer) -> bool:
    """Whether a layer computes something else before its activation, so that the pre-activation is hidden."""
    layer = _keras.innermost(layer)
    return getattr(layer, "activation", None) is not None and not _keras.of_class(layer, "Activation")


def has_relu(layer: KerasLayer) -> bool:
    """Whether the activation that a layer is or holds is max(z, 0). False for bare ops."""
    activation = activation_of(layer) if _keras.op_name(layer) is None else None
    return isinstance(activation, PiecewiseAffine) and activation.is_relu


def _of_spec(layer) -> Activation | None:
    activation = spec_of(layer).activation
    return activation and activation(layer)


def _of_attribute(layer) -> Activation | None:
    """The activation in a layer's attribute `activation`, a function or another layer."""
    activation: Any = getattr(layer, "activation", None)
    while _keras.of_class(activation, "Activation"):
        activation = activation.activation
    name: Any = getattr(activation, "__name__", None) or getattr(activation, "name", activation)
    if activation is None or name == "linear":
        return None
    is_layer = _keras.op_name(activation) is None
    known = _of_spec(activation) if is_layer else function_activation(activation, name)
    if known or not is_fused(layer):
        return known or Smooth.named(name)
    # z is hidden, but sigmoid, tanh, GELU, swish, softplus ... exceed their value at 0 exactly where z > 0.
    return Smooth.named(name, lambda z, y: y > activation(tf.zeros_like(y)))
