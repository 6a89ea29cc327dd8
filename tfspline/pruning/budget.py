"""How much goes: a ratio of the units, or a share of the FLOPs, parameters or time that stays, turned into widths."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfspline._utils.checks import among, count, share
from tfspline.deployment.timing import Stopwatch
from tfspline.graph.reader import Graph, Group

_UNITS = {"max_flops": "FLOPs", "max_params": "parameters", "max_latency": "time"}
SCOPES = ("layer", "global")
_BUDGETS = ("ratio", "max_flops", "max_params", "max_latency")
_CLOSE = 0.01  # a width is not looked for any further once the cost is so near below its budget
_MET = 0.05  # how far a latency may be from its budget: the clock itself is no more exact than some percent
_TRIES = 8  # whole models that are measured at most
_TABLE = (1, 0.75, 0.5, 0.25, 0)  # shares of the units of every group with which each layer is measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan has to meet; the fields are arguments of `tfspline.plan`.

    Raises:
        TypeError, ValueError: a field outside its range, or not exactly one of `ratio`, `max_flops`, `max_params` and
            `max_latency`.
    """

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
        by_layer = name == "ratio" and isinstance(value, Mapping)
        if by_layer and not value:
            raise ValueError("Expected the `ratio` of at least one layer. Received: an empty mapping")
        for one in value.values() if by_layer else [value]:
            share(name, one)
        among("scope", self.scope, SCOPES)
        for name in ("min_units", "round_to"):
            count(name, getattr(self, name))

    def removed(
        self, graph: Graph, groups: list[Group], scores: list[np.ndarray], stopwatch: Stopwatch | None = None
    ) -> np.ndarray:
        """The units that go, bool [graph.units], given the scores of each of the groups that may be cut; for a
        `max_latency`, measured with `stopwatch`.

        Raises:
            ValueError: the budget is smaller than what has to stay, a latency cannot be met, or a ratio names a layer
                that has no units.
        """
        choice = _Choice(self, graph, groups, scores, stopwatch)
        return ~choice.kept(choice.widths())


