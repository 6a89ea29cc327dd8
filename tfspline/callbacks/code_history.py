"""Looks: what a network in training was like at the last few epochs, to compare it with what it is like now."""

import collections
from collections.abc import Iterable

import numpy as np

from tfspline.spline.codes import Codes
from tfspline.spline.distance import partition_distance


class Looks:
    """The codes of a network as far back as new ones are compared with them.

    However many looks there are in an epoch, they are compared with those of epochs before, so that a distance means
    the same. To compare a look with the one just before, a threshold would have to shrink with the time between them.
    But there is no law to shrink it by: in trainings on digits and Fashion-MNIST the distance grew within an epoch as
    steps**alpha with alpha from 0.1, where cuts tremble about their places, to 0.9, where they move straight on; see
    benchmarks/early_bird.py.

    Times are counted in steps or in epochs, as the caller likes.

    Attributes:
        codes: the `Codes` that are kept, the oldest first.
        times: when each of them was taken.

    Args:
        lookback: with how many epochs before it a look is compared.
        codes: what is kept from the beginning.
        times: of each of them.

    Example:

    >>> looks = Looks(lookback=2)
    >>> bits = [np.array([[byte]], "uint8") for byte in (0b0000, 0b0001, 0b0111)]
    >>> [looks.add(Codes({"relu": row}, {"relu": 4}), time) for time, row in enumerate(bits)]
    [[], [0.25], [0.5, 0.75]]
    """

    def __init__(self, lookback: int, codes: Iterable[Codes] = (), times: Iterable[int] = ()):
        self._lookback = lookback
        self.codes, self.times = collections.deque(codes), collections.deque(times)

    def add(self, codes: Codes, time: int, every: int = 1, epoch: int | None = 1) -> list[float]:
        """Compares new codes with those nearest to 1, 2, ... lookback epochs before, as far as there are any; keeps
        them, and no longer those that no further ones will be compared with.

        Args:
            codes: of the network as it is.
            time: when that is.
            every: how much time lies between two looks.
            epoch: how much time an epoch takes; None where nobody knows, and nothing is compared.

        Returns:
            The distances, from the nearest epoch to the farthest; fewer than `lookback` at first.
        """
        distances = [partition_distance(codes, other) for other in self._earlier(time, every, epoch)]
        self.codes.append(codes)
        self.times.append(time)
        while epoch and len(self.times) > 1 and self.times[1] <= time + every - self._lookback * epoch:
            self.codes.popleft()
            self.times.popleft()
        return distances

    def _earlier(self, time, every, epoch):
        if not self.times or not epoch:
            return []
        before = [time - back * epoch for back in range(1, self._lookback + 1)]
        times = np.array(self.times)
        return [self.codes[np.argmin(abs(times - then))] for then in before if times[0] <= then + every / 2]

    def clear(self) -> None:
        """Forgets all codes."""
        self.codes.clear()
        self.times.clear()
