"""Unrolling: subclassed models and composite layers become flat graphs with the same weights."""

import subprocess
import sys

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers.composites import block_class, model_class, patches_class
from helpers.cutting import EXACT
from helpers.zoo import difference, scramble

import tfspline
from tfspline import _keras


def subclassed(keras):
    model = model_class(keras)(width=6)
    model(np.zeros((2, 5), "float32"))
    return model


def composite_in_functional(keras):
    x = inputs = keras.Input((4, 5))
    block = block_class(keras)(5)
    for layer in (block, block, block_class(keras)(5)):  # one of them is called twice
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


def composite_in_nested(keras):
    """Beside ops with constants, on either side."""
    inner = keras.Sequential([keras.Input((5,)), block_class(keras)(5), keras.layers.ReLU()], name="inner")
    inputs = keras.Input((5,))
    x = inner(tf.constant([0.5, 1, 1.5, 2, 3]) - inputs) * tf.constant(2.0)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(inner(x, training=False)))


MODELS = (subclassed, composite_in_functional, composite_in_nested)


def data_of(model, rng, samples=7):
    shape = tuple(model.inputs[0].shape) if _keras.is_graph(model) else (None, 5)
    return rng.normal(size=(samples, *shape[1:])).astype("float32")


def variables(model):
    return {id(_keras.variable_of(weight)) for weight in model.weights}


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_flat_model_is_the_same_function_with_the_same_weights(keras, rng, tmp_path, make):
    model = scramble(make(keras), rng)
    before = dict(vars(model))
    nodes = [len(layer._inbound_nodes) for layer in _keras.sublayers(model)]
    flat, x = tfspline.functional(model), data_of(model, rng)
    assert flat is not model and [layer.name for layer in tfspline.functional(model).layers[1:]] == [
        layer.name for layer in flat.layers[1:]
    ]
    assert variables(flat) == variables(model) and flat.count_params() == model.count_params()
    assert difference(model(x), flat(x)) <= EXACT
    assert all("block" not in type(layer).__name__.lower() for layer in flat.layers)
    # The original is as it was.
    assert all(vars(model)[name] is value for name, value in before.items() if name != "_called")
    assert [len(layer._inbound_nodes) for layer in _keras.sublayers(model)] == nodes
    # The flat model can be saved and loaded, and trains the weights of the original, with dropout.
    flat.save(tmp_path / "flat.keras")
    assert difference(flat(x), keras.models.load_model(tmp_path / "flat.keras")(x)) <= EXACT
    assert make is composite_in_nested or difference(flat(x, training=True), flat(x)) > EXACT
    flat.compile("sgd", "mse")
    flat.fit(x, np.ones(flat(x).shape), verbose=0)
    assert difference(model(x), flat(x)) <= EXACT


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_composite_layers_are_cut(keras, rng, make):
    model = scramble(make(keras), rng)
    x = data_of(model, rng)
    plan = tfspline.plan(model, 0.5)
    slim, masked = plan.apply(model), plan.mask(model)
    assert difference(masked(x), slim(x)) <= EXACT and difference(model(x), slim(x)) > 1e-3
    assert slim.count_params() == plan.cost()["params"][1] < 0.6 * model.count_params()
    assert tfspline.flops(slim).macs == plan.cost()["macs"][1] < 0.6 * tfspline.flops(model).macs
    assert tfspline.region_codes(model, x) == tfspline.region_codes(tfspline.functional(model), x)
    assert np.isfinite(np.asarray(tfspline.prune(model, 0.5, data=x)(x))).all()


def test_masks_and_callbacks_work_on_the_original(keras, rng):
    model, x = subclassed(keras), rng.normal(size=(24, 5)).astype("float32")
    model.compile("sgd", "mse")
    y, early_bird = rng.normal(size=(24, 3)).astype("float32"), tfspline.EarlyBird(lookback=1, threshold=0.99)
    pruning = tfspline.SplinePruning(lambda step: (True, 0.5))
    model.fit(x, y, epochs=3, batch_size=8, verbose=0, callbacks=[early_bird, pruning])
    assert early_bird.found and len(early_bird.distances) >= 2
    assert pruning.masks.sparsity == 0.5 and tfspline.Masks.from_model(model) == pruning.masks
    small = tfspline.slim(model)
    assert small.count_params() < 0.7 * model.count_params() and difference(model(x), small(x)) <= EXACT
    masks = tfspline.plan(model, 0.75, criterion="taylor", data=(x, y)).masks
    masks.apply(model)
    model.fit(x, y, batch_size=8, verbose=0)
    assert tfspline.Masks.from_model(model).off[masks.off].all()
    tfspline.Masks.release(model)


