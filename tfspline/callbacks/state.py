"""What a callback knows, kept on disk beside Keras' own backups, so that a training that was cut goes on exactly."""

import contextlib
import os
from typing import Any

from tfspline._utils.workers import from_chief, is_chief, wait


class Backup:
    """The states that a callback was in at the last places of a training, each a file that its `save` has written.

    Keras brings a training back to where the weights were saved last, and what was trained since then is trained
    again. So not the newest state is the right one, but the one of that place.

    Where several workers train, the chief writes, and all of them read.

    Args:
        folder: where the files are, made if need be. Callbacks of different classes may share one.
        callback: has `save(path)` and `load(path)`, and the `model` that is trained.
        unit: in what places are counted, for messages.

    Raises:
        NotADirectoryError: `folder` is a file.
    """

    def __init__(self, folder: str | os.PathLike, callback: Any, unit: str):
        self._folder, self._callback, self._unit = os.fspath(folder), callback, unit
        if os.path.exists(self._folder) and not os.path.isdir(self._folder):
            raise NotADirectoryError(f"Expected backup_dir to be a folder. Received: {self._folder!r}, which is a file")
        self._prefix = f"{type(callback).__name__}-"

    def put(self, place: int, oldest: int = 0) -> None:
        """Keeps the callback's present state, and no longer those before `oldest`. Those behind `place` are of a
        future that was cut, and go as well."""
        if not is_chief(self._strategy):
            return
        os.makedirs(self._folder, exist_ok=True)
        self._callback.save(self._path(place))
        for other in self._places():
            if not oldest <= other <= place:
                os.remove(self._path(other))

    def take(self, place: int) -> int | None:
        """Loads the last state at or before `place`. Returns where that was, or None if there are no states at all.

        Raises:
            ValueError: all states are of later places; one that is damaged, or of a callback with other arguments; a
                folder in which this worker sees other states than the chief.
        """
        places = self._places()
        if places and places[0] > place:
            self.refuse(place)
        found = max((earlier for earlier in places if earlier <= place), default=-1)
        chiefs = int(from_chief(self._strategy, found))
        if found != chiefs:
            raise ValueError(
                f"Expected {self._folder!r} to be a folder that all workers share, with a state after {chiefs} "
                f"{self._unit}. Received: one with states after {places}"
            )
        if found >= 0:
            self._callback.load(self._path(found))
        wait(self._strategy)  # until all have read, and states may go
        return found if found >= 0 else None

    def refuse(self, place: int) -> None:
        """Raises the ValueError that says that there is no state for `place`."""
        raise ValueError(
            f"Expected a model restored to where {self._prefix.rstrip('-')} has left states in {self._folder!r}: after "
            f"{', '.join(map(str, self._places()))} {self._unit}. Received: one after {place}; remove the folder to "
            "train anew"
        )

    def clear(self) -> None:
        """Removes all states, and the folder if nothing else is in it."""
        if is_chief(self._strategy):
            self._remove()
        wait(self._strategy)  # or a further `fit` might still see them

    @property
    def _strategy(self):
        return self._callback.model.distribute_strategy

    def _remove(self):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._folder):
                if name.startswith(self._prefix):  # also what a process that was killed has begun to write
                    os.remove(os.path.join(self._folder, name))
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _path(self, place):
        return os.path.join(self._folder, f"{self._prefix}{place}.npz")

    def _places(self):
        names = os.listdir(self._folder) if os.path.isdir(self._folder) else []
        stems = [name.removeprefix(self._prefix).removesuffix(".npz") for name in names]
        return sorted(int(stem) for stem, name in zip(stems, names, strict=True) if stem.isdecimal() and stem != name)
