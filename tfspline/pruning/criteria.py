"""Criteria: functions that score the units of a group; units with higher scores are more worth keeping.

A criterion takes a `Units` and returns one score a unit, by which units of different groups can be ranked together. To
add a criterion, write a function here and decorate it with `@_built_in`.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspline._utils.checks import among
from tfspline.pruning.elimination import RHO, ReaderMap, eliminate_by_cost, greedy_elimination, hyperplane_distances
from tfspline.pruning.readers import Reader
from tfspline.pruning.units import Gradients, Units

Criterion = Callable[[Units], np.ndarray]

_criteria: dict[str, Criterion] = {}


def or_defaults(criterion: str | None, scope: str | None, data: object) -> tuple[str, str]:
    """A criterion, which must be known, and a scope; for None those that lose least, given whether there is `data`."""
    if criterion is None:
        criterion = "spline" if data is None else "spline_output"
    named(criterion)
    if scope is None:
        scope = "global" if criterion == "spline_output" else "layer"
    return criterion, scope


def register_criterion(name: str, function: Criterion) -> None:
    """Registers a criterion, so that `prune`, `plan` and `train.py` find it by name.

    Args:
        name: the value of `criterion=` that selects it. An existing criterion of this name is replaced.
        function: takes a `tfspline.pruning.units.Units`, returns one score a unit; higher is more worth keeping.

    Raises:
        TypeError: `name` is not a string or `function` is not callable.

    Example:

    >>> import numpy as np, tfspline
    >>> tfspline.register_criterion("peak", lambda units: np.abs(units.kernel).max(axis=1))
    """
    if not isinstance(name, str) or not callable(function):
        raise TypeError(f"Expected a name and a callable. Received: {name!r} and {function!r}")
    _criteria[name] = function


def named(name: str) -> Criterion:
    """The criterion of this name."""
    return _criteria[among("criterion", name, sorted(_criteria))]


def scores(name: str, units: Units) -> np.ndarray:
    """The scores, [n], that a criterion gives to units."""
    result = np.asarray(named(name)(units))
    if result.shape != (len(units.kernel),) or result.dtype.kind not in "biuf" or np.isnan(result).any():
        has_nan = result.dtype.kind == "f" and np.isnan(result).any()
        raise ValueError(
            f"Expected one score for each of {len(units.kernel)} units of {units.name!r} from criterion {name!r}. "
            f"Received: {'NaN' if has_nan else f'{result.dtype.name} {list(result.shape)}'}"
        )
    return result


def _built_in(function: Criterion) -> Criterion:
    register_criterion(function.__name__, function)
    return function


@_built_in
def spline(units: Units, rho: float = RHO) -> np.ndarray:
    """Redundancy of a unit's hyperplane (You, Balestriero et al. 2022, section 4; details are this library's choice).

    The hyperplane of unit k is (w_k, b_k) / |w_k|. The distance of two units is
    d(k, k') = (1 - |cos(w_k, w_k')|) + rho |b_k / |w_k| - s b_k' / |w_k'||, with s the sign of the cosine. Of the
    closest remaining pair the unit with the smaller |w| is eliminated, again and again; its score is d at that moment.
    A unit with w = 0 does not partition its input and scores 0; the last remaining unit scores infinity.
    """
    weight = units.weight
    norm = np.linalg.norm(weight, axis=1)
    alive = np.flatnonzero(norm > 0)
    scores = np.zeros(len(norm), np.float32)
    if alive.size:
        distance = hyperplane_distances(weight[alive], units.offset[alive], rho)
        scores[alive] = greedy_elimination(distance, norm[alive])
    return scores


@_built_in
def spline_data(units: Units) -> np.ndarray:
    """Redundancy of a unit's region codes on data (beyond the paper; needs `data`).

    Two units whose codes agree, or are opposite, on all samples partition the data in the same way: d = min(h, 1 - h),
    with h the share of samples and positions at which their codes differ, averaged over the layers that read them.
    Units are eliminated as in `spline`. A unit that never switches scores 0.
    """
    distance, switches = np.zeros((len(units.kernel),) * 2, np.float32), np.zeros(len(units.kernel), bool)
    readers = _readers(units.readers, units, "spline_data")
    for reader in readers:
        active = np.diag(reader.coactivity)
        differ = active[:, None] + active[None, :] - 2 * reader.coactivity
        distance += np.clip(np.minimum(differ, 1 - differ), 0, None) / len(readers)
        switches |= (active > 0) & (active < 1)
    alive = np.flatnonzero(switches)
    scores = np.zeros(len(distance), np.float32)
    if alive.size:
        norm = np.linalg.norm(units.weight[alive], axis=1)
        scores[alive] = greedy_elimination(distance[np.ix_(alive, alive)], norm)
    return scores


@_built_in
def spline_affine(units: Units) -> np.ndarray:
    """What removing a unit changes in the affine maps that read it, after the best merging (needs `data`).

    With G the covariance of the units' values and V_k the weights by which a layer reads unit k, the other units can
    replace unit k up to the error |V_k|^2 / (G^-1)_kk (the OBS identity, Hassibi and Stork 1993). The cost is this
    error as a share of the variance of the layer's output, summed over the layers that read the unit. The cheapest
    unit is eliminated, again and again, with V and G^-1 updated; its score is the largest cost so far.
    """
    maps = []
    for reader in _readers(units.readers, units, "spline_affine"):
        gram = reader.outgoing @ reader.outgoing.T
        maps.append(ReaderMap.of(reader, gram / (np.sum(gram * reader.covariance) + np.finfo(np.float32).tiny)))
    return eliminate_by_cost(maps)


@_built_in
def spline_output(units: Units) -> np.ndarray:
    """What removing a unit changes in the outputs of the network, after the best merging (needs `data`).

    As in `spline_affine`, the other units replace unit k up to an error of variance 1 / (G^-1)_kk in its value. It
    costs E[g^2] times as much, with g the derivative of the outputs by the value: the squared error of the outputs, to
    first order, as a share of their variance. So costs of different layers are comparable. They are summed over the
    positions of a sample, and G is shrunk, as positions of one sample are not independent. Units that no observed
    layer reads, such as the widths of a dot product, score infinity: they stay.
    """
    if units.readers_with_gradients == [] and any((units.measured.readers(gradients=True) or {}).values()):
        return np.full(len(units.kernel), np.inf, np.float32)
    readers = _readers(units.readers_with_gradients, units, "spline_output")
    return eliminate_by_cost([ReaderMap.of(one, one.gradients) for one in readers if one.gradients is not None])


@_built_in
def bn_scale(units: Units) -> np.ndarray:
    """|gamma| of the unit's BatchNormalization (Liu et al. 2017, network slimming; You et al. 2020, EB Train)."""
    if units.scale is None:
        raise ValueError(
            f"Criterion 'bn_scale' needs a BatchNormalization with a scale after every pruned layer; {units.name!r} "
            "has none. Add it to `protect`, or use criterion 'spline' or 'l1'."
        )
    return units.scale


