"""Files that are there whole or not at all."""

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np


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


def write_json(path: str | os.PathLike, format: str, **entries: Any) -> None:
    """Writes a file that `read_json` reads: `format`, `entries`, and a checksum of both."""
    document = {"format": format} | entries
    with replacing(path) as file:
        json.dump(document | {"checksum": _checksum(document)}, file, indent=1, default=_number)


def _checksum(document):
    """Of what a JSON file says, however it is laid out."""
    return zlib.crc32(json.dumps(document, default=_number).encode())


def _number(scalar):
    """A scalar of numpy, as users compute ratios and seeds, as JSON takes it."""
    return scalar.item()


def read_json(path: str | os.PathLike, form: str, what: str, build: Callable[[dict], Any]) -> Any:
    """What `build` makes of a file that `write_json` wrote.

    Raises:
        ValueError: it has another format, something in it is not what was written, or nothing can be built of it; the
            message calls it `what`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        if document["format"] != form:
            raise ValueError(f"format {document['format']!r}")
        if document.pop("checksum") != _checksum(document):
            raise ValueError("its checksum is that of another content")
        return build(document)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        message = f"Expected {what} saved by tfspline in {os.fspath(path)!r}. Received: {error!r}"
        raise ValueError(message) from error


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays, and a checksum of all of them, to an .npz file, under exactly this name."""
    with replacing(path, "wb") as file:
        np.savez(file, **arrays, checksum=_checksum_of_arrays(arrays))


def _checksum_of_arrays(arrays):
    """Of all that there is. Those inside a zip do not tell that one of its files is missing, and numpy reads only as
    much of a file as its header says."""
    checksum = 0
    for name, array in arrays.items():
        checksum = zlib.crc32(f"{name} {np.shape(array)}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), checksum)
    return checksum


def read_npz(path: str | os.PathLike, build: Callable[[dict[str, np.ndarray]], Any]) -> Any:
    """What `build` makes of the arrays in an .npz file; ValueError where it cannot."""
    with open(path, "rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no .npz file")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
            if arrays.pop("checksum") != _checksum_of_arrays(arrays):
                raise ValueError("its checksum is that of another content")
            return build(arrays)
        except Exception as error:  # a damaged zip fails in a dozen ways
            raise ValueError(
                f"Expected a file that tfspline has written, whole. Received: {os.fspath(path)!r} ({error})"
            ) from error


def with_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, by the rest of their names.

    Example:

    >>> with_prefix({"on/a": 1, "on/b/0": 2, "step": 3}, "on/")
    {'a': 1, 'b/0': 2}
    """
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
