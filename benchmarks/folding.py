"""Model folding (Wang et al., "Forget the Data and Fine-Tuning! Just Fold the Network to Compress", ICLR 2025).

The units of each group are clustered by k-means of their incoming weights, BatchNormalization folded in. A cluster
becomes one unit, whose incoming weights are the means and whose outgoing weights are the sums of the cluster's. Then
the statistics of BatchNormalization are estimated anew, as REPAIR does (Jordan et al., 2023).
"""

import numpy as np
import tf_keras
from sklearn.cluster import KMeans

import tfspline
from tfspline import _keras
from tfspline.pruning.units import units_of


def fold(model, ratio, data, protect=(), seed=0):
    """Return a model of tf_keras with fewer units, and the plan that says which clusters' first units remain.

    Args:
        model: the network.
        ratio: the share of the units of each group to remove.
        data: inputs, on which only the statistics of BatchNormalization are estimated.
        protect: layers whose units are kept, as for `tfspline.plan`.
        seed: seed of k-means.
    """
    plan = tfspline.plan(model, ratio, criterion="random", scope="layer", protect=protect)
    whole = tf_keras.models.clone_model(model)
    whole.set_weights(model.get_weights())
    layers = _keras.layer_paths(whole)
    _normalize(plan.graph, layers)
    first = _clusters(whole, plan, seed)  # the unit that each unit becomes
    for part in plan.graph.slices:
        weight = _keras.weights(layers[part.layer])[part.index]
        rows = np.moveaxis(weight.numpy(), part.axis, 0)
        weight.assign(np.moveaxis(_gathered(rows, first[part.units], part), 0, part.axis))
    plan.removed[:] = first != np.arange(len(first))
    return plan.apply(whole, data, compensate="none", recalibrate=True), plan


def _gathered(rows, first, part):
    """Rows [units of a weight, ...] of which the first of each cluster is the sum, for readers, or the mean of all."""
    place = np.unique(first, return_inverse=True)[1]
    sums = np.zeros((place.max() + 1, *rows.shape[1:]), rows.dtype)
    np.add.at(sums, place, rows)
    if part.role != "read":
        sums /= np.bincount(place).reshape(-1, *[1] * (rows.ndim - 1))
    return sums[place]


def _clusters(model, plan, seed):
    """The first unit of the cluster of each unit, int64 [units]."""
    groups = [group for group in plan.graph.groups if not group.protected]
    first = np.arange(plan.graph.units)
    for group, units in zip(groups, units_of(model, plan.graph, groups, np.random.default_rng(seed)), strict=True):
        kept = int((~plan.removed[group.units]).sum())
        found = KMeans(kept, n_init=10, random_state=seed).fit_predict(units.weight)
        _, start = np.unique(found, return_index=True)
        first[group.units] = group.units[start][found]
    return first


def _normalize(graph, layers):
    """Scale kernels by gamma / sigma of the BatchNormalization that follows, which computes the same as before."""
    for name, part in graph.producers.items():
        norms = {*graph.folded.get(name, (None,))}
        if norms == {None} or len(norms) > 1:
            continue
        norm = layers[norms.pop()]
        factor = (norm.gamma / np.sqrt(norm.moving_variance + norm.epsilon)).numpy()
        kernel = _keras.weights(layers[part.layer])[part.index]
        kernel.assign(np.moveaxis(np.moveaxis(kernel.numpy(), part.axis, -1) * factor, -1, part.axis))
        norm.moving_mean.assign(norm.moving_mean * factor)
        norm.moving_variance.assign(norm.moving_variance * factor**2)
        norm.gamma.assign(np.sqrt(norm.moving_variance + norm.epsilon))
