"""A network taken apart, in float64: affine maps, and what bends their results."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.spline.activations import Bend, bends, first, innermost
from tfspline.spline.piecewise import Choice, Pieces, windows

Shape = Pieces | Choice
Freeze = Callable[[Shape, tf.Tensor], tf.Tensor]  # what a bend does to z: the pieces, z -> y


def at_own_piece(shape: Shape, z: tf.Tensor) -> tf.Tensor:
    """Each z by the piece in which it lies: the network itself."""
    return shape.apply(z, shape.code(z))


def at_pieces_of(network: "Network", values: list[tf.Tensor]) -> Freeze:
    """Each z by the piece of the sample in the same row of `values`: that sample's affine map. Good for one run."""
    codes = []

    def record(shape, z):
        codes.append(shape.code(z))
        return shape.apply(z, codes[-1])

    network.run(values, record)
    remaining = iter(codes)
    return lambda shape, z: shape.apply(z, next(remaining))


@dataclasses.dataclass(frozen=True)
class Step:
    """One call in a network taken apart.

    Attributes:
        name: the layer's path.
        affine: args and kwargs of the call -> the tensor or tensors that its affine part makes of them.
        shape: what bends the result, or None.
    """

    name: str
    affine: Callable[[tuple, dict], Any]
    shape: Shape | None


class Network:
    """A model in float64, taken apart into affine maps and what bends their results.

    Attributes:
        model: the model, whose weights are read and never changed.
        steps: a `Step` for each call, in the order in which `_keras.run` visits them with `nested`.

    Args:
        model: see `affine_map`, also for what is refused.
        logits: leave out a smooth activation at the very output.
    """

    def __init__(self, model: Any, logits: bool = False):
        self.model = _keras.check_model(model)
        copies = {}
        nodes = _keras.nodes(model, nested=True)
        self.steps = [_step(node, bend, logits, copies) for node, bend in zip(nodes, bends(model), strict=True)]

    def run(self, inputs: list[tf.Tensor], freeze: Freeze) -> tf.Tensor:
        """The outputs, float64 [rows, numbers], all bends done by `freeze`."""
        steps = iter(self.steps)

        def visit(node, args, kwargs):
            step = next(steps)
            z = step.affine(args, kwargs)
            return z if step.shape is None else freeze(step.shape, z)

        return flat(_keras.run(self.model, inputs, visit, nested=True))


