"""Runs without a search, and runs whose retraining starts with other weights than those of the search."""

import json

import keras as keras3
import numpy as np
import pytest
import tf_keras
from helpers.runs import SMALL, interrupt, phases_of, rows_of

import tfspline
from tfspline.recipe import Recipe, networks, run
from tfspline.recipe.report import table
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.training import Training

SMALLER = SMALL | {"augment": "none", "validation_split": 0.0, "epochs": 2, "baseline": False, "batch_size": 256}
# The search takes all epochs and finds no early bird.
UNFOUND = SMALLER | {"eb_threshold": 1e-9, "search_epochs": 2}


def initial_network(recipe):
    return tfspline.unwrap(networks.build(recipe, recipe.load_dataset()))


@pytest.fixture
def seen(monkeypatch):
    """The network with which each phase starts, by name of the phase."""
    fit, networks = Training.fit, {}

    def spy(training, phase, model, *arguments):
        networks[phase] = tfspline.unwrap(model)
        return fit(training, phase, model, *arguments)

    monkeypatch.setattr(Training, "fit", spy)
    return networks


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("keras", "retrain_from"), [(keras3, "initial"), (tf_keras, "random")], indirect=["keras"])
def test_retraining_starts_with_other_weights(keras, tmp_path, monkeypatch, seen, retrain_from):
    recipe = Recipe(keras=keras.__name__, **UNFOUND | {"retrain_from": retrain_from})
    stops = [("rewind", 0), ("retrain", 1)]
    interrupt(monkeypatch, list(stops))
    for _ in stops:
        with pytest.raises(InterruptedError):
            run(recipe, tmp_path / "run", verbose=0, publish=False)
    first = seen["retrain"]
    summary = run(recipe, tmp_path / "run", verbose=0, publish=False)

    rows = rows_of(tmp_path / "run")
    assert phases_of(tmp_path / "run") == [
        *(("search", epoch) for epoch in (1, 2)),
        *(("prune", 2), ("rewind", 0)),
        *(("retrain", epoch) for epoch in (1, 2)),
    ]
    rates = [row["learning_rate"] for row in rows if row["phase"] == "retrain"]
    assert rates == [recipe.learning_rate_at(epoch) for epoch in (0, 1)]
    assert rows[2]["difference"] < 1e-5

    # 64 -> 32 -> 32 -> 10, half of the units: 2 dense epochs and 2 slim ones, compared with 2 dense ones.
    dense, slim = 64 * 32 + 32 * 32 + 32 * 10, 64 * 16 + 16 * 16 + 16 * 10
    assert (summary["dense"]["macs"], summary["slim"]["macs"]) == (dense, slim)
    assert summary["slim"]["training_flops"] == 3 * 2 * (2 * dense + 2 * slim) * 5 * 256
    assert summary["training_flops_reduction"] == pytest.approx(dense / (dense + slim))  # < 1: the search was too long
    assert f"retrained from epoch 0 with {retrain_from} weights" in table(summary)
    assert "early bird: not found\npruned at epoch 2 of 2" in table(summary)
    assert summary["early_bird_epoch"] is None and "accuracy" not in summary["dense"]
    assert summary["search_epochs"] == summary["pruned_epoch"] == 2
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert summary["slim"]["seconds"] == pytest.approx(sum(json.loads(line)["seconds"] for line in lines))

    # The kept channels of each layer, by hand.
    fresh = initial_network(recipe)
    removed = json.loads((tmp_path / "run" / "plan.json").read_text())["removed"]
    a, b = (np.setdiff1d(np.arange(32), removed[name]) for name in ("dense1", "dense2"))
    kernel = fresh.get_layer("dense2").kernel.numpy()[np.ix_(a, b)]
    started = first.get_layer("dense2").kernel.numpy()
    assert started.shape == (16, 16)
    if retrain_from == "initial":
        np.testing.assert_array_equal(started, kernel)
    else:
        assert not np.allclose(started, kernel)
        assert np.std(started) == pytest.approx(np.sqrt(2 / 16), rel=0.15)  # 2 / fan-in (He)
    np.testing.assert_array_equal(first.get_layer("dense2").bias.numpy(), np.zeros(16))


def test_random_weights_are_reproducible(tmp_path, monkeypatch):
    recipe, started = Recipe(**SMALLER | {"search_epochs": 0, "retrain_from": "random"}), []
    for name in ("a", "b"):
        interrupt(monkeypatch, [("retrain", 1)])
        with pytest.raises(InterruptedError):
            run(recipe, tmp_path / name, verbose=0, publish=False)
        model = RunDir.of(tmp_path / name).read("rewind", ".keras", keras3.models.load_model)
        started.append(model.get_weights())
    for weights, again in zip(*started, strict=True):
        np.testing.assert_array_equal(weights, again)


def test_restart_after_a_gradual_schedule(tmp_path):
    gradual = {"schedule": "polynomial", "search_epochs": None, "pruning_epochs": 1, "retrain_from": "initial"}
    recipe = Recipe(**UNFOUND | gradual)
    summary = run(recipe, tmp_path, verbose=0, publish=False)
    assert phases_of(tmp_path) == [("sparsify", 1), ("prune", 1), ("rewind", 0), ("retrain", 1), ("retrain", 2)]
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
    retrained, baseline = ([(phase, epoch) for epoch in (1, 2)] for phase in ("retrain", "baseline"))
    assert phases_of(tmp_path / "run") == [("prune", 0), *retrained, *baseline]
    dense, slim = 64 * 32 + 32 * 32 + 32 * 10, 64 * 16 + 16 * 16 + 16 * 10
    assert summary["slim"]["training_flops"] == 3 * 2 * 2 * slim * 5 * 256
    assert summary["training_flops_reduction"] == pytest.approx(dense / slim)
    assert (summary["early_bird_epoch"], summary["search_epochs"], summary["pruned_epoch"]) == (None, 0, 0)
    assert "early bird" not in table(summary) and "pruned at epoch 0 of 2" in table(summary)
    fresh = initial_network(recipe)
    plan = tfspline.plan(fresh, 0.5, criterion="l1")
    saved = tfspline.Plan.load(tmp_path / "run" / "plan.json", fresh)
    np.testing.assert_array_equal(plan.removed, saved.removed)
