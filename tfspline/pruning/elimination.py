"""Elimination: which of the units of a group become redundant one after the other, and at what distance or cost."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfspline.pruning.readers import Reader

RHO = 0.05  # weight of the difference of offsets in the distance of two hyperplanes
RIDGE = 1e-4  # share of a covariance's mean variance added to its diagonal: units may be linearly dependent
_SHARE = 16  # one in this many remaining units is eliminated per step of `eliminate_by_cost`, at least one


def hyperplane_distances(weight: np.ndarray, offset: np.ndarray, rho: float = RHO) -> np.ndarray:
    """Distances of the hyperplanes of all pairs of units, float32 [n, n], as defined in the criterion `spline`."""
    norm = tf.maximum(tf.norm(weight, axis=1), np.finfo(np.float32).tiny)
    normal, offset = weight / norm[:, None], offset / norm
    cosine = tf.matmul(normal, normal, transpose_b=True)
    sign = tf.where(cosine < 0, -1.0, 1.0)
    distance = 1 - tf.abs(cosine) + rho * tf.abs(offset[:, None] - sign * offset[None, :])
    return np.maximum(distance.numpy(), 0)  # 1 - |cos| of equal normals can round to just below 0


def greedy_elimination(distance: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Eliminates, again and again, the unit with the smaller norm of the closest remaining pair. Returns the distance
    at which each unit was eliminated, float32 [n]; infinity for the last one. Takes O(n^2) on average."""
    distance = distance.copy()
    np.fill_diagonal(distance, np.inf)
    scores = np.full(len(norm), np.inf, np.float32)
    nearest = distance.argmin(axis=1)
    closest = distance.min(axis=1)
    for _ in range(len(norm) - 1):
        k = int(closest.argmin())
        eliminated = min(k, int(nearest[k]), key=lambda unit: (norm[unit], unit))
        scores[eliminated] = closest[k]
        distance[:, eliminated] = closest[eliminated] = np.inf
        outdated = np.flatnonzero((nearest == eliminated) & np.isfinite(closest))
        nearest[outdated] = distance[outdated].argmin(axis=1)
        closest[outdated] = distance[outdated].min(axis=1)
    return scores


def eliminate_by_cost(maps: list["ReaderMap"]) -> np.ndarray:
    """Eliminates, again and again, the unit that is cheapest to merge into the others, given the maps that read them.

    Returns the largest cost up to and including the elimination of each unit, float32 [n].
    """
    remaining, highest = np.arange(len(maps[0].gram)), 0.0
    scores = np.empty(len(remaining), np.float32)
    while remaining.size:
        eliminated, costs = _cheapest(maps, max(1, remaining.size // _SHARE))
        for unit, cost in zip(remaining[eliminated], costs, strict=True):
            scores[unit] = highest = max(highest, cost)
        kept = np.delete(np.arange(remaining.size), eliminated)
        for one in maps:
            one.merge(eliminated, kept)
        remaining = remaining[kept]
    return scores


def _cheapest(maps, count):
    """The next `count` units, eliminated one by one among the 2 x `count` that are cheapest now; and their costs.

    If two units can replace each other, both are cheap only until one is eliminated.
    """
    candidates = np.argsort(sum(one.costs() for one in maps), kind="stable")[: 2 * count]
    at = np.ix_(candidates, candidates)
    maps = [ReaderMap(one.inverse[at], one.gram[at]) for one in maps]
    eliminated, costs = [], []
    for _ in range(count):
        cost = sum(one.costs() for one in maps)
        k = int(cost.argmin())
        kept = np.delete(np.arange(len(candidates)), k)
        eliminated.append(candidates[k])
        costs.append(cost[k])
        for one in maps:
            one.merge([k], kept)
        candidates = candidates[kept]
    return eliminated, costs


@dataclasses.dataclass
class ReaderMap:
    """How a layer reads n units, in float64.

    Attributes:
        inverse: [n, n], inverse of the covariance of the units' values.
        gram: [n, n], what an error in the units' values costs, a quadratic form.
    """

    inverse: np.ndarray
    gram: np.ndarray

    @classmethod
    def of(cls, reader: Reader, gram: np.ndarray) -> "ReaderMap":
        """The map of a `Reader`, with its covariance shrunk."""
        return cls(np.linalg.inv(shrunk(reader.covariance, reader.samples)), gram.astype(np.float64))

    def costs(self) -> np.ndarray:
        """The cost of eliminating each unit, float64 [n]: gram_kk / (G^-1)_kk (Hassibi and Stork 1993)."""
        return np.diag(self.gram) / np.diag(self.inverse)

    def merge(self, eliminated: list[int], kept: np.ndarray) -> None:
        """Merges units into the kept ones, which take over their errors by R = -H_eliminated H_ee^-1, H the inverse."""
        columns, read = self.inverse[:, eliminated], self.gram[:, eliminated]
        share = columns @ np.linalg.inv(columns[eliminated])
        half = share @ read[eliminated] / 2 - read
        share, columns, half = share[kept], columns[kept], half[kept]
        at = np.ix_(kept, kept)
        self.inverse = self.inverse[at]
        self.inverse -= share @ columns.T
        self.gram = self.gram[at]
        self.gram += np.hstack([half, share]) @ np.hstack([share, half]).T


def shrunk(covariance: np.ndarray, samples: float) -> np.ndarray:
    """A covariance of n values, float64 [n, n], shrunk towards their mean variance by how well `samples` determine it.

    The oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero (2010), and at least `RIDGE`.
    """
    covariance, n = covariance.astype(np.float64), len(covariance)
    trace, squares = np.trace(covariance), np.sum(np.square(covariance))
    most = (1 - 2 / n) * squares + trace**2
    spread = (samples + 1 - 2 / n) * (squares - trace**2 / n)
    share = max(RIDGE, most / spread if spread > most else 1.0)
    covariance *= 1 - share
    covariance[np.diag_indices(n)] += share * trace / n + np.finfo(np.float32).tiny
    return covariance
