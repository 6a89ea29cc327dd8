"""Files that are written atomically: a reader finds the old file or the complete new one."""

import contextlib
import errno
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def scratch(path: str | os.PathLike) -> Iterator[str]:
    """A temporary path in the folder of `path`, with the same extension. Its file is removed when the block ends."""
    root, extension = os.path.splitext(os.fspath(path))
    temporary = f"{root}.{os.getpid()}.tmp{extension}"
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def placing(path: str | os.PathLike) -> Iterator[str]:
    """A temporary path like that of `scratch`, whose file replaces `path` when the block ends without an exception."""
    path = os.fspath(path)
    with scratch(path) as temporary, naming(path):
        yield temporary
        to_disk(temporary)
        os.replace(temporary, path)
        to_disk(os.path.dirname(path) or ".")


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Add `path` to each OSError of the block: an error while writing to an open file does not name it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a file, "w" for text in UTF-8, "wb" for bytes, that replaces `path` as that of `placing` does."""
    with placing(path) as temporary, open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as file:
        file.write(text)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is a temporary file of `scratch` or `placing`, left behind by a killed process."""
    return re.search(r"\.\d+\.tmp(\.\w+)?$", name) is not None


def to_disk(path: str) -> None:
    """Flush a file, or the list of names in a folder, to the disk. Otherwise a rename may get there before the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike, format: str, **entries: Any) -> None:
    """Write `entries`, and `format` as the entry "format", to a JSON file that `read_json` reads."""
    with replacing(path) as file:
        json.dump({"format": format} | entries, file, indent=1, default=np.generic.item)  # NumPy scalars as numbers


def read_json(path: str | os.PathLike, format: str, what: str, build: Callable[[dict], Any]) -> Any:
    """Read a file that `write_json` wrote, and return `build(entries)`.

    Raises a ValueError, which calls the content `what`, if the file is damaged or has another format, or `build` fails.
    """
    expected = f"Expected {what} saved by tfspline in {os.fspath(path)!r}. Received: "
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        if document["format"] != format:
            raise ValueError(f"{expected}format {document['format']!r}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{expected}a file that is damaged, or is no JSON ({error})") from error
    except (KeyError, TypeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{expected}a file of another kind") from error
    try:
        return build(document)
    except ValueError as error:
        raise ValueError(f"Cannot load {what} from {os.fspath(path)!r}: {error}") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{expected}a damaged file, with an entry that is missing or malformed ({error})") from error


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an .npz file of exactly this name."""
    entries: dict[str, Any] = {**arrays}  # for type checkers: np.savez also has an argument that is no array
    with replacing(path, "wb") as file:
        np.savez(file, **entries)


def read_npz(path: str | os.PathLike, build: Callable[[dict[str, np.ndarray]], Any]) -> Any:
    """Read a file that `write_npz` wrote, and return `build(arrays)`. A ValueError names a damaged file."""
    with open(path, "rb") as file:
        try:
            if damaged := zipfile.ZipFile(file).testzip():
                raise ValueError(f"{damaged} is damaged")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return build(dict(archive))
        except Exception as error:  # a damaged zip file can raise almost any error
            raise ValueError(
                f"Expected a complete file saved by tfspline. Received: {os.fspath(path)!r} ({error})"
            ) from error
