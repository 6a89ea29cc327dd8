"""Refitting: fits a layer of a cut model, by least squares, to its output in the uncut model (beyond the paper).

The layer's inputs come from the cut model. The fit compares outputs where the ReLU that follows reads them, after
BatchNormalization and a residual add in between:

- another branch of the add already differs from the uncut model, and the layer makes up for that;
- where a ReLU is off in the uncut model, any negative value is as good as another.
"""

import dataclasses
import types
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer, KerasModel
from tfspline.graph.layer_specs.registry import has_relu, is_fused, spec_of
from tfspline.graph.structure import Graph
from tfspline.graph.weights import folded, value_of

RIDGE = 1e-3  # share of the mean variance of an input: the cost of changing a weight, against the error it removes
TURNS = 4  # least-squares fits per layer with a ReLU; values change sides in between
_FLAT = 1e-3  # share of the square of a mean that counts as variance: far above its rounding error, far below a signal
_CHUNK = 2**25  # numbers of a layer's unfolded inputs that are in memory at a time


@dataclasses.dataclass
class Pair:
    """A tensor of the uncut model and the corresponding tensor of the cut model."""

    whole: tf.Tensor
    cut: tf.Tensor


@dataclasses.dataclass
class Goal:
    """Where a layer's output is compared."""

    bn: str | None = None  # path of a BatchNormalization that follows and reads nothing else
    others: tuple[int, ...] = ()  # ids of the tensors that are added to the output
    relu: bool = False  # whether a ReLU follows


def goals(model: KerasModel, graph: Graph) -> dict[str, Goal]:
    """The goals of the layers that can be refitted, by path: Dense, ungrouped convolutions, attention; called once."""
    tensors = _Tensors(_keras.nodes(model, nested=True))
    return {
        node.path: _goal(node, graph, tensors)
        for node in tensors.nodes
        if node.path not in graph.shared and (is_refittable(node.layer) or projection(node.layer) is not None)
    }


class _Tensors:
    """Which calls of a model read each tensor, and the tensors' shapes."""

    def __init__(self, nodes):
        self.nodes = list(nodes)
        self._readers, self._shapes = {}, {}
        for node in self.nodes:
            self._shapes.update(zip(node.outputs, node.output_shapes, strict=True))
            for tensor in node.inputs:
                self._readers.setdefault(tensor, []).append(node)

    def only_reader(self, node):
        """The only call that reads the only output of a call; None if there are several."""
        readers = self._readers.get(node.outputs[0], ())
        return readers[0] if len(readers) == 1 and len(node.outputs) == 1 else None

    def same_shape(self, tensors):
        return len({self._shapes.get(tensor) for tensor in tensors}) == 1


def _goal(node, graph, tensors) -> Goal:
    if _keras.own_activation(node.layer) is not None:
        return Goal(relu=has_relu(node.layer))
    bn, others, last, following = None, (), node, tensors.only_reader(node)
    if following and graph.folded.get(node.path) == (following.path,) and following.path not in graph.shared:
        bn, last, following = following.path, following, tensors.only_reader(following)
        if getattr(last.layer, "activation", None):  # a SplineUnit
            return Goal(bn, relu=has_relu(last.layer))
    if following and spec_of(following.layer).adds and tensors.same_shape(following.inputs):
        others = tuple(tensor for tensor in following.inputs if tensor not in last.outputs)
        following = tensors.only_reader(following)
    return Goal(bn, others, bool(following) and not is_fused(following.layer) and has_relu(following.layer))


def is_refittable(layer: KerasLayer) -> bool:
    """Whether a layer can be merged and refitted: Dense, or an ungrouped convolution."""
    kernel = spec_of(layer).kernel
    return kernel is not None and kernel.refittable(layer)


def projection(layer: KerasLayer) -> KerasLayer | None:
    """The layer inside attention that reads its heads, which can be refitted; None for other layers."""
    own = spec_of(layer).reads_own
    inner = own and _keras.weight(layer, own.rpartition(".")[0])
    return inner if inner and len(inner.kernel.shape) == 3 else None


