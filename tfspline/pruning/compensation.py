"""Compensation: changes the remaining weights to make up for removed units, without any gradient (beyond the paper).

*Merging* adds the weights that read a removed unit to those that read kept ones. *Refitting* (`refit`) fits each layer
to its output in the uncut model. *Recalibration* re-estimates the statistics of BatchNormalization.
"""

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import Data, KerasModel
from tfspline._utils.checks import among
from tfspline.graph.layer_specs.registry import activation_of, spec_of
from tfspline.graph.structure import Graph, producer_name
from tfspline.graph.surgery import cut, cut_arguments
from tfspline.graph.weights import value_of
from tfspline.pruning import refit
from tfspline.pruning.elimination import RIDGE
from tfspline.pruning.least_squares import Ridge
from tfspline.pruning.placement import channels_last, places_of
from tfspline.pruning.streaming import Pair, Stream
from tfspline.pruning.units import units_of

# Units are merged without data if 2 (1 - cos(w, w')) + (b / |w| - b' / |w'|)^2 is smaller: the mean squared difference
# of their pre-activations for standard normal inputs. ReLU does not increase it, and 1/2 is the mean square of a unit
# with b = 0, which is the error of dropping it. So merging is better than dropping from a cosine of 3/4 on, and on
# average over random layers from about 0.34 on, but not for inputs whose mean is not zero.
CLOSE = 0.5
COMPENSATIONS = ("none", "merge", "refit")


def check(data: Data, compensate: str, recalibrate: bool | None) -> None:
    """Raises a ValueError if `compensate` is unknown, or if an option needs `data` that is not given."""
    among("compensate", compensate, ("auto", *COMPENSATIONS))
    if data is None and (compensate == "refit" or recalibrate):
        raise ValueError("`data`, unlabelled inputs, is needed to refit or recalibrate. Received: none")


def compensate(
    model: KerasModel,
    small: KerasModel,
    graph: Graph,
    kept: np.ndarray,
    inputs: list[tf.Tensor],
    how: str,
    recalibrate: bool,
) -> None:
    """Changes the weights of `small`, the model cut to the units `kept`, to bring its outputs near the uncut model's.

    `how` is "merge", "refit" or "none". Each layer gets the inputs that the already compensated layers before it
    produce, so errors do not accumulate. `recalibrate` leaves the statistics of a BatchNormalization directly after a
    refitted layer as they are, because the fit takes them into account.
    """
    walk = _Walk(model, small, graph, kept, how, recalibrate)
    walk.stream = Stream(model, inputs, walk.outputs)
    walk.stream.run(walk.compensate)


