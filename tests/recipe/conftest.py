"""Runs that several tests look at."""

import functools

import pytest
from helpers.runs import SMALL

from tfspline.recipe import Recipe, pictures, run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A function of the name of a Keras version: the folder of a finished, published run of SMALL. Do not change it."""

    @functools.cache
    def of(keras):
        folder = tmp_path_factory.mktemp("finished") / keras
        run(Recipe(keras=keras, **SMALL), folder, verbose=0)
        return folder

    return of


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, which take longer than a small training."""
    monkeypatch.setattr(pictures, "draw", lambda *arguments: None)