def refit_projection(whole: KerasLayer, layer: KerasLayer, x: Pair, makes: np.ndarray, goal: Goal, others: list[Pair]):
    """Does what `refit` does for a `projection` with inputs [..., heads, d]."""

    def dense(inner):
        kernel = value_of(inner.kernel)
        variable = tf.Variable(kernel.reshape(-1, kernel.shape[-1]))
        return types.SimpleNamespace(kernel=variable, bias=inner.bias, use_bias=inner.bias is not None)

    x = Pair(*(tf.reshape(value, [*value.shape[:-2], -1]) for value in (x.whole, x.cut)))
    fitted = dense(layer)
    refit(dense(whole), fitted, None, x, makes, goal.relu, others)
    layer.kernel.assign(fitted.kernel.numpy().reshape(layer.kernel.shape))


def channel_axis(layer: KerasLayer) -> int:
    """The axis of the channels in the inputs and outputs of a layer."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def refit(
    whole: KerasLayer,
    layer: KerasLayer,
    bn: KerasLayer | None,
    x: Pair,
    makes: np.ndarray,
    relu: bool,
    others: list[Pair],
) -> None:
    """Refits a layer of the cut model in place, given the layer `whole` of the uncut model, and `makes`, bool
    [channels], which of its outputs are kept. `bn`, `relu` and `others` are as in `Goal`."""
    inputs = _channels_last(layer, x.cut)
    slope, shift = folded(bn) if bn is not None else (1.0, 0.0)
    slope = np.where(np.abs(slope) > 1e-6, slope, 1.0)  # nothing passes a zero slope, so there is nothing to fit
    rest = shift + sum(_channels_last(layer, other.cut) for other in others)
    goal = _goal_values(whole, layer, x, makes, slope, shift, others)

    kernel, bias = tf.constant(value_of(layer.kernel)), _bias(layer)
    shifted = layer.use_bias or bn is not None
    few = np.prod(goal.shape[:-1]) < np.prod(kernel.shape[:-1])
    fit: FewRows | _ManyRows = FewRows(_unfolded(layer, inputs), shifted) if few else _ManyRows(layer, inputs, shifted)
    for turn in range(TURNS if relu else 1):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            output = _linear(layer, inputs, kernel, bias)
        target = tf.where(goal > 0, goal, tf.minimum(output * slope + rest, 0)) if relu and turn else goal
        error = (target - rest) / slope - output
        # The gradient of <output, error> by the kernel is X^T error, with X the unfolded inputs.
        if isinstance(fit, FewRows):
            change, offset = fit.solve(_matrix(error))
        else:
            change, offset = fit.solve(error, tape.gradient(output, kernel, error))
        kernel += tf.reshape(change, kernel.shape)
        bias += offset
    layer.kernel.assign(kernel.numpy())
    if layer.use_bias:
        layer.bias.assign(bias.numpy())
    elif bn is not None:
        bn.moving_mean.assign(value_of(bn.moving_mean) - bias.numpy())


def _goal_values(whole, layer, x, makes, slope, shift, others):
    """What the uncut model computes in the kept outputs, after BatchNormalization and the add."""
    kept = np.flatnonzero(makes)
    output = _linear(whole, _channels_last(layer, x.whole), value_of(whole.kernel), _bias(whole))
    goal = tf.gather(output, kept, axis=-1) * slope + shift
    return goal + sum(tf.gather(_channels_last(layer, other.whole), kept, axis=-1) for other in others)


class FewRows:
    """Ridge regression on x, float32 [rows, features], with fewer rows than features, so that X X^T is smaller than
    X^T X. `shifted`: fit an offset too."""

    def __init__(self, x: tf.Tensor, shifted: bool):
        self._shifted = shifted
        self._mean = tf.reduce_mean(x, 0) if shifted else tf.zeros_like(x[0])
        self._x = x - self._mean
        gram = tf.cast(tf.matmul(self._x, self._x, transpose_b=True), tf.float64)
        self._factor = _factor(gram, x.shape[1], len(x) * tf.square(tf.cast(self._mean, tf.float64)))

    def solve(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The W, float32 [features, outputs], and b, float32 [outputs], that minimise |X W + b - y|^2 + ridge |W|^2 for
        y, float64 [rows, outputs]; b = 0 unless `shifted`."""
        mean = tf.reduce_mean(y, 0) if self._shifted else tf.zeros_like(y[0])
        dual = tf.cast(tf.linalg.cholesky_solve(self._factor, y - mean), tf.float32)
        change = tf.matmul(self._x, dual, transpose_a=True)
        return change, tf.cast(mean, tf.float32) - tf.tensordot(self._mean, change, 1)


