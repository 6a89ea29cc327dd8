"""Weights that are NaN, infinite, or a negative variance: nothing can be said about the units of such a model."""

import math

import numpy as np
import pytest
from helpers import zoo

import tfspline
from tfspline._keras.constraints import not_finite


def model_of(keras, rng):
    return zoo.scramble(zoo.small_cnn(keras), rng)


def broken(model, layer, weight, value):
    """The model with one number of a weight replaced."""
    variable = getattr(model.get_layer(layer), weight)
    numbers = variable.numpy()
    numbers.flat[1] = value
    variable.assign(numbers)
    return model


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("layer", "weight", "value"),
    [
        *[("bn", weight, math.nan) for weight in ("gamma", "beta", "moving_mean", "moving_variance")],
        *[("bn2", weight, -math.inf) for weight in ("gamma", "beta", "moving_mean", "moving_variance")],
        ("bn", "moving_variance", math.inf),
        ("bn", "moving_variance", -1.0),
        *[("conv2", weight, value) for weight in ("kernel", "bias") for value in (math.nan, math.inf)],
        ("head", "kernel", math.nan),
    ],
)
def test_the_layer_is_named(keras, rng, layer, weight, value):
    model = broken(model_of(keras, rng), layer, weight, value)
    for criterion in ("spline", "bn_scale", "random"):
        with pytest.raises(ValueError, match=f"Layer '{layer}' has NaN or Inf weights"):
            tfspline.plan(model, 0.5, criterion=criterion)


def fit(model, **options):
    model.compile("sgd", "mse")
    model.fit(np.zeros((4, 6, 6, 2)), np.zeros((4, 3)), verbose=0, **options)


CALLS = {
    "plan on data": lambda model, plan, x: tfspline.plan(model, 0.5, criterion="spline_data", data=x),
    "merging": lambda model, plan, x: plan.apply(model, compensate="merge"),
    "refitting": lambda model, plan, x: plan.apply(model, data=x),
    "slim": lambda model, plan, x: tfspline.slim(model),
    "codes": lambda model, plan, x: tfspline.region_codes(model, x),
    "affine maps": lambda model, plan, x: tfspline.affine_map(model, x),
    "report": lambda model, plan, x: tfspline.partition_report(model, model, x),
    "SplinePruning": lambda model, plan, x: fit(
        model, callbacks=[tfspline.SplinePruning(lambda step: (True, 0.5))], epochs=1
    ),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_that_judges_units_raises(keras, rng, call):
    model = model_of(keras, rng)
    plan = tfspline.plan(model, 0.5)
    broken(model, "bn2", "moving_variance", math.nan)
    x = zoo.inputs_for(model, rng)
    with pytest.raises(ValueError, match="'bn2'.*assign finite numbers"):
        CALLS[call](model, plan, x)
    model.get_layer("bn2").moving_variance.assign(np.ones(6))
    CALLS[call](model, plan, x)


def test_a_rounding_error_below_zero_is_a_variance(keras, rng):
    model = broken(model_of(keras, rng), "bn", "moving_variance", -1e-8)
    assert not_finite(model) is None
    assert np.isfinite(model(zoo.inputs_for(model, rng))).all()


def test_constants_of_custom_layers_may_be_infinite(keras, rng):
    class Masked(keras.layers.Layer):
        def build(self, shape):
            constant = keras.initializers.Constant(-math.inf)
            self.mask = self.add_weight(name="mask", shape=(8,), initializer=constant, trainable=False)

        def call(self, x, training=None):
            return x if training else x + 0 * x

    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), Masked(), layers.Dense(8), layers.Dense(2)])
    assert tfspline.plan(model, 0.5).removed.any()
    model.layers[1].mask.assign(np.full(8, math.nan))
    with pytest.raises(ValueError, match="'masked'"):
        tfspline.plan(model, 0.5)
