"""Pruning single weights by their magnitude: what pruning units is compared with."""

from typing import Any

import numpy as np

from tfspline._keras.constraints import hold, weights


def prune_weights(model: Any, count: int) -> None:
    """Sets the `count` smallest entries of a model's kernels to zero, in place, ranked across layers by magnitude.

    The global magnitude pruning of Han et al., "Learning both Weights and Connections for Efficient Neural Networks"
    (NeurIPS 2015). Kernels are the weights of two or more dimensions; biases and normalisations stay.

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
        raise ValueError(f"Expected from 0 to {len(order)} weights to prune, all of {model.name!r}. Received: {count}")
    on = np.ones(len(order), bool)
    on[order[:count]] = False
    for kernel, kept in zip(kernels, np.split(on, np.cumsum([len(size) for size in sizes])[:-1]), strict=True):
        kernel.assign(np.where(kept.reshape(kernel.shape), kernel.numpy(), 0))


def hold_zeros(model: Any) -> None:
    """Keeps what is zero in a model's kernels at zero, in training steps that are not traced yet."""
    for kernel in _kernels(model):
        hold(kernel, kernel.numpy() != 0)


def zeros(model: Any) -> int:
    """How many entries of a model's kernels are zero."""
    return sum(int((kernel.numpy() == 0).sum()) for kernel in _kernels(model))


def _kernels(model):
    return [weight for _, weight in weights(model) if len(weight.shape) > 1]
