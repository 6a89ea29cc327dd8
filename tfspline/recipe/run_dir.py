"""The folder of a run: its files, its history and its lock."""

import errno
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import filelock

from tfspline._utils import files
from tfspline.recipe.checkpoints import Checkpoints, from_lines, to_lines
from tfspline.recipe.flags import read_flagfile

_LOCK = ".lock"


class RunDir:
    """A folder that contains one run, which can be killed at any moment and continued.

    The checkpoints determine how far the run has come; `history.jsonl` is a copy of their history for people. Only the
    process that holds the lock may write. Workers other than the chief have `writes=False`: they read what the chief
    writes. `flags` define the run, name -> text on a command line; a folder that contains anything else is refused.
    """

    def __init__(self, path: str, flags: Mapping[str, str], writes: bool = True):
        self.path, self.flags, self._writes = path, dict(flags), writes
        self._checkpoints = Checkpoints(self.file("checkpoints"))
        self._lock = filelock.FileLock(self.file(_LOCK), timeout=0)
        self._check()

    @classmethod
    def of(cls, path: str) -> "RunDir":
        """The run in a folder, whatever its flags are. Raises a FileNotFoundError if the folder contains no run."""
        if not os.path.exists(os.path.join(path, "flags.cfg")):
            raise FileNotFoundError(f"Expected a folder that contains a run. Received: {path!r}, without flags.cfg")
        return cls(path, read_flagfile(os.path.join(path, "flags.cfg")))

    def file(self, *names: str) -> str:
        """The path of a file of the run."""
        return os.path.join(self.path, *names)

    @functools.cached_property
    def history(self) -> list[dict]:
        """One row per recorded epoch, and one for each phase without epochs."""
        return self._parsed("history.jsonl", from_lines) if self.is_finished else self._checkpoints.newest()

    def lock(self) -> None:
        """Keep other processes out until `close` or the end of this process; delete temporary files of killed ones."""
        if not self._writes:
            return
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise BlockingIOError(
                errno.EAGAIN, "Another process is using this run_dir. Wait for it, or choose another run_dir", self.path
            ) from None
        self._reread()
        for folder in filter(os.path.isdir, (self.path, self.file("checkpoints"))):
            for name in filter(files.is_leftover, os.listdir(folder)):
                os.remove(os.path.join(folder, name))

    def close(self) -> None:
        """Release the lock."""
        self._lock.release(force=True)

    def start(self) -> None:
        """Create the folder, lock it, and write the flags into it as a flagfile."""
        if not self._writes:
            if not os.path.exists(self.file("flags.cfg")):
                raise FileNotFoundError(f"run_dir={self.path!r} must be a folder that all workers share.")
            self._reread()
            return
        os.makedirs(self.path, exist_ok=True)
        self.lock()
        self.write("flags.cfg", "".join(f"--{name}={value}\n" for name, value in self.flags.items()))
        os.makedirs(self.file("checkpoints"), exist_ok=True)
        self.write("history.jsonl", to_lines(self.history))

    def write(self, name: str, text: str) -> None:
        """Write a text file of the run atomically."""
        if self._writes:
            files.write_text(self.file(name), text)

    def put(self, name: str, write: Callable[[str], Any]) -> None:
        """Let `write(path)` write a file of the run, which appears atomically."""
        if self._writes:
            with files.placing(self.file(name)) as temporary:
                write(temporary)

    def last_epoch(self, phase: str) -> int | None:
        """The number of the last recorded epoch of a phase; None if there is none."""
        return max((row["epoch"] for row in self.history if row["phase"] == phase), default=None)

    def last_step(self, phase: str) -> int:
        """The number of steps since the start of the run at the last row of a phase; 0 if the phase has not started."""
        return max((row["steps"] for row in self.history if row["phase"] == phase), default=0)

    def seconds(self, *phases: str) -> float:
        """The wall time of these phases."""
        return sum(row["seconds"] for row in self.history if row["phase"] in phases)

    def read(self, phase: str, extension: str, load: Callable[[str], Any]) -> Any:
        """Return `load(path)` for a file of the last checkpoint of a phase."""
        return self._checkpoints.read(self._last(phase), extension, load)

    def is_whole(self, phase: str) -> bool:
        """Whether the last checkpoint of a phase exists and is not damaged."""
        return self._checkpoints.is_whole(self._last(phase))

    def codes(self, epoch: int) -> str:
        """The path of the region codes after an epoch of the dense training."""
        return self.file("checkpoints", f"codes-{epoch:04d}.npz")

    def record(self, row: Mapping[str, Any], made: Mapping[str, Callable[[str], Any]]) -> None:
        """Add a row to the history with a checkpoint. It replaces a row of the same phase and epoch.

        A row has `phase`, `epoch` (counted from 1), `steps` (since the start of the run) and `seconds`. `made` maps the
        extension of each file of the checkpoint, such as ".keras", to a function that writes it to a path.
        """
        place = row["phase"], row["epoch"]
        rows = [other for other in self.history if (other["phase"], other["epoch"]) != place]
        infinite = {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
        rows.append({**row, **infinite})  # JSON has no NaN and no infinity
        if self._writes:
            self._checkpoints.put(rows, made)
        else:  # saving a model collects values from all workers, so every worker must do it
            with tempfile.TemporaryDirectory() as folder:
                for extension, write in made.items():
                    write(os.path.join(folder, f"checkpoint{extension}"))
        self.history = rows
        self.write("history.jsonl", to_lines(rows))

    def take_search(self, other: "RunDir") -> None:
        """Copy the search of another run: the region codes of its epochs and its last checkpoint."""
        epochs = range(1, (other.last_epoch("search") or 0) + 1)
        codes = [path for path in map(other.codes, epochs) if os.path.exists(path)]
        for path in (*codes, other._checkpoints.path(other._last("search"))):  # last, the file that makes it complete
            self.put(os.path.join("checkpoints", os.path.basename(path)), functools.partial(shutil.copyfile, path))
        del self.history
        self.write("history.jsonl", to_lines(self.history))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the run as finished."""
        self.write("summary.json", json.dumps(summary, indent=2) + "\n")

    def tidy(self) -> None:
        """Delete the checkpoints of a finished run except that of the search, which other runs may reuse."""
        if self._writes:
            self._checkpoints.keep([self._last("search")])

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished."""
        return os.path.exists(self.file("summary.json"))

    def summary(self) -> dict:
        """What `finish` wrote."""
        return self._parsed("summary.json", json.loads, " Remove it to repeat the retraining.")

    def _parsed(self, name, parse, advice=""):
        with open(self.file(name), encoding="utf-8") as file:
            try:
                return parse(file.read())
            except ValueError as error:
                raise ValueError(f"{file.name!r} is damaged ({error}).{advice}") from error

    def _reread(self):
        """Forget what another process may have changed."""
        self._check()
        self.__dict__.pop("history", None)

    def _last(self, phase):
        return {"phase": phase, "steps": self.last_step(phase)}

    def _check(self):
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise NotADirectoryError(f"Expected run_dir to be a folder. Received: {self.path!r}, which is a file")
        if os.path.exists(self.file("flags.cfg")):
            self._check_flags()
            return
        names = os.listdir(self.path) if os.path.isdir(self.path) else []
        others = [name for name in names if name != _LOCK and not files.is_leftover(name)]
        if others:
            raise FileExistsError(
                f"Expected run_dir to be a new folder or that of an earlier run. Received: {self.path!r}, which "
                "contains other files and no flags.cfg. Choose another run_dir."
            )

    def _check_flags(self):
        made = read_flagfile(self.file("flags.cfg"))
        names = [name for name in {**made, **self.flags} if made.get(name) != self.flags.get(name)]
        if names:
            expected, received = (_as_flags(flags, names) for flags in (made, self.flags))
            raise ValueError(
                f"Expected the flags of the run in {self.path!r}: {expected}. Received: {received}. Use the same flags "
                "to continue that run, or another run_dir."
            )


def _as_flags(flags, names):
    return " ".join(f"--{name}={flags[name]}" if name in flags else f"no --{name}" for name in names)
