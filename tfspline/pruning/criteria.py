"""Criteria: small functions that score the units of a group; a higher score is more worth keeping.

A criterion gets one `Units` and returns one float score a unit. Scores of different groups are comparable, so that
units can be ranked across layers.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspline._utils.checks import among
from tfspline.pruning.arrays import Reader, Units
from tfspline.pruning.saliency import snip, synflow, taylor

RHO = 0.05  # weight of the offsets' difference in the distance of two hyperplanes
RIDGE = 1e-4  # of a covariance's mean variance, added to its diagonal: units may be linearly dependent
AT_A_TIME = 64  # of so many units left one goes in a step of `spline_affine`, of twice as many two ...


def spline(units: Units, rho: float = RHO) -> np.ndarray:
    """Redundancy of a unit's cut (You, Balestriero et al. 2022, section 4; the details are this library's choice).

    The hyperplane of unit k is (w_k, b_k) / |w_k|. Two units cut alike if their hyperplanes nearly coincide:
    d(k, k') = (1 - |cos(w_k, w_k')|) + rho |b_k / |w_k| - s b_k' / |w_k'||, s the sign of the cosine. Again and
    again the closest pair of the units left loses the one with the smaller |w|, whose score is d at that moment.
    A unit with w = 0 cuts nothing and scores 0; the last one left scores infinity.
    """
    weight = units.weight
    norm = np.linalg.norm(weight, axis=1)
    alive = np.flatnonzero(norm > 0)
    scores = np.zeros(len(norm), np.float32)
    if alive.size == 0:
        return scores
    distance = hyperplane_distances(weight[alive], units.offset[alive], rho)
    scores[alive] = greedy_elimination(distance, norm[alive])
    return scores


def spline_data(units: Units) -> np.ndarray:
    """Redundancy of a unit's cut on the data, from region codes (beyond the paper; needs `data`).

    Two units whose codes agree, or are opposite, on all of the data cut it in the same place: d = min(h, 1 - h), with
    h the share of samples and positions at which their codes differ, a mean over the layers that read them. Units go
    as in `spline`; one that never switches cuts nothing and scores 0.
    """
    distance, switches = np.zeros((len(units.kernel),) * 2, np.float32), np.zeros(len(units.kernel), bool)
    for reader in _readers(units, "spline_data"):
        active = np.diag(reader.coactivity)
        differ = active[:, None] + active[None, :] - 2 * reader.coactivity
        distance += np.clip(np.minimum(differ, 1 - differ), 0, None) / len(units.readers)
        switches |= (active > 0) & (active < 1)
    alive = np.flatnonzero(switches)
    scores = np.zeros(len(distance), np.float32)
    if alive.size:
        norm = np.linalg.norm(units.weight[alive], axis=1)
        scores[alive] = greedy_elimination(distance[np.ix_(alive, alive)], norm)
    return scores


def spline_affine(units: Units) -> np.ndarray:
    """What the removal of a unit costs the affine maps that read it, after the best merging (needs `data`).

    With G the covariance of the units' values and V_k the weights by which a layer reads unit k, the best that the
    others can do for unit k leaves the error |V_k|^2 / (G^-1)_kk (the OBS identity, Hassibi and Stork 1993). It is
    taken as a share of the variance of what the layer makes of all units, and summed over the layers that read them.
    Again and again the cheapest unit goes, and V and G^-1 become those of the merged rest; its score is the
    largest cost until then. Of 128 units and more, one in 64 of those left goes at a time.
    """
    maps = [_Map.of(reader) for reader in _readers(units, "spline_affine")]
    scores, left, highest = np.empty(len(units.kernel), np.float32), np.arange(len(units.kernel)), 0.0
    while left.size:
        gone, costs = _cheapest(maps, max(1, left.size // AT_A_TIME))
        for unit, cost in zip(left[gone], costs, strict=True):
            scores[unit] = highest = max(highest, cost)
        stay = np.delete(np.arange(left.size), gone)
        for one in maps:
            one.merge(gone, stay)
        left = left[stay]
    return scores


def _cheapest(maps, count):
    """The units that go next, one after the other, out of the twice as many that are cheapest now; and their costs.

    Of two units that can stand for each other both are cheap, but only until one is gone.
    """
    among = tf.argsort(tf.add_n([one.costs() for one in maps]))[: 2 * count].numpy()
    maps = [_Map(_square(one.inverse, among), _square(one.gram, among), one.variance) for one in maps]
    gone, costs = [], []
    for _ in range(count):
        cost = tf.add_n([one.costs() for one in maps]).numpy()
        k = int(cost.argmin())
        stay = np.delete(np.arange(len(among)), k)
        gone.append(among[k])
        costs.append(cost[k])
        for one in maps:
            one.merge([k], stay)
        among = among[stay]
    return gone, costs


@dataclasses.dataclass
class _Map:
    """The affine map of one reader of n units: the inverse of their covariance and V V^T, float64 [n, n], and the
    variance of what it makes."""

    inverse: tf.Tensor
    gram: tf.Tensor
    variance: tf.Tensor

    @classmethod
    def of(cls, reader):
        covariance = tf.cast(reader.covariance, tf.float64)
        ridge = RIDGE * tf.reduce_mean(tf.linalg.diag_part(covariance)) + np.finfo(np.float32).tiny
        covariance = tf.linalg.set_diag(covariance, tf.linalg.diag_part(covariance) + ridge)
        inverse = tf.linalg.inv(covariance)
        del covariance  # of a wide layer it is large
        gram = tf.matmul(reader.outgoing, reader.outgoing, transpose_b=True)
        variance = tf.cast(tf.reduce_sum(gram * reader.covariance), tf.float64) + np.finfo(np.float32).tiny
        gram = tf.cast(gram, tf.float64)
        return cls(inverse, gram, variance)

    def costs(self):
        return tf.linalg.diag_part(self.gram) / tf.linalg.diag_part(self.inverse) / self.variance

    def merge(self, gone, stay):
        """Leaves the units that stay, which take over for those that go: V += R V_gone, R = -H_gone H_gg^-1."""
        columns, read = tf.gather(self.inverse, gone, axis=1), tf.gather(self.gram, gone, axis=1)
        share = tf.matmul(columns, tf.linalg.inv(tf.gather(columns, gone)))
        half = tf.matmul(share, tf.gather(read, gone)) / 2 - read
        share, columns, half = (tf.gather(matrix, stay) for matrix in (share, columns, half))
        self.inverse = _square(self.inverse, stay)  # one after the other: each step frees what it was made of
        self.inverse -= tf.matmul(share, columns, transpose_b=True)
        self.gram = _square(self.gram, stay)
        self.gram += tf.matmul(tf.concat([half, share], 1), tf.concat([share, half], 1), transpose_b=True)


def _square(matrix, stay):
    return tf.gather(tf.gather(matrix, stay), stay, axis=1)


def _readers(units, criterion) -> list[Reader]:
    if units.readers is None:
        raise ValueError(f"Expected `data`, unlabelled inputs, for the criterion {criterion!r}. Received: none")
    return units.readers


def hyperplane_distances(weight: np.ndarray, offset: np.ndarray, rho: float = RHO) -> np.ndarray:
    """d(k, k') of `spline` for all pairs: float32 [n, n] of weights [n, fan_in] and offsets [n]."""
    norm = tf.maximum(tf.norm(weight, axis=1), np.finfo(np.float32).tiny)
    normal, offset = weight / norm[:, None], offset / norm
    cosine = tf.matmul(normal, normal, transpose_b=True)
    sign = tf.where(cosine < 0, -1.0, 1.0)
    distance = 1 - tf.abs(cosine) + rho * tf.abs(offset[:, None] - sign * offset[None, :])
    return np.maximum(distance.numpy(), 0)  # 1 - |cos| of equal normals can round to just below 0


def greedy_elimination(distance: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Scores [n]: again and again the closest pair left loses the unit with the smaller norm, whose score is their
    distance; the last one left scores infinity. Each unit remembers its nearest, so this takes O(n^2) on average."""
    distance = distance.copy()
    np.fill_diagonal(distance, np.inf)
    scores = np.full(len(norm), np.inf, np.float32)
    nearest = distance.argmin(axis=1)
    closest = distance.min(axis=1)
    for _ in range(len(norm) - 1):
        k = int(closest.argmin())
        gone = min(k, int(nearest[k]), key=lambda unit: (norm[unit], unit))
        scores[gone] = closest[k]
        distance[:, gone] = closest[gone] = np.inf
        orphans = np.flatnonzero((nearest == gone) & np.isfinite(closest))
        nearest[orphans] = distance[orphans].argmin(axis=1)
        closest[orphans] = distance[orphans].min(axis=1)
    return scores


def bn_scale(units: Units) -> np.ndarray:
    """|gamma| of the unit's BatchNormalization (Liu et al. 2017, network slimming; You et al. 2020, EB Train)."""
    if units.scale is None:
        raise ValueError(
            f"Expected a BatchNormalization with a scale behind every layer to be pruned. Received: {units.name!r} "
            "without one; protect it, or take the criterion 'spline' or 'l1'."
        )
    return units.scale


def l1(units: Units) -> np.ndarray:
    """L1 norm of the incoming kernel (Li et al. 2017) over the group's mean, which makes layers comparable."""
    # In parts: a copy of a whole large kernel would cost more, as memory new to the process, than its sum.
    parts = np.array_split(units.kernel, -(-units.kernel.size // 2**20), axis=1)
    return _over_mean(sum(np.abs(part).sum(axis=1) for part in parts))


def l2(units: Units) -> np.ndarray:
    """L2 norm of the incoming kernel over the group's mean, as `l1`."""
    return _over_mean(np.linalg.norm(units.kernel, axis=1))


def fpgm(units: Units) -> np.ndarray:
    """Sum of the distances to the other kernels of the group, over the group's mean: the unit next to the geometric
    median is the most replaceable (He et al. 2019, FPGM)."""
    squares = tf.reduce_sum(tf.square(units.kernel), axis=1)
    inner = tf.matmul(units.kernel, units.kernel, transpose_b=True)
    distances = tf.sqrt(tf.maximum(squares[:, None] + squares[None, :] - 2 * inner, 0))
    return _over_mean(tf.reduce_sum(distances, axis=1).numpy())


def _over_mean(norm):
    return norm / max(norm.mean(), np.finfo(np.float32).tiny)


def random(units: Units) -> np.ndarray:
    """Uniform in [0, 1): the baseline that every criterion has to beat."""
    return units.rng.random(len(units.kernel), dtype=np.float32)


_criteria: dict[str, Callable] = {
    function.__name__: function
    for function in (spline, spline_data, spline_affine, bn_scale, l1, l2, fpgm, taylor, snip, synflow, random)
}


def register_criterion(name: str, function: Callable[[Units], np.ndarray]) -> None:
    """Makes a criterion known by name to `prune`, `plan` and `train.py`.

    Args:
        name: how `criterion=` calls it; a known name is replaced.
        function: gets a `tfspline.pruning.arrays.Units`, returns one score a unit, higher is worth keeping.

    Raises:
        TypeError: `name` is no string or `function` cannot be called.

    Example:

    >>> import numpy as np, tfspline
    >>> tfspline.register_criterion("peak", lambda units: np.abs(units.kernel).max(axis=1))
    """
    if not isinstance(name, str) or not callable(function):
        raise TypeError(f"Expected a name and a callable. Received: {name!r} and {function!r}")
    _criteria[name] = function


def named(name: str) -> Callable[[Units], np.ndarray]:
    """The criterion of that name; ValueError that lists the known ones if there is none."""
    return _criteria[among("criterion", name, sorted(_criteria))]


def scores(name: str, units: Units) -> np.ndarray:
    """What the criterion of that name gives the units, [n].

    Raises:
        ValueError: weights that are not finite; it gives no number for one of the units.
    """
    if not np.isfinite([units.kernel.min(), units.kernel.max()]).all():
        raise ValueError(f"Expected weights that are finite. Received: NaN or infinity in those of {units.name!r}")
    made = np.asarray(named(name)(units))
    if made.shape != (len(units.kernel),) or made.dtype.kind not in "biuf" or np.isnan(made).any():
        what = "NaN" if made.dtype.kind == "f" and np.isnan(made).any() else f"{made.dtype.name} {list(made.shape)}"
        raise ValueError(
            f"Expected a score for each of {len(units.kernel)} units of {units.name!r} by the criterion {name!r}. "
            f"Received: {what}"
        )
    return made