@pytest.mark.parametrize("positions", ["a weight", "a part of a weight", "an embedding"])
def test_patches_with_a_class_token_and_positions(keras, rng, positions):
    model = patches_class(keras, positions)(width=8)
    x = rng.normal(size=(3, 8, 8, 2)).astype("float32")
    model(x)
    scramble(model, rng)
    flat = tfspline.functional(model)
    assert variables(flat) == variables(model)
    for samples in (1, 3):  # any batch
        assert difference(model(x[:samples]), flat.predict(x[:samples], verbose=0)) <= EXACT
    plan = tfspline.plan(model, 0.5)
    slim = plan.apply(model)
    assert difference(plan.mask(model)(x), slim(x)) <= EXACT
    assert slim.get_layer("patch").filters == 4 and slim.count_params() == plan.cost()["params"][1]


def test_models_with_carriers_are_loaded_in_a_new_process(tmp_path):
    code = ["import keras, numpy as np, tf_keras, tfspline"]
    for keras in (keras3, tf_keras):
        model = patches_class(keras, "an embedding")(width=8)
        model(np.zeros((1, 8, 8, 2), "float32"))
        path = str(tmp_path / f"{keras.__name__}.keras")
        tfspline.functional(model).save(path)
        code.append(f"assert {keras.__name__}.models.load_model({path!r}).count_params() == {model.count_params()}")
    subprocess.run([sys.executable, "-c", "\n".join(code)], check=True)


def leaf(keras, call):
    """A composite layer with a `call` of its own."""

    class Odd(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="odd")
            self.inner = keras.layers.Dense(6, "relu", name="inner")
            self.other = keras.layers.Dense(6, name="other")

        def build(self, shape):
            self.inner.build(shape)
            self.other.build((*shape[:-1], 6))
            self.built = True

    Odd.call = call
    return Odd()


def branches_on_training(self, x, training=None):
    return self.other(self.inner(x)) * (2.0 if training else 1.0)


def reads_weights(self, x):
    return self.other(self.inner(x)) + tf.reduce_sum(tf.convert_to_tensor(self.inner.kernel))


def adds_a_loss(self, x):
    y = self.other(self.inner(x))
    self.add_loss(tf.reduce_mean(y))
    return y


def branches_in_a_helper(self, x, training=None):
    def run(told):
        return self.other(self.inner(x)) * (2.0 if told else 1.0)

    return run(training)


def is_true(self, x, training=None):
    return self.other(self.inner(x)) * (2.0 if training is True else 1.0)


def is_none(self, x, training=None):
    return self.other(self.inner(x)) * (2.0 if training is None else 1.0)


def trains_by_default(self, x, training=True):
    return self.other(self.inner(x))


def draws(self, x):
    return self.other(self.inner(x)) + 0.0 * tf.random.normal((6,))


def reads_rows(self, x):
    return self.other(self.inner(x)) + tf.gather(self.inner.kernel, [0], axis=0)


def transposes_a_weight(self, x):
    return self.other(self.inner(x)) + tf.reduce_sum(tf.transpose(self.inner.kernel))


def uses_a_weight(self, x):
    return self.other(self.inner(x)) + (x @ self.inner.kernel)


def passes_on(self, x, **options):
    return self.other(self.inner(x), **options)


CLOSED = (
    *(branches_on_training, branches_in_a_helper, is_true, is_none, trains_by_default, reads_weights, reads_rows),
    passes_on,
    *(transposes_a_weight, uses_a_weight, draws, adds_a_loss),
)


@pytest.mark.parametrize("call", CLOSED, ids=lambda call: call.__name__)
def test_layer_that_cannot_be_unrolled_stays_with_its_reason(keras, rng, call):
    inputs = keras.Input((5,))
    x = keras.layers.Dense(5, name="stem")(keras.layers.Dense(8, "relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(leaf(keras, call)(x)))
    x = rng.normal(size=(4, 5)).astype("float32")
    scramble(model, rng)
    assert difference(model(x), tfspline.functional(model)(x)) <= EXACT
    reasons = [row["protected"] or "" for row in tfspline.plan(model, 0.5).rows()]
    assert any("'odd'" in reason and "unrolled" in reason and "register_channel_rule" in reason for reason in reasons)


@pytest.mark.parametrize("base", ["Sequential", "Model"])
def test_model_with_a_call_of_its_own_is_not_taken_for_its_graph(keras, rng, base):
    class Own(getattr(keras, base)):
        def call(self, x, training=None):
            return x + super().call(x)

    inner = [keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(8)]
    own = Own(inner) if base == "Sequential" else Own(inner[0], inner[2](inner[1](inner[0])))
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), own, keras.layers.Dense(3)])
    x = rng.normal(size=(4, 8)).astype("float32")
    scramble(model, rng)
    if keras.__name__ == "tf_keras" and base == "Sequential":
        with pytest.raises(ValueError, match="'own.*Sequential with a `call` of its own"):
            tfspline.functional(model)
        return
    assert difference(model(x), tfspline.functional(model)(x)) <= EXACT


