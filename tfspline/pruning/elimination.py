"""Elimination: which of the units of a group become redundant one after the other, and at what distance or cost."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfspline.pruning.units import Reader

RHO = 0.05  # weight of the difference of offsets in the distance of two hyperplanes
RIDGE = 1e-4  # share of a covariance's mean variance added to its diagonal: units may be linearly dependent
_SHARE = 64  # one in this many remaining units is eliminated per step of `eliminate_by_cost`, at least one


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


def eliminate_by_cost(readers: list[Reader]) -> np.ndarray:
    """Eliminates, again and again, the unit that is cheapest to merge into the others (see the criterion
    `spline_affine`). Returns the largest cost up to and including the elimination of each unit, float32 [n]."""
    maps = [_ReaderMap.of(reader) for reader in readers]
    remaining, highest = np.arange(len(readers[0].covariance)), 0.0
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
    candidates = tf.argsort(tf.add_n([one.costs() for one in maps]))[: 2 * count].numpy()
    maps = [_ReaderMap(_square(one.inverse, candidates), _square(one.gram, candidates), one.variance) for one in maps]
    eliminated, costs = [], []
    for _ in range(count):
        cost = tf.add_n([one.costs() for one in maps]).numpy()
        k = int(cost.argmin())
        kept = np.delete(np.arange(len(candidates)), k)
        eliminated.append(candidates[k])
        costs.append(cost[k])
        for one in maps:
            one.merge([k], kept)
        candidates = candidates[kept]
    return eliminated, costs


@dataclasses.dataclass
class _ReaderMap:
    """The affine map by which a layer reads n units, with outgoing weights V, in float64."""

    inverse: tf.Tensor  # [n, n], inverse of the units' covariance
    gram: tf.Tensor  # [n, n], V V^T
    variance: tf.Tensor  # of the layer's output

    @classmethod
    def of(cls, reader: Reader) -> "_ReaderMap":
        covariance = tf.cast(reader.covariance, tf.float64)
        ridge = RIDGE * tf.reduce_mean(tf.linalg.diag_part(covariance)) + np.finfo(np.float32).tiny
        covariance = tf.linalg.set_diag(covariance, tf.linalg.diag_part(covariance) + ridge)
        inverse = tf.linalg.inv(covariance)
        del covariance  # large for a wide layer
        gram = tf.matmul(reader.outgoing, reader.outgoing, transpose_b=True)
        variance = tf.cast(tf.reduce_sum(gram * reader.covariance), tf.float64) + np.finfo(np.float32).tiny
        return cls(inverse, tf.cast(gram, tf.float64), variance)

    def costs(self) -> tf.Tensor:
        """The cost of eliminating each unit, float64 [n]: |V_k|^2 / (G^-1)_kk over the variance."""
        return tf.linalg.diag_part(self.gram) / tf.linalg.diag_part(self.inverse) / self.variance

    def merge(self, eliminated: list[int], kept: np.ndarray) -> None:
        """Merges units into the kept ones: V += R V_eliminated, with R = -H_eliminated H_ee^-1 and H the inverse."""
        columns, read = tf.gather(self.inverse, eliminated, axis=1), tf.gather(self.gram, eliminated, axis=1)
        share = tf.matmul(columns, tf.linalg.inv(tf.gather(columns, eliminated)))
        half = tf.matmul(share, tf.gather(read, eliminated)) / 2 - read
        share, columns, half = (tf.gather(matrix, kept) for matrix in (share, columns, half))
        self.inverse = _square(self.inverse, kept)  # one after the other, so that each step frees its input
        self.inverse -= tf.matmul(share, columns, transpose_b=True)
        self.gram = _square(self.gram, kept)
        self.gram += tf.matmul(tf.concat([half, share], 1), tf.concat([share, half], 1), transpose_b=True)


def _square(matrix, units):
    return tf.gather(tf.gather(matrix, units), units, axis=1)
