"""Plans: the units to remove from a model, to be inspected, edited, saved and applied."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfspline._keras.constraints import check_finite
from tfspline._keras.inputs import sample
from tfspline._keras.types import Data, KerasModel
from tfspline._utils.files import read_json, write_json
from tfspline.graph import reader as graphs
from tfspline.graph.structure import Graph, unknown_lines
from tfspline.graph.surgery import cut
from tfspline.graph.unrolling import functional
from tfspline.pruning import compensation, masks
from tfspline.pruning.constant_folding import constant_shifts, cut_and_shift

_FORMAT = "tfspline.plan.1"


class Plan:
    """The units to remove from a model. Made by `tfspline.plan`.

    `apply`, `mask` and `load` raise a ValueError for a model with other layers or shapes than the plan's model.

    Attributes:
        graph: the `Graph` of the model.
        removed: bool [graph.units], True for a unit to remove.
        options: the arguments that the plan was made with: `criterion`, `scope`, the budget and others.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2)])
    >>> plan = tfspline.plan(model, 0.5)
    >>> plan.keep("a", [0]).rows()[0]["units_before"]
    8
    """

    def __init__(self, graph: Graph, removed: np.ndarray, options: dict[str, Any]):
        self.graph, self.removed, self.options = graph, removed, options

    @property
    def ratio(self) -> float:
        """The share of all units, protected ones included, that is removed."""
        units = sum(len(group.units) for group in self.graph.groups)
        return float(self.removed.sum() / units)

    @property
    def masks(self) -> masks.Masks:
        """The same choice as `Masks`: the removed units are off."""
        return masks.Masks(self.graph, self.removed.copy())

    def keep(self, layer: str, channels: Sequence[int] | np.ndarray) -> "Plan":
        """Keeps channels of a layer, and all channels that are tied to them; returns the plan."""
        self.removed[self._units(layer, channels)] = False
        return self

    def remove(self, layer: str, channels: Sequence[int] | np.ndarray) -> "Plan":
        """Removes channels of a layer as well, and all channels that are tied to them; returns the plan.

        Raises:
            ValueError: a channel is protected, or no unit of its group would be left.
        """
        units = self._units(layer, channels)
        removed = self.removed.copy()
        removed[units] = True
        for group in self.graph.groups:
            if group.protected and np.isin(units, group.units).any():
                raise ValueError(f"Units of {group.name!r} cannot be removed: {group.protected}.")
            if removed[group.units].all():
                raise ValueError(f"Expected at least one unit of {group.name!r} to stay. Received: all of its units")
        self.removed = removed
        return self

    def _units(self, layer, channels):
        units, places = self.graph.channels(layer), np.asarray(channels)
        # A bool mask is refused too: it would be taken for the channels 0 and 1.
        if places.size and (places.dtype.kind not in "iu" or places.min() < 0 or places.max() >= len(units)):
            raise ValueError(f"Expected channels of {layer!r} in 0..{len(units) - 1}. Received: {channels}")
        return units[places.astype(int)]

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each group of units, then one for each layer with weights that are kept as they are: `layer`,
        `tied` (the other layers that produce the units), `units_before`, `units_after` (0 without units of its own),
        `macs_before`, `macs_after` (of these layers), `protected` (the reason, or None)."""
        return [row for row in self._rows() if not row.pop("follows")]

    def _rows(self):
        """The rows of the printed plan: those of `rows`, and of layers whose weights follow the units of others."""
        before, after = self.graph.macs(), self.graph.macs(~self.removed)
        counted = set()

        def row(name, layers, units, protected, tied=(), follows=None):
            layers = [layer for layer in layers if layer not in counted]
            counted.update(layers)
            return {
                "layer": name,
                "tied": list(tied),
                "units_before": len(units),
                "units_after": int((~self.removed[units]).sum()),
                "macs_before": sum(before.get(layer, 0) for layer in layers),
                "macs_after": sum(after.get(layer, 0) for layer in layers),
                "protected": protected,
                "follows": follows,
            }

        none, named = np.zeros(0, int), {group.name for group in self.graph.groups}
        group_of = {unit: group.name for group in self.graph.groups for unit in group.units}
        for group in self.graph.groups:
            layers = [layer for layer in group.layers if layer == group.name or layer not in named]
            yield row(group.name, layers, group.units, group.protected, group.layers[1:])
        for path, why in self.graph.kept.items():
            yield row(path, [path], none, why)
        for path, shapes in self.graph.shapes.items():
            if shapes and path not in counted:
                units = [part.units[0] for part in self.graph.slices if part.layer == path]
                follows = next((group_of[unit] for unit in units if unit in group_of), None)
                why = None if follows else "no unit is known to belong to its weights"
                yield row(path, [path], none, why, follows=follows or ("the input of the model" if units else None))

    def cost(self) -> dict[str, tuple[int, int]]:
        """`{"units": (before, after), "params": ..., "macs": ...}` of the whole model, "macs" without unknown work."""
        kept = ~self.removed
        grouped = np.concatenate([group.units for group in self.graph.groups] or [np.zeros(0, int)])
        return {
            "units": (len(grouped), int(kept[grouped].sum())),
            "params": (sum(self.graph.params().values()), sum(self.graph.params(kept).values())),
            "macs": (sum(self.graph.macs().values()), sum(self.graph.macs(kept).values())),
        }

    def __str__(self):
        rows = [("layer", "units", "MACs", "")]
        for row in self._rows():
            notes = [f"tied to {', '.join(row['tied'])}"] if row["tied"] else []
            notes += [f"follows {row['follows']}"] if row["follows"] else []
            notes += [f"kept: {row['protected']}"] if row["protected"] else []
            units = _from_to(row, "units") if row["units_before"] else "-"
            rows.append((row["layer"], units, _from_to(row, "macs"), "; ".join(notes)))
        for name, (before, after) in self.cost().items():
            bound = "at most " if name == "macs" and self.graph.unknown else ""
            rows.append((f"all {name}", f"{before:,} -> {after:,}", f"{bound}{before / max(after, 1):.2f}x fewer", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {note}".rstrip() for a, b, c, note in rows]
        return "\n".join([*lines, *unknown_lines(self.graph.unknown)])

    def apply(
        self, model: KerasModel, data: Data = None, compensate: str = "auto", recalibrate: bool | None = None
    ) -> KerasModel:
        """Returns a smaller ordinary Keras model, uncompiled, without the removed units.

        Unless the weights are fitted to `data`, the constants that removed units emit, for instance with a gamma of
        0, are folded into the biases of their readers; one without a bias gets one.

        Args:
            model: the model that the plan was made for. It is not changed.
            data: inputs to compensate on, as for `tfspline.plan`. Labels are ignored.
            compensate: "refit" fits each layer, in the order of the network, to its output in the uncut model by least
                squares (needs `data`). "merge" adds the outgoing weights of a removed unit to those of kept units: by
                least squares on `data`, or without data to the unit with the nearest hyperplane if it is close
                (cosine 3/4 or more for equal offsets) and the activation positively homogeneous, as ReLU is. "none"
                leaves the kept weights as they are. "auto" is "refit" with `data` and "none" without.
            recalibrate: whether to re-estimate the statistics of BatchNormalization on `data`; by default if given.

        Raises:
            ValueError: an option is unknown, or needs `data` that is not given.
        """
        compensation.check(data, compensate, recalibrate)
        model = functional(model)
        if compensate == "auto":
            compensate = "none" if data is None else "refit"
        graph, kept = graphs.matching(model, self.graph), ~self.removed
        inputs = None if data is None else sample(model, data).inputs
        if inputs is not None or compensate == "merge":
            check_finite(model)
        if inputs is None and compensate == "merge":
            model = compensation.merge_pairs(model, graph, kept)
        if inputs is None or (compensate, recalibrate) == ("none", False):
            return cut_and_shift(model, graph, ~kept, constant_shifts(model, graph, ~kept))
        small = cut(model, graph, kept)
        compensation.compensate(model, small, graph, kept, inputs, compensate, recalibrate is not False)
        return small

    def mask(self, model: KerasModel) -> KerasModel:
        """Returns a copy of `model` of the same shape with the removed units switched off: the same function as that
        of `apply` without `data` and compensation."""
        model = functional(model)
        return masks.switch_off(model, graphs.matching(model, self.graph), self.removed)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan as JSON: its options, the structure of its model, and the removed channels of each layer."""
        lists = masks.as_lists(self.graph, self.removed, "removed")
        options = self.options | {"protect": [*self.graph.protect], "allow_inexact": self.graph.allow_inexact}
        write_json(path, _FORMAT, options=options, structure=self.graph.signature, **lists)

    @classmethod
    def load(cls, path: str | os.PathLike, model: KerasModel) -> "Plan":
        """Reads a plan written by `save`, for the model that it was made for, which may have been built anew."""
        model = functional(model)

        def build(found):
            options = found["options"]
            choice = masks.listed(model, found, "removed", options["protect"], options["allow_inexact"], "plan was")
            plan = cls(choice.graph, np.zeros(choice.graph.units, bool), options)
            for layer, on in choice.items():
                plan.remove(layer, np.flatnonzero(~on))
            return plan

        return read_json(path, _FORMAT, "a plan", build)


def _from_to(row, what):
    return f"{row[f'{what}_before']:,} -> {row[f'{what}_after']:,}"
