"""Stop a training on Ctrl-C or SIGTERM at a point from which it can continue."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(KeyboardInterrupt):
    """The signal `number` has asked the process to end."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Stopper:
    """A context in which SIGINT and SIGTERM raise `Stopped`: within `steps` after the current step, otherwise at once.

    A second signal always acts at once. Signals that are ignored (by nohup, for instance) stay ignored. Outside of the
    main thread, which alone receives signals, this does nothing.
    """

    def __init__(self):
        self.received = None  # number of the signal that waits for the end of the current step
        self._waits = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *raised):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """A block that trains: a signal sets `received` instead of raising `Stopped`, which is raised at the end."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self.check()

    def check(self) -> None:
        """Raise `Stopped` if a signal was received."""
        if self.received is not None:
            raise Stopped(self.received)

    def _receive(self, number, frame):
        at_once = self.received is not None or not self._waits
        self.received = number
        if at_once:
            raise Stopped(number)
