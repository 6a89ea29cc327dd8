"""Units: what a criterion knows about the units of a group. Costly arrays are computed only when they are used."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from tfspline import _keras
from tfspline._keras.inputs import Probe
from tfspline._keras.types import KerasModel
from tfspline.graph.structure import Graph, Group
from tfspline.graph.weights import folded, value_of
from tfspline.pruning import gradients
from tfspline.pruning.placement import Placement, rows, side_by_side
from tfspline.pruning.readers import Reader, readers_of


@dataclasses.dataclass
class Gradients:
    """How the loss on labelled data depends on the n units of a group.

    Attributes:
        kernel: float32 [n, fan_in], the gradient of the mean loss with respect to the incoming weights.
        gate: float32 [batches, n], the derivative of each batch's mean loss with respect to a factor on the unit,
            at 1: the sum of gradient x weight over its incoming weights and its offset, BatchNormalization folded in.
    """

    kernel: np.ndarray
    gate: np.ndarray


@dataclasses.dataclass
class Units:
    """The n units of a group, as arrays.

    A unit that several layers produce (a residual stream) is the sum of their outputs: its weights are theirs side by
    side, its offset is the sum of theirs.

    Attributes:
        name: the group's name, for messages.
        kernel: float32 [n, fan_in], the incoming weights.
        slope: float32 [n, norms, fan_in] or [n, norms, 1], gamma / sigma of the following BatchNormalization, 1 without
            one. A layer that is called several times can have several.
        offset: float32 [n], b = beta + (bias - mu) gamma / sigma, the bias without BatchNormalization; the sum of
            several.
        scale: float32 [n], mean |gamma| of the BatchNormalizations that the unit passes; None without any.
        rng: a generator made from the plan's seed.
        measured: data from running the whole model.
        placement: where the producing weights hold the units.
    """

    name: str
    kernel: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    scale: np.ndarray | None
    rng: np.random.Generator
    measured: "Measurements"
    placement: Placement

    @property
    def weight(self) -> np.ndarray:
        """float32 [n, norms x fan_in], the incoming weights with BatchNormalization folded in, w = W gamma / sigma."""
        return (self.kernel[:, None] * self.slope).reshape(len(self.kernel), -1)

    @functools.cached_property
    def readers(self) -> list[Reader] | None:
        """The layers that read the units; None if the plan has no `data`. The first use runs the model."""
        return self._readers(gradients=False)

    @functools.cached_property
    def readers_with_gradients(self) -> list[Reader] | None:
        """As `readers`, with the derivatives of the model's outputs."""
        return self._readers(gradients=True)

    def _readers(self, gradients):
        readers = self.measured.readers(gradients)
        return None if readers is None else readers[self.name]

    def gradients(self, training: bool) -> Gradients | None:
        """The gradients of the compiled loss; None if the plan has no `data` with labels.

        With `training`, BatchNormalization uses the statistics of each batch, else its moving statistics.
        """
        loss = self.measured.loss_gradients(training)
        if loss is None:
            return None
        gates = [loss.gates[name][:, at].sum(axis=2) for name, at in self.placement.places.items()]
        return Gradients(self.placement.matrix(loss.kernels), np.sum(gates, axis=0))

    def flow(self) -> np.ndarray:
        """float32 [n, fan_in], the derivative of the logarithm of the synaptic flow by the absolute incoming weights;
        see `tfspline.pruning.gradients.of_flow`."""
        return self.placement.matrix(self.measured.flow)


class Measurements:
    """Data from running a whole model, shared by the `Units` of its groups and computed once, on first use."""

    def __init__(self, model: KerasModel, graph: Graph, groups: list[Group], probe: Probe | None):
        self._model, self._graph, self._groups, self._probe = model, graph, groups, probe
        self._loss_gradients: dict[bool, gradients.LossGradients] = {}
        self._readers: dict[bool, dict[str, list[Reader]]] = {}

    def readers(self, gradients: bool) -> dict[str, list[Reader]] | None:
        """The readers of each group, by name, with derivatives of the outputs if `gradients`; None without inputs."""
        if self._probe is None:
            return None
        if gradients not in self._readers:
            self._readers[gradients] = readers_of(self._model, self._graph, self._groups, self._probe.inputs, gradients)
        return self._readers[gradients]

    def loss_gradients(self, training: bool) -> gradients.LossGradients | None:
        """The gradients of the loss; None without labels."""
        if self._probe is None or self._probe.labels is None:
            return None
        if training not in self._loss_gradients:
            self._loss_gradients[training] = gradients.of_loss(self._model, self._graph, self._probe, training)
        return self._loss_gradients[training]

    @functools.cached_property
    def flow(self) -> dict[str, np.ndarray]:
        """The gradients of the synaptic flow, by producer."""
        return gradients.of_flow(self._model, self._graph)


def units_of(
    model: KerasModel, graph: Graph, groups: list[Group], rng: np.random.Generator, probe: Probe | None = None
) -> Iterator[Units]:
    """Yields the `Units` of each group. The model runs on `probe` only if a criterion asks for what that yields."""
    measured = Measurements(model, graph, groups, probe)
    layers = _keras.layer_paths(model)
    producers, scale = graph.producers, _mean_gamma(graph, layers)
    for group in groups:
        placement = Placement(producers, group)
        kernels = {
            name: value_of(_keras.weights(layers[part.layer])[part.index]) for name, part in placement.slices.items()
        }
        parts = placement.parts(kernels)
        slope, offset = _folded_norm(graph, layers, placement, parts)
        gamma = None if np.isnan(scale[group.units]).any() else scale[group.units]
        yield Units(group.name, side_by_side(parts), slope, offset, gamma, rng, measured, placement)


def _folded_norm(graph, layers, placement, parts):
    """The `slope` and `offset` of `Units`; `parts` are the kernels of the producers."""
    followers = {name: [*dict.fromkeys(graph.folded.get(name, (None,)))] for name in placement.slices}
    most = max(map(len, followers.values()))
    slopes, offsets = [], []
    for (name, part), kernel in zip(placement.slices.items(), parts, strict=True):
        bias = gradients.bias_of(graph, layers, part)
        bias = np.zeros(len(part.units), np.float32) if bias is None else rows(value_of(bias[0]), bias[1]).mean(axis=1)
        places = placement.places[name]
        slope = np.zeros((len(places), most, places.shape[1]), np.float32)  # zero where others have more followers
        for i, norm in enumerate(followers[name]):
            factor, shift = (np.ones_like(bias), 0) if norm is None else folded(layers[norm])
            slope[:, i] = factor[places]
            offsets.append((bias * factor + shift)[places].mean(axis=1))
        one_number = len(parts) == places.shape[1] == 1  # a unit
        slopes.append(slope if one_number else np.repeat(slope, kernel.shape[1] // places.shape[1], axis=2))
    return np.concatenate(slopes, axis=2), np.sum(offsets, axis=0, dtype=np.float32)


def _mean_gamma(graph, layers):
    """Mean |gamma|, float32 [units], of the BatchNormalizations that a unit passes; NaN where it passes none."""
    total, passed = np.zeros(graph.units), np.zeros(graph.units)
    for part in graph.slices:
        if part.weight == "gamma" and _keras.of_class(layers[part.layer], "BatchNormalization"):
            np.add.at(total, part.units, np.abs(rows(value_of(layers[part.layer].gamma), part.axis)).mean(axis=1))
            np.add.at(passed, part.units, 1)
    return np.divide(total, passed, out=np.full(graph.units, np.nan), where=passed > 0).astype(np.float32)
