"""The arrays that criteria score, gathered from a model's weights unit by unit."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfspline import _keras
from tfspline.criteria import Units
from tfspline.graph import Graph, Group


def units_of(model: Any, graph: Graph, groups: list[Group], rng: np.random.Generator) -> Iterator[Units]:
    """The `Units` of each group; `rng` is handed on to criteria that draw."""
    layers = _keras.layer_paths(model)
    makers = {site.layer: site for site in graph.sites if site.role == "out"}
    scale = _scale(graph, layers)
    for group in groups:
        kernels, slopes, offset = [], [], np.zeros(len(group.units), np.float32)
        for name in group.layers:
            layer, site = layers[name], makers[name]
            kernel = _rows(_value(getattr(layer, site.weight)), site.axis)
            bias = getattr(layer, "bias", None)
            bias = np.zeros(len(kernel), np.float32) if bias is None else _value(bias)
            slope, shift = _folded(layers[graph.folded[name]]) if name in graph.folded else (np.ones_like(bias), 0)
            places = _places(site.units, group.units)
            kernels.append(_take(kernel, places))
            slopes.append(slope[places])
            offset += (bias * slope + shift)[places].mean(axis=1)
        if len(slopes) > 1 or slopes[0].shape[1] > 1:  # otherwise one number a unit will do
            slopes = [np.repeat(s, k.shape[1] // s.shape[1], axis=1) for s, k in zip(slopes, kernels, strict=True)]
        yield Units(
            name=group.name,
            kernel=_beside(kernels),
            slope=_beside(slopes),
            offset=offset,
            scale=None if np.isnan(scale[group.units]).any() else scale[group.units],
            rng=rng,
        )


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


def _places(unit_at, units):
    """The positions [n, positions a unit] of a group's units, in its order, in a site whose units are `unit_at`."""
    places = np.argsort(unit_at, kind="stable")
    places = places[np.isin(unit_at[places], units)].reshape(len(units), -1)
    return places[np.argsort(np.argsort(units))]


def _scale(graph, layers):
    """Mean |gamma|, float32 [units], of the BatchNormalizations that a unit passes; NaN where it passes none."""
    total, passed = np.zeros(graph.units), np.zeros(graph.units)
    for site in graph.sites:
        if site.weight == "gamma" and _keras.of_class(layers[site.layer], "BatchNormalization"):
            np.add.at(total, site.units, np.abs(_value(layers[site.layer].gamma)))
            np.add.at(passed, site.units, 1)
    return np.divide(total, passed, out=np.full(graph.units, np.nan), where=passed > 0).astype(np.float32)


def _folded(bn):
    """Slope and shift a channel of a BatchNormalization in inference: y = slope x + shift."""
    slope = 1 / np.sqrt(_value(bn.moving_variance) + bn.epsilon)
    if bn.gamma is not None:
        slope = slope * _value(bn.gamma)
    shift = -_value(bn.moving_mean) * slope
    return slope, shift + _value(bn.beta) if bn.beta is not None else shift


def _value(variable) -> np.ndarray:
    return variable.numpy().astype(np.float32, copy=False)
