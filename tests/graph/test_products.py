"""Sums of products of tensors: units of both factors go together, heads as a whole, constants are cut."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import check_cut
from helpers.zoo import scramble

import tfspline

CONSTANT = np.random.default_rng(1).normal(size=(8, 5)).astype("float32")


def dense(keras, x, name, activation=None):
    return keras.layers.Dense(8, activation, name=name)(x)


def einsum(keras, equation, *values):
    return keras.ops.einsum(equation, *values) if keras.__name__ == "keras" else tf.einsum(equation, *values)


def matmul(keras, a, b):
    return keras.ops.matmul(a, b) if keras.__name__ == "keras" else tf.matmul(a, b)


def softmax(keras, x):
    return keras.layers.Softmax()(x)


def single_head(keras, x):
    scores = einsum(keras, "btd,bsd->bts", dense(keras, x, "q"), dense(keras, x, "k"))
    return einsum(keras, "bts,bsd->btd", softmax(keras, scores / 3.0), dense(keras, x, "v"))


def heads(keras, x):
    q, k, v = (keras.layers.Reshape((6, 4, 2))(dense(keras, x, name)) for name in "qkv")
    weights = softmax(keras, einsum(keras, "bthd,bshd->bhts", q, k))
    return keras.layers.Reshape((6, 8))(einsum(keras, "bhts,bshd->bthd", weights, v))


def heads_by_matmul(keras, x):
    layers = keras.layers
    split = [layers.Permute((2, 1, 3))(layers.Reshape((6, 4, 2))(dense(keras, x, name))) for name in "qkv"]
    weights = softmax(keras, matmul(keras, split[0], layers.Permute((1, 3, 2))(split[1])))
    return layers.Reshape((6, 8))(layers.Permute((2, 1, 3))(matmul(keras, weights, split[2])))


# A network in the middle of another one, and how many of the 8 units of its layers stay at 50 %.
PRODUCTS = {
    "single head": (single_head, {"q": 4, "k": 4, "v": 4}),
    "heads": (heads, {"q": 4, "k": 4, "v": 4}),
    "heads by matmul": (heads_by_matmul, {"q": 4, "k": 4, "v": 4}),
    "matmul with a constant": (lambda k, x: matmul(k, dense(k, x, "q", "relu"), tf.constant(CONSTANT)), {"q": 4}),
    "einsum with a constant": (lambda k, x: einsum(k, "...c,cd->...d", dense(k, x, "q"), CONSTANT), {"q": 4}),
    "a constant for each channel": (lambda k, x: einsum(k, "btc,c->btc", dense(k, x, "q"), CONSTANT[:, 0]), {"q": 4}),
    "not zero": (lambda k, x: matmul(k, dense(k, x, "q", "sigmoid"), tf.constant(CONSTANT)), {"q": 8}),
    "not zero behind a norm over rows": (
        lambda k, x: matmul(k, k.layers.BatchNormalization(axis=1)(dense(k, x, "q")), tf.constant(CONSTANT)), {"q": 8}
    ),
    "zero behind a norm": (
        lambda k, x: matmul(k, k.layers.BatchNormalization()(dense(k, x, "q")), tf.constant(CONSTANT)), {"q": 4}
    ),
    "two kinds of units": (
        lambda k, x: einsum(k, "btc,btd->bdc", dense(k, x, "q"), dense(k, x, "k")), {"q": 4, "k": 8}
    ),
    "gates": (
        lambda k, x: einsum(k, "btc,btc->btc", dense(k, x, "q"), dense(k, x, "k", "sigmoid")), {"q": 4}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PRODUCTS)
def test_products(keras, rng, what):
    make, expected = PRODUCTS[what]
    layers, inputs = keras.layers, keras.Input((6, 3))
    x = layers.Dense(5, "tanh", name="after")(make(keras, inputs))
    model = scramble(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))), rng)
    slim = check_cut(model, tfspline.plan(model, 0.5, criterion="random"), rng)
    assert {name: slim.get_layer(name).units for name in expected} == expected
