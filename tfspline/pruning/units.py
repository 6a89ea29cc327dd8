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
from tfspline.pruning.placement import Placement, side_by_side
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
        slope: float32 [n, fan_in] or [n, 1], gamma / sigma of the following BatchNormalization, 1 without one.
        offset: float32 [n], b = beta + (bias - mu) gamma / sigma, the bias without BatchNormalization.
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
        """float32 [n, fan_in], the incoming weights with BatchNormalization folded in, w = W gamma / sigma."""
        return self.kernel * self.slope

    @functools.cached_property
    def readers(self) -> list[Reader] | None:
        """The layers that read the units; None if the plan has no `data`. The first use runs the model."""
        readers = self.measured.readers
        return None if readers is None else readers[self.name]

    def gradients(self, training: bool) -> Gradients | None:
        """The gradients of the compiled loss; None if the plan has no `data` with labels.

        Args:
            training: whether BatchNormalization uses the statistics of each batch, as in training, or its moving
                statistics, as in inference.
        """
        loss = self.measured.loss_gradients(training)
        if loss is None:
            return None
        gates = [loss.gates[layer][:, at].sum(axis=2) for layer, at in self.placement.places.items()]
        return Gradients(self.placement.matrix(loss.kernels), np.sum(gates, axis=0))

    def flow(self) -> np.ndarray:
        """float32 [n, fan_in], the derivative of log R by the absolute incoming weights, where R is the synaptic flow
        of the whole network; see `tfspline.pruning.gradients.of_flow`."""
        return self.placement.matrix(self.measured.flow)


class Measurements:
    """Data from running a whole model, shared by the `Units` of its groups and computed once, on first use."""

    def __init__(self, model: KerasModel, graph: Graph, groups: list[Group], probe: Probe | None):
        self._model, self._graph, self._groups, self._probe = model, graph, groups, probe
        self._loss_gradients: dict[bool, gradients.LossGradients] = {}

    @functools.cached_property
    def readers(self) -> dict[str, list[Reader]] | None:
        """The `Reader`s of each group, by name; None without inputs."""
        return self._probe and readers_of(self._model, self._graph, self._groups, self._probe.inputs)

    def loss_gradients(self, training: bool) -> gradients.LossGradients | None:
        """The gradients of the loss with respect to what layers produce; None without labels."""
        if self._probe is None or self._probe.labels is None:
            return None
        if training not in self._loss_gradients:
            self._loss_gradients[training] = gradients.of_loss(self._model, self._graph, self._probe, training)
        return self._loss_gradients[training]

    @functools.cached_property
    def flow(self) -> dict[str, np.ndarray]:
        """The gradients of the synaptic flow, by layer."""
        return gradients.of_flow(self._model, self._graph)


def units_of(
    model: KerasModel, graph: Graph, groups: list[Group], rng: np.random.Generator, probe: Probe | None = None
) -> Iterator[Units]:
    """Yields the `Units` of each group.

    `probe`: inputs for data-driven criteria. The model runs on them only if a criterion needs activations or gradients.
    """
    measured = Measurements(model, graph, groups, probe)
    layers = _keras.layer_paths(model)
    producers, scale = graph.producers, _mean_gamma(graph, layers)
    for group in groups:
        placement = Placement(producers, group)
        kernels = {layer: value_of(layers[layer].weights[part.index]) for layer, part in placement.slices.items()}
        parts = placement.parts(kernels)
        slope, offset = _folded_norm(graph, layers, placement, parts)
        gamma = scale[group.units]
        yield Units(
            name=group.name,
            kernel=side_by_side(parts),
            slope=slope,
            offset=offset,
            scale=None if np.isnan(gamma).any() else gamma,
            rng=rng,
            measured=measured,
            placement=placement,
        )


def _folded_norm(graph, layers, placement, parts):
    """The `slope` and `offset` of `Units`; `parts` are the kernels of the producing layers."""
    slopes, offsets = [], []
    for name, part in placement.slices.items():
        bias = gradients.bias_of(layers[name], part)
        bias = np.zeros(len(part.units), np.float32) if bias is None else value_of(bias)
        slope, shift = folded(layers[graph.folded[name]]) if name in graph.folded else (np.ones_like(bias), 0)
        places = placement.places[name]
        slopes.append(slope[places])
        offsets.append((bias * slope + shift)[places].mean(axis=1))
    if len(slopes) > 1 or slopes[0].shape[1] > 1:  # otherwise one number a unit is enough
        slopes = [np.repeat(s, k.shape[1] // s.shape[1], axis=1) for s, k in zip(slopes, parts, strict=True)]
    return side_by_side(slopes), np.sum(offsets, axis=0, dtype=np.float32)


def _mean_gamma(graph, layers):
    """Mean |gamma|, float32 [units], of the BatchNormalizations that a unit passes; NaN where it passes none."""
    total, passed = np.zeros(graph.units), np.zeros(graph.units)
    for part in graph.slices:
        if part.weight == "gamma" and _keras.of_class(layers[part.layer], "BatchNormalization"):
            np.add.at(total, part.units, np.abs(value_of(layers[part.layer].gamma)))
            np.add.at(passed, part.units, 1)
    return np.divide(total, passed, out=np.full(graph.units, np.nan), where=passed > 0).astype(np.float32)
