"""Activation functions, activation layers, and the bare ops that compute them."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.dependence import any_input, same_position
from tfspline.graph.layer_specs.elementwise import merge, pass_through
from tfspline.graph.layer_specs.spec import LayerSpec
from tfspline.graph.piecewise import Activation, PiecewiseAffine, Smooth

Breakpoints = tuple[float, ...]


def _breakpoints_of_hard_sigmoid(function) -> Breakpoints:
    """Keras 3 has them at -3 and 3, tf_keras at -2.5 and 2.5."""
    low, high = np.asarray(function(tf.constant([0.0, 1.0], tf.float64)))
    return -low / (high - low), (1 - low) / (high - low)


# Functions of one number, by name without underscores (Keras 3 says LeakyRelu, TensorFlow leaky_relu): where their
# pieces meet. What the function is between breakpoints is read off its values.
PIECEWISE: dict[str, Breakpoints | Callable[[Callable], Breakpoints]] = {
    **dict.fromkeys(["relu", "leakyrelu", "abs", "absolute"], (0.0,)),
    "relu6": (0.0, 6.0),
    **dict.fromkeys(["hardtanh", "sparsesigmoid"], (-1.0, 1.0)),
    **dict.fromkeys(["hardsilu", "hardswish"], (-3.0, 3.0)),
    **dict.fromkeys(["softshrink", "hardshrink"], (-0.5, 0.5)),
    "hardsigmoid": _breakpoints_of_hard_sigmoid,
}

# Functions of one number that are not piecewise affine, or whose breakpoints depend on their arguments.
SMOOTH = frozenset(
    [
        *("elu", "selu", "celu", "gelu", "silu", "swish", "mish", "threshold", "sigmoid", "logsigmoid", "tanh"),
        *("tanhshrink", "softplus", "softsign", "exponential", "squareplus", "sparseplus"),
    ]
)


def function_activation(function: Callable, name: str) -> PiecewiseAffine | None:
    """The pieces of an activation function, by its name; None if they are not known."""
    breakpoints = PIECEWISE.get(name.replace("_", ""))
    if breakpoints is None:
        return None
    return PiecewiseAffine.of(function, breakpoints(function) if callable(breakpoints) else breakpoints)


def activated(call: Call, ids: np.ndarray) -> np.ndarray:
    """The channels `ids` after the layer's own activation, which protects them if it may mix channels."""
    activation = getattr(call.layer, "activation", None)
    if not _is_elementwise(activation):
        name = _keras.activation_name(call.layer)
        call.protect(ids, f"the activation {name!r} of {call.described()} may mix channels")
    return ids


def _is_elementwise(activation: Any) -> bool:
    """Whether an activation, a function or a layer, is known to act on each number alone."""
    if activation is None:
        return True
    if _keras.op_name(activation) is None:  # a layer
        if _keras.of_class(activation, "Activation"):
            return _is_elementwise(activation.activation)
        spec = LAYERS.get(_keras.builtin_class_name(type(activation)) or "")
        return spec is not None and spec.rule is pass_through
    name = getattr(activation, "__name__", "")
    known = name == "linear" or name.replace("_", "") in (*PIECEWISE, *SMOOTH)
    return known and _keras.is_builtin_function(activation, name)


def _softmax(call: Call) -> np.ndarray:
    """The outputs sum to one along an axis, so if units are along it, removing one changes the others."""
    ids, *masks = call.inputs
    for mask in masks:
        call.protect(mask, f"{call.described()} uses it as a mask")
    axes = getattr(call.layer, "axis", call.argument("axis"))
    if axes is None or any(ids.shape[call.axis(axis)] > 1 for axis in np.atleast_1d(axes) if axis != 0):
        call.protect(ids, f"{call.described()} mixes channels")
    return ids


def _prelu(call: Call) -> np.ndarray:
    """One slope for each position, shared along `shared_axes`."""
    for axis, size in enumerate(call.layer.alpha.shape):
        if size > 1 and call.inputs[0].shape[axis] > 1:
            call.per_channel("alpha", axis, call.channels(axis=axis))
    return call.inputs[0]


def _leaky(slope) -> PiecewiseAffine:
    return PiecewiseAffine((0.0,), (slope, 1.0), (0.0, 0.0))


