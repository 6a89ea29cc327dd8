"""Compensation for removed units: merging, refitting, recalibration."""

import itertools

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import FAMILIES, difference, inputs_for, scramble

import tfspline
from tfspline.graph.layer_specs.registry import activation_of
from tfspline.graph.piecewise import PiecewiseAffine
from tfspline.pruning import compensation, refit


def twins(keras, rng, kind):
    """A network in which units 4..7 of the layer `a` are copies of 0..3, scaled by 2."""
    layers = keras.layers
    x = inputs = keras.Input((6,) if kind == "dense" else (5, 5, 2))
    x = layers.Dense(8, name="a")(x) if kind == "dense" else layers.Conv2D(8, 3, padding="same", name="a")(x)
    if kind == "bn":
        x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU()(x)
    x = layers.Dense(3, name="b")(x) if kind == "dense" else layers.Conv2D(3, 3, padding="same", name="b")(x)
    model = scramble(keras.Model(inputs, x), rng)
    weights = model.get_layer("a").get_weights()
    model.get_layer("a").set_weights([np.concatenate([w[..., :4], 2 * w[..., :4]], -1) for w in weights])
    if kind == "bn":
        gamma, beta, mean, variance = (np.concatenate([w[:4]] * 2) for w in model.get_layer("bn").get_weights())
        second, epsilon = np.arange(8) >= 4, model.get_layer("bn").epsilon
        mean, variance = (
            np.where(second, 2 * mean, mean),
            np.where(second, 4 * (variance + epsilon) - epsilon, variance),
        )
        model.get_layer("bn").set_weights([gamma, beta, mean, variance])
    return model


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", ["dense", "conv", "bn"])
@pytest.mark.parametrize(("compensate", "on_data"), [("merge", False), ("merge", True), ("refit", True)])
def test_compensation_recovers_removed_copies(keras, rng, kind, compensate, on_data):
    model = twins(keras, rng, kind)
    plan = tfspline.plan(model, {"a": 0.5})
    plan.removed[:] = False
    plan.remove("a", [0, 1, 6, 7])
    x = inputs_for(model, rng, 200)
    small = plan.apply(model, data=x if on_data else None, compensate=compensate, recalibrate=False)
    assert difference(model(x), plan.apply(model)(x)) > 0.1
    assert difference(model(x), small(x)) <= (2e-2 if on_data else 1e-5)  # the ridge keeps the fit from being exact
    assert small.count_params() == plan.cost()["params"][1]
    if (kind, compensate) == ("bn", "refit"):  # the fit takes the following statistics into account
        variance = plan.apply(model, data=x).get_layer("bn").moving_variance
        np.testing.assert_array_equal(variance, plan.apply(model).get_layer("bn").moving_variance)


def test_refit_equals_least_squares(keras, rng, monkeypatch):
    monkeypatch.setattr(refit, "_SHARES", (1e-9,))
    layers = keras.layers
    model = keras.Sequential([keras.Input((5,)), layers.Dense(6, "tanh", name="a"), layers.Dense(2, name="b")])
    scramble(model, rng)
    x = inputs_for(model, rng, 50)
    plan = tfspline.plan(model, 0.5)
    kept = np.flatnonzero(~plan.removed[plan.graph.channels("a")])
    hidden = np.asarray(model.layers[0](x))[:, kept]
    expected, *_ = np.linalg.lstsq(np.c_[hidden, np.ones(50)], np.asarray(model(x)), rcond=None)
    kernel, bias = plan.apply(model, data=x).layers[1].get_weights()
    np.testing.assert_allclose(np.r_[kernel, bias[None]], expected, atol=1e-3)


