"""The L1 penalty on the gammas of BatchNormalization during the search."""

import numpy as np
import pytest
from helpers.runs import interrupt, rows_of

from tfspline import _keras
from tfspline.recipe import Recipe, run
from tfspline.recipe.run_dir import RunDir

SLIMMING = {
    **{"network": "vgg8", "width": 1 / 16, "ratio": 0.5, "criterion": "bn_scale", "scope": "global"},
    **{"epochs": 3, "search_epochs": 2, "eb_threshold": 1e-9, "batch_size": 64, "steps_per_epoch": 1},
    **{"momentum": 0.0, "weight_decay": 0.0, "lr_schedule": "step", "learning_rate": 0.5, "gamma_l1": 0.1},
}


def gammas(keras, path):
    """The gammas of a network, which must have no penalty."""
    model = keras.models.load_model(path)
    assert not model.losses
    layers = [layer for layer in model.layers if _keras.of_class(layer, "BatchNormalization")]
    return np.concatenate([layer.gamma.numpy() for layer in layers])


@pytest.mark.sweep(2)
def test_only_the_search_is_penalized(keras, tmp_path, monkeypatch):
    recipe = Recipe(keras=keras.__name__, **SLIMMING)
    interrupt(monkeypatch, [("search", 2)])
    with pytest.raises(InterruptedError):
        run(recipe, tmp_path, verbose=0, publish=False)
    after_one = RunDir.of(tmp_path).read("search", ".keras", lambda path: gammas(keras, path))
    run(recipe, tmp_path, verbose=0, publish=False)

    # One step per epoch, whose loss is that before the step: the gammas are 1 first.
    first, second, _, last = rows_of(tmp_path)
    assert first["loss"] - first["cross_entropy"] == pytest.approx(0.1 * len(after_one), rel=1e-5)
    assert second["loss"] - second["cross_entropy"] == pytest.approx(0.1 * np.abs(after_one).sum(), rel=1e-5)
    assert "cross_entropy" not in last
