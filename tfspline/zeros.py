"""Units that are switched off already: what they still emit is folded into their readers, then they are cut.

A kernel column or a BatchNormalization's gamma that is zero makes a unit a constant: its bias or shift, through the
activation. A walk over the graph finds, for every number in it, whether the input has a say in it and, where it has
none, its value. A unit can go if no kernel reads anything of it but constants: those end up in the reader's bias.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfspline import _keras, rules
from tfspline import graph as graphs
from tfspline.masks import Masks
from tfspline.slim import cut, difference

SIDES = 80, 96  # the sizes of axes that the model leaves open: what is constant does not depend on them
PROBES = 8  # random inputs on which the difference is measured

SAME_PLACE = (rules.elementwise, rules.rescaling, rules.prelu, rules.layer_scale)
MOVES = (
    *(rules.move_in_space, rules.global_pool, rules.reduce, rules.flatten, rules.reshape, rules.reshape_op),
    *(rules.permute, rules.transpose, rules.repeat_vector, rules.concatenate),
)
READERS = (rules.dense, rules.conv, rules.conv_transpose, rules.separable)


def slim(
    model: Any,
    *,
    allow_inexact: bool = False,
    protect: tuple = (),
    return_difference: bool = False,
    return_masks: bool = False,
) -> Any | tuple:
    """Removes the units that are switched off: zeroed by hand, by network slimming or by tfmot's masks.

    A unit goes if nothing that stays reads it, or if all that is read of it is constant, as after a zero kernel column
    or a zero gamma. What it still emits through biases, shifts and activations is folded into the next layers' biases
    (or the moving mean of the BatchNormalization that follows one without a bias), so the function stays the same.
    At least one unit of a group stays. A convolution with padding "same" sees zeros at the border where it saw the
    constant elsewhere: there folding is not exact, and the unit stays unless the constant is zero.

    How many units went, and from which layers, and how many constant ones had to stay, is logged (absl, INFO). A model
    that `tfmot.sparsity.keras.prune_low_magnitude` has wrapped is taken as what `strip_pruning` makes of it.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras; it stays as it is.
        allow_inexact: remove constant units also where folding is not exact, folding their mean; and let go of
            channels that LayerNormalization and its kin run over.
        protect: layers whose units stay: their paths, or predicates of a layer.
        return_difference: also return the difference that was measured between the two models.
        return_masks: also return which units went.

    Returns:
        An uncompiled model of the same Keras without those units; a copy where none is switched off. With
        `return_difference` or `return_masks` a tuple of the model and what was asked for, in this order:
        max |slim - model| / max |model|, a float, over eight random normal inputs, for the output where it is largest;
        the `Masks` of `model`, a unit that went being off.

    Raises:
        TypeError, ValueError: the model's graph cannot be read, or `protect` names a layer that it does not have.

    Example:

    >>> import keras, numpy as np, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2)])
    >>> kernel, bias = model.get_layer("a").get_weights()
    >>> kernel[:, 3:] = 0
    >>> model.get_layer("a").set_weights([kernel, np.ones_like(bias)])
    >>> small, difference = tfspline.slim(model, return_difference=True)
    >>> small.get_layer("a").units, difference < 1e-5
    (3, True)
    >>> small, masks = tfspline.slim(model, return_masks=True)
    >>> int(masks.off.sum()), masks["a"].tolist()
    (5, [True, True, True, False, False, False, False, False])
    """
    graph = graphs.read(model, tuple(protect), allow_inexact)
    layers = _keras.layer_paths(model)
    free = graph.free
    seen = _constants(model, graph, free)

    read, needed = [], ~free
    for site in graph.sites:
        if site.role == "in" and site.layer in seen:
            read.append(_Read(graph, site.layer, layers[site.layer], *seen[site.layer]))
        elif site.role == "in":
            kernel = np.moveaxis(layers[site.layer].weights[site.index].numpy(), site.axis, 0)
            needed[site.units[kernel.reshape(len(kernel), -1).any(axis=1)]] = True
    kept, inexact = needed.copy(), np.zeros(graph.units, bool)
    _close(kept, needed, inexact, read, allow_inexact)
    for group in reversed(graph.groups):
        if not kept[group.units].any():
            kept[group.units[np.argmax(inexact[group.units])]] = True
            _close(kept, needed, inexact, read, allow_inexact)
    removed = ~kept
    _log(model, graph, removed, ~needed & inexact & kept)

    shifts = {}
    for path, (mean, _, _) in seen.items():
        gone = removed[graph.reads[path, 0][1]] & ~np.isnan(mean)
        shift = (mean[gone] @ _matrix(layers[path])[gone])[~removed[graph.channels(path)]]
        if shift.any():
            shifts[path] = shift
    small = _cut_and_shift(model, graph, removed, shifts)
    results = [small]
    if return_difference:
        results.append(difference(model, small, _random_inputs(model, np.random.default_rng(0), SIDES[0], PROBES)))
    if return_masks:
        results.append(Masks(graph, removed))
    return tuple(results) if len(results) > 1 else small


class _Read:
    """What a layer reads: `units`, and for each of them whether it varies with the input and cannot be folded exactly;
    `matrix`, bool [units, by], says which of them each of the units `by` that the layer makes depends on."""

    def __init__(self, graph, path, layer, mean, low, high):
        self.units, self.by = graph.reads[path, 0][1], graph.channels(path)
        self.matrix = _matrix(layer, np.abs).astype(bool)
        self.varies, self.inexact = np.isnan(mean), ~_exact(layer, low, high)


def _close(kept, needed, inexact, reads, allow_inexact):
    """Adds to `needed`, `inexact` and `kept` (bool [units]) what the kept units need, in place: what is read of a unit
    by nothing but units that go is not missed."""
    before = None
    while before != kept.sum():
        before = kept.sum()
        for read in reversed(reads):  # from the end to the start: in most networks, once is enough
            missed = read.matrix[:, kept[read.by]].any(axis=1)
            needed[read.units[missed & read.varies]] = True
            inexact[read.units[missed & read.inexact]] = True
            kept |= needed if allow_inexact else needed | inexact


def _log(model, graph, removed, kept_inexact):
    def where(units):
        counts = {group.name: (units[group.units].sum(), len(group.units)) for group in graph.groups}
        return ", ".join(f"{name} ({n} of {size})" for name, (n, size) in counts.items() if n) or "none"

    logging.info("Slimming %s: %d units are switched off and go: %s", model.name, removed.sum(), where(removed))
    if kept_inexact.any():
        logging.info(
            "Slimming %s: %d constant units stay, since folding them is not exact: %s",
            *(model.name, kept_inexact.sum(), where(kept_inexact)),
        )


def _cut_and_shift(model, graph, removed, shifts):
    """Cuts, and adds `shifts` (layer -> float64 [kept channels]) to what the layers emit before their activation."""
    layers, added, configs = _keras.layer_paths(model), [], {}
    for path, shift in shifts.items():
        norm = graph.folded.get(path)
        if layers[path].bias is None and norm and not {path, norm} & graph.shared:
            added.append((norm, "moving_mean", -shift))
            continue
        if layers[path].bias is None:
            configs[path] = {"use_bias": True, "bias_initializer": "zeros"}
        added.append((path, "bias", shift))
    small = cut(model, graph, ~removed, configs)
    layers = _keras.layer_paths(small)
    for path, weight, shift in added:
        variable = getattr(layers[path], weight)
        value = variable.numpy()
        variable.assign((value + shift).astype(value.dtype))
    return small


def _random_inputs(model, rng, side, batch):
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


@dataclasses.dataclass
class _Signal:
    """What flows along an edge: its value for one random input, and where (bool of that shape) the input has a say."""

    value: tf.Tensor
    varies: np.ndarray


def _constants(model: Any, graph: graphs.Graph, free: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer that a constant can be folded into reads: float64 [3, channels].

    The mean, the smallest and the largest value of each channel, over all positions and calls; NaN for a channel
    that varies with the input, or that is not `free`: it may be mixed with others on its way.
    """
    seen = {}

    def visit(node, args, kwargs):
        rule = rules.rule_for(node.layer)
        signals = [signal for signal in tf.nest.flatten((args, kwargs)) if isinstance(signal, _Signal)]
        values = _keras.call(node.layer, args, kwargs, _Signal, lambda signal: signal.value)
        if rule in READERS:
            axis, units = graph.reads[node.path, 0]
            signals[0] = _Signal(signals[0].value, signals[0].varies | _along(~free[units], axis, signals[0].varies))
            if "use_bias" in node.layer.get_config():
                rows = np.where(signals[0].varies, np.nan, np.asarray(signals[0].value, np.float64))
                rows = _rows(rows, axis)
                seen.setdefault(node.path, []).append([rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)])
        if rule in MOVES and "min" not in (_keras.op_name(node.layer) or ""):  # a minimum forgets the ones
            moved = _keras.call(node.layer, args, kwargs, _Signal, lambda signal: signal.varies.astype(np.float32))
            varies = [np.asarray(mask) != 0 for mask in moved]
        else:
            varies = [_varies(node, rule, graph, signals, value) for value in values]
        return [_Signal(*pair) for pair in zip(values, varies, strict=True)]

    rng = np.random.default_rng(0)
    for side in SIDES:
        inputs = _random_inputs(model, rng, side, 1)
        _keras.run(model, [_Signal(value, np.ones(value.shape, bool)) for value in inputs], visit, nested=True)
    calls = {path: np.stack(rows, axis=1) for path, rows in seen.items()}
    return {
        path: np.stack([mean.mean(axis=0), low.min(axis=0), high.max(axis=0)])
        for path, (mean, low, high) in calls.items()
    }


