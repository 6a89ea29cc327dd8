"""Masks: units that are switched off in a model that keeps its shape, because all of their weights are zero."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfspline import _keras
from tfspline._keras.constraints import hold, is_held, let_go, weights
from tfspline._keras.recording import retrace
from tfspline._keras.types import KerasModel
from tfspline._utils.checks import instance
from tfspline._utils.files import read_json, write_json
from tfspline.graph import reader as graphs
from tfspline.graph.signature import by_new_name, renamed, signature
from tfspline.graph.structure import Graph
from tfspline.graph.unrolling import functional
from tfspline.pruning import tfmot as wrappers
from tfspline.pruning.constant_folding import constant_shifts, cut_and_shift
from tfspline.pruning.placement import rows

_FORMAT = "tfspline.masks.1"


def switch_off(model: KerasModel, graph: Graph, off: np.ndarray) -> KerasModel:
    """Returns a copy of a model in which all weights that produce, scale or read the units `off` (bool [graph.units])
    are zero, and the constants among these units are folded into the biases of their readers.

    Zeros in the producing weights alone are not enough: sigmoid, for instance, is not 0 at 0.
    """
    masked = cut_and_shift(model, graph, np.zeros_like(off), constant_shifts(model, graph, off))
    layers = _keras.layer_paths(masked)
    for (path, index), on in entries(graph, off).items():
        weight = _keras.weights(layers[path])[index]
        weight.assign(np.where(on, weight.numpy(), 0))
    return masked


def entries(graph: Graph, off: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """For each weight that belongs to prunable units, by (layer path, index in `_keras.weights`): bool of its shape,
    False for the entries of the units `off` (bool [graph.units])."""
    masks: dict[tuple[str, int], np.ndarray] = {}
    free = graph.free
    for part in graph.slices:
        if part.role != "statistic" and free[part.units].any():
            on = masks.setdefault((part.layer, part.index), np.ones(graph.shapes[part.layer][part.index], bool))
            np.moveaxis(on, part.axis, 0)[off[part.units]] = False
    return masks


class Masks(Mapping):
    """Which units of a model are on: a mapping of every layer that produces channels to bool [channels].

    Made by `from_model`, `of`, `load`, or by a plan (`plan.masks`). A unit that several layers produce is on or off in
    all of them, and a protected unit is always on. All methods raise a ValueError for a model whose graph cannot be
    read, or that has other layers or shapes than the one that the masks were made for.

    Args:
        graph: the `Graph` of the model; also an attribute.
        off: bool [graph.units], True for a unit that is off; also an attribute.

    Raises:
        ValueError: a protected unit is off, or `off` has another shape.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "relu", name="a"), keras.layers.Dense(2)])
    >>> masks = tfspline.Masks.of(model, {"a": [True, False, False, True]})
    >>> masks.apply(model)  # zero now and after every optimizer step
    >>> masks.sparsity, tfspline.Masks.from_model(model) == masks
    (0.5, True)
    >>> tfspline.Masks.release(model)
    >>> tfspline.slim(model).get_layer("a").units
    2
    """

    def __init__(self, graph: Graph, off: np.ndarray):
        off = np.asarray(off, bool)
        instance("graph", graph, Graph)
        if off.shape != (graph.units,):
            raise ValueError(f"Expected one bool for each of {graph.units} units. Received: shape {off.shape}")
        for group in graph.groups:
            if group.protected and off[group.units].any():
                raise ValueError(f"Units of {group.name!r} cannot be switched off: {group.protected}.")
        self.graph, self.off = graph, off

    @classmethod
    def of(cls, model: KerasModel, on: Mapping[str, Any], *, allow_inexact: bool = False) -> "Masks":
        """Makes masks from bool arrays.

        Args:
            model: a built functional or Sequential model.
            on: layer path -> bool [channels], True for on. Units of other layers are on.
            allow_inexact: units may be off although removing them changes the function of the rest.

        Raises:
            KeyError: a layer does not produce channels.
            ValueError: masks have the wrong length, contradict each other, or switch protected units off.
        """
        return cls.of_layers(graphs.read(functional(model), allow_inexact=allow_inexact), on)

    @classmethod
    def of_layers(cls, graph: Graph, on: Mapping[str, Any]) -> "Masks":
        """Does what `of` does, for a model whose graph has been read."""
        off = np.zeros(graph.units, bool)
        for layer, mask in instance("on", on, Mapping).items():
            units, mask = graph.channels(layer), np.asarray(mask)
            if mask.dtype != bool or mask.shape != units.shape:
                raise ValueError(
                    f"Expected bool [{len(units)}] for layer {layer!r}. Received: {mask.dtype.name} {list(mask.shape)}"
                )
            off[units[~mask]] = True
        for layer, mask in on.items():
            wrong = np.flatnonzero(off[graph.channels(layer)] == np.asarray(mask))
            if wrong.size:
                raise ValueError(
                    f"Expected the same masks for tied channels. Received: channels {wrong.tolist()} of {layer!r} on, "
                    "but off in a layer or channel that is tied to them"
                )
        return cls(graph, off)

    @classmethod
    def from_model(cls, model: KerasModel, *, allow_inexact: bool = False) -> "Masks":
        """Reads the masks off a model's zeros, as `apply` and `Plan.mask` leave them.

        A prunable unit is off if all weights that produce, scale or read it are zero. (`tfspline.slim` finds more:
        units that are merely constant.) `allow_inexact` is as for `of`.
        """
        model = functional(model)
        graph = graphs.read(model, allow_inexact=allow_inexact)
        layers = _keras.layer_paths(model)
        off = graph.free
        for part in graph.slices:
            if part.role != "statistic":
                value = _keras.weights(layers[part.layer])[part.index].numpy()
                off[part.units[rows(value, part.axis).any(axis=1)]] = False
        return cls(graph, off)

    @classmethod
    def from_tfmot(cls, wrapped: KerasModel, *, allow_inexact: bool = False) -> "Masks":
        """Reads the masks of a model wrapped by `tfmot.sparsity.keras.prune_low_magnitude`.

        A prunable unit is off if tfmot's masks are zero in all columns of the kernels that produce it. tfmot does not
        mask biases, gammas and betas, so such a unit may still emit a constant: `apply` sets it to zero, while
        `tfspline.slim` folds it into the next layers. `allow_inexact` is as for `of`.

        Raises:
            TypeError, ValueError: the model is not a wrapped tf_keras model.
        """
        wrappers.check_wrapped(wrapped)
        graph = graphs.read(wrapped, allow_inexact=allow_inexact)
        masks = {place: mask.numpy() for place, mask, _ in wrappers.pruning_vars(wrapped)}
        off = graph.free
        for part in graph.slices:
            if part.role == "produced":
                mask = masks.get((part.layer, part.index))  # None if the layer is not wrapped: all on
                on = slice(None) if mask is None else rows(mask, part.axis).any(axis=1)
                off[part.units[on]] = False
        return cls(graph, off)

    def to_tfmot(self, wrapped: KerasModel) -> None:
        """Overwrites the masks of a model wrapped by `tfmot.sparsity.keras.prune_low_magnitude`.

        The columns and rows of kernels that produce or read a unit that is off become zero. tfmot multiplies the
        weights by its masks at each step, but still chooses new masks at the steps of its schedule. Use `apply` to
        prevent that, and to switch off what tfmot does not mask: biases, gammas, betas and unwrapped layers.

        Raises:
            TypeError, ValueError: the model, or a layer that produces a unit that is off, is not wrapped.
        """
        wrappers.check_wrapped(wrapped)
        graph = graphs.matching(wrapped, self.graph, "masks were")
        masked = {place for place, _, _ in wrappers.pruning_vars(wrapped)}
        producers = [part for part in graph.producers.values() if self.off[part.units].any()]
        bare = [part.layer for part in producers if (part.layer, part.index) not in masked]
        if bare:
            raise ValueError(
                f"Layers {bare} have units that are off, but tfmot has not wrapped them. Wrap them, or use Masks.apply."
            )
        with wrapped.distribute_strategy.scope():
            wrappers.write(wrapped, entries(graph, self.off))

    def __getitem__(self, layer: str) -> np.ndarray:
        return ~self.off[self.graph.channels(layer)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.graph.producers)

    def __len__(self) -> int:
        return len(self.graph.producers)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return list(self) == list(other) and all(np.array_equal(self[layer], other[layer]) for layer in self)

    __hash__ = None  # type: ignore[assignment]  # masks are mutable

    def __repr__(self):
        return f"<Masks of {len(self)} layers: {self.off.sum()} of {self.graph.free.sum()} prunable units off>"

    @property
    def sparsity(self) -> float:
        """The share of the prunable units that is off; 0 if there are none."""
        free = self.graph.free.sum()
        return float(self.off.sum() / free) if free else 0.0

    def apply(self, model: KerasModel) -> None:
        """Switches units of a model off, in place, and keeps them off during training.

        Their weights become zero now and are exactly zero after every optimizer step, in `fit` and in custom training
        loops, until `release`. Masks that were applied before are replaced.

        Each weight gets a constraint, which Keras' optimizers call after each update; the user's own constraint keeps
        working inside it. Constraints are not saved with the model. A custom `tf.function` that was traced before the
        first call ignores the masks. Call `release` after training, in particular if the optimizer ends by assigning
        moving averages of the weights (`use_ema=True`), which were not zero.

        In a model that tfmot has wrapped, the wrappers get the masks as well (see `to_tfmot`), and tfmot does not
        choose masks until `release`. Weights that tfmot had masked before are trained again.

        Constants that the units emit are not folded into biases, as `Plan.mask` does, since these are trained.
        """
        flat = functional(model)
        graph = graphs.matching(flat, self.graph, "masks were")
        masks, installed = entries(graph, self.off), wrappers.freeze(model)
        with model.distribute_strategy.scope():
            for place, weight in weights(flat):
                if place in masks or is_held(weight):
                    installed |= hold(weight, masks.get(place, np.ones(weight.shape, bool)))
            wrappers.write(model, masks)
        if installed:
            retrace(model)

    @staticmethod
    def release(model: KerasModel) -> None:
        """Removes the constraints that `apply` added to a model's weights and restores the user's own.

        The weights are set to zero a last time and stay zero until the model is trained further. tfmot's wrappers keep
        the masks until their schedule chooses others.
        """
        flat = functional(model)
        released = wrappers.thaw(model)
        with model.distribute_strategy.scope():
            for _, weight in weights(flat):
                released |= let_go(weight)
        if released:
            retrace(model)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the masks as JSON: for each layer its number of channels and which of them are off."""
        graph = self.graph
        entries = {"structure": graph.signature, "protect": graph.protect, "allow_inexact": graph.allow_inexact}
        write_json(path, _FORMAT, **entries, **as_lists(graph, self.off, "off"))

    @classmethod
    def load(cls, path: str | os.PathLike, model: KerasModel, *, allow_inexact: bool = False) -> "Masks":
        """Reads masks written by `save`, for the model that they were made for, which may have been built anew.

        `allow_inexact` is as for `of`; it need not be given if the masks were made with it.
        """
        model = functional(model)

        def build(found):
            inexact = allow_inexact or found["allow_inexact"]
            return listed(model, found, "off", found["protect"], inexact, "masks were")

        return read_json(path, _FORMAT, "masks", build)


