"""Runs without a search, and those whose slim network is trained with other weights than the search has left it."""

import json

import keras as keras3
import numpy as np
import pytest
import tf_keras
from helpers.runs import SMALL, interrupt, rows_of

import tfspline
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.report import table
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.runner import run
from tfspline.recipe.training import Training

SMALLER = SMALL | {"augment": "none", "validation_split": 0.0, "epochs": 2, "baseline": False, "batch_size": 256}
# All epochs are searched, and no bird comes.
UNFOUND = SMALLER | {"eb_threshold": 1e-9, "search_epochs": 2}


def fresh_network(recipe, tmp_path):
    return tfspline.unwrap(Training(recipe, RunDir(str(tmp_path / "nowhere"), {})).fresh())


@pytest.fixture
def seen(monkeypatch):
    """The networks that training phases start with, by phase."""
    fit, networks = Training.fit, {}

    def spy(training, phase, model, *arguments):
        networks[phase] = tfspline.unwrap(model)
        return fit(training, phase, model, *arguments)

    monkeypatch.setattr(Training, "fit", spy)
    return networks


@pytest.mark.parametrize(("keras", "retrain_from"), [(keras3, "initial"), (tf_keras, "random")], indirect=["keras"])
def test_slim_network_starts_anew(keras, tmp_path, monkeypatch, seen, retrain_from):
    recipe = Recipe(keras=keras.__name__, **UNFOUND | {"retrain_from": retrain_from})
    stops = [("rewind", 0), ("retrain", 1)]
    interrupt(monkeypatch, list(stops))
    for _ in stops:
        with pytest.raises(InterruptedError):
            run(recipe, tmp_path / "run", verbose=0, publish=False)
    first = seen["retrain"]
    summary = run(recipe, tmp_path / "run", verbose=0, publish=False)

    rows = rows_of(tmp_path / "run")
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        *(("search", epoch) for epoch in (1, 2)),
        *(("prune", 2), ("rewind", 0)),
        *(("retrain", epoch) for epoch in (1, 2)),
    ]
    rates = [row["learning_rate"] for row in rows if row["phase"] == "retrain"]
    assert rates == [recipe.learning_rate_at(epoch) for epoch in (0, 1)]
    assert rows[2]["difference"] < 1e-5

    # 64 -> 32 -> 32 -> 10, half of the units: 2 epochs of the one and 2 of the other, against 2 of the first.
    dense, slim = 64 * 32 + 32 * 32 + 32 * 10, 64 * 16 + 16 * 16 + 16 * 10
    assert (summary["dense"]["macs"], summary["slim"]["macs"]) == (dense, slim)
    assert summary["slim"]["training_flops"] == 3 * 2 * (2 * dense + 2 * slim) * 5 * 256
    assert summary["training_flops_reduction"] == pytest.approx(dense / (dense + slim))  # < 1: the search was too long
    assert f"trained from epoch 0 on, with {retrain_from} weights" in table(summary)
    assert summary["search_epochs"] == summary["pruned_epoch"] == 2
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert summary["slim"]["seconds"] == pytest.approx(sum(json.loads(line)["seconds"] for line in lines))

    # Channels that stay, of each layer, by hand.
    fresh = fresh_network(recipe, tmp_path)
    removed = json.loads((tmp_path / "run" / "plan.json").read_text())["removed"]
    a, b = (np.setdiff1d(np.arange(32), removed[name]) for name in ("dense1", "dense2"))
    kernel = fresh.get_layer("dense2").kernel.numpy()[np.ix_(a, b)]
    started = first.get_layer("dense2").kernel.numpy()
    assert started.shape == (16, 16)
    if retrain_from == "initial":
        np.testing.assert_array_equal(started, kernel)
    else:
        assert not np.allclose(started, kernel)
        assert np.std(started) == pytest.approx(np.sqrt(2 / 16), rel=0.15)  # He's, of the slim network; 2 / 32 before
    np.testing.assert_array_equal(first.get_layer("dense2").bias.numpy(), np.zeros(16))


