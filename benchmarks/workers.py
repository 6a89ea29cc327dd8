"""Parallel worker processes that survive the failure or death of one of them."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool


class Workers:
    """Up to `count` processes that call a function, one call at a time each.

    Args:
        count: number of processes.
        function: function to call; like `setup`, defined at the top level of a module.
        setup: called once in each process, before anything else.

    Example:
        >>> with Workers(2, math.sqrt) as workers:
        ...     workers.start("four", 4.0)
        ...     workers.wait()
        ("four", 2.0, None)
    """

    def __init__(self, count: int, function: Callable, setup: Callable[[], None] | None = None):
        context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
        # One pool per process, since the death of a process breaks its pool.
        self._pool = functools.partial(futures.ProcessPoolExecutor, 1, context, _begin, (setup,))
        self._function = function
        self._idle, self.busy = [self._pool() for _ in range(count)], {}  # pools; future -> (task, pool)

    @property
    def free(self) -> bool:
        """Whether a process is idle."""
        return bool(self._idle)

    def start(self, task: Hashable, *arguments) -> None:
        """Call the function in an idle process; `wait` returns `task` when it is done."""
        pool = self._idle.pop()
        self.busy[pool.submit(self._function, *arguments)] = task, pool

    def wait(self) -> tuple:
        """Wait for a task to end; return the task, its result, and an error message or None."""
        done = next(iter(futures.wait(self.busy, return_when=futures.FIRST_COMPLETED).done))
        task, pool = self.busy.pop(done)
        error = done.exception()
        self._idle.append(self._pool() if isinstance(error, BrokenProcessPool) else pool)
        return (task, None, f"{type(error).__name__}: {error}") if error else (task, done.result(), None)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        for process in multiprocessing.active_children():
            process.terminate()  # otherwise, the pools would wait for running calls
        for pool in (*self._idle, *(pool for _, pool in self.busy.values())):
            pool.shutdown()


def _begin(setup):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup:
        setup()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
