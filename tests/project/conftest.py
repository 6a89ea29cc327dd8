"""Fixtures for the tests of invalid arguments."""

import types

import keras as keras3
import pytest
import tf_keras
from helpers.invalid import valid_arguments


@pytest.fixture(params=[keras3, tf_keras], ids=["keras3", "tf_keras"])
def given(request, tmp_path):
    """The `valid_arguments` of each Keras version, and a folder with a file that tfspline cannot load."""
    (tmp_path / "file").write_text("nothing")
    return types.SimpleNamespace(**vars(valid_arguments(request.param)), folder=tmp_path, file=tmp_path / "file")
