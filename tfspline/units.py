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
        kernels, weights, offset = [], [], np.zeros(len(group.units), np.float32)
        for name in group.layers:
            layer, site = layers[name], makers[name]
            kernel = np.moveaxis(_value(getattr(layer, site.weight)), site.axis, 0).reshape(len(site.units), -1)
            bias = getattr(layer, "bias", None)
            bias = np.zeros(len(kernel), np.float32) if bias is None else _value(bias)
            slope, shift = _folded(layers[graph.folded[name]]) if name in graph.folded else (np.ones_like(bias), 0)
            places = _places(site.units, group.units)
            kernels.append(kernel[places].reshape(len(places), -1))
            weights.append((kernel * slope[:, None])[places].reshape(len(places), -1))
            offset += (bias * slope + shift)[places].mean(axis=1)
        yield Units(
            name=group.name,
            kernel=np.concatenate(kernels, axis=1),
            weight=np.concatenate(weights, axis=1),
            offset=offset,
            scale=None if np.isnan(scale[group.units]).any() else scale[group.units],
            rng=rng,
        )


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
    return variable.numpy().astype(np.float32)
