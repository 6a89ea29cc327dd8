"""Compensation: what is left of a cut model takes over what the removed units did, without any gradient.

Beyond the paper. *Merging* gives the weights that read a removed unit to those that read the kept ones, *refitting*
(`tfspline.refit`) fits each layer anew, and BatchNormalization is recalibrated.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.reader import Graph
from tfspline.graph.surgery import cut
from tfspline.pruning import refit
from tfspline.pruning.criteria import RIDGE, hyperplane_distances
from tfspline.pruning.units import channels_last, places_of, units_of, value_of

COMPENSATIONS = ("none", "merge", "refit")


@dataclasses.dataclass
class _Pair:
    """A tensor of the uncut model, and the one at the same place of the cut model."""

    whole: tf.Tensor
    cut: tf.Tensor


def compensate(
    model: Any, small: Any, graph: Graph, kept: np.ndarray, inputs: list, how: str, recalibrate: bool
) -> None:
    """Changes the weights of a cut model, layer after layer, so that it does what the uncut one does on probe inputs.

    Every layer is treated with the inputs that the cut model, as treated so far, gives it: errors do not pile up.

    Args:
        model: the uncut model.
        small: the cut one, `slim.cut(model, graph, kept)`; it is changed.
        graph: what `graph.read` found in `model`.
        kept: bool [graph.units].
        inputs: unlabelled inputs, one tensor for each of `model.inputs`.
        how: "merge" or "refit", for Dense and ungrouped convolutions that are called once, or "none".
        recalibrate: whether the statistics of BatchNormalization follow the cut; what directly follows a refitted
            layer keeps its own, since the fit accounts for it.
    """
    layers = _keras.layer_paths(small)
    makers = graph.makers
    goals = refit.goals(model, graph) if how == "refit" else {}
    stale = {path for path, layer in layers.items() if recalibrate and _keras.of_class(layer, "BatchNormalization")}
    stale -= {goal.bn for goal in goals.values()} | graph.shared
    awaited = {tensor for goal in goals.values() for tensor in goal.others}
    seen = {}

    def visit(node, args, kwargs):
        path, layer = node.path, layers[node.path]
        x = next((value for value in tf.nest.flatten((args, kwargs)) if isinstance(value, _Pair)), None)
        if path in goals:
            goal, bn = goals[path], layers.get(goals[path].bn)
            if not all(tensor in seen for tensor in goal.others):  # another branch, whose turn is later
                goal = refit.Goal(goal.bn)
            others = [seen[tensor] for tensor in goal.others]
            refit.refit(node.layer, layer, bn, x, kept[makers[path].units], goal.relu, others)
        elif how == "merge" and path not in graph.shared and refit.is_linear(layer):
            _merge(node.layer, layer, x.whole, kept[graph.reads[path, 0][1]], kept[makers[path].units])
        elif path in stale:
            axis, units = graph.reads[path, 0]
            _recalibrate(node.layer, layer, x, axis + 1, kept[units])
        whole = _keras.call(node.layer, args, kwargs, _Pair, lambda pair: pair.whole)
        cut = _keras.call(layer, args, kwargs, _Pair, lambda pair: pair.cut)
        pairs = [_Pair(*pair) for pair in zip(whole, cut, strict=True)]
        if refit.is_add(layer):
            for tensor in node.inputs:
                seen.pop(tensor, None)
        seen.update((tensor, pair) for tensor, pair in zip(node.outputs, pairs, strict=True) if tensor in awaited)
        return pairs

    _keras.run(model, [_Pair(x, x) for x in inputs], visit, nested=True)


def _merge(whole, layer, x, reads, makes):
    """Least-squares merging: with G the covariance of the inputs in the uncut model, the removed ones are predicted
    from the kept ones by R = (G_kk + ridge)^-1 G_kr, and the kept ones' weights take V_k += R V_r, tap by tap.

    Where there is no bias to take the means, G is the matrix of second moments and the prediction has no offset.
    """
    if reads.all():
        return
    x = channels_last(x, refit.channel_axis(layer))
    stay, go = np.flatnonzero(reads), np.flatnonzero(~reads)
    gone = value_of(whole.kernel).compress(~reads, axis=-2).compress(makes, axis=-1)
    if len(x) < len(stay):  # only a Dense layer, of one tap, has so many inputs
        made = tf.cast(tf.matmul(tf.gather(x, go, axis=1), gone), tf.float64)
        taken, missing = refit.few_rows(tf.gather(x, stay, axis=1), layer.use_bias)(made)
    else:
        mean = tf.reduce_mean(x, axis=0).numpy() if layer.use_bias else np.zeros(x.shape[-1], np.float32)
        gram = tf.cast(tf.matmul(x - mean, x - mean, transpose_a=True), tf.float64).numpy()
        ridge = RIDGE * np.trace(gram) / len(gram) + np.finfo(np.float32).tiny
        share = tf.linalg.solve(gram[np.ix_(stay, stay)] + ridge * np.eye(len(stay)), gram[np.ix_(stay, go)]).numpy()
        taken = np.einsum("kr,...ro->...ko", share, gone)
        missing = np.einsum("r,wro->o", mean[go] - mean[stay] @ share, gone.reshape(-1, *gone.shape[-2:]))
    layer.kernel.assign(value_of(layer.kernel) + taken)
    if layer.use_bias:
        layer.bias.assign(value_of(layer.bias) + missing)


def _recalibrate(whole, bn, x, axis, kept):
    """Moves the statistics as the inputs' own moved: where the cut changed nothing, they stay exactly as they were."""
    axes = [i for i in range(x.whole.shape.rank) if i != axis]
    mean, variance = (moment.numpy()[kept] for moment in tf.nn.moments(tf.cast(x.whole, tf.float32), axes))
    mean_cut, variance_cut = (moment.numpy() for moment in tf.nn.moments(tf.cast(x.cut, tf.float32), axes))
    bn.moving_mean.assign(value_of(whole.moving_mean)[kept] + mean_cut - mean)
    ratio = (variance_cut + bn.epsilon) / (variance + bn.epsilon)
    bn.moving_variance.assign(value_of(whole.moving_variance)[kept] * ratio)


