"""Recurrent layers and TimeDistributed: their units are removed from all gates, and masked equals slim."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import check_cut, cut_and_trained, group_of
from helpers.zoo import difference, inputs_for, scramble

import tfspline

STEPS, WIDTH = 3, 8
FAST = {"unroll": True}  # tf_keras builds the same layer faster


def joined(keras, *make, shape=(STEPS, 4)):
    """input -> Dense "before" -> each of these layers, side by side -> Dense."""
    layers = keras.layers
    inputs = keras.Input(shape)
    x = layers.Dense(WIDTH, name="before")(inputs)
    tensors = [tensor for one in make for tensor in tf.nest.flatten(one(layers, x))]
    tensors = [layers.Flatten()(tensor) if len(tensor.shape) > 2 else tensor for tensor in tensors]
    tensors = [layers.Dense(4, "tanh")(tensor) for tensor in tensors]
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Add()(tensors)))


def pruned(model, rng, **options):
    """{layer: (units before, units after)} of a plan that removes half of the units, and the slim model."""
    plan = tfspline.plan(scramble(model, rng), 0.5, **{"criterion": "l1", **options})
    units = {row["layer"]: (row["units_before"], row["units_after"]) for row in plan.rows()}
    return units, check_cut(model, plan, rng)


def why(model, layer):
    return next(row["protected"] for row in tfspline.plan(model, 0.5).rows() if row["layer"] == layer)


OPTIONS = (
    {"return_sequences": True},
    {"return_sequences": True, "go_backwards": True},
    {"use_bias": False, "activation": "sigmoid"},
    {"unroll": True, "return_state": True},
    {"dropout": 0.2, "recurrent_dropout": 0.2, "activation": "relu"},
)
OF_GRU = ({"reset_after": False}, {"reset_after": False, "use_bias": False, "return_state": True})


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_units_of_a_layer(keras, rng, kind):
    options = OPTIONS + (OF_GRU if kind == "GRU" else ())
    make = [
        lambda layers, x, i=i, one=one: getattr(layers, kind)(6, name=f"layer{i}", **one)(x)
        for i, one in enumerate(options)
    ]
    units, slim = pruned(joined(keras, *make), rng)
    for i in range(len(options)):
        assert units[f"layer{i}"] == (6, 3) and slim.get_layer(f"layer{i}").units == 3
    assert units["before"] == (WIDTH, 4)


def test_bidirectional(keras, rng):
    """The same positions of both directions are one unit: Keras wants the directions to be equally wide."""
    kinds = {"concat": "LSTM", "sum": "GRU", "mul": "SimpleRNN", "ave": "SimpleRNN", None: "SimpleRNN"}
    make = [
        lambda layers, x, mode=mode, kind=kind: layers.Bidirectional(
            getattr(layers, kind)(
                6, return_sequences=mode in ("ave", None), return_state=mode in ("sum", None), **FAST
            ),
            merge_mode=mode,
            name=f"{mode}",
        )(x)
        for mode, kind in kinds.items()
    ]
    units, slim = pruned(joined(keras, *make), rng)
    for mode in map(str, kinds):
        assert units[mode] == (6, 3) and slim.get_layer(mode).backward_layer.units == 3
    loaded = type(slim).from_config(slim.get_config())
    assert loaded.count_params() == slim.count_params()


def test_a_backward_layer_of_its_own(keras, rng):
    def both(layers, x):
        backward = layers.GRU(6, go_backwards=True, activation="relu", name="own")
        return layers.Bidirectional(layers.LSTM(6), backward_layer=backward, name="both")(x)

    def same(layers, x):
        backward = layers.GRU(6, go_backwards=True, activation="relu", name="own", **FAST)
        return layers.Bidirectional(layers.SimpleRNN(6, **FAST), backward_layer=backward, name="both")(x)

    assert pruned(joined(keras, same), rng)[0]["both"] == (6, 3)
    assert "different sizes" in why(joined(keras, both), "before")


def test_cells(keras, rng):
    def stacked(layers, x):
        cells = [layers.LSTMCell(6), layers.GRUCell(4), layers.SimpleRNNCell(6)]
        return layers.RNN(cells, return_state=True, name="stacked", **FAST)(x)

    def both(layers, x):
        return layers.Bidirectional(layers.RNN([layers.GRUCell(4), layers.LSTMCell(6)], **FAST), name="both")(x)

    single = [
        lambda layers, x, kind=kind: layers.RNN(getattr(layers, kind)(6), name=kind, **FAST)(x)
        for kind in ("LSTMCell", "GRUCell", "SimpleRNNCell")
    ]
    model = joined(keras, stacked, both, *single)
    units, slim = pruned(model, rng)
    with pytest.raises(ValueError, match="spline_affine.*`protect`"):
        tfspline.plan(model, 0.5, criterion="spline_affine", data=inputs_for(model, rng))
    assert all(units[kind] == (6, 3) for kind in ("LSTMCell", "GRUCell", "SimpleRNNCell", "both#2", "stacked"))
    assert units["stacked#2"] == units["both"] == (4, 2) and units["stacked#3"] == (6, 3)
    assert [cell.units for cell in slim.get_layer("stacked").cell.cells] == [3, 2, 3]


@pytest.mark.parametrize("rank", [1, 2])
def test_convolutional_layers(keras, rng, rank):
    make = [
        lambda layers, x, i=i: getattr(layers, f"ConvLSTM{rank}D")(
            *(6, 2), padding="same" if i else "valid", return_sequences=i == 0, return_state=i > 0, name=f"layer{i}"
        )(x)
        for i in range(2)
    ]
    units, slim = pruned(joined(keras, *make, shape=(3, *[4] * rank, 2)), rng)
    assert units["before"] == (WIDTH, 4) and units["layer0"] == units["layer1"] == (6, 3)
    assert slim.get_layer("layer0").filters == 3


def test_states_that_are_passed_on_are_tied(keras, rng):
    def translate(layers, x):
        _, *states = layers.LSTM(6, return_state=True, name="encoder", **FAST)(x)
        y = layers.LSTM(6, return_sequences=True, name="decoder", **FAST)(x, initial_state=states)
        start = layers.Dense(6, name="start")(layers.Flatten()(x))
        both = layers.Bidirectional(layers.SimpleRNN(6, **FAST), name="both")(y, initial_state=[start, start])
        return layers.SimpleRNN(12, name="second", **FAST)(y, initial_state=both)

    units, slim = pruned(joined(keras, translate), rng)
    assert units["encoder"] == (6, 3) and units["start"] == (6, 3) and "decoder" not in units
    assert slim.get_layer("second").units == 6 and slim.get_layer("decoder").units == 3


def test_what_keeps_units(keras, rng):
    layers = keras.layers
    inputs, state = keras.Input((STEPS, 4)), keras.Input((6,))
    x = layers.Dense(WIDTH, name="before")(inputs)
    y = layers.GRU(6, return_sequences=True, name="given", **FAST)(x, initial_state=state)
    z = layers.Dense(STEPS, "sigmoid", name="mask")(layers.Flatten()(y))

    def whole(value, training=None):  # neither unrolled nor elementwise
        return value > tf.reduce_mean(value) if training else value > tf.reduce_mean(value)

    mask = layers.Lambda(whole, name="threshold")(z)
    y = layers.GRU(6, return_sequences=True, name="masked", **FAST)(y, mask=mask)
    y = layers.SimpleRNN(6, return_sequences=True, activation="softmax", name="mixing", **FAST)(y)
    y = layers.GRU(6, recurrent_activation="softmax", name="mixing_gates", **FAST)(y)
    model = scramble(keras.Model([inputs, state], layers.Dense(2)(y)), rng)
    plan = tfspline.plan(model, 0.5)
    check_cut(model, plan, rng)
    rows = {row["layer"]: row for row in plan.rows()}
    assert {name for name, row in rows.items() if not row["protected"]} == {"before", "masked"}
    assert "input of the model" in rows["given"]["protected"] and "threshold" in rows["mask"]["protected"]
    assert "'softmax'" in rows["mixing"]["protected"] and "'softmax'" in rows["mixing_gates"]["protected"]


def test_stateful_layers_keep_their_units(keras, rng):
    layers = keras.layers
    inputs = keras.Input(batch_shape=(3, STEPS, 4)) if hasattr(keras, "ops") else keras.Input((STEPS, 4), 3)
    x = layers.SimpleRNN(6, stateful=True, name="stateful", **FAST)(layers.Dense(WIDTH, name="before")(inputs))
    model = scramble(keras.Model(inputs, layers.Dense(2)(layers.Dense(4, "relu")(x))), rng)
    plan, x = tfspline.plan(model, 0.5), inputs_for(model, rng)
    slim, masked = plan.apply(model), plan.mask(model)
    reasons = {row["layer"]: row["protected"] for row in plan.rows()}
    assert "stateful" in reasons["stateful"] and slim.get_layer("before").units == 4
    for _ in range(2):
        assert difference(masked(x), slim(x)) < 1e-5


def test_masks_of_steps_survive(keras, rng):
    """Steps without a word count for nothing, and neither do steps of zeros."""
    layers = keras.layers
    words, numbers = keras.Input((STEPS,), dtype="int32"), keras.Input((STEPS, 4))
    x = layers.Embedding(9, WIDTH, mask_zero=True, name="words")(words)
    x = layers.Bidirectional(layers.GRU(6, return_sequences=True, **FAST), name="both")(x)
    x = layers.SimpleRNN(4, name="last", **FAST)(x)
    y = layers.GRU(4, name="gru", **FAST)(layers.Masking(0.0)(numbers))
    model = keras.Model([words, numbers], layers.Dense(2)(layers.Concatenate()([x, y])))
    units, slim = pruned(model, rng)
    assert units["both"] == (6, 3) and units["last"] == units["gru"] == (4, 2)
    table = slim.get_layer("words").get_weights()[0]
    x = [np.array([[1, 2, 0]]), np.float32([[[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]]])]
    expected = slim(x)
    table[0] += 1  # the vector of no word
    slim.get_layer("words").set_weights([table])
    assert difference(expected, slim(x)) == 0


def test_a_layer_called_twice_and_in_a_nested_model(keras, rng):
    layers = keras.layers
    twice = layers.GRU(WIDTH, return_sequences=True, name="twice", **FAST)
    inner = keras.Input((STEPS, WIDTH))
    both = layers.Bidirectional(layers.SimpleRNN(4, **FAST), merge_mode="ave", name="both")
    nested = keras.Model(inner, both(inner), name="nested")
    units, _ = pruned(joined(keras, lambda _, x: nested(twice(twice(x)))), rng)
    assert units["before"] == (WIDTH, 4) and units["nested/both"] == (4, 2)


def of_time(layer, shape=None):
    def make(layers, x):
        x = x if shape is None else layers.Reshape(shape)(x)
        return layers.TimeDistributed(layer(layers), name="each")(x)

    return make


EACH = {
    "Dense": (of_time(lambda layers: layers.Dense(6, "relu")), (6, 3)),
    "Conv1D": (of_time(lambda layers: layers.Conv1D(6, 2), (STEPS, 4, 2)), (6, 3)),
    "SeparableConv1D": (of_time(lambda layers: layers.SeparableConv1D(6, 2), (STEPS, 4, 2)), (6, 3)),
    "BatchNormalization": (of_time(lambda layers: layers.BatchNormalization()), None),
    "Flatten": (of_time(lambda layers: layers.Flatten(), (STEPS, 4, 2)), None),
    "TimeDistributed": (of_time(lambda layers: layers.TimeDistributed(layers.Dense(6)), (STEPS, 4, 2)), (6, 3)),
    "Bidirectional": (of_time(lambda layers: layers.Bidirectional(layers.SimpleRNN(6, **FAST)), (STEPS, 4, 2)), (6, 3)),
    "an initializer of one shape": (
        of_time(lambda layers: layers.Dense(6, kernel_initializer=lambda shape, dtype=None: np.ones((8, 6), "f"))),
        (6, 3),
    ),
}


@pytest.mark.parametrize("what", EACH)
def test_time_distributed(keras, rng, what):
    make, expected = EACH[what]
    units, slim = pruned(joined(keras, make), rng)
    width, kept = units["before"]
    assert kept == width // 2 and units.get("each") == expected


def test_time_distributed_protects_what_it_mixes(keras, rng):
    """A layer that tfspline does not know, and channels that are along the steps."""
    layers = keras.layers
    inner = keras.Sequential([keras.Input((WIDTH,)), layers.Dense(6)])
    assert "Sequential" in why(joined(keras, of_time(lambda layers: inner)), "before")
    model = joined(keras, lambda layers, x: layers.TimeDistributed(layers.Dense(6))(layers.Permute((2, 1))(x)))
    assert "each step" in why(model, "before")
    assert pruned(model, rng)[0]["before"] == (WIDTH, WIDTH)


GIVEN_STATES = {
    "LSTM": lambda layers, x, a, b: layers.LSTM(6)(x, initial_state=[a, b]),
    "Bidirectional": lambda layers, x, a, b: layers.Bidirectional(layers.GRU(6))(x, initial_state=[a, b]),
    "a cell": lambda layers, x, a, b: layers.RNN(layers.GRUCell(6))(x, initial_state=a),
    "the second call only": lambda layers, x, a, b: (gru := layers.GRU(6))(x) + gru(x, initial_state=a),
}


@pytest.mark.parametrize("what", GIVEN_STATES)
def test_initial_states_in_a_model_that_is_unrolled(keras, rng, what):
    """tf_keras changes what a layer says about its inputs while it is called with states."""
    layers = keras.layers
    inputs, *states = keras.Input((STEPS, 4)), keras.Input((6,)), keras.Input((6,))
    x = layers.Lambda(lambda value: value[..., ::-1])(layers.Dense(WIDTH, name="before")(inputs))
    y = layers.Concatenate()([GIVEN_STATES[what](layers, x, *states), *states])
    model = scramble(keras.Model([inputs, *states], layers.Dense(2)(y)), rng)
    assert tfspline.functional(model) is not model
    check_cut(model, tfspline.plan(model, 0.5), rng)


@pytest.mark.parametrize("cell", ["GRUCell", "LSTMCell"])
def test_one_cell_applied_twice_is_kept(keras, rng, cell):
    layers = keras.layers
    first, inputs = getattr(layers, cell)(8), keras.Input((5, 8))
    for cells in ([first, first], [first, getattr(layers, cell)(8), first]):
        x = layers.RNN(cells)(layers.Dense(8, "relu", name="before")(layers.Dense(8, "relu", name="free")(inputs)))
        plan, slim = cut_and_trained(keras.Model(inputs, layers.Dense(2)(x)), rng)
        assert "applies one cell twice" in group_of(plan, "before")[2] and slim.get_layer("free").units == 4


def test_layer_of_bidirectional_that_is_called_directly(keras, rng):
    """In tf_keras, Bidirectional makes two new layers from it."""
    layers, inputs, lstm = keras.layers, keras.Input((5, 4)), keras.layers.LSTM(8)
    both = layers.Bidirectional(lstm, name="both")(layers.Dense(6, "relu", name="before")(inputs))
    x = layers.Concatenate()([both, layers.Dense(3, name="after")(lstm(layers.Dense(6, "relu")(inputs)))])
    plan, _ = cut_and_trained(keras.Model(inputs, layers.Dense(2)(x)), rng)
    assert (group_of(plan, "before")[1] == 3) == (keras.__name__ == "keras")


@pytest.mark.parametrize("kind", ["LSTM", "Bidirectional", "cells"])
def test_states_of_stateful_layers_are_copied(keras, rng, kind):
    layers = keras.layers
    layer = {
        "LSTM": lambda: layers.LSTM(6, stateful=True),
        "Bidirectional": lambda: layers.Bidirectional(layers.GRU(6, stateful=True)),
        "cells": lambda: layers.RNN([layers.GRUCell(5), layers.LSTMCell(4)], stateful=True),
    }[kind]()
    inputs = keras.Input(batch_shape=(4, 5, 8)) if keras.__name__ == "keras" else keras.Input((5, 8), 4)
    model = scramble(keras.Model(inputs, layers.Dense(2)(layer(layers.Dense(8, "relu", name="a")(inputs)))), rng)
    plan, x = tfspline.plan(model, {"a": 0.5}), rng.normal(size=(4, 5, 8)).astype("float32")
    model(x)
    slim, masked = plan.apply(model), plan.mask(model)
    assert slim.get_layer("a").units == 4
    for _ in range(2):
        assert difference(masked(x), slim(x)) < 1e-5
