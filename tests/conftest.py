"""Fixtures shared by all tests; `keras` runs a test on both Keras versions."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras as keras3  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tf_keras  # noqa: E402


def pytest_collection_finish():
    """Keras 3's clear_session has garbage collected, before half of the tests: not among all that was imported."""
    gc.freeze()


@pytest.fixture(params=[keras3, tf_keras], ids=["keras3", "tf_keras"])
def keras(request):
    """Keras 3, then tf_keras, each with names, seeds and global state as in a new process."""
    request.param.backend.clear_session()
    request.param.utils.set_random_seed(0)
    return request.param


@pytest.fixture
def rng():
    """A seeded numpy generator."""
    return np.random.default_rng(0)


@pytest.fixture
def tfmot(monkeypatch):
    """tfmot, with names, seeds and global state of its tf_keras as in a new process."""
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")  # tfmot's import sets it; this puts it back afterwards
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(0)
    return pytest.importorskip("tensorflow_model_optimization")
