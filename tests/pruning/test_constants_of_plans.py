"""Constants that removed units emit are folded into their readers when a plan is applied."""

import numpy as np
import pytest
from helpers.zoo import FAMILIES, chain, difference, inputs_for, scramble

import tfspline
from tfspline import _keras

EXACT = 1e-5  # of the largest output


def silence(model, graph, removed):
    """Sets all gammas and kernel columns of some units to zero; their betas and biases stay."""
    layers = _keras.layer_paths(model)
    for part in graph.slices:
        if part.role == "produced" or part.weight == "gamma":
            weight = _keras.weights(layers[part.layer])[part.index]
            value = weight.numpy()
            np.moveaxis(value, part.axis, 0)[removed[part.units]] = 0
            weight.assign(value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_masked_and_slim_fold_the_same_constants(keras, rng, family):
    model = scramble(family(keras), rng)
    plan = tfspline.plan(model, 0.5, criterion="random")
    silence(model, plan.graph, plan.removed)
    x = inputs_for(model, rng)
    slim, masked = plan.apply(model), plan.mask(model)
    assert difference(masked(x), slim(x)) <= EXACT
    assert difference(plan.apply(model, data=x, compensate="none", recalibrate=False)(x), slim(x)) <= EXACT
    if family is chain:  # no padding, no pooling: exact
        assert difference(model(x), slim(x)) <= EXACT


@pytest.mark.parametrize("use_bias", [True, False])
def test_constant_by_hand(keras, use_bias):
    layers = keras.layers
    last = layers.Dense(1, use_bias=use_bias, name="last")
    model = keras.Sequential([keras.Input((1,)), layers.Dense(2, "relu", name="first"), last])
    model.get_layer("first").set_weights([np.array([[2.0, 0.0]]), np.array([0.0, 3.0])])
    last.set_weights([np.array([[1.0], [5.0]]), np.array([7.0])][: 1 + use_bias])
    plan = tfspline.plan(model, {"first": 0.5}, criterion="l1")
    for copy in (plan.apply(model), plan.apply(model, compensate="merge"), plan.mask(model)):
        kernel, bias = copy.get_layer("last").get_weights()
        assert kernel.ravel()[0] == 1 and bias == [15 + 7 * use_bias]  # relu(3) times 5


def test_constant_into_the_moving_mean(keras, rng):
    layers = keras.layers
    model = keras.Sequential(
        [
            *(keras.Input((4,)), layers.Dense(6, "relu", name="first"), layers.Dense(3, use_bias=False)),
            *(layers.BatchNormalization(), layers.Dense(2)),
        ]
    )
    plan = tfspline.plan(scramble(model, rng), {"first": 0.5}, criterion="random")
    silence(model, plan.graph, plan.removed)
    x = inputs_for(model, rng)
    for copy in (plan.apply(model), plan.mask(model)):
        assert difference(model(x), copy(x)) <= EXACT
    assert plan.apply(model).count_params() == plan.cost()["params"][1]
