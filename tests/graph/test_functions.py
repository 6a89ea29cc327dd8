"""Functions as activations, in Lambda layers and as bare ops: known by the object, never by the name."""

import functools
import importlib
import inspect
import warnings

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers.cutting import cut_and_trained
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline import _keras
from tfspline.graph.layer_specs import functions
from tfspline.graph.layer_specs.registry import activation_of
from tfspline.graph.piecewise import PiecewiseAffine
from tfspline.graph.reader import read

HOMES = [tf.nn, tf.math, keras3.ops, keras3.activations, tf_keras.activations]
# What the test takes for a function of one number, but is none, or does not use its number.
OTHERS = {
    "array",
    "converttotensor",
    "emptylike",
    "hstack",
    "linear",
    "oneslike",
    "stack",
    "unstack",
    "vstack",
    "zeroslike",
}


def low(x, top=0.1):
    """A function of one number, which its operations do not show."""
    return tf.reshape(tf.minimum(tf.nn.relu(tf.reshape(x, [-1])), top), tf.shape(x))


def relu(x):
    """A user's function with the name of another one."""
    return low(x)


def named(name):
    """A user's function with any name."""
    function = lambda x: low(x)  # noqa: E731
    function.__name__ = name
    return function


class Callable:
    """An activation without a name."""

    def __call__(self, x):
        return low(x)


class Method:
    def activate(self, x):
        return low(x)


USERS = {
    **{name: lambda name=name: named(name) for name in ("relu", "elu", "softmax", "linear", "relu6", "leaky_relu")},
    "lambda": lambda: lambda x: low(x),
    "object": Callable,
    "method": lambda: Method().activate,
    "partial": lambda: functools.partial(low, top=0.1),
    "wrapped": lambda: functools.wraps(tf.nn.relu)(lambda x: low(x)),
    "tf.function": lambda: tf.function(named("relu")),
}


def model_with(keras, layer):
    """input -> Dense "before" -> `layer` -> Dense."""
    stack = [keras.layers.Dense(8, name="before"), layer, keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((5,)), *stack])


def reason(model):
    """Why the units that the last hidden Dense layer produces are kept; None if they can be removed."""
    return read(model).groups[-2].protected


def fused(keras, activation, units=8):
    return keras.layers.Dense(units, activation=activation, name="fused")


def functions_of_one_number():
    """Functions of TensorFlow and Keras that act on each number alone, by their names without underscores."""
    found = {}
    for home in HOMES:
        for name in dir(home):
            function = getattr(home, name)
            if inspect.isfunction(function) and not name.startswith("_"):
                with warnings.catch_warnings(action="ignore"):
                    fault = functions._fault(function)
                if fault in (None, functions.NOT_FINITE):
                    found.setdefault(name.replace("_", ""), []).append((function, fault))
    return found


def test_every_function_of_one_number_is_known_and_is_finite_at_0_unless_it_says_otherwise():
    found = functions_of_one_number()
    assert set(found) - OTHERS <= functions._KNOWN and len(found) > 80
    for name, pairs in found.items():
        for function, fault in pairs:
            if name not in OTHERS:
                assert functions.objection(function) == fault, name
                assert (fault is None) == (name not in functions.SINGULAR), name


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", USERS)
def test_user_function_is_not_taken_for_a_built_in_one(keras, what, rng):
    function, x = USERS[what](), rng.normal(size=(3, 5)).astype("float32")
    for layer in (fused(keras, function), keras.layers.Activation(function, name="fused")):
        model = model_with(keras, layer)
        assert not isinstance(activation_of(layer), PiecewiseAffine)
        assert "register_elementwise" in reason(model)
        for refused in (tfspline.region_codes, tfspline.affine_map):
            with pytest.raises(ValueError, match="'fused' with activation"):
                refused(model, x)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", USERS)
def test_advice_to_register_a_function_works(keras, what):
    function = USERS[what]()
    for layer in (fused(keras, function), keras.layers.Activation(function), keras.layers.Lambda(function)):
        model = model_with(keras, layer)
        assert "register_elementwise" in reason(model)
        tfspline.register_elementwise(function)
        assert reason(model) is None
        functions._registered.clear()


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", ["relu", "linear", "lambda", "object", "method", "partial"])
def test_masked_is_slim_with_registered_functions(keras, what, rng):
    function = USERS[what]()
    tfspline.register_elementwise(function)
    stack = [fused(keras, function), keras.layers.Lambda(function), keras.layers.Activation(function)]
    model = scramble(keras.Sequential([keras.Input((5,)), *stack, keras.layers.Dense(2)]), rng)
    plan, x = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5
    assert plan.apply(model).get_layer("fused").activation == function


