"""Bare ops that move, join or take apart numbers: units are cut through them, and masked equals slim."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference, inputs_for, scramble

import tfspline


def between(keras, shape, middle):
    """input -> Dense "before" of `shape` -> `middle(x)` -> Dense "after" -> Dense."""
    layers, inputs = keras.layers, keras.Input((*shape[:-1], 3))
    x = middle(layers.Dense(shape[-1], "relu", name="before")(inputs))
    x = layers.Dense(5, "tanh", name="after")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x) if len(x.shape) > 2 else x))


def check(model, rng):
    """Prunes half of the units and a random share; returns {layer: units before, units after} of the first plan."""
    scramble(model, rng)
    found = None
    x = inputs_for(model, rng)
    for options in ({"criterion": "l1"}, {"criterion": "random", "scope": "global", "seed": 3}):
        plan = tfspline.plan(model, 0.5, **options)
        slim, masked = plan.apply(model), plan.mask(model)
        assert difference(masked(x), slim(x)) <= 1e-5
        assert slim.count_params() == plan.cost()["params"][1] < plan.cost()["params"][0]
        assert tfspline.flops(slim).macs == plan.cost()["macs"][1]
        rows = {row["layer"]: (row["units_before"], row["units_after"], row["protected"]) for row in plan.rows()}
        found = found or rows
    return found


def chosen(keras, of_keras, of_tf):
    return lambda x: of_keras(keras.ops, x) if keras.__name__ == "keras" else of_tf(tf, x)


def joined(keras, parts, axis=-1):
    return keras.ops.concatenate(parts, axis) if keras.__name__ == "keras" else tf.concat(parts, axis)


def same(function):
    """An op that Keras 3 and TensorFlow call alike."""
    return function, function


def gated(parts):
    """The product of two tensors."""
    return parts[0] * parts[1]


MAP, ROWS = (4, 4, 8), (6, 8)
# Shape of the input; the op in Keras 3 and in TensorFlow; how many of the 8 units stay, None if that varies.
OPS = {
    "getitem": (MAP, *same(lambda o, x: x[..., 2:7]), None),
    "getitem of positions": (MAP, *same(lambda o, x: x[:, 1:-1, ::2]), 4),
    "getitem backwards": (MAP, *same(lambda o, x: x[:, ::-1, :, ::-1]), 4),
    "getitem every second": (MAP, *same(lambda o, x: x[..., 1::2] * x[..., ::2]), 4),
    "getitem every third": (MAP, *same(lambda o, x: x[..., 1::3]), None),
    "getitem backwards every second": (ROWS, *same(lambda o, x: x[..., -2::-2]), None),
    "getitem of a token": (ROWS, *same(lambda o, x: x[:, 0]), 4),
    "getitem, new axis": (ROWS, *same(lambda o, x: x[:, None, ..., None][..., 0]), 4),
    "getitem of one channel": (MAP, *same(lambda o, x: x[..., 3:4] * x), None),
    "getitem of a channel": (MAP, *same(lambda o, x: x[..., 3][..., None] + x), None),
    "split": (MAP, lambda o, x: o.split(x, 2, -1)[1], lambda o, x: tf.split(x, 2, axis=-1)[1], None),
    "split at": (MAP, lambda o, x: o.split(x, [3], -1)[1], lambda o, x: tf.split(x, [3, 5], -1)[1], None),
    "split of rows": (ROWS, lambda o, x: o.split(x, 2, 1)[1], lambda o, x: tf.split(x, 2, 1)[1], 4),
    "unstack": (ROWS, lambda o, x: o.unstack(x, axis=1)[2], lambda o, x: tf.unstack(x, axis=1)[2], 4),
    "unstack of gates": (ROWS, *same(lambda o, x: gated(o.unstack(o.reshape(x, (-1, 6, 2, 4)), axis=2))), None),
    "take": (MAP, lambda o, x: o.take(x, [5, 1, 2, 1], -1), lambda o, x: tf.gather(x, [5, 1, 2, 1], axis=-1), None),
    "take rows": (ROWS, lambda o, x: o.take(x, [5, 1], 1), lambda o, x: tf.gather(x, np.array([5, 1]), axis=1), 4),
    "stack": (ROWS, *same(lambda o, x: o.stack([x, -x], 1)), 4),
    "stack at the end": (ROWS, *same(lambda o, x: o.stack([x, -x], -1)[..., 0]), 4),
    "squeeze": (ROWS, lambda o, x: o.squeeze(x[:, 2:3], 1), lambda o, x: tf.squeeze(x[:, 2:3], 1), 4),
    "squeeze all": ((1, 2), lambda o, x: o.squeeze(x), lambda o, x: tf.squeeze(x, [1]), 1),
    "expand_dims": (ROWS, *same(lambda o, x: o.expand_dims(x, 1)), 4),
    "pad": (ROWS, *same(lambda o, x: o.pad(x, [[0, 0], [1, 2], [0, 0]])), 4),
    "pad channels": (ROWS, *same(lambda o, x: o.pad(x, [[0, 0], [1, 2], [1, 3]], constant_values=0.5)), 4),
    "flip": (ROWS, lambda o, x: o.flip(x, -1), lambda o, x: tf.reverse(x, [-1]), 4),
    "roll": (ROWS, *same(lambda o, x: o.roll(x, 3, -1)), 4),
    "roll rows": (ROWS, *same(lambda o, x: o.roll(x, [-1, 2], [-1, 1])), 4),
    "repeat": (ROWS, *same(lambda o, x: o.repeat(x, 2, axis=-1)), 4),
    "repeat some": (ROWS, *same(lambda o, x: o.repeat(x, [1, 2, 1, 1, 3, 1, 1, 2], axis=-1)), 4),
    "tile": (ROWS, *same(lambda o, x: o.tile(x, [1, 2, 3])), 4),
    "swapaxes": (MAP, lambda o, x: o.swapaxes(x, 1, 2), lambda o, x: tf.transpose(x, [0, 2, 1, 3]), 4),
    "moveaxis": (MAP, lambda o, x: o.moveaxis(o.moveaxis(x, 3, 1), 1, 3), lambda o, x: x, 4),
    "depth_to_space": (MAP, lambda o, x: o.nn.depth_to_space(x, 2), lambda o, x: tf.nn.depth_to_space(x, 2), 4),
    "space_to_depth": (MAP, lambda o, x: o.nn.space_to_depth(x, 2), lambda o, x: tf.nn.space_to_depth(x, 2), 4),
    "reshape": (MAP, *same(lambda o, x: o.reshape(x, (-1, 16, 8))), 4),
    "reshape, batch counted": (MAP, lambda o, x: o.reshape(x, (-1, 16, 8)),
                               lambda o, x: tf.reshape(x, [tf.shape(x)[0], 16, 8]), 4),
    "windows": (MAP, *same(lambda o, x: o.reshape(o.reshape(x, (-1, 2, 4, 8)) * 2.0, (-1, 4, 4, 8))), 4),
    "shuffle": (ROWS, *same(lambda o, x: o.reshape(o.transpose(o.reshape(x, (-1, 6, 2, 4)), (0, 1, 3, 2)),
                                                   (-1, 6, 8))), 4),
    "square": (ROWS, *same(lambda o, x: x**2 + x**1.5), 4),
}  # fmt: skip


@pytest.mark.parametrize("what", OPS)
def test_units_go_through(keras, rng, what):
    shape, of_keras, of_tf, stay = OPS[what]
    found = check(between(keras, shape, chosen(keras, of_keras, of_tf)), rng)
    names = [name for name in found if name.startswith("before")]
    kept = sum(found[name][1] for name in names)
    if stay in (4, 1):
        assert kept in (4, 2, 1) and found["before"][2] is None  # of 8, or of 4 that are two channels each
    else:
        assert kept < 8 if stay is None else kept == 8