def test_refit_on_a_part_of_the_rows_is_close_to_refit_on_all(keras, rng, monkeypatch):
    model = twins(keras, rng, "conv")
    plan = tfspline.plan(model, {"a": 0.75}, criterion="l1")
    x = inputs_for(model, rng, 60) + np.linspace(-1, 1, 60, dtype="float32")[:, None, None, None]
    plain, whole = (difference(model(x), plan.apply(model, x, how)(x)) for how in ("none", "refit"))
    monkeypatch.setattr(refit, "_ROWS", 10 * 25)  # as many as of ten samples
    monkeypatch.setattr(refit, "_PER_FEATURE", 0)
    assert difference(model(x), plan.apply(model, x)(x)) < 1.5 * whole < plain


@pytest.mark.parametrize("size", [1, 2])
def test_convolution_without_bias_is_refitted_over_all_taps(keras, rng, monkeypatch, size):
    monkeypatch.setattr(refit, "_SHARES", (1e-9,))
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((7, 7, 2)),
            layers.Conv2D(4, 3, activation="tanh", name="a"),
            layers.Conv2D(3, size, strides=2, padding="same", use_bias=False, name="b"),
        ]
    )
    scramble(model, rng)
    x = inputs_for(model, rng, 40)
    plan = tfspline.plan(model, 0.5)
    kept = np.flatnonzero(~plan.removed[plan.graph.channels("a")])
    hidden = tf.gather(tf.convert_to_tensor(model.layers[0](x)), kept, axis=-1)
    patches = tf.image.extract_patches(hidden, [1, size, size, 1], [1, 2, 2, 1], [1, 1, 1, 1], "SAME").numpy()
    patches = patches.reshape(-1, 2 * size**2)
    expected, *_ = np.linalg.lstsq(patches, np.asarray(model(x)).reshape(-1, 3), rcond=None)
    (kernel,) = plan.apply(model, data=x).layers[1].get_weights()
    np.testing.assert_allclose(kernel.reshape(-1, 3), expected, atol=1e-3)


def test_shared_batch_norm_is_not_changed(keras, rng):
    layers = keras.layers
    inputs = keras.Input((4,))
    x, norm = layers.Dense(6, "relu", name="a")(inputs), layers.BatchNormalization(name="shared")
    outputs = [norm(layers.Dense(3, use_bias=False, name=name)(x)) for name in ("b", "c")]
    model = scramble(keras.Model(inputs, outputs), rng)
    plan = tfspline.plan(model, {"a": 0.5})
    x = inputs_for(model, rng, 100)
    cut, refitted = plan.apply(model), plan.apply(model, data=x, recalibrate=False)
    shared = (one.get_layer("shared").get_weights() for one in (cut, refitted))
    for before, after in zip(*shared, strict=True):
        np.testing.assert_array_equal(before, after)
    for whole, plain, better in zip(model(x), cut(x), refitted(x), strict=True):
        assert np.square(better - whole).mean() < 0.5 * np.square(plain - whole).mean()


def test_constant_of_a_layer_without_bias_moves_to_batch_norm(keras, rng):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, "relu", name="a"),
            layers.Dense(3, use_bias=False),
            layers.BatchNormalization(),
        ]
    )
    scramble(model, rng)
    kernel, bias = model.get_layer("a").get_weights()
    kernel[:, 0], bias[0] = 0, 2  # always 2
    model.get_layer("a").set_weights([kernel, bias])
    plan = tfspline.plan(model, 0.5)
    plan.removed[:] = False
    plan.remove("a", [0])
    x = inputs_for(model, rng, 100)
    assert difference(model(x), plan.apply(model, data=x)(x)) <= 1e-4


@pytest.mark.parametrize("options", [{"strides": (2, 2)}, {"groups": 2}], ids=str)
def test_convolutions_with_gaps_or_groups_are_refitted(keras, rng, options):
    layers = keras.layers
    x = inputs = keras.Input((12, 12, 4))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(x)
    x = layers.Conv2D(6, 1, strides=2, padding="same", name="pointwise")(x)
    model = scramble(keras.Model(inputs, layers.Conv2D(4, (1, 2), name="b", **options)(x)), rng)
    x = inputs_for(model, rng, 100)
    plan = tfspline.plan(model, {"a": 0.25})
    plain, small = plan.apply(model), plan.apply(model, data=x)
    assert difference(model(x), small(x)) < 0.9 * difference(model(x), plain(x))
    assert np.any(np.asarray(small.get_layer("b").kernel) != np.asarray(plain.get_layer("b").kernel))


