"""The README's Python runs as it stands."""

import pathlib
import re

import keras
import numpy as np

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(8, 3, use_bias=False, name="conv3")(inputs)
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(hidden))
    hidden = keras.layers.GlobalAveragePooling2D()(hidden)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax", name="head")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    names = {"model": model, "x": rng.normal(size=(32, 8, 8, 1)).astype("float32"), "y": rng.integers(0, 3, 32)}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert (tmp_path / "serving" / "resnet" / "1" / "saved_model.pb").exists()
