"""A network in float64 as a sequence of affine maps and the activations between them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.constraints import check_finite
from tfspline._keras.types import KerasModel
from tfspline.graph.layer_specs.registry import spec_of
from tfspline.graph.piecewise import ArgmaxChoice, PiecewiseAffine, Smooth
from tfspline.graph.unrolling import functional
from tfspline.spline.calls import CallActivation, calls_with_activations

Pieces = PiecewiseAffine | ArgmaxChoice

_NOT_AFFINE = "such a network is not affine on any region"


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a network."""

    key: tuple[int, ...]  # of the call's node
    name: str  # the layer's path
    affine: Callable[[tuple, dict], Any]  # args and kwargs of the call -> the output, or outputs, of its affine part
    activation: Any  # the `Pieces` that are applied to the output; None without an activation


Activate = Callable[[Step, tf.Tensor], tf.Tensor]  # a step with an activation, z -> y


def at_own_piece(step: Step, z: tf.Tensor) -> tf.Tensor:
    """Applies to each z the piece in which it lies, which is what the network does."""
    return step.activation.apply(z, step.activation.code(z))


def at_pieces_of(network: "Network", values: list[tf.Tensor]) -> Activate:
    """Applies to each z the piece of the sample in the same row of `values`, which is that sample's affine map."""
    codes = {}

    def record(step, z):
        codes[step.key] = step.activation.code(z)
        return step.activation.apply(z, codes[step.key])

    network.run(values, record)
    return lambda step, z: step.activation.apply(z, codes[step.key])


class Network:
    """A model in float64 as affine maps and activations; with `logits`, without a smooth one at the very output."""

    def __init__(self, model: KerasModel, logits: bool = False):
        self.model = model = functional(model)
        check_finite(model)
        copies: dict[int, Any] = {}
        # For each call, nested models included, by the key of its node and in the order of the graph.
        self.steps = {call.node.key: _step(call, logits, copies) for call in calls_with_activations(model)}

    def run(self, inputs: list[tf.Tensor], activate: Activate) -> tf.Tensor:
        """The outputs side by side, float64 [rows, numbers], with activations applied by `activate`."""

        def visit(node, args, kwargs):
            step = self.steps[node.key]
            z = step.affine(args, kwargs)
            return z if step.activation is None else activate(step, z)

        return flat(_keras.run(self.model, inputs, visit, nested=True))


def flat(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Tensors [rows, ...] side by side, float64 [rows, numbers]."""
    return tf.concat([tf.cast(tf.reshape(tensor, [len(tensor), -1]), tf.float64) for tensor in tensors], axis=1)


def _step(call: CallActivation, logits: bool, copies: dict) -> Step:
    node, activation = call.node, call.activation
    smooth = isinstance(activation, Smooth)
    if smooth and not (logits and call.last):
        call.refuse("logits=True leaves it out" if call.last else _NOT_AFFINE)
    if isinstance(activation, Pieces) and activation.curved:
        call.refuse(_NOT_AFFINE)
    if isinstance(activation, ArgmaxChoice):
        affine = activation.candidates
    elif activation is not None and not call.fused:
        affine = _keras.first_argument
    elif spec_of(_keras.innermost(node.layer)).is_affine(node):
        affine = without_activation(node, copies)
    else:
        raise ValueError(
            "Expected a model of layers that are affine or piecewise affine. Received: layer "
            f"{call.path!r} ({type(node.layer).__name__}), which is not, or is not known to be"
        )
    return Step(node.key, call.path, affine, None if smooth else activation)


def without_activation(node: _keras.Node, copies: dict[int, Any]) -> Callable[[tuple, dict], Any]:
    """A call in float64, as a function of args and kwargs, without the activation that its layer may have.

    `copies` holds the float64 copies of layers by the id of the original; that of this layer is added.
    """
    in_float64 = spec_of(node.layer).float64
    if in_float64 is not None:
        return lambda args, kwargs: in_float64(node.layer, _keras.first_argument(args, kwargs))
    return _bare_op(node.layer) if _keras.op_name(node.layer) else _copied_layer(node.layer, copies)


def _bare_op(op) -> Callable[[tuple, dict], Any]:
    """A bare op with its constants in float64."""

    def in_float64(value):
        if tf.is_tensor(value) or isinstance(value, np.ndarray):
            return tf.cast(value, tf.float64) if tf.as_dtype(value.dtype).is_floating else value
        return value

    def call(args, kwargs):
        args, kwargs = tf.nest.map_structure(in_float64, (args, kwargs))
        return op(*args, **kwargs)

    return call


def _copied_layer(layer, copies: dict) -> Callable[[tuple, dict], Any]:
    """A layer in float64 without its activation. It is copied at its first call, and once for all calls."""

    def call(args, kwargs):
        if id(layer) not in copies:
            copies[id(layer)] = _float64_copy(layer, args, kwargs)
        return copies[id(layer)](*args, **kwargs)

    return call


def _float64_copy(layer, args, kwargs):
    while _keras.of_class(layer, "Wrapper") and not _keras.of_class(layer, "TimeDistributed", "Bidirectional"):
        layer = layer.layer
    innermost = _keras.innermost(layer)
    linear = {"activation": "linear"} if getattr(innermost, "activation", None) is not None else {}
    copy = _keras.copy_of(layer, lambda part: {"dtype": "float64"} | (linear if part is innermost else {}))
    copy(*args, **kwargs)  # builds it
    # The weights of an activation that is a layer come last. The copy does not have them.
    for mine, theirs in zip(_keras.weights(copy), _keras.weights(layer), strict=False):
        mine.assign(tf.cast(tf.convert_to_tensor(theirs), mine.dtype))
    _keras.finalize(copy)
    return copy
