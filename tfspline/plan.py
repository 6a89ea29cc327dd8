"""Which units go: scores, a scope and a budget make a `Plan`, to be read, edited, saved and then applied."""

import dataclasses
import json
import os
from typing import Any

import numpy as np

from tfspline import _keras, criteria, masks, slim
from tfspline import graph as graphs

SCOPES = ("layer", "global")


class Plan:
    """The units that are to go from a model. Made by `tfspline.plan`.

    Attributes:
        graph: the `Graph` of the model.
        removed: bool [graph.units], True for a unit that goes.
        options: how the plan was made: `criterion`, `scope`, and the budget.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2)])
    >>> plan = tfspline.plan(model, 0.5)
    >>> plan.keep("a", [0]).rows()[0]["units_before"]
    8
    """

    def __init__(self, graph: graphs.Graph, removed: np.ndarray, options: dict):
        self.graph, self.removed, self.options = graph, removed, options

    @property
    def ratio(self) -> float:
        """The share of all units, protected ones included, that goes."""
        units = sum(len(group.units) for group in self.graph.groups)
        return float(self.removed.sum() / units)

    def keep(self, layer: str, channels: list[int]) -> "Plan":
        """Vetoes the removal of some channels of a layer, and of all that is tied to them; returns the plan."""
        self.removed[self._units(layer, channels)] = False
        return self

    def remove(self, layer: str, channels: list[int]) -> "Plan":
        """Adds channels of a layer, and all that is tied to them; ValueError for protected ones; returns the plan."""
        units = self._units(layer, channels)
        removed = self.removed.copy()
        removed[units] = True
        for group in self.graph.groups:
            if group.protected and np.isin(units, group.units).any():
                raise ValueError(f"Expected units that may go. Received: units of {group.name!r}: {group.protected}")
            if removed[group.units].all():
                raise ValueError(f"Expected at least one unit to stay. Received: all units of {group.name!r}")
        self.removed = removed
        return self

    def _units(self, layer, channels):
        units, channels = self.graph.channels(layer), np.asarray(channels, int)
        if channels.size and not (channels.min() >= 0 and channels.max() < len(units)):
            raise ValueError(f"Expected channels of {layer!r} in 0..{len(units) - 1}. Received: {channels.tolist()}")
        return units[channels]

    def rows(self) -> list[dict]:
        """One dict a group of units: `layer`, `tied` (the other layers that make them), `units_before`,
        `units_after`, `macs_before`, `macs_after` (of the layers that make them), `protected` (why, or None)."""
        before, after = self.graph.macs(), self.graph.macs(~self.removed)
        counted = set()
        rows = []
        for group in self.graph.groups:
            layers = [layer for layer in group.layers if layer not in counted]
            counted.update(layers)
            rows.append(
                {
                    "layer": group.name,
                    "tied": list(group.layers[1:]),
                    "units_before": len(group.units),
                    "units_after": int((~self.removed[group.units]).sum()),
                    "macs_before": sum(before.get(layer, 0) for layer in layers),
                    "macs_after": sum(after.get(layer, 0) for layer in layers),
                    "protected": group.protected,
                }
            )
        return rows

    def cost(self) -> dict[str, tuple[int, int]]:
        """`{"units": (before, after), "params": ..., "macs": ...}` of the whole model."""
        rows = self.rows()
        kept = ~self.removed
        return {
            "units": (sum(row["units_before"] for row in rows), sum(row["units_after"] for row in rows)),
            "params": (sum(self.graph.params().values()), sum(self.graph.params(kept).values())),
            "macs": (sum(self.graph.macs().values()), sum(self.graph.macs(kept).values())),
        }

    def __str__(self):
        rows = [("layer", "units", "MACs", "")]
        for row in self.rows():
            note = f"kept: {row['protected']}" if row["protected"] else ""
            if row["tied"]:
                note = f"tied to {', '.join(row['tied'])}" + (f"; {note}" if note else "")
            rows.append((row["layer"], _from_to(row, "units"), _from_to(row, "macs"), note))
        for name, (before, after) in self.cost().items():
            rows.append((f"all {name}", f"{before:,} -> {after:,}", f"{before / max(after, 1):.2f}x fewer", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {note}".rstrip() for a, b, c, note in rows
        )

    def apply(self, model: Any) -> Any:
        """A smaller ordinary Keras model, uncompiled, without the removed units; `model` stays as it is.

        Raises:
            ValueError: `model` has other layers or shapes than the one that the plan was made for.
        """
        return slim.cut(model, self.graph, ~self.removed)

    def mask(self, model: Any) -> Any:
        """A copy of `model` of the old shape with the removed units switched off: the same function as `apply`'s.

        Raises:
            ValueError: `model` has other layers or shapes than the one that the plan was made for.
        """
        slim.check_same(model, self.graph)
        return masks.switch_off(model, self.graph, self.removed)

    def save(self, path: str) -> None:
        """Writes the plan as JSON: its options, and the channels that go of each layer."""
        removed = {
            site.layer: np.flatnonzero(self.removed[site.units]).tolist()
            for site in self.graph.sites
            if site.role == "out"
        }
        channels = {site.layer: len(site.units) for site in self.graph.sites if site.role == "out"}
        document = {
            "format": "tfspline.plan.1",
            "options": self.options,
            "channels": channels,
            "removed": removed,
        }
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path: str, model: Any) -> "Plan":
        """Reads a plan that `save` wrote, for the model that it was made for.

        Raises:
            ValueError: the file is no plan, or one for another model.
        """
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
            if document["format"] != "tfspline.plan.1":
                raise ValueError(f"format {document['format']!r}")
            channels, removed, options = document["channels"], document["removed"], document["options"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Expected a plan saved by tfspline in {path!r}. Received: {error!r}") from error
        graph = graphs.read(model, allow_inexact=options.get("allow_inexact", False))
        expected = {site.layer: len(site.units) for site in graph.sites if site.role == "out"}
        if channels != expected or set(removed) != set(expected):
            raise ValueError(f"Expected a plan for {model.name!r}, with channels {expected}. Received: {channels}")
        plan = cls(graph, np.zeros(graph.units, bool), options)
        for layer, places in removed.items():
            plan.remove(layer, places)
        return plan


def _from_to(row, what):
    return f"{row[f'{what}_before']:,} -> {row[f'{what}_after']:,}"


def plan(
    model: Any,
    ratio: float | None = None,
    *,
    flops: float | None = None,
    criterion: str = "spline",
    scope: str = "layer",
    min_units: int = 1,
    protect: tuple = (),
    allow_inexact: bool = False,
    seed: int = 0,
) -> Plan:
    """Chooses the units of a model that can go.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras.
        ratio: the share of the units that can go which goes, in (0, 1). Give this or `flops`.
        flops: the share of the model's FLOPs that stays, in (0, 1).
        criterion: "spline", "bn_scale", "l1", "random", or one that `register_criterion` made known.
        scope: "layer" takes the same share of every group of units, "global" ranks all units together.
        min_units: no group is left with fewer units.
        protect: layers whose units stay: their paths, or predicates of a layer.
        allow_inexact: also cut channels that LayerNormalization and its kin run over, which changes the others.
        seed: of the criterion "random".

    Returns:
        A `Plan`; nothing is cut yet.

    Raises:
        TypeError, ValueError: the model's graph cannot be read; an argument is out of its range; nothing in the
            model can be pruned; the FLOPs budget is smaller than what has to stay.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> tfspline.plan(model, 0.5).cost()["units"]
    (10, 6)
    """
    score = criteria.named(criterion)
    if scope not in SCOPES:
        raise ValueError(f"Expected `scope` among {SCOPES}. Received: {scope!r}")
    if (ratio is None) == (flops is None):
        raise ValueError(f"Expected either `ratio` or `flops`. Received: ratio={ratio}, flops={flops}")
    for name, share in (("ratio", ratio), ("flops", flops)):
        if share is not None and not 0 < share < 1:
            raise ValueError(f"Expected `{name}` in (0, 1). Received: {share}")
    if not (isinstance(min_units, int) and min_units >= 1):
        raise ValueError(f"Expected `min_units` to be an integer of at least 1. Received: {min_units}")

    graph = graphs.read(model, tuple(protect), allow_inexact)
    groups = [group for group in graph.groups if not group.protected]
    if not groups:
        why = {group.name: group.protected for group in graph.groups}
        raise ValueError(f"Expected a model with units that can go. Received: {model.name!r}, where all stay: {why}")
    rng = np.random.default_rng(seed)
    scores = [np.asarray(score(units)) for units in _units_of(model, graph, groups, rng)]
    order, shares = _order(groups, scores, scope, min_units)

    def kept(count):
        kept = np.ones(graph.units, bool)
        kept[order[:count]] = False
        return kept

    if ratio is not None:
        count = int(np.searchsorted(shares, ratio + 1e-9, side="right"))
    else:
        budget = flops * sum(graph.macs().values())
        low, count = 0, len(order)
        if sum(graph.macs(kept(count)).values()) > budget:
            least = sum(graph.macs(kept(count)).values()) / sum(graph.macs().values())
            raise ValueError(f"Expected `flops` of at least {least:.4f}, what has to stay. Received: {flops}")
        while low < count:
            middle = (low + count) // 2
            if sum(graph.macs(kept(middle)).values()) <= budget:
                count = middle
            else:
                low = middle + 1
    options = dataclasses.asdict(_Options(ratio, flops, criterion, scope, min_units, allow_inexact, seed))
    return Plan(graph, ~kept(count), options)


@dataclasses.dataclass
class _Options:
    ratio: float | None
    flops: float | None
    criterion: str
    scope: str
    min_units: int
    allow_inexact: bool
    seed: int


def _order(groups, scores, scope, min_units):
    """The units in the order in which they go, and for each the ratio from which on it goes."""
    ranks = [np.argsort(np.argsort(score, kind="stable")) for score in scores]
    units = np.concatenate([group.units for group in groups])
    if scope == "layer":
        share = np.concatenate([(rank + 1) / len(rank) for rank in ranks])
    else:
        flat = np.concatenate(scores)
        share = (np.argsort(np.argsort(flat, kind="stable")) + 1) / len(flat)
    may_go = np.concatenate([rank < len(rank) - min_units for rank in ranks])
    order = np.argsort(share, kind="stable")
    order = order[may_go[order]]
    return units[order], share[order]


def _units_of(model, graph, groups, rng):
    """The arrays of each group's units that criteria score."""
    layers = _keras.layer_paths(model)
    carried = {(site.layer, site.weight): site for site in graph.sites}
    scale, passes = np.zeros(graph.units), np.zeros(graph.units)
    for site in graph.sites:
        if site.weight == "gamma" and _keras.of_class(layers[site.layer], "BatchNormalization"):
            np.add.at(scale, site.units, np.abs(_value(layers[site.layer].gamma)))
            np.add.at(passes, site.units, 1)
    makers = {site.layer: site for site in graph.sites if site.role == "out"}
    for group in groups:
        kernels, weights, offset = [], [], np.zeros(len(group.units), np.float32)
        for name in group.layers:
            site = makers[name]
            kernel = np.moveaxis(_value(getattr(layers[name], site.weight)), site.axis, 0).reshape(len(site.units), -1)
            bias = _value(layers[name].bias) if (name, "bias") in carried else np.zeros(len(kernel), np.float32)
            slope, shift = _folded(layers[graph.folded[name]]) if name in graph.folded else (np.ones_like(bias), 0)
            places = np.argsort(site.units, kind="stable")
            places = places[np.isin(site.units[places], group.units)]
            # `places` runs through the units in order of their number: bring them into the group's order
            places = places.reshape(len(group.units), -1)[np.argsort(np.argsort(group.units))]
            kernels.append(kernel[places].reshape(len(places), -1))
            weights.append((kernel * slope[:, None])[places].reshape(len(places), -1))
            offset += (bias * slope + shift)[places].mean(axis=1)
        passed = passes[group.units]
        yield criteria.Units(
            name=group.name,
            kernel=np.concatenate(kernels, axis=1),
            weight=np.concatenate(weights, axis=1),
            offset=offset,
            scale=(scale[group.units] / passed).astype(np.float32) if passed.all() else None,
            rng=rng,
        )


def _folded(bn):
    """Slope and shift a channel of a BatchNormalization in inference: y = slope x + shift."""
    slope = 1 / np.sqrt(_value(bn.moving_variance) + bn.epsilon)
    if bn.gamma is not None:
        slope = slope * _value(bn.gamma)
    shift = -_value(bn.moving_mean) * slope
    return slope, shift + _value(bn.beta) if bn.beta is not None else shift


def _value(variable) -> np.ndarray:
    return variable.numpy().astype(np.float32)


def prune(model: Any, ratio: float | None = None, **options) -> Any:
    """A smaller ordinary Keras model: `plan(model, ratio, **options).apply(model)`.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras; it stays as it is.
        ratio: the share of the units that goes, in (0, 1).
        **options: those of `plan`: `flops`, `criterion`, `scope`, `min_units`, `protect`, `allow_inexact`, `seed`.

    Returns:
        An uncompiled model of the same Keras with the same layer names, fewer units, and no tfspline class in it.

    Raises:
        TypeError, ValueError: as `plan`.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> tfspline.prune(model, 0.5).layers[0].units
    4
    """
    return plan(model, ratio, **options).apply(model)
