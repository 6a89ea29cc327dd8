"""Activation functions, activation layers, and the bare ops that compute them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.call import Call
from tfspline.graph.layer_specs import functions
from tfspline.graph.layer_specs.dependence import any_input, same_position
from tfspline.graph.layer_specs.elementwise import merge, pass_through
from tfspline.graph.layer_specs.movement import glu
from tfspline.graph.layer_specs.spec import LayerSpec
from tfspline.graph.piecewise import Activation, PiecewiseAffine, Smooth


def activated(call: Call, ids: np.ndarray, owner: KerasLayer | None = None, name: str = "activation") -> np.ndarray:
    """The channels `ids` after an activation of the layer, or of an `owner` inside it, which protects them if it may
    mix channels."""
    activation = _keras.own_activation(owner or call.layer, name)
    why = activation and _objection(activation)
    if why:
        call.protect(ids, f"the activation {functions.label(activation)!r} of {call.described()} {why}")
        call.may_change_width = True
    return ids


def _objection(activation: Any) -> str | None:
    """Why channels do not pass through an activation, a function or a layer; None if they do."""
    if _keras.op_name(activation) is not None:
        return functions.objection(activation)
    spec = LAYERS.get(_keras.builtin_class_name(activation) or "")
    if spec is not None and spec.rule is pass_through:
        return None
    if _keras.of_class(activation, "Softmax"):
        return "mixes channels"
    return "may mix channels or have weights; make it a layer of its own, after this one"


def is_known_activation(activation: Any) -> bool:
    """Whether an activation, a function or a layer, is one of those that Keras and TensorFlow have, without MACs."""
    if _keras.is_layer(activation):
        return _keras.builtin_class_name(activation) in LAYERS.keys() - {"Lambda"}
    return functions.known_name(activation) is not None


def _softmax(call: Call) -> np.ndarray:
    """The outputs sum to one along an axis, so if units are along it, removing one changes the others."""
    ids, *masks = call.inputs
    for mask in masks:
        call.protect(mask, f"{call.described()} uses it as a mask")
    axes = getattr(call.layer, "axis", call.argument("axis"))
    if axes is None or any(ids.shape[call.axis(axis)] > 1 for axis in np.atleast_1d(axes) if axis != 0):
        call.protect(ids, f"{call.described()} mixes channels")
    return ids


def _singular(call: Call) -> np.ndarray | list[np.ndarray]:
    """A function that is not finite at 0, where units are that are switched off."""
    for ids in call.inputs:
        call.protect(ids, f"{call.described()} {functions.NOT_FINITE}")
    return merge(call)


def _lambda(call: Call) -> np.ndarray | list[np.ndarray]:
    """A function of one tensor, which may do anything unless it is known."""
    why = functions.objection(functions.of_lambda(call.layer))
    if not why and len(call.inputs) == 1:
        return call.inputs[0]
    for ids in call.inputs:
        call.protect(ids, f"the function of {call.described()} {why or 'has several arguments'}")
    return call.opaque()


def _prelu(call: Call) -> np.ndarray:
    """One slope for each position, shared along `shared_axes`."""
    sizes, ids = call.layer.alpha.shape, call.inputs[0]
    for axis in [i for i in range(ids.ndim) if sizes[i] > 1 and ids.shape[i] > 1][-1:]:
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


def _lambda_pieces(layer: KerasLayer) -> Activation | None:
    return functions.pieces(functions.of_lambda(layer))


def _op_pieces(node: _keras.Node) -> Activation | None:
    """The pieces of a bare op, as a function of its first tensor."""

    def function(z):
        args, kwargs = node.fill(dict.fromkeys(node.inputs, z))
        return node.layer(*args, **kwargs)

    varying = np.empty(1)  # an argument that is a tensor of the model
    arguments = _keras.arguments(node.layer, *node.fill(dict.fromkeys(node.inputs, varying)))
    del arguments[next(name for name, value in arguments.items() if value is varying)]
    return functions.pieces_of(function, (_keras.op_name(node.layer) or "").replace("_", ""), arguments)


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
    "Lambda": LayerSpec(_lambda, activation=_lambda_pieces),
}

OPS: dict[str, LayerSpec] = {
    **dict.fromkeys([*functions.PIECEWISE, *functions.SMOOTH], _op_spec(_op_pieces)),
    **dict.fromkeys(functions.SINGULAR, LayerSpec(_singular, dependence=any_input)),
    **dict.fromkeys(functions.MIXING, LayerSpec(_softmax, activation=_op_pieces)),
    "glu": LayerSpec(glu, activation=_op_pieces),
}