@pytest.mark.parametrize("compensate", ["merge", "refit"])
def test_fewer_and_more_rows_than_features_agree(keras, rng, monkeypatch, compensate):
    monkeypatch.setattr(refit, "_SHARES", (1e-2,))
    monkeypatch.setattr(compensation, "RIDGE", 1e-2)
    layers = keras.layers
    model = scramble(
        keras.Sequential([keras.Input((40,)), layers.Dense(60, "tanh", name="a"), layers.Dense(2, name="b")]), rng
    )
    plan = tfspline.plan(model, {"a": 0.5})
    for samples in (29, 31):  # around the 30 kept units
        x = inputs_for(model, rng, samples)
        kept = np.flatnonzero(~plan.removed[plan.graph.channels("a")])
        hidden = np.asarray(model.layers[0](x), float)[:, kept]
        plain, small = plan.apply(model), plan.apply(model, data=x, compensate=compensate)
        kernel, bias = plain.get_layer("b").get_weights()
        error = np.asarray(model(x), float) - hidden @ kernel - bias
        centred = hidden - hidden.mean(0)
        gram = centred.T @ centred
        if compensate == "refit":
            fitted = np.mean(np.arange(samples) % 4 > 0)  # the others choose the ridge
            squares = np.trace(gram) + 1e-3 * samples * np.square(hidden.mean(0)).sum()
            gram += 1e-2 * fitted * squares / 30 * np.eye(30)
            change = np.linalg.solve(gram, centred.T @ (error - error.mean(0)))
            np.testing.assert_allclose(small.get_layer("b").kernel, kernel + change, atol=1e-4)
        rest = error - np.asarray(small(x), float) + hidden @ kernel + bias
        assert np.square(rest).sum() < 0.2 * np.square(error).sum()
        assert np.abs(rest.mean(0)).max() < 1e-4  # the bias absorbs the mean error


def test_dead_and_always_on_units_are_removed_without_loss(keras, rng):
    layers = keras.layers
    model = keras.Sequential([keras.Input((3,)), layers.Dense(12, "relu", name="a"), layers.Dense(2)])
    scramble(model, rng)
    kernel, bias = model.get_layer("a").get_weights()
    bias[:2], bias[2:9] = -100, 100  # two units are never on; seven always, so they are affine in three inputs
    model.get_layer("a").set_weights([kernel, bias])
    x = inputs_for(model, rng, 300)
    plan = tfspline.plan(model, 6 / 12, criterion="spline_affine", data=x)
    removed = np.flatnonzero(plan.removed[plan.graph.channels("a")])
    assert set(removed[:2]) == {0, 1} and removed.max() < 9 and removed.size == 6
    for compensate in ("merge", "refit"):
        assert difference(model(x), plan.apply(model, data=x, compensate=compensate)(x)) <= 2e-3


def test_refit_ignores_the_off_side_of_a_relu(keras, rng, monkeypatch):
    layers = keras.layers
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, "relu"), layers.Dense(8, "relu"), layers.Dense(1)])
    scramble(model, rng)
    x = inputs_for(model, rng, 500)
    plan = tfspline.plan(model, {model.layers[0].name: 0.6}, criterion="l1")
    errors = []
    for turns in (1, 4, 16):
        monkeypatch.setattr(refit, "TURNS", turns)
        small = plan.apply(model, data=x)
        hidden = (np.asarray(one.layers[1](one.layers[0](x))) for one in (model, small))
        errors.append(np.mean(np.square(np.subtract(*hidden))))
    assert errors[0] > errors[1] > errors[2]