def _relu_pieces(layer: KerasLayer) -> PiecewiseAffine:
    slope, threshold, maximum = float(layer.negative_slope), float(layer.threshold), layer.max_value
    breakpoints, slopes, offsets = (threshold,), (slope, 1.0), (-slope * threshold, 0.0)
    if maximum is None:
        return PiecewiseAffine(breakpoints, slopes, offsets)
    return PiecewiseAffine((*breakpoints, float(maximum)), (*slopes, 0.0), (*offsets, float(maximum)))


def _leaky_relu_pieces(layer: KerasLayer) -> PiecewiseAffine:
    return _leaky(float(layer.negative_slope if hasattr(layer, "negative_slope") else layer.alpha))  # tf_keras: alpha


def _prelu_pieces(layer: KerasLayer) -> PiecewiseAffine | None:
    return _leaky(layer.alpha) if layer.built else None  # Keras 3 does not build one that is another layer's activation


def _smooth_layer(layer: KerasLayer) -> Smooth:
    return Smooth.named(type(layer).__name__)


def _op_function(node: _keras.Node) -> tuple[Callable, str]:
    """A bare op as a function of its tensor, and its name without underscores."""

    def function(z):
        args, kwargs = node.fill(dict.fromkeys(node.inputs, z))
        return node.layer(*args, **kwargs)

    return function, (_keras.op_name(node.layer) or "").replace("_", "")


def _op_arguments(node: _keras.Node) -> dict[str, Any]:
    """The arguments of a bare op by name, with None for tensors."""
    return _keras.arguments(node.layer, *node.fill(dict.fromkeys(node.inputs)))


def _op_activation(node: _keras.Node) -> Activation:
    function, name = _op_function(node)
    return function_activation(function, name) or Smooth.named(name)


def _op_relu(node: _keras.Node) -> Activation:
    function, _ = _op_function(node)
    arguments: Any = _op_arguments(node)
    threshold, maximum = arguments.get("threshold"), arguments.get("max_value")
    if maximum is not None:
        return PiecewiseAffine.of(function, (threshold, maximum))
    return PiecewiseAffine.of(function, (threshold,)) if threshold else _op_activation(node)


def _op_shrink(node: _keras.Node) -> PiecewiseAffine:
    threshold = _op_arguments(node)["threshold"]
    return PiecewiseAffine.of(_op_function(node)[0], (-threshold, threshold))


def _op_clip(low: str, high: str, node: _keras.Node) -> Activation:
    function, name = _op_function(node)
    bounds: list[Any] = [_op_arguments(node).get(key) for key in (low, high)]
    if any(bound is None or np.ndim(bound) for bound in bounds):
        return Smooth(f"the op {name!r} with bounds that are not numbers", lambda z, y: z > 0)
    return PiecewiseAffine.of(function, tuple(map(float, bounds)))


def _layer_spec(activation: Callable | None, rule: Callable = pass_through, affine: bool = False) -> LayerSpec:
    return LayerSpec(rule, affine=affine, activation=activation, elementwise=True, dependence=same_position)


def _op_spec(activation: Callable) -> LayerSpec:
    return LayerSpec(merge, activation=activation, elementwise=True, dependence=any_input)


LAYERS: dict[str, LayerSpec] = {
    "Activation": _layer_spec(None, lambda call: activated(call, call.inputs[0]), affine=True),
    "ReLU": _layer_spec(_relu_pieces),
    "LeakyReLU": _layer_spec(_leaky_relu_pieces),
    "PReLU": _layer_spec(_prelu_pieces, _prelu),
    "ThresholdedReLU": _layer_spec(lambda layer: PiecewiseAffine((float(layer.theta),), (0.0, 1.0), (0.0, 0.0))),
    "ELU": _layer_spec(_smooth_layer),
    "Softmax": LayerSpec(_softmax, activation=_smooth_layer),
}

OPS: dict[str, LayerSpec] = {
    **dict.fromkeys([*PIECEWISE, *SMOOTH], _op_spec(_op_activation)),
    **dict.fromkeys(["softmax", "logsoftmax", "sparsemax"], LayerSpec(_softmax, activation=_op_activation)),
    "glu": LayerSpec(activation=_op_activation),
    **dict.fromkeys(["relu", "threshold"], _op_spec(_op_relu)),
    **dict.fromkeys(["softshrink", "hardshrink"], _op_spec(_op_shrink)),
    "clip": _op_spec(functools.partial(_op_clip, "x_min", "x_max")),
    "clipbyvalue": _op_spec(functools.partial(_op_clip, "clip_value_min", "clip_value_max")),
}
