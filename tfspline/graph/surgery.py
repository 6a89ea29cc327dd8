"""Cuts units out of a model: the model cloned narrower, its weights sliced."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.reader import Graph


def cut(model: Any, graph: Graph, kept: np.ndarray, configs: Mapping[str, dict] | None = None) -> Any:
    """A new model without the units that are not `kept`.

    Args:
        model: the model that `graph` was read from, or one of the same layers and shapes.
        graph: what `graph.read` found.
        kept: bool [graph.units].
        configs: other config entries of some layers; a weight that they add stays as it is initialised.

    Returns:
        An ordinary uncompiled model of the same Keras, with new layers of the same names and sliced weights.

    Raises:
        ValueError: the model is not one that the graph was read from.
    """
    check_same(model, graph)
    resizes = {}
    for path, key, value_of in graph.resizes:
        resizes.setdefault(path, []).append((key, value_of))

    def copies_of(path, layer):
        config = _keras.config_of(layer)
        if path in resizes:  # an initializer that is a matrix has the old shape
            config |= {key: "zeros" for key, value in config.items() if _is_matrix(key, value)}
        narrower = {key: value_of(kept) for key, value_of in resizes.get(path, ())}
        return [_keras.from_config(type(layer), config | narrower | (configs or {}).get(path, {}))]

    slim = _keras.rebuild(model, copies_of)
    sites = {}
    for site in graph.sites:
        sites.setdefault((site.layer, site.index), []).append(site)
    sources = _keras.layer_paths(model)
    copies = _keras.layer_paths(slim)
    for path in graph.shapes:
        pairs = zip(_keras.weights(sources[path]), _keras.weights(copies[path]), strict=False)
        for i, (source, copy) in enumerate(pairs):
            value = tf.convert_to_tensor(source)
            for site in sites.get((path, i), ()):
                if not kept[site.units].all():
                    value = tf.gather(value, np.flatnonzero(kept[site.units]), axis=site.axis)
            copy.assign(value)
        _keras.finalize(copies[path])
    return slim


def _is_matrix(key, value):
    constant = key.endswith("_initializer") and isinstance(value, dict) and value["class_name"] == "Constant"
    return constant and not isinstance(value["config"]["value"], numbers.Real)


def difference(model: Any, other: Any, inputs: list) -> float:
    """How far two models are from being the same function on some inputs, one tensor for each of `model.inputs`:
    max |other - model| / max |model|, for the output where it is largest."""
    outputs = [
        _keras.run(one, inputs, lambda node, args, kwargs: node.layer(*args, **kwargs)) for one in (model, other)
    ]
    largest = 0.0
    for a, b in zip(*outputs, strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        error = np.abs(a - b).max()
        largest = max(largest, error / np.abs(a).max() if error else 0.0)
    return float(largest)


def check_same(model: Any, graph: Graph, made: str = "plan was") -> None:
    """Raises a ValueError if the model's layers or weight shapes are not those that the graph was read from; `made`
    says what that was done for."""
    paths = _keras.layer_paths(_keras.check_model(model))
    for path, shapes in graph.shapes.items():
        if path not in paths:
            raise ValueError(
                f"Expected the model that the {made} made for, with a layer {path!r}. Received: {model.name!r}"
            )
        received = [tuple(weight.shape) for weight in _keras.weights(paths[path])]
        if received != shapes:
            raise ValueError(
                f"Expected the model that the {made} made for, with weights of shapes {shapes} in layer {path!r}. "
                f"Received: {received}"
            )
