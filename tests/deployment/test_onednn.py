"""LeakyReLUs that TensorFlow computes with a wrong slope on CPUs with oneDNN are reported."""

import os
import pathlib
import subprocess
import sys

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfspline
from tfspline.deployment import onednn


def biased(layer, size=3, **options):
    return lambda L: getattr(L, layer)(4, size, padding="same", bias_initializer="ones", **options)


CONVOLUTION = biased("Conv2D")


def model_of(keras, convolution=CONVOLUTION, slope=0.3, between=None, merge="Add", other=None, twice=None):
    """A convolution, something in between, an addition of another tensor, and a LeakyReLU; one may be read twice."""
    layers = keras.layers
    x = keras.Input((5, 5, 4))
    h = y = convolution(layers)(x)
    h = between(layers)(h) if between else h
    merged = getattr(layers, merge)()([h, other(layers)(x) if other else x])
    outputs = [layers.LeakyReLU(slope, name="leaky")(merged)]
    if twice:
        outputs.append(layers.ReLU()({"convolution": y, "addition": merged}[twice]))
    return keras.Model(x, outputs)


WRONG = {
    "convolution": {},
    "other slope": {"slope": 0.1},
    "pointwise": {"convolution": biased("Conv2D", 1)},
    "separable": {"convolution": biased("SeparableConv2D")},
    "dropout": {"between": lambda L: L.Dropout(0.5)},
    "addition read twice": {"twice": "addition"},
    "of two convolutions": {"other": lambda L: L.Conv2D(4, 1)},
}
RIGHT = {
    "slope of the kernel": {"slope": 0.2},
    "without bias": {"convolution": lambda L: L.Conv2D(4, 1, use_bias=False)},
    "batch normalization": {"between": lambda L: L.BatchNormalization(beta_initializer="ones")},
    "multiplication": {"merge": "Multiply"},
    "dilated": {"convolution": biased("Conv2D", dilation_rate=2)},
    "depthwise": {"convolution": lambda L: L.DepthwiseConv2D(3, padding="same", bias_initializer="ones")},
    "broadcast": {"other": lambda L: L.GlobalAveragePooling2D(keepdims=True)},
    "convolution read twice": {"twice": "convolution"},
    "double precision": {
        "convolution": biased("Conv2D", dtype="float64"),
        "other": lambda L: L.Conv2D(4, 1, dtype="float64"),
    },
}


@pytest.fixture
def wrong_here(monkeypatch):
    """As on a CPU on which oneDNN is on; nothing was reported yet."""
    monkeypatch.setattr(onednn, "_is_wrong_here", lambda: True)
    onednn._log.cache_clear()


def reported(model, caplog):
    caplog.clear()
    with caplog.at_level("WARNING", "absl"):
        tfspline.latency(model)
    return "TF_ENABLE_ONEDNN_OPTS=0" in caplog.text


@pytest.mark.sweep(2)
@pytest.mark.parametrize("case", [*WRONG, *RIGHT])
@pytest.mark.usefixtures("wrong_here")
def test_only_fused_slopes_are_reported(keras, case, caplog, monkeypatch):
    monkeypatch.setattr("tfspline.deployment.timing.clock", lambda predict: float)
    assert reported(model_of(keras, **(WRONG | RIGHT)[case]), caplog) == (case in WRONG)


@pytest.mark.usefixtures("wrong_here")
def test_export_and_latency_name_the_layer_once(keras, caplog, tmp_path):
    model = model_of(keras)
    assert reported(model, caplog) and "computes 'leaky' with a slope of 0.2" in caplog.text
    assert not reported(model, caplog)
    onednn._log.cache_clear()
    with caplog.at_level("WARNING", "absl"):
        tfspline.export(model, tmp_path)
    assert "computes 'leaky' with a slope of 0.2" in caplog.text


def compare():
    """Compare the reports of this process with graphs that run in it; print whether oneDNN is wrong here."""
    for keras in (keras3, tf_keras):
        for case, options in (WRONG | RIGHT).items():
            model = model_of(keras, **options)
            x = -np.ones((2, 5, 5, 4), "float32")
            eager, graph = (tf.nest.flatten(call(x))[0] for call in (model, tf.function(model)))
            wrong = float(tf.reduce_max(abs(eager - graph))) > 1e-3
            assert case in WRONG or not wrong, (keras.__name__, case)  # none is missed
            assert case != "convolution" or wrong == onednn._is_wrong_here(), keras.__name__
    print("wrong here:", onednn._is_wrong_here())


@pytest.mark.slow
@pytest.mark.parametrize("switch", "01")
def test_reports_are_right_on_this_machine_and_the_switch_helps(switch):
    tests = str(pathlib.Path(__file__).parent)
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": switch, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    command = [sys.executable, "-c", "import test_onednn; test_onednn.compare()"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert switch == "1" or "wrong here: False" in ended.stdout
