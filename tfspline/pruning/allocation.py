"""Allocation: turns a budget (a ratio of units, or a share of FLOPs, parameters or time) into units to remove."""

import bisect
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tfspline._utils.checks import among, count, share
from tfspline.deployment.timing import Stopwatch
from tfspline.graph.structure import Graph, Group

SCOPES = ("layer", "global")
_BUDGETS = ("ratio", "max_flops", "max_params", "max_latency")
_COSTS = {"max_flops": "FLOPs", "max_params": "parameters", "max_latency": "time"}
_CLOSE = 0.01  # the search for widths stops once the cost is this close below the budget
_TOLERANCE = 0.05  # relative error that a latency may have: clocks are no more exact than a few percent
_TRIES = 8  # the most whole models whose latency is measured
_FLOORS = (1 / 4, 1 / 8, 1 / 16, 1 / 32, 0)  # the share of its units that each group keeps if units are ranked together
_ROUNDS = 4  # of ranking units by what they save, which depends on the widths that the ranking leads to
_TABLE = (1, 0.75, 0.5, 0.25, 0)  # shares of each group's units at which the latency of layers is measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan has to meet. The fields are arguments of `tfspline.plan`, checked here."""

    ratio: float | Mapping[str, float] | None = None
    max_flops: float | None = None
    max_params: float | None = None
    max_latency: float | None = None
    scope: str = "layer"
    min_units: int = 1
    round_to: int = 1

    def __post_init__(self):
        given = {name: getattr(self, name) for name in _BUDGETS if getattr(self, name) is not None}
        if len(given) != 1:
            names = ", ".join(f"`{name}`" for name in _BUDGETS)
            raise ValueError(f"Expected exactly one of {names}. Received: {given or 'none'}")
        ((name, value),) = given.items()
        shares = list(value.values()) if name == "ratio" and isinstance(value, Mapping) else [value]
        if not shares:
            raise ValueError("Expected the `ratio` of at least one layer. Received: an empty mapping")
        for one in shares:
            share(name, one)
        among("scope", self.scope, SCOPES)
        for name in ("min_units", "round_to"):
            count(name, getattr(self, name))

    def removed(
        self, graph: Graph, groups: list[Group], scores: list[np.ndarray], stopwatch: Stopwatch | None = None
    ) -> np.ndarray:
        """Chooses the units to remove, bool [graph.units], from `groups`, given the `scores` of the units of each."""
        ranking = _Ranking(self, graph, groups, scores)
        return ~ranking.kept(self._widths(ranking, graph, stopwatch))

    def _widths(self, ranking: "_Ranking", graph: Graph, stopwatch: Stopwatch | None) -> np.ndarray:
        if isinstance(self.ratio, Mapping):
            return ranking.rounded(_widths_by_layer(ranking, self.ratio))
        if self.ratio is not None:
            return _widths_at_ratio(ranking, self.ratio)
        if self.max_latency is not None:
            assert stopwatch is not None, "max_latency needs a stopwatch"
            return _LatencySearch(ranking, stopwatch, self.max_latency).widths()
        if self.max_flops is not None:
            return _widths_below(ranking, "max_flops", self.max_flops, graph.macs)
        return _widths_below(ranking, "max_params", self.max_params, graph.params)


