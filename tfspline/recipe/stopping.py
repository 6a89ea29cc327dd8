"""Stopping a training from outside, by Ctrl-C or by SIGTERM, where it can be gone on with."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(KeyboardInterrupt):
    """A signal has asked the process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Stopper:
    """While it is entered, SIGINT and SIGTERM raise `Stopped`: at once, but inside of `steps` after the step.

    A second signal does not wait. A signal that is ignored (by nohup, for instance) stays so, and outside of the main
    thread, which alone gets signals, nothing changes.

    Attributes:
        received: the number of the signal that is waited with, None before there is one.
    """

    def __init__(self):
        self.received = None
        self._waits = False
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *raised):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """What is trained in the block is told by `received` to stop; `Stopped` is raised at its end, if not before."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self.check()

    def check(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)

    def _receive(self, number, frame):
        at_once = self.received is not None or not self._waits
        self.received = number
        if at_once:
            raise Stopped(number)
