"""Layers that look words up, whose vocabulary tf_keras keeps among the weights although it is no tensor."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import EXACT, check_cut
from helpers.zoo import difference, scramble

import tfspline

TEXTS = tf.constant([["the cat sat"], ["a dog ran"], ["a cat ran"], ["the dog sat"]] * 4)
LABELS = np.arange(16) % 2


def lookup(keras, kind):
    """An adapted layer, and inputs for it."""
    layers, words = keras.layers, tf.strings.substr(TEXTS, 0, 3)
    if kind == "texts":
        layer, x = layers.TextVectorization(max_tokens=20, output_sequence_length=4), TEXTS
    elif kind == "integers":
        layer, x = layers.IntegerLookup(), tf.strings.length(TEXTS, name="n")
        x = tf.cast(x, tf.int64)
    elif kind == "numbers":
        layer, x = layers.Discretization(num_bins=4), np.random.default_rng(0).normal(size=(16, 1)).astype("float32")
    elif kind == "hashes":
        return layers.Hashing(20), words
    else:
        layer, x = layers.StringLookup(), words
    layer.adapt(x)
    return layer, x


def compiled(keras, kind):
    layers = keras.layers
    layer, x = lookup(keras, kind)
    inputs = keras.Input((1,), dtype=tf.as_dtype(x.dtype).name)
    if kind == "nested words":
        inner = keras.Input((1,), dtype="string")
        layer = keras.Model(inner, layer(inner), name="inner")
    y = layers.Flatten()(layers.Embedding(30, 6)(layer(inputs)))
    y = layers.ReLU(name="relu")(layers.BatchNormalization()(layers.Dense(8, name="a")(y)))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8, "relu")(y)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, x, tf.data.Dataset.from_tensor_slices((x, LABELS)).batch(4)


KINDS = ["texts", "words", "nested words", "integers", "numbers", "hashes"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", KINDS)
def test_planning_and_cutting(keras, kind):
    model, x, dataset = compiled(keras, kind)
    for criterion in ("spline_data", "taylor", "synflow"):
        plan = tfspline.plan(model, 0.5, criterion=criterion, data=dataset)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) < 1e-5
    assert difference(model(x), tfspline.wrap(model)(x)) < 1e-5
    assert tfspline.slim_report(plan.mask(model)).difference < 1e-5
    assert plan.apply(model, data=dataset).get_layer("a").units == 4
    assert tfspline.region_codes(model, x).bits["relu"] == 8
    assert tfspline.flops(model).macs or "a" in tfspline.flops(model).unknown  # how many words a text has is not known


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_in_training(keras, kind):
    model, x, dataset = compiled(keras, kind)
    masks = tfspline.plan(model, 0.5).masks
    masks.apply(model)
    masks.apply(model)
    model.fit(dataset, verbose=0)
    tfspline.Masks.release(model)
    assert tfspline.Masks.from_model(model) == masks


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", KINDS)
def test_callbacks(keras, kind):
    model, x, dataset = compiled(keras, kind)
    early_bird, mask_bird = tfspline.EarlyBird(probe_size=8), tfspline.EarlyBird(metric="mask")
    pruning = tfspline.SplinePruning(lambda step: (True, 0.5))
    model.fit(dataset, epochs=2, verbose=0, callbacks=[early_bird, mask_bird, pruning])
    assert np.isfinite(early_bird.distances[1]) and np.isfinite(mask_bird.distances[1])
    assert pruning.sparsity == 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_reversible_embedding(rng, tied):
    """Tokens are looked up in a table, and scored by it or by another one. A subclass becomes the layer of Keras."""

    class Own(keras3.layers.ReversibleEmbedding):
        pass

    class Block(keras3.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.dense = keras3.layers.Dense(8, name="dense")

        def call(self, x):
            return x + self.dense(x)

    table = Own(20, 8, tie_weights=tied, name="table")
    inputs = keras3.Input((6,), dtype="int32")
    model = scramble(keras3.Model(inputs, table(Block()(table(inputs)), reverse=True)), rng)
    plan = tfspline.plan(model, 0.5)
    slim, x = plan.apply(model), rng.integers(0, 20, (3, 6))
    masked = plan.mask(model)
    assert type(slim.get_layer("table")) is keras3.layers.ReversibleEmbedding
    assert difference(masked(x), slim(x)) <= EXACT and slim.count_params() == plan.cost()["params"][1]
    for whole, smaller in ((model, tfspline.functional(model)), (masked, slim)):
        found = tfspline.slim_report(whole)
        assert found.difference <= EXACT and found.model.count_params() == smaller.count_params()


def test_reversible_embedding_that_is_never_reversed(rng):
    """Its second table is cut, too."""
    inputs = keras3.Input((6,), dtype="int32")
    x = keras3.layers.ReversibleEmbedding(20, 8, tie_weights=False, name="table")(inputs)
    model = scramble(keras3.Model(inputs, keras3.layers.Dense(2)(x)), rng)
    slim = check_cut(model, tfspline.plan(model, 0.5), rng)
    assert slim.get_layer("table").reverse_embeddings.shape == (4, 20)
