"""The folder of a run: what it leaves behind, and how far it has come."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from tfspline.files import replacing

# What the history tells of: all that the slim network comes from, what the one without single weights takes besides
# the search, and all phases together.
SLIM_PHASES = ("search", "sparsify", "prune", "rewind", "retrain")
WEIGHT_PHASES = ("prune_weights", "retrain_weights")
PHASES = (*SLIM_PHASES, *WEIGHT_PHASES, "baseline")


class RunDir:
    """A folder that holds one run, which can be interrupted at any moment and gone on with.

    `history.jsonl` is the only record of how far the run has come. It is replaced in one step, after the
    checkpoint of its last row was written; a checkpoint that an interruption left half-written is never read.

    Args:
        path: the folder; it may be there already if it holds a run of the same flags.
        flags: the flags that define the run, name to value as written on a command line.

    Raises:
        NotADirectoryError: `path` is a file.
        FileExistsError: `path` holds files, but not those of a run.
        ValueError: `path` holds a run that was made with other flags.

    Example:
        >>> run = RunDir("runs/mine", {"epochs": "3"})
        >>> run.start()
        >>> run.history
        []
    """

    def __init__(self, path: str, flags: Mapping[str, str]):
        self.path = path
        self.flags = dict(flags)
        self.history: list[dict] = []
        if os.path.exists(path) and not os.path.isdir(path):
            raise NotADirectoryError(f"Expected run_dir to be a folder. Received: {path!r}, which is a file")
        if os.path.exists(self.file("flags.cfg")):
            self._check_flags()
            if os.path.exists(self.file("history.jsonl")):
                with open(self.file("history.jsonl"), encoding="utf-8") as file:
                    self.history = [json.loads(line) for line in file]
        elif os.path.isdir(path) and os.listdir(path):
            raise FileExistsError(
                f"Expected run_dir to be a new folder or that of an earlier run. Received: {path!r}, which "
                "holds other files"
            )

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

    def start(self) -> None:
        """Makes the folder, with the flags in it as a flagfile."""
        os.makedirs(self.file("checkpoints"), exist_ok=True)
        self.write("flags.cfg", "".join(f"--{name}={value}\n" for name, value in self.flags.items()))

    def write(self, name: str, text: str) -> None:
        """Writes a text file of the run in one step."""
        with replacing(self.file(name)) as file:
            file.write(text)

    def put(self, name: str, write: Callable[[str], None]) -> None:
        """Lets `write(path)` make a file of the run, which is there in one step."""
        aside = self.file(f".new-{name}")
        write(aside)
        os.replace(aside, self.file(name))

    def last_epoch(self, phase: str) -> int | None:
        """The number of the last epoch that was recorded of a phase; None if there is none."""
        return max((row["epoch"] for row in self.history if row["phase"] == phase), default=None)

    def last_step(self, phase: str) -> int:
        """How many steps had been trained, from the beginning of the run, when a phase ended; 0 if it has not begun."""
        return max((row["steps"] for row in self.history if row["phase"] == phase), default=0)

    def seconds(self, *phases: str) -> float:
        """The wall time that these phases took."""
        return sum(row["seconds"] for row in self.history if row["phase"] in phases)

    def checkpoint(self, phase: str, suffix: str = ".keras") -> str:
        """The path of the checkpoint of a phase's last epoch."""
        return self._checkpoint(phase, self.last_epoch(phase), suffix)

    def codes(self, epoch: int) -> str:
        """The path of the region codes of an epoch of the dense training."""
        return self.file("checkpoints", f"codes-{epoch:04d}.npz")

    def record(self, row: Mapping[str, Any], save: Callable[[Callable[[str], str]], None]) -> None:
        """Adds a row to the history, with a checkpoint that replaces the phase's last one.

        Args:
            row: a mapping with `phase`, `epoch` (epochs done, with the one under way), `steps` (steps done since the
                run began) and `seconds`; numbers that are not finite become null, since JSON has no word for them.
            save: writes the checkpoint's files; is handed a function from suffix to path.
        """
        phase, epoch = row["phase"], row["epoch"]
        save(lambda suffix: self._checkpoint(phase, epoch, suffix))
        self.history.append({name: _finite(value) for name, value in row.items()})
        self._write_history()
        current = os.path.basename(self._checkpoint(phase, epoch, "."))
        for name in os.listdir(self.file("checkpoints")):
            if name.startswith(f"{phase}-") and not name.startswith(current):
                os.remove(self.file("checkpoints", name))

    def take_search(self, other: "RunDir") -> None:
        """Copies what another run has recorded of its search: the rows, the last checkpoint and the region codes."""
        for name in other._search_files():
            shutil.copyfile(other.file("checkpoints", name), self.file("checkpoints", name))
        self.history = [row for row in other.history if row["phase"] == "search"]
        self._write_history()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary; the run is over and its checkpoints go, but for what `take_search` copies."""
        self.write("summary.json", json.dumps(summary, indent=2) + "\n")
        kept = self._search_files()
        for name in os.listdir(self.file("checkpoints")):
            if name not in kept:
                os.remove(self.file("checkpoints", name))

    def summary(self) -> dict | None:
        """What `finish` wrote, or None while the run is not over."""
        if not os.path.exists(self.file("summary.json")):
            return None
        with open(self.file("summary.json"), encoding="utf-8") as file:
            return json.load(file)

    def _search_files(self):
        last = self.last_epoch("search") or 0
        current = os.path.basename(self._checkpoint("search", last, "."))
        codes = [os.path.basename(self.codes(epoch)) for epoch in range(1, last + 1)]
        there = os.listdir(self.file("checkpoints"))
        return [name for name in there if name.startswith(current) or name in codes]

    def _write_history(self):
        self.write("history.jsonl", "".join(json.dumps(row) + "\n" for row in self.history))

    def _checkpoint(self, phase, epoch, suffix):
        return self.file("checkpoints", f"{phase}-{epoch:04d}{suffix}")

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

    def record(self, row: Mapping[str, Any], save: Callable[[Callable[[str], str]], None]) -> None:
        """Adds a row to the history in memory. The checkpoint is thrown away, but has to be made: TensorFlow collects
        what is in it from all workers."""
        with tempfile.TemporaryDirectory() as folder:
            save(lambda suffix: os.path.join(folder, f"checkpoint{suffix}"))
        self.history.append(dict(row))


def _read_flags(path):
    with open(os.path.join(path, "flags.cfg"), encoding="utf-8") as file:
        return dict(line.rstrip("\n").removeprefix("--").split("=", 1) for line in file)


def _as_flags(flags, names):
    return " ".join(f"--{name}={flags[name]}" if name in flags else f"no --{name}" for name in names)


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
