"""Checks that a masked model and its slim model compute the same function, and that the slim model trains."""

import numpy as np

import tfspline
from helpers.zoo import difference, inputs_for, scramble

EXACT = 1e-5  # of the largest output


def check_cut(model, plan, rng):
    """Check that masked and slim outputs agree, that costs match the plan, and that the model is unchanged."""
    before = [weight.numpy() for weight in model.weights]
    slim, masked = plan.apply(model), plan.mask(model)
    x = inputs_for(model, rng)
    assert difference(masked(x), slim(x)) <= EXACT
    assert difference(model(x), slim(x)) > 1e-3  # the removed units did contribute
    (params_before, params_after), (_, macs_after) = plan.cost()["params"], plan.cost()["macs"]
    assert model.count_params() == masked.count_params() == params_before
    assert slim.count_params() == params_after < params_before
    assert tfspline.flops(slim).macs == macs_after
    assert all(np.array_equal(weight, old) for weight, old in zip(model.weights, before, strict=True))
    return slim


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
