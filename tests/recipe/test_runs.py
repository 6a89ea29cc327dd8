"""Whole runs: what they write, and how their phases fit together."""

import json

import keras as keras3
import numpy as np
import pytest
import tf_keras
from helpers.runs import SMALL, interrupt, phases_of, rows_of

import tfspline
import tfspline.recipe.phases
import tfspline.recipe.training
from tfspline import datasets as data
from tfspline.recipe import Recipe, run
from tfspline.recipe.recording import Recorder
from tfspline.recipe.report import table

TOY = {
    "network": "mlp",
    "width": 1 / 32,
    "dataset": "toy2d",
    "epochs": 5,
    "search_epochs": 3,
    "eb_threshold": 1e-9,
    "batch_size": 128,
    "ratio": 0.5,
    "baseline": True,
    "weight_pruning": True,
}


def test_whole_run_writes_all_documented_files(keras, finished_run):
    folder = finished_run(keras.__name__)
    pictures = ("accuracy", "distances", "layer_distances", "partition", "training", "units")
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == sorted(
        ["checkpoints", "dense.keras", "flags.cfg", "history.jsonl", "logs", "plan.json", "serving", "slim.keras"]
        + ["distances.npz", "report.html", "summary.json", *(f"{name}.png" for name in pictures)]
    )
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        *(f"codes-000{epoch}.npz" for epoch in range(1, 7)),
        "search-0000030.zip",
    ]
    assert (folder / "report.html").read_text(encoding="utf-8").count("<img") == 6
    summary = json.loads((folder / "summary.json").read_text())
    known = json.loads((folder / "serving" / "1" / "assets.extra" / "tfspline.json").read_text())
    assert known["params"] == summary["slim"]["params"] and known["dense"]["macs"] == summary["dense"]["macs"]
    assert known["metadata"]["accuracy"] == {name: summary[name]["accuracy"] for name in ("dense", "slim")}
    plan = tfspline.Plan.load(folder / "plan.json", keras.models.load_model(folder / "dense.keras"))
    assert summary["layers"] == plan.rows()


def test_history_of_a_whole_run(keras, finished_run):
    folder = finished_run(keras.__name__)
    assert phases_of(folder) == [
        *(("search", epoch) for epoch in (1, 2, 3)),
        ("prune", 3),
        *(("retrain", epoch) for epoch in (4, 5, 6)),
        *(("baseline", epoch) for epoch in (4, 5, 6)),
    ]
    rows = rows_of(folder)
    assert rows[0]["partition_distance"] is None  # nothing to compare with, and JSON has no NaN
    rates = {row["epoch"]: row["learning_rate"] for row in rows if row["phase"] == "retrain"}
    assert rates == {epoch: Recipe(**SMALL).learning_rate_at(epoch - 1) for epoch in (4, 5, 6)}


def test_summary_of_a_whole_run_by_hand(keras, finished_run):
    folder = finished_run(keras.__name__)
    summary = json.loads((folder / "summary.json").read_text())
    # 1,437 training images minus a tenth, in batches of 128 without the incomplete last one: 1,280 images per epoch.
    assert summary["dense"]["macs"] == 64 * 32 + 32 * 32 + 32 * 10
    assert summary["dense"]["training_flops"] == 3 * 2 * summary["dense"]["macs"] * 6 * 1280
    assert summary["slim"]["macs"] == 64 * 16 + 16 * 16 + 16 * 10
    spent = 3 * 2 * (3 * summary["dense"]["macs"] + 3 * summary["slim"]["macs"]) * 1280
    assert summary["slim"]["training_flops"] == spent
    assert summary["training_flops_reduction"] == pytest.approx(summary["dense"]["training_flops"] / spent)
    digits = data.load("digits", validation_split=0.1)
    x, y = digits.normalize(digits.test.images), digits.test.labels
    for name in ("dense", "slim"):
        model = keras.models.load_model(folder / f"{name}.keras")
        accuracy = np.mean(np.argmax(model(x), axis=1) == y)
        assert summary[name]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert model.count_params() == summary[name]["params"]


