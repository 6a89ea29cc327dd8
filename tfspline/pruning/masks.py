"""Switched-off units: the model keeps its shape, and what goes with the units is zero."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfspline import _keras
from tfspline._keras.constraints import hold, is_held, let_go, weights
from tfspline._keras.recording import retrace
from tfspline._utils.checks import instance
from tfspline._utils.files import read_json, write_json
from tfspline.graph import reader as graphs
from tfspline.graph.structure import Graph
from tfspline.graph.surgery import check_same, cut
from tfspline.pruning import tfmot as wrappers

_FORMAT = "tfspline.masks.1"


def switch_off(model: Any, graph: Graph, off: np.ndarray) -> Any:
    """A copy of a model in which the units `off` (bool [graph.units]) contribute exactly nothing.

    All that makes such a unit (kernel column, bias, gamma, beta) is zero, and so is what the next layers read it
    with: sigmoid(0) is not 0, and a unit that feeds such a thing is still off.
    """
    masked = cut(model, graph, np.ones(graph.units, bool))
    layers = _keras.layer_paths(masked)
    for (path, index), on in entries(graph, off).items():
        weight = layers[path].weights[index]
        weight.assign(np.where(on, weight.numpy(), 0))
    return masked


def entries(graph: Graph, off: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """Of every weight that has to do with units that may go, by layer and place in `layer.weights`: its entries,
    bool of its shape, False for those of the units `off` (bool [graph.units])."""
    masks, free = {}, graph.free
    for site in graph.slices:
        if site.role != "statistic" and free[site.units].any():
            on = masks.setdefault((site.layer, site.index), np.ones(graph.shapes[site.layer][site.index], bool))
            np.moveaxis(on, site.axis, 0)[off[site.units]] = False
    return masks


class Masks(Mapping):
    """Which units of a model are on: a mapping of every layer that makes channels to bool [channels], True for on.

    Made by `from_model`, `of`, `load`, or by a plan (`plan.masks`). The same unit is on or off in all layers that make
    it, and one that must stay is on.

    Attributes:
        graph: the `Graph` of the model.
        off: bool [graph.units], True for a unit that is off.

    Args:
        graph: what `tfspline.graph.read` found in the model.
        off: bool [graph.units].

    Raises:
        ValueError: a unit that must stay is off, or `off` has another shape.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "relu", name="a"), keras.layers.Dense(2)])
    >>> masks = tfspline.Masks.of(model, {"a": [True, False, False, True]})
    >>> masks.apply(model)  # zero now, and after every step of an optimizer
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
                raise ValueError(f"Expected units that may go. Received: units of {group.name!r}: {group.protected}")
        self.graph, self.off = graph, off

    @classmethod
    def of(cls, model: Any, on: Mapping[str, Any], *, allow_inexact: bool = False) -> "Masks":
        """Masks by layer: bool [channels], True for on. Units of the layers that `on` leaves out are on.

        Raises:
            KeyError: a layer that makes no channels.
            ValueError: masks of the wrong length, that contradict each other, or for units that must stay; a model
                whose graph cannot be read.
        """
        return cls.of_layers(graphs.read(model, allow_inexact=allow_inexact), on)

    @classmethod
    def of_layers(cls, graph: Graph, on: Mapping[str, Any]) -> "Masks":
        """The same for a model whose graph has been read."""
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
                    "Expected the same masks in all layers that are tied. Received: "
                    f"channels {wrong.tolist()} of {layer!r} on, which another layer or channel tied to them has off"
                )
        return cls(graph, off)

    @classmethod
    def from_model(cls, model: Any, *, allow_inexact: bool = False) -> "Masks":
        """The masks of a model by its zeros: a unit is off if it may go, and all that makes it, travels with it and
        reads it is zero, as `apply` and `Plan.mask` leave it. (`tfspline.slim` finds more: what is merely constant.)

        Raises:
            TypeError, ValueError: the model's graph cannot be read.
        """
        graph = graphs.read(model, allow_inexact=allow_inexact)
        layers = _keras.layer_paths(model)
        off = graph.free
        for site in graph.slices:
            if site.role != "statistic":
                value = np.moveaxis(layers[site.layer].weights[site.index].numpy(), site.axis, 0)
                off[site.units[value.reshape(len(value), -1).any(axis=1)]] = False
        return cls(graph, off)

    @classmethod
    def from_tfmot(cls, wrapped: Any, *, allow_inexact: bool = False) -> "Masks":
        """The masks in a model that `tfmot.sparsity.keras.prune_low_magnitude` has wrapped: a unit is off if it may go
        and tfmot's masks of the kernels that make it are zero in all of its columns.

        tfmot masks no bias, gamma or beta, so that such a unit may still emit a constant. `apply` and `Plan.mask` take
        that away; `tfspline.slim`, which looks at the weights, folds it into the next layers.

        Raises:
            TypeError, ValueError: not a wrapped model of tf_keras, or its graph cannot be read.
        """
        wrappers.check_wrapped(wrapped)
        graph = graphs.read(wrapped, allow_inexact=allow_inexact)
        masks = {place: mask.numpy() for place, mask, _ in wrappers.pruning_vars(wrapped)}
        off = graph.free
        for site in graph.slices:
            if site.role == "produced":
                mask = masks.get((site.layer, site.index))  # None where a layer is not wrapped: all on
                on = True if mask is None else np.moveaxis(mask, site.axis, 0).reshape(len(site.units), -1).any(axis=1)
                off[site.units[on]] = False
        return cls(graph, off)

    def to_tfmot(self, wrapped: Any) -> None:
        """Writes the masks into those of a model that `tfmot.sparsity.keras.prune_low_magnitude` has wrapped, in place
        of what stands there: zero in the columns and rows of the kernels that make or read a unit that is off.

        tfmot multiplies the weights with them at each step, and goes on choosing masks of its own at the steps of its
        schedule: `apply` keeps it from that, and switches off what tfmot masks nothing of: biases, gammas, betas and
        layers that are not wrapped.

        Raises:
            TypeError, ValueError: not a wrapped model of tf_keras, one that the masks were not made for, or a layer
                that makes a unit that is off is not wrapped.
        """
        wrappers.check_wrapped(wrapped)
        check_same(wrapped, self.graph, "masks were")
        masked = {place for place, _, _ in wrappers.pruning_vars(wrapped)}
        bare = [
            site.layer
            for site in self.graph.producers.values()
            if self.off[site.units].any() and (site.layer, site.index) not in masked
        ]
        if bare:
            raise ValueError(f"Expected wrapped layers where units are off. Received: {bare}, which are not wrapped")
        with wrapped.distribute_strategy.scope():
            wrappers.write(wrapped, entries(self.graph, self.off))

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

    __hash__ = None

    def __repr__(self):
        return f"<Masks of {len(self)} layers: {self.off.sum()} of {self.graph.free.sum()} units that may go are off>"

    @property
    def sparsity(self) -> float:
        """The share of the units that may go which is off; 0 where none may go."""
        free = self.graph.free.sum()
        return float(self.off.sum() / free) if free else 0.0

    def apply(self, model: Any) -> None:
        """Switches the units of a model off, in place, and keeps them off: what goes with them is zero now, and stays
        exactly zero after every step of an optimizer, in `fit` and in training loops of one's own.

        It hangs a constraint on each weight, which Keras' optimizers call after each update; a constraint of the
        user's own goes on working inside it. Masks that were applied before are replaced. The first time, the model's
        train function is made anew; a `tf.function` of one's own that was traced before knows nothing of the masks.
        From then on masks change without retracing. Nothing of it is saved with the model. Take the constraints off
        with `release` when the training is over, above all with an optimizer that ends with moving averages of the
        weights (`use_ema=True`): these were not zero.

        In a model that tfmot has wrapped, the wrappers get the masks as well (see `to_tfmot`), and tfmot chooses none
        until `release`; weights that it had masked before are trained again.

        Raises:
            ValueError: `model` has other layers or shapes than the one that the masks were made for.
        """
        check_same(model, self.graph, "masks were")
        masks, installed = entries(self.graph, self.off), wrappers.freeze(model)
        with model.distribute_strategy.scope():
            for place, weight in weights(model):
                if place in masks or is_held(weight):
                    installed |= hold(weight, masks.get(place, np.ones(weight.shape, bool)))
            wrappers.write(model, masks)
        if installed:
            retrace(model)

    @staticmethod
    def release(model: Any) -> None:
        """Takes off the constraints that `apply` has hung on a model's weights, and puts the user's own back; tfmot's
        wrappers keep the masks, until their own schedule chooses others. The zeros are made once more and stay, until
        the model is trained on."""
        released = wrappers.thaw(_keras.check_model(model))
        with model.distribute_strategy.scope():
            for _, weight in weights(model):
                released |= let_go(weight)
        if released:
            retrace(model)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the masks as JSON: of each layer how many channels it makes, and which of them are off."""
        channels = {layer: len(on) for layer, on in self.items()}
        write_json(
            path, _FORMAT, channels=channels, off={layer: np.flatnonzero(~on).tolist() for layer, on in self.items()}
        )

    @classmethod
    def load(cls, path: str | os.PathLike, model: Any, *, allow_inexact: bool = False) -> "Masks":
        """Reads masks that `save` wrote, for the model that they were made for.

        Raises:
            ValueError: the file is damaged, holds no masks, or those of another model.
        """
        graph = graphs.read(model, allow_inexact=allow_inexact)
        return read_json(path, _FORMAT, "masks", lambda found: listed(graph, found["channels"], found["off"]))


def listed(graph: Graph, channels: dict[str, int], off: dict[str, list[int]]) -> Masks:
    """The masks that a file lists: how many channels every layer makes, and which of them are off, in their order.

    Raises:
        ValueError: they are not those of this graph, no such lists, or they contradict each other.
    """
    expected = {layer: len(site.units) for layer, site in graph.producers.items()}
    if channels != expected or off.keys() != expected.keys():
        raise ValueError(f"Expected a model with the channels {channels}. Received: one with {expected}")
    on = {layer: np.ones(number, bool) for layer, number in expected.items()}
    for layer, places in off.items():
        known = isinstance(places, list) and all(type(place) is int and 0 <= place < len(on[layer]) for place in places)
        if not known or places != sorted({*places}):
            raise ValueError(f"Expected rising channels of {layer!r} in 0..{len(on[layer]) - 1}. Received: {places}")
        on[layer][places] = False
    return Masks.of_layers(graph, on)