def test_refit_compensates_for_the_other_branch_of_an_add(keras, rng):
    layers = keras.layers
    inputs = keras.Input((4,))
    lossy = layers.Dense(3, name="lossy")(layers.Dense(4, name="cut")(inputs))  # cannot be refitted exactly by itself
    model = scramble(keras.Model(inputs, layers.Add()([lossy, layers.Dense(3, name="other")(inputs)])), rng)
    x = inputs_for(model, rng, 100)
    small = tfspline.plan(model, {"cut": 0.5}, protect=["lossy"]).apply(model, data=x)
    assert difference(model(x), small(x)) <= 1e-2


def test_recalibration_by_hand(keras, rng):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, use_bias=False),
            layers.Dense(1, use_bias=False),
            layers.BatchNormalization(),
        ]
    )
    model.layers[0].set_weights([np.float32([[1, 0], [0, 1]])])
    model.layers[1].set_weights([np.float32([[1], [3]])])
    gamma, beta, mean, variance = (np.float32([value]) for value in (1, 0, 10, 100))
    model.layers[2].set_weights([gamma, beta, mean, variance])
    plan = tfspline.plan(model, 0.5)
    plan.removed[:] = False
    plan.remove(model.layers[0].name, [1])
    x = np.float32([[1, 1], [3, 5]])
    # before 1 + 3 = 4 and 3 + 15 = 18: mean 11, variance 49; after 1 and 3: mean 2, variance 1
    small = plan.apply(model, data=x, compensate="none")
    _, _, mean, variance = small.layers[2].get_weights()
    np.testing.assert_allclose(mean, [10 + 2 - 11], rtol=1e-5)
    np.testing.assert_allclose(variance, [100 * (1 + 1e-3) / (49 + 1e-3)], rtol=1e-4)
    for untouched in (plan.apply(model, data=x, compensate="none", recalibrate=False), plan.apply(model)):
        np.testing.assert_array_equal(untouched.layers[2].get_weights()[2:], [[10], [100]])


@pytest.mark.sweep(4)
@pytest.mark.parametrize("compensate", ["none", "merge", "refit"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_compensation_reduces_the_error_of_every_family(keras, rng, family, compensate):
    model = scramble(family(keras), rng)
    x = inputs_for(model, rng, 64)
    plan = tfspline.plan(model, 0.4, criterion="spline_affine", data=x)
    small = plan.apply(model, data=x, compensate=compensate)
    assert small.count_params() == plan.cost()["params"][1]

    def error(other):
        pairs = zip(tf.nest.flatten(model(x)), tf.nest.flatten(other(x)), strict=True)
        return sum(float(np.mean(np.square(np.subtract(a, b)))) for a, b in pairs)

    if compensate == "refit":
        assert error(small) < error(plan.apply(model))

    # Without removed units there is nothing to compensate.
    plan.removed[:] = False
    assert difference(model(x), plan.apply(model, data=x, compensate=compensate)(x)) <= 1e-3


def test_low_precision_models_are_compensated(keras, rng):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="bfloat16"),
            layers.Dense(8, "relu", dtype="bfloat16"),
            layers.Dense(2, dtype="bfloat16"),
        ]
    )
    x = tf.cast(inputs_for(scramble(model, rng), rng, 64), tf.bfloat16)
    small = tfspline.prune(model, 0.5, criterion="spline_affine", data=x)
    assert str(small.layers[0].dtype) == "bfloat16"
    assert difference(model(x), small(x)) < difference(model(x), tfspline.prune(model, 0.5, criterion="l1")(x))


