"""The structure of a model as `reader.read` finds it: units, the weight slices that belong to them, and MACs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tfspline._utils.checks import known_layer
from tfspline.graph.signature import Signature

_SHOWN = 5  # how many layers a line of `unknown_lines` names
Shapes = dict[str, list[tuple[int, ...]]]  # layer path -> the shapes of the layer's weights
Repeats = dict[tuple[str, int], tuple[str, int]]  # (layer path, index of a weight) -> the same of an earlier layer


@dataclasses.dataclass
class WeightSlice:
    """One axis of one weight whose positions belong to units.

    The role says what the weight does with the units: "produced" (it computes them), "read" (it reads them as inputs),
    "per_channel" (one entry for each, such as a bias or gamma) or "statistic" (a moving statistic of each).
    """

    layer: str  # its path
    weight: str  # its attribute, dotted if a layer inside the layer owns it ("kernel", "cell.kernel")
    index: int  # of the weight in `_keras.weights(layer)`
    axis: int  # counted from 0
    units: np.ndarray  # int64 [positions]
    role: str
    gates: int = 1  # how often `units` repeats all units, one gate of a recurrent layer after the other
    power: float = 0.0  # if K of D positions are kept, the weight is multiplied by (D / K) ** power


@dataclasses.dataclass
class Work:
    """Multiply-accumulates of a layer for one model input: `positions` times the size of a weight, for each unit."""

    layer: str  # its path
    index: int | None  # of the weight in `_keras.weights(layer)`; None for work without a weight: its size counts as 1
    positions: int
    units: np.ndarray | None = None  # int64 [n], the units among which the work is shared; None if it is for all


@dataclasses.dataclass
class Resize:
    """A config entry of a layer, or an argument of its calls, that depends on which units are kept."""

    layer: str  # its path
    key: str | tuple  # a config entry such as "filters", or the place of an argument as in `_keras.with_arguments`
    value_of: Callable[[np.ndarray], Any]  # kept, bool [channel ids] -> the new value
    unit_of: np.ndarray  # int64 [channel ids], the unit of each channel id
    units: np.ndarray  # int64, the units that `value_of` looks at

    def value(self, kept: np.ndarray) -> Any:
        """The value of the entry if only the units `kept`, bool [units], remain."""
        return self.value_of(kept[self.unit_of])


@dataclasses.dataclass
class Group:
    """Units that the same layers produce, so that they can be compared with each other."""

    name: str  # path of the first layer that produces them, with "#2", "#3" ... appended from its second group on
    layers: tuple[str, ...]  # paths of all layers that produce them; several if residual connections tie their outputs
    units: np.ndarray  # int64 [n], in the order of the first layer's channels
    protected: str | None  # why the units must stay; None if they can be removed


@dataclasses.dataclass
class Graph:
    """The structure of a model. Holds paths and shapes of layers, but no layers and no weights."""

    shapes: Shapes
    slices: list[WeightSlice]
    groups: list[Group]
    work: list[Work]
    unknown: dict[str, str]  # path of a layer with work that is not in `work` -> why
    input_shapes: list[tuple]  # of the model's inputs without the batch: `work` is that for inputs of these shapes
    resizes: list[Resize]
    # producer -> for each call of its layer, the path of the BatchNormalization that directly follows it, or None
    folded: dict[str, tuple[str | None, ...]]
    # (layer path, input number) -> the input's channel axis without the batch, and the units along it
    reads: dict[tuple[str, int], tuple[int, np.ndarray]]
    # (layer path, number of the call from 1) -> sums without a weight: by input number, the units at each position
    absorbed: dict[tuple[str, int], list[dict[int, np.ndarray]]]
    shared: frozenset[str]  # paths of the layers that are called more than once, or share a weight with another layer
    repeats: Repeats  # weights that an earlier layer has as well; the units of such layers are protected
    signature: Signature  # of the model
    protect: tuple[str, ...]  # paths of the layers whose units were to stay
    kept: dict[str, str]  # paths of layers with weights that are kept as they are -> why
    allow_inexact: bool  # whether units may be removed although that changes the function of the rest
    bent: np.ndarray  # bool [units], which pass a function f without f(c x) = c f(x) for c > 0 before they are read
    units: int  # their number

    @property
    def free(self) -> np.ndarray:
        """Which units can be removed, bool [units]."""
        free = np.zeros(self.units, bool)
        for group in self.groups:
            free[group.units] = group.protected is None
        return free

    @property
    def producers(self) -> dict[str, WeightSlice]:
        """The slices that produce units, by `producer_name`."""
        producers: dict[str, list[WeightSlice]] = {}
        for part in self.slices:
            if part.role == "produced":
                producers.setdefault(part.layer, []).append(part)
        for (layer, index), (first, first_index) in self.repeats.items():
            for part in producers.get(first, ()):
                if part.index == first_index and layer != first:
                    producers.setdefault(layer, []).append(dataclasses.replace(part, layer=layer, index=index))
        return {
            producer_name(layer, i): part for layer, parts in producers.items() for i, part in enumerate(parts, start=1)
        }

    def bias_of(self, part: WeightSlice) -> WeightSlice | None:
        """The slice of the bias that is added to what a weight produces; None without one."""
        name = ".".join([*part.weight.split(".")[:-1], "bias"])
        biases = (other for other in self.slices if (other.layer, other.weight) == (part.layer, name))
        return next((bias for bias in biases if np.array_equal(bias.units, part.units)), None)

    def channels(self, layer: str) -> np.ndarray:
        """The units that a layer produces, int64 [channels]; a ValueError that is a KeyError if it produces none.

        Of a layer that produces several kinds of units, such as heads and channels, these are the first ("attention");
        "attention#2" are the second.
        """
        producers = self.producers
        part = producers[known_layer("layer", layer, producers)]
        return part.units[: len(part.units) // part.gates]

    def cut_shapes(self, kept: np.ndarray) -> Shapes:
        """The shapes of all weights if only the units `kept`, bool [units], remain."""
        shapes = {layer: [list(shape) for shape in weights] for layer, weights in self.shapes.items()}
        for part in self.slices:
            shapes[part.layer][part.index][part.axis] = int(kept[part.units].sum())
        return {layer: [tuple(shape) for shape in weights] for layer, weights in shapes.items()}

    def macs(self, kept: np.ndarray | None = None) -> dict[str, int]:
        """Multiply-accumulates of each layer for one input, with all units or only those `kept`; see `unknown`."""
        shapes = self.shapes if kept is None else self.cut_shapes(kept)
        macs = dict.fromkeys((work.layer for work in self.work), 0)
        for work in self.work:
            size = 1 if work.index is None else int(np.prod(shapes[work.layer][work.index], dtype=np.int64))
            if work.units is not None:
                size *= work.units.size if kept is None else int(kept[work.units].sum())
            macs[work.layer] += work.positions * size
        return macs

    def params(self, kept: np.ndarray | None = None) -> dict[str, int]:
        """Parameters of each layer, with all units or only those `kept`; a shared weight counts in its first layer."""
        shapes = self.shapes if kept is None else self.cut_shapes(kept)
        own = {
            layer: [shape for i, shape in enumerate(weights) if (layer, i) not in self.repeats]
            for layer, weights in shapes.items()
        }
        return {layer: sum(int(np.prod(shape, dtype=np.int64)) for shape in of) for layer, of in own.items()}


def producer_name(layer: str, number: int) -> str:
    """The name of the units of the `number`-th weight, from 1, by which a layer produces units: "conv", "conv#2" ..."""
    return layer if number == 1 else f"{layer}#{number}"


def unknown_lines(unknown: dict[str, str]) -> list[str]:
    """One line for each reason why work of layers (`Graph.unknown`) is not counted, with the first of these layers."""
    layers: dict[str, list[str]] = {}
    for path, why in unknown.items():
        layers.setdefault(why, []).append(path)
    return [
        f"unknown work: {', '.join(paths[:_SHOWN])}"
        + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
        + f": {why}"
        for why, paths in layers.items()
    ]
