"""Arguments that are not valid raise errors that name them."""

import re

import pytest

from tfspline._utils import checks


@pytest.mark.parametrize(
    ("check", "value", "options", "error"),
    [
        ("count", 0, [], ValueError("Expected `x` to be an integer of at least 1. Received: 0")),
        ("count", -1, [0], ValueError("Expected `x` to be an integer of at least 0. Received: -1")),
        ("count", True, [], ValueError("Expected `x` to be an integer of at least 1. Received: True")),
        ("share", 50, [], ValueError("Expected `x` in (0, 1). Received: 50")),
        ("several", "head", [], TypeError("Expected `x` to be a list or tuple. Received: 'head'")),
        ("among", ["a"], [{"a": 1, "b": 2}], ValueError("Expected `x` among ('a', 'b'). Received: ['a']")),
        ("instance", "plan.json", [dict], TypeError("Expected `x` to be a dict. Received: str")),
    ],
)
def test_invalid_argument_raises_and_is_named(check, value, options, error):
    with pytest.raises(type(error), match=re.escape(str(error))):
        getattr(checks, check)("x", value, *options)


@pytest.mark.parametrize(
    ("check", "value", "options", "expected"),
    [
        ("count", 2, [], 2),
        ("share", 0.5, [], 0.5),
        ("several", ["a", "b"], [], ("a", "b")),
        ("among", "a", [("a", "b")], "a"),
    ],
)
def test_valid_argument_is_returned(check, value, options, expected):
    assert getattr(checks, check)("x", value, *options) == expected
