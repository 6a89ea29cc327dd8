"""Switches units off while a model trains, and on again with the values that they had."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfspline._keras.constraints import weights
from tfspline._keras.inputs import Probe, probe
from tfspline._keras.types import KerasModel
from tfspline._utils.workers import from_chief
from tfspline.callbacks.state import Saved, group_of, nested
from tfspline.graph import reader
from tfspline.graph.signature import by_new_name
from tfspline.graph.structure import Graph
from tfspline.graph.surgery import check_cut
from tfspline.graph.unrolling import functional
from tfspline.pruning.allocation import Budget
from tfspline.pruning.masks import Masks, entries
from tfspline.pruning.planning import choose


class DenseValues(Saved):
    """The values that weights had before units were switched off, which units regain when they are scored anew."""

    SAVED = ("step",)

    def __init__(self):
        self.step = -1  # the training step of the last `bring_back`
        self._values = {}  # (layer, index in `_keras.weights`) -> array

    def bring_back(self, model: KerasModel, masks: Masks, step: int) -> None:
        """Gives the units of a model that are off their former values back; remembers the values of all others."""
        on, self.step = entries(masks.graph, masks.off), step
        for place, weight in weights(model):
            if place in on:
                value = weight.numpy()
                self._values[place] = np.where(on[place], value, self._values.get(place, value))
                weight.assign(self._values[place])

    def assign(self, model: KerasModel) -> None:
        """Assigns all remembered values to a model."""
        for place, weight in weights(model):
            if place in self._values:
                weight.assign(self._values[place])

    def rename(self, paths: Mapping[str, str]) -> None:
        """Gives the values to the layers of another model."""
        self._values = {(paths[layer], index): value for (layer, index), value in self._values.items()}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the values as named arrays."""
        values = {f"{layer}/{index}": value for (layer, index), value in self._values.items()}
        return super().to_arrays() | nested(values=values)

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned."""
        super().restore(arrays)
        places = {name: name.rsplit("/", 1) for name in group_of(arrays, "values")}
        self._values = {(layer, int(index)): arrays[f"values/{name}"] for name, (layer, index) in places.items()}


@dataclasses.dataclass(eq=False)
class UnitSwitch:
    """Chooses units by a criterion and switches them off in a model. For its arguments see `tfspline.plan`."""

    criterion: str
    budget: Budget  # its ratio is replaced by a schedule's
    protect: tuple
    allow_inexact: bool
    data: Any
    seed: int
    regrow: bool  # whether units that are off may come back, with the values that they had
    masks: Masks | None = dataclasses.field(default=None, init=False)  # the units that are on, once a model is known
    dense: DenseValues = dataclasses.field(default_factory=DenseValues, init=False)
    _graph: Graph | None = dataclasses.field(default=None, init=False)  # during `fit`
    _probe: Probe | None = dataclasses.field(default=None, init=False)  # of `data`, during `fit`
    _restored: dict[str, np.ndarray] | None = dataclasses.field(default=None, init=False)  # of `masks`, by layer

    def begin(self, model: KerasModel, paths: Mapping[str, str]) -> None:
        """Reads a model; raises an error if it cannot be pruned. `paths`: see `resume`."""
        model = functional(model)
        self._probe = None if self.data is None else probe(model, self.data)
        sizes = self._probe and self._probe.input_shape
        self._graph = graph = reader.read(model, self.protect, self.allow_inexact, sizes)
        check_cut(model, graph)
        if self._restored:
            self._adopt(paths)
        elif self.masks is None:
            self._choose(model, self.budget.ratio, 0)  # raises if the criterion does not suit the model
            self.masks = Masks(graph, np.zeros(graph.units, bool))

    def switch(self, model: KerasModel, sparsity: float, step: int) -> None:
        """Scores the units of a model anew and switches a share of them off, in training step `step`."""
        assert self.masks is not None, "begin() comes first"
        before, flat = self.masks.off, functional(model)
        if self.regrow:
            self.dense.bring_back(flat, self.masks, step)
            off = self._choose(flat, sparsity, step) if sparsity else np.zeros_like(before)
        else:
            off = before | self._choose(flat, sparsity, step, before) if sparsity else before
        self.masks = Masks(self.masks.graph, off)
        self.masks.apply(model)

    def end(self) -> None:
        """Drops what is needed only during `fit`."""
        self._probe = self._graph = None

    def _choose(self, model, sparsity, step, off=None):
        budget = dataclasses.replace(self.budget, ratio=sparsity)
        rng = np.random.default_rng([self.seed, step])
        off = choose(model, self._graph, budget, self.criterion, rng, self._probe, off)
        return np.array(from_chief(model.distribute_strategy, off), bool)

    def resume(self, model: KerasModel, step: int | None, paths: Mapping[str, str]) -> None:
        """Takes up a restored state in the middle of `fit`, for a restored model.

        `paths` has the layer paths of the model by those of the state's model.
        `step` is the training step at which the weights were saved; None if the state was saved at another one.
        """
        self._adopt(paths)
        if self.dense.step == step:  # the weights may have been saved just before units were switched
            self.dense.assign(functional(model))

    def _adopt(self, paths):
        self.masks = Masks.of_layers(self._graph, by_new_name(self._restored, paths))
        self._restored = None
        self.dense.rename(paths)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns masks and remembered values as named arrays."""
        return nested(on=dict(self.masks or self._restored or {}), dense=self.dense.to_arrays())

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned; the masks take effect once the model is known."""
        self.masks, self._restored = None, group_of(arrays, "on")
        self.dense.restore(group_of(arrays, "dense"))