def test_wrap_leaves_user_functions_and_partials(keras):
    for function in (relu, functools.partial(tf.nn.leaky_relu, alpha=0.3), tf.nn.elu):
        layers = [keras.layers.BatchNormalization(), keras.layers.Activation(function)]
        model = keras.Sequential([keras.Input((4, 4, 3)), *layers])
        assert tfspline.layers.wrapping._stacks(model, keras.layers.BatchNormalization) == {}
    unit = importlib.import_module(f"tfspline.layers.{keras.__name__}").SplineUnit
    with pytest.raises(ValueError, match="`activation`"):
        unit(relu)


SLOPES = {
    "leaky_relu": lambda k: functools.partial(tf.nn.leaky_relu, alpha=0.3),
    "relu": lambda k: functools.partial(k.activations.relu, max_value=2.0),
    "relu with a threshold": lambda k: functools.partial(k.activations.relu, threshold=0.5),
    "clip": lambda k: functools.partial(tf.clip_by_value, clip_value_min=-1.0, clip_value_max=0.5),
    "Keras' clip": lambda k: functools.partial(keras3.ops.clip, x_min=-1.0, x_max=0.5),
    "soft shrink": lambda k: functools.partial(keras3.ops.soft_shrink, threshold=0.25),
    "hard shrink, its default": lambda k: keras3.ops.hard_shrink,
    "Keras' leaky_relu": lambda k: functools.partial(keras3.ops.leaky_relu, negative_slope=0.3),
    "threshold": lambda k: functools.partial(keras3.ops.threshold, threshold=0.5, default_value=-0.25),
    "fabs": lambda k: keras3.ops.fabs,
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", SLOPES)
def test_keyword_arguments_of_a_partial_are_part_of_the_function(keras, rng, what):
    function, x = SLOPES[what](keras), rng.normal(size=(6, 5)).astype("float32")
    for layer in (fused(keras, function), keras.layers.Activation(function), keras.layers.Lambda(function)):
        model = scramble(model_with(keras, layer), rng)
        A, b = tfspline.affine_map(model, x)
        np.testing.assert_allclose(np.einsum("noi,ni->no", A, x) + b, model(x), rtol=1e-4, atol=1e-5)
        assert reason(model) is None
        if what != "fabs":  # its output does not determine the piece
            assert tfspline.region_codes(model, x).bits


def test_partial_with_an_array_is_refused(keras):
    bounds = np.linspace(0.1, 0.8, 8).astype("float32")
    function = functools.partial(tf.clip_by_value, clip_value_min=0.0, clip_value_max=bounds)
    with pytest.raises(ValueError, match="'fused' with"):
        tfspline.region_codes(model_with(keras, fused(keras, function)), np.ones((1, 5)))
    assert "cannot be cut" in reason(model_with(keras, keras.layers.Activation(function)))


def test_lambda_with_arguments(keras, rng):
    for function, arguments in [(tf.nn.leaky_relu, {"alpha": 0.3}), (lambda x, top: low(x, top), {"top": 0.5})]:
        layer = keras.layers.Lambda(function, arguments=arguments, name="it")
        model = model_with(keras, layer)
        if function is not tf.nn.leaky_relu:
            assert "'it' (Lambda) may mix channels" in reason(model)
            with pytest.raises(ValueError, match="'it'" if keras is keras3 else "shape"):
                tfspline.affine_map(model, np.ones((1, 5)))
            with pytest.raises(ValueError, match="'top'"):
                tfspline.register_elementwise(function)
            functions._registered.append(function)
        assert reason(model) is None
        functions._registered.clear()


@pytest.mark.parametrize("make", [lambda: tf.nn.softmax, lambda: functools.partial(tf.nn.softmax, axis=-1)])
def test_functions_that_mix_channels_protect(keras, make):
    for layer in (fused(keras, make()), keras.layers.Activation(make()), keras.layers.Lambda(make())):
        assert "mixes channels" in reason(model_with(keras, layer))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ["log", "rsqrt", "sqrt", "reciprocal"])
