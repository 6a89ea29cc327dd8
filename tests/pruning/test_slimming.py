"""Slimming: units that are switched off, and units that are not read, are removed."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from helpers.random_graphs import build
from helpers.slimming import EXACT, check, fill, measure, zero, zero_kernels
from helpers.zoo import FAMILIES, chain, difference, inputs_for, inverted, scramble

import tfspline


@pytest.mark.sweep(3)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_slim_removes_what_a_plan_masks(keras, rng, family):
    model = scramble(family(keras), rng)
    plan = tfspline.plan(model, 0.5)
    slim, found = plan.apply(model), tfspline.slim(plan.mask(model))
    assert [weight.shape for weight in found.weights] == [weight.shape for weight in slim.weights]
    x = inputs_for(model, rng)
    assert difference(slim(x), found(x)) <= EXACT


@pytest.mark.sweep(3)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_zero_kernels_are_removed_and_biases_folded(keras, rng, family):
    model = zero_kernels(scramble(family(keras), rng), 0.5)
    assert check(model, rng).count_params() < model.count_params()


@pytest.mark.sweep(3)
@pytest.mark.parametrize("seed", range(10))
def test_random_graphs_with_zero_kernels(keras, rng, seed):
    model, _ = build(keras, seed)
    check(zero_kernels(scramble(model, rng), 0.4), rng, exact=1e-4)


ADD_UP = {
    "dot": lambda keras, x, other: keras.layers.Dot(2)([x, other]),
    "dot with itself": lambda keras, x, other: keras.layers.Dot(2)([x, x]),
    "attention": lambda keras, x, other: keras.layers.Attention()([x, keras.layers.Dense(3)(x), other]),
    "matmul with a constant": lambda keras, x, other: ops_of(keras).matmul(x, np.ones((8, 2), "float32")),
    "einsum": lambda keras, x, other: ops_of(keras).einsum("bic,bjc->bij", x, other),
}


def ops_of(keras):
    return getattr(keras, "ops", tf)


@pytest.mark.parametrize("sums", ADD_UP)
def test_units_that_are_added_up_without_a_weight_are_read(keras, rng, sums):
    """They may go only if they add nothing, as they or what they are multiplied with is zero."""
    inputs = keras.Input((5, 3))
    x, other = (keras.layers.Dense(8, "relu", name=name)(inputs) for name in ("x", "other"))
    model = keras.Model(inputs, keras.layers.Dense(2)(ADD_UP[sums](keras, x, other)))
    scramble(model, rng)
    whole = check(model, rng)
    assert [weight.shape for weight in whole.weights] == [weight.shape for weight in model.weights]
    plan = tfspline.plan(model, {"x": 0.5})
    masked = plan.mask(model)
    assert check(masked, rng).get_layer("x").units == 4
    fill(masked, "x", "bias", 0.7)
    assert check(masked, rng).get_layer("x").units == (4 if sums in ("dot", "einsum") else 8)


@pytest.mark.parametrize("family", [chain, inverted], ids=lambda family: family.__name__)
def test_model_without_zeros_is_copied(keras, rng, family):
    model = scramble(family(keras), rng)
    small = check(model, rng, exact=0)
    assert small is not model
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), small.get_weights(), strict=True))


def test_unread_units_are_removed(keras, rng):
    model = scramble(chain(keras), rng)
    kernel = model.get_layer("b").kernel.numpy()
    kernel[[2, 3]] = 0
    model.get_layer("b").kernel.assign(kernel)
    assert check(model, rng).get_layer("a").units == 10


def test_unknown_reader_keeps_what_it_reads(keras, rng):
    class Mixer(keras.layers.Layer):
        def build(self, shape):
            self.mix = self.add_weight(name="mix", shape=(shape[-1], 2))

        def call(self, x):
            return tf.matmul(x, self.mix)

    def rule(call):
        call.consume("mix", 0, call.channels())
        return call.opaque()

    tfspline.register_channel_rule(Mixer, rule)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="a"), Mixer(name="mixer")])
    zero(scramble(model, rng), "a", [0, 1])
    mix = model.get_layer("mixer").mix
    mix.assign(mix.numpy() * [[1], [0], [1], [1]])
    assert check(model, rng).get_layer("a").units == 3


def test_nested_models_integer_and_dict_inputs(keras, rng):
    layers = keras.layers
    tokens, numbers = keras.Input((5,), dtype="int32", name="tokens"), keras.Input((3,), name="numbers")
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(6, "relu", name="hidden"), layers.Dense(4)], name="inner")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 6, name="embed")(tokens))
    x = layers.Concatenate()([x, layers.Dense(2, name="more")(numbers)])
    model = keras.Model({"tokens": tokens, "numbers": numbers}, {"y": layers.Dense(2)(inner(x))})
    scramble(model, rng)
    zero(model, "embed", [0, 1, 2], "embeddings")
    fill(model, "embed", "embeddings", 0.3, [1])  # the same for all tokens
    zero(model, "more", [0])
    zero(model, "inner/hidden", [1, 2, 3])
    small, measured = measure(model)
    x = {"tokens": rng.integers(0, 20, (4, 5)), "numbers": rng.normal(size=(4, 3)).astype("float32")}
    assert difference(model(x)["y"], small(x)["y"]) <= EXACT and measured <= EXACT
    assert small.get_layer("embed").output_dim == 3 and small.get_layer("more").units == 1
    assert small.get_layer("inner").get_layer("hidden").units == 3


@pytest.mark.sweep(2)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16"])
def test_low_precision(keras, rng, dtype):
    keras.mixed_precision.set_global_policy(dtype)
    try:
        layers = keras.layers
        inputs = keras.Input((8, 8, 3), dtype="float32" if dtype.startswith("mixed") else dtype)
        x = layers.Conv2D(6, 3, activation="relu", name="a")(inputs)
        x = layers.AveragePooling2D(3, 2, padding="same")(x)
        x = layers.Flatten()(layers.Conv2D(5, 3, activation="relu", name="b")(x))
        model = keras.Model(inputs, layers.Dense(2)(x))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape).astype(weight.numpy().dtype))
    zero(model, "a", [1, 2])
    zero(model, "b", [3])
    small = check(model, rng, exact=0.03)
    assert [small.get_layer(name).filters for name in "ab"] == [4, 4]
    assert [w.dtype for w in small.weights] == [w.dtype for w in model.weights]


@pytest.mark.parametrize("flat", [True, False], ids=["dense", "conv"])
def test_units_read_only_by_removed_units_are_removed(keras, rng, flat):
    layers = keras.layers
    layer = layers.Dense if flat else functools.partial(layers.Conv2D, kernel_size=3, padding="same")
    inputs = keras.Input((6,) if flat else (5, 5, 6))
    x = layer(7, activation="relu", name="a")(inputs)
    x = layers.BatchNormalization()(layer(8, activation="relu", name="b")(x))
    x = layer(9, activation="relu", name="c")(x)
    model = scramble(keras.Model(inputs, layer(3, name="head")(x)), rng)

    def forget(layer, reads):
        kernel = model.get_layer(layer).kernel.numpy()
        kernel[..., reads, :] = 0
        model.get_layer(layer).kernel.assign(kernel)

    def only(layer, unit, readers):
        kernel = model.get_layer(layer).kernel.numpy()
        kernel[..., unit, [i for i in range(kernel.shape[-1]) if i not in readers]] = 0
        model.get_layer(layer).kernel.assign(kernel)

    forget("head", [2, 5])  # nothing reads these two of c;
    only("c", 1, [2, 5])  # only they read one of b;
    only("b", 4, [1])  # only it reads one of a;
    only("b", 3, [1, 0])  # another one has another reader
    report = tfspline.slim_report(model)
    small, masks = report.model, report.masks
    assert {name: np.flatnonzero(~on).tolist() for name, on in masks.items()} == {
        "a": [4], "b": [1], "c": [2, 5], "head": [],
    }  # fmt: skip
    x = inputs_for(model, rng)
    assert difference(model(x), small(x)) <= EXACT
    assert tfspline.slim(small).count_params() == small.count_params()


def test_one_unit_per_group_and_protected_units_are_kept(keras, rng):
    model = scramble(chain(keras), rng)
    zero(model, "a", slice(None))
    zero(model, "b", [0, 1, 2])
    small = check(model, rng)
    # b reads only constants, so it is constant too
    assert small.get_layer("a").units == small.get_layer("b").units == 1
    small = check(model, rng, protect=["a"])
    assert small.get_layer("a").units == 12 and small.get_layer("b").units == 5
    with pytest.raises(ValueError, match="`protect`.*'c'"):
        tfspline.slim(model, protect=["c"])


def test_channels_of_layer_norm_need_allow_inexact(keras, rng):
    layers = keras.layers
    inputs = keras.Input((4,))
    x = layers.LayerNormalization()(layers.Dense(6, name="a")(inputs))
    model = scramble(keras.Model(inputs, layers.Dense(2, name="b")(x)), rng)
    zero(model, "a", [0])
    kernel = model.get_layer("b").kernel
    kernel.assign(kernel.numpy() * [[1], [0], [1], [1], [1], [1]])
    assert check(model, rng, exact=0).get_layer("a").units == 6
    small, measured = measure(model, allow_inexact=True)
    # channel 0 is constant before the normalization and varies after it; channel 1 is not read
    assert small.get_layer("a").units == 5 and measured > 1e-3


def test_units_that_only_allow_inexact_ties(keras, rng, caplog):
    """With `allow_inexact`, the shared Reshape ties what is kept apart without it: the graphs have other units."""
    layers = keras.layers
    inputs, reshape = keras.Input((4,)), keras.layers.Reshape((1, 6))
    a, b = (reshape(layers.Dense(6, "relu", name=name)(inputs)) for name in "ab")
    x = layers.Concatenate()([layers.LayerNormalization()(a), b])
    model = scramble(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))), rng)
    zero(model, "a", [0, 1])
    zero(model, "a", [0, 1], "bias")
    zero(model, "b", [0])
    zero(model, "b", [0], "bias")
    kernel = model.layers[-1].kernel.numpy()
    kernel[[0, 1, 6]] = 0
    model.layers[-1].kernel.assign(kernel)
    norm = next(layer for layer in model.layers if "norm" in layer.name)
    norm.gamma.assign([0, 0, 1, 1, 1, 1])
    norm.beta.assign(norm.gamma)
    assert check(model, rng).get_layer("a").units == 6
    assert "keeps 2 unit(s) that are switched off" in caplog.text


def test_slim_model_is_an_ordinary_model(keras, rng, tmp_path):
    model = scramble(chain(keras), rng)
    model.get_layer("a").trainable = False
    zero(model, "a", [0, 1, 2])
    zero(model, "b", [3])
    small = check(model, rng)
    assert isinstance(small, keras.Sequential)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert not small.get_layer("a").trainable and small.get_layer("b").trainable
    assert all(type(layer).__module__.partition(".")[0] == keras.__name__ for layer in small.layers)
    small.save(tmp_path / "small.keras")
    x = inputs_for(model, rng)
    assert difference(small(x), keras.models.load_model(tmp_path / "small.keras")(x)) <= 1e-6
