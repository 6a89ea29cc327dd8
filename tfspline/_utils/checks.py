"""Argument validation with uniform error messages."""

import numbers
from collections.abc import Iterable
from typing import Any


def count(name: str, value: Any, least: int = 1) -> int:
    """Return the argument `name` as an int. Raises a ValueError if it is not an integer of at least `least`.

    Example:

    >>> count("batch_size", 0)
    Traceback (most recent call last):
    ValueError: Expected `batch_size` to be an integer of at least 1. Received: 0
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected `{name}` to be an integer of at least {least}. Received: {value!r}")
    return int(value)


def share(name: str, value: Any) -> float:
    """Return the argument `name`. Raises a ValueError if it is not a number in (0, 1).

    Example:

    >>> share("ratio", 50)
    Traceback (most recent call last):
    ValueError: Expected `ratio` in (0, 1). Received: 50
    """
    if not isinstance(value, numbers.Real) or not 0 < float(value) < 1:
        raise ValueError(f"Expected `{name}` in (0, 1). Received: {value!r}")
    return float(value)


def several(name: str, value: Any) -> tuple:
    """Return the argument `name` as a tuple. Raises a TypeError if it is a string or not iterable.

    Example:

    >>> several("protect", "head")
    Traceback (most recent call last):
    TypeError: Expected `protect` to be a list or tuple. Received: 'head'
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"Expected `{name}` to be a list or tuple. Received: {value!r}")
    return tuple(value)


def among(name: str, value: Any, known: Iterable) -> Any:
    """Return the argument `name`. Raises a ValueError if it is not one of the `known` values; it may be unhashable.

    Example:

    >>> among("scope", ["layer"], ("layer", "global"))
    Traceback (most recent call last):
    ValueError: Expected `scope` among ('layer', 'global'). Received: ['layer']
    """
    known = tuple(known)
    if value not in known:
        raise ValueError(f"Expected `{name}` among {known}. Received: {value!r}")
    return value


def instance(name: str, value: Any, kind: type) -> Any:
    """Return the argument `name`. Raises a TypeError if it is not an instance of `kind`.

    Example:

    >>> instance("plan", "plan.json", dict)
    Traceback (most recent call last):
    TypeError: Expected `plan` to be a dict. Received: str
    """
    if not isinstance(value, kind):
        raise TypeError(f"Expected `{name}` to be a {kind.__name__}. Received: {type(value).__name__}")
    return value
