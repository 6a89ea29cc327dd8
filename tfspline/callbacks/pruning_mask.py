"""The pruning mask of EB Train, which an early-bird test can compare instead of the partition."""

import math

import numpy as np

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline.spline.codes import Codes


def pruning_mask(model: KerasModel, ratio: float) -> Codes:
    """Returns the units that would be kept if a model were pruned now, as the code of a single sample: 1 for kept.

    The share `ratio` of all units with the smallest |gamma| of their BatchNormalization would be removed. In a model
    without BatchNormalization the l1 norm of the Dense or Conv kernel counts instead, and the last such layer (the
    head) is left out (You et al., "Drawing Early-Bird Tickets", ICLR 2020).

    Raises:
        TypeError, ValueError: the model's graph cannot be read, or has no such layers.

    Example:

    >>> layers = [keras.layers.Dense(3, name="a"), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((1,)), *layers])
    >>> layers[0].set_weights([np.array([[1.0, -3.0, 2.0]]), np.zeros(3)])
    >>> pruning_mask(model, 0.5).unpack("mask").tolist()
    [[0, 1, 0]]
    """
    layers = _keras.layer_paths(_keras.check_model(model)).values()
    scores = [
        np.abs(layer.gamma.numpy())
        for layer in layers
        if _keras.of_class(layer, "BatchNormalization") and layer.gamma is not None
    ]
    if not scores:
        kernels = [
            layer.kernel.numpy()
            for layer in layers
            if _keras.builtin_class_name(type(layer)) in ("Dense", "Conv1D", "Conv2D", "Conv3D")
        ]
        scores = [np.abs(kernel).reshape(-1, kernel.shape[-1]).sum(0) for kernel in kernels[:-1]]
    if not scores:
        raise ValueError(
            f"Model {model.name!r} has no units to mask. metric='mask' needs BatchNormalization with a scale, or at "
            "least two Dense or Conv layers."
        )
    order = np.argsort(np.concatenate(scores), kind="stable")
    mask = np.ones(len(order), np.uint8)
    mask[order[: math.ceil(ratio * len(order))]] = 0
    return Codes({"mask": np.packbits(mask, bitorder="little")[None]}, {"mask": len(mask)})
