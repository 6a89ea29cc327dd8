"""Compiled models, their data, and checks that removed units are zero."""

import numpy as np
import tensorflow as tf

import tfspline
from helpers.zoo import chain, inputs_for, scramble
from tfspline.pruning.masks import entries


def half(model, rng, share=0.5):
    """Masks that remove a random share of the prunable units."""
    return tfspline.plan(model, share, criterion="random", seed=int(rng.integers(99))).masks


def off_values(model, masks):
    """The weight entries that belong to removed units."""
    layers = tfspline._keras.layer_paths(model)
    return np.concatenate(
        [
            layers[path].weights[index].numpy()[~on].astype("float64")
            for (path, index), on in entries(masks.graph, masks.off).items()
        ]
    )


def is_off(model, masks):
    values = off_values(model, masks)
    return values.size > 0 and not values.any()


def compiled(keras, rng, family=chain, optimizer=None, **options):
    model = scramble(family(keras), rng)
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01)
    model.compile(optimizer, "mse", **{"jit_compile": False, **options})
    return model


def data_for(model, rng, samples=24):
    x = inputs_for(model, rng, samples)
    return x, tf.nest.map_structure(lambda y: rng.normal(size=y.shape).astype("float32"), model(x))
