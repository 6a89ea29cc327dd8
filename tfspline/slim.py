"""Cuts units out of a model: the model cloned narrower, its weights sliced."""

from typing import Any

import numpy as np

from tfspline import _keras
from tfspline.graph import Graph


def cut(model: Any, graph: Graph, kept: np.ndarray) -> Any:
    """A new model without the units that are not `kept`.

    Args:
        model: the model that `graph` was read from, or one of the same layers and shapes.
        graph: what `graph.read` found.
        kept: bool [graph.units].

    Returns:
        An ordinary uncompiled model of the same Keras, with new layers of the same names and sliced weights.

    Raises:
        ValueError: the model is not one that the graph was read from.
    """
    check_same(model, graph)
    resizes = {}
    for path, key, value_of in graph.resizes:
        resizes.setdefault(path, []).append((key, value_of))

    def config_of(path, layer):
        return layer.get_config() | {key: value_of(kept) for key, value_of in resizes.get(path, ())}

    slim = _keras.rebuild(model, config_of)
    sites = {}
    for site in graph.sites:
        sites.setdefault((site.layer, site.index), []).append(site)
    sources = _keras.layer_paths(model)
    for path, layer in _keras.layer_paths(slim).items():
        for i in range(len(graph.shapes.get(path, ()))):
            value = sources[path].weights[i].numpy()
            for site in sites.get((path, i), ()):
                value = value.compress(kept[site.units], axis=site.axis)
            layer.weights[i].assign(value)
    return slim


def check_same(model: Any, graph: Graph) -> None:
    """Raises a ValueError if the model's layers or weight shapes are not those that the graph was read from."""
    paths = _keras.layer_paths(_keras.check_model(model))
    for path, shapes in graph.shapes.items():
        if path not in paths:
            raise ValueError(
                f"Expected the model that the plan was made for, with a layer {path!r}. Received: {model.name!r}"
            )
        received = [tuple(weight.shape) for weight in paths[path].weights]
        if received != shapes:
            raise ValueError(
                f"Expected the model that the plan was made for, with weights of shapes {shapes} in layer {path!r}. "
                f"Received: {received}"
            )
