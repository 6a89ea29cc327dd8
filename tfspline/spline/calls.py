"""The calls in a model's graph with their activations, and how each is encoded in a region code."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline._utils.checks import among
from tfspline.graph.layer_specs.registry import activation_of_call, is_fused
from tfspline.graph.piecewise import Activation, ArgmaxChoice, PiecewiseAffine, Smooth

Bits = Callable[[tuple, dict, tf.Tensor], list[tf.Tensor]]  # args, kwargs and output of a call -> its code, bit by bit


@dataclasses.dataclass(frozen=True)
class CallActivation:
    """A call in a model's graph, with its activation."""

    node: _keras.Node
    path: str  # the layer's name after the path of a nested model; a SplineUnit is named after its activation
    activation: Activation | None  # what the call computes, or what its layer applies after an affine map
    fused: bool  # whether the activation belongs to a layer that computes something else before
    last: bool  # whether the call computes outputs of the model that no other call reads

    @property
    def constant_when_off(self) -> bool:
        """Whether a unit that is off is constant, as in a ReLU but not in a LeakyReLU."""
        return isinstance(self.activation, PiecewiseAffine) and self.activation.constant_when_off

    def described(self) -> str:
        """The layer and its activation, for messages about an activation that is not piecewise affine."""
        if isinstance(self.activation, Smooth):
            described = self.activation.description
        elif self.activation is not None and self.activation.curved:
            described = "an activation that has a curved piece"
        else:
            described = "an activation whose output does not determine the piece"
        return f"layer {self.path!r} with {described}"

    def refuse(self, hint: str) -> NoReturn:
        """Raises the ValueError for an activation that is not piecewise affine."""
        raise ValueError(
            "Expected only piecewise-affine activations (ReLU, LeakyReLU, PReLU, ReLU6 ...) before the "
            f"output. Received: {self.described()}; {hint}"
        )


@dataclasses.dataclass(frozen=True)
class CodedCall:
    """A call whose units have a region code."""

    call: CallActivation
    bits: Bits


def calls_with_activations(model: KerasModel) -> Iterator[CallActivation]:
    """Yields the calls in a model's graph in their order, those of nested models included."""
    yield from _walk(model, _unread(model), None)


def _walk(model, unread: set[int], parent: CallActivation | None) -> Iterator[CallActivation]:
    for node in _keras.nodes(model, parent=parent.node if parent else None):
        name = getattr(node.layer, "code_name", node.layer.name)  # a SplineUnit has one
        path = f"{parent.path}/{name}" if parent else name
        last = unread.issuperset(node.outputs)
        if _keras.is_model(node.layer):
            inner = _keras.check_model(node.layer)
            call = CallActivation(node, path, None, fused=False, last=last)
            yield from _walk(inner, _unread(inner) if last else set(), call)
        else:
            yield CallActivation(node, path, activation_of_call(node), is_fused(node.layer), last)


def _unread(model) -> set[int]:
    """The model's outputs that no call in it reads."""
    read = {tensor for node in _keras.nodes(model) for tensor in node.inputs}
    return {id(tensor) for tensor in model.outputs} - read


UNITS = ("activations", "batch_norm")
_OBSERVE = "make the activation a layer of its own, keras.layers.Activation, so that its input can be observed"
_SIGNS = "approximate=True takes the sign of the pre-activation instead, where it can be observed"


def coded_calls(
    model: KerasModel, approximate: bool, max_pooling: bool, units: str = "activations"
) -> tuple[dict[str, CodedCall], list[CallActivation]]:
    """The calls that have a region code, in their order, by their names in the codes; and those that are left out.

    The options are those of `region_codes`. Activations that are not piecewise affine are left out, unless no others
    are there: then a ValueError names the first one. A smooth activation at the very output is none of them.
    """
    if among("units", units, UNITS) == "batch_norm" and max_pooling:
        raise ValueError("units='batch_norm' leaves out max-pooling. Remove max_pooling=True.")
    coded, left_out = [], []
    for call in calls_with_activations(model):
        bits = _bits_of_batch_norm(call) if units == "batch_norm" else _bits(call, approximate, max_pooling)
        if bits is not None:
            coded.append(CodedCall(call, bits))
        elif units != "batch_norm" and not _has_no_code(call, max_pooling):
            left_out.append(call)
    if left_out and not coded:
        hint = f"{how_to_code(approximate)}{'' if approximate else ' (partition_report also needs maps=0)'}"
        left_out[0].refuse(f"{hint}, and EarlyBird(metric='mask') needs no codes")
    return dict(zip(unique(one.call.path for one in coded), coded, strict=True)), left_out


def how_to_code(approximate: bool) -> str:
    """How an activation that is not piecewise affine gets a code."""
    return _OBSERVE if approximate else _SIGNS


def _has_no_code(call: CallActivation, max_pooling: bool) -> bool:
    """Whether a call adds nothing to the code: it is affine, a pooling that is not asked for, or a smooth output."""
    activation = call.activation
    if isinstance(activation, ArgmaxChoice):
        return activation.pooled and not max_pooling
    return activation is None or call.last and isinstance(activation, Smooth)


def _bits(call: CallActivation, approximate: bool, max_pooling: bool) -> Bits | None:
    activation = call.activation
    if _has_no_code(call, max_pooling):
        return None
    if isinstance(activation, ArgmaxChoice):
        return lambda args, kwargs, y: activation.bits(activation.candidates(args, kwargs))
    if isinstance(activation, PiecewiseAffine) and not call.fused:
        return lambda args, kwargs, y: activation.bits(_keras.first_argument(args, kwargs))
    if isinstance(activation, PiecewiseAffine) and activation.output_determines_piece:
        return lambda args, kwargs, y: activation.bits_of_output(y)
    if isinstance(activation, PiecewiseAffine):
        return lambda args, kwargs, y: activation.bits(_pre_activation(call.node.layer, args, kwargs))
    sign = activation.sign if approximate and isinstance(activation, Smooth) else None
    if sign is None:
        return None
    return lambda args, kwargs, y: [sign(_keras.first_argument(args, kwargs), y)]


def _pre_activation(layer, args, kwargs):
    with _keras.without_activation(_keras.innermost(layer)):
        return layer(*args, **kwargs)


def _bits_of_batch_norm(call: CallActivation) -> Bits | None:
    """The sign of what a BatchNormalization computes, whatever follows it."""
    activation = call.activation
    if not _keras.of_class(call.node.layer, "BatchNormalization"):
        return None
    if isinstance(activation, PiecewiseAffine) and activation.output_determines_piece:  # that of a SplineUnit
        return lambda args, kwargs, y: activation.bits_of_output(y)
    return lambda args, kwargs, y: [y > 0]


def unique(names: Iterable[str]) -> list[str]:
    """The names in order, with "#2", "#3" ... appended to those that have occurred before."""
    distinct: dict[str, None] = {}
    for name in names:
        numbered = itertools.chain([name], (f"{name}#{count}" for count in itertools.count(2)))
        distinct[next(candidate for candidate in numbered if candidate not in distinct)] = None
    return list(distinct)
