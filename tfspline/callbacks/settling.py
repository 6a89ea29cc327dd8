"""The decision of an early-bird test: when to look, and whether the codes have settled. Independent of Keras."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from tfspline.callbacks.state import Saved, group_of, nested
from tfspline.spline.codes import Codes
from tfspline.spline.distance import partition_distance


class LookClock(Saved):
    """Counts how long a network has been trained, and says when to look at its codes."""

    SAVED = ("time", "epoch_steps")

    def __init__(self, every: int | None = None):
        self.every = every  # steps between two looks; None looks once an epoch
        self.time = 0  # trained so far, in steps; in epochs if `every` is None
        self.epoch = 0  # the current epoch, counted from 1
        self.epoch_steps: int | None = None  # the steps of an epoch, once they are known
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
        """Sets the number of steps of an epoch; None keeps what was known before."""
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


class SettlingTest(Saved):
    """Decides whether codes have settled: max over 1 <= k <= lookback of distance(t, t - k) is below a threshold.

    Codes are compared with those of whole epochs earlier, no matter how often looks are taken within an epoch. So a
    distance has the same meaning at any frequency.
    """

    SAVED = ("epoch", "step", "distances", "times")

    def __init__(self, threshold: float, lookback: int, passes: Callable[[float, float], bool]):
        self._threshold, self._lookback, self._passes = threshold, lookback, passes
        self.codes: list[Codes] = []  # of recent looks, oldest first
        self.times: list[int] = []  # when these looks were taken
        self.distances: list[float] = []  # the maximum at each look; NaN where there is nothing to compare with
        self.epoch: int | None = None  # in which the codes settled first
        self.step: int | None = None  # the number of steps trained by then, if steps are counted

    def look(self, codes: Codes | None, clock: LookClock, agree: Callable[[float], float] = float) -> bool:
        """Compares codes with earlier ones; returns whether they have settled now for the first time.

        After a failed training, `codes` is None and the comparison starts anew. `agree` turns the distance that this
        process computed into the one that all workers use.
        """
        distances = []
        if codes is None:
            self.codes, self.times = [], []
        else:
            distances = [partition_distance(codes, earlier) for earlier in self._earlier(clock)]
            self._remember(codes, clock)
        self.distances.append(float(agree(max(distances, default=math.nan))))
        settled = len(distances) == self._lookback and self._passes(self.distances[-1], self._threshold)
        if not settled or self.epoch is not None:
            return False
        self.epoch, self.step = clock.epoch, clock.step
        return True

    def _earlier(self, clock: LookClock) -> list[Codes]:
        """The codes nearest to 1, 2, ... `lookback` epochs ago; fewer if the history is shorter."""
        if not self.times or not clock.epoch_length:
            return []
        targets = [clock.time - back * clock.epoch_length for back in range(1, self._lookback + 1)]
        times = np.array(self.times)
        return [self.codes[np.argmin(abs(times - then))] for then in targets if times[0] <= then + clock.interval / 2]

    def _remember(self, codes: Codes, clock: LookClock) -> None:
        """Keeps the codes, and drops those that the next look will not need."""
        self.codes.append(codes)
        self.times.append(clock.time)
        if clock.epoch_length:
            oldest = clock.time + clock.interval - self._lookback * clock.epoch_length
            while len(self.times) > 1 and self.times[1] <= oldest:
                del self.codes[0], self.times[0]

    def rename(self, paths: Mapping[str, str]) -> None:
        """Gives the remembered codes the names of layers in another model; a name may end with a number, "a#2"."""
        for i, codes in enumerate(self.codes):
            names = {name: (path, *rest) for name in codes.layers for path, *rest in [name.partition("#")]}
            new = {name: "".join((paths.get(path, path), *rest)) for name, (path, *rest) in names.items()}
            arrays = {new[name]: codes[name] for name in codes.layers}
            self.codes[i] = Codes(arrays, {new[name]: bits for name, bits in codes.bits.items()})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns what the test remembers as named arrays."""
        return super().to_arrays() | nested(**{str(i): codes.to_arrays() for i, codes in enumerate(self.codes)})

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned."""
        super().restore(arrays)
        self.codes = [Codes.from_arrays(group_of(arrays, str(i))) for i in range(len(self.times))]