class _Ranking:
    """The prunable units of a model, in the order in which they are removed. "Widths" are an int array: how many units
    each group keeps, which are its best."""

    def __init__(self, budget: Budget, graph: Graph, groups: list[Group], scores: list[np.ndarray]):
        self.groups = groups
        self.sizes = np.array([len(group.units) for group in groups])
        self.budget, self._units, self._scores = budget, graph.units, scores
        self.protects = bool(graph.protect)
        self._ranks = [_rank(score) for score in scores]
        self._group = np.repeat(np.arange(len(groups)), self.sizes)
        self.floor = _FLOORS[0] if budget.scope == "global" else 0
        self._pools = _pools(budget, graph, groups)
        self.order(np.ones(len(groups)))

    def order(self, savings: np.ndarray) -> None:
        """Ranks the units anew, given what one unit of each group saves."""
        pools = self._pools[self._group]
        per_saving = np.concatenate([score / saving for score, saving in zip(self._scores, savings, strict=True)])
        ratios = np.empty(len(pools))
        for pool in np.unique(pools):
            ranks = _rank(per_saving[pools == pool])
            ratios[pools == pool] = (ranks + 1) / len(ranks)
        order = np.argsort(ratios, kind="stable")
        self._group_at = self._group[order]  # the group that loses the i-th unit
        self._ratio_at = ratios[order]  # the smallest ratio at which the i-th unit is removed

    def order_by_savings(self, cost: Callable[[np.ndarray], float], budget: float) -> None:
        """Ranks units that are ranked together by what they save of a cost, at the widths at which it is `budget`."""
        widths = self.sizes
        for _ in range(_ROUNDS if self.budget.scope == "global" else 0):
            self.order(_savings(widths, cost))
            widths = self.widths_after(self.count_for(cost, budget))

    def __len__(self):
        return len(self._group_at)

    def kept(self, widths: np.ndarray) -> np.ndarray:
        """The units of the model, bool [units], that are kept at these widths."""
        kept = np.ones(self._units, bool)
        for group, rank, width in zip(self.groups, self._ranks, widths, strict=True):
            kept[group.units[rank < len(rank) - width]] = False
        return kept

    def rounded(self, widths: np.ndarray) -> np.ndarray:
        """Widths of at least `min_units` and the `floor`, rounded up to a multiple of `round_to`."""
        step = self.budget.round_to
        least = np.maximum(np.ceil(self.floor * self.sizes).astype(int), self.budget.min_units)
        widths = -(-np.maximum(widths, least) // step) * step
        return np.minimum(widths, self.sizes)

    def widths_after(self, count: int) -> np.ndarray:
        """The widths after the first `count` units are removed."""
        return self.rounded(self.sizes - np.bincount(self._group_at[:count], minlength=len(self.sizes)))

    def count_at(self, ratio: float) -> int:
        """How many units are removed at a ratio."""
        return int(np.searchsorted(self._ratio_at, ratio + 1e-9, side="right"))

    def lower_floor(self, cost: Callable[[np.ndarray], float], budget: float) -> float:
        """Lowers the floor until a cost can be at most `budget`, if that is possible. Returns the least cost."""
        for floor in _FLOORS[_FLOORS.index(self.floor) :]:
            self.floor = floor
            least = cost(self.widths_after(len(self)))
            if least <= budget:
                break
        return least

    def count_for(self, cost: Callable[[np.ndarray], float], budget: float) -> int:
        """How many units must be removed until a cost, which falls with the widths, is at most `budget`."""
        counts = range(len(self))
        return bisect.bisect_left(counts, True, key=lambda count: cost(self.widths_after(count)) <= budget)

    def widened(self, widths: np.ndarray, cost: Callable[[np.ndarray], float], budget: float) -> np.ndarray:
        """Wider widths, if there are any whose cost is at most `budget`: one unit of a wide residual stream can cost
        several percent of a model, and cheaper units fill the gap."""
        for group in range(len(widths)):
            if cost(widths) > (1 - _CLOSE) * budget:
                break
            wider = widths.copy()
            wider[group] = min(wider[group] + self.budget.round_to, self.sizes[group])
            widths = wider if cost(wider) <= budget else widths
        return widths


def _pools(budget, graph, groups):
    """The pool of each group, int [groups]. Units of a pool are ranked together, and the same share of each goes.

    With a ratio, attention heads and other units of several numbers are a pool of their own: they are too different
    from channels to be counted together.
    """
    if budget.scope == "layer":
        return np.arange(len(groups))
    if budget.ratio is None:
        return np.zeros(len(groups), int)
    last = {
        unit: part.axis == len(graph.shapes[part.layer][part.index]) - 1
        for part in graph.producers.values()
        for unit in part.units
    }
    return np.array([int(last.get(group.units[0], True)) for group in groups])


def _rank(scores):
    return np.argsort(np.argsort(scores, kind="stable"))


def _widths_by_layer(ranking, ratios):
    removed = np.zeros_like(ranking.sizes)
    for name, ratio in ratios.items():
        found = [i for i, group in enumerate(ranking.groups) if name == group.name or name in group.layers]
        if not found:
            prunable = [group.name for group in ranking.groups]
            raise ValueError(f"Expected the keys of `ratio` among the prunable layers {prunable}. Received: {name!r}")
        removed[found] = np.floor(ratio * ranking.sizes[found] + 1e-9)
    return ranking.sizes - removed


def _widths_at_ratio(ranking, ratio):
    """The widths after this ratio of the units is removed, or as many as `min_units` lets go."""
    if ranking.budget.scope == "layer":
        return ranking.widths_after(ranking.count_at(ratio))
    stay = ranking.sizes.sum() - np.floor(ratio * ranking.sizes.sum() + 1e-9)
    ranking.lower_floor(np.sum, stay)
    return ranking.widths_after(ranking.count_for(np.sum, stay))


def _widths_below(ranking, name, budget, cost_by_layer):
    """The widths with the largest cost, as a share of the whole model's, of at most `budget`."""
    whole = sum(cost_by_layer().values())

    def cost(widths):
        return sum(cost_by_layer(ranking.kept(widths)).values()) / whole

    least = ranking.lower_floor(cost, budget)
    if least > budget:
        raise _too_small(ranking, name, budget, least)
    ranking.order_by_savings(cost, budget)
    return ranking.widened(ranking.widths_after(ranking.count_for(cost, budget)), cost, budget)


def _savings(widths, cost):
    """What one unit of each group saves of a cost, which is at most 1, at these widths."""
    savings, now = np.zeros(len(widths)), cost(widths)
    for group in range(len(widths)):
        fewer = widths.copy()
        fewer[group] -= 1
        savings[group] = now - cost(fewer)
    return np.maximum(savings, 1e-9)


class _LatencySearch:
    """Finds widths whose measured latency is a given share of the whole model's.

    A table of measured layers predicts the latency of any widths. Each measurement of a whole model corrects how the
    table is read.
    """

    def __init__(self, ranking: _Ranking, stopwatch: Stopwatch, budget: float):
        self._ranking, self._stopwatch, self._budget = ranking, stopwatch, budget
        cuts = [ranking.rounded(np.ceil(part * ranking.sizes).astype(int)) for part in _TABLE]
        self._seconds = stopwatch.table([ranking.kept(widths) for widths in cuts])
        self._whole = self._seconds(ranking.kept(ranking.sizes))
        ranking.lower_floor(self._predicted, budget)
        ranking.order_by_savings(self._predicted, budget)
        self._tried = {tuple(ranking.sizes): (1.0, 1.0)}  # widths -> predicted share, measured share

    def widths(self) -> np.ndarray:
        """The first widths found within the tolerance; ValueError if there are none."""
        ranking, budget = self._ranking, self._budget
        widths = ranking.widths_after(len(ranking))
        while widths is not None and len(self._tried) <= _TRIES:
            measured = self._stopwatch.share(ranking.kept(widths))
            if abs(measured - budget) <= _TOLERANCE * budget:
                return widths
            if len(self._tried) == 1 and measured > budget:
                raise _too_small(ranking, "max_latency", budget, measured)
            self._tried[tuple(widths)] = self._predicted(widths), measured
            widths = self._nearest_untried()
        shares = sorted((measured for _, measured in self._tried.values()), key=lambda one: abs(one - budget))
        raise ValueError(
            f"max_latency={budget:g} cannot be met within {_TOLERANCE:.0%}. Measured shares of the time, nearest "
            f"first: {', '.join(f'{measured:.3f}' for measured in shares)}. Choose one of these, or try again on an "
            "idle machine if the clock was unsteady."
        )

    def _predicted(self, widths):
        return self._seconds(self._ranking.kept(widths)) / self._whole

    def _nearest_untried(self):
        """The untried widths predicted to be nearest to the budget; None if the nearest ones were all tried."""
        ranking = self._ranking
        predicted, measured = np.sort(list(self._tried.values()), axis=0).T  # sorted: a noisy clock may reorder them
        target = np.interp(self._budget, measured, predicted)
        count = ranking.count_for(self._predicted, target)
        narrower = ranking.widened(ranking.widths_after(count), self._predicted, target)
        wider = ranking.widths_after(max(count - 1, 0))
        untried = [widths for widths in (narrower, wider) if tuple(widths) not in self._tried]
        return min(untried, key=lambda widths: abs(self._predicted(widths) - target), default=None)


def _too_small(ranking, name, budget, least):
    lower = [option for option in ("min_units", "round_to") if getattr(ranking.budget, option) > 1]
    ways = [f"raise {name}", *(f"lower {option}" for option in lower)]
    ways += ["protect fewer layers"] if ranking.protects else []
    return ValueError(
        f"{name}={budget:g} cannot be met: what must stay already needs {least:.4g} of the {_COSTS[name]}. To meet it, "
        f"{', or '.join(ways)}."
    )
