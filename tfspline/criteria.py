"""Criteria: small functions that score the units of a group; a higher score is more worth keeping.

A criterion gets one `Units` and returns one float score a unit. Scores of different groups are comparable, so that
units can be ranked across layers.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

RHO = 0.05  # weight of the offsets' difference in the distance of two hyperplanes


@dataclasses.dataclass
class Units:
    """The n units of a group, as arrays.

    A unit that several layers make (a residual stream) is the sum of what they make: its weights are theirs side by
    side, its offset the sum of theirs.

    Attributes:
        name: the group's name, for messages.
        kernel: float32 [n, fan_in], the incoming weights as they are.
        slope: float32 [n, fan_in] or [n, 1], gamma / sigma of the BatchNormalization behind, 1 without one.
        offset: float32 [n], likewise b = beta + (bias - mu) gamma / sigma.
        scale: float32 [n], mean |gamma| of the BatchNormalizations that the unit passes; None without any.
        rng: the generator of a plan's seed.
    """

    name: str
    kernel: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    scale: np.ndarray | None
    rng: np.random.Generator

    @property
    def weight(self) -> np.ndarray:
        """float32 [n, fan_in], the incoming weights with BatchNormalization folded in, w = W gamma / sigma."""
        return self.kernel * self.slope


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


def hyperplane_distances(weight: np.ndarray, offset: np.ndarray, rho: float = RHO) -> np.ndarray:
    """d(k, k') of `spline` for all pairs: float32 [n, n] of weights [n, fan_in] (none zero) and offsets [n]."""
    norm = tf.norm(weight, axis=1)
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
    norm = np.abs(units.kernel).sum(axis=1)
    return norm / max(norm.mean(), np.finfo(np.float32).tiny)


def random(units: Units) -> np.ndarray:
    """Uniform in [0, 1): the baseline that every criterion has to beat."""
    return units.rng.random(len(units.kernel), dtype=np.float32)


_criteria: dict[str, Callable] = {"spline": spline, "bn_scale": bn_scale, "l1": l1, "random": random}


def register_criterion(name: str, function: Callable[[Units], np.ndarray]) -> None:
    """Makes a criterion known by name to `prune`, `plan` and `train.py`.

    Args:
        name: how `criterion=` calls it; a known name is replaced.
        function: gets a `tfspline.criteria.Units`, returns one score a unit, higher is worth keeping.

    Raises:
        TypeError: `name` is no string or `function` cannot be called.

    Example:

    >>> import numpy as np, tfspline
    >>> tfspline.register_criterion("l2", lambda units: np.linalg.norm(units.kernel, axis=1))
    """
    if not isinstance(name, str) or not callable(function):
        raise TypeError(f"Expected a name and a callable. Received: {name!r} and {function!r}")
    _criteria[name] = function


def named(name: str) -> Callable[[Units], np.ndarray]:
    """The criterion of that name; ValueError that lists the known ones if there is none."""
    if name not in _criteria:
        raise ValueError(f"Expected a criterion among {sorted(_criteria)}. Received: {name!r}")
    return _criteria[name]
