"""Layers and bare ops that act on each number alone, and elementwise merges of several tensors."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.dependence import any_input, nowhere, product, same_position
from tfspline.graph.layer_specs.functions import NOT_FINITE, NUMERIC
from tfspline.graph.layer_specs.spec import LayerSpec, each_dimension, unknown
from tfspline.graph.piecewise import ArgmaxChoice


def pass_through(call: Call) -> np.ndarray:
    """The channels of the output are those of the input."""
    return call.inputs[0]


def rescaling(call: Call) -> np.ndarray | list[np.ndarray]:
    """Elementwise if all channels are scaled alike. A scale for each channel is in the config and cannot be sliced."""
    alike = np.ndim(call.layer.scale) == np.ndim(call.layer.offset) == 0
    return call.inputs[0] if alike else unknown(call, "has a scale for each channel in its config, which cannot be cut")


def layer_scale(call: Call) -> np.ndarray:
    """The LayerScale of ConvNeXt: one factor for each channel."""
    call.per_channel("gamma", 0, call.channels())
    return call.inputs[0]


def merge(call: Call) -> np.ndarray | list[np.ndarray]:
    """Add, Multiply, Maximum ...: channels that meet at a position are one unit; axes of length 1 are broadcast.

    Also the rule of bare ops that act on each number alone. Constants are cut with the units along their axes.
    """
    ids = _met(call)
    if isinstance(ids, np.ndarray):
        for place, value in call.constants().items():
            shape = np.shape(value)
            if len(shape) > ids.ndim + 1:
                call.protect(ids, f"{call.described()} reads a constant that adds axes")
            axes = [axis for axis in range(-min(len(shape), ids.ndim), 0) if shape[axis] > 1 < ids.shape[axis]]
            if axes:
                call.cut_constant(place, ids, {axis: axis for axis in axes})
    return ids


def _met(call: Call) -> np.ndarray | list[np.ndarray]:
    """The ids of the inputs, those that meet at a position tied."""
    if len(call.inputs) == 1:
        return call.inputs[0]
    if len({ids.ndim for ids in call.inputs}) > 1:
        return unknown(call, "combines inputs of different ranks")
    target = np.broadcast_shapes(*(ids.shape for ids in call.inputs))
    met: list[np.ndarray] = []
    repeated: list[np.ndarray] = []
    for i, ids in enumerate(call.inputs):
        ids = np.broadcast_to(ids, [1 if real == 1 else n for real, n in zip(call.shape(i), target, strict=True)])
        (met if ids.shape == target else repeated).append(ids)
    if not met:
        return unknown(call, "broadcasts all of them over several channels")
    for other in met[1:]:
        call.tie(met[0], other)
    for ids in repeated:
        call.broadcast(ids, met[0])
    return met[0]


def divide(call: Call) -> np.ndarray | list[np.ndarray]:
    """Division by a scalar is elementwise; if units are divisors, removing them by zeros would divide by zero."""
    numerators = call.input("x1"), call.input("x")  # the names in Keras 3 and in TensorFlow
    if len(call.inputs) == 1 and numerators != (None, None):
        return merge(call)
    return unknown(call, "divides by units, and a removed one would be zero")


def power(call: Call) -> np.ndarray | list[np.ndarray]:
    """A power of units with a constant exponent of at least 1, which has a finite slope at 0, or of a constant."""
    name = "x2" if call.argument("x2") is not None else "y"  # in Keras 3, in TensorFlow
    if len(call.inputs) > 1 or (call.input(name) is None and np.min(np.asarray(call.argument(name))) < 1):
        for ids in call.inputs:
            call.protect(ids, f"{call.described()} {NOT_FINITE}")
    return merge(call)


def dropout(call: Call) -> np.ndarray:
    """Noise for each channel of its own, by the argument `noise_shape`, is cut with the channels."""
    ids, sizes = call.inputs[0], tuple(getattr(call.layer, "noise_shape", None) or ())
    own = [i for i in range(-min(ids.ndim, len(sizes)), 0) if sizes[i] not in (None, 1) and ids.shape[i] > 1]
    rows = {len(sizes) + i: call.channels(axis=i) for i in own[-1:]}
    if rows:
        call.resize(
            "noise_shape", lambda kept: tuple(int(kept[rows[i]].sum()) if i in rows else n for i, n in enumerate(sizes))
        )
    return ids


def _zeros(call: Call) -> np.ndarray:
    """zeros_like: reads no values. Unrolling adds it to a weight to give this the shape of a batch."""
    return call.fixed((1,) * len(call.output_shapes[0]), f"{call.described()} is zero for all of them")


def _candidates(args: tuple, kwargs: dict) -> tf.Tensor:
    """The candidates of Maximum and Minimum: the arguments of the call, broadcast against each other."""
    values: Any = (*args, *kwargs.values())
    if not any(map(tf.is_tensor, values)):  # a layer gets a list of them
        (values, *_) = values
    values = [value for value in values if not isinstance(value, (str, bool, type(None)))]
    dtype = next(value.dtype for value in values if tf.is_tensor(value))
    values = [tf.cast(value, dtype) for value in values]
    shape = values[0].shape
    for value in values[1:]:
        shape = tf.broadcast_static_shape(shape, value.shape)
    return tf.stack([tf.broadcast_to(value, shape) for value in values], axis=-1)


def _scales(node: _keras.Node) -> bool:
    """Whether a product or quotient has only one varying operand, and in a quotient this is the numerator."""
    varying = object()
    arguments = _keras.arguments(node.layer, *node.fill(dict.fromkeys(node.inputs, varying)))
    operands = [key for key, value in arguments.items() if value is varying]
    return operands in (["x"], ["x1"]) or (_keras.op_name(node.layer) == "multiply" and len(operands) == 1)


ELEMENTWISE = LayerSpec(pass_through, elementwise=True, dependence=same_position)
_PASS_THROUGH = LayerSpec(pass_through, affine=True, elementwise=True, dependence=same_position)
_DROPOUT = dataclasses.replace(_PASS_THROUGH, rule=dropout)
_MERGE = LayerSpec(merge, elementwise=True, dependence=any_input)
_AFFINE_MERGE = LayerSpec(merge, affine=True, elementwise=True, dependence=any_input)
_SUM = LayerSpec(merge, affine=True, elementwise=True, adds=True, dependence=any_input)
_PRODUCT = LayerSpec(merge, elementwise=True, dependence=product)
_MAXIMUM = dataclasses.replace(_MERGE, activation=lambda layer: ArgmaxChoice(_candidates, 1, pooled=False))
_MINIMUM = dataclasses.replace(_MERGE, activation=lambda layer: ArgmaxChoice(_candidates, -1, pooled=False))
_QUOTIENT = LayerSpec(divide, affine=_scales, elementwise=True, dependence=any_input)

LAYERS: dict[str, LayerSpec] = {
    **dict.fromkeys(["Dropout", "AlphaDropout"], _DROPOUT),
    **dict.fromkeys(["Identity", "GaussianDropout", "GaussianNoise"], _PASS_THROUGH),
    **dict.fromkeys(["ActivityRegularization", *each_dimension("SpatialDropout")], _PASS_THROUGH),
    "StochasticDepth": _PASS_THROUGH,  # this one and the next two are defined by keras.applications
    "CustomScaleLayer": _AFFINE_MERGE,
    "LayerScale": LayerSpec(layer_scale, affine=True, elementwise=True, dependence=same_position),
    "Rescaling": LayerSpec(rescaling, affine=True, elementwise=True, dependence=same_position),
    "Normalization": LayerSpec(affine=True),
    "Add": _SUM,
    **dict.fromkeys(["Subtract", "Average"], _AFFINE_MERGE),
    "Multiply": _PRODUCT,
    "Maximum": _MAXIMUM,
    "Minimum": _MINIMUM,
}

OPS: dict[str, LayerSpec] = {
    "add": _SUM,
    **dict.fromkeys(["subtract", "negative", "identity", "stopgradient"], _AFFINE_MERGE),
    **dict.fromkeys(
        ["cast", "converttotensor"],
        LayerSpec(merge, affine=True, elementwise=True, dependence=any_input, float64=lambda op, x: x),
    ),
    **dict.fromkeys(NUMERIC - {"negative", "identity", "stopgradient"}, _MERGE),
    "multiply": LayerSpec(merge, affine=_scales, elementwise=True, dependence=product),
    **dict.fromkeys(["divide", "truedivide", "truediv", "realdiv"], _QUOTIENT),
    "maximum": _MAXIMUM,
    "minimum": _MINIMUM,
    **dict.fromkeys(["power", "pow"], LayerSpec(power, elementwise=True, dependence=any_input)),
    "addn": _SUM,
    "neg": _AFFINE_MERGE,
    "zeroslike": LayerSpec(_zeros, affine=True, elementwise=True, dependence=nowhere),
}