def test_fresh_weights_are_the_same_again(tmp_path, monkeypatch):
    recipe, started = Recipe(**SMALLER | {"search_epochs": 0, "retrain_from": "random"}), []
    for name in ("a", "b"):
        interrupt(monkeypatch, [("retrain", 1)])
        with pytest.raises(InterruptedError):
            run(recipe, tmp_path / name, verbose=0, publish=False)
        path = tmp_path / name / "checkpoints" / "rewind-0000000.keras"
        started.append(keras3.models.load_model(path).get_weights())
    for weights, again in zip(*started, strict=True):
        np.testing.assert_array_equal(weights, again)


def test_restart_after_a_gradual_schedule(tmp_path):
    gradual = {"schedule": "polynomial", "search_epochs": None, "pruning_epochs": 1, "retrain_from": "initial"}
    recipe = Recipe(**UNFOUND | gradual)
    summary = run(recipe, tmp_path, verbose=0, publish=False)
    phases = [(row["phase"], row["epoch"]) for row in rows_of(tmp_path)]
    assert phases == [("sparsify", 1), ("prune", 1), ("rewind", 0), ("retrain", 1), ("retrain", 2)]
    dense, slim = (summary[name]["macs"] for name in ("dense", "slim"))
    assert summary["slim"]["training_flops"] == 3 * 2 * (dense + 2 * slim) * 5 * 256


def test_pruned_at_initialisation(tmp_path, monkeypatch):
    recipe = Recipe(**SMALLER | {"search_epochs": 0, "criterion": "l1", "baseline": True})
    stops = [("prune", 0), ("baseline", 1)]
    interrupt(monkeypatch, list(stops))
    for _ in stops:
        with pytest.raises(InterruptedError):
            run(recipe, tmp_path / "run", verbose=0, publish=False)
    summary = run(recipe, tmp_path / "run", verbose=0, publish=False)
    rows = [(row["phase"], row["epoch"]) for row in rows_of(tmp_path / "run")]
    assert rows == [("prune", 0), ("retrain", 1), ("retrain", 2), ("baseline", 1), ("baseline", 2)]
    dense, slim = 64 * 32 + 32 * 32 + 32 * 10, 64 * 16 + 16 * 16 + 16 * 10
    assert summary["slim"]["training_flops"] == 3 * 2 * 2 * slim * 5 * 256
    assert summary["training_flops_reduction"] == pytest.approx(dense / slim)
    assert (summary["early_bird_epoch"], summary["search_epochs"], summary["pruned_epoch"]) == (None, 0, 0)
    assert "early bird" not in table(summary) and "made small at epoch 0 of 2" in table(summary)
    fresh = fresh_network(recipe, tmp_path)
    plan = tfspline.plan(fresh, 0.5, criterion="l1")
    saved = tfspline.Plan.load(tmp_path / "run" / "plan.json", fresh)
    np.testing.assert_array_equal(plan.removed, saved.removed)


def test_budget_knows_of_the_restart():
    # 5 of 30 epochs searched, 30 / 3 = 10 allowed: 5 are left for 30 epochs.
    recipe = Recipe(epochs=30, training_flops_reduction=3.0, retrain_from="initial")
    assert recipe.slim_share(5) == pytest.approx(1 / 6)
    # Nothing searched: a third of the FLOPs.
    assert Recipe(epochs=30, training_flops_reduction=3.0, search_epochs=0).slim_share(0) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compensate": "refit"}, "compensate=none with retrain_from='initial'.* Received: compensate=refit"),
        ({"weight_pruning": True}, "weight_pruning=False with retrain_from='initial'.* Received: weight_pruning=True"),
        ({"search_epochs": 31}, "search_epochs to be from 0 to 30. Received: 31"),
        ({"schedule": "early_bird", "search_epochs": 0}, "search_epochs to be from 1 to 24. Received: 0"),
    ],
)
def test_restart_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"ratio": 0.5, "retrain_from": "initial", **fields})