def test_training_that_a_call_fixes_stays_fixed(keras, rng):
    def call(self, x):
        return self.other(self.drop(self.inner(x), training=False))

    odd = leaf(keras, call)
    odd.drop = keras.layers.Dropout(0.5)
    inputs = keras.Input((5,))
    model, x = keras.Model(inputs, odd(inputs)), rng.normal(size=(4, 5)).astype("float32")
    flat = tfspline.functional(model)
    assert difference(flat(x, training=True), model(x, training=True)) <= EXACT


def test_changes_of_the_model_are_seen(keras, rng):
    model, x = subclassed(keras), rng.normal(size=(4, 5)).astype("float32")
    tfspline.functional(model)
    model.blocks[0].mlp.layers[0].activation = keras.activations.tanh
    assert difference(model(x), tfspline.functional(model)(x)) <= EXACT


def test_what_a_call_assigns_does_not_stay(keras, rng):
    def call(self, x):
        self.seen = self.inner(x)
        return self.other(self.seen)

    inputs = keras.Input((5,))
    odd = leaf(keras, call)
    model, x = keras.Model(inputs, odd(inputs)), rng.normal(size=(4, 5)).astype("float32")
    model(x)
    assert difference(model(x), tfspline.functional(model)(x)) <= EXACT and not _keras.is_symbolic(odd.seen)
    assert [type(layer).__name__ for layer in tfspline.functional(model).layers[1:]] == ["Dense", "Dense"]


def test_subclassed_model_needs_an_input_shape(keras, rng):
    model, x = model_class(keras)(width=6), rng.normal(size=(4, 5)).astype("float32")
    with pytest.raises(ValueError, match=r"input shape .* not known.*functional\(model, input_shape="):
        tfspline.plan(model, 0.5)
    flat = tfspline.functional(model, input_shape=(5,))
    assert difference(model(x), flat(x)) <= EXACT
    assert tfspline.plan(model, 0.5).apply(model).count_params() < model.count_params()


def test_model_that_needs_no_unrolling_is_returned(keras):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    assert tfspline.functional(model) is model
    with pytest.raises(TypeError):
        tfspline.functional("model")


def test_frozen_layers_stay_frozen(keras, rng):
    model = subclassed(keras)
    assert len(tfspline.functional(model).trainable_weights) == len(model.trainable_weights)
    model.inner.trainable = False
    assert len(tfspline.functional(model).trainable_weights) == len(model.trainable_weights)


def test_slices_with_an_ellipsis_can_be_saved(keras, rng, tmp_path):
    """tf_keras saves no Ellipsis in an op, but it saves the code of the Lambda from which the op is unrolled."""
    for cut in (
        lambda z: z[..., 1:3],
        lambda z: z[:, ..., None, ::2],
        lambda z: z[..., None, :][:, 1:],
        lambda z: z[..., 0],
    ):
        inputs = keras.Input((4, 8))
        shape = cut(np.zeros((5, 4, 8))).shape[1:]
        x = keras.layers.Lambda(cut, output_shape=shape)(keras.layers.Dense(8, "relu")(inputs))
        model = scramble(keras.Model(inputs, keras.layers.Dense(2)(x)), rng)
        x = rng.normal(size=(5, 4, 8)).astype("float32")
        plan = tfspline.plan(model, 0.5)
        slim = plan.apply(model)
        slim.save(tmp_path / "slim.keras")
        assert difference(plan.mask(model)(x), slim(x)) <= EXACT
        assert difference(keras.models.load_model(tmp_path / "slim.keras")(x), slim(x)) <= EXACT


def test_constants_and_keyword_arguments_that_a_call_does_not_use(keras, rng):
    class Two(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="two")
            self.inner, self.other = keras.layers.Dense(6, "relu"), keras.layers.Dense(6)

        def call(self, x, **options):
            y = tf.convert_to_tensor(self.inner(x)) if keras.__name__ == "tf_keras" else self.inner(x)
            return self.other(y + tf.cast(3.0, y.dtype))

    inputs = keras.Input((6,))
    model = scramble(keras.Model(inputs, keras.layers.Dense(2)(Two()(inputs))), rng)
    names = [layer.name for layer in tfspline.functional(model).layers]
    assert any(name.startswith("two.") for name in names) and "two" not in names
