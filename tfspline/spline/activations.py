"""Cuts: which calls in a model's graph bend what flows through them, and where."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.spline.piecewise import Choice, Pieces, merged, over_axes, windows

# Where the pieces of activations meet that have no arguments; what lies between is read off the function itself.
_KNOTS = {
    **dict.fromkeys(["relu", "leakyrelu", "abs", "absolute"], (0.0,)),
    "relu6": (0.0, 6.0),
    "hardtanh": (-1.0, 1.0),
    "sparsesigmoid": (-1.0, 1.0),
    **dict.fromkeys(["hardsilu", "hardswish"], (-3.0, 3.0)),
    **dict.fromkeys(["softshrink", "hardshrink"], (-0.5, 0.5)),
}

_ACTIVATIONS = {name.replace("_", "") for name in dir(keras.activations)}


@dataclasses.dataclass(frozen=True)
class Smooth:
    """An activation that is not piecewise affine, not known, or out of sight.

    Attributes:
        description: what it is, as a message says it.
        sign: the input and the output of the call -> the sign of the pre-activation; None where it cannot be seen.
    """

    description: str
    sign: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None


@dataclasses.dataclass(frozen=True)
class Bend:
    """What a call does besides an affine map.

    Attributes:
        path: the layer's name, with the path of a nested model in front.
        shape: its `Pieces`, `Choice` or `Smooth`; None where the call is no activation and holds none.
        fused: whether the activation belongs to a layer that does something else before.
        last: whether the call makes outputs of the model that nothing in it reads.
    """

    path: str
    shape: Pieces | Choice | Smooth | None
    fused: bool
    last: bool

    @property
    def silent(self) -> bool:
        """Whether a unit that is off is a constant, as a ReLU's is and a LeakyReLU's is not."""
        return isinstance(self.shape, Pieces) and bool(np.all(np.asarray(self.shape.slopes[0]) == 0))

    def refuse(self, hint: str) -> None:
        """Raises the ValueError for an activation that is not piecewise affine."""
        if isinstance(self.shape, Smooth):
            described = self.shape.description
        elif self.shape.curved:
            described = "an activation that has a curved piece"
        else:
            described = "an activation of which the output does not tell the piece"
        raise ValueError(
            "Expected only piecewise-affine activations (ReLU, LeakyReLU, PReLU, ReLU6 ...) before the "
            f"output. Received: layer {self.path!r} with {described}; {hint}"
        )


Bits = Callable[[tuple, dict, tf.Tensor], list[tf.Tensor]]  # args, kwargs and output of a call -> its code, bit by bit


def bits_of_calls(model: Any, approximate: bool, max_pooling: bool) -> Iterator[tuple[Bend, Bits | None]]:
    """The `Bend` and the code of each call in a model's graph, in its order, nested models in their place.

    A smooth activation at the very output has no code, whether approximated or not.

    Args:
        model: a model whose graph is known.
        approximate: give the sign of the pre-activation for an activation that is not piecewise affine.
        max_pooling: give the arg-max of max-pooling.

    Raises:
        ValueError: a nested model whose graph is not known, or, unless `approximate`, an activation that is
            not piecewise affine.
    """
    for bend in bends(model):
        yield bend, _bits(bend, approximate, max_pooling)


def _bits(bend: Bend, approximate: bool, max_pooling: bool) -> Bits | None:
    shape = bend.shape
    if shape is None or (isinstance(shape, Choice) and shape.pooled and not max_pooling):
        return None
    if isinstance(shape, Choice):
        return lambda args, kwargs, y: shape.bits(shape.candidates(args, kwargs))
    if isinstance(shape, Pieces) and not bend.fused:
        return lambda args, kwargs, y: shape.bits(first(args, kwargs))
    if isinstance(shape, Pieces) and shape.told_by_output:
        return lambda args, kwargs, y: shape.bits_of_output(y)
    if bend.last and isinstance(shape, Smooth):
        return None
    if not approximate:
        bend.refuse("approximate=True takes the sign of the pre-activation where it is seen")
    if isinstance(shape, Pieces) or shape.sign is None:
        return None
    return lambda args, kwargs, y: [shape.sign(first(args, kwargs), y)]


def bends(model: Any) -> Iterator[Bend]:
    """The `Bend` of each call in a model's graph, in its order, nested models in their place.

    Raises:
        ValueError: a nested model whose graph is not known.
    """
    yield from _bends(model, _unread(model))


def _bends(model, unread: set[int], path: str = "") -> Iterator[Bend]:
    for node in _keras.nodes(model):
        name = path + getattr(node.layer, "code_name", node.layer.name)  # a SplineUnit has one
        last = unread.issuperset(node.outputs)
        if _keras.is_model(node.layer):
            inner = _keras.check_model(node.layer)
            yield from _bends(inner, _unread(inner) if last else set(), f"{name}/")
        else:
            yield Bend(name, _shape(node), _fused(node.layer), last)


def _unread(model) -> set[int]:
    """The model's outputs that no layer of it reads."""
    read = {tensor for node in _keras.nodes(model) for tensor in node.inputs}
    return {id(tensor) for tensor in model.outputs} - read


