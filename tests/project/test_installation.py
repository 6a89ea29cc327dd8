"""The bare package, installed into a fresh environment, prunes a Keras 3 model."""

import pathlib
import shutil
import subprocess
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import importlib.util
import keras, numpy as np, tfspline

for name in ("tf_keras", "tensorflow_model_optimization", "matplotlib", "tensorflow_serving", "ai_edge_litert"):
    assert importlib.util.find_spec(name) is None, f"{name} is not a dependency of the bare package"
model = keras.Sequential([
    keras.Input((8, 8, 1)),
    keras.layers.Conv2D(8, 3, name="conv"),
    keras.layers.BatchNormalization(),
    keras.layers.ReLU(),
    keras.layers.Flatten(),
    keras.layers.Dense(3),
])
x = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
small = tfspline.prune(model, 0.5, data=x)
assert small.get_layer("conv").filters == 4
assert small.predict(x, verbose=0).shape == (32, 3)
assert len(tfspline.datasets.load("digits").train) == 1437
print(tfspline.__version__)
"""


@pytest.mark.slow
def test_bare_package_prunes_a_keras_3_model_in_a_fresh_environment(tmp_path):
    source = tmp_path / "source"  # a copy, since building leaves files in the source folder
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "tfspline", source / "tfspline", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True)
    done = subprocess.run([python, "-c", PROGRAM], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["0.1.0"]
    subprocess.run([python, "-m", "pip", "check"], check=True)
