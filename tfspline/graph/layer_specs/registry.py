"""Looks up the `LayerSpec` of a layer, and registers those of custom layers."""

from collections.abc import Callable

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.layer_specs import (
    activations,
    convolutions,
    elementwise,
    normalization,
    pooling,
    sequences,
    shapes,
)
from tfspline.graph.layer_specs.spec import Kernel, LayerSpec

_MODULES = (activations, convolutions, elementwise, normalization, pooling, sequences, shapes)
LAYERS = {name: spec for module in _MODULES for name, spec in module.LAYERS.items()}  # by class name
OPS = {  # by name without underscores
    name: spec for module in (activations, elementwise, pooling, shapes) for name, spec in module.OPS.items()
}
UNKNOWN = LayerSpec()

_custom: dict[type, LayerSpec] = {}


def spec_of(layer: KerasLayer) -> LayerSpec:
    """The spec of a layer or bare op; `UNKNOWN` if there is none."""
    for base in type(layer).__mro__:
        if base in _custom:
            return _custom[base]
    op = _keras.op_name(layer)
    if op is not None:
        return OPS.get(op.replace("_", ""), UNKNOWN)
    return LAYERS.get(_keras.builtin_class_name(type(layer)) or "", UNKNOWN)


def kernel_of(layer: KerasLayer) -> Kernel:
    """How a layer with a kernel combines channels; TypeError for other layers."""
    kernel = spec_of(layer).kernel
    if kernel is None:
        raise TypeError(f"Expected a layer with a kernel. Received: {layer.name!r} ({type(layer).__name__})")
    return kernel


def register(layer_class: type, spec: LayerSpec) -> None:
    """Gives a layer class, and its subclasses without a spec of their own, a spec."""
    _custom[layer_class] = spec


def register_channel_rule(layer_class: type, rule: Callable) -> None:
    """Registers how a custom layer treats its channels, so that units can be pruned through it.

    Args:
        layer_class: the layer's class. The rule also applies to subclasses without one of their own.
        rule: called as `rule(call)`; returns the channel ids of the output. `call.layer` is the layer and
            `call.inputs` holds the channel ids of its inputs. The rule declares which axes of which weights belong to
            channels with `call.produce`, `call.consume` and `call.per_channel`; see
            `tfspline.graph.call.Call` for all methods.

    Raises:
        TypeError: `layer_class` is not a class or `rule` is not callable.

    Example:

    >>> import keras, tfspline
    >>> class Scale(keras.layers.Layer):
    ...     def build(self, shape):
    ...         self.scale = self.add_weight(name="scale", shape=shape[-1:], initializer="ones")
    ...     def call(self, x):
    ...         return x * self.scale
    >>> def rule(call):
    ...     call.per_channel("scale", 0, call.channels())
    ...     return call.inputs[0]
    >>> tfspline.register_channel_rule(Scale, rule)
    """
    if not isinstance(layer_class, type) or not callable(rule):
        raise TypeError(f"Expected a layer class and a callable. Received: {layer_class!r} and {rule!r}")
    # A subclass of a built-in layer that only adds a rule is still affine or an activation if that layer is.
    inherited = LAYERS.get(_keras.builtin_class_name(layer_class) or "", UNKNOWN)
    register(layer_class, LayerSpec(rule, affine=inherited.affine, activation=inherited.activation))