class _ManyRows:
    """As `FewRows`, for a layer's unfolded inputs X, which have too many rows to be kept in memory."""

    def __init__(self, layer, inputs, shifted):
        self._shifted = shifted
        self._rows, self._mean, gram = _moments(layer, inputs, shifted)
        self._factor = _factor(gram, len(gram), self._rows * tf.square(self._mean))

    def solve(self, y, cross):
        """As `FewRows.solve`, given y and X^T y."""
        mean = tf.reduce_mean(_matrix(y), 0) if self._shifted else tf.zeros(y.shape[-1], tf.float64)
        centred = _matrix(cross) - self._rows * self._mean[:, None] * mean[None, :]
        change = tf.linalg.cholesky_solve(self._factor, centred)
        return tf.cast(change, tf.float32), tf.cast(mean - tf.tensordot(self._mean, change, 1), tf.float32)


def _factor(gram, features, squares):
    ridge = damping(RIDGE, tf.linalg.trace(gram) / features, tf.reduce_sum(squares) / features)
    return tf.linalg.cholesky(gram + ridge * tf.eye(len(gram), dtype=tf.float64))


def damping(share: float, variance: Any, square: Any) -> Any:
    """What to add to the diagonal of moments: a share of the mean variance, and of the mean square of the means, so
    that rounding errors of inputs that hardly vary are not taken for a variance."""
    return share * (variance + _FLAT * square) + np.finfo(np.float32).tiny


def _moments(layer, inputs, shifted):
    """The number of rows of a layer's unfolded inputs, their means (zero unless `shifted`) and moments about these."""
    samples = max(1, _CHUNK // int(np.prod(layer.kernel.shape[:-1]) * np.prod(inputs.shape[1:-1])))
    rows, total, gram = 0, 0.0, 0.0
    for start in range(0, len(inputs), samples):
        x = _unfolded(layer, inputs[start : start + samples])
        if shifted and not rows:
            origin = tf.reduce_mean(x, 0)  # moments about a point near the mean keep their precision
        x = x - origin if shifted else x
        rows += len(x)
        total += tf.cast(tf.reduce_sum(x, 0), tf.float64)
        gram += tf.cast(tf.matmul(x, x, transpose_a=True), tf.float64)
    if not shifted:
        return rows, tf.zeros_like(total), gram
    off = total / rows
    return rows, off + tf.cast(origin, tf.float64), gram - rows * off[:, None] * off[None, :]


def _unfolded(layer, x):
    """The inputs of a layer as a matrix [samples and positions, fan_in], which its kernel as a matrix multiplies."""
    window = tuple(layer.kernel.shape[:-2])
    fan_in = int(np.prod(layer.kernel.shape[:-1]))
    if window:
        x = _linear(layer, x, tf.reshape(tf.eye(fan_in), [*window, -1, fan_in]), 0.0)
    return tf.reshape(x, [-1, fan_in])


def _matrix(x):
    """A tensor as a float64 matrix [rest, last axis]."""
    return tf.cast(tf.reshape(x, [-1, x.shape[-1]]), tf.float64)


def _linear(layer, x, kernel, bias):
    """The output of a layer for channels-last inputs with other weights, without its activation."""
    if len(kernel.shape) == 2:
        return tf.tensordot(x, kernel, 1) + bias
    if set(layer.kernel_size) == {1}:
        strides = (slice(None), *(slice(None, None, stride) for stride in layer.strides))
        return tf.tensordot(x[strides], tf.reshape(kernel, kernel.shape[-2:]), 1) + bias
    return tf.nn.convolution(x, kernel, layer.strides, layer.padding.upper(), dilations=layer.dilation_rate) + bias


def _bias(layer):
    return value_of(layer.bias) if layer.use_bias else np.float32(0)


def _channels_last(layer, x):
    """A tensor as float32 with its channels on the last axis."""
    x = tf.cast(x, tf.float32)
    return tf.transpose(x, [0, *range(2, x.shape.rank), 1]) if channel_axis(layer) == 1 else x
