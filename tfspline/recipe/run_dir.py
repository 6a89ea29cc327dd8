"""The folder of a run: what it leaves behind, and how far it has come."""

import contextlib
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from tfspline._utils import files
from tfspline.recipe.checkpoints import Checkpoints, lines, read_lines
from tfspline.recipe.lock import LOCK, Lock

SEAL = "SHA256SUMS"


class RunDir:
    """A folder that holds one run, which can be killed at any moment and gone on with.

    How far it has come its `checkpoints/` tell; `history.jsonl` is a copy of what the newest one says, for people.
    Only who holds the lock may write.

    Args:
        path: the folder; it may be there already if it holds a run of the same flags.
        flags: the flags that define the run, name to value as written on a command line.

    Raises:
        NotADirectoryError: `path` is a file.
        FileExistsError: `path` holds files, but not those of a run.
        FileNotFoundError: it holds a run, but not its `flags.cfg`.
        ValueError: `path` holds a run that was made with other flags; when `history` is read: a run that is over, with
            a damaged one.

    Example:
        >>> run = RunDir("runs/mine", {"epochs": "3"})
        >>> run.start()
        >>> run.history
        []
    """

    def __init__(self, path: str, flags: Mapping[str, str]):
        self.path = path
        self.flags = dict(flags)
        self._checkpoints = Checkpoints(self.file("checkpoints"))
        self._lock = None
        self._check()

    @classmethod
    def of(cls, path: str) -> "RunDir":
        """The run that is in a folder, whatever its flags are.

        Raises:
            FileNotFoundError: there is none.
        """
        if not os.path.exists(os.path.join(path, "flags.cfg")):
            raise FileNotFoundError(f"Expected a folder with a run in it. Received: {path!r}, without flags.cfg")
        return cls(path, _read_flags(path))

    def file(self, *names: str) -> str:
        """The path of a file of the run."""
        return os.path.join(self.path, *names)

    @functools.cached_property
    def history(self) -> list[dict]:
        """What was recorded, a row an epoch and one for each phase that has none."""
        path = self.file("history.jsonl")
        there = os.path.exists(path)
        if os.path.exists(self.file("summary.json")):
            return read_lines(path) if there else []
        rows = self._checkpoints.newest()
        if there:
            with open(path, encoding="utf-8", errors="replace") as file:
                told, text = file.read(), lines(rows)
            # A process that was killed may not have come to write the last row.
            if not text.startswith(told) or not told.endswith("\n" * bool(told)):
                epoch = "{phase}, epoch {epoch}".format(**rows[-1]) if rows else "the beginning"
                logging.warning("%s tells of other epochs than the checkpoints; going on after: %s", path, epoch)
        return rows

    def lock(self) -> None:
        """Keeps other processes out until `close`, or until this one ends; removes what killed ones were writing.

        Raises:
            BlockingIOError: another process is at work in the folder.
        """
        if self._lock is None:
            self._lock = Lock(self.path)
            self._check()
            self.__dict__.pop("history", None)  # they may have gone on meanwhile
            for folder in filter(os.path.isdir, (self.path, self.file("checkpoints"))):
                for name in filter(files.is_leftover, os.listdir(folder)):
                    os.remove(os.path.join(folder, name))

    def close(self) -> None:
        """Lets other processes in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def start(self) -> None:
        """Makes the folder, locks it, and writes the flags into it as a flagfile."""
        os.makedirs(self.path, exist_ok=True)
        self.lock()
        self.write("flags.cfg", "".join(f"--{name}={value}\n" for name, value in self.flags.items()))
        os.makedirs(self.file("checkpoints"), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.file(SEAL))  # what it tells of is about to change
        self.write("history.jsonl", lines(self.history))

    def write(self, name: str, text: str) -> None:
        """Writes a text file of the run in one step."""
        files.write_text(self.file(name), text)

    def put(self, name: str, write: Callable[[str], None]) -> None:
        """Lets `write(path)` make a file of the run, which is there in one step."""
        with files.placing(self.file(name)) as beside:
            write(beside)

    def last_epoch(self, phase: str) -> int | None:
        """The number of the last epoch that was recorded of a phase; None if there is none."""
        return max((row["epoch"] for row in self.history if row["phase"] == phase), default=None)

    def last_step(self, phase: str) -> int:
        """How many steps had been trained, from the beginning of the run, when a phase ended; 0 if it has not begun."""
        return max((row["steps"] for row in self.history if row["phase"] == phase), default=0)

    def seconds(self, *phases: str) -> float:
        """The wall time that these phases took."""
        return sum(row["seconds"] for row in self.history if row["phase"] in phases)

    def checkpoint(self, phase: str, ending: str = ".keras") -> str:
        """The path of a file of a phase's last checkpoint."""
        return self._checkpoints.path(self._last(phase), ending)

    def damaged(self, phase: str) -> list[str]:
        """The files of a phase's last checkpoint that are missing, or not as they were."""
        return self._checkpoints.damaged(self._last(phase))

    def codes(self, epoch: int) -> str:
        """The path of the region codes of an epoch of the dense training."""
        return self.file("checkpoints", f"codes-{epoch:04d}.npz")

    def record(self, row: Mapping[str, Any], made: Mapping[str, Callable[[str], None]]) -> None:
        """Adds a row to the history, in place of one of the same phase and epoch, with a checkpoint.

        Args:
            row: a mapping with `phase`, `epoch` (epochs done, with the one under way), `steps` (steps done since the
                run began) and `seconds`; numbers that are not finite become null, since JSON has no word for them.
            made: ending of a file of the checkpoint, such as ".keras" -> function of a path that writes it.
        """
        place = row["phase"], row["epoch"]
        rows = [other for other in self.history if (other["phase"], other["epoch"]) != place]
        rows.append({name: _finite(value) for name, value in row.items()})
        self._put_checkpoint(rows, made)
        self.history = rows
        self.write("history.jsonl", lines(rows))

    def _put_checkpoint(self, rows, made):
        self._checkpoints.put(rows, made)

    def take_search(self, other: "RunDir") -> None:
        """Copies what another run has recorded of its search: the last checkpoint and the region codes."""
        epochs = range(1, other.last_epoch("search") + 1)
        made = (os.path.basename(other.checkpoint("search", ".")), *map(os.path.basename, map(other.codes, epochs)))
        names = [name for name in other._checkpoints.files() if name.startswith(made)]
        for name in sorted(names, key=lambda name: name.endswith(".sha256")):  # that makes it a checkpoint
            self.put(f"checkpoints/{name}", functools.partial(shutil.copyfile, other.file("checkpoints", name)))
        del self.history
        self.write("history.jsonl", lines(self.history))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary: the run is over."""
        self.write("summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict | None:
        """What `finish` wrote, or None while the run is not over.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.file("summary.json")
        if not os.path.exists(path):
            return None
        with open(path, encoding="utf-8") as file:
            try:
                return json.load(file)
            except ValueError as error:
                raise ValueError(f"Expected the summary of a run in {path!r}. Received: {error}") from error

    def seal(self) -> None:
        """Writes `SHA256SUMS`, the checksums of all that a run has left that is over; its checkpoints go before, but
        for what `take_search` copies."""
        self._checkpoints.keep([self._last("search")])
        found = [os.path.join(folder, name) for folder, _, names in os.walk(self.path) for name in names]
        names = {os.path.relpath(path, self.path) for path in found} - {SEAL, LOCK}
        files.seal(self.file(SEAL), sorted(names))

    def lost(self) -> list[str] | None:
        """The files that are missing, or not as they were when the run was sealed; None if it was not."""
        if not os.path.exists(self.file(SEAL)):
            return None
        return [os.path.relpath(path, self.path) for path in files.broken(self.file(SEAL))]

    def _last(self, phase):
        return {"phase": phase, "steps": self.last_step(phase)}

    def _check(self):
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise NotADirectoryError(f"Expected run_dir to be a folder. Received: {self.path!r}, which is a file")
        if os.path.exists(self.file("flags.cfg")):
            self._check_flags()
            return
        names = os.listdir(self.path) if os.path.isdir(self.path) else []
        others = [name for name in names if name != LOCK and not files.is_leftover(name)]
        if "checkpoints" in others:
            raise FileNotFoundError(
                f"Expected flags.cfg in run_dir, the flags that the run was made with, one a line. Received: "
                f"{self.path!r}, without it"
            )
        if others:
            raise FileExistsError(
                f"Expected run_dir to be a new folder or that of an earlier run. Received: {self.path!r}, which "
                "holds other files"
            )

    def _check_flags(self):
        made = _read_flags(self.path)
        names = [name for name in {**made, **self.flags} if made.get(name) != self.flags.get(name)]
        if names:
            expected, received = (_as_flags(flags, names) for flags in (made, self.flags))
            raise ValueError(
                f"Expected the flags that {self.path!r} was made with: {expected}. Received: {received}. "
                "Take another run_dir, or the old flags to go on with that run."
            )


