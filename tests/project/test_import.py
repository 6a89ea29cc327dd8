"""What `import tfspline` does to a process, and that the examples in the docstrings run."""

import doctest
import importlib
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


def test_import_takes_neither_tfmot_nor_tf_keras_nor_matplotlib_and_leaves_tf_keras_at_keras_3():
    code = """
import os, sys
for name in ("tensorflow_model_optimization", "tf_keras", "matplotlib"):
    sys.modules[name] = None  # importing it would raise
import tfspline
import tensorflow as tf
assert tf.keras.__version__.startswith("3"), tf.keras.__version__
assert "TF_USE_LEGACY_KERAS" not in os.environ
"""
    subprocess.run([sys.executable, "-c", code], check=True)


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
