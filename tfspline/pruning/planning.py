"""Which units go: scores, a scope and a budget make a `Plan`, to be read, edited, saved and then applied."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from tfspline._keras import check_model
from tfspline._keras.inputs import Probe, probe, probe_inputs
from tfspline._utils.checks import among, count, several
from tfspline._utils.files import read_json, write_json
from tfspline.deployment.timing import Runtime, Stopwatch
from tfspline.graph import reader as graphs
from tfspline.graph.cost import check_static
from tfspline.graph.structure import Graph
from tfspline.graph.surgery import check_same, cut
from tfspline.pruning import compensation, criteria, masks
from tfspline.pruning.allocation import Budget
from tfspline.pruning.units import units_of

_FORMAT = "tfspline.plan.1"


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

    def __init__(self, graph: Graph, removed: np.ndarray, options: dict):
        self.graph, self.removed, self.options = graph, removed, options

    @property
    def ratio(self) -> float:
        """The share of all units, protected ones included, that goes."""
        units = sum(len(group.units) for group in self.graph.groups)
        return float(self.removed.sum() / units)

    @property
    def masks(self) -> masks.Masks:
        """The same choice as `Masks`: what is to go is off."""
        return masks.Masks(self.graph, self.removed.copy())

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
        units, places = self.graph.channels(layer), np.asarray(channels)
        # A mask of all channels would be taken for the channels 0 and 1.
        if places.size and (places.dtype.kind not in "iu" or places.min() < 0 or places.max() >= len(units)):
            raise ValueError(f"Expected channels of {layer!r} in 0..{len(units) - 1}. Received: {channels}")
        return units[places.astype(int)]

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

    def apply(self, model: Any, data: Any = None, compensate: str = "auto", recalibrate: bool | None = None) -> Any:
        """A smaller ordinary Keras model, uncompiled, without the removed units; `model` stays as it is.

        Args:
            model: the model that the plan was made for.
            data: inputs to compensate on, as for `tfspline.plan`; labels are left aside.
            compensate: "refit" fits each layer, in the order of the network, to its output in the uncut model by
                least squares (needs `data`); "merge" gives the outgoing weights of a removed unit to those that are
                kept, by least squares on `data`, without it to the one whose cut is nearest; "none" leaves the
                weights as they are, and the masked model is the same function. "auto" is "refit" with `data`,
                "none" without.
            recalibrate: whether BatchNormalization gets new statistics on `data`; by default if there is any.

        Raises:
            ValueError: `model` has other layers or shapes than the one that the plan was made for; an option that
                needs `data` without any.
        """
        _check_compensation(data, compensate, recalibrate)
        if compensate == "auto":
            compensate = "none" if data is None else "refit"
        inputs = None if data is None else probe_inputs(model, data)
        kept = ~self.removed
        if inputs is None and compensate == "merge":
            model = compensation.merge_pairs(model, self.graph, kept)
        small = cut(model, self.graph, kept)
        if inputs is not None and (compensate, recalibrate) != ("none", False):
            compensation.compensate(model, small, self.graph, kept, inputs, compensate, recalibrate is not False)
        return small

    def mask(self, model: Any) -> Any:
        """A copy of `model` of the old shape with the removed units switched off: the same function as `apply`'s.

        Raises:
            ValueError: `model` has other layers or shapes than the one that the plan was made for.
        """
        check_same(model, self.graph)
        return masks.switch_off(model, self.graph, self.removed)

    def save(self, path: str) -> None:
        """Writes the plan as JSON: its options, and the channels that go of each layer."""
        makers = self.graph.producers
        removed = {layer: np.flatnonzero(self.removed[site.units]).tolist() for layer, site in makers.items()}
        channels = {layer: len(site.units) for layer, site in makers.items()}
        write_json(path, _FORMAT, options=self.options, channels=channels, removed=removed)

    @classmethod
    def load(cls, path: str, model: Any) -> "Plan":
        """Reads a plan that `save` wrote, for the model that it was made for.

        Raises:
            ValueError: the file is no plan, damaged, or one for another model.
        """
        check_model(model)

        def build(document):
            options = document["options"]
            inexact = options.get("allow_inexact", False)
            if not isinstance(inexact, bool):
                raise ValueError(f"Expected allow_inexact to be true or false. Received: {inexact!r}")
            graph = graphs.read(model, allow_inexact=inexact)
            plan = cls(graph, np.zeros(graph.units, bool), options)
            for layer, on in masks.listed(graph, document["channels"], document["removed"]).items():
                plan.remove(layer, np.flatnonzero(~on))
            return plan

        return read_json(path, _FORMAT, "a plan", build)


def _from_to(row, what):
    return f"{row[f'{what}_before']:,} -> {row[f'{what}_after']:,}"


def plan(
    model: Any,
    ratio: float | Mapping[str, float] | None = None,
    *,
    max_flops: float | None = None,
    max_params: float | None = None,
    max_latency: float | None = None,
    criterion: str = "spline",
    scope: str = "layer",
    min_units: int = 1,
    round_to: int = 1,
    protect: tuple = (),
    allow_inexact: bool = False,
    seed: int = 0,
    data: Any = None,
    runtime: str | Runtime = "tensorflow",
    batch_size: int = 1,
) -> Plan:
    """Chooses the units of a model that can go.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras.
        ratio: the share of the prunable units to remove, in (0, 1); or a mapping of layers to such shares, where all
            other layers keep their units. Give exactly one of `ratio`, `max_flops`, `max_params` and `max_latency`.
        max_flops: the largest share of the model's FLOPs that may stay, in (0, 1).
        max_params: the largest share of the model's parameters that may stay, in (0, 1).
        max_latency: the share of the prediction time that may stay, in (0, 1), met within 5 %. It is measured on this
            device, in turns with the whole model. Measuring takes about a minute for a large network, longer with
            LiteRT, and needs an otherwise idle machine.
        criterion: "spline", "spline_data", "spline_affine", "bn_scale", "l1", "l2", "fpgm", "taylor", "snip",
            "synflow", "random", or a name given to `register_criterion`.
        scope: "layer" removes the same share of every group of units; "global" ranks all units together.
        min_units: the smallest number of units that a group keeps.
        round_to: widths are rounded up to a multiple of this number, for instance 8 for speed on some hardware. A group
            without such a width keeps all units.
        protect: layers whose units are kept: paths, or predicates of a layer.
        allow_inexact: also remove units whose removal changes the function of the rest, so that the result differs
            from the masked model: channels that LayerNormalization and similar layers normalize over.
        seed: seed of the criterion "random".
        data: inputs for data-driven criteria; a few hundred samples are enough. "spline_data" and "spline_affine" need
            inputs as the model takes them (several inputs in a list). "taylor" and "snip" need a tuple `(x, y)` of
            inputs and labels, and a compiled loss. A batched tf.data.Dataset of either works too; its first 1,024
            samples are used. Activations are computed for all samples at once, gradients in batches.
        runtime: where `max_latency` is measured: "tensorflow", "litert", or a function, as for `tfspline.latency`.
        batch_size: inputs per prediction when `max_latency` is measured.

    Returns:
        A `Plan`; the model is not changed. A warning is logged if no unit is removed.

    Raises:
        TypeError, ValueError: the model's graph cannot be read; an argument is out of range; no unit of the model can
            be pruned; the budget is smaller than what must stay; no widths meet `max_latency` within 5 %; or the
            criterion needs `data`, labels or a compiled loss that is missing.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> tfspline.plan(model, 0.5).cost()["units"]
    (10, 6)
    """
    criteria.named(criterion)
    count("seed", seed, least=0)
    budget = Budget(
        ratio=ratio,
        max_flops=max_flops,
        max_params=max_params,
        max_latency=max_latency,
        scope=scope,
        min_units=min_units,
        round_to=round_to,
    )
    graph = graphs.read(model, several("protect", protect), allow_inexact)
    if max_flops is not None:
        check_static(model)
    stopwatch = None if max_latency is None else Stopwatch(model, graph, runtime, batch_size)
    seen = None if data is None else probe(model, data)
    removed = choose(model, graph, budget, criterion, np.random.default_rng(seed), seen, stopwatch=stopwatch)
    if not removed.any():
        logging.warning("Pruning %s: no unit goes; its groups are too small for %s", model.name, budget)
    options = {**dataclasses.asdict(budget), "criterion": criterion, "allow_inexact": allow_inexact, "seed": seed}
    if max_latency is not None:
        options |= {"runtime": getattr(runtime, "__name__", str(runtime)), "batch_size": batch_size}
    return Plan(graph, removed, options)


def choose(
    model: Any,
    graph: Graph,
    budget: Budget,
    criterion: str,
    rng: np.random.Generator,
    seen: Probe | None = None,
    off: np.ndarray | None = None,
    stopwatch: Stopwatch | None = None,
) -> np.ndarray:
    """The units that go, bool [graph.units]; those that are `off` already (bool [graph.units]) before all others,
    which are scored as if these were not there.

    Raises:
        ValueError: all units must stay; the criterion does not fit the model; the budget cannot be met.
    """
    groups = [group for group in graph.groups if not group.protected]
    if not groups:
        why = {group.name: group.protected for group in graph.groups}
        raise ValueError(f"Expected a model with units that can go. Received: {model.name!r}, where all stay: {why}")
    on = np.ones(graph.units, bool) if off is None else ~off
    left = [dataclasses.replace(group, units=group.units[on[group.units]]) for group in groups]
    left = [group for group in left if group.units.size]
    scores = np.full(graph.units, -np.inf)
    for group, units in zip(left, units_of(model, graph, left, rng, seen), strict=True):
        scores[group.units] = criteria.scores(criterion, units)
    return budget.removed(graph, groups, [scores[group.units] for group in groups], stopwatch)


def prune(
    model: Any,
    ratio: float | None = None,
    *,
    data: Any = None,
    compensate: str = "auto",
    recalibrate: bool | None = None,
    **options,
) -> Any:
    """A smaller ordinary Keras model: `plan(model, ratio, ...).apply(model, ...)`.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras. It is not changed.
        ratio: the share of the prunable units to remove, as for `plan`.
        data: as for `plan`; the remaining layers are also refitted on these inputs.
        compensate: "auto", "refit", "merge" or "none", as for `Plan.apply`.
        recalibrate: whether to re-estimate BatchNormalization statistics, as for `Plan.apply`.
        **options: the other arguments of `plan`: `max_flops`, `max_params`, `max_latency`, `criterion`, `scope`,
            `min_units`, `round_to`, `protect`, `allow_inexact`, `seed`, `runtime` and `batch_size`.

    Returns:
        An uncompiled model of the same Keras version with the same layer names and fewer units, free of tfspline
        classes.

    Raises:
        TypeError, ValueError: as for `plan` and `Plan.apply`.

    Example:

    >>> import keras, numpy as np, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> tfspline.prune(model, 0.5).layers[0].units
    4
    >>> tfspline.prune(model, 0.5, criterion="spline_affine", data=np.random.rand(100, 4)).layers[0].units
    4
    """
    _check_compensation(data, compensate, recalibrate)
    return plan(model, ratio, data=data, **options).apply(model, data, compensate, recalibrate)


def _check_compensation(data, compensate, recalibrate):
    among("compensate", compensate, ("auto", *compensation.COMPENSATIONS))
    if data is None and (compensate == "refit" or recalibrate):
        raise ValueError("Expected `data`, unlabelled inputs, to refit or recalibrate on. Received: none")
