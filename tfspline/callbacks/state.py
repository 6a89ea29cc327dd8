"""The state of a callback on disk, so that an interrupted training continues exactly where it was."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tfspline._utils.files import read_npz, with_prefix, write_npz
from tfspline._utils.workers import from_chief, is_chief, wait

_FORMAT = "tfspline.callback.1"


class Part(Protocol):
    """A part of a callback's state."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the part as named arrays."""

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned; may raise any exception if the arrays are not of this kind."""


def write_state(path: str | os.PathLike, settings: str, parts: Mapping[str, Part]) -> None:
    """Writes the state of a callback to an .npz file.

    Args:
        path: the file.
        settings: the callback's class and arguments, in words.
        parts: the parts of its state by name.
    """
    arrays = {"format": np.array(_FORMAT), "settings": np.array(settings)}
    for name, part in parts.items():
        arrays.update({f"{name}/{key}": array for key, array in part.to_arrays().items()})
    write_npz(path, arrays)


def read_state(path: str | os.PathLike, settings: str, parts: Mapping[str, Part]) -> None:
    """Restores the parts of a callback's state from a file that `write_state` wrote.

    Raises:
        ValueError: the file is damaged or was written by a callback with other settings.
    """

    def restore(arrays):
        if str(arrays["format"]) != _FORMAT:
            raise ValueError(f"format {arrays['format']}")
        saved = str(arrays["settings"])
        if saved == settings:
            for name, part in parts.items():
                part.restore(with_prefix(arrays, f"{name}/"))
        return saved

    saved = read_npz(path, restore)
    if saved != settings:
        raise ValueError(
            f"{os.fspath(path)!r} holds the state of {saved}, but this is {settings}. "
            "Create the callback with the arguments that it had when the state was saved."
        )


class Backup:
    """Keeps the states that a callback was in at the last few places of a training, one file each.

    Keras resumes from the weights saved last and trains again what came after them. So the right state is not the
    newest one, but the one of that place. With several workers the chief writes, and all of them read.

    Args:
        folder: the folder of the files, created if necessary. Callbacks of different classes may share it.
        callback: an object with `save(path)` and `load(path)`, and the `model` that is trained.
        unit: what places count, for messages.

    Raises:
        NotADirectoryError: `folder` is a file.
    """

    def __init__(self, folder: str | os.PathLike, callback: Any, unit: str):
        self._folder, self._callback, self._unit = os.fspath(folder), callback, unit
        if os.path.exists(self._folder) and not os.path.isdir(self._folder):
            raise NotADirectoryError(f"backup_dir must be a folder. Received: {self._folder!r}, which is a file.")
        self._prefix = f"{type(callback).__name__}-"

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
        """Loads the last state at or before `place`.

        Returns:
            The place of that state, or None if there are no states.

        Raises:
            ValueError: all states are newer than `place`; the state is damaged or of a callback with other arguments;
                this worker sees other states than the chief.
        """
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
            f"{self._prefix.rstrip('-')} has states in backup_dir={self._folder!r} after "
            f"{', '.join(map(str, self._places()))} {self._unit}, but the model was restored to {place}. Restore the "
            "model to one of these, or delete the folder to start over."
        )

    def clear(self) -> None:
        """Deletes all states, and the folder if nothing else is in it."""
        if is_chief(self._strategy):
            self._remove()
        wait(self._strategy)  # otherwise another worker's next `fit` might still see them

    @property
    def _strategy(self):
        return self._callback.model.distribute_strategy

    def _remove(self):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._folder):
                if name.startswith(self._prefix):  # includes temporary files of a process that was killed
                    os.remove(os.path.join(self._folder, name))
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _path(self, place):
        return os.path.join(self._folder, f"{self._prefix}{place}.npz")

    def _places(self):
        names = os.listdir(self._folder) if os.path.isdir(self._folder) else []
        stems = [name.removeprefix(self._prefix).removesuffix(".npz") for name in names]
        return sorted(int(stem) for stem, name in zip(stems, names, strict=True) if stem.isdecimal() and stem != name)