class _Walk:
    """Runs the uncut and the cut model side by side and compensates each layer of the cut one when it is reached."""

    stream: Stream

    def __init__(self, model, small, graph, kept, how, recalibrate):
        self._graph, self._kept, self._how = graph, kept, how
        self._layers, self._producers = _keras.layer_paths(small), graph.producers
        self._arguments = cut_arguments(graph, kept)
        self._goals = refit.goals(model, graph) if how == "refit" else {}
        norms = {path for path, layer in self._layers.items() if _keras.of_class(layer, "BatchNormalization")}
        fitted = {goal.bn for goal in self._goals.values()}
        self._stale = norms - fitted - graph.shared if recalibrate else set()

    def outputs(self, node, args, kwargs):
        """The outputs of a call in both models."""
        whole = _keras.call(node.layer, args, kwargs, Pair, lambda pair: pair.whole)
        return [Pair(*pair) for pair in zip(whole, self._of_cut(node, args, kwargs), strict=True)]

    def compensate(self, node, args, kwargs):
        """Changes the weights of a layer of the cut model, which is about to be called."""
        layer = self._layers[node.path]
        if node.path in self._goals and refit.projection(layer) is not None:
            x = self._inside(node, layer, args, kwargs)
        else:
            x = next((value for value in tf.nest.flatten((args, kwargs)) if isinstance(value, Pair)), None)
        self._compensate(node, layer, x)

    def _inside(self, node, layer, args, kwargs):
        """The inputs of the projections inside two attention layers that are called."""
        with (
            _keras.inputs_of(refit.projection(node.layer)) as inputs,
            _keras.inputs_of(refit.projection(layer)) as inputs_cut,
        ):
            _keras.call(node.layer, args, kwargs, Pair, lambda pair: pair.whole)
            self._of_cut(node, args, kwargs)
        return Pair(*inputs, *inputs_cut)

    def _of_cut(self, node, args, kwargs):
        """The outputs of a call in the cut model."""
        if node.path in self._arguments:
            args, kwargs = _keras.with_arguments(node.layer, args, kwargs, self._arguments[node.path])
        return _keras.call(self._layers[node.path], args, kwargs, Pair, lambda pair: pair.cut)

    def _compensate(self, node, layer, x):
        path, graph, kept = node.path, self._graph, self._kept
        if path in self._goals:
            goal = self._goals[path]
            others = [self.stream.pairs.get(tensor) for tensor in goal.others]
            if None in others:  # that branch runs later: leave the sum aside
                goal, others = refit.Goal(goal.bn), []
            inner = refit.projection(layer)
            if inner is None:
                outputs = kept[self._producers[path].units]
                refit.refit(node.layer, layer, self._layers.get(goal.bn), x, outputs, goal, others)
            else:
                outputs = kept[self._producers[producer_name(path, 2)].units]  # the first are heads
                refit.refit_projection(refit.projection(node.layer), inner, x, outputs, goal, others)
        elif self._how == "merge" and path not in graph.shared and _is_mergeable(layer):
            _merge(node.layer, layer, x.whole, kept[graph.reads[path, 0][1]], kept[self._producers[path].units])
        elif path in self._stale:
            axis, units = graph.reads.get((path, 0), (0, np.array([], int)))
            _recalibrate(layer, x, axis + 1, kept[units])


def _is_mergeable(layer):
    """Whether all outputs of a layer read all its inputs."""
    return refit.is_refittable(layer) and getattr(layer, "groups", 1) == 1


def _merge(whole, layer, x, reads, makes):
    """Merges removed inputs of a layer into kept ones by least squares.

    With G the covariance of the inputs `x` in the uncut model, R = (G_kk + ridge)^-1 G_kr predicts the removed inputs
    from the kept ones, and the kernel takes V_k += R V_r, tap by tap. The bias takes the means. Without a bias, G is
    the matrix of second moments and the prediction has no offset. `reads` and `makes` tell the kept inputs and outputs.
    """
    if reads.all():
        return
    x = channels_last(x, refit.channel_axis(layer))
    stay, gone = np.flatnonzero(reads), np.flatnonzero(~reads)
    kernel = value_of(whole.kernel).compress(~reads, axis=-2).compress(makes, axis=-1)
    ridge = Ridge(tf.gather(x, stay, axis=1)[None], bool(layer.use_bias))
    ridge.set_ridge(RIDGE)
    removed = tf.gather(x, gone, axis=1)
    if kernel.ndim == 2:  # a Dense layer may have more inputs than there are samples, and many of them removed
        change, shift = (part[0].numpy() for part in ridge.solve(tf.matmul(removed, kernel)[None]))
    else:
        share, mean = (part[0].numpy() for part in ridge.solve(removed[None]))
        change = np.einsum("kr,...ro->...ko", share, kernel)
        shift = np.einsum("ir,wro->o", mean, kernel.reshape(-1, *kernel.shape[-2:]))
    layer.kernel.assign(value_of(layer.kernel) + change)
    if layer.use_bias:
        layer.bias.assign(value_of(layer.bias) + shift.reshape(-1))