def _varies(node, rule, graph, signals, value):
    """Where the input has a say in an output; everywhere, for a layer of which too little is known."""
    layer, masks = node.layer, [signal.varies for signal in signals]
    if rule in SAME_PLACE:
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
    if rule is rules.batch_normalization and layer.gamma is not None:
        return masks[0] & _along(layer.gamma.numpy() != 0, graph.reads[node.path, 0][0], masks[0])
    if rule in (*READERS, rules.depthwise):
        axis = graph.reads[node.path, 0][0]
        channels = _rows(masks[0], axis).any(axis=0) @ _matrix(layer, np.abs).astype(bool)
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


def _matrix(layer: Any, of: Callable = np.asarray) -> np.ndarray:
    """What a layer adds to its outputs for each input channel that is 1 all over: [inputs, outputs], float64.

    It is the sum of the kernel's taps; where a transposed convolution leaves out taps at some places, its mean.
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


def _exact(layer: Any, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether folding a constant of these bounds, [channels], into the bias leaves the layer's function as it is."""
    zero = (low == 0) & (high == 0)
    if not _sees_no_border(layer):
        return zero
    rounding = 1e-5 if tf.as_dtype(layer.compute_dtype).size >= 4 else 1e-2
    return high - low <= rounding * np.maximum(np.abs(low), np.abs(high))


def _sees_no_border(layer):
    rule = rules.rule_for(layer)
    if rule is rules.dense:
        return True
    point = set(layer.kernel_size) == {1}
    return point and set(layer.strides) == {1} if rule is rules.conv_transpose else point or layer.padding == "valid"
