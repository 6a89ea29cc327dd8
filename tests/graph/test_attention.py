"""Attention: heads are units, which masks and cuts remove alike; what cannot be cut is protected by name."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import check_cut
from helpers.zoo import scramble

import tfspline

HEADS = 4


def around(keras, attend, shape=(6, 8)):
    """Dense -> attention -> Dense. `attend` gets the layers and the input of the attention, of 8 channels."""
    inputs = keras.Input((*shape[:-1], 3))
    x = keras.layers.Dense(shape[-1], name="before")(inputs)
    x = keras.layers.Dense(5, "tanh", name="after")(attend(keras.layers, x))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(x)))


def pruned(model, rng, **options):
    """The rows of a plan that removes half of the units, by layer, and the slim model; masked equals slim."""
    plan = tfspline.plan(scramble(model, rng), 0.5, **{"criterion": "random", **options})
    return {row["layer"]: row for row in plan.rows()}, check_cut(model, plan, rng)


def kept(row):
    return row["units_before"], row["units_after"]


def shape_of(slim, projection):
    return next(tuple(w.shape) for w in slim.weights if f"{projection}/kernel" in getattr(w, "path", w.name))


def multi_head(**config):
    config = {"num_heads": HEADS, "key_dim": 3, "name": "attention"} | config
    return lambda layers, x: layers.MultiHeadAttention(**config)(x, x)


def twice(layers, x):
    attention = layers.MultiHeadAttention(HEADS, 3, name="attention")
    return attention(attention(x, x), x)


def crossed(layers, x):
    memory = layers.Dense(7, name="memory")(x)
    return layers.MultiHeadAttention(HEADS, 3, name="attention")(x, memory, layers.Dense(5)(memory))


def with_masks(layers, x):
    mask = np.tril(np.ones((1, 6, 6), bool), 2)
    return layers.MultiHeadAttention(HEADS, 3, name="attention")(x, x, attention_mask=mask, use_causal_mask=True)


def with_a_mask_for_all_heads(layers, x):
    return layers.MultiHeadAttention(HEADS, 3, name="attention")(x, x, attention_mask=tf.ones((1, 1, 6, 6), bool))


# Attention over a sequence, by default, or an image.
MULTI_HEAD = {
    "other widths of values and outputs": multi_head(value_dim=5, output_shape=7),
    "no bias": multi_head(use_bias=False, dropout=0.3),
    "outputs with two axes": multi_head(output_shape=(2, 4)),
    "several calls": twice,
    "cross attention": crossed,
    "masks": with_masks,
    "a mask for all heads": with_a_mask_for_all_heads,
    "an image": multi_head(),
    "one axis of an image": multi_head(attention_axes=(2,)),
}


@pytest.mark.parametrize("what", MULTI_HEAD)
def test_heads_are_units(keras, rng, what):
    shape = (2, 3, 8) if "image" in what else (6, 8)
    rows, slim = pruned(around(keras, MULTI_HEAD[what], shape), rng)
    assert kept(rows["attention"]) == (HEADS, HEADS // 2)
    assert rows["attention"]["macs_after"] < 0.6 * rows["attention"]["macs_before"]
    assert slim.get_layer("attention").get_config()["num_heads"] == HEADS // 2
    assert shape_of(slim, "query")[1] == shape_of(slim, "attention_output")[0] == HEADS // 2
    assert kept(rows["before"]) == (8, 4) and kept(rows["after"]) == (5, 3)


def gated(layers, x):
    return layers.MultiHeadAttention(HEADS, 3, use_gate=True, flash_attention=False, name="attention")(x, x)


def grouped(**config):
    config = {"head_dim": 3, "num_query_heads": 8, "num_key_value_heads": HEADS, "name": "attention"} | config
    return lambda layers, x: layers.GroupQueryAttention(**config)(x, x)


def grouped_cross(layers, x):
    memory = layers.Dense(8, name="memory")(x)
    x = layers.GroupQueryAttention(3, 8, HEADS, name="attention")(x, memory, layers.Dense(5)(memory))
    return x


KERAS_3_ONLY = {
    "gate": gated,
    "grouped": grouped(),
    "grouped, no bias": grouped(use_bias=False, dropout=0.2),
    "grouped, gate": grouped(use_gate=True),
    "grouped, cross": grouped_cross,
    "grouped, constant query": lambda layers, x: (
        x + layers.GroupQueryAttention(3, 8, HEADS, name="attention")(np.ones((3, 6, 8), "float32"), x)
    ),
}


@pytest.mark.parametrize("what", KERAS_3_ONLY)
def test_heads_of_keras_3_are_units(rng, what):
    rows, slim = pruned(around(keras3, KERAS_3_ONLY[what]), rng)
    assert kept(rows["attention"]) == (HEADS, HEADS // 2)
    config = slim.get_layer("attention").get_config()
    if "grouped" in what:
        assert (config["num_query_heads"], config["num_key_value_heads"]) == (HEADS, HEADS // 2)
    else:
        assert config["num_heads"] == HEADS // 2 and shape_of(slim, "gate")[1] == HEADS // 2
    assert kept(rows["before"]) == ((8, 8) if "constant" in what else (8, 4))


def scores_too(layers, x):
    y, scores = layers.MultiHeadAttention(HEADS, 3, name="attention")(x, x, return_attention_scores=True)
    return layers.Concatenate()([y, layers.Reshape((6, HEADS * 6))(scores)])


def a_mask_for_each_head(layers, x):
    mask = tf.constant(np.tril(np.ones((1, HEADS, 6, 6), bool), np.arange(HEADS)[:, None, None].max()))
    return layers.MultiHeadAttention(HEADS, 3, name="attention")(x, x, attention_mask=mask)


KEPT = {
    "returns the scores of each head": scores_too,
    "has a mask for each head": a_mask_for_each_head,
}


@pytest.mark.parametrize("why", KEPT)
def test_heads_are_kept_by_name(keras, rng, why):
    rows, slim = pruned(around(keras, KEPT[why]), rng)
    assert why in rows["attention"]["protected"] and "'attention'" in rows["attention"]["protected"]
    assert slim.get_layer("attention").get_config()["num_heads"] == HEADS
    assert kept(rows["before"]) == (8, 4)


def test_attention_with_other_scores_is_unrolled(keras, rng):
    """A subclass that overrides a private method: what tfspline knows about heads need not hold for it."""

    class Talking(keras.layers.MultiHeadAttention):
        def _compute_attention(self, query, key, value, *args, **kwargs):
            return super()._compute_attention(query, key, value[:, :, ::-1], *args, **kwargs)

    model = around(keras, lambda layers, x: Talking(HEADS, 4, name="attention")(x, x))
    rows, slim = pruned(model, rng)
    assert kept(rows["before"]) == kept(rows["attention.attention_output"]) == (8, 4)
    widths = [kept(rows[name]) for name in ("attention.query", "attention.key", "attention.value") if name in rows]
    assert widths and set(widths) == {(4, 2)}
    assert shape_of(slim, "attention_output") == (HEADS, 2, 4)


@pytest.mark.parametrize("along", ["heads", "width", "a width without a scale", "heads with a mask"])
def test_dot_product_attention(rng, along):
    """The op of Keras 3."""
    layers, ops = keras3.layers, keras3.ops
    inputs = keras3.Input((6, 3))
    x = layers.Dense(4, "relu")(inputs)
    shape = (6, 1, 8) if "width" in along else (6, 8, 1)
    rows = [layers.Reshape(shape)(layers.Dense(8, name=name)(x)) for name in ("query", "key", "value")]
    options = {} if "without" in along else {"scale": 0.5}
    if "mask" in along:
        options["mask"] = np.ones((1, 8, 6, 6), bool)
    x = layers.Flatten()(ops.dot_product_attention(*rows, **options))
    plan = tfspline.plan(scramble(model := keras3.Model(inputs, layers.Dense(2)(x)), rng), 0.5, criterion="random")
    check_cut(model, plan, rng)
    after = {name: row["units_after"] for row in plan.rows() for name in (row["layer"], *row["tied"])}
    assert (after["query"], after["value"]) == {
        "heads": (4, 4), "width": (4, 4), "a width without a scale": (8, 8), "heads with a mask": (8, 8),
    }[along]  # fmt: skip
    if along == "width":
        assert any({"query", "key"} <= {row["layer"], *row["tied"]} for row in plan.rows())


def test_residual_attention(keras, rng):
    """Channels that the residual add ties are apart from the heads, and a mask is kept."""
    layers = keras.layers
    inputs = keras.Input((5, 3))
    query, value, key = (layers.Dense(n, name=f"dense{n}")(inputs) for n in (8, 6, 4))
    mask = layers.Dense(5, "sigmoid", name="mask")(inputs)
    attention = layers.MultiHeadAttention(2, 3, value_dim=5, name="attention")
    x = layers.Add()([query, attention(query=query, value=value, key=key, attention_mask=mask)])
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(5, "tanh", name="after")(x)))
    rows, slim = pruned(model, rng)
    assert rows["dense8"]["tied"] == ["attention"]
    assert rows["mask"]["protected"] == "'attention' (MultiHeadAttention) uses it as a mask"
    assert {name: row["units_after"] for name, row in rows.items()} == {
        "dense8": 4, "dense6": 3, "dense4": 2, "mask": 5, "attention": 1, "after": 3, "head": 2,
    }  # fmt: skip
    shapes = [tuple(weight.shape) for weight in slim.get_layer("attention").weights]
    assert shapes == [(4, 1, 3), (1, 3), (2, 1, 3), (1, 3), (3, 1, 5), (1, 5), (1, 5, 4), (4,)]


def test_width_of_outputs_does_not_follow_the_query(keras, rng):
    """Without `output_shape`, outputs are as wide as the query, which is cut here while they stay."""
    inputs = keras.Input((6, 3))
    x = keras.layers.Dense(8, name="before")(inputs)
    rows, slim = pruned(keras.Model(inputs, multi_head()(keras.layers, x)), rng)
    assert kept(rows["before"]) == (8, 4) and slim.output_shape == (None, 6, 8)
