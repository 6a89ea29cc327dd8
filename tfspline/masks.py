"""Switched-off units: the model keeps its shape, and what goes with the units is zero."""

from typing import Any

import numpy as np

from tfspline import _keras
from tfspline.graph import Graph
from tfspline.slim import cut


def switch_off(model: Any, graph: Graph, off: np.ndarray) -> Any:
    """A copy of a model in which the units `off` (bool [graph.units]) contribute exactly nothing.

    All that makes such a unit (kernel column, bias, gamma, beta) is zero, and so is what the next layers read it
    with: sigmoid(0) is not 0, and a unit that feeds such a thing is still off.
    """
    masked = cut(model, graph, np.ones(graph.units, bool))
    layers = _keras.layer_paths(masked)
    for site in graph.sites:
        dead = off[site.units]
        if site.role != "state" and dead.any():
            weight = layers[site.layer].weights[site.index]
            value = weight.numpy()
            np.moveaxis(value, site.axis, 0)[dead] = 0
            weight.assign(value)
    return masked
