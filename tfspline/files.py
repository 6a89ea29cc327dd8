"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a file that takes the place of `path` once the block has ended well, on the disk and not only in memory.

    Args:
        path: the file to write; one that is there stays as it is until then, and if the block raises.
        mode: "w" for text in UTF-8, "wb" for bytes.
    """
    beside = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(beside, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(beside)
