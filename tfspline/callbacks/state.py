"""The state of a callback on disk, so that an interrupted training continues exactly where it was."""

import contextlib
import json
import os
import re
import weakref
from typing import Any

import numpy as np

from tfspline import _keras
from tfspline._utils.files import read_npz, write_npz
from tfspline._utils.workers import from_chief, is_chief, wait
from tfspline.graph.signature import Signature, renamed, signature
from tfspline.graph.unrolling import functional

_FORMAT = "tfspline.callback.2"


class Saved:
    """An object whose fields in `SAVED` are saved as arrays. They hold numbers, lists of numbers, or None."""

    SAVED: tuple[str, ...] = ()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the fields as named arrays; None has no array."""
        values = {name: getattr(self, name) for name in self.SAVED}
        return {name: np.array(value) for name, value in values.items() if value is not None}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned."""
        for name in self.SAVED:
            setattr(self, name, arrays[name].tolist() if name in arrays else None)


def nested(**groups: dict) -> dict[str, np.ndarray]:
    """The arrays of all groups in one dict, named "group/name"."""
    return {f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()}


def group_of(arrays: dict[str, np.ndarray], group: str) -> dict[str, np.ndarray]:
    """One group of what `nested` returned."""
    prefix = f"{group}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class SavedCallback(_keras.StepCallback):
    """A callback whose state can be saved; with a `backup_dir`, an interrupted training resumes with its state."""

    _PARTS: tuple[str, ...] = ()  # attributes that make up the state, each with `to_arrays` and `restore`

    def __init__(self, backup_dir: str | os.PathLike | None, unit: str):
        super().__init__()
        self.backup_dir = backup_dir
        self._backup = None if backup_dir is None else Backup(backup_dir, self, unit)
        self._begun = False  # whether the first epoch of this `fit` has begun
        self._structure: Signature | None = None  # of the model that the state is about

    def save(self, path: str | os.PathLike) -> None:
        """Writes the state of the callback, with recorded inputs and masks, to an .npz file, for `load`."""
        parts = {name: getattr(self, name).to_arrays() for name in self._PARTS}
        about = {"format": _FORMAT, "settings": self._settings(), "structure": json.dumps(self._structure)}
        write_npz(path, {name: np.array(text) for name, text in about.items()} | nested(**parts))

    def load(self, path: str | os.PathLike) -> None:
        """Restores the state that a callback with the same arguments wrote with `save`.

        When `fit` begins, the model must have the weights of that time; it may have been built anew.

        Raises:
            ValueError: the file is damaged or was written by a callback with other arguments.
        """
        saved = read_npz(path, self._restore)
        if saved != self._settings():
            raise ValueError(
                f"{os.fspath(path)!r} holds the state of {saved}, but this is {self._settings()}. "
                "Create the callback with the arguments that it had when the state was saved."
            )
        self._trained_model = None

    def _restore(self, arrays):
        """Restores the state if it has the settings of this callback; returns its settings."""
        if str(arrays["format"]) != _FORMAT:
            raise ValueError(f"format {arrays['format']}")
        saved = str(arrays["settings"])
        if saved == self._settings():
            for name in self._PARTS:
                getattr(self, name).restore(group_of(arrays, name))
            self._structure = json.loads(str(arrays["structure"]))
        return saved

    def _recognise(self) -> dict[str, str]:
        """For each layer path in the model that the state is about, the path in the model that is trained now."""
        found = signature(functional(self.model))
        saved, self._structure = self._structure or found, found
        return renamed(saved, found, f"Expected the model that the state of this {type(self).__name__} is about")

    def _settings(self) -> str:
        """The callback's class and arguments, in words; a state is of use only for the same ones."""
        raise NotImplementedError


_in_use: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # (folder, class of callback) -> callback


class Backup:
    """Keeps the states that a callback had at the last few places (epochs or steps) of a training, one file each.

    Keras resumes from the weights saved last and trains again what came after them. So the right state is not the
    newest one, but the one of that place. With several workers the chief writes, and all of them read.
    """

    def __init__(self, folder: str | os.PathLike, callback: Any, unit: str):
        self._folder, self._callback, self._unit = os.fspath(folder), callback, unit
        if os.path.exists(self._folder) and not os.path.isdir(self._folder):
            raise NotADirectoryError(f"backup_dir must be a folder. Received: {self._folder!r}, which is a file.")
        self._name = type(callback).__name__  # callbacks of different classes may share a folder

    def claim(self) -> None:
        """Raises a ValueError if another callback of the same class uses the folder in this `fit`."""
        key, params = (os.path.realpath(self._folder), self._name), self._callback.params
        other = _in_use.get(key)
        if other not in (None, self._callback) and params is not None and other.params is params:  # one dict a `fit`
            raise ValueError(
                f"Two callbacks of class {self._name} have backup_dir={self._folder!r}, where they would overwrite "
                "each other's states. Give each a backup_dir of its own."
            )
        _in_use[key] = self._callback

    def put(self, place: int, oldest: int = 0) -> None:
        """Saves the callback's state as that of `place`.

        Deletes states older than `oldest`, and states newer than `place`, which come from an interrupted run.
        """
        if not is_chief(self._strategy):
            return
        os.makedirs(self._folder, exist_ok=True)
        self._callback.save(self._path(place))
        for other in self._places():
            if not oldest <= other <= place:
                os.remove(self._path(other))

    def take(self, place: int) -> int | None:
        """Loads the last state at or before `place` and returns its place; None if there are no states."""
        places = self._places()
        if places and places[0] > place:
            self.refuse(place)
        found = max((earlier for earlier in places if earlier <= place), default=-1)
        chiefs = int(from_chief(self._strategy, found))
        if found != chiefs:
            raise ValueError(
                f"backup_dir={self._folder!r} must be a folder that all workers share. The chief found a state after "
                f"{chiefs} {self._unit} there, this worker found {places}."
            )
        if found >= 0:
            self._callback.load(self._path(found))
        wait(self._strategy)  # the chief may delete states once all workers have read
        return found if found >= 0 else None

    def refuse(self, place: int) -> None:
        """Raises a ValueError: there is no state for `place`."""
        raise ValueError(
            f"{self._name} has states in backup_dir={self._folder!r} after {', '.join(map(str, self._places()))} "
            f"{self._unit}, but the model was restored to {place}. Restore the model to one of these, or delete the "
            "folder to start over."
        )

    def clear(self) -> None:
        """Deletes all states, and the folder if nothing else is in it."""
        if is_chief(self._strategy):
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(self._folder):
                    if name.startswith(f"{self._name}-"):  # includes temporary files of a process that was killed
                        os.remove(os.path.join(self._folder, name))
            with contextlib.suppress(OSError):
                os.rmdir(self._folder)
        wait(self._strategy)  # otherwise another worker's next `fit` might still see them

    @property
    def _strategy(self):
        return self._callback.model.distribute_strategy

    def _path(self, place):
        return os.path.join(self._folder, f"{self._name}-{place}.npz")

    def _places(self):
        names = os.listdir(self._folder) if os.path.isdir(self._folder) else []
        found = [re.fullmatch(rf"{self._name}-(\d+)\.npz", name) for name in names]
        return sorted(int(match[1]) for match in found if match)
