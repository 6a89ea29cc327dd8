"""Affine maps: A x + b equals the network in the region of x, and only there."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import zoo

from tfspline import _keras, affine_map, region_codes


def flat(values):
    return np.concatenate(
        [np.asarray(value, "float64").reshape(len(value), -1) for value in tf.nest.flatten(values)], 1
    )


def error(A, b, model, x):
    """Largest |f(x) - (A x + b)|, relative to the largest output."""
    f = flat(model(x))
    return np.abs(np.einsum("nmd,nd->nm", A, flat(x)) + b - f).max() / np.abs(f).max()


def piecewise(model):
    """A copy of the model with piecewise-affine activations instead of smooth ones."""

    pieces = {"sigmoid": "hard_sigmoid", "tanh": "hard_sigmoid", "elu": "relu"}
    changes = {}
    for path, layer in _keras.layer_paths(model).items():
        name = layer.get_config().get("activation") if _keras.op_name(layer) is None else None
        if name in pieces:
            changes[path] = {"activation": pieces[name]}
    copy = _keras.rebuild(model, changes)
    copy.set_weights(model.get_weights())  # those of layers that are made anew are zero
    return copy


@pytest.mark.sweep(3)
@pytest.mark.parametrize("family", [family for family in zoo.FAMILIES if family is not zoo.inverted])
def test_map_equals_the_network_at_the_input_and_its_neighbours_in_the_region(keras, rng, family):
    model = zoo.scramble(piecewise(family(keras)), rng)
    x = zoo.inputs_for(model, rng)
    A, b = affine_map(model, x)
    assert A.dtype == b.dtype == np.float64
    assert error(A, b, model, x) < 1e-5

    step = 1e-4
    near = tf.nest.map_structure(lambda value: value + step * rng.normal(size=value.shape).astype("float32"), x)
    here, there = (region_codes(model, inputs, max_pooling=True) for inputs in (x, near))
    same = np.all([(here[name] == there[name]).all(axis=1) for name in here.layers], axis=0)
    assert same.any()
    inside = tf.nest.map_structure(lambda value: value[same], near)
    assert error(A[same], b[same], model, inside) < 1e-5
    assert error(A, b, model, tf.nest.map_structure(lambda value: -10 * value, x)) > 1e-2  # another region


def test_map_computed_by_hand(keras):
    hidden = keras.layers.Dense(2, "relu", name="hidden")
    model = keras.Sequential([keras.Input((2,)), hidden, keras.layers.Dense(1, name="head")])
    hidden.set_weights([np.array([[1.0, 2.0], [-1.0, 1.0]]), np.array([0.5, -3.0])])
    model.get_layer("head").set_weights([np.array([[2.0], [5.0]]), np.array([1.0])])
    # z = (x0 - x1 + 0.5, 2 x0 + x1 - 3): the first unit is on at (1, 0), both are on at (2, 1), none is at (0, 1).
    A, b = affine_map(model, np.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]]))
    assert A.tolist() == [[[2, -2]], [[12, 3]], [[0, 0]]]
    assert b.tolist() == [[2], [-13], [1]]


def spline_layers(keras):
    layers = [
        keras.layers.LeakyReLU(),
        keras.layers.PReLU(alpha_initializer=keras.initializers.Constant(-0.5)),
        keras.layers.ReLU(max_value=0.7, negative_slope=0.2, threshold=0.1),
        keras.layers.Activation("hard_sigmoid"),
        keras.layers.Activation(tf.abs),
        keras.layers.Dense(5, tf.abs),
        keras.layers.Dense(5, "hard_sigmoid"),
        keras.layers.Dense(5, keras.layers.LeakyReLU()),
        keras.layers.TimeDistributed(keras.layers.Dense(5, "relu")),
    ]
    if keras.__name__ == "keras":
        return layers + [keras.layers.Activation(name) for name in ("hard_tanh", "soft_shrink", "hard_shrink")]
    prelu = keras.layers.PReLU(alpha_initializer=keras.initializers.Constant(0.3))
    return layers + [keras.layers.ThresholdedReLU(0.3), keras.layers.Dense(5, prelu)]


def test_every_piecewise_affine_activation(keras, rng):
    for layer in spline_layers(keras):
        model = keras.Sequential([keras.Input((3, 5)), layer, keras.layers.Flatten(), keras.layers.Dense(2)])
        x = rng.normal(size=(4, 3, 5)).astype("float32")
        A, b = affine_map(zoo.scramble(model, rng), x)
        assert error(A, b, model, x) < 1e-5, layer
        assert np.any(A), layer


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_every_pooling_layer(keras, rng, padding):
    for name, shape in [("1D", (7, 2)), ("2D", (7, 5, 2)), ("3D", (5, 4, 3, 2))]:
        for layer in [
            getattr(keras.layers, f"MaxPooling{name}")(3, 2, padding),
            getattr(keras.layers, f"AveragePooling{name}")(3, 2, padding),
            getattr(keras.layers, f"GlobalMaxPooling{name}")(keepdims=True),
            getattr(keras.layers, f"GlobalAveragePooling{name}")(keepdims=True),
        ]:
            model = keras.Sequential([keras.Input(shape), layer, keras.layers.Flatten(), keras.layers.Dense(2)])
            x = rng.normal(size=(2, *shape)).astype("float32")
            assert error(*affine_map(model, x), model, x) < 1e-5, layer.name


def test_maximum_minimum_and_bare_ops(keras, rng):
    a, b = keras.Input((4,)), keras.Input((4,))
    largest = keras.layers.Maximum()([a, b, keras.layers.Minimum()([a, b]) * 2.0])
    if keras.__name__ == "keras":
        y = keras.ops.maximum(a, 0.2) - keras.ops.clip(b, -0.5, 0.5) + keras.ops.max(a, axis=-1, keepdims=True)
        y = keras.ops.concatenate([keras.ops.leaky_relu(y, 0.3) / 4.0, largest[:, 1:]], axis=-1)
    else:
        y = tf.maximum(a, 0.2) - tf.clip_by_value(b, -0.5, 0.5) + tf.reduce_max(a, axis=-1, keepdims=True)
        y = tf.concat([tf.nn.leaky_relu(y, 0.3) / 4.0, largest[:, 1:]], axis=-1)
    model = keras.Model([a, b], [keras.layers.Dense(2)(y), 3.0 - largest * np.full(4, 2.0, "float32")])
    x = zoo.inputs_for(model, rng)
    A, offset = affine_map(model, x)
    assert A.shape == (3, 6, 8)
    assert error(A, offset, model, x) < 1e-5


def test_more_outputs_than_inputs_selected_outputs_and_small_batches(keras, rng):
    model = zoo.scramble(keras.Sequential([keras.Input((3,)), *(keras.layers.Dense(7, "relu") for _ in "ab")]), rng)
    x = rng.normal(size=(5, 3)).astype("float32")
    A, b = affine_map(model, x)  # column by column
    assert error(A, b, model, x) < 1e-5
    for rows, options in [
        ([4, -1], {"outputs": [4, -1]}),  # row by row
        ([0, 1, 2, 3, 4, 5, 6], {"batch_size": 2}),
        ([6, 2], {"outputs": np.array([6, 2]), "batch_size": 3}),
    ]:
        some, offsets = affine_map(model, x, **options)
        np.testing.assert_allclose(some, A[:, rows], atol=1e-12)
        np.testing.assert_allclose(offsets, b[:, rows], atol=1e-12)
    one, offset = affine_map(model, x, outputs=3)
    np.testing.assert_allclose(one, A[:, 3], atol=1e-12)
    np.testing.assert_allclose(offset, b[:, 3], atol=1e-12)


def test_map_equals_the_gradient(keras, rng):
    model = zoo.scramble(zoo.residual(keras), rng)
    x = tf.constant(zoo.inputs_for(model, rng))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x)
    gradient = np.asarray(tape.batch_jacobian(y, x)).reshape(3, 3, -1)
    assert zoo.difference(gradient, affine_map(model, x)[0]) < 1e-4


@pytest.mark.sweep(4)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions(keras, rng, policy):
    layers = [keras.layers.Dense(8, "relu", dtype=policy), keras.layers.BatchNormalization(dtype=policy)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2, dtype="float32")])
    x = rng.normal(size=(5, 4)).astype("float32")
    assert error(*affine_map(zoo.scramble(model, rng), x), model, x) < (1e-6 if policy == "float64" else 2e-2)


def test_adapted_normalization_and_integer_inputs(keras, rng):
    normal = keras.layers.Normalization()
    normal.adapt(rng.normal(3.0, 2.0, size=(50, 4)).astype("float32"))
    model = keras.Sequential([keras.Input((4,), dtype="float32"), normal, keras.layers.Dense(3, "relu")])
    x = rng.integers(0, 9, size=(5, 4))
    assert error(*affine_map(model, x), model, x.astype("float32")) < 1e-5


def test_logits_ignore_a_smooth_activation_at_the_output(keras, rng):
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "relu")(inputs)
    fused = keras.Model(inputs, keras.layers.Dense(3, "softmax", name="head")(hidden))
    logits = keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden))
    logits.set_weights(fused.get_weights())
    x = rng.normal(size=(5, 4)).astype("float32")
    with pytest.raises(ValueError, match="'head'.*'softmax'.*logits=True"):
        affine_map(fused, x)
    assert error(*affine_map(fused, x, logits=True), logits, x) < 1e-5
    own = keras.Model(inputs, keras.layers.Softmax()(logits(inputs)))
    assert error(*affine_map(own, x, logits=True), logits, x) < 1e-5


def test_layers_that_are_not_affine_are_rejected_by_name(keras):
    inputs = keras.Input((4,))
    layers = keras.layers
    for make, name in [
        (layers.Dense(4, "gelu", name="it"), "'it' with activation 'gelu'"),
        (layers.ELU(name="it"), "'it' with activation 'ELU'"),
        (layers.LayerNormalization(name="it"), r"'it' \(LayerNormalization\)"),
        (lambda x: layers.Multiply(name="it")([x, x]), r"'it' \(Multiply\)"),
        (lambda x: x * x, r"layer '.*mul.*'"),
        (lambda x: 1.0 / x, r"layer '.*(div).*'"),
        (layers.Lambda(lambda x: 2 * x, name="it"), r"'it' \(Lambda\)"),
    ]:
        with pytest.raises(ValueError, match=f"Received: layer {name}" if name[0] == "'" else name):
            affine_map(keras.Model(inputs, layers.Dense(1)(make(inputs))), np.ones((1, 4)), logits=True)
    if keras.__name__ == "keras":
        with pytest.raises(ValueError, match="'it' with an activation that has a curved piece"):
            affine_map(keras.Model(inputs, layers.Activation("hard_silu", name="it")(inputs)), np.ones((1, 4)))


def test_invalid_arguments_are_rejected(keras):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu")])
    with pytest.raises(ValueError, match=r"Expected inputs of shape \(samples, 4\)"):
        affine_map(model, np.zeros((2, 3)))
    for outputs in (3, [-4], [0.5], [[1]]):
        with pytest.raises(ValueError, match=r"`outputs`.*\[-3, 3\)"):
            affine_map(model, np.zeros((2, 4)), outputs=outputs)
    with pytest.raises(ValueError, match="Expected `batch_size` to be an integer of at least 1. Received: 0"):
        affine_map(model, np.zeros((2, 4)), batch_size=0)
    with pytest.raises(TypeError, match="Received: str"):
        affine_map("model", np.zeros((2, 4)))


def test_affine_map_does_not_change_the_model(keras, rng):
    model = zoo.residual(keras)
    before, config = model.get_weights(), model.get_config()
    affine_map(model, zoo.inputs_for(model, rng))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.get_config() == config