def _recalibrate(bn, x, axis, kept):
    """Changes the statistics as those of the `kept` channels changed, which are along `axis` of the inputs; they stay
    exactly as they are where nothing changed."""
    whole = x.whole if kept.all() else tf.boolean_mask(x.whole, kept, axis)
    own = [i % whole.shape.rank for i in np.atleast_1d(bn.axis)]
    others = [i for i in range(whole.shape.rank) if i not in own]
    (mean, variance), (mean_cut, variance_cut) = (
        tf.nn.moments(tf.cast(value, tf.float32), others, keepdims=len(own) > 1) for value in (whole, x.cut)
    )
    bn.moving_mean.assign(value_of(bn.moving_mean) + mean_cut - mean)
    ratio = (variance_cut + bn.epsilon) / (variance + bn.epsilon)
    bn.moving_variance.assign(value_of(bn.moving_variance) * ratio)


def merge_pairs(model: KerasModel, graph: Graph, kept: np.ndarray) -> KerasModel:
    """Returns an uncut copy of a model with each removed unit merged into the kept unit with the nearest hyperplane.

    If the hyperplanes of units k and k' nearly coincide, with the same side on, then relu(w_k x + b_k) is about
    |w_k| / |w_k'| relu(w_k' x + b_k'): the weights that read k, scaled so, are added to those that read k'. Units
    without a `CLOSE` kept unit are left as they are. So are groups whose units pass a function that is not positively
    homogeneous, such as tanh or ReLU6, or different weights for each channel, before they are read.
    """
    merged = cut(model, graph, np.ones(graph.units, bool))
    layers = _keras.layer_paths(merged)
    readers = [part for part in graph.slices if part.role == "read"]
    scaled = graph.bent | _scaled_before_reading(graph, layers)
    groups = [group for group in graph.groups if not kept[group.units].all() and not scaled[group.units].any()]
    for group, units in zip(groups, units_of(model, graph, groups, np.random.default_rng(0)), strict=True):
        removed, nearest, shares = _nearest_kept(units, kept[group.units])
        for part in readers:
            places = places_of(part.units, group.units)
            if places.size:
                weight = _keras.weights(layers[part.layer])[part.index]
                value = np.moveaxis(value_of(weight), part.axis, 0).copy()
                share = shares.reshape(-1, *[1] * value.ndim)
                np.add.at(value, places[nearest], value[places[removed]] * share)
                weight.assign(np.moveaxis(value, 0, part.axis))
    return merged


def _scaled_before_reading(graph, layers):
    """The units, bool [units], that pass per-channel weights other than those folded into their hyperplane, and other
    than the slopes of a PReLU that are all equal."""
    folded = {*graph.producers, *(norms[0] for norms in graph.folded.values() if len({*norms}) == 1)}
    scaled = np.zeros(graph.units, bool)
    for part in graph.slices:
        if part.role in ("per_channel", "statistic") and part.layer not in folded:
            values = value_of(_keras.weights(layers[part.layer])[part.index])
            if spec_of(layers[part.layer]).elementwise and activation_of(layers[part.layer]) and not np.ptp(values):
                continue
            scaled[part.units] = True
    return scaled


def _nearest_kept(units, kept):
    """The removed units of a group that have a `CLOSE` kept unit, the nearest one of each, |w_k| / |w_k'|."""
    norm = np.maximum(np.linalg.norm(units.weight, axis=1), np.finfo(np.float32).tiny)
    normal, offset = units.weight / norm[:, None], units.offset / norm.astype(np.float64)  # norm may be 1e-38
    cosine = tf.matmul(normal, normal, transpose_b=True).numpy()
    distance = np.where(kept, 2 * (1 - cosine) + np.square(offset[:, None] - offset), np.inf)
    removed = np.flatnonzero(~kept & (distance.min(axis=1) < CLOSE))
    nearest = distance[removed].argmin(axis=1)
    return removed, nearest, norm[removed] / norm[nearest]
