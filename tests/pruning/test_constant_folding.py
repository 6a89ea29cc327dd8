"""Constants of units that are switched off are folded into the layers that read them."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from helpers.slimming import EXACT, check, fill, measure, zero
from helpers.zoo import difference, inputs_for, inverted, preactivated, residual, scramble

import tfspline


def test_constant_into_dense_by_hand(keras, rng):
    layers = keras.layers
    model = keras.Sequential([keras.Input((1,)), layers.Dense(3, "relu", name="a"), layers.Dense(2, name="b")])
    model.set_weights(
        [
            np.array([[1.0, 0, 0]]),
            np.array([0.0, 3, -1]),  # relu(3) = 3 and relu(-1) = 0
            np.array([[1.0, 1], [2, -1], [5, 5]]),
            np.array([0.5, 0]),
        ]
    )
    small = check(model, rng)
    assert small.get_layer("a").units == 1 and isinstance(small, keras.Sequential)
    np.testing.assert_allclose(small.get_layer("b").kernel.numpy(), [[1, 1]])
    np.testing.assert_allclose(small.get_layer("b").bias.numpy(), [0.5 + 3 * 2, -3])


def pair(keras, padding, constant, **options):
    """A 1x1 convolution whose second channel is constant, and a 3x3 one that reads it."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            layers.Conv2D(2, 1, activation="relu", name="a"),
            layers.Conv2D(1, 3, padding=padding, name="b", **options),
            layers.Flatten(),
        ]
    )
    kernel = np.ones((3, 3, 2, 1))
    kernel[:, :, 1] = 0.5
    values = [np.array([[[[1.0, 0]]]]), np.array([0.0, constant]), kernel, np.array([1.0])]
    model.set_weights(values[: len(model.weights)])
    return model


def test_constant_into_valid_convolution_by_hand(keras, rng):
    small = check(pair(keras, "valid", 2.0), rng)
    assert small.get_layer("a").filters == 1
    np.testing.assert_allclose(small.get_layer("b").bias.numpy(), [1 + 2 * 0.5 * 9])


def test_layer_without_bias_gets_one(keras, rng):
    small = check(pair(keras, "valid", 2.0, use_bias=False), rng)
    np.testing.assert_allclose(small.get_layer("b").bias.numpy(), [2 * 0.5 * 9])


def test_constant_into_same_convolution_is_inexact(keras, rng):
    model = pair(keras, "same", 2.0)
    assert check(model, rng, exact=0).get_layer("a").filters == 2
    small, measured = measure(model, allow_inexact=True)
    assert small.get_layer("a").filters == 1
    np.testing.assert_allclose(small.get_layer("b").bias.numpy(), [1 + 2 * 0.5 * 9])
    # at a corner four taps of nine see the constant: the output is 5 x 2 x 0.5 too large
    largest = 5 / measured
    x = rng.normal(size=(100, 5, 5, 1)).astype("float32")
    np.testing.assert_allclose(np.abs(model(x) - small(x)).max(), 5, rtol=1e-5)
    assert 5 < largest < np.abs(model(x)).max() * 1.2
    # the constant 0 equals the padding
    assert check(pair(keras, "same", -2.0), rng).get_layer("a").filters == 1


def test_positions_after_flatten_have_their_own_constants(keras, rng):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((2, 1)),
            layers.Conv1D(2, 1, name="a"),
            layers.ZeroPadding1D((1, 0)),
            layers.Flatten(),
            layers.Dense(1, name="b"),
        ]
    )
    # positions 0, x, x of channel 0 and 0, 2, 2 of channel 1; weights 1..6
    model.set_weights([np.array([[[1.0, 0]]]), np.array([0.0, 2]), np.arange(1.0, 7)[:, None], np.array([0.0])])
    small = check(model, rng)
    np.testing.assert_allclose(small.get_layer("b").bias.numpy(), [2 * 4 + 2 * 6])
    np.testing.assert_allclose(small.get_layer("b").kernel.numpy()[:, 0], [1, 3, 5])


def test_zero_gammas_are_folded_into_the_next_moving_mean(keras, rng):
    model = scramble(residual(keras), rng)
    stream, inner = [layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)][:2]
    zero(model, inner, [0, 2, 4], "gamma")
    fill(model, inner, "beta", -1.0, [0, 2])  # relu: 0, and the next convolution has padding "same"
    fill(model, inner, "beta", 1.0, [4])
    small = check(model, rng)
    assert small.get_layer("inner").filters == 4
    small, measured = measure(model, allow_inexact=True)
    assert small.get_layer("inner").filters == 3 and EXACT < measured < 1
    assert len(small.weights) == len(model.weights)  # the constant is in the moving mean, not in a new bias
    # a unit of the residual stream is removed only if every layer that adds to it has a zero gamma
    zero(model, stream, [1], "gamma")
    assert tfspline.slim(model).get_layer("stem").filters == 8


