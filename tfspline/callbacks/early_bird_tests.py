"""The early-bird tests that `EarlyBird(metric=...)` offers. A further test is one entry in `TESTS`."""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline.graph.unrolling import functional
from tfspline.spline.codes import Codes, RegionEncoder


class Observer(Protocol):
    """Takes the codes of one model, which a test compares between epochs."""

    def __call__(self, inputs: Any, /) -> Codes:
        """Returns the codes of the model as it is now, on `inputs` if the test uses any."""

    def dead(self, codes: Codes) -> list[str]:
        """Returns the names of layers that no input activates, according to `codes`."""


@dataclasses.dataclass(frozen=True)
class EarlyBirdTest:
    """What an early-bird test compares, and how near is near enough."""

    threshold: float  # the default
    lookback: int  # the default number of earlier epochs to compare with
    passes: Callable[[float, float], bool]  # (distance, threshold) -> whether the distance is small enough
    uses_inputs: bool  # whether the codes depend on inputs; otherwise the observer gets none, ()
    # (model, ratio, approximate, units) -> observer; ValueError for an unsuitable model
    observer: Callable[[KerasModel, float, bool, str], Observer]
    label: str  # describes the distance on the axis of a plot


class _MaskObserver:
    """Takes the pruning masks of a model."""

    def __init__(self, model: KerasModel, ratio: float):
        self._model, self._ratio = model, ratio
        self(None)  # raises now if the model has no units to mask

    def __call__(self, inputs: Any) -> Codes:
        return pruning_mask(self._model, self._ratio)

    def dead(self, codes: Codes) -> list[str]:
        return []


def pruning_mask(model: KerasModel, ratio: float) -> Codes:
    """Returns the units that would be kept if a model were pruned now, as the code of a single sample: 1 for kept.

    The share `ratio` of all units with the smallest |gamma| of their BatchNormalization would be removed. In a model
    without BatchNormalization the l1 norm of the Dense or Conv kernel counts instead, and the last such layer (the
    head) is left out (You et al., "Drawing Early-Bird Tickets", ICLR 2020).
    """
    layers = _keras.layer_paths(functional(model)).values()
    norms = [layer for layer in layers if _keras.of_class(layer, "BatchNormalization")]
    scores = [np.abs(layer.gamma.numpy()) for layer in norms if layer.gamma is not None]
    if not scores:
        dense_or_conv = ("Dense", "Conv1D", "Conv2D", "Conv3D")
        kernels = [layer.kernel.numpy() for layer in layers if _keras.builtin_class_name(layer) in dense_or_conv]
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


# Thresholds, lookbacks and comparisons are those of the authors' released code. The mask test keeps a queue of five
# masks, so the newest is compared with four.
TESTS = {
    "partition": EarlyBirdTest(
        threshold=0.16,
        lookback=3,
        passes=operator.lt,
        uses_inputs=True,
        observer=lambda model, ratio, approximate, units: RegionEncoder(model, approximate, units=units),
        label="partition distance\n(share of code bits)",
    ),
    "mask": EarlyBirdTest(
        threshold=0.1,
        lookback=4,
        passes=operator.le,
        uses_inputs=False,
        observer=lambda model, ratio, approximate, units: _MaskObserver(model, ratio),
        label="mask distance\n(share of units)",
    ),
}