@pytest.mark.sweep(2)
def test_data_may_be_an_array_or_a_dataset(keras, rng):
    model = scramble(FAMILIES[0](keras), rng)
    x = inputs_for(model, rng, 64)
    plan = tfspline.plan(model, 0.5, criterion="spline_affine", data=x)
    batches = tf.data.Dataset.from_tensor_slices((x, np.zeros(64))).batch(20)
    for data in (batches, batches.map(lambda x, y: x)):
        other = tfspline.plan(model, 0.5, criterion="spline_affine", data=data)
        assert np.array_equal(other.removed, plan.removed)
        assert difference(plan.apply(model, data=x)(x), other.apply(model, data=data)(x)) <= 1e-6
    endless = tf.data.Dataset.from_tensors(x).repeat()
    assert np.array_equal(tfspline.plan(model, 0.5, criterion="spline_affine", data=endless).removed, plan.removed)


def test_prune_compensates_if_given_data(keras, rng):
    model = twins(keras, rng, "dense")
    x = inputs_for(model, rng, 200)
    for options in itertools.product(["spline_data", "spline_affine"], ["auto", "merge"]):
        criterion, compensate = options
        small = tfspline.prune(model, 0.5, criterion=criterion, data=x, compensate=compensate)
        assert small.get_layer("a").units == 4
        assert difference(model(x), small(x)) <= 2e-2  # both criteria remove one of each pair of copies


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compensate": "best"}, "`compensate`.*'refit'.*'best'"),
        ({"compensate": "refit"}, "`data`.* is needed to refit or recalibrate"),
        ({"recalibrate": True}, "`data`.* is needed to refit or recalibrate"),
        ({"data": np.zeros((3, 5))}, r"\(samples, 6\)"),
        (
            {"data": tf.data.Dataset.from_tensors(np.zeros((3, 6))).take(0)},
            "dataset.* at least one batch",
        ),
    ],
)
def test_invalid_arguments_raise(keras, options, message):
    with pytest.raises(ValueError, match=message):
        tfspline.prune(FAMILIES[0](keras), 0.5, **options)


@pytest.mark.parametrize("samples", [3, 8, 16, 30, 64])
def test_few_samples_do_no_harm(keras, rng, samples):
    """Not even as many as features, where least squares without a ridge are at their worst."""
    layers = keras.layers
    stack = [layers.Dense(60, "relu", name="a"), layers.Dense(8, "relu"), layers.Dense(2)]
    model = scramble(keras.Sequential([keras.Input((20,)), *stack]), rng)
    plan, x, others = tfspline.plan(model, {"a": 0.5}), inputs_for(model, rng, samples), inputs_for(model, rng, 500)
    plain, small = plan.apply(model), plan.apply(model, x)
    errors = [np.square(one(others) - model(others)).mean() for one in (plain, small)]
    assert errors[1] < 1.02 * errors[0]


@pytest.mark.parametrize(
    ("layer", "sides"),
    [
        (("ReLU", {}), (0, np.inf)),
        (("ReLU", {"max_value": 6.0}), (0, 6)),
        (("LeakyReLU", {}), (-np.inf, np.inf)),
        (("Activation", {"activation": "hard_sigmoid"}), (-3, 3)),
    ],
    ids=str,
)
def test_flat_sides_by_hand(layer, sides):
    name, options = layer
    assert activation_of(getattr(keras3.layers, name)(**options)).flat_sides == pytest.approx(sides)


def test_values_above_a_flat_side_need_not_be_met(keras, rng, monkeypatch):
    layers = keras.layers
    stack = [layers.Dense(24, "relu", name="a"), layers.Dense(8, name="b"), layers.ReLU(1.0)]
    model = scramble(keras.Sequential([keras.Input((12,)), *stack]), rng)
    model.get_layer("b").kernel.assign(3 * np.asarray(model.get_layer("b").kernel))  # more above 1
    plan, x = tfspline.plan(model, {"a": 0.5}), inputs_for(model, rng, 400)
    both = np.square(plan.apply(model, x)(x) - model(x)).mean()
    monkeypatch.setattr(PiecewiseAffine, "flat_sides", property(lambda self: (0.0, np.inf)))
    assert both < 0.95 * np.square(plan.apply(model, x)(x) - model(x)).mean()