def test_functions_that_are_not_finite_at_0_protect(keras, name):
    ops = keras3.ops if keras is keras3 else tf.math
    function = getattr(ops, name)
    inputs = keras.Input((5,))
    bare = keras.Model(inputs, keras.layers.Dense(2)(function(keras.layers.Dense(8, name="before")(inputs))))
    for model in (
        bare,
        model_with(keras, keras.layers.Activation(function)),
        model_with(keras, fused(keras, function)),
    ):
        assert functions.NOT_FINITE in reason(model)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "name", sorted({"sin", "tanh", "erf", "square", "exp", "sign", "cos", "abs", "expm1", "round"})
)
def test_units_go_through_functions_of_one_number(keras, rng, name):
    function = getattr(keras3.ops if keras is keras3 else tf.math, name)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(8, name="before")(inputs)
    model = scramble(keras.Model(inputs, keras.layers.Dense(2)(function(x))), rng)
    plan, values = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    slim = plan.apply(model)
    assert slim.get_layer("before").units == 4
    assert difference(plan.mask(model)(values), slim(values)) <= 1e-5


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (tf.nn.softmax, ValueError, "softmax"),
        (lambda x: x - tf.reduce_mean(x), ValueError, "lambda"),
        (lambda x: tf.reduce_sum(x, -1), ValueError, r"\[2, 3\]"),
        (lambda x: x + tf.ones(8), ValueError, "fails for"),
        (tf.math.log, ValueError, "at 0"),
        (lambda x: tf.sqrt(tf.abs(x)), ValueError, "slope at 0"),
        (keras3.layers.ReLU(), TypeError, "register_channel_rule"),
        (keras3.layers.ReLU, TypeError, "register_channel_rule"),
        ("relu", TypeError, "relu"),
    ],
)
def test_register_elementwise_refuses(function, error, match):
    with pytest.raises(error, match=match):
        tfspline.register_elementwise(function)


def test_activation_that_is_a_layer_with_weights_protects(keras):
    for activation in (keras.layers.PReLU(name="slopes"), keras.layers.BatchNormalization(name="slopes")):
        why = reason(model_with(keras, fused(keras, activation)))
        assert "'slopes' of 'fused' (Dense)" in why and "layer of its own" in why
        assert reason(model_with(keras, type(activation)())) is None  # the advice works


@pytest.mark.parametrize(
    "module",
    [
        keras3,
        tf_keras,
    ],
    ids=["keras3", "tf_keras"],
)
def test_masked_is_slim_with_an_activation_that_is_a_layer_with_weights(module, rng):
    model = model_with(module, fused(module, module.layers.PReLU(alpha_initializer="normal")))
    x = inputs_for(model, rng)
    model(x)  # Keras 3 builds the PReLU here
    scramble(model, rng)
    plan = tfspline.plan(model, 0.5, criterion="l1")
    slim = plan.apply(model)
    assert slim.get_layer("before").units == 4 and difference(plan.mask(model)(x), slim(x)) <= 1e-5
    assert difference(tfspline.slim(model)(x), model(x)) <= 1e-5


def test_linear_is_no_activation_whatever_it_is_called(keras):
    for activation in (None, "linear", keras.activations.linear, tf.identity, keras.layers.Activation("linear")):
        assert _keras.own_activation(fused(keras, activation)) is None
    assert _keras.own_activation(fused(keras, named("linear"))) is not None


def test_subclass_of_activation_with_a_computation_of_its_own(keras, rng):
    class Shifted(keras.layers.Activation):
        def call(self, x):
            return super().call(x) + 1.0

    model, x = scramble(model_with(keras, Shifted("relu", name="shifted")), rng), rng.normal(size=(4, 5))
    A, b = tfspline.affine_map(model, x.astype("float32"))
    np.testing.assert_allclose(np.einsum("noi,ni->no", A, x) + b, model(x), rtol=1e-4, atol=1e-5)


def test_op_of_a_user_is_not_taken_for_the_one_of_that_name(rng):
    class Relu(keras3.Operation):
        def call(self, x):
            return keras3.ops.minimum(x, 0.1) - keras3.ops.mean(x, axis=-1, keepdims=True)

        def compute_output_spec(self, x):
            return keras3.KerasTensor(x.shape, x.dtype)

    inputs = keras3.Input((5,))
    model = keras3.Model(inputs, keras3.layers.Dense(2)(Relu()(keras3.layers.Dense(8, name="before")(inputs))))
    assert "Relu" in reason(model)
    with pytest.raises(ValueError, match="Relu"):
        tfspline.affine_map(model, np.ones((1, 5)))


