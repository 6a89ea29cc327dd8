"""The decision of an early-bird test: when to look, and whether the codes have settled. Independent of Keras."""

import math
from collections.abc import Callable

import numpy as np

from tfspline._utils.files import with_prefix
from tfspline.callbacks.code_history import CodeHistory
from tfspline.spline.codes import Codes


class LookClock:
    """Counts how long a network has been trained, and says when to look at its codes.

    Attributes:
        every: the number of steps between two looks; None looks once an epoch.
        time: how long the network has been trained, in steps; in epochs if `every` is None.
        epoch: the number of the current epoch, counted from 1.
        epoch_steps: the number of steps of an epoch, None while it is unknown.
    """

    def __init__(self, every: int | None = None):
        self.every = every
        self.time = self.epoch = 0
        self.epoch_steps: int | None = None
        self._epoch_start = 0

    @property
    def interval(self) -> int:
        """The time between two looks."""
        return self.every or 1

    @property
    def epoch_length(self) -> int | None:
        """The duration of an epoch, None while it is unknown."""
        return self.epoch_steps if self.every else 1

    @property
    def step(self) -> int | None:
        """The number of trained steps, None if `every` is None."""
        return self.time if self.every else None

    def set_epoch_steps(self, steps: int | None) -> None:
        """Sets the number of steps of an epoch; None keeps what was known before.

        Raises:
            ValueError: looks would be more than one epoch apart.
        """
        self.epoch_steps = steps or self.epoch_steps
        if self.every and self.epoch_steps and self.every > self.epoch_steps:
            raise ValueError(f"every={self.every} must be at most the {self.epoch_steps} steps of an epoch.")

    def begin_epoch(self, epoch: int, steps: int | None) -> None:
        """Begins epoch number `epoch` (counted from 1) of `steps` steps (None if unknown)."""
        self.set_epoch_steps(steps)
        self.epoch, self._epoch_start = epoch, self.time

    def end_epoch(self, steps: int | None) -> None:
        """Ends an epoch of `steps` steps; None takes the number counted since it began."""
        self.set_epoch_steps(steps or self.time - self._epoch_start)

    def advance(self, time: int = 1) -> bool:
        """Counts steps (or epochs) that were trained; returns whether a look is due."""
        before = self.time // self.interval
        self.time += time
        return self.time // self.interval > before

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f", step {self.time}" if self.every else "")

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the clock as named arrays."""
        return {"time": np.array(self.time), "epoch_steps": np.array(self.epoch_steps or 0)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned."""
        self.time, self.epoch_steps = int(arrays["time"]), int(arrays["epoch_steps"]) or None


class SettlingTest:
    """Decides whether codes have settled: max over 1 <= k <= lookback of distance(t, t - k) is below a threshold.

    Attributes:
        history: the earlier codes.
        distances: the maximum at each look, over as many epochs as there are; NaN where there are none.
        epoch: the epoch in which the codes settled first; None before.
        step: the number of steps trained by then; None before, and where steps are not counted.

    Args:
        threshold: the threshold.
        lookback: the number of earlier epochs to compare with.
        passes: (distance, threshold) -> whether the distance is small enough.
    """

    def __init__(self, threshold: float, lookback: int, passes: Callable[[float, float], bool]):
        self._threshold, self._lookback, self._passes = threshold, lookback, passes
        self.history = CodeHistory(lookback)
        self.distances: list[float] = []
        self.epoch: int | None = None
        self.step: int | None = None

    def look(self, codes: Codes | None, clock: LookClock, agree: Callable[[float], float] = float) -> bool:
        """Compares the codes of now with earlier ones.

        Args:
            codes: the network's codes; None if the training has failed, after which the comparison starts anew.
            clock: the time now.
            agree: turns the distance that this process computed into the one that all workers use.

        Returns:
            Whether the codes have settled now for the first time.
        """
        distances = []
        if codes is None:
            self.history.clear()
        else:
            distances = self.history.add(codes, clock.time, clock.interval, clock.epoch_length)
        self.distances.append(float(agree(max(distances, default=math.nan))))
        settled = len(distances) == self._lookback and self._passes(self.distances[-1], self._threshold)
        if not settled or self.epoch is not None:
            return False
        self.epoch, self.step = clock.epoch, clock.step
        return True

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns what the test remembers as named arrays."""
        history = {f"history/{name}": array for name, array in self.history.to_arrays().items()}
        found = np.array([self.epoch or 0, self.step or 0])
        return {"found": found, "distances": np.array(self.distances, np.float64), **history}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned."""
        epoch, step = arrays["found"].tolist()
        self.epoch, self.step = epoch or None, step or None
        self.distances = arrays["distances"].tolist()
        self.history.restore(with_prefix(arrays, "history/"))
