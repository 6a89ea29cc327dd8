"""Distances between partitions of the input space, and a plane of inputs on which to compare them."""

from collections.abc import Iterable
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from tfspline._utils.checks import count
from tfspline.spline.codes import Codes

BLOCK = 2**15  # bytes of each code compared at a time, so that all blocks fit into the processor's cache


@overload
def partition_distance(a: Codes, b: Codes, per_layer: Literal[False] = False) -> float: ...
@overload
def partition_distance(a: Codes, b: Codes, per_layer: Literal[True]) -> dict[str, float]: ...
def partition_distance(a: Codes, b: Codes, per_layer: bool = False) -> float | dict[str, float]:
    """Measure how much two models, or two states of one model, partition the same inputs differently.

    The distance of a layer is the share of bits that differ (the normalised Hamming distance of its codes). The
    result is the unweighted mean over the layers, as in the code of You et al., "Max-Affine Spline Insights Into Deep
    Network Pruning" (TMLR 2022): a small layer counts as much as a large one.

    Args:
        a: codes of one model, see `tfspline.region_codes`.
        b: codes of the other model on the same inputs.
        per_layer: return the distance of each layer instead of the mean.

    Returns:
        A float in [0, 1], 0 if no bit differs. With `per_layer`, a dict, layer name -> float in [0, 1].

    Raises:
        TypeError: `a` or `b` is not a `Codes`.
        ValueError: the codes differ in their samples, layers or numbers of bits.

    Example:

    >>> a = tfspline.Codes({"relu": np.array([[0b11]], "uint8")}, {"relu": 4})
    >>> b = tfspline.Codes({"relu": np.array([[0b10]], "uint8")}, {"relu": 4})
    >>> tfspline.partition_distance(a, b)
    0.25
    """
    if per_layer:
        return {name: float(distances[0, 1]) for name, distances in _by_layer([a, b]).items()}
    return float(_mean(_by_layer([a, b]))[0, 1])


@overload
def partition_distances(codes: Iterable[Codes], per_layer: Literal[False] = False) -> np.ndarray: ...
@overload
def partition_distances(codes: Iterable[Codes], per_layer: Literal[True]) -> dict[str, np.ndarray]: ...
def partition_distances(codes: Iterable[Codes], per_layer: bool = False) -> np.ndarray | dict[str, np.ndarray]:
    """Compute all pairwise distances of E partitions, each as by `partition_distance`.

    Reads each code only once. The time grows with E^2 times the number of bits.

    Args:
        codes: codes of E models, or of E states of one model, on the same inputs.
        per_layer: return the distances of each layer instead of the means.

    Returns:
        A float64 array `[E, E]`, symmetric, with 0 on the diagonal. With `per_layer`, a dict, layer name -> such an
        array.

    Raises:
        TypeError: an element of `codes` is not a `Codes`.
        ValueError: `codes` is empty, or the codes differ in their samples, layers or numbers of bits.

    Example:

    >>> codes = [tfspline.Codes({"relu": np.array([[bits]], "uint8")}, {"relu": 4}) for bits in (0b11, 0b10, 0b1111)]
    >>> tfspline.partition_distances(codes).tolist()
    [[0.0, 0.25, 0.5], [0.25, 0.0, 0.75], [0.5, 0.75, 0.0]]
    """
    distances = _by_layer(list(codes))
    return distances if per_layer else _mean(distances)


def _by_layer(codes: list[Codes]) -> dict[str, np.ndarray]:
    if not codes:
        raise ValueError("Expected the codes of at least one model. Received: an empty sequence")
    for one in codes:
        _check_comparable(codes[0], one)
    return {
        name: _differing_bits([one[name] for one in codes]) / (len(codes[0]) * bits)
        for name, bits in codes[0].bits.items()
    }


def _mean(distances: dict[str, np.ndarray]) -> np.ndarray:
    return np.mean(list(distances.values()), axis=0)


def _check_comparable(a, b):
    for codes in (a, b):
        if not isinstance(codes, Codes):
            raise TypeError(f"Expected Codes, as returned by region_codes. Received: {type(codes).__name__}")
    if len(a) != len(b):
        raise ValueError(f"Expected codes of the same inputs. Received: {len(a)} and {len(b)} samples")
    if list(a.bits.items()) != list(b.bits.items()):
        raise ValueError(
            f"Expected codes of the same layers with equal numbers of bits. Received: {a.bits} and {b.bits}"
        )


def _differing_bits(arrays: list[np.ndarray]) -> np.ndarray:
    """Count the bits in which each pair of E uint8 arrays of equal size differs, int64 `[E, E]`."""
    flat = [array.reshape(-1) for array in arrays]
    counts = np.zeros((len(flat), len(flat)), np.int64)
    for start in range(0, flat[0].size, BLOCK):
        block = np.stack([array[start : start + BLOCK] for array in flat])
        block = np.pad(block, ((0, 0), (0, -block.shape[1] % 8))).view(np.uint64)
        for i in range(len(block) - 1):
            counts[i, i + 1 :] += np.bitwise_count(block[i + 1 :] ^ block[i]).sum(axis=1, dtype=np.int64)
    return counts + counts.T


def plane(x0: npt.ArrayLike, x1: npt.ArrayLike, n: int) -> np.ndarray:
    """Make the inputs a * x0 + b * x1 for a and b on a regular n x n grid over [0, 1].

    You et al. (TMLR 2022) compare partitions on such a plane: `tfspline.EarlyBird(probe=tfspline.plane(x0, x1, 100))`
    is their early-bird test.

    Args:
        x0: one input without its batch dimension, of any shape.
        x1: another input of the same shape.
        n: number of values of a and of b, both ends included, at least 2.

    Returns:
        A float32 array `[n * n, *x0.shape]`. The coefficient a varies fastest: zero comes first, x0 at index n - 1,
        x0 + x1 last.

    Raises:
        ValueError: `x0` and `x1` have different shapes, or `n` is less than 2.

    Example:

    >>> tfspline.plane(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 2).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    x0, x1 = np.asarray(x0, np.float32), np.asarray(x1, np.float32)
    if x0.shape != x1.shape:
        raise ValueError(f"Expected `x0` and `x1` of the same shape. Received: {x0.shape} and {x1.shape}")
    count("n", n, least=2)
    b, a = np.meshgrid(*2 * [np.linspace(0, 1, n, dtype=np.float32)], indexing="ij")
    return np.multiply.outer(a.ravel(), x0) + np.multiply.outer(b.ravel(), x1)
