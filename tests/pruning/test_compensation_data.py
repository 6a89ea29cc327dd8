"""Compensation on unusual data, and of models whose ops have arguments that a cut changes."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference, scramble

import tfspline

SCALES = np.linspace(0.5, 1.5, 8, dtype="float32")
MATRIX = np.linspace(-1, 1, 40, dtype="float32").reshape(8, 5)


def split(keras, h):
    return keras.ops.split(h, [3], axis=-1) if hasattr(keras, "ops") else tf.split(h, [3, 5], axis=-1)


def of(keras, name):
    return getattr(keras.ops if hasattr(keras, "ops") else tf, name)


OPS = {
    "array": lambda k, h: h * SCALES,
    "tensor": lambda k, h: h + tf.constant(SCALES),
    "maximum": lambda k, h: of(k, "maximum")(h, SCALES),
    "slice": lambda k, h: h[:, :4],
    "gates": lambda k, h: h[:, :4] * of(k, "sigmoid")(h[:, 4:]),
    "lambda": lambda k, h: k.layers.Lambda(lambda z: z[:, :4] * z[:, 4:])(h),
    "matrix": lambda k, h: of(k, "matmul")(h, MATRIX),
    "split": lambda k, h: k.layers.Concatenate()([split(k, h)[1], k.layers.ReLU()(split(k, h)[0])]),
    "reshape": lambda k, h: k.layers.Flatten()(of(k, "reshape")(h, (-1, 4, 2))),
}


@pytest.mark.parametrize("op", OPS)
def test_compensation_calls_the_ops_as_the_cut_model_does(keras, rng, op):
    layers, inputs = keras.layers, keras.Input((8,))
    h = OPS[op](keras, layers.Dense(8, "relu", name="h")(inputs))
    model = scramble(keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(h))), rng)
    x = rng.normal(size=(64, 8)).astype("float32")
    plan = tfspline.plan(model, 0.5)
    errors = [difference(model(x), plan.apply(model, x, how)(x)) for how in ("none", "merge", "refit")]
    assert errors[2] < errors[0] and errors[1] <= errors[0]


def test_units_that_nothing_reads_go_without_a_trace(keras, rng):
    layers, inputs = keras.layers, keras.Input((8,))
    h = layers.Dense(8, "relu", name="h")(inputs)[:, 2:6]
    model = scramble(keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(h))), rng)
    plan, x = tfspline.plan(model, 0.5), rng.normal(size=(64, 8)).astype("float32")
    plan.removed[:] = False
    for options in ({}, {"data": x, "compensate": "refit"}, {"data": x, "compensate": "none"}):
        assert difference(model(x), plan.remove("h", [0, 1]).apply(model, **options)(x)) < 1e-5


@pytest.mark.parametrize("rows", [9, 200])
@pytest.mark.parametrize("how", ["merge", "refit"])
def test_data_that_does_not_vary(keras, rng, how, rows):
    """Rounding errors are not taken for a variance, which once made all weights NaN."""
    layers = keras.layers
    stack = [layers.Dense(12, "relu"), layers.Dense(9, "relu"), layers.Dense(2)]
    model = scramble(keras.Sequential([keras.Input((8,)), *stack]), rng)
    x = np.repeat(rng.normal(size=(1, 8)), rows, 0).astype("float32")
    assert difference(model(x), tfspline.plan(model, 0.5).apply(model, x, how)(x)) < 1e-4
