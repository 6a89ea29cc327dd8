"""A folder of versions, each of which is there whole or not at all, and whose numbers only grow."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable

from tfspline._utils.files import to_disk

_ASIDE = ".export-"  # servers look only at folders whose name is an integer
_DAY = 24 * 60 * 60


def next_version(path: str, version: int | None = None) -> int:
    """`version` if it may come next to `path`; by default, one more than the highest one there.

    Raises:
        TypeError, ValueError: `version` is not a positive integer, or lower than one that is there.
        FileExistsError: it is there already.
        NotADirectoryError: `path` is a file.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise NotADirectoryError(f"Expected a folder of versions. Received: {path!r}, which is a file")
    there = os.listdir(path) if os.path.isdir(path) else []
    highest = max((int(name) for name in there if name.isdecimal()), default=0)
    if version is None:
        return highest + 1
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"Expected version to be an integer. Received: {version!r}")
    if version < 1:
        raise ValueError(f"Expected version to be positive. Received: {version}")
    if os.path.exists(os.path.join(path, str(version))):
        raise FileExistsError(f"Expected a version that is not there yet. Received: {version}, which is in {path!r}")
    if version < highest:
        raise ValueError(
            f"Expected a version higher than {highest}, the highest in {path!r}, which servers go on with. "
            f"Received: {version}"
        )
    return version


def publish(path: str, version: int | None, write: Callable[[str], None]) -> str:
    """Has `write(folder)` make a folder and gives it to who watches `path` as a version, once it is whole.

    Returns:
        The version's folder.

    Raises:
        TypeError, ValueError, FileExistsError, NotADirectoryError: as `next_version`.
    """
    os.makedirs(path, exist_ok=True)
    remove_leftovers(path)
    # Written one level below: only its owner may read the temporary folder itself.
    with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=path) as aside:
        written = os.path.join(aside, "version")
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
        except OSError as error:  # somebody else was faster
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return target


def remove_leftovers(path: str, age: float = _DAY) -> None:
    """Removes what exports that were killed have left in a folder of versions at least `age` seconds ago; whether a
    process is gone cannot be known on a shared disk."""
    for name in os.listdir(path) if os.path.isdir(path) else ():
        folder = os.path.join(path, name)
        if name.startswith(_ASIDE) and os.path.getmtime(folder) <= time.time() - age:
            shutil.rmtree(folder, ignore_errors=True)
