"""Refitting: a layer of a cut model gets the weights that come nearest to what it makes in the uncut model.

Beyond the paper. By least squares over all taps of all inputs that are left, the inputs coming from the cut model. What
counts is the pre-activation at the ReLU that follows, BatchNormalization and a residual add in between included:

- another branch of the add has drifted from the uncut model already, and the layer makes up for that;
- on the off side of a ReLU's cut every value does as well as another, as long as it stays there.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.reader import Graph
from tfspline.pruning.units import folded, value_of

RIDGE = 1e-3  # of the mean variance of an input: what changing a weight costs against the error that it mends
TURNS = 4  # least squares again and again, as units change sides
_CHUNK = 2**25  # numbers of a layer's unfolded inputs that are in memory at a time


@dataclasses.dataclass
class Goal:
    """Where a layer's output goes: through a BatchNormalization of its own (the path), to the other tensors that are
    added to it, and whether a ReLU follows."""

    bn: str | None = None
    others: tuple[int, ...] = ()
    relu: bool = False


def goals(model: Any, graph: Graph) -> dict[str, Goal]:
    """The layers that can be refitted: Dense and ungrouped convolutions that are called once."""
    nodes = list(_keras.nodes(model, nested=True))
    readers, shapes = {}, {}
    for node in nodes:
        shapes.update(zip(node.outputs, node.output_shapes, strict=True))
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(node)

    def only_reader(node):
        after = readers.get(node.outputs[0], ())
        return after[0] if len(after) == 1 and len(node.outputs) == 1 else None

    found = {}
    for node in nodes:
        if node.path in graph.shared or not is_linear(node.layer):
            continue
        if _keras.activation_name(node.layer) != "linear":
            found[node.path] = Goal(relu=_has_relu(node.layer))
            continue
        bn, others, after, end = None, (), only_reader(node), node
        if after and after.path == graph.folded.get(node.path) and after.path not in graph.shared:
            bn, after, end = after.path, only_reader(after), after
            if getattr(end.layer, "activation", None):  # a SplineUnit
                found[node.path] = Goal(bn, relu=_has_relu(end.layer))
                continue
        if after and is_add(after.layer) and len({shapes.get(tensor) for tensor in after.inputs}) == 1:
            others = tuple(tensor for tensor in after.inputs if tensor not in end.outputs)
            after = only_reader(after)
        found[node.path] = Goal(bn, others, bool(after) and is_relu(after.layer))
    return found


def is_linear(layer: Any) -> bool:
    """Whether a layer can be merged and refitted: Dense, or an ungrouped convolution."""
    name = _keras.builtin_class_name(layer)
    if name in ("Conv1D", "Conv2D", "Conv3D") and layer.groups == 1 and layer.padding in ("valid", "same"):
        # The gradient of a convolution whose strides leave gaps can corrupt memory in TensorFlow 2.21 (CPU).
        gaps = any(size < stride for size, stride in zip(layer.kernel_size, layer.strides, strict=True))
        return not gaps or _is_pointwise(layer)
    return name == "Dense"


def _is_pointwise(layer):
    return set(layer.kernel_size) == {1}


def is_add(layer: Any) -> bool:
    """Whether a layer or bare op adds tensors."""
    return _keras.of_class(layer, "Add") or _keras.op_name(layer) == "add"


def is_relu(layer: Any) -> bool:
    """Whether a layer or bare op is max(x, 0)."""
    if _keras.of_class(layer, "ReLU"):
        return layer.max_value is None and not layer.negative_slope and not layer.threshold
    return _keras.of_class(layer, "Activation") and _has_relu(layer)


def _has_relu(layer):
    """Whether the activation of a layer is max(x, 0), by name or as a layer."""
    return _keras.activation_name(layer) == "relu" or is_relu(layer.activation)


def channel_axis(layer: Any) -> int:
    """The axis of the channels in the inputs and outputs of a layer."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def refit(whole: Any, layer: Any, bn: Any, x: Any, makes: np.ndarray, relu: bool, others: list) -> None:
    """Refits a layer of the cut model in place.

    Args:
        whole: the layer in the uncut model.
        layer: the layer in the cut model.
        bn: the BatchNormalization that directly follows it in the cut model, or None.
        x: its inputs, `x.whole` in the uncut model and `x.cut` in the cut model.
        makes: bool [channels], which outputs of `whole` are left.
        relu: whether what counts is the value after a ReLU.
        others: pairs as `x` of what is added to the output.
    """
    inputs, wanted = _last(layer, x.cut), _last(layer, x.whole)
    slope, shift = folded(bn) if bn is not None else (1.0, 0.0)
    slope = np.where(np.abs(slope) > 1e-6, slope, 1.0)  # nothing passes there, so nothing is to be fitted
    others = [(_last(layer, other.whole), _last(layer, other.cut)) for other in others]
    kept = np.flatnonzero(makes)

    rest = shift + sum(cut for _, cut in others)
    goal = tf.gather(_linear(whole, wanted, value_of(whole.kernel), _bias(whole)), kept, axis=-1)
    goal = goal * slope + shift + sum(tf.gather(one, kept, axis=-1) for one, _ in others)

    kernel, bias = tf.constant(value_of(layer.kernel)), _bias(layer)
    shifted = layer.use_bias or bn is not None
    few = np.prod(goal.shape[:-1]) < np.prod(kernel.shape[:-1])
    solve = few_rows(_unfolded(layer, inputs), shifted) if few else _many_rows(layer, inputs, shifted)
    for turn in range(TURNS if relu else 1):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            made = _linear(layer, inputs, kernel, bias)
        nearest = tf.where(goal > 0, goal, tf.minimum(made * slope + rest, 0)) if relu and turn else goal
        error = (nearest - rest) / slope - made
        change, missing = solve(_matrix(error)) if few else solve(error, tape.gradient(made, kernel, error))
        kernel += tf.reshape(change, kernel.shape)
        bias += missing
    layer.kernel.assign(kernel.numpy())
    if layer.use_bias:
        layer.bias.assign(bias.numpy())
    elif bn is not None:
        bn.moving_mean.assign(value_of(bn.moving_mean) - bias.numpy())


