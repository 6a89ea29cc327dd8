"""Composite layers and subclassed models, as users write them."""

import types

import tensorflow as tf


def block_class(keras):
    """A residual block with dropout, and a scale of its own for each channel."""
    layers = keras.layers

    class Block(layers.Layer):
        def __init__(self, width, **kwargs):
            super().__init__(**kwargs)
            self.width = width
            self.norm = layers.BatchNormalization()
            self.mlp = keras.Sequential([layers.Dense(4 * width, "relu"), layers.Dense(width)])
            self.drop = layers.Dropout(0.5)

        def build(self, shape):
            self.norm.build(shape)
            self.mlp.build((None, *shape[1:]))
            self.scale = self.add_weight(name="scale", shape=(self.width,), initializer="ones")
            self.built = True

        def call(self, x, training=False):
            y = self.drop(self.mlp(self.norm(x)), training=training)
            return x + y * self.scale

    return Block


def model_class(keras):
    """A subclassed model of such blocks, in a list."""
    layers = keras.layers

    class Blocks(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.inner = layers.Dense(width, "relu", name="inner")
            self.blocks = [block_class(keras)(width, name=f"block{i}") for i in range(2)]
            self.head = layers.Dense(3, name="head")

        def call(self, x, training=None):
            x = self.inner(x)
            for block in self.blocks:
                x = block(x, training=training)
            return self.head(x)

    return Blocks


def patches_class(keras, positions="a weight"):
    """A small vision transformer: patches, a class token, positions, and reshapes by the size of the batch.

    Positions are "a weight", "a part of a weight", or "an embedding" of constants.
    """
    layers = keras.layers
    if hasattr(keras, "ops"):
        ops = keras.ops
    else:
        ops = types.SimpleNamespace(
            shape=tf.shape, reshape=tf.reshape, tile=tf.tile, concatenate=tf.concat, slice=tf.slice,
            expand_dims=tf.expand_dims,
        )  # fmt: skip

    class Patches(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.width = width
            self.patch = layers.Conv2D(width, 4, 4, name="patch")
            self.wide, self.narrow = layers.Dense(4 * width, "relu", name="wide"), layers.Dense(width, name="narrow")
            self.head = layers.Dense(3, name="head")
            self.token = self.add_weight(name="token", shape=(1, 1, width), initializer="ones")
            if positions == "an embedding":
                self.embedding = layers.Embedding(5, width, name="position")
            else:
                sizes = (9, width) if "part" in positions else (1, 5, width)
                self.position = self.add_weight(name="position", shape=sizes, initializer="ones")

        def call(self, x):
            batch = ops.shape(x)[0]
            x = ops.reshape(self.patch(x), (batch, 4, self.width))
            x = ops.concatenate([ops.tile(self.token, (batch, 1, 1)), x], axis=1)
            if positions == "an embedding":
                x = x + self.embedding(tf.range(5)[None])
            elif positions == "a part of a weight":
                x = x + ops.expand_dims(ops.slice(self.position, (2, 0), (5, self.width)), 0)
            else:
                x = x + self.position
            x = x + self.narrow(self.wide(x))
            return self.head(x[:, 0])

    return Patches
