"""The networks of a run: optimizer, weight decay and checkpoints."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from helpers.runs import SMALL

import tfspline
from tfspline.recipe import Recipe, networks
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.training import Training


def test_weight_decay_is_that_of_papers_and_only_of_kernels(keras):
    recipe = Recipe(keras=keras.__name__, ratio=0.5, network="mlp", weight_decay=1e-3, momentum=0.9)
    model = tfspline.models.build("mlp", (8, 8, 1), 10, keras=keras.__name__)
    model.get_layer("head").bias.assign(np.ones(10))
    networks.compile_network(recipe, model)
    before = model.get_layer("head").get_weights()
    zeros = [np.zeros(variable.shape, "float32") for variable in model.trainable_variables]
    model.optimizer.build(model.trainable_variables)
    model.optimizer.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_allclose(kernel, before[0] * (1 - 0.1 * 1e-3 / (1 - 0.9)), rtol=1e-6)
    np.testing.assert_array_equal(bias, before[1])


def test_checkpoint_that_contains_code_is_not_loaded(keras, tmp_path):
    target, path = tmp_path / "executed", tmp_path / "model.keras"
    code = eval(f"lambda x: open({str(target)!r}, 'w').close() or x")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(code, (2,))])
    target.unlink(missing_ok=True)
    folder = SimpleNamespace(last_epoch=lambda phase: 1, read=lambda phase, extension, load: load(str(path)))
    training = Training(Recipe(keras=keras.__name__, **SMALL), folder)

    def refused(reason):
        with pytest.raises(ValueError, match=f"'{path}' .*{reason}"):
            training.load("search")
        assert not target.exists()

    model.save(path)
    refused("Lambda")
    path.write_bytes(path.read_bytes()[:-30])
    refused("zip")
    model.save(tmp_path / "model.h5")  # tf_keras would execute the code in it, whatever the extension
    (tmp_path / "model.h5").rename(path)
    refused("zip")


def test_deterministic_is_passed_to_tensorflow(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: calls.append(True))
    for deterministic in (True, False):
        Training(Recipe(**SMALL | {"deterministic": deterministic}), RunDir(str(tmp_path), {}))
    assert calls == [True]
