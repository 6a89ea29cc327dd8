"""Tests of `import tfspline`: the modules it loads, the public names, and the examples in the docstrings."""

import doctest
import importlib
import os
import pkgutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfspline

MODULES = sorted(
    name for _, name, _ in pkgutil.walk_packages(tfspline.__path__, "tfspline.") if not name.endswith("__main__")
)


OPTIONAL = (
    "tf_keras",
    "tensorflow_model_optimization",
    "matplotlib",
    "sklearn",
    "tensorboard",
    "jinja2",
    "PIL",
    "filelock",
)


def test_keras_3_model_is_pruned_without_optional_packages():
    code = f"""
import os, sys
for name in {OPTIONAL}:
    sys.modules[name] = None  # importing it raises
import keras, numpy as np, tfspline
import tensorflow as tf
assert not any(f"tfspline.{{name}}" in sys.modules for name in ("datasets", "models", "plots", "recipe"))
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)])
assert tfspline.prune(model, 0.5, data=np.eye(4)).get_layer("hidden").units == 4
assert tfspline.models.build("mlp", (4,), 2).output_shape == (None, 2)  # imported on first use
try:
    tfspline.plots
except ImportError as error:
    assert "pip install 'tfspline[plots]'" in str(error)
else:
    raise AssertionError("matplotlib is missing, but tfspline.plots was imported")
assert tf.keras.__version__.startswith("3"), tf.keras.__version__
assert "TF_USE_LEGACY_KERAS" not in os.environ
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_backend_is_refused_by_name():
    """The other backends of Keras need packages that are not installed here, so only its name is another one."""
    code = "import keras; keras.backend.backend = lambda: 'jax'; import tfspline"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "KERAS_BACKEND='jax'; set KERAS_BACKEND=tensorflow before keras is imported" in done.stderr
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", "import tfspline"], env=environment, check=True)


def test_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="'nothing'"):
        tfspline.nothing  # noqa: B018


def test_dir_lists_public_names_only():
    names = dir(tfspline)
    assert {"prune", "datasets", "models", "plots", "layers", "__version__"} <= set(names)
    assert all(hasattr(tfspline, name) for name in names)
    hidden = {"graph", "pruning", "spline", "callbacks", "deployment", "recipe", "importlib", "TYPE_CHECKING"}
    assert not hidden & set(names)
    assert [name for name in names if name.startswith("_")] == ["__version__"]


def test_every_public_name_has_a_docstring_with_an_example():
    for name in tfspline.__all__:
        assert ">>>" in getattr(tfspline, name).__doc__, name


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(8, "relu", name="conv3")(inputs)))
    model.compile("sgd", "mse")
    x = np.zeros((8, 4), "float32")
    names = {"keras": keras, "np": np, "tfspline": tfspline, "model": model, "x": x, "y": np.zeros((8, 2))}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs=names):
        runner.run(test)
    assert runner.failures == 0, f"{runner.failures} of {runner.tries} examples failed"
