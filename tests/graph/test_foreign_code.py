"""Slim models are loaded without the code of the package that their original came from."""

import zipfile

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers.cutting import EXACT, check_cut
from helpers.zoo import difference, scramble

import tfspline


def check_loads_alone(model, x, path):
    """A model is saved, and computes the same after it was loaded without the code that made it."""
    keras = keras3 if isinstance(model, keras3.Model) else tf_keras
    model.save(path / "slim.keras")
    with zipfile.ZipFile(path / "slim.keras") as file:
        config = file.read("config.json").decode()
    assert __name__ not in config and "some_package" not in config
    assert difference(model(x), keras.models.load_model(path / "slim.keras")(x)) <= EXACT


def registered(keras, name="gelu"):
    """A function that a package has registered: approximate gelu, times two."""

    @keras.utils.register_keras_serializable("some_package", name)
    def function(x):
        return keras.activations.gelu(x, approximate=True) * 2.0

    return function


def block(keras, *activations):
    """A composite layer that calls Dense layers with activations one after the other."""

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.parts = [keras.layers.Dense(8, one, name=f"part{i}") for i, one in enumerate(activations)]

        def build(self, shape):
            for part in self.parts:
                part.build(shape)
                shape = (*shape[:-1], 8)
            self.built = True

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    return Block()


def model_of(keras, *layers, shape=(6, 8)):
    x = inputs = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


def test_activations_of_a_package_become_ops(keras, rng, tmp_path):
    f = registered(keras)
    conv = keras.layers.Conv1D(6, 3, activation=f)
    model = scramble(model_of(keras, conv, keras.layers.Activation(f), block(keras, f, f, "relu", f)), rng)
    x = rng.normal(size=(3, 6, 8)).astype("float32")
    flat = tfspline.functional(model)
    assert difference(model(x), flat(x)) <= EXACT and conv.activation is f
    assert {id(weight) for weight in flat.weights} == {id(weight) for weight in model.weights}
    assert all(getattr(layer, "activation", None) is not f for layer in flat.layers)
    plan = tfspline.plan(model, 0.5)
    assert [row["units_after"] for row in plan.rows()][:5] == [3, 4, 4, 4, 4]
    check_loads_alone(check_cut(model, plan, rng), x, tmp_path)


def divided(keras):
    return lambda x: x / (1.0 + abs(x))  # as ops, it divides by units


def stateful(keras):
    factor = keras.Variable(2.0) if keras is keras3 else tf.Variable(2.0)
    return lambda x: x * factor


@pytest.mark.parametrize("make", [divided, stateful], ids=lambda make: make.__name__)
def test_activation_that_is_no_better_as_ops_stays(keras, rng, make):
    f = make(keras)
    model = scramble(model_of(keras, keras.layers.Dense(8, f, name="own"), block(keras, "relu")), rng)
    x = rng.normal(size=(3, 6, 8)).astype("float32")
    flat = tfspline.functional(model)
    assert difference(model(x), flat(x)) <= EXACT and (flat.get_layer("own").activation is f or make is stateful)
    check_cut(model, tfspline.plan(model, 0.5), rng)
    assert tfspline.plan(model, 0.5).rows()[0]["units_after"] == 4


def test_masks_pass_an_activation_of_a_package(keras, rng):
    f, inputs = registered(keras), keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(9, 8, mask_zero=True)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(8, f, name="own")(x))
    model = scramble(keras.Model(inputs, block(keras, "relu")(keras.layers.Dense(8)(x))), rng)
    x = rng.integers(0, 3, (5, 6))
    for twice in (tfspline.functional(model), tfspline.functional(tfspline.functional(model))):
        assert difference(model(x), twice(x)) <= EXACT


