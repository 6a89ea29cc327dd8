"""The early-bird tests that `EarlyBird(metric=...)` offers. A further test is one entry in `TESTS`."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, Protocol

from tfspline._keras.types import KerasModel
from tfspline.callbacks.pruning_mask import pruning_mask
from tfspline.spline.codes import Codes, RegionEncoder


class Observer(Protocol):
    """Takes the codes of one model, which a test compares between epochs."""

    def __call__(self, inputs: Any, /) -> Codes:
        """Returns the codes of the model as it is now, on `inputs` if the test uses any."""

    def dead(self, codes: Codes) -> list[str]:
        """Returns the names of layers that no input activates, according to `codes`."""


@dataclasses.dataclass(frozen=True)
class EarlyBirdTest:
    """What an early-bird test compares, and how near is near enough.

    Attributes:
        threshold: the default threshold.
        lookback: the default number of earlier epochs to compare with.
        passes: (distance, threshold) -> whether the distance is small enough.
        uses_inputs: whether the codes depend on inputs.
        observer: (model, ratio) -> the `Observer` of a model; raises ValueError if the test does not suit the model.
        label: describes the distance on the axis of a plot.
    """

    threshold: float
    lookback: int
    passes: Callable[[float, float], bool]
    uses_inputs: bool
    observer: Callable[[KerasModel, float], Observer]
    label: str


class _MaskObserver:
    """Takes the pruning masks of a model."""

    def __init__(self, model: KerasModel, ratio: float):
        self._model, self._ratio = model, ratio
        self(None)  # raises now if the model has no units to mask

    def __call__(self, inputs: Any) -> Codes:
        return pruning_mask(self._model, self._ratio)

    def dead(self, codes: Codes) -> list[str]:
        return []


# Thresholds, lookbacks and comparisons are those of the authors' released code. The mask test keeps a queue of five
# masks, so the newest is compared with four.
TESTS = {
    "partition": EarlyBirdTest(
        threshold=0.16,
        lookback=3,
        passes=operator.lt,
        uses_inputs=True,
        observer=lambda model, ratio: RegionEncoder(model),
        label="partition distance\n(share of code bits)",
    ),
    "mask": EarlyBirdTest(
        threshold=0.1,
        lookback=4,
        passes=operator.le,
        uses_inputs=False,
        observer=_MaskObserver,
        label="mask distance\n(share of units)",
    ),
}
