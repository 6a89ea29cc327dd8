"""The arrays that criteria score, gathered from a model's weights unit by unit."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import Probe
from tfspline.graph.reader import Graph, Group
from tfspline.pruning import gradients
from tfspline.pruning.arrays import Gradients, Reader, Units


def units_of(
    model: Any, graph: Graph, groups: list[Group], rng: np.random.Generator, probe: Probe | None = None
) -> Iterator[Units]:
    """The `Units` of each group; `rng` is handed on to criteria that draw, and `probe` is what the model is run on,
    once a criterion asks for what it takes that to know."""
    seen = functools.cache(lambda: _readers(model, graph, groups, probe.inputs))
    learned = functools.cache(lambda training: gradients.of_loss(model, graph, probe, training))
    flow = functools.cache(lambda: gradients.of_flow(model, graph))
    layers = _keras.layer_paths(model)
    makers = graph.makers
    scale = _scale(graph, layers)
    for group in groups:
        places = {name: places_of(makers[name].units, group.units) for name in group.layers}
        kernels, slopes, offset = {}, [], np.zeros(len(group.units), np.float32)
        for name in group.layers:
            layer, site = layers[name], makers[name]
            kernels[name], bias = value_of(layer.weights[site.index]), gradients.bias_of(layer, site)
            bias = np.zeros(len(site.units), np.float32) if bias is None else value_of(bias)
            slope, shift = folded(layers[graph.folded[name]]) if name in graph.folded else (np.ones_like(bias), 0)
            slopes.append(slope[places[name]])
            offset += (bias * slope + shift)[places[name]].mean(axis=1)
        parts = _parts(kernels, makers, places)
        if len(slopes) > 1 or slopes[0].shape[1] > 1:  # otherwise one number a unit will do
            slopes = [np.repeat(s, k.shape[1] // s.shape[1], axis=1) for s, k in zip(slopes, parts, strict=True)]
        yield Units(
            name=group.name,
            kernel=_beside(parts),
            slope=_beside(slopes),
            offset=offset,
            scale=None if np.isnan(scale[group.units]).any() else scale[group.units],
            rng=rng,
            look=None if probe is None else lambda name=group.name: seen()[name],
            learn=None
            if probe is None or probe.labels is None
            else lambda training, places=places: _gradients(*learned(training), makers, places),
            flow=lambda places=places: _beside(_parts(flow(), makers, places)),
        )


def _parts(weights, makers, places):
    """What each layer that makes a group's units has for them, [n, positions a unit x fan_in], of the weights that
    make them or of arrays like these."""
    return [_take(_rows(weights[name], makers[name].axis), at) for name, at in places.items()]


def _gradients(kernels, gates, makers, places):
    gate = sum(gates[name][:, at].sum(axis=2) for name, at in places.items())
    return Gradients(_beside(_parts(kernels, makers, places)), gate)


def _readers(model, graph, groups, inputs):
    """The `Reader`s of each group by its name: one for each call of a layer that reads the group's units."""
    layers, sites = _keras.layer_paths(model), {}
    for site in graph.sites:
        if site.role == "in":
            sites.setdefault(site.layer, []).append((site, _kernel_as_it_counts(graph, layers, site)))
    readers = {group.name: [] for group in groups}
    group_of = np.full(graph.units, -1)
    for i, group in enumerate(groups):
        group_of[group.units] = i

    def visit(node, args, kwargs):
        tensors = [value for value in tf.nest.flatten((args, kwargs)) if tf.is_tensor(value)]
        for i, x in enumerate(tensors if node.path in sites else ()):
            axis, read = graph.reads.get((node.path, i), (0, np.array([], int)))
            for group in (groups[i] for i in np.unique(group_of[read]) if i >= 0):
                places = places_of(read, group.units)
                slices = [_outgoing(site, rows, group.units) for site, rows in sites[node.path]]
                if places.size and any(one.size for one in slices):
                    seen = tf.gather(channels_last(x, axis + 1), places, axis=1)
                    readers[group.name].append(_reader(seen, _beside([one for one in slices if one.size])))
        return node.layer(*args, **kwargs)

    _keras.run(model, inputs, visit, nested=True)
    return readers