def test_constant_into_moving_mean_by_hand(keras, rng):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(2, name="a"),
            layers.Dense(1, use_bias=False, name="b"),
            layers.BatchNormalization(name="norm"),
        ]
    )
    model.get_layer("a").set_weights([np.array([[1.0, 0]]), np.array([0.0, 3])])
    model.get_layer("b").set_weights([np.array([[1.0], [2]])])
    small = check(model, rng)
    np.testing.assert_allclose(small.get_layer("norm").moving_mean.numpy(), [-6])
    assert small.get_layer("b").bias is None


@pytest.mark.parametrize("why", ["called twice", "an output"])
def test_moving_mean_with_other_readers_is_not_changed(keras, rng, why):
    layers = keras.layers
    inputs = keras.Input((3,))
    x = layers.Dense(4, name="a")(inputs)
    read = layers.Dense(5, use_bias=False, name="b")
    y = read(x)
    z = layers.BatchNormalization()(read(x) if why == "called twice" else y)
    model = keras.Model(inputs, [z, layers.BatchNormalization()(y) if why == "called twice" else y])
    zero(scramble(model, rng), "a", [1, 2])
    small = check(model, rng)
    assert small.get_layer("a").units == 2 and small.get_layer("b").bias is not None


@pytest.mark.parametrize("family", [inverted, preactivated], ids=lambda family: family.__name__)
def test_zero_gamma_anywhere_makes_a_unit_constant(keras, rng, family):
    """After a depthwise convolution, or before all readers of a stream without other normalization."""
    model = scramble(family(keras), rng)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    reading = [norm for norm in norms if norm.gamma.shape[0] in (8, 16)]
    first = {"inverted": reading[-1:], "preactivated": reading}[family.__name__]
    for norm in first:
        pair = [6, 7] if norm.gamma.shape[0] == 16 else [3]  # both outputs of the depthwise multiplier
        zero(model, norm.name, pair, "gamma")
        fill(model, norm.name, "beta", -1.0, pair)
    small = check(model, rng)
    assert small.get_layer({"inverted": "expand", "preactivated": "stem"}[family.__name__]).filters == 7


def test_constant_before_softmax_varies_after_it(keras, rng):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "softmax", name="a"),
            layers.Dense(3, name="b"),
            layers.Dense(2),
        ]
    )
    zero(scramble(model, rng), "a", [0])
    kernel = model.get_layer("b").kernel.numpy()
    kernel[1:, 0] = 0  # reads only channel 0
    model.get_layer("b").kernel.assign(kernel)
    assert check(model, rng, allow_inexact=True).get_layer("b").units == 3


def test_gate_on_a_zero_unit_is_ignored(keras, rng):
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="x")(inputs)
    gate = layers.Dense(4, "sigmoid", name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(5, 3, padding="same")(layers.Multiply()([x, gate]))
    model = scramble(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))), rng)
    zero(model, "x", [0, 1])
    fill(model, "x", "bias", -1.0, [0])
    fill(model, "x", "bias", 1.0, [1])  # 1 x a gate that varies
    small = check(model, rng)
    assert small.get_layer("x").filters == small.get_layer("gate").units == 3


def test_constant_scaled_by_a_varying_map_varies(keras, rng):
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, name="x")(inputs)
    x = layers.Multiply()([x, layers.Conv2D(1, 1, activation="sigmoid")(inputs)])
    model = scramble(keras.Model(inputs, layers.Conv2D(2, 1)(x)), rng)
    zero(model, "x", [0, 1])
    fill(model, "x", "bias", 0.0, [0])
    assert check(model, rng, allow_inexact=True).get_layer("x").filters == 3


@pytest.mark.parametrize("values, left", [((2.0, 2.0), 2), ((2.0, 3.0), 3)], ids=["agree", "disagree"])
def test_shared_reader_must_read_the_same_constant(keras, rng, values, left):
    layers = keras.layers
    inputs = keras.Input((4,))
    a, b = layers.Dense(3, name="a")(inputs), layers.Dense(3, name="b")(inputs)
    twice = layers.Dense(2, "tanh", name="twice")
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([twice(a), twice(b)])))
    scramble(model, rng)
    for layer, value in zip("ab", values, strict=True):
        zero(model, layer, [1])
        fill(model, layer, "bias", value, [1])
    small = check(model, rng)
    assert small.get_layer("a").units == small.get_layer("b").units == left
    mean, measured = measure(model, allow_inexact=True)
    shift = mean.get_layer("twice").bias.numpy() - model.get_layer("twice").bias.numpy()
    np.testing.assert_allclose(shift, np.mean(values) * model.get_layer("twice").kernel.numpy()[1], rtol=1e-5)
    assert (measured > 1e-3) == (values == (2.0, 3.0))


