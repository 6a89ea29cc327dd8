"""The checkpoints of a run: each is there whole or not at all, and where one is damaged there is the one before."""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence

from absl import logging

from tfspline._utils.files import broken, placing, seal, write_text

# What the history tells of: all that the slim network comes from, what the one without single weights takes besides
# the search, and all phases together, in their order.
SLIM_PHASES = ("search", "sparsify", "prune", "rewind", "retrain")
WEIGHT_PHASES = ("prune_weights", "retrain_weights")
PHASES = (*SLIM_PHASES, *WEIGHT_PHASES, "baseline")
# Of phases that follow on one another only the last checkpoint is gone on with.
_LINES = (("search",), ("sparsify", "prune"), ("rewind", "retrain"), WEIGHT_PHASES, ("baseline",))
_NAME = re.compile(rf"({'|'.join(PHASES)})-(\d+)")


class Checkpoints:
    """A folder of checkpoints, and with each the history of the run up to there.

    One is a few files, `<phase>-<steps>.*`, and it is one from the moment on when the last of them is there, the
    `.sha256` with the checksums of the others. (`sha256sum --check` reads it, too.)

    Args:
        folder: its path; it need not be there.
    """

    def __init__(self, folder: str):
        self.folder = folder

    def path(self, row: Mapping, ending: str) -> str:
        """The path of a file of the checkpoint of a row of the history."""
        return os.path.join(self.folder, f"{_name(row)}{ending}")

    def put(self, rows: Sequence[Mapping], files: Mapping[str, Callable[[str], None]]) -> None:
        """Makes a checkpoint of the last row of a history, and keeps besides only those that it may be needed with.

        Args:
            rows: the history.
            files: ending of a file, such as ".keras" -> function of a path that writes it.
        """
        row = rows[-1]
        for ending, write in files.items():
            with placing(self.path(row, ending)) as beside:
                write(beside)
        write_text(self.path(row, ".jsonl"), lines(rows))
        seal(self.path(row, ".sha256"), [f"{_name(row)}{ending}" for ending in (*files, ".jsonl")])
        self.keep([row for line in _by_line(rows) for row in line[-2:]])

    def keep(self, rows: Sequence[Mapping]) -> None:
        """Removes all checkpoints but those of these rows, and what others have begun."""
        names = set(map(_name, rows))
        for file in self.files():
            if _NAME.match(file) and file.split(".")[0] not in names:
                os.remove(os.path.join(self.folder, file))

    def files(self) -> list[str]:
        """The names of all files of the folder."""
        return os.listdir(self.folder) if os.path.isdir(self.folder) else []

    def damaged(self, row: Mapping) -> list[str]:
        """The files of the checkpoint of a row that are missing, or not as they were."""
        path = self.path(row, ".sha256")
        return broken(path) if os.path.exists(path) else [path]

    def newest(self) -> list[dict]:
        """The history up to the newest checkpoint that is whole, and with it those that it follows on."""
        damaged = functools.cache(lambda name: self.damaged(_place(name)))
        names = {file.split(".")[0] for file in self.files()}
        places = sorted(map(_place, filter(_NAME.fullmatch, names)), key=_order, reverse=True)
        for name in map(_name, places):
            found, rows = damaged(name), []
            if not found:
                rows = read_lines(os.path.join(self.folder, f"{name}.jsonl"))
                found = [file for line in _by_line(rows) for file in damaged(_name(line[-1]))]
            if not found:
                return rows
            logging.warning("The checkpoint %s is left aside. Missing or damaged: %s", name, ", ".join(found))
        return []


def lines(rows: Sequence[Mapping]) -> str:
    """A history as text, a row a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_lines(path: str) -> list[dict]:
    """The history in a file.

    Raises:
        ValueError: the file is damaged.
    """
    with open(path, encoding="utf-8") as file:
        try:
            return [json.loads(line) for line in file]
        except ValueError as error:
            raise ValueError(
                f"Expected a history, a row of JSON on each line, in {path!r}. Received: {error}"
            ) from error


def _name(row):
    return f"{row['phase']}-{row['steps']:07d}"


def _place(name):
    phase, steps = _NAME.fullmatch(name).groups()
    return {"phase": phase, "steps": int(steps)}


def _order(place):
    return PHASES.index(place["phase"]), place["steps"]


def _by_line(rows):
    found = ([row for row in rows if row["phase"] in phases] for phases in _LINES)
    return [line for line in found if line]
