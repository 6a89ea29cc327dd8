"""Planning: chooses the units to remove from a model by a criterion and a budget."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from tfspline._keras.constraints import check_finite
from tfspline._keras.inputs import Probe, sample, shapes_of_inputs
from tfspline._keras.types import Data, InputShape, KerasLayer, KerasModel
from tfspline._utils.checks import count, several
from tfspline.deployment.timing import Runtime, Stopwatch
from tfspline.graph import reader as graphs
from tfspline.graph.cost import check_static
from tfspline.graph.structure import Graph, unknown_lines
from tfspline.graph.surgery import check_cut
from tfspline.graph.unrolling import functional
from tfspline.pruning import compensation, criteria
from tfspline.pruning.allocation import Budget
from tfspline.pruning.plans import Plan
from tfspline.pruning.units import units_of


def plan(
    model: KerasModel,
    ratio: float | Mapping[str, float] | None = None,
    *,
    max_flops: float | None = None,
    max_params: float | None = None,
    max_latency: float | None = None,
    criterion: str | None = None,
    scope: str | None = None,
    min_units: int = 1,
    round_to: int = 1,
    protect: Iterable[str | Callable[[KerasLayer], bool]] = (),
    allow_inexact: bool = False,
    seed: int = 0,
    data: Data = None,
    input_shape: InputShape = None,
    runtime: str | Runtime = "tensorflow",
    batch_size: int = 1,
) -> Plan:
    """Chooses the units of a model to remove.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras. It is not changed.
        ratio: the share of the prunable units to remove, in (0, 1); or a mapping of layers to such shares, where all
            other layers keep their units. Give exactly one of `ratio`, `max_flops`, `max_params` and `max_latency`.
        max_flops: the largest share of the model's FLOPs that may stay, in (0, 1).
        max_params: the largest share of the model's parameters that may stay, in (0, 1).
        max_latency: the share of the prediction time that may stay, in (0, 1), met within 5 %. Measuring takes about a
            minute for a large network and needs an otherwise idle machine.
        criterion: "spline", "spline_data", "spline_affine", "spline_output", "bn_scale", "l1", "l2", "fpgm", "taylor",
            "snip", "synflow", "random", or a name given to `register_criterion`. The default is "spline_output", which
            loses least, with `data`, and "spline" without.
        scope: "layer" removes the same share of every group of units. "global" ranks all units together, by their score
            for what they save of the budget, and keeps a quarter of each group if the budget can be met so. The default
            is "global" for the criterion "spline_output", whose scores are comparable across layers, else "layer".
        min_units: the smallest number of units that a group keeps.
        round_to: widths are rounded up to a multiple of this number. A group without such a width keeps all units.
        protect: layers whose units are kept: paths, or predicates of a layer.
        allow_inexact: also remove units whose removal changes the function of the rest, so that the result differs
            from the masked model: channels that LayerNormalization and similar layers normalize over.
        seed: seed of the criterion "random".
        data: inputs for data-driven criteria, several inputs in a list; 256 to 1,024 samples are enough. "taylor" and
            "snip" need a tuple `(x, y)` of inputs and labels, and a compiled loss. A batched tf.data.Dataset of either
            works too. At most 1,024 samples are used: of arrays an even selection, of a dataset the first ones.
        input_shape: the shape of one input, without the batch, for which work is counted if the model leaves sizes
            open: a tuple of integers; for several inputs a list or dict of tuples. By default that of `data`.
        runtime: where `max_latency` is measured: "tensorflow", "litert", or a function, as for `tfspline.latency`.
        batch_size: inputs per prediction when `max_latency` is measured.

    Returns:
        A `Plan`. A warning is logged if no unit is removed, or if a budget depends on work that cannot be counted.

    Raises:
        TypeError, ValueError: the model's graph cannot be read; an argument is out of range; no unit can be removed;
            the budget cannot be met; or the criterion needs `data`, labels or a compiled loss that is missing.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> tfspline.plan(model, 0.5).cost()["units"]
    (10, 6)
    """
    criterion, scope = criteria.or_defaults(criterion, scope, data)
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
    protect = several("protect", protect)
    model = functional(model)
    seen = None if data is None else sample(model, data)
    if input_shape is None and seen is not None:
        input_shape = seen.input_shape
    graph = graphs.read(model, protect, allow_inexact, input_shape)
    options = {**dataclasses.asdict(budget), "criterion": criterion, "allow_inexact": allow_inexact, "seed": seed}
    check_cut(model, graph)
    options["protect"] = list(graph.protect)
    if graph.input_shapes != shapes_of_inputs(model):
        options["input_shape"] = [list(shape) for shape in graph.input_shapes]
    stopwatch = None
    if max_latency is not None:
        stopwatch = Stopwatch(model, graph, runtime, batch_size)
        options |= {"runtime": getattr(runtime, "__name__", str(runtime)), "batch_size": batch_size}
    return Plan(graph, _removed(model, graph, budget, criterion, seed, seen, stopwatch), options)


def _removed(model, graph, budget, criterion, seed, seen, stopwatch):
    if budget.max_flops is not None:
        check_static(model, graph.input_shapes)
    if graph.unknown and (budget.max_flops is not None or budget.max_latency is not None):
        logging.warning("The budget depends on work that is not counted.\n%s", "\n".join(unknown_lines(graph.unknown)))
    removed = choose(model, graph, budget, criterion, np.random.default_rng(seed), seen, stopwatch=stopwatch)
    if not removed.any():
        logging.warning(
            "No unit of %r is removed: with this budget, min_units and round_to, all groups of units keep their "
            "widths. Remove a larger share, or lower min_units or round_to.",
            model.name,
        )
    return removed


def choose(
    model: KerasModel,
    graph: Graph,
    budget: Budget,
    criterion: str,
    rng: np.random.Generator,
    seen: Probe | None = None,
    off: np.ndarray | None = None,
    stopwatch: Stopwatch | None = None,
) -> np.ndarray:
    """Chooses the units to remove, bool [graph.units], by a criterion and a budget.

    Units that are already `off` (bool [graph.units]) are removed before all others, which are scored as if these were
    not there. Only a latency budget needs a `stopwatch`.
    """
    groups = [group for group in graph.groups if not group.protected]
    if not groups:
        reasons = {group.name: group.protected for group in graph.groups} | graph.kept
        raise ValueError(f"No unit of {model.name!r} can be removed: {reasons or 'no layer produces channels'}")
    check_finite(model)
    on = np.ones(graph.units, bool) if off is None else ~off
    scored = [dataclasses.replace(group, units=group.units[on[group.units]]) for group in groups]
    scored = [group for group in scored if group.units.size]
    scores = np.full(graph.units, -np.inf)
    for group, units in zip(scored, units_of(model, graph, scored, rng, seen), strict=True):
        scores[group.units] = criteria.scores(criterion, units)
    return budget.removed(graph, groups, [scores[group.units] for group in groups], stopwatch)


def prune(
    model: KerasModel,
    ratio: float | Mapping[str, float] | None = None,
    *,
    data: Data = None,
    compensate: str = "auto",
    recalibrate: bool | None = None,
    **options: Any,
) -> KerasModel:
    """Returns a smaller ordinary Keras model: `plan(model, ratio, ...).apply(model, ...)`.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras. It is not changed.
        ratio: the share of the prunable units to remove, as for `plan`.
        data: as for `plan`; the remaining layers are also refitted on these inputs.
        compensate: "auto", "refit", "merge" or "none", as for `Plan.apply`.
        recalibrate: whether to re-estimate BatchNormalization statistics, as for `Plan.apply`.
        **options: the other arguments of `plan`, such as `max_flops`, `criterion` and `protect`.

    Returns:
        An uncompiled model of the same Keras version with the same layer names and fewer units, free of tfspline
        classes. Without `data` a warning is logged, as it has to be trained then.

    Raises:
        TypeError, ValueError: as for `plan` and `Plan.apply`.

    Example:

    >>> import keras, numpy as np, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> tfspline.prune(model, 0.5, data=np.random.rand(100, 4)).layers[0].units
    4
    """
    compensation.check(data, compensate, recalibrate)
    known = inspect.signature(plan).parameters
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise TypeError(f"prune() has no argument {name!r}" + (f"; did you mean {close[0]!r}?" if close else "."))
    small = plan(model, ratio, data=data, **options).apply(model, data, compensate, recalibrate)
    if data is None:
        logging.warning(
            "%r was pruned without data, so its accuracy is low until it is trained. Train it, or give prune() `data`, "
            "a few hundred unlabelled inputs, to choose the units and refit the remaining weights on.",
            model.name,
        )
    return small