def flat(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Tensors [rows, ...] side by side, float64 [rows, numbers]."""
    return tf.concat([tf.cast(tf.reshape(tensor, [len(tensor), -1]), tf.float64) for tensor in tensors], axis=1)


def _dimensions(*names):
    return [f"{name}{n}D" for name in names for n in (1, 2, 3)]


# Layers that are affine but for an activation of their own.
_LAYERS = {
    *("Dense", "EinsumDense", "BatchNormalization", "Rescaling", "Normalization", "LayerScale", "CustomScaleLayer"),
    *_dimensions("Conv", "DepthwiseConv", "SeparableConv", "AveragePooling", "GlobalAveragePooling"),
    *(f"Conv{n}DTranspose" for n in (1, 2, 3)),
    *_dimensions("ZeroPadding", "Cropping", "UpSampling", "SpatialDropout"),
    *("Flatten", "Reshape", "Permute", "RepeatVector", "Concatenate", "Add", "Subtract", "Average", "Activation"),
    *("Identity", "Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
    "StochasticDepth",
}
_OPS = {
    *("add", "subtract", "addn", "neg", "negative", "mean", "reducemean", "sum", "reducesum", "identity", "cast"),
    *("reshape", "transpose", "permutedims", "concatenate", "concat", "stack", "squeeze", "expanddims", "pad", "tile"),
    *("getitem", "repeat", "flip", "broadcastto", "moveaxis", "swapaxes", "stopgradient"),
}
_SCALINGS = {"multiply", "divide", "truedivide", "truediv", "realdiv"}  # affine where the other one is a constant


def _step(node, bend: Bend, logits: bool, copies: dict) -> Step:
    shape = bend.shape
    if shape is not None and not isinstance(shape, Shape):
        if not (logits and bend.last):
            bend.refuse("logits=True leaves it out" if bend.last else "on no region is such a network one affine map")
        shape = None
        if not bend.fused:
            return Step(bend.path, first, None)
    elif shape is not None and shape.curved:
        bend.refuse("on no region is such a network one affine map")
    elif isinstance(shape, Choice):
        return Step(bend.path, shape.candidates, shape)
    elif shape is not None and not bend.fused:
        return Step(bend.path, first, shape)
    if not _affine(node):
        raise ValueError(
            f"Expected a model of layers that are affine, or in affine pieces. Received: layer {bend.path!r} "
            f"({type(node.layer).__name__}), which is not, or not known to be"
        )
    return Step(bend.path, without_activation(node, copies), shape)


def without_activation(node: _keras.Node, copies: dict) -> Callable[[tuple, dict], Any]:
    """A call in float64, of args and kwargs, without the activation that its layer may have; the copy of each layer is
    kept in `copies` by the id of the original."""
    if _keras.op_name(node.layer):
        return _bare(node)
    if _keras.of_class(node.layer, "AveragePooling3D"):  # TensorFlow has it in float32 only
        return lambda args, kwargs: _average(first(args, kwargs), node.layer)
    return _copy(node.layer, copies)


def _average(x, layer):
    held, total = (tf.reduce_sum(windows(value, layer, 0), axis=-1) for value in (tf.ones_like(x), x))
    return total / held


def _affine(node) -> bool:
    name = _keras.op_name(node.layer)
    if name is None:
        layer = innermost(node.layer)
        return hasattr(layer, "code_name") or _keras.builtin_class_name(layer) in _LAYERS  # a SplineUnit has one
    name = name.replace("_", "")
    if name not in _SCALINGS:
        return name in _OPS
    varying = object()
    arguments = _keras.arguments(node.layer, *node.fill(dict.fromkeys(node.inputs, varying)))
    operands = [key for key, value in arguments.items() if value is varying]
    return operands in (["x"], ["x1"]) or (name == "multiply" and len(operands) == 1)


def _bare(node) -> Callable[[tuple, dict], Any]:
    """A bare op in float64, its constants included."""
    if _keras.op_name(node.layer) == "cast":
        return first

    def in_float64(value):
        if tf.is_tensor(value) or isinstance(value, np.ndarray):
            return tf.cast(value, tf.float64) if tf.as_dtype(value.dtype).is_floating else value
        return value

    def op(args, kwargs):
        args, kwargs = tf.nest.map_structure(in_float64, (args, kwargs))
        return node.layer(*args, **kwargs)

    return op


def _copy(layer, copies: dict) -> Callable[[tuple, dict], Any]:
    """A layer in float64 without its activation, with its weights; made at its first call, and once for all calls."""

    def call(args, kwargs):
        if id(layer) not in copies:
            copies[id(layer)] = _linear(layer, args, kwargs)
        return copies[id(layer)](*args, **kwargs)

    return call


def _linear(layer, args, kwargs):
    while _keras.of_class(layer, "Wrapper") and not _keras.of_class(layer, "TimeDistributed"):
        layer = layer.layer
    config, inner = layer.get_config(), layer
    configs = [config]
    while _keras.of_class(inner, "Wrapper"):
        inner = inner.layer
        configs.append(configs[-1]["layer"]["config"])
    for one in configs:
        one["dtype"] = "float64"
    if "activation" in configs[-1]:
        configs[-1]["activation"] = "linear"
    copy = _keras.from_config(type(layer), config)
    copy(*args, **kwargs)  # builds it
    # Weights of an activation that is a layer come last; the copy has none.
    for mine, theirs in zip(copy.weights, layer.weights, strict=False):
        mine.assign(tf.cast(tf.convert_to_tensor(theirs), mine.dtype))
    _keras.finalize(copy)
    return copy