def test_distances_of_epochs_are_those_of_the_early_bird(finished_run):
    folder = finished_run("keras")
    with np.load(folder / "distances.npz") as distances:
        matrices = dict(distances)
    assert {name: matrix.shape for name, matrix in matrices.items()} == {"dense1_relu": (6, 6), "dense2_relu": (6, 6)}
    mean = np.mean(list(matrices.values()), axis=0)
    seen = rows_of(folder)[2]["partition_distance"]  # after epoch 3, compared with epochs 1 and 2
    assert seen == pytest.approx(max(mean[2, 0], mean[2, 1]), abs=1e-6)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("keras", "schedule", "every"),
    [
        (keras3, "polynomial", None),
        pytest.param(keras3, "early_bird", None, marks=pytest.mark.slow),
        (tf_keras, "early_bird", 2),
    ],
    indirect=["keras"],
)
def test_gradual_run(keras, tmp_path, schedule, every, capsys):
    gradual = {"schedule": schedule, "pruning_epochs": 2, "epochs": 7, "batch_size": 256, "eb_every": every}
    gradual |= {"search_epochs": 3 if schedule == "early_bird" else None, "evaluate": "validation"}
    recipe = Recipe(keras=keras.__name__, **SMALL | gradual)
    summary = run(recipe, tmp_path, verbose=2)
    assert "The masked and the slim network agree to " in capsys.readouterr().out
    searched = 3 if schedule == "early_bird" else 0
    rows = rows_of(tmp_path)
    assert phases_of(tmp_path) == [
        *(("search", epoch) for epoch in range(1, searched + 1)),
        *(("sparsify", searched + epoch) for epoch in (1, 2)),
        ("prune", searched + 2),
        *(("retrain", epoch) for epoch in range(searched + 3, 8)),
        *(("baseline", epoch) for epoch in range(searched + 1, 8)),
    ]
    assert 0 < rows[searched]["pruning_sparsity"] < rows[searched + 1]["pruning_sparsity"] == 0.5
    assert summary["early_bird_epoch"] == (searched or None) and summary["pruned_epoch"] == searched + 2
    # An epoch has 5 steps. Two epochs and one test, after 12 steps, are enough to see that nothing moves.
    assert summary["early_bird_step"] == (12 if every else 5 * searched or None)
    assert summary["slim"]["macs"] == 64 * 16 + 16 * 16 + 16 * 10  # half of 32 and 32
    spent = (searched + 2) * summary["dense"]["macs"] + (5 - searched) * summary["slim"]["macs"]
    assert summary["training_flops_reduction"] == pytest.approx(7 * summary["dense"]["macs"] / spent)
    assert 0 <= summary["masked_slim_difference"] < 1e-5
    plan = tfspline.Plan.load(tmp_path / "plan.json", keras.models.load_model(tmp_path / "dense.keras"))
    assert plan.cost()["macs"] == (summary["dense"]["macs"], summary["slim"]["macs"])
    last = {row["phase"]: row for row in rows}
    for network, phase in {"slim": "retrain", "dense": "baseline"}.items():
        assert summary[network]["accuracy"] == pytest.approx(last[phase]["val_accuracy"])
        assert summary[network]["loss"] == pytest.approx(last[phase]["val_loss"], rel=1e-4)
    assert "\nvalidation accuracy " in table(summary) and "test" not in table(summary)