def merge_pairs(model: Any, graph: Graph, kept: np.ndarray) -> Any:
    """A copy of a model, uncut, in which the kept units read for those that go; needs no data.

    If unit k' cuts as k does, on the same side, then relu(w_k x + b_k) is about |w_k| / |w_k'| relu(w_k' x + b_k'): the
    weights that read k are added to those that read the kept k' of the nearest hyperplane, so scaled. Left as they
    are: units without a kept one on the same side, and groups whose units pass weights of their own (a depthwise
    convolution, PReLU) on the way to their readers.
    """
    merged = cut(model, graph, np.ones(graph.units, bool))
    layers = _keras.layer_paths(merged)
    readers = [site for site in graph.sites if site.role == "in"]
    scored = {*graph.makers, *graph.folded.values()}
    between = np.zeros(graph.units, bool)
    for site in graph.sites:
        if site.role == "carry" and site.layer not in scored:
            between[site.units] = True
    groups = [group for group in graph.groups if not kept[group.units].all() and not between[group.units].any()]
    for group, units in zip(groups, units_of(model, graph, groups, np.random.default_rng(0)), strict=True):
        gone, heirs, shares = _heirs(units, kept[group.units])
        for site in readers:
            places = places_of(site.units, group.units)
            if places.size:
                weight = layers[site.layer].weights[site.index]
                value = np.moveaxis(value_of(weight), site.axis, -1).copy()
                np.add.at(value, (..., places[heirs]), value[..., places[gone]] * shares[:, None])
                weight.assign(np.moveaxis(value, -1, site.axis))
    return merged


def _heirs(units, kept):
    """Which of a group's units go and have an heir, the heir of each, and its share |w_k| / |w_k'|."""
    weight = units.weight
    norm = np.maximum(np.linalg.norm(weight, axis=1), np.finfo(np.float32).tiny)
    same_side = tf.matmul(weight, weight, transpose_b=True).numpy() > 0
    distance = np.where(same_side & kept, hyperplane_distances(weight, units.offset), np.inf)
    gone = np.flatnonzero(~kept & np.isfinite(distance).any(axis=1))
    heirs = distance[gone].argmin(axis=1)
    return gone, heirs, norm[gone] / norm[heirs]
