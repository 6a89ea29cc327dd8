"""Partition reports: pruning units removes boundaries, pruning weights turns them towards the axes."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers import zoo

import tfspline
from tfspline import partition_report


def clone(keras, model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def without_small_weights(keras, model, share):
    """A copy with the smallest entries of every kernel except the head's set to zero, as by magnitude pruning."""
    pruned = clone(keras, model)
    for layer in pruned.layers[:-1]:
        if hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            layer.kernel.assign(np.where(np.abs(kernel) >= np.quantile(np.abs(kernel), share), kernel, 0))
    return pruned


@pytest.fixture
def trained(keras, rng):
    """A small trained MLP and its inputs."""
    x = rng.normal(size=(512, 4)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int32")
    layers = [keras.layers.Dense(16, "relu", name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2, "softmax", name="head")])
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, y, epochs=15, batch_size=128, verbose=0)
    assert history.history["accuracy"][-1] > 0.85
    return model, x


def test_pruning_units_removes_boundaries_and_pruning_weights_turns_them(keras, trained):
    model, x = trained
    units = partition_report(model, tfspline.plan(model, 0.5, criterion="l1").mask(model), x)
    weights = partition_report(model, without_small_weights(keras, model, 0.5), x)
    for layer in units.layers:
        assert layer.removed >= 4
        assert layer.turned == 0
        assert math.isnan(layer.angle)
    for layer in weights.layers:
        assert layer.removed <= 2
        assert layer.turned >= 12
        assert layer.angle > 5
        assert layer.axis_angle[1] < layer.axis_angle[0] - 1
    assert units.regions[1] < weights.regions[1] <= weights.regions[0] * 1.5
    assert units.regions[0] == weights.regions[0]
    assert units.maps > 0.1
    assert 0.4 < units.agreement < 1


def by_hand(keras, kernel, bias, head=((1.0, 0.0), (0.0, 1.0))):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "relu", name="a"), keras.layers.Dense(2)])
    model.set_weights([np.array(kernel), np.array(bias), np.array(head), np.zeros(2)])
    return model


