"""Work inside layers that no spec counts, at sizes that only the call knows, and work that cannot be counted."""

import re

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

import tfspline

LSTM = 3 * 4 * 5 + 5 * 4 * 5  # MACs of a step: 3 inputs, 5 units, 4 gates


def sequential(keras, shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def composite(keras):
    class Composite(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.two = keras.layers.Dense(7, "relu"), keras.layers.LSTM(5)

        def build(self, shape):
            self.one.build(shape)
            self.two.build((*shape[:-1], 7))
            self.scores = self.add_weight(name="scores", shape=(5, 2), initializer="ones")
            super().build(shape)

        def call(self, x):
            return tf.matmul(self.two(self.one(x)), tf.convert_to_tensor(self.scores))

        def compute_output_shape(self, shape):
            return (shape[0], 2)

    return Composite()


def time_distributed(keras):
    return sequential(
        keras, (7, 4), keras.layers.TimeDistributed(keras.layers.Dense(3)), keras.layers.RNN(keras.layers.LSTMCell(5))
    )


def subclassed(keras):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(5)

        def call(self, x):
            return self.dense(x)

    return Subclassed()


LAYERS = {  # shape of the input, layer, MACs by hand
    "TimeDistributed": ((6, 4), lambda k: k.layers.TimeDistributed(k.layers.Dense(5)), 6 * 4 * 5),
    "TimeDistributed of a convolution": (
        (3, 8, 8, 2),
        lambda k: k.layers.TimeDistributed(k.layers.Conv2D(5, 3)),
        3 * 36 * 9 * 2 * 5,
    ),
    "TimeDistributed twice": (
        (2, 3, 4),
        lambda k: k.layers.TimeDistributed(k.layers.TimeDistributed(k.layers.Dense(5))),
        2 * 3 * 4 * 5,
    ),
    "RNN": ((7, 3), lambda k: k.layers.RNN(k.layers.LSTMCell(5)), 7 * LSTM),
    "RNN unrolled": ((7, 3), lambda k: k.layers.RNN(k.layers.LSTMCell(5), unroll=True), 7 * LSTM),
    "RNN of several cells": (
        (7, 3),
        lambda k: k.layers.RNN([k.layers.LSTMCell(5), k.layers.SimpleRNNCell(4)]),
        7 * (LSTM + 5 * 4 + 4 * 4),
    ),
    "Bidirectional": ((7, 3), lambda k: k.layers.Bidirectional(k.layers.LSTM(5)), 2 * 7 * LSTM),
    "Bidirectional RNN": ((7, 3), lambda k: k.layers.Bidirectional(k.layers.RNN(k.layers.LSTMCell(5))), 2 * 7 * LSTM),
    "ConvLSTM2D": ((4, 8, 8, 3), lambda k: k.layers.ConvLSTM2D(5, 3), 4 * 4 * 36 * 9 * (3 * 5 + 5 * 5)),
    "recurrent after TimeDistributed": ((7, 4), time_distributed, 7 * (4 * 3 + LSTM)),
    "composite": ((6, 4), composite, 6 * 4 * 7 + 6 * (7 * 20 + 5 * 20) + 5 * 2),
    "subclassed model": ((6, 4), subclassed, 6 * 4 * 5),
    "EinsumDense": ((6, 4), lambda k: k.layers.EinsumDense("abc,cd->abd", (None, 5)), 6 * 4 * 5),
    "Lambda": ((6, 4), lambda k: k.layers.Lambda(lambda x: tf.matmul(x, x, transpose_b=True)), 6 * 6 * 4),
    "tf.map_fn": (
        (6, 4, 4),
        lambda k: k.layers.Lambda(lambda x: tf.map_fn(lambda y: y @ y, x[0])[tf.newaxis]),
        6 * 4 * 4 * 4,
    ),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_inside_a_layer_is_counted(keras, name):
    shape, layer, macs = LAYERS[name]
    inputs = keras.Input(shape)
    cost = tfspline.flops(keras.Model(inputs, layer(keras)(inputs)))
    assert (cost.macs, cost.unknown) == (macs, {})


def mixing(x):
    """A matrix product of a user, given as an activation."""
    return tf.matmul(x, tf.ones((8, 8)))


ACTIVATIONS = {  # layer, MACs by hand
    "Activation": (lambda k: k.layers.Activation(mixing), 64),
    "Dense": (lambda k: k.layers.Dense(8, mixing), 128),
    "layer": (lambda k: k.layers.Dense(8, k.layers.Dense(8)), 128),
    "layer that changes the width": (lambda k: k.layers.Dense(8, k.layers.Dense(4)), 64 + 32),
    "layers of layers": (lambda k: k.layers.Dense(8, k.layers.Dense(8, mixing)), 192),
    "elementwise": (lambda k: k.layers.Dense(8, lambda x: tf.abs(x) + 1), 64),
    "PReLU": (lambda k: k.layers.Dense(8, k.layers.PReLU()), 64),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_an_activation_computes_is_counted(keras, name):
    layer, macs = ACTIVATIONS[name]
    inputs = keras.Input((8,))
    cost = tfspline.flops(keras.Model(inputs, layer(keras)(inputs)))
    assert (cost.macs, cost.unknown) == (macs, {})


@pytest.mark.parametrize("kind", ["TimeDistributed", "GRU", "gate", "RNN"])
def test_what_an_activation_computes_in_each_step_is_unknown(keras, kind):
    layers, inputs = keras.layers, keras.Input((5, 8))
    layer, macs = {
        "TimeDistributed": lambda: (layers.TimeDistributed(layers.Dense(8, mixing), name="odd"), 5 * 64),
        "GRU": lambda: (layers.GRU(8, mixing, name="odd"), 5 * 3 * 2 * 64),
        "gate": lambda: (layers.GRU(8, recurrent_activation=mixing, name="odd"), 5 * 3 * 2 * 64),
        "RNN": lambda: (layers.RNN(layers.SimpleRNNCell(8, mixing), name="odd"), 5 * 2 * 64),
    }[kind]()
    cost = tfspline.flops(keras.Model(inputs, layer(inputs)))
    assert cost.macs == macs and list(cost.unknown) == ["odd"] and "mixing" in cost.unknown["odd"]


def test_spectral_normalization_is_counted():
    import keras

    model = sequential(keras, (8, 8, 3), keras.layers.SpectralNormalization(keras.layers.Conv2D(4, 3)))
    assert (tfspline.flops(model).macs, tfspline.flops(model).unknown) == (36 * 9 * 3 * 4, {})


def test_quantization_wrappers_are_counted(tfmot):
    import tf_keras

    model = sequential(
        tf_keras, (8, 8, 3), tf_keras.layers.Conv2D(4, 3), tf_keras.layers.Flatten(), tf_keras.layers.Dense(2)
    )
    cost = tfspline.flops(tfmot.quantization.keras.quantize_model(model))
    assert (cost.macs, cost.unknown) == (tfspline.flops(model).macs, {})


def test_products_without_weights_are_counted(keras):
    a, b = keras.Input((5, 4)), keras.Input((6, 4))
    layers = keras.layers
    assert tfspline.flops(keras.Model([a, b], layers.Dot(-1)([a, b]))).macs == 5 * 6 * 4
    assert tfspline.flops(keras.Model([a, b], layers.Attention()([a, b]))).macs == 2 * 5 * 6 * 4
    einsum = keras.ops.einsum if hasattr(keras, "ops") else tf.einsum
    assert tfspline.flops(keras.Model([a, b], einsum("nic,njc->nij", a, b))).macs == 5 * 6 * 4


def test_a_budget_counts_what_is_inside(keras):
    layers = keras.layers
    wrapped = layers.TimeDistributed(sequential(keras, (32,), layers.Dense(64, "relu")))
    model = sequential(keras, (4, 32), wrapped, layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(2))
    with pytest.raises(ValueError, match="max_flops=0.1 cannot be met"):
        tfspline.plan(model, max_flops=0.1)
    small = tfspline.prune(model, max_flops=0.8)
    assert tfspline.flops(small).macs <= 0.8 * tfspline.flops(model).macs


def reshaping(keras, x):
    """A dense layer on each row: the rows become the batch."""
    reshape = keras.ops.reshape if hasattr(keras, "ops") else tf.reshape
    return reshape(keras.layers.Dense(5)(reshape(x, (-1, 4))), (-1, 6, 5))


def test_rows_that_become_the_batch_are_counted(keras):
    inputs = keras.Input((6, 4))
    assert tfspline.flops(keras.Model(inputs, reshaping(keras, inputs))).macs == 6 * 4 * 5


def test_a_fixed_batch_counts_as_one_input(keras):
    inputs = keras.Input(batch_shape=(8, 6, 4))
    outputs = keras.layers.LSTM(5, stateful=True)(keras.layers.TimeDistributed(keras.layers.Dense(3))(inputs))
    assert tfspline.flops(keras.Model(inputs, outputs)).macs == 6 * (4 * 3 + LSTM)


def open_base(keras):
    layers = keras.layers
    return sequential(keras, (None, None, 3), layers.Conv2D(4, 3, 2, "same"), layers.ReLU(), layers.Conv2D(6, 3))


def open_base_macs(size):
    half = size // 2
    return half**2 * 9 * 3 * 4 + (half - 2) ** 2 * 9 * 4 * 6


def test_sizes_come_from_the_calls_of_a_nested_model(keras):
    base, (a, b) = open_base(keras), (keras.Input((32, 32, 3)), keras.Input((16, 16, 3)))
    outputs = [keras.layers.GlobalAveragePooling2D()(base(x)) for x in (a, b)]
    cost = tfspline.flops(keras.Model([a, b], outputs))
    assert (cost.macs, cost.unknown) == (open_base_macs(32) + open_base_macs(16), {})


def test_input_shape_gives_open_sizes_a_value(keras):
    base = open_base(keras)
    assert tfspline.flops(base, input_shape=(32, 32, 3)).macs == open_base_macs(32)
    assert tfspline.training_flops(base, 10, input_shape=(32, 32, 3)) == 60 * open_base_macs(32)
    lstm = sequential(keras, (None, 3), keras.layers.LSTM(5))
    assert tfspline.flops(lstm, input_shape=(7, 3)).macs == 7 * LSTM
    plan = tfspline.plan(base, max_flops=0.6, input_shape=(32, 32, 3))
    before, after = plan.cost()["macs"]
    assert before == open_base_macs(32) and after <= 0.6 * before
    assert tfspline.flops(plan.apply(base), input_shape=(32, 32, 3)).macs == after


def test_input_shape_is_that_of_the_data_by_default(keras, tmp_path, rng):
    base = open_base(keras)
    data = rng.normal(size=(8, 32, 32, 3)).astype(np.float32)
    plan = tfspline.plan(base, 0.5, data=data)
    assert plan.cost()["macs"][0] == open_base_macs(32)
    plan.save(tmp_path / "plan.json")
    assert tfspline.Plan.load(tmp_path / "plan.json", base).cost() == plan.cost()


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "call",
    [
        lambda model, **kw: tfspline.flops(model, **kw),
        lambda model, **kw: tfspline.training_flops(model, 10, **kw),
        lambda model, **kw: tfspline.plan(model, max_flops=0.7, **kw),
        lambda model, **kw: tfspline.prune(model, 0.5, criterion="synflow", **kw),
        lambda model, **kw: tfspline.latency(model, **kw),
    ],
    ids=["flops", "training_flops", "max_flops", "synflow", "latency"],
)
def test_the_advice_on_open_sizes_works(keras, call):
    model = open_base(keras)
    with pytest.raises(ValueError, match="Give the argument `input_shape`") as caught:
        call(model)
    call(
        model,
        **eval(
            re.search(r"such as (input_shape=.*)\.$", str(caught.value))[1].replace("input_shape=", "dict(input_shape=")
            + ")"
        ),
    )


@pytest.mark.sweep(2)
@pytest.mark.parametrize("wrong", [7, (32, 32), (32, 32, 4), (0, 32, 3), (32.0, 32, 3), [(32, 32, 3)] * 2])
def test_an_input_shape_that_does_not_fit_is_refused(keras, wrong):
    with pytest.raises(ValueError, match="`input_shape`"):
        tfspline.flops(open_base(keras), input_shape=wrong)


def opaque(keras):
    """Two dense layers, and one in Python code that nothing is known about."""

    class Opaque(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 4), initializer="ones")
            super().build(shape)

        def call(self, x):
            y = tf.numpy_function(lambda a, b: a @ b, [x, tf.convert_to_tensor(self.kernel)], tf.float32)
            return tf.ensure_shape(y, (*x.shape[:1], 4))

        def compute_output_shape(self, shape):
            return (shape[0], 4)

    layers = keras.layers
    return sequential(
        keras, (4,), layers.Dense(8, "relu", name="a"), layers.Dense(6), Opaque(name="odd"), layers.Dense(2)
    )


def test_work_that_cannot_be_counted_is_reported(keras, monkeypatch):
    model = opaque(keras)
    cost = tfspline.flops(model)
    assert list(cost.unknown) == ["odd"] and "Func" in cost.unknown["odd"]
    assert re.search("at least.*\n.*unknown work: odd", str(cost))
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: warnings.append(message % args))
    plan = tfspline.plan(model, max_flops=0.8)
    assert ["odd" in warning for warning in warnings] == [True]
    assert re.search("all macs.*at most .*x fewer", str(plan)) and "unknown work: odd" in str(plan)


def test_a_channel_rule_that_declares_no_macs_is_reported(keras, monkeypatch):
    class Linear(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 6), initializer="ones")
            super().build(shape)

        def call(self, x):
            return tf.matmul(x, tf.convert_to_tensor(self.kernel))

        def compute_output_shape(self, shape):
            return (*shape[:-1], 6)

    def rule(call):
        call.consume("kernel", 0, call.channels())
        return call.place(call.produce("kernel", 1))

    def complete(call):
        call.macs("kernel", call.positions())
        return rule(call)

    model = sequential(keras, (4,), keras.layers.Dense(8, "relu"), Linear(name="own"), keras.layers.Dense(2))
    tfspline.register_channel_rule(Linear, rule)
    assert tfspline.flops(model).macs == 4 * 8 + 8 * 6 + 6 * 2
    assert "call.macs" in tfspline.flops(model).unknown["own"]
    tfspline.register_channel_rule(Linear, complete)
    plan = tfspline.plan(model, {model.layers[0].name: 0.5}, protect=["own"])
    assert tfspline.flops(model).unknown == {} and plan.cost()["macs"][0] == 4 * 8 + 8 * 6 + 6 * 2


def test_losses_of_a_model_are_those_of_before(keras):
    layer = composite(keras)
    layer.activity_regularizer = keras.regularizers.L2(0.1)
    model = sequential(keras, (6, 4), layer)
    before = list(map(id, model.losses))
    tfspline.flops(model)
    assert set(map(id, model.losses)) <= set(before)
