"""Dataclass fields that are also command-line flags: their metadata and their values as text."""

import dataclasses
import numbers
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DESCRIPTIONS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_ACCEPTED = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str}


def flag(group: str, default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    """Define a dataclass field that is also a command-line flag, which `--help` lists under `group`.

    The annotation of the field is the type of the flag. `choices` are the valid values if they are a fixed list.
    """
    return dataclasses.field(default=default, metadata={"group": group, "help": help, "choices": tuple(choices)})


def kind_of(annotation: Any) -> Any:
    """The annotation without `| None`."""
    return typing.get_args(annotation)[0] if isinstance(annotation, types.UnionType) else annotation


def described(annotation: Any) -> str:
    """Describe in words the values that an annotation allows."""
    return _DESCRIPTIONS.get(kind_of(annotation), "integers separated by commas")


def is_valid(value: Any, annotation: Any) -> bool:
    """Whether a value has the annotated type; an int is a valid float, and a bool is not a valid int."""
    if value is None:
        return isinstance(annotation, types.UnionType)
    kind = kind_of(annotation)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(is_valid(item, int) for item in value)
    return isinstance(value, _ACCEPTED[kind]) and isinstance(value, bool) == (kind is bool)


def to_text(value: Any) -> str:
    """The value as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def from_text(name: str, text: str, annotation: Any) -> Any:
    """The value that `to_text` wrote, and None for "none" where the annotation allows it.

    Raises a ValueError that names the flag if the text is not of the annotated type.
    """
    kind = kind_of(annotation)
    if text == "none" and kind is not annotation:
        return None
    try:
        if typing.get_origin(kind) is tuple:
            return tuple(int(number) for number in text.split(",") if number)
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"Expected --{name} to be {described(annotation)}. Received: {text!r}") from None


def read_flagfile(path: str | os.PathLike) -> dict[str, str]:
    """Read the text of each flag from a file with one flag per line, `--name=value` or `--name` for "true".

    Skips empty lines and `#` comments, and raises a ValueError for other lines.
    """
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)!r} is not a text file ({error})") from error
    flags = {}
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, text = line.removeprefix("--").partition("=")
        if not line.startswith("--") or " " in name or name == "flagfile":
            raise ValueError(f"Expected --name=value on each line of {os.fspath(path)!r}. Received: {line!r}")
        flags[name] = text if equals else "true"
    return flags
