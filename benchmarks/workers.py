"""Processes that work beside each other, of which one may fail or die without harm to the rest."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable
from multiprocessing import connection

_CONTEXT = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork


class Workers:
    """Up to `count` processes that call a function, each one call at a time.

    Args:
        count: how many at once.
        function: what they call; like `setup` a function of a module, which a new process imports.
        setup: called once in each process, before anything else.

    Example:
        >>> with Workers(2, math.sqrt) as workers:
        ...     workers.start("four", 4.0)
        ...     workers.wait()
        ("four", 2.0, None)
    """

    def __init__(self, count: int, function: Callable, setup: Callable[[], None] | None = None):
        self.count, self.functions = count, (function, setup)
        self.idle, self.busy = [], {}  # workers; connection -> task and worker

    @property
    def free(self) -> bool:
        """Whether another task can be started."""
        return len(self.busy) < self.count

    def start(self, task: Hashable, *arguments) -> None:
        """Lets a process call the function; `wait` tells of `task` when it is done."""
        worker = self.idle.pop() if self.idle else _Worker(*self.functions)
        worker.connection.send(arguments)
        self.busy[worker.connection] = task, worker

    def wait(self) -> tuple:
        """Waits until a task is over; returns it, what the function returned, and what went wrong (a text) or None."""
        done = connection.wait(list(self.busy))[0]
        task, worker = self.busy.pop(done)
        try:
            result, error = done.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            return task, None, f"its process died, with exit code {worker.process.exitcode}"
        self.idle.append(worker)
        return task, result, error

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        workers = [*self.idle, *(worker for _, worker in self.busy.values())]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


class _Worker:
    def __init__(self, function, setup):
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, function, setup), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe


def _serve(pipe, function, setup):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup:
        setup()
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            outcome = function(*arguments), None
        except Exception as error:
            outcome = None, f"{type(error).__name__}: {error}"
        pipe.send(outcome)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
