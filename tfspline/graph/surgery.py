"""Removes units from a model: rebuilds its layers narrower and slices their weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline.graph import fixed_arrays
from tfspline.graph.layer_specs.registry import is_custom
from tfspline.graph.structure import Graph

_DECLARE = (
    "must declare all weights that have channels (call.produce, consume, per_channel) and all sizes in the config "
    "(call.resize)"
)


def cut(model: KerasModel, graph: Graph, kept: np.ndarray, configs: Mapping[str, dict] | None = None) -> KerasModel:
    """An uncompiled copy of a model with this `graph`, without the units that are not kept.

    `configs` holds further config entries to change, by layer path; a weight that they add is zero.
    """
    changes = {path: dict(entries) for path, entries in (configs or {}).items()}
    for part in graph.slices:
        if not kept[part.units].all():
            changes.setdefault(part.layer, {})
    layers = _keras.layer_paths(model)
    for resize in graph.resizes:
        # A default of a layer that is made anew, such as the output width of attention, can follow from its inputs.
        if isinstance(resize.key, str) and (resize.layer in changes or not kept[resize.units].all()):
            changes.setdefault(resize.layer, {})[resize.key] = resize.value(kept)
    shapes = graph.cut_shapes(kept)
    for path, entries in changes.items():
        owners = {part.weight.rpartition(".")[0] for part in graph.slices if part.layer == path}
        entries |= _initializers(layers[path], owners | {""}, shapes.get(path, []))
    small = _keras.rebuild(model, changes, arguments=cut_arguments(graph, kept))
    _slice_weights(layers, _keras.layer_paths(small), graph, kept, changes)
    return small


def cut_arguments(graph: Graph, kept: np.ndarray) -> dict[str, dict[Any, Any]]:
    """The arguments in calls of layers and bare ops that a cut changes: layer path -> place -> value."""
    arguments: dict[str, dict[Any, Any]] = {}
    for resize in graph.resizes:
        if isinstance(resize.key, tuple) and not kept[resize.units].all():
            arguments.setdefault(resize.layer, {})[resize.key] = resize.value(kept)
    return arguments


def _initializers(layer, owners, shapes):
    """New initializers in place of those that work only for other shapes, of a layer and of `owners` inside it, given
    by their paths such as "cell"."""
    shape_of = {id(weight): shape for weight, shape in zip(_keras.weights(layer), shapes, strict=True)}
    found = {}
    for owner in owners:
        part = _keras.weight(layer, owner) if owner else layer
        own = [shape_of.get(id(weight), tuple(weight.shape)) for weight in _keras.weights(part)]
        found |= {f"{owner}.{key}".lstrip("."): "zeros" for key in fixed_arrays.initializers(part, own)}
    return found


def check_cut(model: KerasModel, graph: Graph) -> None:
    """Raises a ValueError if a model with code of users cannot be cut, as found by cutting one unit of each group."""
    if not _keras.runs_own_code(model):
        return
    kept = np.ones(graph.units, bool)
    for group in graph.groups:
        if not group.protected and len(group.units) > 1:
            kept[group.units[-1]] = False
    try:
        cut(model, graph, kept)
    except Exception as error:  # from any custom layer
        layers = map(_keras.innermost, _keras.layer_paths(model).values())
        users = {
            type(layer) for layer in layers if is_custom(layer) and not type(layer).__module__.startswith("tfspline")
        }
        rules = " and ".join(sorted(kind.__name__ for kind in users))
        advice = f"; the channel rule of {rules} {_DECLARE}" if rules and _DECLARE not in str(error) else ""
        raise ValueError(f"{model.name!r} cannot be copied with fewer units{advice}: {error}") from error


def _slice_weights(sources, copies, graph, kept, changes):
    """Gives the layers that have been made anew the weights of the whole ones without the removed units."""
    parts = {}
    for part in graph.slices:
        if not kept[part.units].all():
            positions = np.flatnonzero(kept[part.units])
            factor = (part.units.size / positions.size) ** part.power
            parts.setdefault((part.layer, part.index), []).append((part.axis, positions, factor))
    for path in changes:
        pairs = zip(_keras.weights(sources[path]), _keras.weights(copies[path]), strict=False)
        for i, (source, copy) in enumerate(pairs):
            value = tf.convert_to_tensor(source)
            for axis, positions, factor in parts.get((path, i), ()):
                value = np.asarray(value).take(positions, axis)  # much faster than tf.gather
                value = value if factor == 1 else value * value.dtype.type(factor)
            if tuple(value.shape) != tuple(copy.shape):
                raise ValueError(
                    f"Layer {path!r} ({type(sources[path]).__name__}) needs a weight of shape {tuple(copy.shape)}, but "
                    f"that in the model becomes {tuple(value.shape)}. Its channel rule {_DECLARE}."
                )
            copy.assign(tf.convert_to_tensor(value))
        _keras.copy_states(sources[path], copies[path])
        _keras.finalize(copies[path])


def difference(model: KerasModel, other: KerasModel, inputs: list) -> float:
    """max |other - model| / max |model| on some inputs, of the output for which this is largest."""
    outputs = [
        _keras.run(one, inputs, lambda node, args, kwargs: node.layer(*args, **kwargs)) for one in (model, other)
    ]
    largest = 0.0
    for a, b in zip(*outputs, strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        error = np.abs(a - b).max()
        largest = max(largest, error / np.abs(a).max() if error else 0.0)
    return float(largest)
