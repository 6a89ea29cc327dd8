"""Fixtures shared by the tests of callbacks."""

import pytest


@pytest.fixture
def data(rng):
    x = rng.normal(size=(70, 4)).astype("float32")
    return x, x[:, :1] * x[:, 1:2]
