"""EinsumDense, Dot and attention without weights: which axes channels are along, and what is summed over."""

import pytest
from helpers.cutting import check_cut
from helpers.zoo import scramble

import tfspline


def pruned(keras, rng, make):
    """The rows of a plan of Dense -> `make` -> Dense, half of whose units are removed; masked equals slim."""
    inputs = keras.Input((6, 3))
    x = keras.layers.Dense(8, name="before")(inputs)
    x = make(keras.layers, x)
    x = keras.layers.Dense(5, "tanh", name="after")(x)
    pool = keras.layers.GlobalAveragePooling1D() if None in x.shape[1:] else keras.layers.Flatten()
    model = scramble(keras.Model(inputs, keras.layers.Dense(2)(pool(x))), rng)
    plan = tfspline.plan(model, 0.5, criterion="random")
    rows = {row["layer"]: row for row in plan.rows()}
    return (
        {name: (row["units_before"], row["units_after"]) for name, row in rows.items()},
        rows,
        check_cut(model, plan, rng),
    )


def einsum(equation, shape, bias=None, **options):
    return lambda layers, x: layers.EinsumDense(equation, shape, bias_axes=bias, name="einsum", **options)(x)


def then(kind, shape, make):
    return lambda layers, x: getattr(layers, kind)(shape)(make(layers, x))


def two_axes(layers, x):
    x = layers.EinsumDense("abc,cde->abde", (6, 2, 4), bias_axes="de", name="einsum")(x)
    return layers.EinsumDense("abde,def->abf", (6, 7), bias_axes="f", name="second")(x)


# A layer, and the units of "before" and of the layer.
EINSUM = {
    "dense": (einsum("abc,cd->abd", (6, 4), "d", activation="relu"), (8, 4), (4, 2)),
    "unknown sizes": (einsum("abc,cd->abd", (None, 4)), (8, 4), (4, 2)),
    "ellipsis first": (einsum("...c,cd->...d", 4, "d"), (8, 4), (4, 2)),
    "ellipsis last": (then("Permute", (2, 1), einsum("ab...,bc->ac...", (4,), "c")), (8, 8), (4, 2)),
    "two axes are made": (two_axes, (8, 4), (4, 2)),
    "an axis is summed over": (einsum("abc,bcd->ad", (4,), "d"), (8, 4), (4, 2)),
    "each position has its kernel": (einsum("abc,bcd->abd", (6, 4), "bd"), (8, 4), (4, 2)),
    "a factor for each channel": (einsum("abc,c->abc", (6, 8), "c"), (8, 4), None),
    "a kernel for each channel": (then("Reshape", (6, 24), einsum("abc,cd->abcd", (6, 8, 3), "c")), (8, 4), None),
    "the same bias for all": (einsum("abc,cd->abd", (6, 4), "b"), (8, 4), (4, 4)),
    "no channels": (
        lambda layers, x: layers.Concatenate()([einsum("abc,c->ab", (6,))(layers, x)[:, :, None], x]),
        (8, 4),
        None,
    ),
    "of another axis": (then("Permute", (2, 1), einsum("abc,bd->adc", (4, 8))), (8, 8), (4, 2)),
}


@pytest.mark.parametrize("what", EINSUM)
def test_einsum_dense(keras, rng, what):
    make, before, own = EINSUM[what]
    units, rows, _ = pruned(keras, rng, make)
    assert units["before"] == before
    assert own is None or units["einsum"] == own
    assert (
        before[0] > before[1] or "'einsum'" in rows["before"]["protected"] or "getitem" in rows["before"]["protected"]
    )


def attention(kind, **options):
    return lambda layers, x: getattr(layers, kind)(name="attention", **options)(
        [layers.Dense(4, name="query")(x), layers.Dense(6, name="value")(x), layers.Dense(4, name="key")(x)]
    )


def additive(layers, x):
    """Three inputs of one width: in tf_keras the scale has that of the value."""
    inputs = [layers.Dense(4, name=name)(x) for name in ("query", "value", "key")]
    return layers.AdditiveAttention(name="attention")(inputs)


def self_attention(layers, x):
    return layers.Attention(name="attention")([x, x])


def embedded(layers, x):
    """tanh(0) is 0, so that units can be summed over; sigmoid(0) is not."""
    query, key = layers.Dense(4, "tanh", name="query")(x), layers.Activation("relu")(layers.Dense(4, name="key")(x))
    return layers.Attention(name="attention")([query, layers.Dense(6, name="value")(x), key])


SCORES = {
    "dot": (attention("Attention", use_scale=True), {"query": (4, 2), "value": (6, 3)}),
    "additive": (additive, {"query": (4, 2)}),
    "additive without a scale": (attention("AdditiveAttention", use_scale=False), {"query": (4, 2), "value": (6, 3)}),
    "of one tensor": (self_attention, {"before": (8, 4)}),
    "activations": (embedded, {"key": (4, 2), "value": (6, 3)}),
}


@pytest.mark.parametrize("what", SCORES)
def test_attention_without_weights(keras, rng, what):
    make, expected = SCORES[what]
    units, rows, _ = pruned(keras, rng, make)
    assert {name: units[name] for name in expected} == expected
    if "query" in rows:
        assert "key" in rows["query"]["tied"]


def test_units_that_are_not_zero_are_not_summed_over(keras, rng):
    def attend(layers, x):
        query, key = layers.Dense(4, "sigmoid", name="query")(x), layers.Dense(4, name="key")(x)
        return layers.Attention(name="attention")([query, x, key])

    units, rows, _ = pruned(keras, rng, attend)
    assert units["query"] == (4, 4) and "'attention'" in rows["query"]["protected"] and units["before"] == (8, 4)


DOT = {
    "channels": (-1, lambda layers, x: layers.Dense(8, name="other")(x), (8, 4), (8, 4)),
    "normalized": (2, lambda layers, x: layers.Dense(8, name="other")(x), (8, 4), (8, 4)),
    "positions": (1, lambda layers, x: layers.Dense(4, name="other")(x), (8, 8), (4, 4)),
}


@pytest.mark.parametrize("what", DOT)
def test_dot(keras, rng, what):
    axes, other, before, expected = DOT[what]
    options = {"normalize": what == "normalized"}
    units, _, _ = pruned(keras, rng, lambda layers, x: layers.Dot(axes, **options)([x, other(layers, x)]))
    assert units["before"] == before
    assert "other" not in units or units["other"] == expected


def test_dot_passes_the_channels_of_values(keras, rng):
    def attend(layers, x):
        scores = layers.Softmax()(layers.Dot(-1)([x, layers.Dense(8, name="key")(x)]))
        return layers.Dot((2, 1))([scores, layers.Dense(4, name="value")(x)])

    units, rows, slim = pruned(keras, rng, attend)
    assert units["value"] == (4, 2) and units["before"] == (8, 4) and rows["before"]["tied"] == ["key"]
