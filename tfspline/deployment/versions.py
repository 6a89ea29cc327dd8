"""A folder of versions: numbers increase, and each version appears atomically."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable

from tfspline._utils.checks import count
from tfspline._utils.files import to_disk

_TEMPORARY = ".export-"  # servers look only at folders whose name is an integer
_DAY = 24 * 60 * 60


def next_version(path: str, version: int | None = None) -> int:
    """The number of the next version in `path`: `version` if it is valid, by default the highest one plus 1."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise NotADirectoryError(f"Expected a folder of versions. Received: {path!r}, which is a file")
    names = os.listdir(path) if os.path.isdir(path) else []
    highest = max((int(name) for name in names if name.isdecimal()), default=0)
    if version is None:
        return highest + 1
    count("version", version)
    if os.path.exists(os.path.join(path, str(version))):
        raise FileExistsError(f"Version {version} already exists in {path!r}. Leave out `version` to use the next one.")
    if version < highest:
        raise ValueError(
            f"Expected a version higher than {highest}, the highest one in {path!r}, since servers load the highest. "
            f"Received: {version}"
        )
    return version


def publish(path: str, version: int | None, write: Callable[[str], None]) -> str:
    """Writes a new version in a temporary folder and renames it once it is complete; returns its folder.

    `write` creates the folder with the given name and writes the version into it.
    """
    os.makedirs(path, exist_ok=True)
    _remove_leftovers(path)
    # In a sub-folder, since only its owner may read the temporary folder itself.
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=path) as temporary:
        written = os.path.join(temporary, "version")
        write(written)
        for folder, _, files in os.walk(written):
            for name in (*files, "."):
                to_disk(os.path.join(folder, name))
        target = _renamed(written, path, version)
        to_disk(path)
    return target


def _renamed(written, path, version):
    while True:
        target = os.path.join(path, str(next_version(path, version)))
        try:
            os.rename(written, target)
        except OSError as error:  # another process may have written the same version meanwhile
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return target


def _remove_leftovers(path):
    """Removes old temporary folders of killed exports; newer ones may be in use by another process or machine."""
    for name in os.listdir(path):
        folder = os.path.join(path, name)
        if name.startswith(_TEMPORARY) and os.path.getmtime(folder) <= time.time() - _DAY:
            shutil.rmtree(folder, ignore_errors=True)