READERS = {
    "grouped": lambda layers: layers.Conv2D(6, 3, groups=2),
    "strided": lambda layers: layers.Conv2D(5, 3, strides=2, dilation_rate=1),
    "separable": lambda layers: layers.SeparableConv2D(5, 3, depth_multiplier=2),
    "a point": lambda layers: layers.Conv2D(5, 1, strides=2, padding="same"),
    "transposed": lambda layers: layers.Conv2DTranspose(5, 1),
    "dense": lambda layers: layers.Dense(5),
    "depthwise": lambda layers: layers.DepthwiseConv2D(3, depth_multiplier=2),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", READERS)
def test_constants_into_every_kind_of_reader(keras, rng, kind):
    layers = keras.layers
    inputs = keras.Input((7, 7, 3))
    x = layers.MaxPooling2D(2, 1)(layers.Conv2D(8, 3, activation="relu", name="a")(inputs))
    x = layers.ReLU()(READERS[kind](layers)(x))
    model = scramble(keras.Model(inputs, layers.Conv2D(2, 1)(x)), rng)
    zero(model, "a", [1, 2, 5, 6])  # in a grouped convolution the same positions of both groups
    fill(model, "a", "bias", 0.7, [1, 2])
    fill(model, "a", "bias", 0.4, [5, 6])
    assert check(model, rng).get_layer("a").filters == 4


def test_convolution_with_one_channel_per_group_needs_no_bias(keras, rng):
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, name="a")(inputs)
    x = layers.Conv2D(8, 3, groups=4, use_bias=False, name="each")(x)
    model = scramble(keras.Model(inputs, layers.Conv2D(2, 1)(x)), rng)
    zero(model, "a", [0, 2])
    small = check(model, rng)
    assert (small.get_layer("a").filters, small.get_layer("each").filters) == (2, 4)
    assert small.get_layer("each").bias is None


def ops_of(keras):
    """Bare ops on symbolic tensors: mean, minimum, transpose."""
    if keras.__name__ == "keras":
        return keras.ops.mean, keras.ops.min, keras.ops.transpose
    return tf.reduce_mean, tf.reduce_min, tf.transpose


def test_constants_pass_bare_ops(keras, rng):
    layers, (mean, minimum, transpose) = keras.layers, ops_of(keras)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, name="a")(inputs)
    pooled = mean(transpose(x * 2.0, (0, 2, 1, 3)), axis=(1, 2))
    lowest = minimum(layers.ZeroPadding2D()(layers.Conv2D(4, 1, name="b")(inputs)), axis=(1, 2))
    model = scramble(keras.Model(inputs, [layers.Dense(2)(pooled), layers.Dense(2)(lowest)]), rng)
    zero(model, "a", [0, 2])
    small = check(model, rng, allow_inexact=True)
    assert (small.get_layer("a").filters, small.get_layer("b").filters) == (2, 4)


def test_constant_into_transposed_convolution_is_inexact(keras, rng):
    layers = keras.layers
    inputs = keras.Input((5, 5, 3))
    x = layers.Conv2D(4, 1, activation="relu", name="a")(inputs)
    model = scramble(keras.Model(inputs, layers.Conv2DTranspose(2, 2, strides=2)(x)), rng)
    zero(model, "a", [0, 1])
    fill(model, "a", "bias", -1.0, [0])
    fill(model, "a", "bias", 1.0, [1])
    assert check(model, rng).get_layer("a").filters == 3
    small, measured = measure(model, allow_inexact=True)
    assert small.get_layer("a").filters == 2 and measured > EXACT
    x = inputs_for(model, rng, 50)  # each output pixel sees one tap: the bias takes their mean
    np.testing.assert_allclose(np.mean(model(x) - small(x), axis=(0, 1, 2)), 0, atol=1e-5)


@pytest.mark.parametrize("mean, left", [(False, 2), (True, 4)], ids=["map", "mean"])
def test_constant_must_not_depend_on_an_unknown_size(keras, rng, mean, left):
    layers = keras.layers
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 1, name="a")(inputs)
    if mean:  # the border's share of the mean depends on the size
        x = layers.GlobalAveragePooling2D(keepdims=True)(layers.DepthwiseConv2D(3, padding="same")(x))
    model = scramble(keras.Model(inputs, layers.Conv2D(2, 1 if mean else 3)(x)), rng)
    zero(model, "a", [0, 1])
    small = tfspline.slim(model)
    assert small.get_layer("a").filters == left
    x = rng.normal(size=(2, 9, 12, 3)).astype("float32")
    assert difference(model(x), small(x)) <= EXACT


def test_removed_and_kept_units_are_logged(keras, rng, caplog):
    logging.getLogger("absl").propagate = True
    with caplog.at_level(logging.INFO, "absl"):
        tfspline.slim(pair(keras, "same", 2.0))
    assert "removes 0 unit(s): none" in caplog.text
    assert "keeps 1 constant unit(s) because folding them is not exact: a (1 of 2)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "absl"):
        tfspline.slim(pair(keras, "valid", 2.0))
    assert "removes 1 unit(s): a (1 of 2)" in caplog.text and "keeps" not in caplog.text
