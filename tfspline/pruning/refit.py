"""Refitting: fits a layer of a cut model, by least squares, to its output in the uncut model (beyond the paper).

The layer's inputs come from the cut model. The fit compares outputs where the activation that follows reads them, after
BatchNormalization and a residual add in between:

- another branch of the add already differs from the uncut model, and the layer makes up for that;
- where a ReLU is off in the uncut model, any negative value is as good as another.

Weights are changed by ridge regression. The ridge is chosen on images held back, so that few images do no harm.
"""

import dataclasses
import types
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer, KerasModel
from tfspline.graph.layer_specs.registry import activation_of, is_fused, spec_of
from tfspline.graph.piecewise import PiecewiseAffine
from tfspline.graph.structure import Graph
from tfspline.graph.weights import folded, value_of
from tfspline.pruning.least_squares import Ridge, Windows
from tfspline.pruning.streaming import Pair

TURNS = 4  # least-squares fits per layer with a ReLU; values change sides in between
_SHARES = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 1e6)  # ridges to choose from, see `Ridge.set_ridge`
_LEAST = 8  # with fewer images than this, nothing is fitted
_FOLDS = 4  # one in this many images is held back to choose the ridge
_ROWS, _PER_FEATURE = 2**15, 8  # rows to fit to, if there are more: at least so many, and so many for each feature
_NUMBERS = 2**26  # the most numbers in these rows


@dataclasses.dataclass
class Goal:
    """Where a layer's output is compared."""

    bn: str | None = None  # path of a BatchNormalization that follows and reads nothing else
    others: tuple[int, ...] = ()  # ids of the tensors that are added to the output
    flat: tuple[float, float] = (-np.inf, np.inf)  # below the first and above the second, what follows is constant


def goals(model: KerasModel, graph: Graph) -> dict[str, Goal]:
    """The goals of the layers that can be refitted, by path: Dense, convolutions, attention; called once."""
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
        return Goal(flat=_flat_sides(node.layer))
    bn, others, last, following = None, (), node, tensors.only_reader(node)
    if following and graph.folded.get(node.path) == (following.path,) and following.path not in graph.shared:
        bn, last, following = following.path, following, tensors.only_reader(following)
        if getattr(last.layer, "activation", None):  # a SplineUnit
            return Goal(bn, flat=_flat_sides(last.layer))
    if following and spec_of(following.layer).adds and tensors.same_shape(following.inputs):
        others = tuple(tensor for tensor in following.inputs if tensor not in last.outputs)
        following = tensors.only_reader(following)
    if following is None or is_fused(following.layer):
        return Goal(bn, others)
    return Goal(bn, others, _flat_sides(following.layer))


def _flat_sides(layer):
    activation = activation_of(layer) if _keras.op_name(layer) is None else None
    return activation.flat_sides if isinstance(activation, PiecewiseAffine) else (-np.inf, np.inf)


def is_refittable(layer: KerasLayer) -> bool:
    """Whether a layer can be refitted: Dense, or a convolution, in groups or not."""
    kernel = spec_of(layer).kernel
    return kernel is not None and kernel.refittable


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
    refit(dense(whole), fitted, None, x, makes, goal, others)
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
    goal: Goal,
    others: list[Pair],
) -> None:
    """Refits a layer of the cut model in place, given the layer `whole` of the uncut model, and `makes`, bool
    [channels], which of its outputs are kept. `bn` and `others` are what `goal` names."""
    slope, shift = folded(bn) if bn is not None else (1.0, 0.0)
    slope = np.where(np.abs(slope) > 1e-6, slope, 1.0)  # nothing passes a zero slope, so there is nothing to fit
    inputs, inputs_whole = _channels_last(layer, x.cut), _channels_last(layer, x.whole)
    windows, windows_whole = (Windows(one, tuple(inputs.shape[1:-1])) for one in (layer, whole))
    at = _drawn(len(inputs), int(np.prod(windows.positions)), windows.features)

    def drawn(value):
        value = _channels_last(layer, value)
        return tf.gather(tf.reshape(value, [-1, value.shape[-1]]), at)

    target = windows.product(windows_whole.rows(inputs_whole, at), windows_whole.matrices(value_of(whole.kernel)))
    target = tf.gather(target + _bias(whole), np.flatnonzero(makes), axis=1) * slope + shift
    target += sum(tf.gather(drawn(other.whole), np.flatnonzero(makes), axis=1) for other in others)
    rest = shift + sum((drawn(other.cut) for other in others), tf.zeros_like(target))
    shifted = bool(layer.use_bias) or bn is not None
    fit = _Fit(windows, windows.rows(inputs, at), target, slope, rest, goal.flat, shifted)
    images = at // int(np.prod(windows.positions))
    kernel, bias = fit.solve(windows.matrices(value_of(layer.kernel)), _bias(layer), images)
    layer.kernel.assign(windows.kernel(kernel).numpy())
    if layer.use_bias:
        layer.bias.assign(bias)
    elif bn is not None:
        bn.moving_mean.assign(value_of(bn.moving_mean) - bias)