def first(args: tuple, kwargs: dict) -> Any:
    """The first argument of a call, by position or by name."""
    return next(iter((*args, *kwargs.values())))


def innermost(layer: Any) -> Any:
    """The layer inside TimeDistributed, and what tfmot wraps."""
    while _keras.of_class(layer, "Wrapper"):
        layer = layer.layer
    return layer


def _fused(layer) -> bool:
    layer = innermost(layer)
    return getattr(layer, "activation", None) is not None and not _keras.of_class(layer, "Activation")


def _shape(node) -> Pieces | Choice | Smooth | None:
    if _keras.op_name(node.layer) is not None:
        return _of_op(node)
    return shape_of(node.layer)


def shape_of(layer: Any) -> Pieces | Choice | Smooth | None:
    """What the activation of a layer, or in it, is; None without one."""
    pool, layer = layer, innermost(layer)
    known = _choice(pool, layer) or _known(layer)
    if known:
        return known
    hidden = _hidden(layer)
    if hidden is not None:
        return Smooth(f"the activation of {hidden.name!r} inside it, out of sight", None)
    if _keras.of_class(layer, "ELU", "Softmax"):
        return Smooth(_unknown(type(layer).__name__), _sign)
    activation = getattr(layer, "activation", None)
    while _keras.of_class(activation, "Activation"):
        activation = activation.activation
    name = getattr(activation, "__name__", None) or getattr(activation, "name", activation)
    if activation is None or name == "linear":
        return None
    pieces = _known(activation) or _of_function(activation, name)
    if pieces or not _fused(layer):
        return pieces or Smooth(_unknown(name), _sign)
    # A fused activation hides z, but sigmoid, tanh, GELU, swish, softplus ... are above their value at 0 just
    # where z > 0.
    return Smooth(_unknown(name), lambda z, y: y > activation(tf.zeros_like(y)))


def _sign(z, y):
    return z > 0


def _unknown(name):
    return f"activation {name!r}, which is smooth or not known"


def _hidden(layer) -> Any:
    """A layer inside `layer` that has an activation, out of sight from outside; None if there is none."""
    own = getattr(layer, "activation", None)
    return next((part for part in _keras.sublayers(layer) if part is not own and _active(part)), None)


def _active(layer) -> bool:
    found = shape_of(layer)
    return found is not None and not isinstance(found, Choice)


def _known(layer) -> Pieces | None:
    """The pieces of an activation that is a layer."""
    if _keras.of_class(layer, "ReLU"):
        slope, knot, ceiling = float(layer.negative_slope), float(layer.threshold), layer.max_value
        knots, slopes, offsets = (knot,), (slope, 1.0), (-slope * knot, 0.0)
        if ceiling is None:
            return Pieces(knots, slopes, offsets)
        return Pieces((*knots, float(ceiling)), (*slopes, 0.0), (*offsets, float(ceiling)))
    if _keras.of_class(layer, "LeakyReLU"):  # alpha: as tf_keras calls it
        slope = layer.negative_slope if hasattr(layer, "negative_slope") else layer.alpha
        return Pieces((0.0,), (float(slope), 1.0), (0.0, 0.0))
    if _keras.of_class(layer, "PReLU") and layer.built:  # Keras 3 does not build one that is another's activation
        return Pieces((0.0,), (layer.alpha, 1.0), (0.0, 0.0))
    if _keras.of_class(layer, "ThresholdedReLU"):
        return Pieces((float(layer.theta),), (0.0, 1.0), (0.0, 0.0))
    return None