def few_rows(x: Any, shifted: bool) -> Any:
    """Least squares with fewer rows than features, where X X^T is the smaller matrix.

    Args:
        x: float32 [rows, features].
        shifted: whether there is an offset.

    Returns:
        A function: y, float64 [rows, outputs] -> W, float32 [features, outputs], and offset b, float32 [outputs], that
        minimise |X W + b - y|^2 + ridge |W|^2, with b = 0 unless `shifted`.
    """
    mean = tf.reduce_mean(x, 0) if shifted else tf.zeros_like(x[0])
    x = x - mean
    gram = tf.cast(tf.matmul(x, x, transpose_b=True), tf.float64)
    factor = _factor(gram, x.shape[1])

    def solve(y):
        missing = tf.reduce_mean(y, 0) if shifted else tf.zeros_like(y[0])
        change = tf.matmul(x, tf.cast(tf.linalg.cholesky_solve(factor, y - missing), tf.float32), transpose_a=True)
        return change, tf.cast(missing, tf.float32) - tf.tensordot(mean, change, 1)

    return solve


def _many_rows(layer, inputs, shifted):
    """As `few_rows`, of a layer's unfolded inputs X, which are too many to be kept: a function of y and X^T y."""
    rows, mean, gram = _moments(layer, inputs, shifted)
    factor = _factor(gram, len(gram))

    def solve(y, cross):
        missing = tf.reduce_mean(_matrix(y), 0) if shifted else tf.zeros(y.shape[-1], tf.float64)
        change = tf.linalg.cholesky_solve(factor, _matrix(cross) - rows * mean[:, None] * missing[None, :])
        return tf.cast(change, tf.float32), tf.cast(missing - tf.tensordot(mean, change, 1), tf.float32)

    return solve


def _factor(gram, features):
    ridge = RIDGE * tf.linalg.trace(gram) / features + np.finfo(np.float32).tiny
    return tf.linalg.cholesky(gram + ridge * tf.eye(len(gram), dtype=tf.float64))


def _moments(layer, inputs, shifted):
    """Rows, means (zero unless `shifted`) and the matrix of second moments about them of a layer's unfolded inputs."""
    samples = max(1, _CHUNK // int(np.prod(layer.kernel.shape[:-1]) * np.prod(inputs.shape[1:-1])))
    rows, total, gram = 0, 0.0, 0.0
    for start in range(0, len(inputs), samples):
        x = _unfolded(layer, inputs[start : start + samples])
        if shifted and not rows:
            origin = tf.reduce_mean(x, 0)  # moments about a point near the mean lose no digits
        x = x - origin if shifted else x
        rows += len(x)
        total += tf.cast(tf.reduce_sum(x, 0), tf.float64)
        gram += tf.cast(tf.matmul(x, x, transpose_a=True), tf.float64)
    if not shifted:
        return rows, tf.zeros_like(total), gram
    off = total / rows
    return rows, off + tf.cast(origin, tf.float64), gram - rows * off[:, None] * off[None, :]


def _unfolded(layer, x):
    """The inputs of a layer as a matrix [samples and positions, fan_in], to be multiplied with its kernel as one."""
    window = tuple(layer.kernel.shape[:-2])
    fan_in = int(np.prod(layer.kernel.shape[:-1]))
    if window:
        x = _linear(layer, x, tf.reshape(tf.eye(fan_in), [*window, -1, fan_in]), 0.0)
    return tf.reshape(x, [-1, fan_in])


def _matrix(x):
    """Everything but the last axis in one, as float64."""
    return tf.cast(tf.reshape(x, [-1, x.shape[-1]]), tf.float64)


def _linear(layer, x, kernel, bias):
    """What a layer makes of channels-last inputs with other weights, without its activation."""
    if len(kernel.shape) == 2:
        return tf.tensordot(x, kernel, 1) + bias
    if _is_pointwise(layer):
        read = x[(slice(None), *(slice(None, None, stride) for stride in layer.strides))]
        return tf.tensordot(read, tf.reshape(kernel, kernel.shape[-2:]), 1) + bias
    return tf.nn.convolution(x, kernel, layer.strides, layer.padding.upper(), dilations=layer.dilation_rate) + bias


def _bias(layer):
    return value_of(layer.bias) if layer.use_bias else np.float32(0)


def _last(layer, x):
    """A tensor as float32, its channels on the last axis."""
    x = tf.cast(x, tf.float32)
    return tf.transpose(x, [0, *range(2, x.shape.rank), 1]) if channel_axis(layer) == 1 else x
