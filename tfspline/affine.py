"""Affine maps: what a network is on the region that an input lies in, exactly."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.cuts import Bend, bends, first, unwrapped
from tfspline.inputs import check_inputs
from tfspline.pieces import Choice, Pieces, windows


def affine_map(
    model: Any, x: Any, outputs: Any = None, logits: bool = False, batch_size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """The affine map that a network is on the region of each input: f(x') = A x' + b for all x' of x's code.

    The code of x says which piece of every activation (and which place of every max-pooling window) counts. Frozen at
    these pieces, the network is a chain of affine maps whose product is A, and b is what the chain makes of 0
    (Balestriero and Baraniuk, "A Spline Theory of Deep Learning", ICML 2018). All is computed in float64 from the
    model's weights, so that what f(x) differs from A x + b by is the rounding of the model itself.

    Known are Dense, convolutions of all kinds, BatchNormalization, average and max pooling, padding, cropping,
    upsampling, reshapes, Add, Subtract, Average, Concatenate, Maximum, Minimum, all activations in pieces, the bare
    ops that do the same, nested models, shared layers, TimeDistributed. Everything else is refused by name.

    For each sample and output number the network runs once forward and once backward, in float64; or, where a sample
    has fewer numbers than outputs are asked for, twice forward for each of its numbers. A takes 8 bytes a sample,
    output and input number: 240 KiB a 32x32x3 image of ten classes.

    Args:
        model: a built functional or Sequential model, Keras 3 or tf_keras.
        x: an array or tensor `[samples, ...]`; for several inputs a list in the order of `model.inputs`, or a
            dict by name.
        outputs: which numbers of the flattened output to map, an int or a list of ints; all by default.
        logits: leave out a smooth activation at the very output (softmax, sigmoid): the map is that of what goes into
            it.
        batch_size: how many rows run at a time.

    Returns:
        A, float64 `[samples, outputs, inputs]`, and b, float64 `[samples, outputs]`, the outputs and the inputs
        flattened; several of them lie one behind the other, in the order of `model.outputs` and `model.inputs`.
        With an int for `outputs`, both lack that axis.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: a model whose graph is not known, or with a layer that is neither affine nor in affine pieces;
            inputs that do not fit the model, or none; outputs that it does not have.

    Example:

    >>> layers = [keras.Input((2,)), keras.layers.Dense(1, "relu", kernel_initializer="ones"), keras.layers.Flatten()]
    >>> A, b = tfspline.affine_map(keras.Sequential(layers), np.array([[1.0, 2.0], [-1.0, -2.0]]))
    >>> A.tolist(), b.tolist()
    ([[[1.0, 1.0]], [[0.0, 0.0]]], [[0.0], [0.0]])
    """
    if batch_size < 1:
        raise ValueError(f"Expected a batch_size of at least 1. Received: {batch_size}")
    network = Network(model, logits)
    values = [tf.cast(value, tf.float64) for value in check_inputs(network.model, x)]
    samples, inputs = len(values[0]), sum(value[0].shape.num_elements() for value in values)
    chosen = _chosen(outputs, network.run([value[:1] for value in values], at_own_piece).shape[1])

    b = np.empty((samples, chosen.size))
    for rows in _chunks(np.arange(samples), batch_size):
        here = _take(values, rows)
        b[rows] = tf.gather(network.run(_zeros(here), at_pieces_of(network, here)), chosen, axis=1)

    if chosen.size <= inputs:
        A = np.empty((samples, chosen.size, inputs))
        for rows, output in _pairs(samples, chosen.size, batch_size):
            A[rows, output] = _transposed(network, _take(values, rows), chosen[output])
    else:
        A = np.empty((samples, inputs, chosen.size))
        for rows, number in _pairs(samples, inputs, batch_size):
            here = _take(values, rows)
            there = _split(tf.one_hot(number, inputs, dtype=tf.float64), here)
            image = network.run(there, at_pieces_of(network, here))
            A[rows, number] = tf.gather(image, chosen, axis=1) - b[rows]
        A = A.transpose(0, 2, 1)
    return (A[:, 0], b[:, 0]) if np.ndim(outputs) == 0 and outputs is not None else (A, b)


def _chosen(outputs, size):
    chosen = np.arange(size) if outputs is None else np.atleast_1d(outputs)
    if chosen.ndim > 1 or chosen.dtype.kind not in "iu" or (chosen < -size).any() or (chosen >= size).any():
        raise ValueError(f"Expected numbers of outputs in [-{size}, {size}). Received: {outputs!r}")
    return chosen % size


def _pairs(samples, others, batch_size):
    """All pairs of a sample and another number, as two arrays a chunk."""
    for chunk in _chunks(np.arange(samples * others), batch_size):
        yield np.divmod(chunk, others)


def _chunks(array, size):
    return (array[start : start + size] for start in range(0, len(array), size))


def _take(values, rows):
    return [tf.gather(value, rows) for value in values]


def _zeros(values):
    return [tf.zeros_like(value) for value in values]


def _split(rows, like):
    """Flattened inputs [rows, numbers] as tensors of the shapes of `like`."""
    parts = tf.split(rows, [value[0].shape.num_elements() for value in like], axis=1)
    return [tf.reshape(part, [-1, *value.shape[1:]]) for part, value in zip(parts, like, strict=True)]


def _transposed(network, values, outputs):
    """Row `outputs[i]` of the map of sample i: the frozen network, which is affine, run backwards."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        y = tf.gather(network.run(values, at_own_piece), outputs, batch_dims=1)
    rows = tape.gradient(y, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.concat([tf.reshape(row, [len(row), -1]) for row in rows], axis=1)


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
        layer = unwrapped(node.layer)
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
    if hasattr(copy, "finalize_state"):  # Normalization reads its weights only here
        copy.finalize_state()
    return copy
