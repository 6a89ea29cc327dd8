"""Code that gets at a layer in ways that copies cannot follow is refused by name: its copy would stay bound to it."""

import contextvars
import types

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline._keras import watching


def variable(layer):
    held = contextvars.ContextVar("held")
    held.set(layer)
    return held


# What holds a layer, and how code gets it back.
HIDDEN = {
    "context variable": (variable, lambda held: held.get()),
    "class": (lambda layer: type("Registry", (), {"layer": layer}), lambda held: held.layer),
    "attribute of a metaclass": (
        lambda layer: type("Meta", (type,), {"layer": layer})("Registry", (), {})(),
        lambda held: type(held).layer,
    ),
    "argument of an error": (RuntimeError, lambda held: held.args[0]),
    "module": (lambda layer: types.SimpleNamespace(module=module(layer)), lambda held: vars(held.module)["encoder"]),
    "globals": (lambda layer: globals().update(hidden=layer), lambda held: globals()["hidden"]),
}


def module(layer):
    made = types.ModuleType("registry")
    made.encoder = layer
    return made


def tied(keras, held, get):
    class Tied(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="tied")
            self.held = held

        def call(self, x, training=None):  # the test of `training` has it copied, not unrolled
            x = 2.0 * x if training else x
            return tf.matmul(x, tf.convert_to_tensor(get(self.held).kernel), transpose_b=True)

        def compute_output_shape(self, shape):  # with it, Keras 3 does not run `call`
            return (shape[0], 6)

    return Tied()


