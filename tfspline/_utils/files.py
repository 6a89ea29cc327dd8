"""Files that are there whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def placing(path: str | os.PathLike) -> Iterator[str]:
    """A path beside `path`, of the same ending; what the block writes there takes the place of `path` once the block
    has ended well, on the disk and not only in memory. A process that is killed may leave it: see `is_leftover`.

    Raises:
        OSError: it could not be written; names `path`, which is as it was before.
    """
    path = os.fspath(path)
    root, ending = os.path.splitext(path)
    beside = f"{root}.{os.getpid()}.tmp{ending}"
    try:
        yield beside
        to_disk(beside)
        os.replace(beside, path)
        to_disk(os.path.dirname(path) or ".")
    except OSError as error:  # who writes into an open file does not know its name
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(beside)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a file that takes the place of `path` as by `placing`.

    Args:
        path: the file to write; one that is there stays as it is until then, and if the block raises.
        mode: "w" for text in UTF-8, "wb" for bytes.
    """
    with placing(path) as beside, open(beside, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file as by `placing`."""
    with replacing(path) as file:
        file.write(text)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is what `placing` has left in a process that was killed."""
    return re.search(r"\.\d+\.tmp(\.\w+)?$", name) is not None


def to_disk(path: str) -> None:
    """Waits until a file, or the names in a folder, are on the disk: a rename may get there before what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(path: str, names: Iterable[str]) -> None:
    """Writes the checksums of files, whose names are relative to the folder of `path`, as `sha256sum --check` reads
    them."""
    folder = os.path.dirname(path)
    with replacing(path) as file:
        file.writelines(f"{_sha256(os.path.join(folder, name))}  {name}\n" for name in names)


def broken(path: str) -> list[str]:
    """The files that are not there, or not as they were, when `seal` wrote `path`; `path` itself where it is damaged.

    Raises:
        FileNotFoundError: there is no `path`.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip("\n").split("  ", 1) for line in file]
    if not lines or any(len(line) != 2 for line in lines):
        return [path]
    files = [(os.path.join(os.path.dirname(path), name), checksum) for checksum, name in lines]
    return [name for name, checksum in files if not os.path.isfile(name) or _sha256(name) != checksum]


def _sha256(path):
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            checksum.update(chunk)
    return checksum.hexdigest()


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