def _kernel_as_it_counts(graph, layers, site):
    """A weight that reads units, as a matrix [channels read, rest], BatchNormalization right behind folded in."""
    kernel = value_of(layers[site.layer].weights[site.index])
    made = graph.makers.get(site.layer)
    if made and made.index == site.index and site.layer in graph.folded:
        slope, _ = folded(layers[graph.folded[site.layer]])
        kernel = kernel * np.expand_dims(slope, [axis for axis in range(kernel.ndim) if axis != made.axis])
    return _rows(kernel, site.axis)


def _outgoing(site, rows, units):
    """The slices [n, m] of a weight that read the n units; empty where it does not read them."""
    places = places_of(site.units, units)
    return _take(rows, places) if places.size else places


def channels_last(x, axis):
    """A tensor as a matrix [samples and positions, channels]."""
    order = [i for i in range(x.shape.rank) if i != axis % x.shape.rank] + [axis % x.shape.rank]
    return tf.cast(tf.reshape(tf.transpose(x, order), [-1, x.shape[axis]]), tf.float32)


def _reader(seen, outgoing):
    """A `Reader` of units seen as values [samples, n, places a unit]."""
    seen = tf.reshape(tf.transpose(seen, [0, 2, 1]), [-1, seen.shape[1]])
    centred = seen - tf.reduce_mean(seen, axis=0)
    on = tf.cast(seen > 0, tf.float32)
    samples = float(len(seen))
    covariance = tf.matmul(centred, centred, transpose_a=True) / samples
    return Reader(covariance.numpy(), (tf.matmul(on, on, transpose_a=True) / samples).numpy(), outgoing)


def _rows(value, axis):
    """A weight as a matrix [channels, rest]; a view where the channels come first or last, since it can be large."""
    if axis == value.ndim - 1:
        return value.reshape(-1, value.shape[-1]).T
    return np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)


def _take(kernel, places):
    """The rows of each unit side by side, [n, positions a unit x fan_in]."""
    if np.array_equal(places[:, 0], np.arange(len(kernel))):
        return kernel
    return kernel[places].reshape(len(places), -1)


def _beside(matrices):
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)


def places_of(unit_at, units):
    """The positions [n, positions a unit] of a group's units, in its order, along an axis whose units are `unit_at`;
    none where that does not hold all of them, each as often as the others."""
    places = np.argsort(unit_at, kind="stable")
    places = places[np.isin(unit_at[places], units)]
    counts = np.unique(unit_at[places], return_counts=True)[1]
    if len(counts) < len(units) or (counts != counts[0]).any():
        return np.empty((len(units), 0), int)
    return places.reshape(len(units), -1)[np.argsort(np.argsort(units))]


def _scale(graph, layers):
    """Mean |gamma|, float32 [units], of the BatchNormalizations that a unit passes; NaN where it passes none."""
    total, passed = np.zeros(graph.units), np.zeros(graph.units)
    for site in graph.sites:
        if site.weight == "gamma" and _keras.of_class(layers[site.layer], "BatchNormalization"):
            np.add.at(total, site.units, np.abs(value_of(layers[site.layer].gamma)))
            np.add.at(passed, site.units, 1)
    return np.divide(total, passed, out=np.full(graph.units, np.nan), where=passed > 0).astype(np.float32)


def folded(bn):
    """Slope and shift a channel of a BatchNormalization in inference: y = slope x + shift."""
    slope = 1 / np.sqrt(value_of(bn.moving_variance) + bn.epsilon)
    if bn.gamma is not None:
        slope = slope * value_of(bn.gamma)
    shift = -value_of(bn.moving_mean) * slope
    return slope, shift + value_of(bn.beta) if bn.beta is not None else shift


def value_of(variable: Any) -> np.ndarray:
    """A weight as float32, whatever it is stored as; to be read only, since it may be the weight's own memory."""
    return np.asarray(tf.cast(tf.convert_to_tensor(variable), tf.float32))
