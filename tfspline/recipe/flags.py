"""Dataclass fields that are also command-line flags: their metadata and their values as text."""

import dataclasses
import numbers
import os
import types
import typing
from collections.abc import Sequence
from typing import Any

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def flag(group: str, default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    """Define a dataclass field that is also a command-line flag. The annotation of the field is the type of the flag.

    Args:
        group: heading under which `--help` lists the flag.
        default: value of the field if the flag is not given.
        help: description for `--help`.
        choices: the valid values; empty if they are not a fixed list.
    """
    return dataclasses.field(default=default, metadata={"group": group, "help": help, "choices": tuple(choices)})


def kind_of(annotation: Any) -> Any:
    """The annotation without `| None`."""
    return typing.get_args(annotation)[0] if isinstance(annotation, types.UnionType) else annotation


def described(annotation: Any) -> str:
    """Describe in words the values that an annotation allows.

    Example:

    >>> described(int | None), described(tuple[int, int])
    ('an integer', 'integers separated by commas')
    """
    return _KINDS.get(kind_of(annotation), "integers separated by commas")


def is_valid(value: Any, annotation: Any) -> bool:
    """Whether a value has the annotated type; an int is a valid float, and a bool is not a valid int."""
    if value is None:
        return isinstance(annotation, types.UnionType)
    kind = kind_of(annotation)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(is_valid(item, int) for item in value)
    if kind in (bool, str):
        return isinstance(value, kind)
    return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)


def to_text(value: Any) -> str:
    """The value as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def from_text(name: str, text: str, annotation: Any) -> Any:
    """The value that `to_text` wrote.

    Raises:
        ValueError: `text` is not a value of the annotated type; the message names the flag `name`.
    """
    kind = kind_of(annotation)
    try:
        if typing.get_origin(kind) is tuple:
            return tuple(int(number) for number in text.split(",") if number)
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"Expected --{name} to be {described(annotation)}. Received: {text!r}") from None


def read_flagfile(path: str | os.PathLike) -> dict[str, str]:
    """Read a file with one flag per line, `--name=value` or `--name` for "true". Skips empty lines and `#` comments.

    Returns:
        The text of each flag, by name.

    Raises:
        ValueError: a line is not a flag.
    """
    with open(path, encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    flags = {}
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith("--"):
            raise ValueError(f"Expected --name=value on each line of {os.fspath(path)!r}. Received: {line!r}")
        name, equals, text = line.removeprefix("--").partition("=")
        flags[name] = text if equals else "true"
    return flags
