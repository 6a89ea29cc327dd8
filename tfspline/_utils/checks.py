"""Argument validation with uniform error messages. Each function returns the argument that is called `name`."""

import difflib
import numbers
from collections.abc import Iterable
from typing import Any


def count(name: str, value: Any, least: int = 1) -> int:
    """Check that an argument is an integer of at least `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected `{name}` to be an integer of at least {least}. Received: {value!r}")
    return int(value)


def share(name: str, value: Any) -> float:
    """Check that an argument is a number in (0, 1)."""
    if not isinstance(value, numbers.Real) or not 0 < float(value) < 1:
        raise ValueError(f"Expected `{name}` in (0, 1). Received: {value!r}")
    return float(value)


def several(name: str, value: Any) -> tuple:
    """Check that an argument is iterable and not a string."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"Expected `{name}` to be a list or tuple. Received: {value!r}")
    return tuple(value)


def among(name: str, value: Any, known: Iterable) -> Any:
    """Check that an argument, which may be unhashable, is one of the `known` values."""
    known = tuple(known)
    if value not in known:
        raise ValueError(f"Expected `{name}` among {known}. Received: {value!r}")
    return value


class UnknownLayerError(ValueError, KeyError):
    """An argument names a layer that there is not: a ValueError, and a KeyError as mappings raise it."""

    __str__ = ValueError.__str__


def known_layer(name: str, value: Any, known: Iterable[str]) -> str:
    """Check that an argument is the path of a layer in `known`; the error suggests similar ones."""
    known = list(known)
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=3)
        choice = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        expected = f"Expected names of layers in `{name}`, among {sorted(known)}"
        raise UnknownLayerError(f"{expected}. Received: {[value]}{choice}")
    return value


def instance(name: str, value: Any, kind: type) -> Any:
    """Check that an argument is an instance of `kind`."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
        raise TypeError(f"Expected `{name}` to be {article} {kind.__name__}. Received: {type(value).__name__}")
    return value
