"""Batch normalization over any axis, and of units that two layers normalize."""

import numpy as np
import pytest
from helpers.cutting import EXACT, cut_and_trained
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline._keras.inputs import probe
from tfspline.graph.reader import read
from tfspline.graph.weights import folded
from tfspline.pruning.units import units_of
from tfspline.spline.boundaries import boundaries

NORMS = {
    "over rows": lambda k, x: k.BatchNormalization(axis=1)(x),
    "over columns": lambda k, x: k.BatchNormalization(axis=2)(x),
    "of channels first": lambda k, x: k.Permute((2, 3, 1))(k.BatchNormalization(axis=1)(k.Permute((3, 1, 2))(x))),
    "over two axes": lambda k, x: k.BatchNormalization(axis=[1, 3])(x),
    "over all axes": lambda k, x: k.BatchNormalization(axis=[1, 2, 3])(x),
}


def normed(keras, what):
    """A convolution, a BatchNormalization, a ReLU and a second convolution."""
    if keras.__name__ == "keras" and what in ("over two axes", "over all axes"):
        pytest.skip("Keras 3 has one axis")
    layers, inputs = keras.layers, keras.Input((4, 5, 3))
    x = layers.ReLU()(NORMS[what](layers, layers.Conv2D(8, 3, padding="same", name="before")(inputs)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, name="after")(x)))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", NORMS)
def test_batch_norm_over_any_axis_with_data(keras, rng, what):
    model = scramble(normed(keras, what), rng)
    _, slim = cut_and_trained(model, rng)
    assert (slim.get_layer("before").filters, slim.get_layer("after").filters) == (4, 3)
    x, y = inputs_for(model, rng, 32), rng.normal(size=(32, 2))
    model.compile("sgd", "mse")
    for criterion in ("spline", "spline_data", "spline_affine", "taylor", "snip", "synflow"):
        plan = tfspline.plan(model, 0.5, criterion=criterion, data=(x, y))
        assert plan.removed.sum() == 7
    errors = [difference(model(x), plan.apply(model, x, compensate)(x)) for compensate in ("none", "merge", "refit")]
    assert min(errors[1:]) < difference(model(x), plan.mask(model)(x))


def test_recalibration_over_rows_looks_at_the_kept_channels_only(keras, rng):
    layers, inputs = keras.layers, keras.Input((6, 3))
    norm = layers.BatchNormalization(axis=1, name="norm")
    model = keras.Sequential([inputs, layers.Dense(8, name="a"), norm, layers.ReLU(), layers.Dense(2)])
    slim = tfspline.prune(scramble(model, rng), 0.5, data=inputs_for(model, rng, 16), compensate="none")
    assert slim.get_layer("a").units == 4  # its kept units have not changed, so neither have the statistics
    for old, new in zip(norm.weights, slim.get_layer("norm").weights, strict=True):
        np.testing.assert_allclose(old.numpy(), new.numpy(), rtol=1e-5)


def test_units_switched_off_by_gamma_over_another_axis(keras, rng):
    for what in ("over rows", "over two axes") if keras.__name__ == "tf_keras" else ("over rows",):
        model = scramble(normed(keras, what), rng)
        norm = model.layers[2]
        gamma = norm.gamma.numpy()
        gamma[..., :2] = 0  # two rows, or two channels
        norm.gamma.assign(gamma)
        slim, x = tfspline.slim(model), inputs_for(model, rng)
        assert difference(model(x), slim(x)) <= EXACT


def twice_normed(keras):
    """A convolution that is called twice, with a BatchNormalization of its own each time."""
    layers, inputs = keras.layers, keras.Input((4, 4, 3))
    shared, norms = layers.Conv2D(4, 1, use_bias=False, name="shared"), [layers.BatchNormalization() for _ in "ab"]
    x = layers.Conv2D(3, 1, activation="relu", name="stem")(inputs)
    a, b = (layers.ReLU()(norm(shared(y))) for norm, y in zip(norms, (inputs, x), strict=True))
    features = layers.GlobalAveragePooling2D()(layers.Concatenate()([layers.Conv2D(5, 1)(a), layers.Conv2D(5, 1)(b)]))
    return keras.Model(inputs, layers.Dense(2)(features)), shared, norms


def test_unit_with_two_batch_norms_is_scored_with_both(keras, rng):
    model, shared, norms = twice_normed(keras)
    scramble(model, rng)
    graph = read(model)
    assert sorted(graph.folded["shared"]) == sorted(norm.name for norm in norms)
    (units,) = units_of(model, graph, [group for group in graph.groups if group.name == "shared"], rng)
    ordered = [next(norm for norm in norms if norm.name == name) for name in graph.folded["shared"]]
    kernel = shared.kernel.numpy().reshape(3, 4).T
    slopes, shifts = zip(*map(folded, ordered), strict=True)
    np.testing.assert_allclose(units.weight, np.hstack([kernel * slope[:, None] for slope in slopes]), rtol=1e-5)
    np.testing.assert_allclose(units.offset, np.sum(shifts, axis=0), rtol=1e-5)
    x, y = inputs_for(model, rng, 16), rng.normal(size=(16, 2))
    model.compile("sgd", "mse")
    for criterion in ("spline", "l2", "spline_data", "spline_affine", "taylor", "snip", "synflow"):
        assert tfspline.plan(model, 0.5, criterion=criterion, data=(x, y)).removed[graph.channels("shared")].sum() == 2
    cut_and_trained(model, rng)


def test_taylor_of_a_shared_layer_with_two_batch_norms_by_finite_difference(keras, rng):
    model, shared, norms = twice_normed(keras)
    scramble(model, rng)
    x, y = inputs_for(model, rng, 16), rng.normal(size=(16, 2)).astype("float32")
    model.compile("sgd", "mse")
    graph = read(model)
    groups = [group for group in graph.groups if group.name == "shared"]
    (units,) = units_of(model, graph, groups, rng, probe(model, (x, y)))
    gate, losses = units.gradients(training=False).gate[0], []
    for step in (1e-2, -1e-2):
        before = model.get_weights()
        for weight in (weight for norm in norms for weight in (norm.gamma, norm.beta)):
            value = weight.numpy()
            value[1] *= 1 + step
            weight.assign(value)
        losses.append(np.square(model(x).numpy().astype(float) - y).mean())
        model.set_weights(before)
    assert gate[1] == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=2e-2)


def test_normals_are_unknown_behind_a_batch_norm_over_another_axis(keras):
    for what in NORMS if keras.__name__ == "tf_keras" else ("over rows", "over columns"):
        first, _ = boundaries(normed(keras, what), approximate=False).values()
        assert first.normals() is None