@_built_in
def l1(units: Units) -> np.ndarray:
    """L1 norm of the incoming kernel (Li et al. 2017), divided by the group's mean to make layers comparable."""
    # In parts: for a large kernel, allocating a whole copy takes longer than summing it.
    parts = np.array_split(units.kernel, -(-units.kernel.size // 2**20), axis=1)
    return _over_mean(sum(np.abs(part).sum(axis=1) for part in parts))


@_built_in
def l2(units: Units) -> np.ndarray:
    """L2 norm of the incoming kernel, divided by the group's mean."""
    return _over_mean(np.linalg.norm(units.kernel, axis=1))


@_built_in
def fpgm(units: Units) -> np.ndarray:
    """Sum of the distances to the group's other kernels, divided by the group's mean (He et al. 2019, FPGM)."""
    squares = tf.reduce_sum(tf.square(units.kernel), axis=1)
    inner = tf.matmul(units.kernel, units.kernel, transpose_b=True)
    distances = tf.sqrt(tf.maximum(squares[:, None] + squares[None, :] - 2 * inner, 0))
    return _over_mean(tf.reduce_sum(distances, axis=1).numpy())


@_built_in
def taylor(units: Units) -> np.ndarray:
    """First-order Taylor estimate of the loss without a unit (Molchanov et al. 2019, eq. 8 with gates; needs labels).

    Without the unit the loss changes by about g, the sum of gradient x weight over its incoming weights and offset.
    The score is the mean of g squared over batches of 64 samples: at a minimum of the loss, g over all data is zero.
    """
    return np.square(_gradients(units, "taylor", training=False).gate).mean(axis=0)


@_built_in
def snip(units: Units) -> np.ndarray:
    """Sum of |gradient x weight| over the incoming kernel (Lee et al. 2019, SNIP; needs `data` with labels).

    BatchNormalization uses the statistics of each batch of 64 samples: SNIP usually runs at initialisation, where the
    moving statistics are not meaningful yet.
    """
    return np.abs(units.kernel * _gradients(units, "snip", training=True).kernel).sum(axis=1)


@_built_in
def synflow(units: Units) -> np.ndarray:
    """Share of the synaptic flow that passes through a unit (Tanaka et al. 2020, SynFlow); needs no data.

    R is the sum of the outputs of the network with absolute weights for an input of ones. A weight scores w dR/dw / R,
    a unit the sum over its incoming kernel. Everything is linear and in float64, without activations and offsets;
    BatchNormalization scales by |gamma| / sigma. So the scores of each layer of a chain add up to exactly 1.
    """
    return (np.abs(units.kernel) * units.flow()).sum(axis=1)


@_built_in
def random(units: Units) -> np.ndarray:
    """Uniform random numbers in [0, 1), the baseline for every other criterion."""
    return units.rng.random(len(units.kernel), dtype=np.float32)


def _over_mean(norm):
    return norm / max(norm.mean(), np.finfo(np.float32).tiny)


def _readers(readers, units, criterion) -> list[Reader]:
    if readers is None:
        raise ValueError(f"Criterion {criterion!r} needs `data`, unlabelled inputs. Received: none")
    if not readers:
        raise ValueError(
            f"Criterion {criterion!r} cannot observe what reads the units of {units.name!r}, which stay in a layer. "
            "Add the layer to `protect`, or use criterion 'spline' or 'l1'."
        )
    return readers


def _gradients(units, criterion, training) -> Gradients:
    gradients = units.gradients(training)
    if gradients is None:
        raise ValueError(f"Criterion {criterion!r} needs `data=(x, y)`, inputs with labels. Received: no labels")
    return gradients
