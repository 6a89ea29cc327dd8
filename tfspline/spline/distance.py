"""Partitions of the input space: how far apart two of them are, and a plane of inputs to look at them on."""

from collections.abc import Sequence

import numpy as np

from tfspline._utils.checks import count
from tfspline.spline.codes import Codes

BLOCK = 2**15  # bytes of each code that are compared at a time


def partition_distance(a: Codes, b: Codes, per_layer: bool = False) -> float | dict[str, float]:
    """How much of the partition changed between two models, or two moments of one, on the same inputs.

    In each layer the share of bits that differ (the normalised Hamming distance of the codes); then the mean
    over the layers, unweighted, as in the code of You et al., "Max-Affine Spline Insights Into Deep Network
    Pruning" (TMLR 2022): a small layer counts as much as a large one.

    Args:
        a: the codes of one model, see `tfspline.region_codes`.
        b: the codes of the other on the same inputs.
        per_layer: return the parts instead of their mean.

    Returns:
        A float in [0, 1], 0 where no bit differs; with `per_layer`, a dict, layer name -> such a float.

    Raises:
        TypeError: `a` or `b` is not a `Codes`.
        ValueError: codes of different numbers of samples, or not of the same layers with as many bits.

    Example:

    >>> a = tfspline.Codes({"relu": np.array([[0b11]], "uint8")}, {"relu": 4})
    >>> b = tfspline.Codes({"relu": np.array([[0b10]], "uint8")}, {"relu": 4})
    >>> tfspline.partition_distance(a, b)
    0.25
    """
    if per_layer:
        return {name: float(matrix[0, 1]) for name, matrix in partition_distances([a, b], per_layer=True).items()}
    return float(partition_distances([a, b])[0, 1])


def partition_distances(codes: Sequence[Codes], per_layer: bool = False) -> np.ndarray | dict[str, np.ndarray]:
    """The distances of each of E partitions to each other, as `partition_distance` gives them for two.

    The packed codes are read once; of each block of them, small enough for the processor's cache, all pairs are
    compared. The time grows as E^2 times the number of bits.

    Args:
        codes: the codes of E models, or moments of one, on the same inputs.
        per_layer: return the parts instead of their mean.

    Returns:
        float64 [E, E], symmetric, 0 on the diagonal; with `per_layer`, a dict, layer name -> such an array.

    Raises:
        TypeError: not all are `Codes`.
        ValueError: codes of different numbers of samples, or not of the same layers with as many bits; or none.

    Example:

    >>> codes = [tfspline.Codes({"relu": np.array([[bits]], "uint8")}, {"relu": 4}) for bits in (0b11, 0b10, 0b1111)]
    >>> tfspline.partition_distances(codes).tolist()
    [[0.0, 0.25, 0.5], [0.25, 0.0, 0.75], [0.5, 0.75, 0.0]]
    """
    codes = list(codes)
    if not codes:
        raise ValueError("Expected the codes of at least one model. Received: none")
    for one in codes:
        _check_alike(codes[0], one)
    distances = {
        name: _differing_bits([one[name] for one in codes]) / (len(codes[0]) * bits)
        for name, bits in codes[0].bits.items()
    }
    return distances if per_layer else np.mean(list(distances.values()), axis=0)


def _check_alike(a, b):
    for codes in (a, b):
        if not isinstance(codes, Codes):
            raise TypeError(f"Expected the codes that region_codes gives. Received: {type(codes).__name__}")
    if len(a) != len(b):
        raise ValueError(f"Expected codes of the same inputs. Received: {len(a)} and {len(b)} samples")
    if list(a.bits.items()) != list(b.bits.items()):
        raise ValueError(f"Expected codes of the same layers with as many bits. Received: {a.bits} and {b.bits}")


def _differing_bits(arrays):
    """In how many bits each two of E equally large uint8 arrays differ, int64 [E, E]."""
    flat = [array.reshape(-1) for array in arrays]
    counts = np.zeros((len(flat), len(flat)), np.int64)
    for start in range(0, flat[0].size, BLOCK):
        block = np.stack([array[start : start + BLOCK] for array in flat])
        block = np.pad(block, ((0, 0), (0, -block.shape[1] % 8))).view(np.uint64)
        for i in range(len(block) - 1):
            counts[i, i + 1 :] += np.bitwise_count(block[i + 1 :] ^ block[i]).sum(axis=1, dtype=np.int64)
    return counts + counts.T


def plane(x0: np.ndarray, x1: np.ndarray, n: int) -> np.ndarray:
    """The inputs a * x0 + b * x1 for a, b on an even n x n grid over [0, 1]: a plane through both.

    This is the canvas on which You et al. (TMLR 2022) compare partitions; on it, `early_bird =
    tfspline.EarlyBird(probe=tfspline.plane(x0, x1, 100))` is their early-bird test.

    Args:
        x0: one input without its batch dimension, of any shape.
        x1: another one of the same shape.
        n: how many steps a and b take, both ends included, at least 2.

    Returns:
        A float32 array `[n * n, *x0.shape]`, a running fastest: 0 comes first, x0 at n - 1, x0 + x1 last.

    Raises:
        ValueError: different shapes, or fewer than two steps.

    Example:

    >>> tfspline.plane(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 2).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    x0, x1 = np.asarray(x0, np.float32), np.asarray(x1, np.float32)
    if x0.shape != x1.shape:
        raise ValueError(f"Expected two inputs of the same shape. Received: {x0.shape} and {x1.shape}")
    count("n", n, least=2)
    b, a = np.meshgrid(*2 * [np.linspace(0, 1, n, dtype=np.float32)], indexing="ij")
    return np.multiply.outer(a.ravel(), x0) + np.multiply.outer(b.ravel(), x1)