class _Choice:
    """A budget on its way to widths: how many units of each group stay, the best of it."""

    def __init__(self, budget, graph, groups, scores, stopwatch):
        self.budget, self.graph, self.groups, self.stopwatch = budget, graph, groups, stopwatch
        self.sizes = np.array([len(group.units) for group in groups])
        ranks = [np.argsort(np.argsort(score, kind="stable")) for score in scores]
        self.rank_from_best = [len(rank) - 1 - rank for rank in ranks]
        if budget.scope == "layer":
            share = np.concatenate([(rank + 1) / len(rank) for rank in ranks])
        else:
            flat = np.concatenate(scores)
            share = (np.argsort(np.argsort(flat, kind="stable")) + 1) / len(flat)
        order = np.argsort(share, kind="stable")
        self.group_at = np.repeat(np.arange(len(groups)), self.sizes)[order]  # whose unit goes first, second ...
        self.share_at = share[order]  # ... and from which ratio on

    def kept(self, widths):
        kept = np.ones(self.graph.units, bool)
        for group, rank, width in zip(self.groups, self.rank_from_best, widths, strict=True):
            kept[group.units[rank >= width]] = False
        return kept

    def widths(self):
        budget = self.budget
        if isinstance(budget.ratio, Mapping):
            return self.rounded(self.sizes - self.by_name(budget.ratio))
        if budget.ratio is not None:
            return self.after(int(np.searchsorted(self.share_at, budget.ratio + 1e-9, side="right")))
        if budget.max_latency is not None:
            return self.timed(budget.max_latency)
        if budget.max_params is None:
            name, count_of = "max_flops", self.graph.macs
        else:
            name, count_of = "max_params", self.graph.params
        share, whole = getattr(budget, name), sum(count_of().values())

        def cost(widths):
            return sum(count_of(self.kept(widths)).values()) / whole

        count = len(self.group_at)
        if cost(self.after(count)) > share:
            raise _too_small(name, cost(self.after(count)), share)
        return self.widened(self.after(self.enough(cost, share)), cost, share)

    def after(self, count):
        """The widths once the first `count` units are gone."""
        return self.rounded(self.sizes - np.bincount(self.group_at[:count], minlength=len(self.sizes)))

    def rounded(self, widths):
        step = self.budget.round_to
        widths = -(-np.maximum(widths, self.budget.min_units) // step) * step
        return np.minimum(widths, self.sizes)

    def by_name(self, ratios):
        removed = np.zeros_like(self.sizes)
        for name, ratio in ratios.items():
            found = [i for i, group in enumerate(self.groups) if name == group.name or name in group.layers]
            if not found:
                prunable = [group.name for group in self.groups]
                raise ValueError(f"Expected ratios of layers among {prunable}. Received: {name!r}")
            removed[found] = np.floor(ratio * self.sizes[found] + 1e-9)
        return removed

    def enough(self, cost, share):
        """How many units have to go for a cost that falls with the widths to be at most `share`."""
        few, many = 0, len(self.group_at)
        while few < many:
            middle = (few + many) // 2
            few, many = (few, middle) if cost(self.after(middle)) <= share else (middle + 1, many)
        return many

    def widened(self, widths, cost, share):
        """Wider widths that cost no more than `share`."""
        # A unit of a wide stream can cost several percent of a model: let cheaper ones fill the gap.
        for group in range(len(widths)):
            if cost(widths) > (1 - _CLOSE) * share:
                break
            wider = widths.copy()
            wider[group] = min(wider[group] + self.budget.round_to, self.sizes[group])
            widths = wider if cost(wider) <= share else widths
        return widths

    def timed(self, share):
        """The widths that take `share` of the whole model's time: looked for where a table of layers has them, and
        the whole model measured, which tells how to read the table from then on."""
        cuts = [self.rounded(np.ceil(part * self.sizes).astype(int)) for part in _TABLE]
        seconds = self.stopwatch.table([self.kept(widths) for widths in cuts])
        whole = seconds(self.kept(self.sizes))

        def told(widths):
            return seconds(self.kept(widths)) / whole

        tried = {tuple(self.sizes): (1.0, 1.0)}  # widths -> share by the table, share measured
        widths = self.after(len(self.group_at))
        while widths is not None and len(tried) <= _TRIES:
            measured = self.stopwatch.share(self.kept(widths))
            if abs(measured - share) <= _MET * share:
                return widths
            if len(tried) == 1 and measured > share:
                raise _too_small("max_latency", measured, share)
            tried[tuple(widths)] = told(widths), measured
            widths = self.nearest(told, share, tried)
        near = sorted((measured for _, measured in tried.values()), key=lambda measured: abs(measured - share))
        raise ValueError(
            f"max_latency={share:g} cannot be met within {_MET:.0%}. Measured shares of the time, nearest first: "
            f"{', '.join(f'{measured:.3f}' for measured in near)}. Choose one of these, or run on an idle machine: the "
            "clock may be too unsteady."
        )

    def nearest(self, told, share, tried):
        """The widths not tried yet that come nearest to a measured share; None where those next to it all were."""
        by_table, measured = np.sort(list(tried.values()), axis=0).T  # both grow, whatever the clock says
        aim = np.interp(share, measured, by_table)
        count = self.enough(told, aim)
        near = [self.widened(self.after(count), told, aim), self.after(max(count - 1, 0))]
        near = [widths for widths in near if tuple(widths) not in tried]
        return min(near, key=lambda widths: abs(told(widths) - aim), default=None)


def _too_small(name, least, share):
    return ValueError(
        f"{name}={share:g} cannot be met: what must stay already needs {least:.4g} of the {_UNITS[name]}. Raise "
        f"{name}, or lower `min_units` or `round_to`, or protect fewer layers."
    )
