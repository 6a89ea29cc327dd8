"""Plots of trainings, read back from matplotlib's objects."""

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from tfspline import plots
from tfspline.callbacks.early_bird import EarlyBird

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
    bird._settling.epoch = epoch
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


def test_training_without_early_bird_or_baseline():
    accuracy, _ = plots.training(HISTORY[:5], EarlyBird()).axes
    assert list(lines(accuracy)) == ["dense search", "slim network"]


def test_training_distinguishes_validation():
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


def test_units_kept_draws_a_bar_per_layer():
    rows = [
        {"layer": "conv1", "units_before": 16, "units_after": 4},
        {"layer": "conv2", "units_before": 32, "units_after": 8},
    ]
    (axes,) = plots.units_kept(rows).axes
    assert [bar.get_width() for bar in axes.patches] == [16, 32, 4, 8]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv1", "conv2"]
    assert [text.get_text() for text in axes.texts] == ["4 of 16 (25%)", "8 of 32 (25%)"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first layer on top


def test_distance_matrix_draws_each_pair_of_epochs():
    distances = np.array([[0, 0.1, 0.2], [0.1, 0, 0.3], [0.2, 0.3, 0]])
    figure = plots.distance_matrix(distances, [1, 2, 4], found=2)
    (mesh,) = figure.axes[0].collections
    np.testing.assert_array_equal(mesh.get_array(), distances)
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [0.5, 1.5, 3, 4.5])  # half way between epochs
    assert [line.get_xydata()[0].tolist() for line in figure.axes[0].lines] == [[2, 0], [0, 2]]
    assert figure.legends[0].get_texts()[0].get_text() == "early bird, epoch 2"
    assert not plots.distance_matrix([[0.0]], [1]).legends
    left, right = Figure().subfigures(1, 2)
    assert plots.distance_matrix(distances, [1, 2, 4], figure=left) is left
    assert left.axes and not right.axes


def test_layer_distances_draws_the_change_in_each_epoch():
    first = np.array([[0, 0.1, 0.5], [0.1, 0, 0.3], [0.5, 0.3, 0]])
    (axes,) = plots.layer_distances({"a": first, "b": first / 2}, [1, 2, 3], found=3).axes
    drawn = lines(axes)
    assert drawn["a"] == [(2, 0.1), (3, 0.3)] and drawn["b"] == [(2, 0.05), (3, 0.15)]
    assert drawn["mean of all layers"] == [(2, pytest.approx(0.075)), (3, pytest.approx(0.225))]
    assert [x for x, _ in drawn["early bird, epoch 3"]] == [3, 3]


def test_layer_distances_names_some_of_many_layers():
    figure = plots.layer_distances({f"layer{i}": np.zeros((2, 2)) for i in range(50)}, [1, 2])
    assert len(figure.axes[0].lines) == 51
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 9 and labels[0] == "layer0" and labels[-2:] == ["layer49", "mean of all layers"]


def test_accuracy_flops_draws_a_point_per_network():
    dense, slim = {"accuracy": 0.9, "training_flops": 9e9}, {"accuracy": 0.88, "training_flops": 3e9}
    runs = [{"dense": dense, "slim": slim}, {"dense": {"training_flops": 9e9}, "slim": slim, "weights_pruned": dense}]
    (axes,) = plots.accuracy_flops(runs).axes
    assert lines(axes) == {
        "dense baseline": [(9e9, 90.0)],
        "slim network": 2 * [(3e9, 88.0)],
        "weights pruned": [(9e9, 90.0)],
    }


def test_figures_are_not_registered_in_pyplot():
    plots.training(HISTORY, EarlyBird())
    assert pyplot.get_fignums() == []


def test_refuses_a_history_without_epochs():
    with pytest.raises(ValueError, match="history.* 1 "):
        plots.training([{"phase": "prune", "epoch": 2}], EarlyBird())


def test_refuses_a_plan_without_rows():
    with pytest.raises(ValueError, match="rows"):
        plots.units_kept([])


def test_refuses_distances_of_another_shape():
    with pytest.raises(ValueError, match=r"distances.*\[2, 3\] for 2 epochs"):
        plots.distance_matrix(np.zeros((2, 3)), [1, 2])
    with pytest.raises(ValueError, match=r"\[0\] for 0 epochs"):
        plots.distance_matrix([], [])
    with pytest.raises(ValueError, match=r"\[3, 3\] for 2 epochs"):
        plots.layer_distances({"a": np.zeros((3, 3))}, [1, 2])
    with pytest.raises(ValueError, match="0 layers, 2 epochs"):
        plots.layer_distances({}, [1, 2])
    with pytest.raises(ValueError, match="1 layers, 1 epochs"):
        plots.layer_distances({"a": np.zeros((1, 1))}, [1])


def test_refuses_no_runs():
    with pytest.raises(ValueError, match="summaries"):
        plots.accuracy_flops([])
