"""Constants: what in a network does not depend on the input, number by number.

A kernel column or a BatchNormalization's gamma that is zero makes a unit a constant: its bias or shift, through the
activation. A walk over the graph finds, for every number in it, whether the input has a say in it and, where it has
none, its value.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph import layer_specs as rules
from tfspline.graph.structure import Graph

_SIDES = 80, 96  # the sizes of axes that the model leaves open: what is constant does not depend on them

_SAME_PLACE = (rules.elementwise, rules.rescaling, rules.prelu, rules.layer_scale)
_MOVES = (
    *(rules.move_in_space, rules.global_pool, rules.reduce, rules.flatten, rules.reshape, rules.reshape_op),
    *(rules.permute, rules.transpose, rules.repeat_vector, rules.concatenate),
)
_READERS = (rules.dense, rules.conv, rules.conv_transpose, rules.separable)


@dataclasses.dataclass
class _Signal:
    """What flows along an edge: its value for one random input, and where (bool of that shape) the input has a say."""

    value: tf.Tensor
    varies: np.ndarray


def constants(model: Any, graph: Graph, free: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer that a constant can be folded into reads: float64 [3, channels].

    The mean, the smallest and the largest value of each channel, over all positions and calls; NaN for a channel
    that varies with the input, or that is not `free`: it may be mixed with others on its way.
    """
    seen = {}

    def visit(node, args, kwargs):
        rule = rules.rule_for(node.layer)
        signals = [signal for signal in tf.nest.flatten((args, kwargs)) if isinstance(signal, _Signal)]
        values = _keras.call(node.layer, args, kwargs, _Signal, lambda signal: signal.value)
        if rule in _READERS:
            axis, units = graph.reads[node.path, 0]
            signals[0] = _Signal(signals[0].value, signals[0].varies | _along(~free[units], axis, signals[0].varies))
            if "use_bias" in node.layer.get_config():
                rows = np.where(signals[0].varies, np.nan, np.asarray(signals[0].value, np.float64))
                rows = _rows(rows, axis)
                seen.setdefault(node.path, []).append([rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)])
        if rule in _MOVES and "min" not in (_keras.op_name(node.layer) or ""):  # a minimum forgets the ones
            moved = _keras.call(node.layer, args, kwargs, _Signal, lambda signal: signal.varies.astype(np.float32))
            varies = [np.asarray(mask) != 0 for mask in moved]
        else:
            varies = [_varies(node, rule, graph, signals, value) for value in values]
        return [_Signal(*pair) for pair in zip(values, varies, strict=True)]

    rng = np.random.default_rng(0)
    for side in _SIDES:
        inputs = random_inputs(model, rng, side)
        _keras.run(model, [_Signal(value, np.ones(value.shape, bool)) for value in inputs], visit, nested=True)
    calls = {path: np.stack(rows, axis=1) for path, rows in seen.items()}
    return {
        path: np.stack([mean.mean(axis=0), low.min(axis=0), high.max(axis=0)])
        for path, (mean, low, high) in calls.items()
    }


def _varies(node, rule, graph, signals, value):
    """Where the input has a say in an output; everywhere, for a layer of which too little is known."""
    layer, masks = node.layer, [signal.varies for signal in signals]
    if rule in _SAME_PLACE:
        return masks[0]
    if rule in (rules.merge, rules.divide):
        varies = np.logical_or.reduce(np.broadcast_arrays(*masks, np.zeros(value.shape, bool)))
        if _keras.of_class(layer, "Multiply") or _keras.op_name(layer) == "multiply":
            for signal in signals:  # zero times anything is zero
                varies = varies & (signal.varies | (np.asarray(signal.value) != 0))
        return varies
    if rule is rules.embedding:
        table = layer.embeddings.numpy()
        return np.broadcast_to((table != table[:1]).any(axis=0), value.shape)
    if rule is rules.batch_normalization and layer.gamma is not None and (node.path, 0) in graph.reads:
        return masks[0] & _along(layer.gamma.numpy() != 0, graph.reads[node.path, 0][0], masks[0])
    if rule in (*_READERS, rules.depthwise):
        axis = graph.reads[node.path, 0][0]
        channels = _rows(masks[0], axis).any(axis=0) @ response(layer, np.abs).astype(bool)
        return np.broadcast_to(_along(channels, axis, value), value.shape)
    return masks[0] if rule is rules.batch_normalization else np.ones(value.shape, bool)


def _along(channels, axis, like):
    """[channels] along an axis (the batch not counted) of arrays of the rank of `like`."""
    shape = np.ones(len(like.shape), int)
    shape[axis + 1] = -1
    return channels.reshape(shape)


def _rows(array, axis):
    """An array as [positions, channels]; the batch does not count in `axis`."""
    return np.moveaxis(array, axis + 1, -1).reshape(-1, array.shape[axis + 1])


def response(layer: Any, of: Callable = np.asarray) -> np.ndarray:
    """What a layer adds to its outputs for each input channel that is 1 all over: [inputs, outputs], float64.

    It is the sum of the kernel's taps; where a transposed convolution leaves out taps at some places, its mean. With
    `of=np.abs` the taps do not cancel, so that it tells which outputs read which inputs.
    """

    def taps(weight):
        kernel = of(getattr(layer, weight).numpy().astype(np.float64))
        return kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)

    rule = rules.rule_for(layer)
    if rule is rules.conv_transpose:
        return taps("kernel").T / np.prod(layer.strides)
    if rule in (rules.depthwise, rules.separable):
        depthwise = taps("depthwise_kernel" if hasattr(layer, "depthwise_kernel") else "kernel")
        matrix = _block_diagonal(depthwise.reshape(1, -1), len(depthwise))
        return matrix if rule is rules.depthwise else matrix @ taps("pointwise_kernel")
    return _block_diagonal(taps("kernel"), getattr(layer, "groups", 1))


def _block_diagonal(blocks, groups):
    """[inputs / groups, outputs] of a grouped convolution as [inputs, outputs]."""
    rows, columns = blocks.shape
    group = np.arange(groups)
    return np.tile(blocks, (groups, 1)) * (group.repeat(rows)[:, None] == group.repeat(columns // groups))


def random_inputs(model: Any, rng: np.random.Generator, side: int = _SIDES[0], batch: int = 1) -> list[tf.Tensor]:
    """Random normal inputs for a model, tokens where it has an Embedding; `side` for axes that it leaves open."""
    tokens = [layer.input_dim for layer in _keras.layer_paths(model).values() if _keras.of_class(layer, "Embedding")]
    inputs = []
    for tensor in model.inputs:
        shape = tensor.shape[0] or batch, *(size or side for size in tensor.shape[1:])
        dtype = tf.as_dtype(tensor.dtype)
        if dtype.is_floating:
            inputs.append(tf.cast(rng.normal(size=shape), dtype))
        elif dtype.is_integer:
            inputs.append(tf.cast(rng.integers(0, min(tokens, default=2), shape), dtype))
        else:
            inputs.append(tf.zeros(shape, dtype))
    return inputs
