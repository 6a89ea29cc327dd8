"""Attention heads as units of plans, masks and criteria, on a small vision transformer."""

import keras as keras3
import numpy as np
import pytest
from helpers.cutting import check_cut
from helpers.zoo import difference, inputs_for, scramble

import tfspline

HEADS = 4
CRITERIA = ("spline", "spline_data", "spline_affine", "l1", "l2", "fpgm", "taylor", "snip", "synflow", "random")


def vit(keras, blocks=1, width=12):
    """A vision transformer with normalization before each branch, on images of 8 x 8."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 4, 4, name="patches")(inputs)
    x = layers.Reshape((4, width))(x)
    for i in range(blocks):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(HEADS, 3, name=f"attention{i}")(y, y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(width, name=f"contract{i}")(layers.Dense(16, "gelu", name=f"expand{i}")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@pytest.fixture
def model(keras, rng):
    return scramble(vit(keras), rng)


def heads(plan):
    return {row["layer"]: row["units_after"] for row in plan.rows() if row["units_before"] == HEADS}


def data_for(model, rng):
    x = inputs_for(model, rng, batch=20)
    model.compile("sgd", "mse")
    return x, np.asarray(model(x)) + rng.normal(size=(20, 3)).astype("float32")


def test_every_criterion_scores_heads(model, rng):
    data = data_for(model, rng)
    for criterion in CRITERIA:
        plan = tfspline.plan(model, 0.5, criterion=criterion, data=data)
        assert heads(plan) == {"attention0": 2}, criterion
        assert not plan.removed[plan.graph.channels("attention0#2")].any()
    check_cut(model, plan, rng)
    with pytest.raises(ValueError, match=r"'bn_scale'.*'attention0'"):
        tfspline.plan(model, {"attention0": 0.5}, criterion="bn_scale")


def test_criteria_find_heads_that_do_not_matter(model, rng):
    """Heads 1 and 2 hardly contribute: their rows of the output kernel are nearly zero."""
    data = data_for(model, rng)
    weights = model.get_layer("attention0").get_weights()
    weights[6][1:3] *= 1e-3
    model.get_layer("attention0").set_weights(weights)
    for criterion in ("spline_affine", "taylor"):
        masks = tfspline.plan(model, 0.5, criterion=criterion, data=data).masks
        assert masks["attention0"].tolist() == [True, False, False, True], criterion


def test_taylor_is_the_derivative_by_a_factor_on_a_head(model, rng):
    x, y = data_for(model, rng)
    found = {}

    def gates(units):
        found[units.name] = units.gradients(training=False).gate
        return np.zeros(len(units.kernel))

    tfspline.register_criterion("gates", gates)
    tfspline.plan(model, 0.5, criterion="gates", data=(x, y))
    layer = model.get_layer("attention0")
    weights = layer.get_weights()

    def loss(factor):
        scaled = [weight.copy() for weight in weights]
        scaled[6][2] *= factor  # all that is read of head 2
        layer.set_weights(scaled)
        return np.square(np.asarray(model(x), "float64") - y).mean()

    expected = (loss(1.01) - loss(0.99)) / 0.02
    np.testing.assert_allclose(found["attention0"][0, 2], expected, rtol=0.02)


def test_budgets_leave_heads(model):
    def left(*args, **options):
        return heads(tfspline.plan(model, *args, **options))["attention0"]

    assert left(0.99) == 1 and left(0.9, min_units=3) == 3 and left(0.6, round_to=2) == 2 and left(0.5, round_to=8) == 4
    assert left(0.5, protect=["attention0"]) == 4
    plan = tfspline.plan(model, {"attention0": 0.5})
    macs = {row["layer"]: (row["macs_before"], row["macs_after"]) for row in plan.rows()}["attention0"]
    assert macs == (4 * 4 * 12 * 12 + 2 * 4 * 4 * 12, 4 * 4 * 12 * 6 + 2 * 4 * 4 * 6)
    assert tfspline.plan(model, max_flops=0.6).cost()["macs"][1] <= 0.6 * tfspline.flops(model).macs


def test_plans_and_masks_of_heads_can_be_edited_and_saved(keras, model, rng, tmp_path):
    plan = tfspline.plan(model, 0.5).keep("attention0", range(4)).remove("attention0", [2])
    slim = check_cut(model, plan, rng)
    assert slim.get_layer("attention0").get_config()["num_heads"] == 3
    with pytest.raises(ValueError, match="'attention0'.*stay"):
        plan.remove("attention0", range(4))
    plan.save(tmp_path / "plan.json")
    plan.masks.save(tmp_path / "masks.json")
    again = vit(keras)
    assert np.array_equal(tfspline.Plan.load(tmp_path / "plan.json", again).removed, plan.removed)
    assert tfspline.Masks.load(tmp_path / "masks.json", again) == plan.masks
    masked = plan.mask(model)
    assert tfspline.Masks.from_model(masked) == plan.masks
    x = inputs_for(model, rng)
    assert difference(tfspline.slim(masked)(x), slim(x)) < 1e-5
    slim.save(tmp_path / "slim.keras")
    assert difference(keras.models.load_model(tmp_path / "slim.keras")(x), slim(x)) < 1e-6


def test_automatic_names_of_attention_may_differ(rng, tmp_path):
    def build():
        inputs = keras3.Input((5, 6))
        x = keras3.layers.MultiHeadAttention(2, 3)(inputs, inputs)
        return keras3.Model(inputs, keras3.layers.Dense(2)(keras3.layers.Dense(8, "relu")(x)))

    plan = tfspline.plan(build(), 0.5)
    plan.save(tmp_path / "plan.json")
    assert np.array_equal(tfspline.Plan.load(tmp_path / "plan.json", build()).removed, plan.removed)


def test_pruning_on_data(keras, rng):
    model = scramble(vit(keras, blocks=2), rng)
    x = inputs_for(model, rng, batch=40)
    errors = []
    for options in ({"data": x}, {"data": x, "compensate": "none"}, {"compensate": "merge"}):
        small = tfspline.prune(model, 0.5, **options)
        heads = [small.get_layer(f"attention{i}").get_config()["num_heads"] for i in range(2)]
        assert sum(heads) in (4, 5) and min(heads) >= 1  # each group keeps a quarter, so hidden units go instead
        errors.append(difference(model(x), small(x)))
    assert errors[0] < 0.5 * min(errors[1:])


def test_equal_values_are_no_reason_to_merge_heads(model, rng):
    """Heads with the same values attend to different positions."""
    layer = model.get_layer("attention0")
    weights = layer.get_weights()
    for i in (4, 5):
        weights[i][..., 1, :] = weights[i][..., 0, :]
    layer.set_weights(weights)
    plan = tfspline.plan(model, {"attention0": 0.25}).keep("attention0", range(4)).remove("attention0", [1])
    x = inputs_for(model, rng)
    assert difference(plan.mask(model)(x), plan.apply(model, compensate="merge")(x)) < 1e-5


def test_training_with_masks_keeps_heads_off(model, rng):
    x, y = data_for(model, rng)
    masks = tfspline.plan(model, 0.5, criterion="l1").masks
    masks.apply(model)
    model.fit(x, y, epochs=1, verbose=0)
    tfspline.Masks.release(model)
    assert tfspline.Masks.from_model(model) == masks
    assert tfspline.slim(model).get_layer("attention0").get_config()["num_heads"] == 2