def _of_function(function, name: str) -> Pieces | None:
    """The pieces of an elementwise function, by its name; None if they are not known."""
    name = name.replace("_", "")
    if name == "hardsigmoid":  # in Keras 3 it is flat from 3 on, in tf_keras from 2.5 on
        low, high = np.asarray(function(tf.constant([0.0, 1.0], tf.float64)))
        return Pieces.of(function, (-low / (high - low), (1 - low) / (high - low)))
    return Pieces.of(function, _KNOTS[name]) if name in _KNOTS else None


# The arguments of bare ops that say where their pieces meet: TensorFlow's names and those of Keras 3.
_BOUNDS = {"clip": ("x_min", "x_max"), "clipbyvalue": ("clip_value_min", "clip_value_max")}

_CHOICES = {
    **dict.fromkeys(["maximum", "max", "amax", "reducemax"], 1),
    **dict.fromkeys(["minimum", "min", "amin", "reducemin"], -1),
}


def _of_op(node) -> Pieces | Choice | Smooth | None:
    layer, name = node.layer, _keras.op_name(node.layer).replace("_", "")

    def function(z):
        args, kwargs = node.fill(dict.fromkeys(node.inputs, z))
        return layer(*args, **kwargs)

    def argument(key):
        return _keras.arguments(layer, *node.fill(dict.fromkeys(node.inputs))).get(key)

    if name in ("maximum", "minimum"):
        return Choice(merged, _CHOICES[name], pooled=False)
    if name in _CHOICES:
        axes, keepdims = argument("axis"), bool(argument("keepdims"))
        rank = len(node.output_shapes[0])
        if axes is None or 0 in np.atleast_1d(axes) or not rank:
            return Smooth(f"the op {name!r} over the batch", None)
        return Choice(lambda args, kwargs: over_axes(first(args, kwargs), axes, keepdims), _CHOICES[name], pooled=True)
    if name in _BOUNDS:
        bounds = [argument(key) for key in _BOUNDS[name]]
        if any(bound is None or np.ndim(bound) for bound in bounds):
            return Smooth(f"the op {name!r} with bounds that are no numbers", _sign)
        return Pieces.of(function, tuple(map(float, bounds)))
    if name in ("softshrink", "hardshrink"):
        return Pieces.of(function, (-argument("threshold"), argument("threshold")))
    if name == "relu" and argument("max_value") is not None:
        return Pieces.of(function, (argument("threshold"), argument("max_value")))
    if name in ("relu", "threshold") and argument("threshold"):
        return Pieces.of(function, (argument("threshold"),))
    return _of_function(function, name) or (Smooth(_unknown(name), _sign) if name in _ACTIVATIONS else None)


def _choice(layer, inner) -> Choice | None:
    """What a max-pooling layer or Maximum chooses from; `inner` is the layer inside TimeDistributed."""
    if _keras.of_class(inner, "Maximum", "Minimum"):
        return Choice(merged, 1 if _keras.of_class(inner, "Maximum") else -1, pooled=False)
    if _keras.of_class(inner, *(f"MaxPooling{n}D" for n in (1, 2, 3))):

        def candidates(x):
            return windows(x, inner)

    elif _keras.of_class(inner, *(f"GlobalMaxPooling{n}D" for n in (1, 2, 3))):

        def candidates(x):
            places = np.delete(np.arange(x.shape.rank), [0, 1 if inner.data_format == "channels_first" else -1])
            return over_axes(x, places, inner.keepdims)

    else:
        return None

    def of_call(args, kwargs):
        x = first(args, kwargs)
        if layer is inner:
            return candidates(x)
        z = candidates(tf.reshape(x, [-1, *x.shape[2:]]))  # TimeDistributed: one time after the other
        return tf.reshape(z, [-1, x.shape[1], *z.shape[1:]])

    return Choice(of_call, 1, pooled=True)
