"""Files that are there whole or not at all."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import IO, Any


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


def write_json(path: str | os.PathLike, form: str, **entries: Any) -> None:
    """Writes a file that `read_json` reads: `entries`, and `form` as its "format"."""
    with replacing(path) as file:
        json.dump({"format": form} | entries, file, indent=1)


def read_json(path: str | os.PathLike, form: str, what: str, build: Callable[[dict], Any]) -> Any:
    """What `build` makes of a file that `write_json` wrote.

    Raises:
        ValueError: it has another format, or nothing can be built of it; the message calls it `what`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        if document["format"] != form:
            raise ValueError(f"format {document['format']!r}")
        return build(document)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        message = f"Expected {what} saved by tfspline in {os.fspath(path)!r}. Received: {error!r}"
        raise ValueError(message) from error
