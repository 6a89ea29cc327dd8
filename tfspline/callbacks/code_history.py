"""The codes of recent epochs, which new codes are compared with."""

import collections

import numpy as np

from tfspline._utils.files import with_prefix
from tfspline.spline.codes import Codes
from tfspline.spline.distance import partition_distance


class CodeHistory:
    """The codes of a network over the last `lookback` epochs.

    New codes are compared with those taken 1, 2, ... `lookback` epochs earlier, no matter how often codes are taken
    within an epoch. So a distance has the same meaning at any frequency.

    Times are counted in steps or in epochs; the caller decides.

    Attributes:
        codes: the `Codes` kept, oldest first.
        times: when each of them was taken.

    Args:
        lookback: the number of epochs to compare with.

    Example:

    >>> history = CodeHistory(lookback=2)
    >>> bits = [np.array([[byte]], "uint8") for byte in (0b0000, 0b0001, 0b0111)]
    >>> [history.add(Codes({"relu": row}, {"relu": 4}), time) for time, row in enumerate(bits)]
    [[], [0.25], [0.5, 0.75]]
    """

    def __init__(self, lookback: int):
        self._lookback = lookback
        self.codes: collections.deque[Codes] = collections.deque()
        self.times: collections.deque[int] = collections.deque()

    def add(self, codes: Codes, time: int, interval: int = 1, epoch: int | None = 1) -> list[float]:
        """Compares new codes with earlier ones, keeps them, and drops codes that are no longer needed.

        Args:
            codes: the network's codes now.
            time: the time now.
            interval: the time between two calls.
            epoch: the length of an epoch; None if unknown, in which case nothing is compared.

        Returns:
            The distances to the codes nearest to 1, 2, ... `lookback` epochs ago; fewer if the history is shorter.
        """
        distances = [partition_distance(codes, earlier) for earlier in self._earlier(time, interval, epoch)]
        self.codes.append(codes)
        self.times.append(time)
        while epoch and len(self.times) > 1 and self.times[1] <= time + interval - self._lookback * epoch:
            self.codes.popleft()
            self.times.popleft()
        return distances

    def _earlier(self, time: int, interval: int, epoch: int | None) -> list[Codes]:
        if not self.times or not epoch:
            return []
        targets = [time - back * epoch for back in range(1, self._lookback + 1)]
        times = np.array(self.times)
        return [self.codes[np.argmin(abs(times - then))] for then in targets if times[0] <= then + interval / 2]

    def clear(self) -> None:
        """Forgets all codes."""
        self.codes.clear()
        self.times.clear()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the history as named arrays."""
        arrays = {"times": np.array(self.times, np.int64)}
        for i, codes in enumerate(self.codes):
            arrays.update({f"{i}/{name}": array for name, array in codes.to_arrays().items()})
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned."""
        times = arrays["times"].tolist()
        codes = [Codes.from_arrays(with_prefix(arrays, f"{i}/")) for i in range(len(times))]
        self.codes, self.times = collections.deque(codes), collections.deque(times)
