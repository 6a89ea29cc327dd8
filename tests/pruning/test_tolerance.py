"""`slim` with a tolerance: units that are constant for all practical purposes."""

import numpy as np
import pytest
from helpers.zoo import difference

import tfspline


def normalized(keras, gamma, beta):
    layers = keras.layers
    stack = [layers.Dense(len(gamma), name="a"), layers.BatchNormalization(name="n"), layers.ReLU(), layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *stack])
    model.get_layer("n").gamma.assign(gamma)
    model.get_layer("n").beta.assign(beta)
    return model


def test_a_tiny_gamma_beside_a_large_beta_is_folded(keras, rng):
    model = normalized(keras, [1.0, 1e-6, 1.0], [0.0, 5.0, 0.0])
    assert tfspline.slim(model).get_layer("a").units == 3
    report = tfspline.slim_report(model, tolerance=1e-3)
    assert report.model.get_layer("a").units == 2
    assert report.masks["a"].tolist() == [True, False, True]
    assert 0 < report.difference < 1e-5
    assert np.isclose(model.get_layer("n").gamma.numpy()[1], 1e-6)  # the model itself is not changed


def test_the_bound_is_relative_to_the_largest_scale_or_offset(keras):
    model = normalized(keras, [1.0, 0.02, 0.5], [0.0, 4.0, 0.0])  # a variance of 1 and epsilon 1e-3: spread 0.01999
    assert tfspline.slim(model, tolerance=0.0049).get_layer("a").units == 3  # 0.0049 * 4 = 0.0196
    assert tfspline.slim(model, tolerance=0.0051).get_layer("a").units == 2  # 0.0051 * 4 = 0.0204


def test_a_layer_without_normalization_is_judged_by_its_kernel(keras, rng):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "relu", name="a"), keras.layers.Dense(2)])
    kernel = np.array([[3.0, 3e-5, 1.0], [4.0, 4e-5, 1.0]])  # columns of norms 5, 5e-5 and 1.4
    model.get_layer("a").set_weights([kernel, np.array([0.0, 2.0, 0.0])])
    small = tfspline.slim(model, tolerance=1e-4)
    assert small.get_layer("a").units == 2
    x = rng.normal(size=(8, 2)).astype("float32")
    assert 0 < difference(model(x), small(x)) < 1e-3


@pytest.mark.sweep(2)
@pytest.mark.parametrize("tolerance", [-1e-3, 1.0, "a"])
def test_tolerance_must_be_a_share(keras, tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        tfspline.slim(normalized(keras, [1.0, 1.0], [0.0, 0.0]), tolerance=tolerance)
