"""Merging of removed units into kept ones: which pairs are merged, and into what."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf

import tfspline


def test_units_on_opposite_sides_are_not_merged(keras, rng):
    layers = keras.layers
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, "relu", name="a"), layers.Dense(1)])
    model.layers[0].set_weights([np.float32([[1, -2, 0], [0, 0, 1]]), np.zeros(3, "float32")])
    plan = tfspline.plan(model, 0.4)
    plan.removed[:] = False
    plan.remove("a", [1])  # same hyperplane as unit 0, with the other side on
    merged, plain = plan.apply(model, compensate="merge"), plan.apply(model)
    np.testing.assert_array_equal(merged.layers[1].kernel, plain.layers[1].kernel)


def two_units(keras, activation, cosine, offsets=(0.0, 0.0), between=()):
    """A layer of two units with normals of length 1 and 2, their angle and their offsets b / |w| given."""
    layers = keras.layers
    dense = layers.Dense(2, activation, name="a")
    model = keras.Sequential([keras.Input((2,)), dense, *between, layers.Dense(1, name="b")])
    normals = np.float32([[1, 2 * cosine], [0, 2 * np.sqrt(1 - cosine**2)]])
    dense.set_weights([normals, np.float32([offsets[0], 2 * offsets[1]])])
    model.get_layer("b").set_weights([np.float32([[3], [5]]), np.zeros(1, "float32")])
    return model, tfspline.plan(model, {"a": 0.5}).keep("a", [0, 1]).remove("a", [1])


def read_by_b(model, plan):
    return plan.apply(model, compensate="merge").get_layer("b").kernel.numpy().item()


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("cosine", "offsets", "kernel"),
    [
        (1.0, (0.5, 0.5), 13),  # the unit is twice the other one: 3 + 2 * 5
        (0.8, (0.0, 0.0), 13),  # 2 (1 - 0.8) = 0.4
        (0.8, (0.4, 0.1), 13),  # 0.4 + 0.3^2 = 0.49
        (0.8, (0.4, 0.0), 3),  # 0.4 + 0.4^2 = 0.56
        (0.7, (0.0, 0.0), 3),  # 2 (1 - 0.7) = 0.6
        (1.0, (0.5, -0.5), 3),
        (-0.9, (0.0, 0.0), 3),
    ],
)
def test_close_units_are_merged_without_data(keras, cosine, offsets, kernel):
    model, plan = two_units(keras, "relu", cosine, offsets)
    np.testing.assert_allclose(read_by_b(model, plan), kernel, rtol=1e-5)


def homogeneous_and_others(keras):
    """Activations, or layers between two Dense layers, and whether f(c x) = c f(x) for c > 0."""
    layers = keras.layers

    own = layers.PReLU(alpha_initializer=keras.initializers.RandomUniform(0.1, 0.9))
    yield from [("relu", True), ("linear", True), ("leaky_relu", True), (layers.LeakyReLU(0.1), True)]
    yield from [(layers.PReLU(), True), (layers.Activation("relu"), True), (layers.Dropout(0.5), True)]
    yield from [(layers.ReLU(negative_slope=0.2), True), (layers.Rescaling(2.0), True), (own, False)]
    yield from [("tanh", False), ("relu6", False), ("elu", False), ("gelu", False), ("softplus", False)]
    yield from [(layers.ReLU(max_value=1.0), False), (layers.ReLU(threshold=0.5), False), ("sigmoid", False)]
    yield from [(layers.Rescaling(2.0, 0.5), False), (layers.ELU(), False), ("hard_sigmoid", False)]
    yield from [(layers.BatchNormalization(center=False, scale=False), False)]


def test_only_positively_homogeneous_functions_are_merged(keras):
    if keras.__name__ == "tf_keras":
        keras.utils.get_custom_objects()["leaky_relu"] = tf.nn.leaky_relu
    for function, merged in homogeneous_and_others(keras):
        by_name = isinstance(function, str)
        between = () if by_name else (keras.layers.Activation("relu"), function)
        model, plan = two_units(keras, function if by_name else None, 1.0, (0.5, 0.5), between)
        assert (read_by_b(model, plan) != 3) == merged, function


@pytest.mark.sweep(2)
@pytest.mark.parametrize("expression", ["x + 1", "1 - x", "x * x", "x * 2", "x / 2", "x + x"])
def test_expressions_between_units_and_their_reader(keras, expression):
    layers = keras.layers
    inputs = keras.Input((2,))
    x = layers.Dense(2, "relu", name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="b")(eval(expression, {"x": x})))
    for name, kernel in (("a", [[1, 2], [0, 0]]), ("b", [[3], [5]])):
        layer = model.get_layer(name)
        layer.set_weights([np.float32(kernel), np.zeros(layer.units, "float32")])
    plan = tfspline.plan(model, {"a": 0.5}).keep("a", [0, 1]).remove("a", [1])
    assert read_by_b(model, plan) == (13 if expression in ("x * 2", "x / 2", "x + x") else 3)


@pytest.mark.parametrize("fan_in", [3, 9, 27, 64])
def test_merging_random_layers_is_not_worse_than_dropping(rng, fan_in):
    layers = keras3.layers
    model = keras3.Sequential([keras3.Input((fan_in,)), layers.Dense(40, "relu", name="a"), layers.Dense(8)])
    plan = tfspline.plan(model, {"a": 0.5}, criterion="random")
    x = rng.normal(size=(500, fan_in))
    ratios = []
    for bias in (0.0, 0.5) * 4:
        kernel = rng.normal(size=(fan_in, 40)) / np.sqrt(fan_in)
        model.layers[0].set_weights([kernel, rng.normal(0, bias, 40)])
        errors = [np.square(plan.apply(model, compensate=how)(x) - model(x)).mean() for how in ("merge", "none")]
        ratios.append(errors[0] / errors[1])
    assert np.mean(ratios) <= (0.7 if fan_in == 3 else 1.001)
