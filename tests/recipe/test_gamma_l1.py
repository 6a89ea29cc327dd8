"""The L1 penalty on the gammas of BatchNormalization while a recipe searches."""

import numpy as np
import pytest
from helpers.runs import interrupt, rows_of

from tfspline import _keras
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.runner import run

SLIMMING = {
    **{"network": "vgg8", "width": 1 / 16, "ratio": 0.5, "criterion": "bn_scale", "scope": "global"},
    **{"epochs": 3, "search_epochs": 2, "eb_threshold": 1e-9, "batch_size": 64, "steps_per_epoch": 1},
    **{"momentum": 0.0, "weight_decay": 0.0, "lr_schedule": "step", "learning_rate": 0.5, "gamma_l1": 0.1},
}


def gammas(keras, path):
    model = keras.models.load_model(path)
    assert not model.losses
    layers = [layer for layer in model.layers if _keras.of_class(layer, "BatchNormalization")]
    return np.concatenate([layer.gamma.numpy() for layer in layers])


def test_search_pays_for_gammas_and_what_follows_does_not(keras, tmp_path, monkeypatch):
    recipe = Recipe(keras=keras.__name__, **SLIMMING)
    interrupt(monkeypatch, [("search", 2)])
    with pytest.raises(InterruptedError):
        run(recipe, tmp_path, verbose=0, publish=False)
    after_one = gammas(keras, tmp_path / "checkpoints" / "search-0000001.keras")
    run(recipe, tmp_path, verbose=0, publish=False)

    # A step an epoch, whose loss is that before it: the gammas are 1 first.
    first, second, _, last = rows_of(tmp_path)
    assert first["loss"] - first["cross_entropy"] == pytest.approx(0.1 * len(after_one), rel=1e-5)
    assert second["loss"] - second["cross_entropy"] == pytest.approx(0.1 * np.abs(after_one).sum(), rel=1e-5)
    assert "cross_entropy" not in last


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "mlp"}, "a network with BatchNormalization with gamma_l1. Received: network=mlp"),
        ({"search_epochs": 0}, "a search with gamma_l1. Received: search_epochs=0"),
        ({"baseline": True}, "no baseline, which would go on from that search, with gamma_l1. Received: baseline=True"),
    ],
)
def test_penalty_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**SLIMMING | fields)
