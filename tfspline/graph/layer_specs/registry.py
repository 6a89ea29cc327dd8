"""Finds the `LayerSpec` and the activation of a layer, and registers the specs of custom layers."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.call import Call
from tfspline.graph.layer_specs import (
    activations,
    attention,
    convolutions,
    einsum_dense,
    elementwise,
    functions,
    movement,
    normalization,
    pooling,
    products,
    recurrent,
    sequences,
    shapes,
    slicing,
)
from tfspline.graph.layer_specs.elementwise_trace import is_elementwise_layer
from tfspline.graph.layer_specs.spec import Kernel, LayerSpec, apply_rule, unknown, why_unknown
from tfspline.graph.piecewise import Activation, ArgmaxChoice, PiecewiseAffine, Smooth

_MODULES = (
    *(activations, attention, convolutions, einsum_dense, elementwise, movement, normalization, pooling, products),
    *(recurrent, sequences, shapes, slicing),
)
LAYERS = {name: spec for module in _MODULES for name, spec in module.LAYERS.items()}  # by class name
OPS = {name: spec for module in _MODULES for name, spec in getattr(module, "OPS", {}).items()}  # without underscores
UNKNOWN = LayerSpec()

_custom: dict[type, LayerSpec] = {}
_traced: Any = weakref.WeakKeyDictionary()  # layer of a user's class -> the shapes that it was traced for, its spec


def _time_distributed(call: Call) -> list[np.ndarray]:
    """Applies a layer to each step: the rule of that layer holds."""
    inner = call.layer.layer
    spec = spec_of(inner)
    if spec is UNKNOWN:
        return unknown(call, f"applies {inner.name!r} ({type(inner).__name__}), which {why_unknown(call, inner)}")
    if len(call.inputs) > 1 or len(call.output_shapes) > 1:
        return unknown(call, "has a mask or other inputs, or several outputs")
    each = call.of_each_step("layer")
    (ids,) = apply_rule(spec.rule, each)
    call.is_opaque, call.declares_macs = each.is_opaque, each.declares_macs
    return [ids[None]]


LAYERS["TimeDistributed"] = LayerSpec(_time_distributed)


def spec_of(layer: KerasLayer) -> LayerSpec:
    """The spec of a layer or bare op; `UNKNOWN` if there is none."""
    for base in type(layer).__mro__:
        if base in _custom:
            return _custom[base]
    op = _keras.op_name(layer)
    if op is not None:
        return OPS.get(op.replace("_", ""), UNKNOWN)
    return LAYERS.get(_keras.builtin_class_name(layer) or "") or _spec_by_trace(layer)


def _spec_by_trace(layer) -> LayerSpec:
    """The spec of a layer of a user, by what its `call` is made of."""
    if _keras.is_builtin(type(layer)) or _keras.is_model(layer):
        return UNKNOWN
    shapes = _keras.shapes_called_on(layer)
    if layer not in _traced or _traced[layer][0] != shapes:
        _traced[layer] = shapes, elementwise.ELEMENTWISE if is_elementwise_layer(layer) else UNKNOWN
    return _traced[layer][1]


def is_declared(layer: KerasLayer) -> bool:
    """Whether tfspline knows a layer by its class."""
    return is_custom(layer) or _keras.builtin_class_name(layer) is not None


def is_custom(layer: KerasLayer) -> bool:
    """Whether the spec of a layer is registered for its class or for one that it derives from."""
    return any(base in _custom for base in type(layer).__mro__)


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
        TypeError: `layer_class` is not a class of layers or `rule` is not callable.

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
    if not _keras.is_layer_class(layer_class) or not callable(rule):
        raise TypeError(f"Expected a layer class and a callable. Received: {layer_class!r} and {rule!r}")
    # A subclass of a built-in layer that only adds a rule is still affine or an activation if that layer is.
    inherited = LAYERS.get(_keras.builtin_class_name(layer_class) or "", UNKNOWN)
    register(layer_class, LayerSpec(rule, affine=inherited.affine, activation=inherited.activation))


def activation_of_call(node: _keras.Node) -> Activation | None:
    """The activation that a call applies; None without one."""
    return activation_of(node.layer) if _keras.op_name(node.layer) is None else _of_spec(node.layer, node)


def activation_of(layer: KerasLayer) -> Activation | None:
    """The activation that a layer is or holds; None without one."""
    inner = _keras.innermost(layer)
    known = _of_spec(inner, inner)
    if known is not None:
        return known.over_time() if isinstance(known, ArgmaxChoice) and inner is not layer else known
    own = getattr(inner, "activation", None)
    for part in _keras.sublayers(inner):
        if part is not own and isinstance(activation_of(part), PiecewiseAffine | Smooth):
            return Smooth(f"the activation of {part.name!r} inside it, which cannot be observed", None)
    return _of_attribute(inner)


def is_homogeneous(node: _keras.Node, constants: Callable[[], list]) -> bool:
    """Whether a call is positively homogeneous, f(c x) = c f(x) for c > 0, in what it does to units that it makes or
    passes on. `constants` returns its arguments that are no tensors of the graph."""
    activation, spec = activation_of_call(node), spec_of(node.layer)
    if isinstance(activation, PiecewiseAffine):  # a recurrent layer has other functions beside it
        return activation.homogeneous and bool(spec.affine or spec.elementwise)
    if isinstance(activation, Smooth) or (activation is None and not spec.affine):
        return False
    shifts = [getattr(node.layer, "offset", 0), *(constants() if spec.elementwise else ())]
    if callable(spec.affine):  # a product or quotient, in which constants are factors
        return spec.affine(node)
    return not any(np.any(value) for value in shifts if np.asarray(value).dtype.kind in "iuf")


def is_fused(layer: KerasLayer) -> bool:
    """Whether a layer computes something else before its activation, so that the pre-activation is hidden."""
    layer = _keras.innermost(layer)
    return _keras.own_activation(layer) is not None and _keras.builtin_class_name(layer) != "Activation"


def _of_spec(layer, call_or_layer) -> Activation | None:
    activation = spec_of(layer).activation
    return activation and activation(call_or_layer)


def _of_attribute(layer) -> Activation | None:
    """The activation in a layer's attribute `activation`, a function or another layer."""
    activation = _keras.own_activation(layer)
    if activation is None:
        return None
    is_layer = _keras.op_name(activation) is None
    known = _of_spec(activation, activation) if is_layer else functions.pieces(activation)
    if isinstance(known, PiecewiseAffine):
        return known
    name = functions.label(activation)
    if not is_fused(layer):
        return Smooth.named(name)
    if _keras.of_class(activation, "ELU") or functions.known_name(activation) in functions.SMOOTH:
        return Smooth.named(name, lambda z, y: y > activation(tf.zeros_like(y)))
    return Smooth.named(name, None)  # z is hidden, and its sign does not follow from y
