"""Units that are switched off already: what they still emit is folded into their readers, then they are cut.

A unit can go if no kernel reads anything of it but constants: those end up in the reader's bias.
"""

from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfspline import _keras
from tfspline._utils.checks import several
from tfspline.graph import layer_specs as rules
from tfspline.graph import reader as graphs
from tfspline.graph.surgery import cut, difference
from tfspline.pruning.constant_folding import constants, random_inputs, response
from tfspline.pruning.masks import Masks

PROBES = 8  # random inputs on which the difference is measured


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
    graph = graphs.read(model, several("protect", protect), allow_inexact)
    layers = _keras.layer_paths(model)
    free = graph.free
    seen = constants(model, graph, free)

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
        shift = (mean[gone] @ response(layers[path])[gone])[~removed[graph.channels(path)]]
        if shift.any():
            shifts[path] = shift
    small = _cut_and_shift(model, graph, removed, shifts)
    results = [small]
    if return_difference:
        results.append(difference(model, small, random_inputs(model, np.random.default_rng(0), batch=PROBES)))
    if return_masks:
        results.append(Masks(graph, removed))
    return tuple(results) if len(results) > 1 else small


class _Read:
    """What a layer reads: `units`, and for each of them whether it varies with the input and cannot be folded exactly;
    `matrix`, bool [units, by], says which of them each of the units `by` that the layer makes depends on."""

    def __init__(self, graph, path, layer, mean, low, high):
        self.units, self.by = graph.reads[path, 0][1], graph.channels(path)
        self.matrix = response(layer, np.abs).astype(bool)
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
