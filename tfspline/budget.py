"""How much goes: a ratio of the units, or a share of the FLOPs or parameters that stays, turned into widths."""

import dataclasses
import numbers
from collections.abc import Mapping

import numpy as np

from tfspline.graph import Graph, Group

SCOPES = ("layer", "global")
_CLOSE = 0.01  # a width is not looked for any further once the cost is so near below its budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan has to meet; the fields are arguments of `tfspline.plan`.

    Raises:
        TypeError, ValueError: a field outside its range, or not exactly one of `ratio`, `flops` and `params`.
    """

    ratio: float | Mapping[str, float] | None = None
    flops: float | None = None
    params: float | None = None
    scope: str = "layer"
    min_units: int = 1
    round_to: int = 1

    def __post_init__(self):
        given = {name: getattr(self, name) for name in ("ratio", "flops", "params") if getattr(self, name) is not None}
        if len(given) != 1:
            raise ValueError(f"Expected exactly one of `ratio`, `flops` and `params`. Received: {given or 'none'}")
        ((name, value),) = given.items()
        for share in value.values() if isinstance(value, Mapping) else [value]:
            if not isinstance(share, numbers.Real) or not 0 < share < 1:
                raise ValueError(f"Expected `{name}` in (0, 1). Received: {value!r}")
        if self.scope not in SCOPES:
            raise ValueError(f"Expected `scope` among {SCOPES}. Received: {self.scope!r}")
        for name in ("min_units", "round_to"):
            count = getattr(self, name)
            if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < 1:
                raise ValueError(f"Expected `{name}` to be an integer of at least 1. Received: {count!r}")

    def removed(self, graph: Graph, groups: list[Group], scores: list[np.ndarray]) -> np.ndarray:
        """The units that go, bool [graph.units], given the scores of each of the groups that may be cut.

        Raises:
            ValueError: the budget is smaller than what has to stay, or a ratio names a layer that has no units.
        """
        choice = _Choice(self, graph, groups, scores)
        return ~choice.kept(choice.widths())


class _Choice:
    """A budget on its way to widths: how many units of each group stay, the best of it."""

    def __init__(self, budget, graph, groups, scores):
        self.budget, self.graph, self.groups = budget, graph, groups
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
        return self.within("flops", budget.flops) if budget.params is None else self.within("params", budget.params)

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

    def within(self, what, share):
        """The widths after as few units as meet the budget, widened again where there is room left."""
        count_of = self.graph.macs if what == "flops" else self.graph.params
        whole = sum(count_of().values())

        def cost(widths):
            return sum(count_of(self.kept(widths)).values()) / whole

        few, many = 0, len(self.group_at)
        if cost(self.after(many)) > share:
            least = cost(self.after(many))
            raise ValueError(f"Expected `{what}` of at least {least:.4f}, what has to stay. Received: {share}")
        while few < many:
            middle = (few + many) // 2
            few, many = (few, middle) if cost(self.after(middle)) <= share else (middle + 1, many)
        widths = self.after(many)
        # A unit of a wide stream can cost several percent of a model: let cheaper ones fill the gap.
        for group in range(len(widths)):
            if cost(widths) > (1 - _CLOSE) * share:
                break
            wider = widths.copy()
            wider[group] = min(wider[group] + self.budget.round_to, self.sizes[group])
            widths = wider if cost(wider) <= share else widths
        return widths
