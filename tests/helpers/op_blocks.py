"""Blocks of random graphs made of bare ops: those of Keras 3, or TensorFlow's in tf_keras."""

import numpy as np
import tensorflow as tf

from helpers.graph_builder import block


def ops(g):
    """The module of the ops, and whether it is that of Keras 3."""
    return (g.keras.ops, True) if g.is_keras3 else (tf, False)


def fixed(x):
    """Whether all sizes but the batch are known, and no mask belongs to the steps."""
    return None not in x.shape[1:] and getattr(x, "_keras_mask", None) is None


def joined(g, parts, axis=-1):
    return g.layers.Concatenate(axis=axis)(parts) if len(parts) > 1 else parts[0]


@block()
def sliced(g, x):
    width = x.shape[-1]
    cut = g.pick(slice(1, None), slice(None, width // 2 + 1), slice(None, None, -1), slice(0, None, 2), slice(-3, None))
    y = x[..., cut]
    return joined(g, [y, x[..., : max(width // 2, 1)]]) if g.flag() else y


@block()
def parted(g, x):
    o, is_keras = ops(g)
    at = g.pick(*range(1, x.shape[-1] - 1)) if x.shape[-1] > 2 else 1
    if x.shape[-1] % 2 == 0 and g.flag():
        parts = o.split(x, 2, axis=-1)
        return g.pick(lambda: parts[0] * parts[1], lambda: joined(g, [parts[1], parts[0]]))()
    parts = o.split(x, [at] if is_keras else [at, x.shape[-1] - at], axis=-1)
    y = g.layers.ReLU()(parts[0])
    return joined(g, [parts[1], y])


@block()
def taken(g, x):
    o, is_keras = ops(g)
    places = np.array([g.pick(*range(x.shape[-1])) for _ in range(g.pick(3, 5))])
    return o.take(x, places, axis=-1) if is_keras else tf.gather(x, places, axis=-1)


@block()
def rolled(g, x):
    return ops(g)[0].roll(x, g.pick(1, -2, 3), g.pick(-1, 1))


@block()
def padded(g, x):
    widths = [[0, 0]] * (len(x.shape) - 1) + [[g.pick(0, 1), 2]]
    y = ops(g)[0].pad(x, widths)
    return g.layers.Dense(y.shape[-1], "relu")(x) + y if g.flag() else y


@block()
def repeated(g, x):
    return ops(g)[0].repeat(x, 2, axis=-1) if x.shape[-1] < 9 else x


@block()
def tiled(g, x):
    return ops(g)[0].tile(x, [1] * (len(x.shape) - 1) + [2]) if x.shape[-1] < 9 else x


@block()
def stacked(g, x):
    o, axis = ops(g)[0], g.pick(1, -1)
    y = o.stack([x, g.layers.Dense(x.shape[-1], "relu")(x)], axis)
    return y[:, 0] * y[:, 1] if axis == 1 else y[..., 0] - y[..., 1]


@block()
def inserted(g, x):
    return ops(g)[0].squeeze(x[..., None, :], -2)


@block()
def power(g, x):
    return g.pick(lambda: x**2, lambda: (x * x + 1.0) ** 1.5, lambda: 1.1**x)()


@block()
def multiplied(g, x):
    """A product with a constant matrix."""
    o = ops(g)[0]
    values = np.linspace(-0.5, 0.5, x.shape[-1] * 5).astype("float32").reshape(-1, 5)
    return g.pick(lambda: o.matmul(x, values), lambda: o.einsum("...c,cd->...d", x, values))()


@block("sequence")
def hand_made_attention(g, x):
    if not fixed(x):
        return x
    o, steps = ops(g)[0], x.shape[1]
    width = g.pick(4, 6)
    q, k, v = (g.layers.Dense(width)(x) for _ in "qkv")
    if g.flag():
        weights = g.layers.Softmax()(o.einsum("btd,bsd->bts", q, k))
        return o.einsum("bts,bsd->btd", weights, v)
    q, k, v = (g.layers.Reshape((steps, 2, width // 2))(part) for part in (q, k, v))
    weights = g.layers.Softmax()(o.einsum("bthd,bshd->bhts", q, k))
    return o.reshape(o.einsum("bhts,bshd->bthd", weights, v), (-1, steps, width))


@block("map")
def depth_and_space(g, x):
    o, is_keras = ops(g)
    home = o.nn if not is_keras else o
    if fixed(x) and x.shape[-1] % 4 == 0 and x.shape[1] <= 4:
        return home.depth_to_space(x, 2)
    if fixed(x) and x.shape[1] % 2 == x.shape[2] % 2 == 0 and x.shape[-1] < 6:
        return home.space_to_depth(x, 2)
    return x


@block("map")
def windows(g, x):
    """The windows of an image as a batch, as in a Swin transformer."""
    if not fixed(x) or x.shape[1] % 2 or x.shape[2] % 2 or g.batch:
        return x
    o, (height, width, channels) = ops(g)[0], x.shape[1:]
    y = o.transpose(o.reshape(x, (-1, height // 2, 2, width // 2, 2, channels)), (0, 1, 3, 2, 4, 5))
    y = g.layers.Dense(5, "relu")(o.reshape(y, (-1, 4, channels)))
    y = o.transpose(o.reshape(y, (-1, height // 2, width // 2, 2, 2, 5)), (0, 1, 3, 2, 4, 5))
    return o.reshape(y, (-1, height, width, 5))


@block("map")
def resized(g, x):
    if not fixed(x) or x.shape[1] > 4:
        return x
    return g.keras.ops.image.resize(x, (5, 6)) if g.is_keras3 else tf.image.resize(x, (5, 6))