@pytest.mark.parametrize("keras", [keras3, pytest.param(tf_keras, marks=pytest.mark.slow)], indirect=True)
def test_run_with_weight_pruning_continues_after_interruptions(keras, tmp_path, monkeypatch):
    recipe = Recipe(keras=keras.__name__, **TOY)
    stops = [("prune_weights", 3), ("retrain_weights", 4), ("baseline", 4)]
    interrupt(monkeypatch, stops)
    monkeypatch.setattr(tfspline.recipe.training, "_CODES_SIZE", 20)  # bytes: 10 images, one byte in each of two layers
    for _ in range(len(stops)):
        with pytest.raises(InterruptedError):
            run(recipe, tmp_path, verbose=0)
    summary = run(recipe, tmp_path, verbose=0)

    # 2 -> 4 -> 4 -> 2, half of the units: 2 -> 2 -> 2 -> 2.
    assert (summary["dense"]["params"], summary["slim"]["params"]) == (12 + 20 + 10, 6 + 6 + 6)
    assert summary["weights_pruned"]["params"] == 18
    assert summary["weights_pruned"]["training_flops"] == summary["dense"]["training_flops"]
    weights = keras.models.load_model(tmp_path / "weights_pruned.keras").get_weights()
    assert sum(int((kernel == 0).sum()) for kernel in weights if kernel.ndim == 2) == 42 - 18
    assert phases_of(tmp_path)[6:9] == [("prune_weights", 3), ("retrain_weights", 4), ("retrain_weights", 5)]
    with np.load(tmp_path / "distances.npz") as distances:
        counts = distances["dense1_relu"] * 10 * 4  # images, units
        assert counts.shape == (5, 5) and counts.any()
        np.testing.assert_allclose(counts, counts.round(), atol=1e-5)
    assert "weights pruned" in table(summary)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("keras", "every"), [(keras3, None), (tf_keras, 4)], indirect=["keras"])
def test_baseline_is_a_dense_training_without_a_search(keras, tmp_path, finished_run, every):
    searched = finished_run(keras.__name__)
    if every:
        searched = tmp_path / "searched"
        run(Recipe(keras=keras.__name__, **SMALL | {"eb_every": every}), searched, verbose=0, publish=False)
    # A search of all epochs but one that finds no early bird is the other way to train dense to the end.
    other = Recipe(keras=keras.__name__, **SMALL | {"search_epochs": 5, "eb_threshold": 1e-9})
    run(other, tmp_path / "straight", verbose=0, publish=False)
    models = [keras.models.load_model(folder / "dense.keras") for folder in (searched, tmp_path / "straight")]
    for weights, straight in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(weights, straight, rtol=1e-6, atol=1e-6)


def test_search_that_ends_within_an_epoch(tmp_path):
    # 10 steps per epoch; after 24 steps, the first test, at step 4, is two epochs old.
    budget = {"ratio": None, "training_flops_reduction": 1.4, "width": 1.0, "baseline": False}
    summary = run(Recipe(**SMALL | budget | {"eb_every": 4}), tmp_path, verbose=0, publish=False)
    steps = [(row["phase"], row["epoch"], row["steps"]) for row in rows_of(tmp_path)]
    assert steps == [
        *(("search", 1, 10), ("search", 2, 20), ("search", 3, 24), ("prune", 3, 24)),
        *(("retrain", 3, 30), ("retrain", 4, 40), ("retrain", 5, 50), ("retrain", 6, 60)),
    ]
    assert summary["early_bird_epoch"] == 3
    assert summary["early_bird_step"] == summary["pruned_step"] == 24
    dense, slim = summary["dense"]["macs"], summary["slim"]["macs"]
    assert summary["slim"]["training_flops"] == 6 * 128 * (24 * dense + 36 * slim)
    assert 1.4 <= summary["training_flops_reduction"] < 1.45
    assert "early bird: at epoch 2.4 of 6\npruned at epoch 2.4 of 6" in table(summary)


def test_compensation_lowers_the_loss_at_the_start_of_the_retraining(tmp_path, monkeypatch, finished_run):
    loss = {}
    for compensate in ("none", "refit"):
        options = {"criterion": "spline_affine", "compensate": compensate, "baseline": False}
        interrupt(monkeypatch, [("retrain", 5)])
        with pytest.raises(InterruptedError):
            run(Recipe(**SMALL | options), tmp_path / compensate, 0, search_dir=finished_run("keras"), publish=False)
        loss[compensate] = rows_of(tmp_path / compensate)[-1]["loss"]
    assert loss["refit"] < loss["none"]


