"""The small model, data and expected messages of the tests of invalid arguments."""

import functools
import math
import types

import numpy as np
import pytest
import tensorflow as tf

import tfspline

EXPECTED_MODEL = "Expected a Keras 3 or tf_keras model. Received: "
EXPECTED_NUMBERS = "Expected numbers for 'x.*'. Received: "
EXPECTED_FINITE = "Expected finite numbers for 'x.*'. Received: NaN or infinity among them"


def expected_integer(name, least, received):
    """The message for an argument that is not an integer, or too small."""
    return f"Expected `{name}` to be an integer of at least {least}. Received: {received}"


def small_model(keras, name):
    """A compiled model with four inputs, the hidden layers "a" and "b", and three outputs."""
    x = inputs = keras.Input((4,), name="x")
    for layer, units in (("a", 8), ("b", 6)):
        x = keras.layers.Dense(units, "relu", name=layer)(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name=name)
    model.compile("sgd", "mse", run_eagerly=True)
    return model


@functools.cache
def valid_arguments(keras):
    """A model, its plan, slim model and codes, and inputs with and without NaN; built once for each Keras version."""
    model = small_model(keras, "net")
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    x_with_nan = x.copy()
    x_with_nan[3, 1] = math.nan
    plan = tfspline.plan(model, 0.5)
    return types.SimpleNamespace(
        keras=keras,
        model=model,
        slim=plan.apply(model),
        x=x,
        y=np.zeros((16, 3), "float32"),
        x_with_nan=x_with_nan,
        plan=plan,
        codes=tfspline.region_codes(model, x),
    )


def half_at_first_step(step):
    """A schedule that prunes half of the units at the first step."""
    return step == 0, 0.5


def fit(given, callback, *names):
    """Train new models with the given names (default "net"), one after the other, with the same callback."""
    for name in names or ("net",):
        small_model(given.keras, name).fit(given.x, given.y, verbose=0, callbacks=[callback])


def unbatched(array):
    """A tf.data dataset of single samples."""
    return tf.data.Dataset.from_tensor_slices(array)


def assert_rejected(given, call, error, message):
    """Check that `call(given)` raises the error with a matching message, and neither creates nor deletes a file."""
    files = set(given.folder.rglob("*"))
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(error, match=message):
        call(given)
    assert set(given.folder.rglob("*")) == files
