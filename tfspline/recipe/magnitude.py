"""Pruning of single weights by magnitude, for comparison with the pruning of units."""

import numpy as np

from tfspline._keras.constraints import hold, weights
from tfspline._keras.types import KerasModel


def prune_weights(model: KerasModel, count: int) -> None:
    """Set the `count` kernel entries of the smallest magnitude to zero, in place, ranked across all layers.

    This is the global magnitude pruning of Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks" (NeurIPS 2015). Kernels are the weights with two or more dimensions; biases and normalisations stay.

    Raises:
        ValueError: the kernels have fewer entries.

    Example:

    >>> prune_weights(model, 20)
    >>> sum(int((kernel == 0).sum()) for kernel in model.get_weights() if kernel.ndim > 1)
    20
    """
    kernels = _kernels(model)
    sizes = [np.abs(kernel.numpy()).ravel() for kernel in kernels]
    order = np.argsort(np.concatenate(sizes), kind="stable")
    if not 0 <= count <= len(order):
        raise ValueError(f"Expected count to be from 0 to {len(order)}, all of {model.name!r}. Received: {count}")
    on = np.ones(len(order), bool)
    on[order[:count]] = False
    for kernel, kept in zip(kernels, np.split(on, np.cumsum([len(size) for size in sizes])[:-1]), strict=True):
        kernel.assign(np.where(kept.reshape(kernel.shape), kernel.numpy(), 0))


def hold_zeros(model: KerasModel) -> None:
    """Keep kernel entries that are zero at zero during training; call this before the train step is traced."""
    for kernel in _kernels(model):
        hold(kernel, kernel.numpy() != 0)


def count_zeros(model: KerasModel) -> int:
    """The number of kernel entries that are zero."""
    return sum(int((kernel.numpy() == 0).sum()) for kernel in _kernels(model))


def _kernels(model):
    return [weight for _, weight in weights(model) if len(weight.shape) > 1]
