"""Channel ids: integers that flow through a model's graph and are tied into units."""

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tfspline.graph.structure import Group, WeightSlice, producer_name


class ChannelIds:
    """The channel ids of one model: how many there are, which of them are one unit, and which must stay."""

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[np.ndarray] = []
        self._protected: list[tuple[np.ndarray, str]] = []
        self._later: list[Callable[[], None]] = []
        self._known: np.ndarray | None = None  # the unit of each id, as long as no id and no tie is added

    def fresh(self, n: int) -> np.ndarray:
        """`n` new ids, int64 [n]."""
        self.count += n
        self._known = None
        return np.arange(self.count - n, self.count)

    def of_tensor(self, shape: tuple) -> np.ndarray:
        """New ids along the last axis of a tensor of that shape, the batch not included; a single one for a scalar."""
        ids = self.fresh((shape[-1] or 1) if shape else 1)
        return ids.reshape((*[1] * (len(shape) - 1), -1) if shape else ())

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Makes the ids in `a` and those at the same place in `b`, an array of the same shape, one unit each."""
        self._known = None
        self._ties.append(np.stack([np.ravel(a), np.ravel(b)]))

    def lay_out(self, ids: np.ndarray) -> None:
        """Declares that a tensor has these ids: `settle` ties them such that cuts leave a grid, as they must."""
        if np.count_nonzero(np.array(ids.shape) > 1) > 1:
            self._later.append(lambda: self._tie_grid(ids))

    def broadcast(self, part: np.ndarray, whole: np.ndarray, reason: str) -> None:
        """Declares that numbers with the ids `part` meet those with the ids `whole`, of the same rank.

        Along axes on which only `whole` varies, the numbers of `part` are repeated. If the units of `whole` turn out to
        vary along these, `part` cannot be cut with them: it is protected for the `reason`.
        """
        self._later.append(lambda: self._meet(part, whole, reason))

    def settle(self) -> None:
        """Ties what depends on all other ties."""
        while self._later:
            self._later.pop(0)()

    def _tie_grid(self, grid):
        """Ties ids such that units vary along one axis only: along the last, unless ties say otherwise."""
        varying = self._varying(grid)
        if len(varying) > 1:
            self._tie_along([axis for axis in varying if axis != varying[-1]], grid)

    def _meet(self, part, whole, reason):
        repeated = [axis for axis in self._varying(whole) if part.shape[axis] == 1]
        if repeated:
            self.protect(part, reason)
            self._tie_along([axis for axis, size in enumerate(part.shape) if size > 1], whole)
        else:
            self.tie(np.broadcast_to(part, whole.shape), whole)

    def _varying(self, ids):
        """The axes along which the units of ids vary."""
        units = self._unit_of()[ids]
        return [axis for axis in range(units.ndim) if (units != units.take([0], axis)).any()]

    def _tie_along(self, axes, ids):
        """Ties ids that differ only in their positions along some axes."""
        first = ids[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(ids.ndim))]
        self.tie(np.broadcast_to(first, ids.shape), ids)

    def protect(self, ids: np.ndarray, reason: str, first: bool = False) -> None:
        """Keeps the units of `ids`.

        Of several reasons the earliest counts; with `first`, this one comes before all that were given so far.
        """
        self._protected.insert(0 if first else len(self._protected), (np.ravel(ids), reason))

    def units(self) -> tuple[np.ndarray, np.ndarray]:
        """The unit of each id, int64 [ids], and why each unit is protected or None, object [units]."""
        unit_of = self._unit_of()
        reasons = np.full(unit_of.max(initial=-1) + 1, None, object)
        for ids, reason in reversed(self._protected):
            reasons[unit_of[ids]] = reason
        return unit_of, reasons

    def _unit_of(self):
        if self._known is None:
            ties = np.concatenate([np.zeros((2, 0), int), *self._ties], axis=1)
            edges = coo_array((np.ones(ties.shape[1], bool), (ties[0], ties[1])), shape=(self.count, self.count))
            self._known = connected_components(edges, directed=False)[1]
        return self._known


def group_units(slices: list[WeightSlice], reasons: np.ndarray, parts: list[np.ndarray]) -> list[Group]:
    """Groups the units that the same layers produce, protected and unprotected ones apart.

    `reasons`, object [units], says why each unit is protected, or None. Each array of `parts` holds the units of a
    tensor that was cut off from another one. They are grouped apart from the others, so that some of them stay.
    """
    producers = [part for part in slices if part.role == "produced"]
    signatures = _signatures(producers, reasons, parts)
    layers_of: dict[int, dict[str, None]] = {}
    for part in producers:
        for signature in np.unique(signatures[part.units]):
            layers_of.setdefault(signature, {})[part.layer] = None
    groups: list[Group] = []
    groups_of_layer: dict[str, int] = {}
    grouped = np.zeros(len(reasons), bool)
    for part in producers:
        units = _distinct(part.units)
        units = units[~grouped[units]]
        grouped[units] = True
        for signature in dict.fromkeys(signatures[units].tolist()):
            members = units[signatures[units] == signature]
            number = groups_of_layer[part.layer] = groups_of_layer.get(part.layer, 0) + 1
            name = producer_name(part.layer, number)
            groups.append(Group(name, tuple(layers_of[signature]), members, reasons[members[0]]))
    return groups


def _signatures(producers, reasons, parts):
    """A number for each unit, uint64 [units], that is equal for units of the same group.

    It is the sum of a random number for each position at which a slice produces the unit, one for each part in which it
    is, and one more if the unit is protected. Different sums collide with a probability of about 2**-62.
    """
    random = np.random.default_rng(0).integers(1, 2**62, len(producers) + len(parts) + 1, dtype=np.uint64)
    signatures = (reasons != None).astype(np.uint64) * random[-1]  # noqa: E711 (elementwise)
    for units, number in zip([*(part.units for part in producers), *map(np.unique, parts)], random, strict=False):
        np.add.at(signatures, units, number)
    return signatures


def _distinct(units):
    """The distinct units in the order in which they first occur."""
    return units[np.sort(np.unique(units, return_index=True)[1])]
