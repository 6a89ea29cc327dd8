"""Fixtures shared by all tests; `keras` runs a test on both Keras versions."""

import collections
import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras as keras3  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tf_keras  # noqa: E402

KERAS = (keras3, tf_keras)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`@pytest.mark.sweep(n)`: each n-th case is an ordinary test, the others are slow.

    Both Keras versions have their own: with `sweep(2)`, each case is an ordinary test in one of them.
    """
    seen = collections.Counter()
    for item in items:
        sweep = item.get_closest_marker("sweep")
        if sweep:
            version = getattr(item, "callspec", None) and item.callspec.params.get("keras")
            key = item.parent.nodeid, item.originalname, version
            begin = KERAS.index(version) if version in KERAS else 0
            if (seen[key] + begin) % sweep.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[key] += 1


@pytest.fixture(autouse=True, scope="module")
def _garbage():
    """Collects garbage once for each module, and not again among what is left, such as all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=KERAS, ids=["keras3", "tf_keras"])
def keras(request):
    """Keras 3, then tf_keras, each with names, seeds and global state as in a new process."""
    options = {"free_memory": False} if request.param is keras3 else {}
    request.param.backend.clear_session(**options)
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
