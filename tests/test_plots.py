"""What the pictures show, read back from matplotlib's objects."""

import pytest
from matplotlib import pyplot

from tfspline import plots
from tfspline.callbacks import EarlyBird

HISTORY = [
    {"phase": "search", "epoch": 1, "accuracy": 0.5, "partition_distance": None},
    {"phase": "search", "epoch": 2, "accuracy": 0.7, "partition_distance": 0.1},
    {"phase": "prune", "epoch": 2, "ratio": 0.5},
    {"phase": "retrain", "epoch": 3, "accuracy": 0.6},
    {"phase": "retrain", "epoch": 4, "accuracy": 0.8},
    {"phase": "baseline", "epoch": 3, "accuracy": 0.75},
    {"phase": "baseline", "epoch": 4, "accuracy": 0.85},
]


def found(epoch):
    bird = EarlyBird()
    bird.epoch = epoch
    return bird


def lines(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_training_draws_each_phase_and_the_early_bird():
    accuracy, distance = plots.training(HISTORY, found(2)).axes
    drawn = lines(accuracy)
    assert drawn["dense search"] == [(1, 0.5), (2, 0.7)]
    assert drawn["slim network"] == [(3, 0.6), (4, 0.8)]
    assert drawn["dense baseline"] == [(3, 0.75), (4, 0.85)]
    assert [x for x, _ in drawn["early bird, epoch 2"]] == [2, 2]
    assert [y for _, y in lines(distance)["threshold 0.16"]] == [0.16, 0.16]
    assert [(2, 0.1)] in lines(distance).values()


def test_training_without_a_bird_or_a_baseline():
    accuracy, _ = plots.training(HISTORY[:5], EarlyBird()).axes
    assert list(lines(accuracy)) == ["dense search", "slim network"]


def test_training_tells_validation_apart():
    rows = [row | {"val_accuracy": 0.4} for row in HISTORY[:2]]
    accuracy, _ = plots.training(rows, EarlyBird()).axes
    assert [(1, 0.4), (2, 0.4)] in lines(accuracy).values()
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["dense search", "training", "validation"]


def test_training_of_a_mask_metric():
    rows = [{"phase": "search", "epoch": 1, "accuracy": 0.5, "mask_distance": 0.3}]
    _, distance = plots.training(rows, EarlyBird(metric="mask")).axes
    assert [(1, 0.3)] in lines(distance).values()
    assert distance.get_ylabel().startswith("mask distance")


def test_units_kept_draws_a_bar_a_layer():
    rows = [
        {"layer": "conv1", "units_before": 16, "units_after": 4},
        {"layer": "conv2", "units_before": 32, "units_after": 8},
    ]
    (axes,) = plots.units_kept(rows).axes
    assert [bar.get_width() for bar in axes.patches] == [16, 32, 4, 8]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv1", "conv2"]
    assert [text.get_text() for text in axes.texts] == ["4 of 16 (25%)", "8 of 32 (25%)"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first layer on top


def test_pictures_are_not_left_open_in_pyplot():
    plots.training(HISTORY, EarlyBird())
    assert pyplot.get_fignums() == []


def test_history_without_epochs_is_refused():
    with pytest.raises(ValueError, match="Received: 1 rows"):
        plots.training([{"phase": "prune", "epoch": 2}], EarlyBird())


def test_plan_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        plots.units_kept([])