class ReadOnlyRunDir(RunDir):
    """The folder of a run for a worker that goes along with the one that writes it, the chief."""

    def start(self) -> None:
        """Reads what the chief has begun with.

        Raises:
            FileNotFoundError: the chief's folder is not to be seen here.
            ValueError: the chief has other flags.
        """
        if not os.path.exists(self.file("flags.cfg")):
            raise FileNotFoundError(
                f"Expected a run_dir that all workers share. Received: {self.path!r}, where this one sees no run"
            )
        super().__init__(self.path, self.flags)

    def write(self, name: str, text: str) -> None:
        """Nothing."""

    def put(self, name: str, write: Callable[[str], None]) -> None:
        """Nothing."""

    def lock(self) -> None:
        """Nothing: the chief holds it."""

    def seal(self) -> None:
        """Nothing."""

    def _put_checkpoint(self, rows, made):
        # Has to be made, and is thrown away: TensorFlow collects what is in it from all workers.
        with tempfile.TemporaryDirectory() as folder:
            for ending, write in made.items():
                write(os.path.join(folder, f"checkpoint{ending}"))


def _read_flags(path):
    with open(os.path.join(path, "flags.cfg"), encoding="utf-8") as file:
        parts = [line.rstrip("\n").removeprefix("--").partition("=") for line in file]
    return {name: value for name, _, value in parts}


def _as_flags(flags, names):
    return " ".join(f"--{name}={flags[name]}" if name in flags else f"no --{name}" for name in names)


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