@pytest.mark.parametrize(
    "fields", [{"criterion": "taylor", "search_epochs": 1}, {"criterion": "snip", "schedule": "polynomial"}]
)
def test_criterion_gets_labels_and_the_loss(tmp_path, fields):
    options = {"baseline": False, "weight_pruning": False, "search_epochs": None, "epochs": 2}
    summary = run(Recipe(**TOY | options | fields), tmp_path / "run", verbose=0, publish=False)
    assert summary["criterion"] == fields["criterion"] and summary["ratio"] >= 0.4


def test_slim_network_that_differs_from_the_masked_one_is_refused(tmp_path, monkeypatch, finished_run):
    monkeypatch.setattr(tfspline.recipe.phases, "difference", lambda *models: 0.01)
    with pytest.raises(ValueError, match="masked and the slim network differ by 1.0e-02"):
        run(Recipe(**SMALL), tmp_path, verbose=0, search_dir=finished_run("keras"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": "crop"}, r"`augment` among \('none',\). Received: 'crop'"),
        ({"network": "resnet8"}, r"input_shape.* Received: \(2,\)"),
    ],
)
def test_recipe_for_images_is_refused_for_points(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        run(Recipe(**TOY | fields), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": 0.5, "eb_every": 11}, "eb_every to be at most the 10 steps of an epoch. Received: 11"),
        ({"max_flops": 0.001}, "max_flops"),
        (
            {"training_flops_reduction": 1.99, "epochs": 4, "search_epochs": 2},
            "training_flops_reduction=1.99 cannot be met after a search of 2 epochs.* 0.005",
        ),
        ({"ratio": 0.5, "min_units": 1000}, "No unit of network='mlp' .* ratio=0.5, min_units=1000"),
        ({"ratio": 0.001}, "No unit of network='mlp' .* ratio=0.001"),
    ],
)
def test_recipe_that_cannot_succeed_is_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        run(Recipe(**SMALL | {"ratio": None, "weight_pruning": False} | fields), tmp_path / "run", verbose=0)
    assert not list(tmp_path.iterdir())


def test_loss_that_is_not_finite_ends_the_run_at_its_step(keras, tmp_path):
    # The first step makes weights of about 1e20, which give the loss of the second one; an epoch has ten steps.
    with pytest.raises(ValueError, match=r"loss is (nan|inf) after step 2 \(search, epoch 1\). Try .*learning_rate"):
        run(Recipe(keras=keras.__name__, **SMALL | {"learning_rate": 1e20}), tmp_path, verbose=0)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("keras", [keras3, pytest.param(tf_keras, marks=pytest.mark.slow)], indirect=True)
def test_weights_that_are_not_finite_are_not_recorded_and_dead_layers_are_reported(
    keras, tmp_path, monkeypatch, finished_run
):
    recipe, broken = Recipe(keras=keras.__name__, **SMALL | {"baseline": False}), {5: np.nan, 6: -1e9}
    on_epoch_end = Recorder.on_epoch_end

    def breaking(self, epoch, logs=None):
        if self.phase == "retrain" and epoch + 1 in broken:
            self.model.get_layer("dense1").bias.assign([broken.pop(epoch + 1)] * 16)
        on_epoch_end(self, epoch, logs)

    monkeypatch.setattr(Recorder, "on_epoch_end", breaking)
    options = {"verbose": 0, "publish": False, "search_dir": finished_run(keras.__name__)}
    with pytest.raises(ValueError, match=r"Layer 'dense1' has NaN .* after step 50 \(retrain, epoch 5\)"):
        run(recipe, tmp_path, **options)
    assert phases_of(tmp_path)[-1] == ("retrain", 4)
    summary = run(recipe, tmp_path, **options)
    assert [epoch for phase, epoch in phases_of(tmp_path) if phase == "retrain"] == [4, 5, 6]
    assert (summary["dense"]["dead_layers"], summary["slim"]["dead_layers"]) == ([], ["dense1_relu"])
    assert "dead layers of the slim network, where no unit is active for any image: dense1_relu" in table(summary)