def test_layer_in_a_closed_one_keeps_its_activation(keras, rng):
    class Closed(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__(name="closed")
            self.inner = inner

        def call(self, x, training=None):
            return self.inner(x) * (2.0 if training else 1.0)

    inner = keras.layers.Dense(8, registered(keras))
    x = rng.normal(size=(3, 6, 8)).astype("float32")
    for layers in ((Closed(inner), inner), (inner, Closed(inner))):
        model = scramble(model_of(keras, *layers), rng)
        assert difference(model(x), tfspline.functional(model)(x)) <= EXACT


def drop_path(keras, rate, factor=None):
    """A layer that scales samples by random factors in training, zero at a rate by default."""

    class DropPath(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.rate = rate

        def call(self, x, training=None):
            if not training or rate == 0.0:
                return x
            uniform = tf.random.uniform([tf.shape(x)[0], *[1] * (len(x.shape) - 1)])
            return x * (tf.cast(uniform > rate, "float32") / (1 - rate) if factor is None else factor(uniform))

    return DropPath()


def test_layers_that_drop_samples_become_dropout(keras, rng, tmp_path):
    twice = drop_path(keras, 0.25)
    layers = twice, keras.layers.Dense(8), drop_path(keras, 0.0), keras.layers.Flatten(), twice
    model = scramble(model_of(keras, keras.layers.Dense(8), *layers), rng)
    x = np.ones((400, 6, 8), "float32")
    flat = tfspline.functional(model)
    drops = [layer for layer in flat.layers if "drop" in layer.name]
    assert [type(layer).__name__ for layer in drops] == ["Dropout"] * 3 and len(drops[0].noise_shape) == 3
    assert difference(model(x), flat(x)) <= EXACT
    dropped = keras.Model(flat.input, drops[0].output)(x, training=True) / keras.Model(flat.input, drops[0].input)(x)
    assert {round(float(one), 3) for one in np.ravel(dropped)} == {0.0, 1.333}
    assert 60 < 400 - np.count_nonzero(np.asarray(dropped)[:, 0, 0]) < 140
    check_loads_alone(check_cut(model, tfspline.plan(model, 0.5), rng), x[:3], tmp_path)


OTHERS = {
    "whole batches": lambda u: tf.cast(u[0] > 0.25, "float32") / 0.75,
    "not scaled": lambda u: tf.cast(u > 0.25, "float32"),
    "the others": lambda u: tf.cast(u < 0.25, "float32") / 0.75,
    "not rounded": lambda u: (u + 0.75) / 0.75,
}


@pytest.mark.parametrize("factor", OTHERS)
def test_layer_that_does_not_drop_samples_at_its_rate_stays(keras, factor):
    model = model_of(keras, drop_path(keras, 0.25, OTHERS[factor]))
    assert [type(layer).__name__ for layer in tfspline.functional(model).layers[1:]] == ["DropPath", "Dense"]


def test_layers_that_keras_cannot_save_alone_are_saved(rng, tmp_path):
    policy = keras3.DTypePolicy("float32")
    layers = keras3.layers.Identity(dtype=policy), keras3.layers.ELU(0.5, dtype=policy), block(keras3, "relu")
    model = scramble(model_of(keras3, *layers), rng)
    check_loads_alone(tfspline.functional(model), rng.normal(size=(3, 6, 8)).astype("float32"), tmp_path)


@pytest.mark.parametrize("lengths", [(6,), (6, 4)])
def test_einsum_dense_with_open_sizes_is_saved(rng, tmp_path, lengths):
    einsum = keras3.layers.EinsumDense("bsd,dhk->bshk", (None, 2, 4), name="einsum")
    einsum.build((None, None, 8))  # as a layer around it does that does not know the length

    def call(x):
        return [keras3.ops.reshape(einsum(x[:, :length]), (-1, length, 8)) for length in lengths]

    inputs, shared = keras3.Input((6, 8)), block(keras3, "relu")
    model = scramble(keras3.Model(inputs, [shared(one) for one in call(inputs)]), rng)
    check_loads_alone(tfspline.functional(model), rng.normal(size=(3, 6, 8)).astype("float32"), tmp_path)