def test_decorated_function_of_a_user_is_not_taken_for_the_op_of_that_name():
    @tf.__internal__.dispatch.add_dispatch_support
    def relu(x):
        return tf.minimum(x, 0.1) - tf.reduce_mean(x, axis=-1, keepdims=True)

    inputs = tf_keras.Input((5,))
    before = tf_keras.layers.Dense(8, name="before")(inputs)
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(relu(before)))
    assert reason(model) is not None


def test_sign_of_a_hidden_pre_activation_is_not_guessed(keras, rng):
    x = rng.normal(size=(4, 5)).astype("float32")
    for activation, observed in [("elu", True), (keras.layers.ELU(), True), (tf.sin, False), (relu, False)]:
        model = scramble(model_with(keras, fused(keras, activation)), rng)
        end = keras.Sequential([model, keras.layers.ReLU(name="end"), keras.layers.Dense(1)])
        end(x)
        codes = tfspline.region_codes(end, x, approximate=True)
        assert any("fused" in name for name in codes.layers) == observed
        if observed:
            z = keras.Model(model.inputs, model.layers[0].output)(x) @ model.layers[1].kernel + model.layers[1].bias
            np.testing.assert_array_equal(codes.unpack(codes.layers[0]), np.asarray(z) > 0)


def test_wrapper_for_quantization_is_not_taken_for_its_layer(tfmot, rng):
    layers = [tf_keras.layers.Dense(8, "relu", name="hidden"), tf_keras.layers.ReLU(), tf_keras.layers.Dense(2)]
    model = tfmot.quantization.keras.quantize_model(tf_keras.Sequential([tf_keras.Input((4,)), *layers]))
    x = rng.normal(size=(3, 4)).astype("float32")
    with pytest.raises(ValueError, match="'quant_hidden'"):
        tfspline.region_codes(model, x)
    with pytest.raises(ValueError, match="'quant"):
        tfspline.affine_map(model, x)
    with pytest.raises(ValueError, match="No unit"):
        tfspline.plan(model, 0.5, criterion="l1")


def test_function_that_changes_the_width_is_kept_by_name(rng):
    layers, inputs = tf_keras.layers, tf_keras.Input((8,))

    def gated(z):
        return z[:, :4] * tf.sigmoid(z[:, 4:])

    for layer in (layers.Activation(gated), layers.Dense(8, gated)):
        x = layer(layers.Dense(8, name="before")(layers.Dense(8, "relu", name="free")(inputs)))
        plan, slim = cut_and_trained(tf_keras.Model(inputs, layers.Dense(2)(x)), rng)
        assert slim.get_layer("free").units == 4


def test_a_lambda_that_was_told_its_output_shape(keras, rng):
    layers, halved = keras.layers, keras.layers.Lambda(lambda x: np.float32(0.5) * tf.nn.relu(x), output_shape=(8,))
    parts = [layers.Dense(8, name="a"), halved, layers.Dense(8, "relu"), layers.Dense(2)]
    model = scramble(keras.Sequential([keras.Input((4,)), *parts]), rng)
    plan, x = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    slim = plan.apply(model)
    assert slim.get_layer("a").units == 4
    assert difference(plan.mask(model)(x), slim(x)) <= 1e-5


def test_a_layer_with_a_fixed_output_shape_keeps_its_units():
    class Halved(keras3.layers.Layer):
        def call(self, x, training=None):
            return tf.nn.relu(x) * (1.0 if training else 0.5)

        def compute_output_shape(self, shape):
            return (shape[0], 8)

    layers = keras3.layers
    parts = [layers.Dense(8, name="a"), Halved(name="halved"), layers.Dense(8, "relu", name="b"), layers.Dense(2)]
    rows = tfspline.plan(keras3.Sequential([keras3.Input((4,)), *parts]), 0.5, criterion="l1").rows()
    units = {row["layer"]: (row["units_after"], row["protected"]) for row in rows}
    assert units["a"][0] == 8 and "register_channel_rule(Halved" in units["a"][1] and units["b"][0] == 4
