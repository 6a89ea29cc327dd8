"""The checkpoints of a run. If the newest one is damaged, the run continues from the one before it."""

import functools
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from tfspline._utils.files import naming, placing, scratch

SLIM_PHASES = ("search", "sparsify", "prune", "rewind", "retrain")  # all that produce the slim network, in order
WEIGHT_PHASES = ("prune_weights", "retrain_weights")  # those after the search for the network without single weights
PHASES = (*SLIM_PHASES, *WEIGHT_PHASES, "baseline")
# Phases of the same line continue each other, so that only the newest checkpoint of a line is needed.
_LINES = (("search",), ("sparsify", "prune"), ("rewind", "retrain"), WEIGHT_PHASES, ("baseline",))
_NAME = re.compile(rf"({'|'.join(PHASES)})-(\d+)")
_HISTORY = "history.jsonl"


class Checkpoints:
    """A folder of checkpoints, each of which is one zip file, `<phase>-<steps>.zip`.

    A single file is complete or absent, and the checksums in a zip file show whether it is damaged. A checkpoint
    contains the files of its phase and the history of the run up to it.
    """

    def __init__(self, folder: str):
        self.folder = folder

    def path(self, row: Mapping) -> str:
        """The path of the checkpoint of a row of the history."""
        return os.path.join(self.folder, f"{_name(row)}.zip")

    def put(self, rows: Sequence[Mapping], files: Mapping[str, Callable[[str], None]]) -> None:
        """Write the checkpoint of the last row of a history, and keep only the newest two of each line of phases.

        `files` maps the extension of each file, such as ".keras", to a function that writes it to a path.
        """
        row = rows[-1]
        with placing(self.path(row)) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for extension, write in files.items():
                name = f"{_name(row)}{extension}"
                with scratch(os.path.join(self.folder, name)) as part:
                    write(part)
                    archive.write(part, name)
            archive.writestr(_HISTORY, to_lines(rows))
        self.keep([row for line in _by_line(rows) for row in line[-2:]])

    def read(self, row: Mapping, extension: str, load: Callable[[str], Any]) -> Any:
        """Return `load(path)` for a copy of a file of the checkpoint of a row."""
        with zipfile.ZipFile(self.path(row)) as archive, tempfile.TemporaryDirectory() as folder:
            with naming(folder):
                path = archive.extract(f"{_name(row)}{extension}", folder)
            return load(path)

    def keep(self, rows: Sequence[Mapping]) -> None:
        """Delete all checkpoints except those of these rows."""
        names = set(map(_name, rows))
        for name in self._names():
            if name not in names:
                os.remove(os.path.join(self.folder, f"{name}.zip"))

    def is_whole(self, row: Mapping) -> bool:
        """Whether the checkpoint of a row exists and is not damaged."""
        try:
            with zipfile.ZipFile(self.path(row)) as archive:
                return archive.testzip() is None
        except Exception:  # a damaged zip file can raise almost any error
            return False

    def newest(self) -> list[dict]:
        """The history up to the newest checkpoint that is undamaged, as well as the checkpoints that it builds on."""
        whole = functools.cache(lambda name: self.is_whole(_place(name)))
        places = sorted(map(_place, self._names()), key=lambda row: (PHASES.index(row["phase"]), row["steps"]))
        for place in reversed(places):
            if whole(_name(place)):
                with zipfile.ZipFile(self.path(place)) as archive:
                    rows = from_lines(archive.read(_HISTORY).decode())
                if all(whole(_name(line[-1])) for line in _by_line(rows)):
                    return rows
            logging.warning("Skipping the checkpoint %s: it, or one that it builds on, is damaged", self.path(place))
        return []

    def _names(self):
        files = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        names = (file.removesuffix(".zip") for file in files if file.endswith(".zip"))
        return [name for name in names if _NAME.fullmatch(name)]


def to_lines(rows: Sequence[Mapping]) -> str:
    """A history as text, one row of JSON per line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def from_lines(text: str) -> list[dict]:
    """The history that `to_lines` wrote. Raises a ValueError for a line that is not JSON."""
    return [json.loads(line) for line in text.splitlines()]


def _name(row):
    return f"{row['phase']}-{row['steps']:07d}"


def _place(name):
    phase, steps = _NAME.fullmatch(name).groups()
    return {"phase": phase, "steps": int(steps)}


def _by_line(rows):
    found = ([row for row in rows if row["phase"] in phases] for phases in _LINES)
    return [line for line in found if line]
