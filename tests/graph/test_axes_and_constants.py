"""Axes other than the last, and constants of every form: masked equals slim, and the slim model trains."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import custom_layers
from helpers.cutting import between, cut_and_trained, group_of

from tfspline.graph.reader import read

# Layers with an argument `axis` and the like, on inputs [6, 8] or [4, 4, 8]: 4 of 8 units go through them.
THROUGH = {
    "batch norm over rows": ((6, 8), lambda k, x: k.BatchNormalization(axis=1)(x)),
    "batch norm over as many rows as channels": ((8, 8), lambda k, x: k.BatchNormalization(axis=-2)(x)),
    "batch norm over one row": ((1, 8), lambda k, x: k.BatchNormalization(axis=1)(x)),
    "batch norm of channels first": (
        (6, 8), lambda k, x: k.Permute((2, 1))(k.BatchNormalization(axis=1)(k.Permute((2, 1))(x)))
    ),
    "softmax over time": ((6, 8), lambda k, x: k.Softmax(axis=1)(x)),
    "softmax over space": ((4, 4, 8), lambda k, x: k.Softmax(axis=-2)(x)),
    "dropout of channels": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 1, 1, 8))(x)),
    "dropout of all": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 4, 4, 8))(x)),
    "dropout of positions": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 4, 1, 1))(x)),
    "dropout alike": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 1, 1, None))(x)),
    "alpha dropout": ((6, 8), lambda k, x: k.AlphaDropout(0.5, noise_shape=(4, 1, 8))(x)),
    "spatial dropout": ((4, 4, 8), lambda k, x: k.SpatialDropout2D(0.5)(x)),
    "gaussian dropout": ((6, 8), lambda k, x: k.GaussianDropout(0.5)(x)),
    "group norm over rows of one channel": ((6, 8), lambda k, x: k.GroupNormalization(groups=8)(x)),
}  # fmt: skip


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", THROUGH)
def test_units_go_through(keras, rng, what):
    shape, middle = THROUGH[what]
    plan, slim = cut_and_trained(between(keras, shape, lambda x: middle(keras.layers, x)), rng)
    assert group_of(plan, "before")[:2] == (8, 4) and slim.get_layer("before").units == 4


FORMS = {
    "list": lambda array: array.tolist(),
    "tuple": lambda array: tuple(array.tolist()),
    "array": lambda array: array,
    "tensor": tf.constant,
    "variable": tf.Variable,
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("form", FORMS)
def test_constants(keras, rng, form):
    if keras.__name__ == "keras" and form in ("list", "tuple"):
        pytest.skip("Keras 3 refuses a list")
    ops = keras.ops if keras.__name__ == "keras" else tf
    for apply in (lambda x, c: ops.multiply(c, x), lambda x, c: x * c, lambda x, c: x + c, ops.maximum):
        for shape in [(8,), (1, 8), (6, 8), (6, 1), (1, 1, 1)]:
            constant = FORMS[form](np.linspace(0.5, 1.5, int(np.prod(shape)), dtype="float32").reshape(shape))
            model = between(keras, (6, 8), lambda x, f=apply, c=constant: f(x, c))
            why = {group.name: group.protected for group in read(model).groups}["before"]
            is_fixed = form == "variable" and shape[-1] == 8
            assert "reads a variable with a number for each" in why if is_fixed else why is None
    row = 1 if form == "variable" else 8
    value = np.linspace(0.5, 1.5, 6 * row, dtype="float32").reshape(6, row)
    plan, _ = cut_and_trained(between(keras, (6, 8), lambda x: x * FORMS[form](value) + FORMS[form](value[:1])), rng)
    assert group_of(plan, "before") == (8, 4, None)


def test_constants_of_channels_that_are_spread_over_several_axes(keras, rng):
    values = np.random.default_rng(2).normal(size=(3, 4, 4, 8)).astype("float32")
    for make in (
        lambda k, x: k.Conv2D(5, 1)(x * values[0] + tf.constant(values[1, :1])),
        lambda k, x: k.Conv2D(5, 1)(k.Permute((3, 1, 2))(x * values[0, 0] - values[0, :, :1])),
    ):
        plan, _ = cut_and_trained(from_seed(keras, (4, 4, 8), make), rng)
        assert group_of(plan, "seed")[2] is None


def test_constants_of_a_nested_model_that_is_called_twice(keras, rng):
    layers, inputs, inner = keras.layers, keras.Input((6, 3)), keras.Input((6, 8))
    scale = keras.Model(inner, inner * np.linspace(0.5, 1.5, 8, dtype="float32"), name="scale")
    a, b = (layers.Dense(8, "relu", name=name)(inputs) for name in "ab")
    x = layers.Concatenate()([layers.Dense(4, "tanh")(scale(a)), layers.Dense(4, "tanh")(scale(b))])
    _, slim = cut_and_trained(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))), rng)
    assert slim.get_layer("a").units == slim.get_layer("b").units == 4


def with_constant(keras, middle):
    """As `between`, on inputs [6, 3], but for batches of 3."""
    layers, inputs = keras.layers, keras.Input(batch_shape=(3, 6, 3))
    x = layers.Dense(5, "tanh", name="after")(middle(layers.Dense(8, "relu", name="before")(inputs)))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def constant(*shape):
    return tf.constant(np.random.default_rng(1).normal(size=shape), tf.float32)


def concatenated(keras, values, axis):
    return keras.ops.concatenate(values, axis) if keras.__name__ == "keras" else tf.concat(values, axis)


JOINED = {
    "channels after": lambda k, x: concatenated(k, [x, constant(3, 6, 4)], -1),
    "channels before": lambda k, x: concatenated(k, [constant(3, 6, 4), x], -1),
    "by a layer": lambda k, x: k.layers.Concatenate()([x, constant(3, 6, 4)]),
    "query": lambda k, x: k.layers.MultiHeadAttention(2, 3)(constant(3, 5, 4), x),
    "value": lambda k, x: k.layers.MultiHeadAttention(2, 3)(x, constant(3, 5, 4)),
    "key": lambda k, x: k.layers.MultiHeadAttention(2, 3)(x, x, constant(3, 6, 4)),
    "value and key": lambda k, x: k.layers.MultiHeadAttention(2, 3)(x, constant(3, 5, 4), constant(3, 5, 7)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", JOINED)
def test_constants_beside_units(keras, rng, what):
    model = with_constant(keras, lambda x: JOINED[what](keras, x))
    plan, _ = cut_and_trained(model, rng)
    assert group_of(plan, "before")[:2] == (8, 4)


@pytest.mark.parametrize("how", ["rows", "columns", "sum"])
def test_constants_of_the_width_of_units_are_cut(keras, rng, how):
    middle = {
        "rows": lambda x: concatenated(keras, [constant(3, 1, 8), x], 1),
        "columns": lambda x: keras.layers.Concatenate(axis=-2)([x, constant(3, 2, 8)]),
        "sum": lambda x: keras.layers.Add()([x, constant(3, 6, 8)]),
    }[how]
    plan, _ = cut_and_trained(with_constant(keras, middle), rng)
    assert group_of(plan, "before") == (8, 4, None)


def from_seed(keras, shape, middle):
    """input -> Dense "seed" -> Reshape to `shape` -> `middle(layers, x)` -> Dense."""
    layers, inputs = keras.layers, keras.Input((3,))
    x = layers.Reshape(shape)(layers.Dense(int(np.prod(shape)), "relu", name="seed")(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(middle(layers, x))))


SEEDS = {
    "channels first": ((8, 4, 4), lambda k, x: k.Conv2D(5, 1)(k.Permute((2, 3, 1))(x))),
    "channels first, pooled": ((8, 4, 4), lambda k, x: k.GlobalAveragePooling2D(data_format="channels_first")(x)),
    "channels last": ((4, 4, 8), lambda k, x: k.Conv2D(5, 1)(x)),
    "channels in the middle": ((4, 8, 3), lambda k, x: k.BatchNormalization(axis=2)(x)),
    "neither": ((4, 4, 8), lambda k, x: k.ReLU()(x)),
    "slopes": ((4, 4, 8), lambda k, x: k.PReLU(alpha_initializer="normal")(x)),
    "there and back": ((4, 4, 8), lambda k, x: k.Conv2D(5, 1)(k.Reshape((4, 4, 8))(k.Reshape((16, 8))(x)))),
    "two readers": ((8, 8), lambda k, x: k.Concatenate()([k.Conv1D(5, 1)(x), k.ReLU()(x)])),
    "noise": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 4, 1, 8))(x)),
    "beside others": ((4, 4, 8), lambda k, x: k.Concatenate()([k.ReLU()(x), k.Conv2D(5, 1)(x)])),
    "channels first, beside others": (
        (8, 4, 4), lambda k, x: (lambda x: k.Concatenate()([k.Conv2D(5, 1)(x), x]))(k.Permute((2, 3, 1))(x))
    ),
    "channels first, joined": (
        (8, 4, 4),
        lambda k, x: k.GlobalMaxPooling2D(data_format="channels_first")(k.Concatenate(axis=2)([x, k.ReLU()(x)])),
    ),
}  # fmt: skip


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", SEEDS)
def test_channels_that_are_spread_over_several_axes(keras, rng, what):
    shape, middle = SEEDS[what]
    plan, _ = cut_and_trained(from_seed(keras, shape, middle), rng)
    assert group_of(plan, "seed") == (8, 4, None)


def repeated(keras, what):
    """Numbers with units of their own, of which some are repeated to meet others that are spread over several axes."""
    layers = keras.layers
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 1, name="map")(inputs)
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Reshape((4, 4, 2))(layers.Dense(32, "relu", name="seed")(layers.Flatten()(pooled)))
    if what == "weights":
        y = custom_layers.of(keras).Unconfigured(10, 0.5)(layers.Concatenate()([x, y]))
    else:
        gate = layers.Dense(2, "tanh", name="gate")
        y = layers.Multiply()([y, gate({"all": pooled, "rows": layers.AveragePooling2D((1, 4))(x)}[what])])
        y = layers.Permute((2, 3, 1))(y) if what == "rows" else y
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv2D(4, 1)(y))))


@pytest.mark.parametrize("what", ["weights", "all", "rows"])
def test_numbers_that_are_repeated_to_meet_channels_of_several_axes(keras, rng, what):
    plan, _ = cut_and_trained(repeated(keras, what), rng)
    assert group_of(plan, "seed")[1:] == (1, None)


def test_channels_that_are_read_in_two_ways_are_one_unit(keras, rng):
    def both(layers, x):
        return layers.Concatenate()([layers.Conv1D(5, 1)(x), layers.Conv1D(5, 1)(layers.Permute((2, 1))(x))])

    plan, _ = cut_and_trained(from_seed(keras, (8, 8), both), rng)
    assert group_of(plan, "seed")[:2] == (1, 1)


def test_layers_that_mix_positions_protect_channels_by_name(keras, rng):
    def mixed(x):
        layers = keras.layers
        x = layers.Dense(10, "relu", name="mixer")(layers.Permute((2, 1))(x))
        return layers.Permute((2, 1))(layers.Dense(6, name="back")(x))

    plan, slim = cut_and_trained(between(keras, (6, 8), mixed), rng)
    before, after, why = group_of(plan, "before")
    assert before == after == 8 and "'mixer' (Dense) reads them along another axis" in why
    assert slim.get_layer("mixer").units == 5


SHARED = {
    "Reshape": lambda k: k.Reshape((3, 2, 8)),
    "GroupNormalization": lambda k: k.GroupNormalization(groups=-1, center=False, scale=False),
    "Dropout": lambda k: k.Dropout(0.5, noise_shape=(None, 1, 8)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", SHARED)
@pytest.mark.parametrize("other", ["the same", "another", "the input"])
def test_size_of_a_layer_that_is_called_twice(keras, rng, what, other):
    layers, inputs = keras.layers, keras.Input((6, 8))
    shared, a = SHARED[what](layers), layers.Dense(8, "relu", name="a")(inputs)
    b = {"the same": a, "another": layers.Dense(8, "relu", name="b")(inputs), "the input": inputs}[other]
    features = [layers.Dense(5, "tanh")(shared(x)) for x in (a, b)]
    plan, slim = cut_and_trained(
        keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Concatenate()(features)))), rng
    )
    widths = [layer.units for layer in slim.layers if layer.name in "ab"]
    assert set(widths) == {8 if other == "the input" else 4}
    if other == "the input":
        assert "is called several times" in group_of(plan, "a")[2]