def test_report_of_a_removed_boundary_computed_by_hand(keras):
    x = np.array([[1.0, 0.5], [1.0, -2.0], [-1.0, 0.5], [-1.0, -0.5]])
    # The boundaries are x = 0 and x + y = 0. The normal of the second is at 45 degrees to both axes.
    before = by_hand(keras, [[1.0, 1.0], [0.0, 1.0]], [0.0, 0.0])
    # The first one is removed; the second turns by 45 degrees, to y = 0. Codes 11, 10, 00, 00 become 01, 00, 01, 00.
    after = by_hand(keras, [[0.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    report = partition_report(before, after, x, maps=4)
    (layer,) = report.layers
    assert (layer.name, layer.units, layer.boundaries) == ("a", (2, 2), (2, 1))
    assert (layer.removed, layer.turned) == (1, 1)
    assert layer.angle == pytest.approx(45)
    assert layer.axis_angle == pytest.approx((22.5, 0))
    assert layer.changed == 3 / 8
    assert report.samples == 4


def test_report_of_a_turned_boundary_computed_by_hand(keras):
    x = np.array([[1.0, 0.5], [1.0, -2.0], [-1.0, 0.5], [-1.0, 2.0]])
    before = by_hand(keras, [[1.0, 1.0], [0.0, 1.0]], [0.0, 0.0])  # x = 0, x + y = 0
    after = by_hand(keras, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])  # x = 0, y = 0
    report = partition_report(before, after, x, maps=4)
    (layer,) = report.layers
    assert (layer.boundaries, layer.removed, layer.turned) == ((2, 2), 0, 1)
    assert layer.angle == pytest.approx(45)
    assert layer.axis_angle == pytest.approx((22.5, 0))
    # Codes before 11, 10, 00, 01; after 11, 10, 01, 01: one bit of eight.
    assert layer.changed == 1 / 8
    assert report.regions == (4, 3)
    # A before: [[1, 0], [1, 1]], [[1, 0], [0, 0]], 0, [[0, 0], [1, 1]]; after, the second row of the first, third and
    # fourth is [0, 1].
    assert report.maps == pytest.approx(math.sqrt((1 + 0 + 1 + 1) / (3 + 1 + 0 + 2)))
    # f: (1, 1.5), (1, 0), (0, 0), (0, 1); g: (1, .5), (1, 0), (0, .5), (0, 2): differences 1, 0.5, 1.
    assert report.outputs == pytest.approx(math.sqrt((1 + 0.25 + 1) / (1 + 2.25 + 1 + 1)))
    assert report.agreement == 0.5  # the first and the third input change the larger output


def test_layer_without_boundaries_has_no_angles(keras):
    model = by_hand(keras, [[1.0, 1.0], [0.0, 1.0]], [9.0, 9.0])  # both units are always on
    report = partition_report(model, model, np.array([[1.0, 0.5], [-1.0, 2.0]]))
    (layer,) = report.layers
    assert (layer.boundaries, layer.removed, layer.turned) == ((0, 0), 0, 0)
    assert np.isnan([layer.angle, *layer.axis_angle]).all()
    assert str(report).splitlines()[1].split() == ["a", "2", "->", "2", "0", "->", "0", "0", "0", "-", "-", "0.0%"]


def test_report_of_an_unchanged_model(keras, rng):
    model = zoo.scramble(zoo.residual(keras), rng)
    report = partition_report(model, clone(keras, model), zoo.inputs_for(model, rng, 20), maps=2)
    assert {(layer.removed, layer.turned, layer.changed) for layer in report.layers} <= {(0, 0, 0), (0, None, 0)}
    assert (report.maps, report.outputs, report.agreement) == (0, 0, 1)
    assert report.regions[0] == report.regions[1]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("family", [zoo.residual, zoo.flattened])
def test_slim_model_with_its_plan_is_reported_like_the_masked_model(keras, rng, family):
    model = zoo.scramble(family(keras), rng)
    x = zoo.inputs_for(model, rng, 20)
    plan = tfspline.plan(model, 0.5, criterion="l1")
    report = partition_report(model, plan.mask(model), x, maps=1)
    slim = partition_report(model, plan.apply(model), x, plan=plan, maps=1)
    assert [
        dataclasses.replace(a, angle=b.angle, axis_angle=b.axis_angle)
        for a, b in zip(report.layers, slim.layers, strict=True)
    ] == list(slim.layers)
    assert slim.agreement == report.agreement
    assert sum(layer.removed for layer in slim.layers) > 0


def test_without_a_plan_units_of_narrower_layers_are_only_counted(keras, rng):
    model = zoo.scramble(zoo.flattened(keras), rng)
    x = zoo.inputs_for(model, rng, 20)
    small = tfspline.prune(model, {"conv": 0.5}, criterion="l1")
    conv, fc = partition_report(model, small, x, maps=0).layers
    assert conv.units == (8, 4)
    assert (conv.removed, conv.turned, conv.changed) == (None, None, None)
    assert fc.units == (10, 10)
    assert fc.turned is None  # its inputs differ
    assert fc.removed is not None
    assert 0 < fc.changed < 1


def test_units_of_convolutions_are_channels_in_both_data_formats(keras, rng):
    x = rng.normal(size=(6, 5, 5, 2)).astype("float32")
    reports = []
    for order in ["channels_last", "channels_first"]:
        layers = [keras.layers.Permute((3, 1, 2))] if order == "channels_first" else []
        layers += [keras.layers.Activation("linear"), keras.layers.ZeroPadding2D(1, data_format=order)]
        layers += [keras.layers.ReLU(name="relu"), keras.layers.GlobalAveragePooling2D(data_format=order)]
        model = keras.Sequential([keras.Input((5, 5, 2)), *layers])
        above = x.copy()
        above[..., 1] = np.abs(above[..., 1]) + 1
        reports.append(partition_report(model, model, above, maps=0).layers[0])
    assert reports[0].units == reports[1].units == (2, 2)
    assert reports[0].boundaries == reports[1].boundaries == (1, 1)


def test_direction_of_a_unit_includes_batch_normalization(keras, rng):
    layers = [keras.layers.Dense(3, name="a"), keras.layers.BatchNormalization(), keras.layers.ReLU(name="relu")]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dropout(0.5), keras.layers.Dense(2)])
    x = rng.normal(size=(50, 4)).astype("float32")
    flipped = clone(keras, model)
    gamma = flipped.layers[1].gamma
    gamma.assign([3.0, -1.0, 1.0])  # a longer normal is not turned, an opposite one is turned by 180 degrees
    (layer,) = partition_report(model, flipped, x).layers
    assert layer.turned == 1
    assert layer.angle == pytest.approx(180)


def test_report_prints_as_a_table(keras, rng):
    layers = [keras.layers.Dense(8, "relu", name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2, name="head")])
    x = rng.normal(size=(512, 4)).astype("float32")
    plan = tfspline.plan(model, 0.5, criterion="l1")
    data = tf.data.Dataset.from_tensor_slices(x).batch(64)
    lines = str(partition_report(model, plan.apply(model), data, plan=plan)).splitlines()
    assert lines[0].split()[:5] == ["layer", "units", "boundaries", "removed", "turned"]
    assert [line.split()[:4] for line in lines[1:3]] == [[name, "8", "->", "4"] for name in "ab"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3] == ""
    assert lines[4].endswith("of 512 inputs")
    assert [line.split()[0] for line in lines[4:]] == ["regions", "affine", "outputs", "predictions"]


def test_models_that_cannot_be_compared_are_rejected(keras, rng):
    def model(units=3, name="a"):
        layers = [keras.layers.Dense(4, "relu", name=name), keras.layers.Dense(units, name="head")]
        return keras.Sequential([keras.Input((4,)), *layers])

    x = rng.normal(size=(6, 4))
    with pytest.raises(ValueError, match=r"layers of the same names. Received: \['a'\] and \['b'\]"):
        partition_report(model(), model(name="b"), x)
    with pytest.raises(ValueError, match=r"outputs.*\[\(3,\)\] and \[\(2,\)\]"):
        partition_report(model(), model(2), x)
    plan = tfspline.plan(model(), 0.5)
    with pytest.raises(ValueError, match=r"`plan`.*\(4, 2\).* in layer 'a'. Received: .*\(4, 4\)"):
        partition_report(model(), model(), x, plan=plan)
    smooth = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "gelu", name="a"), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="'a'.*'gelu'"):
        partition_report(smooth, smooth, x)
    assert partition_report(smooth, smooth, x, approximate=True, maps=0).maps is None
