"""A printed plan has a row for every layer with weights, with the reason why it is kept."""

import pytest

import tfspline
from tfspline import _keras


def sequences(keras):
    layers = keras.layers
    inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.TimeDistributed(layers.Dense(6), name="wrapped")(x)
    x = layers.BatchNormalization(name="batch_norm")(layers.Dense(8, name="second")(x))
    x = layers.Bidirectional(layers.GRU(3), name="both")(layers.LSTM(4, return_sequences=True, name="lstm")(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def custom(keras):
    class Odd(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 4))

        def call(self, x):
            return keras.ops.matmul(x, self.kernel) if hasattr(keras, "ops") else x @ self.kernel

    layers = keras.layers
    inputs = keras.Input((6,))
    x = Odd(name="odd")(layers.Dense(8, "relu", name="kept")(inputs))
    x = layers.Dense(2, name="head")(layers.Dense(8, "relu", name="free")(x))
    return keras.Model(inputs, x)


def images(keras):
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="of_inputs")(inputs)
    x = layers.PReLU(name="prelu")(layers.DepthwiseConv2D(3, name="depthwise")(layers.Conv2D(4, 1, name="conv")(x)))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("build", [sequences, custom, images])
def test_every_layer_with_weights_has_a_row(keras, build):
    model = build(keras)
    plan = tfspline.plan(model, 0.5)
    lines = str(plan).splitlines()
    for path, layer in _keras.layer_paths(model).items():
        if _keras.weights(layer):
            assert any(line.split()[0] == path for line in lines), path
    for row in plan.rows():
        assert row["protected"] or row["units_before"], row["layer"]
    assert sum(row["units_before"] for row in plan.rows()) == plan.cost()["units"][0]


def test_reasons_say_what_is_kept(keras):
    lines = str(tfspline.plan(sequences(keras), 0.5)).splitlines()

    def notes(name):
        return " ".join(line for line in lines if line.split()[0] == name)

    assert "follows second" in notes("batch_norm") and "allow_inexact=True" in notes("first")


def test_way_out_for_a_custom_layer_works(keras):
    model = custom(keras)
    kept = {row["layer"]: row["protected"] for row in tfspline.plan(model, 0.5).rows()}
    assert "register_channel_rule(Odd, rule)" in kept["kept"] and "register_channel_rule(Odd, rule)" in kept["odd"]

    def rule(call):
        call.consume("kernel", 0, call.channels())
        return call.opaque()

    tfspline.register_channel_rule(type(model.get_layer("odd")), rule)
    assert tfspline.prune(model, 0.5).get_layer("kept").units == 4


def test_way_out_for_layer_normalization_works(keras):
    rows = {row["layer"]: row for row in tfspline.plan(sequences(keras), 0.5, allow_inexact=True).rows()}
    assert rows["first"]["units_after"] == 4
