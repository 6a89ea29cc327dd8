"""Axes other than the last, and constants of every form: masked equals slim, and the slim model trains."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import EXACT, check_cut
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline.graph.reader import read


def between(keras, shape, middle, activation="relu"):
    """input -> Dense "before" of `shape` -> `middle(x)` -> Dense "after" -> Dense."""
    layers, inputs = keras.layers, keras.Input((*shape[:-1], 3))
    x = middle(layers.Dense(shape[-1], activation, name="before")(inputs))
    x = layers.Dense(5, "tanh", name="after")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def trains(model, rng):
    """Train a model for one step, which must change its weights."""
    model.compile("sgd", "mse", run_eagerly=True)
    x, before = inputs_for(model, rng, model.inputs[0].shape[0] or 4), model.get_weights()
    model.train_on_batch(x, np.ones(model(x).shape))
    assert any((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))


def cut_and_trained(model, rng, **options):
    """Prune half of the units; check the slim model and train it. Returns the plan and the slim model."""
    plan = tfspline.plan(scramble(model, rng), 0.5, criterion="l1", **options)
    slim = check_cut(model, plan, rng)
    trains(slim, rng)
    return plan, slim


def group_of(plan, layer):
    """(units before, units after, why they are kept) of the groups of a layer."""
    (row,) = [row for row in plan.rows() if row["layer"] == layer]
    return row["units_before"], row["units_after"], row["protected"]


# Layers with an argument `axis` and the like, on inputs [6, 8] or [4, 4, 8]: 4 of 8 units go through them.
THROUGH = {
    "batch norm over rows": ((6, 8), lambda k, x: k.BatchNormalization(axis=1)(x)),
    "batch norm over as many rows as channels": ((8, 8), lambda k, x: k.BatchNormalization(axis=-2)(x)),
    "batch norm over one row": ((1, 8), lambda k, x: k.BatchNormalization(axis=1)(x)),
    "batch norm of channels first": (
        (6, 8), lambda k, x: k.Permute((2, 1))(k.BatchNormalization(axis=1)(k.Permute((2, 1))(x)))
    ),
    "softmax over time": ((6, 8), lambda k, x: k.Softmax(axis=1)(x)),
    "softmax over space": ((4, 4, 8), lambda k, x: k.Softmax(axis=-2)(x)),
    "dropout of channels": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 1, 1, 8))(x)),
    "dropout of all": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 4, 4, 8))(x)),
    "dropout of positions": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 4, 1, 1))(x)),
    "dropout alike": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 1, 1, None))(x)),
    "alpha dropout": ((6, 8), lambda k, x: k.AlphaDropout(0.5, noise_shape=(4, 1, 8))(x)),
    "spatial dropout": ((4, 4, 8), lambda k, x: k.SpatialDropout2D(0.5)(x)),
    "gaussian dropout": ((6, 8), lambda k, x: k.GaussianDropout(0.5)(x)),
    "group norm over rows of one channel": ((6, 8), lambda k, x: k.GroupNormalization(groups=8)(x)),
}  # fmt: skip


@pytest.mark.parametrize("what", THROUGH)
def test_units_go_through(keras, rng, what):
    shape, middle = THROUGH[what]
    plan, slim = cut_and_trained(between(keras, shape, lambda x: middle(keras.layers, x)), rng)
    assert group_of(plan, "before")[:2] == (8, 4) and slim.get_layer("before").units == 4


FORMS = {
    "list": lambda array: array.tolist(),
    "tuple": lambda array: tuple(array.tolist()),
    "array": lambda array: array,
    "tensor": tf.constant,
    "variable": tf.Variable,
}


@pytest.mark.parametrize("form", FORMS)
def test_constants(keras, rng, form):
    if keras.__name__ == "keras" and form in ("list", "tuple"):
        pytest.skip("Keras 3 refuses a list")
    ops = keras.ops if keras.__name__ == "keras" else tf
    for apply in (lambda x, c: ops.multiply(c, x), lambda x, c: x * c, lambda x, c: x + c, ops.maximum):
        for shape, goes_through in [((8,), False), ((1, 8), False), ((6, 8), False), ((6, 1), True), ((1, 1, 1), True)]:
            constant = FORMS[form](np.linspace(0.5, 1.5, int(np.prod(shape)), dtype="float32").reshape(shape))
            model = between(keras, (6, 8), lambda x, f=apply, c=constant: f(x, c))
            why = {group.name: group.protected for group in read(model).groups}["before"]
            assert why is None if goes_through else "reads a constant with a number for each" in why
    cut_and_trained(between(keras, (6, 8), lambda x: x * FORMS[form](np.ones((6, 1), "float32"))), rng)


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