def around(keras, source, middle):
    """input -> `source` -> Dense -> Dense -> middle(x) -> Dense."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16)(keras.layers.Dense(8, "relu")(source(inputs)))
    return keras.Model(inputs, keras.layers.Dense(2)(middle(x)))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_layer_that_gets_at_another_one(keras, kind):
    hide, get = HIDDEN[kind]
    source = keras.layers.Dense(16, "relu", name="source")
    model = around(keras, source, tied(keras, hide(source), get))
    with pytest.raises(ValueError, match="Layer 'tied' .*'source'.*attribute.*closure"):
        tfspline.plan(model, 0.5, criterion="l1")
    follow = around(keras, source, tied(keras, [source], lambda held: held[0]))
    tfspline.plan(follow, 0.5, criterion="l1")


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", HIDDEN)
def test_an_activation_that_gets_at_a_layer(keras, kind):
    hide, get = HIDDEN[kind]
    source = keras.layers.Dense(16, "relu", name="source")
    held = hide(source)

    def activation(x):
        return x * tf.reduce_sum(tf.convert_to_tensor(get(held).kernel))

    model = around(keras, source, keras.layers.Dense(6, activation, name="tied"))
    with pytest.raises(ValueError, match="Layer 'tied' .*'source'.*closure"):
        tfspline.plan(model, 0.5, criterion="l1")


def used_in_training(keras, get):
    """A layer that reads another one when it trains, inside one whose own `call` takes no `training`."""

    class Part(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.matmul(x, tf.convert_to_tensor(get().kernel), transpose_b=True) if training else x[:, :6]

    class Tied(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="tied")
            self.part, self.norm = Part(), keras.layers.BatchNormalization()

        def build(self, shape):
            self.norm.build((None, 6))

        def call(self, x):
            x = self.norm(self.part(x))
            self.add_loss(tf.reduce_mean(x))
            return x

        def compute_output_shape(self, shape):
            return (shape[0], 6)

    return Tied()


def test_a_layer_that_gets_at_another_one_in_training_only(keras):
    source = keras.layers.Dense(16, "relu", name="source")
    model = around(keras, source, used_in_training(keras, variable(source).get))
    with pytest.raises(ValueError, match="Layer 'tied' .*'source'"):
        tfspline.plan(model, 0.5, criterion="l1")


@pytest.mark.parametrize("place", ["kernel_regularizer", "bias_constraint"])
def test_a_regularizer_or_constraint_that_gets_at_a_layer(keras, place):
    source = keras.layers.Dense(16, "relu", name="source")
    held = variable(source)

    def near(weight):
        return tf.reduce_sum(tf.convert_to_tensor(held.get().kernel)) + 0.0 * tf.convert_to_tensor(weight)

    model = around(keras, source, keras.layers.Dense(6, name="tied", **{place: near}))
    with pytest.raises(ValueError, match="Layer 'tied' .*'source'"):
        tfspline.plan(model, 0.5, criterion="l1")


def test_looking_at_the_training_of_a_layer_changes_nothing(keras, rng):
    other = keras.layers.Dense(16, name="other")
    other.build((None, 6))
    model = around(keras, keras.layers.Dense(16, "relu"), used_in_training(keras, variable(other).get))
    slim = tfspline.plan(scramble(model, rng), 0.5, criterion="l1").apply(model)
    before, after = (one.get_layer("tied").norm.get_weights() for one in (model, slim))
    assert all(map(np.array_equal, before, after))
    assert len(slim.losses) == len(model.losses)


def test_a_layer_that_gets_at_another_one_if_there_is_a_mask(keras):
    source = keras.layers.Dense(16, "relu", name="source")
    get = variable(source).get

    class Tied(keras.layers.Layer):
        def call(self, x, mask=None, training=None):
            return x if mask is None else x + tf.reduce_sum(tf.convert_to_tensor(get().kernel))

        def compute_output_shape(self, shape):
            return shape

    def time(x):
        return keras.layers.Masking()(keras.layers.Reshape((4, 4))(x))

    model = around(keras, source, lambda x: keras.layers.Flatten()(Tied(name="tied")(time(x))))
    with pytest.raises(ValueError, match="Layer 'tied' .*'source'"):
        tfspline.plan(model, 0.5, criterion="l1")


def passed(keras, source):
    class Use(keras.layers.Layer):
        def call(self, x, other):
            return tf.matmul(x, tf.convert_to_tensor(other["layer"].kernel), transpose_b=True)

    return lambda x: Use(name="use")(x, other={"layer": source})


def mapped(keras, source):
    return lambda x: keras.ops.map(lambda row: tf.linalg.matvec(tf.convert_to_tensor(source.kernel), row), x)


@pytest.mark.parametrize("middle", [passed, mapped])
def test_arguments_that_lead_to_a_layer_are_copied(keras, rng, middle):
    if middle is mapped and keras is not keras3:
        pytest.skip("only Keras 3 records functions as arguments")
    source = keras.layers.Dense(16, "relu", name="source")
    model = scramble(around(keras, source, middle(keras, source)), rng)
    plan, x = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    slim, masked = plan.apply(model), plan.mask(model)
    before = slim(x)
    assert difference(masked(x), before) <= 1e-5
    assert "uses weights of 'source'" in {row["layer"]: row["protected"] for row in plan.rows()}["source"]
    source.kernel.assign(tf.zeros((6, 16)))
    assert difference(slim(x), before) == 0


def test_an_argument_that_gets_at_a_layer():
    source = keras3.layers.Dense(16, "relu", name="source")
    held = variable(source)

    def product(row):
        return tf.linalg.matvec(tf.convert_to_tensor(held.get().kernel), row)

    model = around(keras3, source, lambda x: keras3.ops.map(product, x))
    with pytest.raises(ValueError, match="'map.*'source'"):
        tfspline.plan(model, 0.5, criterion="l1")


def test_an_error_that_has_passed_through_code_with_a_layer_is_no_tie(keras, rng):
    source = keras.layers.Dense(16, "relu", name="source")

    def fail(layer):
        raise RuntimeError("as in the last epoch")

    with pytest.raises(RuntimeError) as caught:
        fail(source)

    class Logged(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seen = [caught.value, caught.tb]

        def call(self, x, training=None):
            return 2.0 * x if training else x

        def compute_output_shape(self, shape):
            return shape

    model = scramble(around(keras, source, Logged()), rng)
    plan, x = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5


def test_layers_of_keras_are_not_run_to_see_what_they_read(keras, monkeypatch):
    hidden = [keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(2)])
    monkeypatch.setattr(watching, "_watched", lambda: pytest.fail("it takes longer than the rest of a cut"))
    assert tfspline.prune(model, 0.5).layers[0].units == 4