def as_lists(graph: Graph, off: np.ndarray, entry: str) -> dict[str, Any]:
    """Each layer's number of channels, and which of them are off, for a file that `listed` reads."""
    units = {layer: graph.channels(layer) for layer in graph.producers}
    channels = {layer: len(own) for layer, own in units.items()}
    return {"channels": channels, entry: {layer: np.flatnonzero(off[own]).tolist() for layer, own in units.items()}}


def listed(model: KerasModel, found: dict, entry: str, protect: list, allow_inexact: bool, made: str) -> Masks:
    """Makes masks from a file with `as_lists`; ValueError if it is malformed or made for another model."""
    paths = renamed(found["structure"], signature(model), f"Expected the model that the {made} made for")
    sizes = found.get("options", {}).get("input_shape")  # masks have none
    graph = graphs.read(model, tuple(paths[path] for path in protect), allow_inexact, sizes)
    expected = as_lists(graph, np.zeros(graph.units, bool), entry)["channels"]
    if by_new_name(found["channels"], paths) != expected:
        raise ValueError(
            f"Expected layers with the channels {found['channels']}. Received: {expected}; register the channel rules "
            f"that were in use when the {made} made."
        )
    off = by_new_name(found[entry], paths)
    on = {layer: np.ones(number, bool) for layer, number in expected.items()}
    if off.keys() != on.keys():
        raise ValueError(f"Expected channels of the layers {sorted(on)}. Received: {sorted(off)}")
    for layer, places in off.items():
        known = isinstance(places, list) and all(type(place) is int and 0 <= place < len(on[layer]) for place in places)
        if not known or places != sorted({*places}):
            raise ValueError(f"Expected ascending channels of {layer!r} in 0..{len(on[layer]) - 1}. Received: {places}")
        on[layer][places] = False
    return Masks.of_layers(graph, on)
