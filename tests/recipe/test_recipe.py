"""The recipe: its checks, a whole run, and a run that is interrupted wherever it can be."""

import html
import itertools
import json
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from helpers.command import start
from helpers.runs import SMALL, interrupt, rows_of

import tfspline.recipe.runner
import tfspline.recipe.training
from tfspline import datasets as data
from tfspline.recipe import pictures
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.report import table
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.runner import run
from tfspline.recipe.training import Training

ROOT = pathlib.Path(__file__).parents[2]


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


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take longer than a small training; most tests do not look at them."""
    monkeypatch.setattr(pictures, "draw", lambda *arguments: None)


class TestBudget:
    def test_share_by_hand(self):
        # 5 of 30 epochs searched; 30 / 3 = 10 dense epochs' worth allowed: 5 are left for 25 epochs.
        assert Recipe(epochs=30, training_flops_reduction=3.0).slim_share(5) == pytest.approx(0.2)

    def test_share_reaches_the_reduction(self):
        recipe = Recipe(epochs=160, training_flops_reduction=3.5)
        spent = 13 + recipe.slim_share(13) * (160 - 13)
        assert 160 / spent == pytest.approx(3.5)

    def test_other_budgets(self):
        assert Recipe(max_flops=0.25).slim_share(5) == 0.25
        assert Recipe(ratio=0.7).slim_share(5) is None

    def test_search_that_eats_the_budget_up_is_refused(self):
        with pytest.raises(ValueError, match=r"30 / 5 = 6.00 epochs.*Received: a search of up to 6 epochs"):
            Recipe(epochs=30, search_epochs=6, training_flops_reduction=5.0)

    @pytest.mark.parametrize(
        "budget", [{}, {"ratio": 0.5, "max_flops": 0.5}, {"ratio": 0.5, "training_flops_reduction": 3.0}]
    )
    def test_one_budget_exactly(self, budget):
        with pytest.raises(ValueError, match="exactly one of ratio, max_flops, training_flops_reduction. Received"):
            Recipe(**budget)


class TestSchedule:
    def test_cosine(self):
        recipe = Recipe(ratio=0.5, epochs=10, learning_rate=0.2)
        assert recipe.learning_rate_at(0) == pytest.approx(0.2)
        assert recipe.learning_rate_at(5) == pytest.approx(0.1)
        assert 0 < recipe.learning_rate_at(9) < 0.01

    def test_drops_come_after_that_many_epochs(self):
        recipe = Recipe(ratio=0.5, epochs=160, lr_schedule="step", lr_drops=(80, 120))
        rates = [recipe.learning_rate_at(epoch) for epoch in (0, 79, 80, 119, 120, 159)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])

    def test_search_is_a_fifth_but_long_enough_to_compare(self):
        assert Recipe(ratio=0.5, epochs=31).search_limit == 7
        assert Recipe(ratio=0.5, epochs=10).search_limit == 4
        assert Recipe(ratio=0.5, epochs=2).search_limit == 1
        assert Recipe(ratio=0.5, epochs=10, search_epochs=2).search_limit == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("network", "resnet21", "`network` among"),
        ("width", 0.0, "positive width"),
        ("keras", "torch", "'keras' or 'tf_keras'"),
        ("augment", "cutout", "augment to be one of none, crop, crop_flip"),
        ("lr_schedule", "linear", "lr_schedule to be one of cosine, step"),
        ("criterion", "magic", "`criterion` among"),
        ("scope", "block", "scope to be one of layer, global"),
        ("compensate", "auto", "compensate to be one of none, merge, refit"),
        ("eb_metric", "loss", "`metric` among"),
        ("eb_threshold", 1.5, r"`threshold` in \(0, 1\)"),
        ("eb_lookback", 0, "lookback"),
        ("eb_every", 0, "Expected `every` to be an integer of at least 1"),
        ("epochs", 1, "epochs to be at least 2"),
        ("search_epochs", -1, "search_epochs to be from 0 to 29, which leaves"),
        ("search_epochs", 30, "search_epochs to be from 0 to 29, which leaves"),
        ("retrain_from", "scratch", "retrain_from to be one of trained, initial, random"),
        ("batch_size", 0, "batch_size to be at least 1"),
        ("learning_rate", 0.0, "learning_rate to be positive"),
        ("learning_rate", float("nan"), "learning_rate to be positive"),
        ("momentum", 1.0, "momentum to be in"),
        ("weight_decay", -0.1, "weight_decay to be 0 or more"),
        ("gamma_l1", -1e-4, "gamma_l1 to be 0 or more"),
        ("gamma_l1", float("inf"), "gamma_l1 to be 0 or more"),
        ("strategy", "parameter_server", "strategy to be one of none, mirrored"),
        ("lr_drop_factor", 1.0, "lr_drop_factor to be in"),
        ("lr_drops", (80,), "no lr_drops with lr_schedule='cosine'"),
        ("schedule", "cubic", "schedule to be one of one_shot, polynomial, early_bird"),
        ("pruning_epochs", 3, "no pruning_epochs with schedule='one_shot'"),
        ("min_units", 0, "min_units to be at least 1"),
        ("ratio", 1.0, "ratio"),
        ("ratio", 0.0, "ratio"),
    ],
)
def test_bad_field_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"ratio": 0.5, field: value})


@pytest.mark.usefixtures("undrawn")
def test_a_compensated_network_starts_its_retraining_ahead(tmp_path):
    loss = {}
    for compensate in ("none", "refit"):
        options = {"criterion": "spline_affine", "compensate": compensate, "baseline": False}
        run(Recipe(**SMALL | options), tmp_path / compensate, verbose=0)
        loss[compensate] = next(row["loss"] for row in rows_of(tmp_path / compensate) if row["phase"] == "retrain")
    assert loss["refit"] < loss["none"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "fields", [{"criterion": "taylor"}, {"criterion": "snip", "schedule": "polynomial", "search_epochs": None}]
)
def test_a_criterion_gets_labels_and_the_loss(tmp_path, fields):
    options = {"baseline": False, "weight_pruning": False}
    summary = run(Recipe(**TOY | options | fields), tmp_path / "run", verbose=0)
    assert summary["criterion"] == fields["criterion"] and summary["ratio"] >= 0.4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "polynomial", "pruning_epochs": 30}, "pruning_epochs to be from 1 to 29"),
        ({"schedule": "early_bird", "pruning_epochs": 29}, "pruning_epochs to be from 1 to 28"),
        ({"schedule": "early_bird", "search_epochs": 24}, "search_epochs to be from 1 to 23"),
        ({"schedule": "polynomial", "search_epochs": 3}, "search_epochs to be left out with that schedule"),
        ({"schedule": "early_bird", "compensate": "refit"}, "nothing to compensate.* Received: compensate=refit"),
        ({"schedule": "polynomial", "weight_pruning": True}, "or compare with.* Received: weight_pruning=True"),
        ({"schedule": "polynomial", "ratio": None, "max_flops": 0.5}, "Expected a ratio.* Received: max_flops=0.5"),
    ],
)
def test_gradual_schedule_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"ratio": 0.5, **fields})


def test_bn_scale_needs_batch_norm():
    with pytest.raises(ValueError, match="BatchNormalization with criterion='bn_scale'. Received: network=mlp"):
        Recipe(network="mlp", ratio=0.5, criterion="bn_scale")


def test_gradual_schedule_by_hand():
    # A fifth of 31 epochs each. 7 x 9 steps: at every third of them, for 63 // 20 = 3.
    recipe = Recipe(ratio=0.5, epochs=31, schedule="early_bird")
    assert (recipe.search_limit, recipe.pruning_limit) == (7, 7)
    schedule = recipe.pruning(steps=9).schedule
    assert [step for step in range(70) if schedule(step)[0]] == list(range(0, 64, 3))
    assert [round(float(schedule(step)[1]), 4) for step in (0, 21, 63)] == [0.0, 0.3519, 0.5]  # 0.5 (1 - (2/3)^3)
    assert Recipe(ratio=0.5, epochs=31, schedule="polynomial").search_limit == 0
    assert Recipe(ratio=0.5, epochs=4, schedule="early_bird").search_limit == 2


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("schedule", "every"), [("polynomial", None), ("early_bird", None), ("early_bird", 2)])
def test_gradual_run(keras, tmp_path, schedule, every, capsys):
    gradual = {"schedule": schedule, "pruning_epochs": 2, "epochs": 7, "batch_size": 256, "eb_every": every}
    gradual["search_epochs"] = 3 if schedule == "early_bird" else None
    recipe = Recipe(keras=keras.__name__, **SMALL | gradual)
    summary = run(recipe, tmp_path, verbose=2)
    assert "masked and slim network: the same function, to " in capsys.readouterr().out
    searched = 3 if schedule == "early_bird" else 0
    rows = rows_of(tmp_path)
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        *(("search", epoch) for epoch in range(1, searched + 1)),
        *(("sparsify", searched + epoch) for epoch in (1, 2)),
        ("prune", searched + 2),
        *(("retrain", epoch) for epoch in range(searched + 3, 8)),
        *(("baseline", epoch) for epoch in range(searched + 1, 8)),
    ]
    assert 0 < rows[searched]["pruning_sparsity"] < rows[searched + 1]["pruning_sparsity"] == 0.5
    assert summary["early_bird_epoch"] == (searched or None) and summary["pruned_epoch"] == searched + 2
    # An epoch has 5 steps; two of them and a look, after 12 steps, are enough to see that nothing moves.
    assert summary["early_bird_step"] == (12 if every else 5 * searched or None)
    assert summary["slim"]["macs"] == 64 * 16 + 16 * 16 + 16 * 10  # half of 32 and 32
    spent = (searched + 2) * summary["dense"]["macs"] + (5 - searched) * summary["slim"]["macs"]
    assert summary["training_flops_reduction"] == pytest.approx(7 * summary["dense"]["macs"] / spent)
    assert 0 <= summary["masked_slim_difference"] < 1e-5
    plan = tfspline.Plan.load(tmp_path / "plan.json", keras.models.load_model(tmp_path / "dense.keras"))
    assert plan.cost()["macs"] == (summary["dense"]["macs"], summary["slim"]["macs"])


def test_slim_network_that_does_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tfspline.runner, "difference", lambda *models: 0.01)
    with pytest.raises(ValueError, match="slim network to do what the masked one does. Received: .* by 1.0e-02"):
        run(Recipe(**SMALL), tmp_path, verbose=0)


@pytest.mark.usefixtures("undrawn")
def test_accuracies_of_validation_images(tmp_path):
    recipe = Recipe(**SMALL | {"evaluate": "validation", "epochs": 5, "search_epochs": 1})
    summary = run(recipe, tmp_path, verbose=0)
    last = {row["phase"]: row for row in rows_of(tmp_path)}
    for network, phase in {"slim": "retrain", "dense": "baseline"}.items():
        assert summary[network]["accuracy"] == pytest.approx(last[phase]["val_accuracy"])
        assert summary[network]["loss"] == pytest.approx(last[phase]["val_loss"], rel=1e-4)
    assert "\nvalidation accuracy " in table(summary) and "test" not in table(summary)


def test_validation_images_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="Expected evaluate to be one of test. Received: 'validation'"):
        Recipe(ratio=0.5, evaluate="validation")


@pytest.mark.parametrize("budget", [{"max_flops": 1.0}, {"max_flops": 0.0}, {"training_flops_reduction": 1.0}])
def test_bad_budget_is_refused(budget):
    with pytest.raises(ValueError, match=f"Expected {next(iter(budget))} to be"):
        Recipe(**budget)


@pytest.mark.parametrize("drops", [(20, 10), (10, 10), (0,)])
def test_bad_drops_are_refused(drops):
    with pytest.raises(ValueError, match="lr_drops to be rising epochs, from 1. Received"):
        Recipe(ratio=0.5, lr_schedule="step", lr_drops=drops)


def test_whole_run_leaves_what_it_promises(keras, tmp_path):
    recipe = Recipe(keras=keras.__name__, **SMALL)
    summary = run(recipe, tmp_path, verbose=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            ".lock",
            "SHA256SUMS",
            "checkpoints",
            "dense.keras",
            "flags.cfg",
            "history.jsonl",
            "logs",
            "plan.json",
            "serving",
            "slim.keras",
        ]
        + ["distances.npz", "report.html", "summary.json"]
        + [f"{name}.png" for name in ("accuracy", "distances", "layer_distances", "partition", "training", "units")]
    )
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<img") == 6
    known = json.loads((tmp_path / "serving" / "1" / "assets.extra" / "tfspline.json").read_text())
    assert known["params"] == summary["slim"]["params"] and known["dense"]["macs"] == summary["dense"]["macs"]
    assert known["metadata"]["accuracy"] == {name: summary[name]["accuracy"] for name in ("dense", "slim")}
    with np.load(tmp_path / "distances.npz") as distances:
        assert {name: matrix.shape for name, matrix in distances.items()} == {
            "dense1_relu": (6, 6),
            "dense2_relu": (6, 6),
        }
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    rows = rows_of(tmp_path)
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        *(("search", epoch) for epoch in (1, 2, 3)),
        ("prune", 3),
        *(("retrain", epoch) for epoch in (4, 5, 6)),
        *(("baseline", epoch) for epoch in (4, 5, 6)),
    ]
    assert rows[0]["partition_distance"] is None  # nothing to compare with, and JSON has no NaN
    rates = {row["epoch"]: row["learning_rate"] for row in rows if row["phase"] == "retrain"}
    assert rates == {epoch: recipe.learning_rate_at(epoch - 1) for epoch in (4, 5, 6)}

    # 1,437 training images less a tenth, in batches of 128, the last one dropped: 10 x 128 images an epoch.
    assert summary["dense"]["macs"] == 64 * 32 + 32 * 32 + 32 * 10
    assert summary["dense"]["training_flops"] == 3 * 2 * summary["dense"]["macs"] * 6 * 1280
    assert summary["slim"]["macs"] == 64 * 16 + 16 * 16 + 16 * 10
    spent = 3 * 2 * (3 * summary["dense"]["macs"] + 3 * summary["slim"]["macs"]) * 1280
    assert summary["slim"]["training_flops"] == spent
    assert summary["training_flops_reduction"] == pytest.approx(summary["dense"]["training_flops"] / spent)

    plan = tfspline.Plan.load(tmp_path / "plan.json", keras.models.load_model(tmp_path / "dense.keras"))
    assert summary["layers"] == plan.rows()

    digits = data.load("digits", validation_split=0.1)
    x, y = digits.normalize(digits.test.images), digits.test.labels
    for name in ("dense", "slim"):
        model = keras.models.load_model(tmp_path / f"{name}.keras")
        accuracy = np.mean(np.argmax(model(x), axis=1) == y)
        assert summary[name]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert model.count_params() == summary[name]["params"]


def test_toy_with_weights_pruned(keras, tmp_path, monkeypatch):
    recipe = Recipe(keras=keras.__name__, **TOY)
    stops = [("prune_weights", 3), ("retrain_weights", 4), ("baseline", 4)]
    interrupt(monkeypatch, stops)
    monkeypatch.setattr(tfspline.training, "_CODES_SIZE", 20)  # bytes: 10 images with a byte in each of two layers
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
    rows = [(row["phase"], row["epoch"]) for row in rows_of(tmp_path)]
    assert rows[6:9] == [("prune_weights", 3), ("retrain_weights", 4), ("retrain_weights", 5)]
    with np.load(tmp_path / "distances.npz") as distances:
        counts = distances["dense1_relu"] * 10 * 4  # images, units
        assert counts.shape == (5, 5) and counts.any()
        np.testing.assert_allclose(counts, counts.round(), atol=1e-5)
    assert "weights pruned" in table(summary)


def test_distances_are_those_of_the_early_bird(tmp_path):
    recipe = Recipe(**TOY | {"baseline": False, "weight_pruning": False, "eb_lookback": 1})
    run(recipe, tmp_path, verbose=0)
    with np.load(tmp_path / "distances.npz") as distances:
        mean = np.mean(list(distances.values()), axis=0)
    seen = [row["partition_distance"] for row in rows_of(tmp_path) if row["phase"] == "search"]
    assert seen == [None, *(pytest.approx(distance, abs=1e-6) for distance in np.diagonal(mean, 1))]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": "crop"}, r"`augment` among \('none',\). Received: 'crop'"),
        ({"network": "resnet8"}, r"input_shape=\(height, width, channels\) of .* Received: \(2,\)"),
    ],
)
def test_recipe_for_images_is_refused_for_points(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        run(Recipe(**TOY | fields), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("every", [None, 4])
def test_baseline_is_a_dense_training_without_a_search(keras, tmp_path, every):
    recipe = Recipe(keras=keras.__name__, **SMALL | {"eb_every": every})
    run(recipe, tmp_path / "searched", verbose=0)
    # A bird that cannot be found, and a search of all but one epoch: the other way to train dense to the end.
    other = Recipe(keras=keras.__name__, **SMALL | {"search_epochs": 5, "eb_threshold": 1e-9})
    run(other, tmp_path / "straight", verbose=0)
    models = [keras.models.load_model(tmp_path / name / "dense.keras") for name in ("searched", "straight")]
    for weights, straight in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(weights, straight, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_search_that_ends_inside_an_epoch(tmp_path):
    # 10 steps an epoch; after 24 the first look, at 4, is two epochs old.
    budget = {"ratio": None, "training_flops_reduction": 1.4, "width": 1.0, "baseline": False}
    summary = run(Recipe(**SMALL | budget | {"eb_every": 4}), tmp_path, verbose=0)
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
    assert "early bird: at epoch 2.4 of 6\nmade small at epoch 2.4 of 6" in table(summary)


def test_looks_more_than_an_epoch_apart_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="eb_every to be at most the 10 steps of an epoch. Received: 11"):
        run(Recipe(**SMALL | {"eb_every": 11}), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_flops": 0.001}, "max_flops=0.001 cannot be met"),
        (
            {"training_flops_reduction": 1.99, "epochs": 4, "search_epochs": 2},
            "Expected a training_flops_reduction that can be met after a search of 2 epochs. Received: 1.99, .*=0.005",
        ),
        (
            {"ratio": 0.5, "min_units": 1000},
            "budget by which units go. Received, of 'mlp', .* ratio=0.5, min_units=1000",
        ),
        ({"ratio": 0.001}, "budget by which units go. Received, of 'mlp', .* ratio=0.001"),
    ],
)
def test_budget_that_cannot_be_met_is_refused_before_the_search(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        run(Recipe(**SMALL | {"ratio": None, "weight_pruning": False} | fields), tmp_path / "run", verbose=0)
    assert not list(tmp_path.iterdir())


def test_bird_that_never_came_is_null(tmp_path):
    summary = run(Recipe(**SMALL | {"eb_threshold": 1e-9, "baseline": False}), tmp_path, verbose=0)
    assert summary["early_bird_epoch"] is None
    assert summary["search_epochs"] == 4
    assert "accuracy" not in summary["dense"]
    assert "early bird: not found\nmade small at epoch 4 of 6" in table(summary)


@pytest.mark.usefixtures("undrawn")
def test_training_flops_reduction_is_kept(tmp_path):
    budget = {"ratio": None, "training_flops_reduction": 1.4, "baseline": False, "width": 1.0}
    summary = run(Recipe(**SMALL | budget), tmp_path, verbose=0)
    assert 1.4 <= summary["training_flops_reduction"] < 1.45


def test_weight_decay_is_that_of_papers_and_spares_what_is_no_kernel(keras, tmp_path):
    recipe = Recipe(keras=keras.__name__, ratio=0.5, network="mlp", weight_decay=1e-3, momentum=0.9)
    training = Training(recipe, RunDir(str(tmp_path), {}))
    model = tfspline.models.build("mlp", (8, 8, 1), 10, keras=keras.__name__)
    model.get_layer("head").bias.assign(np.ones(10))
    training.compile(model)
    before = model.get_layer("head").get_weights()
    zeros = [np.zeros(variable.shape, "float32") for variable in model.trainable_variables]
    model.optimizer.build(model.trainable_variables)
    model.optimizer.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_allclose(kernel, before[0] * (1 - 0.1 * 1e-3 / (1 - 0.9)), rtol=1e-6)
    np.testing.assert_array_equal(bias, before[1])


def test_loss_that_is_no_number_is_refused_at_its_step(keras, tmp_path):
    # The first step makes weights of 1e20 or so, of which the second one makes a loss; ten steps are an epoch.
    message = (
        "a loss that stays finite. Received: (nan|inf) after step 2, in epoch 1 of the search; try a smaller learn"
    )
    with pytest.raises(ValueError, match=message):
        run(Recipe(keras=keras.__name__, **SMALL | {"learning_rate": 1e20}), tmp_path, verbose=0)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.usefixtures("undrawn")
def test_network_that_breaks_leaves_the_checkpoint_before_and_a_dead_one_is_told(keras, tmp_path, monkeypatch):
    recipe, broken = Recipe(keras=keras.__name__, **SMALL | {"baseline": False}), {5: np.nan, 6: -1e9}
    record = tfspline.recipe.training._Record
    on_epoch_end = record.on_epoch_end

    def breaking(self, epoch, logs=None):
        if self.phase == "retrain" and epoch + 1 in broken:
            self.model.get_layer("dense1").bias.assign([broken.pop(epoch + 1)] * 16)
        on_epoch_end(self, epoch, logs)

    monkeypatch.setattr(record, "on_epoch_end", breaking)
    message = (
        "weights that stay finite. Received: others in layer 'dense1' after step 50, in epoch 5 of the retrain; try"
    )
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path, verbose=0, publish=False)
    assert (rows_of(tmp_path)[-1]["phase"], rows_of(tmp_path)[-1]["epoch"]) == ("retrain", 4)
    summary = run(recipe, tmp_path, verbose=0, publish=False)
    assert [row["epoch"] for row in rows_of(tmp_path) if row["phase"] == "retrain"] == [4, 5, 6]
    assert (summary["dense"]["dead_layers"], summary["slim"]["dead_layers"]) == ([], ["dense1_relu"])
    assert "dead layers of the slim network, where no unit is on for any image: dense1_relu" in table(summary)


def test_checkpoint_with_code_in_it_is_not_loaded(keras, tmp_path):
    target, path = tmp_path / "executed", tmp_path / "model.keras"
    code = eval(f"lambda x: open({str(target)!r}, 'w').close() or x")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(code, (2,))])
    target.unlink(missing_ok=True)
    left = SimpleNamespace(last_epoch=lambda phase: 1, checkpoint=lambda phase: str(path))
    training = Training(Recipe(keras=keras.__name__, **SMALL), left)

    def refused(reason):
        with pytest.raises(ValueError, match=f"no code in it. Received: '{path}' .*{reason}"):
            training.load("search")
        assert not target.exists()

    model.save(path)
    refused("Lambda")
    path.write_bytes(path.read_bytes()[:-30])
    refused("it is no zip archive")
    model.save(tmp_path / "model.h5")  # of which tf_keras would run the code, whatever the ending
    (tmp_path / "model.h5").rename(path)
    refused("it is no zip archive")


class TestRunDir:
    def test_other_flags_are_refused(self, tmp_path):
        RunDir(str(tmp_path), {"epochs": "3", "ratio": "0.5"}).start()
        with pytest.raises(ValueError, match="--epochs=3 --ratio=0.5. Received: --epochs=4 no --ratio"):
            RunDir(str(tmp_path), {"epochs": "4"})

    def test_file_is_refused(self, tmp_path):
        (tmp_path / "run").touch()
        with pytest.raises(NotADirectoryError, match="which is a file"):
            RunDir(str(tmp_path / "run"), {})

    def test_folder_of_somebody_else_is_refused(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(FileExistsError, match="which holds other files"):
            RunDir(str(tmp_path), {})

    def test_keeps_the_last_checkpoints_of_each_phase(self, tmp_path):
        folder = RunDir(str(tmp_path), {})
        folder.start()
        for phase, epoch in [("search", 8), ("search", 9), ("search", 10), ("prune", 10)]:
            row = {"phase": phase, "epoch": epoch, "steps": 5 * epoch, "seconds": 0.5}
            folder.record(row, {ending: lambda path: pathlib.Path(path).touch() for ending in (".keras", ".npz")})
        assert sorted({path.name.split(".")[0] for path in (tmp_path / "checkpoints").iterdir()}) == [
            *("prune-0000050", "search-0000045", "search-0000050"),  # and one more, should the last be damaged
        ]
        again = RunDir(str(tmp_path), {})
        assert again.history == folder.history
        assert (again.last_epoch("search"), again.last_epoch("retrain")) == (10, None)
        assert (again.last_step("search"), again.last_step("retrain")) == (50, 0)
        assert again.seconds("search", "prune") == 2


def small_flagfile(folder):
    lines = [f"--{name}={value}" for name, value in Recipe(**SMALL | {"baseline": False}).as_flags().items()]
    (folder / "small.cfg").write_text("\n".join(lines))
    return f"--flagfile={folder / 'small.cfg'}"


class TestTrain:
    def test_every_field_is_a_flag(self, train):
        defaults = {name: flags.FLAGS[name].default for name in Recipe.__dataclass_fields__}
        assert defaults.pop("lr_drops") == []
        assert defaults == {name: getattr(Recipe, name) for name in defaults}
        assert all(flags.FLAGS[name].help for name in defaults)

    def test_run_is_repeated_by_its_flags_and_refused_with_others(self, train, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(tmp_path)
        start(train, monkeypatch, small_flagfile(tmp_path), "--verbose=0")
        printed = capsys.readouterr().out
        assert "training FLOPs (2 x MACs)" in printed
        folder = tmp_path / "runs" / "small-0"
        before = (folder / "summary.json").stat().st_mtime_ns

        start(train, monkeypatch, f"--flagfile={folder / 'flags.cfg'}", "--run_dir=runs/small-0")
        assert capsys.readouterr().out == printed
        assert (folder / "summary.json").stat().st_mtime_ns == before

        with pytest.raises(SystemExit, match="--epochs=6. Received: --epochs=7"):
            start(train, monkeypatch, small_flagfile(tmp_path), "--epochs=7")

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("--dataset=imagenet", "`dataset` among"),
            ("--ratio=1.5", "ratio"),
            ("--batch_size=99999", "batch_size from 1 to"),
            ("--data_dir=/nowhere", "data_dir"),
            ("--image_size=a,b", "image_size to be integers. Received: a,b"),
        ],
    )
    def test_mistake_writes_nothing(self, train, monkeypatch, tmp_path, argument, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=message):
            start(train, monkeypatch, "--network=mlp", "--ratio=0.5", argument)
        assert not list(tmp_path.iterdir())

    def test_mistake_is_one_line_and_a_failure(self, tmp_path):
        command = [sys.executable, ROOT / "train.py", "--ratio=1.5"]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert ended.returncode == 1
        lines = [line for line in ended.stderr.splitlines() if line.startswith("train.py: ")]
        assert len(lines) == 1
        assert "Received: 1.5" in lines[0]
        assert "Traceback" not in ended.stderr

    @pytest.mark.usefixtures("undrawn")
    def test_spaces_and_all_kinds_of_letters_in_every_path(self, train, monkeypatch, tmp_path, keras, rng):
        folder = tmp_path / "a b ünï 猫 100% #it's {x}"
        images = folder / "im ages [1]*"
        for part, class_name, index in itertools.product(("train", "test"), ("ä cat", "猫 [2]"), range(8)):
            path = images / part / class_name / f"é {index} [3]?.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tf.io.encode_png(rng.integers(0, 256, (8, 8, 3)).astype("uint8")).numpy())
        flagfile = folder / "fl ägs [4].cfg"
        fields = {"dataset": "image_folder", "data_dir": str(images), "batch_size": 4, "baseline": False, "epochs": 3}
        recipe = Recipe(keras=keras.__name__, **SMALL | fields | {"search_epochs": 1, "validation_split": 0.25})
        flagfile.write_text("".join(f"--{name}={value}\n" for name, value in recipe.as_flags().items()), "utf-8")
        run_dir = folder / "ru n"
        start(train, monkeypatch, f"--flagfile={flagfile}", f"--run_dir={run_dir}", "--verbose=0")
        start(train, monkeypatch, f"--flagfile={run_dir / 'flags.cfg'}", f"--run_dir={run_dir}", "--verbose=0")
        assert (run_dir / "report.html").exists()
        assert str(images) in html.unescape((run_dir / "report.html").read_text(encoding="utf-8"))
        classify = tf.saved_model.load(run_dir / "serving" / "1").signatures["classify"]
        best = next(value for value in classify(tf.zeros([1, 8, 8, 3])).values() if value.dtype == tf.string)
        assert {name.decode() for name in best.numpy()[0]} == {"ä cat", "猫 [2]"}

        # It is decoded when it is needed, and damaged.
        monkeypatch.setattr("tfspline.datasets.image_files.MEMORY_LIMIT", 0)
        damaged = images / "train" / "ä cat" / "é 0 [3]?.png"
        damaged.write_bytes(damaged.read_bytes()[:60])
        named = re.escape(str(damaged)).replace("'", r"\\'")  # as TensorFlow writes it
        with pytest.raises(SystemExit, match=f"Cannot decode .*'{named}'"):
            start(train, monkeypatch, f"--flagfile={flagfile}", f"--run_dir={folder / 'other'}", "--verbose=0")

        model = keras.models.load_model(run_dir / "slim.keras")
        masks = tfspline.Masks.of(model, {"dense1": np.arange(16) < 8})
        masks.save(folder / "mäsks.json")
        assert tfspline.Masks.load(folder / "mäsks.json", model) == masks
        dense = keras.models.load_model(run_dir / "dense.keras")
        assert tfspline.Plan.load(run_dir / "plan.json", dense).ratio > 0.4
        bird = tfspline.EarlyBird(backup_dir=folder / "bäckup")
        bird.save(folder / "bïrd.npz")
        bird.load(folder / "bïrd.npz")
        codes = tfspline.region_codes(model, np.zeros((2, 8, 8, 3)))
        codes.save(folder / "cödes.npz")
        assert tfspline.Codes.load(folder / "cödes.npz") == codes

    @pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda path: path.stem)
    def test_configs_are_recipes(self, train, monkeypatch, config):
        made = []
        monkeypatch.setattr(train, "run", lambda recipe, run_dir, *others: made.append((recipe, run_dir)))
        monkeypatch.setattr(train, "table", str)
        start(train, monkeypatch, f"--flagfile={config}", "--seed=3")
        ((recipe, run_dir),) = made
        assert run_dir == f"runs/{config.stem}-3"
        assert recipe.seed == 3