def _drawn(samples, positions, features):
    """Indices of the rows to fit to, in order: all, or a random part if there are too many."""
    most = min(max(_ROWS, _PER_FEATURE * features), max(_NUMBERS // features, 1))
    count = samples * positions
    return np.arange(count) if count <= most else np.sort(np.random.default_rng(0).choice(count, most, replace=False))


@dataclasses.dataclass
class _Fit:
    """A layer's kernel and bias are fitted so that `slope` (x kernel + bias) + `rest` comes near the `target`, both
    [rows, channels], up to values beyond the `flat` sides, which are as good as their limits."""

    windows: Windows
    x: tf.Tensor  # the layer's inputs in the cut model, as `Windows.rows` gives them
    target: tf.Tensor
    slope: Any
    rest: tf.Tensor
    flat: tuple[float, float]
    shifted: bool

    def solve(self, kernel: tf.Tensor, bias: np.ndarray, images: np.ndarray) -> tuple[tf.Tensor, np.ndarray]:
        """The fitted kernel, as matrices, and bias. The ridge is the one that does best for a quarter of the images,
        int [rows], fitted to the others."""
        if len(np.unique(images)) < _LEAST:
            return kernel, bias
        held = images % _FOLDS == 0
        share = self._part(~held)._best_share(kernel, bias, self._part(held)) * np.mean(~held)
        ridge = Ridge(self.x, self.shifted)
        ridge.set_ridge(share)
        for turn in range(1 if np.isinf(self.flat).all() else TURNS):
            change, offset = ridge.solve(self._error(kernel, bias, clipped=turn > 0))
            kernel, bias = kernel + change, bias + tf.reshape(offset, [-1]).numpy()
        return kernel, bias

    def _part(self, rows):
        """The same for some of the rows."""
        at = np.flatnonzero(rows)
        x, target, rest = tf.gather(self.x, at, axis=1), tf.gather(self.target, at), tf.gather(self.rest, at)
        return dataclasses.replace(self, x=x, target=target, rest=rest)

    def _best_share(self, kernel, bias, held):
        """The ridge with which the fit does best on the rows that are `held` back."""
        ridge, error, lost = Ridge(self.x, self.shifted), self._error(kernel, bias, clipped=False), []
        for share in _SHARES:
            ridge.set_ridge(share)
            change, offset = ridge.solve(error)
            left = held._lack(kernel + change, bias + tf.reshape(offset, [-1]), clipped=True)
            lost.append(float(tf.reduce_sum(tf.square(left))))
        return _SHARES[int(np.argmin(lost))]

    def _error(self, kernel, bias, clipped):
        """What the kernel and bias compute too little, [groups, rows, channels of a group]; see `_lack`."""
        return self.windows.by_group(self._lack(kernel, bias, clipped) / self.slope)

    def _lack(self, kernel, bias, clipped):
        """What is missing to the target, [rows, channels]; nothing beyond the flat sides if `clipped`."""
        value = (self.windows.product(self.x, kernel) + bias) * self.slope + self.rest
        target, (low, high) = self.target, self.flat
        if clipped:
            target = tf.where(target <= low, tf.minimum(value, low), target)
            target = tf.where(target >= high, tf.maximum(value, high), target)
        return target - value


def _bias(layer):
    return value_of(layer.bias) if layer.use_bias else np.float32(0)


def _channels_last(layer, x):
    """A tensor as float32 with its channels on the last axis."""
    x = tf.cast(x, tf.float32)
    return tf.transpose(x, [0, *range(2, x.shape.rank), 1]) if channel_axis(layer) == 1 else x
