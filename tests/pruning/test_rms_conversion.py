"""`with_rms_norm`: LayerNormalization that reads a sum of linear layers becomes RMSNormalization, with no change."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import check_cut, group_of
from helpers.zoo import difference, inputs_for, scramble

import tfspline

layers = keras.layers
WIDTH = 8


def norm(**options):
    return layers.LayerNormalization(**({"epsilon": 0.01} | options))


def embedded(inputs):
    """Tokens with positions."""
    length = inputs.shape[1]
    positions = layers.Embedding(length, WIDTH, name="positions")(keras.ops.arange(length)[None] + 0 * inputs)
    return layers.Dropout(0.1)(layers.Embedding(20, WIDTH, name="tokens")(inputs) + positions)


def feed_forward(x, bias=True):
    return layers.Dense(WIDTH, use_bias=bias)(layers.Dense(12, "gelu", use_bias=bias)(x))


def classifier(*blocks, stem=embedded, last=lambda x: layers.Dense(3)(layers.GlobalAveragePooling1D()(norm()(x)))):
    """Tokens -> stem -> x + block(x) for each block -> last."""
    inputs = keras.Input((6,), dtype="int32")
    x = stem(inputs)
    for block in blocks:
        x = x + block(x)
    return keras.Model(inputs, last(x))


def attention(x):
    y = norm()(x)
    return layers.MultiHeadAttention(2, 3)(y, y)


def einsum(x):
    """Two layers without biases, and a part of the positions."""
    y = layers.EinsumDense("btd,dhk->bthk", (6, 2, 3))(norm()(x)[:, :, :])
    return layers.EinsumDense("bthk,hkd->btd", (6, WIDTH))(y)


def convolution(x):
    return layers.Dense(WIDTH)(layers.Conv1D(5, 1, activation="tanh", use_bias=False)(norm(scale=False)(x)))


class Scale(layers.Layer):
    """A LayerScale."""

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=shape[-1:], initializer="ones")
        self.built = True

    def call(self, x):
        return x * self.scale


class Shift(layers.Layer):
    """Adds one number to all channels."""

    def build(self, shape):
        self.shift = self.add_weight(name="shift", shape=(), initializer="ones")
        self.built = True

    def call(self, x):
        return x + self.shift


def layer_scale(x):
    return layers.Dropout(0.1)(Scale()(layers.Dropout(0.1)(feed_forward(norm()(x)))))


BLOCKS = {
    "layer scale": layer_scale,
    "attention": attention,
    "feed forward": lambda x: feed_forward(norm()(x)),
    "without biases": lambda x: feed_forward(norm()(x), bias=False),
    "without beta": lambda x: feed_forward(norm(center=False)(x), bias=False),
    "einsum": einsum,
    "shifted": lambda x: Shift()(feed_forward(norm()(x))),
    "convolution": convolution,
    "scaled": lambda x: 0.5 * layers.Dense(WIDTH)(layers.Dropout(0.5)(norm()(x))),
}


def check(model, rng):
    """Converts a model with random weights; checks that the function is the same and that the stream is pruned."""
    scramble(model, rng)
    x, before = inputs_for(model, rng), model.get_weights()
    small = tfspline.with_rms_norm(model)
    assert difference(model(x), small(x)) <= 2e-6
    assert not any(isinstance(layer, layers.LayerNormalization) for layer in small.layers)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    plan = tfspline.plan(small, 0.5, criterion="l1")
    assert group_of(plan, "tokens") == (WIDTH, WIDTH // 2, None)
    check_cut(small, plan, rng)


def test_every_block(rng):
    check(classifier(*BLOCKS.values()), rng)


@pytest.mark.parametrize("seed", range(4))
def test_random_blocks(seed):
    rng = np.random.default_rng(seed)
    check(classifier(*(BLOCKS[name] for name in rng.choice(list(BLOCKS), 2))), rng)


STEMS = {
    "an activation": lambda x: layers.Dense(WIDTH, "gelu", name="stem")(embedded(x)) + embedded_again(x),
    "an op": lambda x: keras.ops.silu(layers.Dense(WIDTH)(embedded(x))) + embedded_again(x),
    "another norm": lambda x: norm(center=False)(layers.Dense(WIDTH)(layers.ReLU()(embedded(x)))),
}


def embedded_again(x):
    return layers.Embedding(20, WIDTH)(x)


@pytest.mark.parametrize("stem", STEMS)
def test_stream_that_starts_with_something_that_is_not_linear(stem, rng):
    model = scramble(classifier(BLOCKS["feed forward"], attention, stem=STEMS[stem]), rng)
    small, x = tfspline.with_rms_norm(model), inputs_for(model, rng)
    assert difference(model(x), small(x)) <= 2e-6
    (centre,) = [layer for layer in small.layers if layer.name.endswith("_centred")]
    np.testing.assert_allclose(centre.kernel, np.eye(WIDTH) - 1 / WIDTH, atol=1e-7)
    plan = tfspline.plan(small, 0.5, criterion="l1")
    check_cut(small, plan, rng)
    rows = [row for row in plan.rows() if centre.name in (row["layer"], *row["tied"])]
    assert [(row["units_before"], row["units_after"]) for row in rows] == [(WIDTH, WIDTH // 2)]


def test_numbers_by_hand():
    """Two channels: the writer loses the mean of its columns, and the reader's bias gains kernel x beta."""
    inputs = keras.Input((1,))
    x = layers.Dense(2, name="writer")(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="reader")(norm(name="norm")(x)))
    model.get_layer("writer").set_weights([np.array([[3.0, 1.0]]), np.array([0.0, 4.0])])
    model.get_layer("norm").set_weights([np.array([2.0, 1.0]), np.array([1.0, -1.0])])
    model.get_layer("reader").set_weights([np.array([[5.0], [2.0]]), np.array([7.0])])
    small = tfspline.with_rms_norm(model)
    assert [w.numpy().tolist() for w in small.get_layer("writer").weights] == [[[1.0, -1.0]], [-2.0, 2.0]]
    assert small.get_layer("norm").scale.numpy().tolist() == [2.0, 1.0] and small.get_layer("norm").epsilon == 0.01
    assert small.get_layer("reader").bias.numpy().tolist() == [7.0 + 5 - 2]


def post_norm(x):
    return norm(name="culprit")(x + feed_forward(x))


def last_of(read):
    return {"last": lambda x: layers.Dense(3)(layers.Flatten()(read(x)))}


def twice(x):
    dense = layers.Dense(4, name="culprit")
    return dense(norm()(x)) + dense(norm()(x))


def scaled_twice(x):
    scale = Scale(name="culprit")
    return scale(feed_forward(norm()(x))) + scale(feed_forward(norm()(x)))


REFUSED = {
    "no LayerNormalization": (lambda: classifier(last=lambda x: x), "The model has none"),
    "normalized after the branch": (
        lambda: classifier(last=post_norm, stem=lambda x: norm(name="first")(embedded(x))),
        "the beta of 'first' is read by 'culprit' (LayerNormalization), which is not linear",
    ),
    "a stream that another layer reads": (
        lambda: classifier(**last_of(lambda x: layers.Dense(4, name="culprit")(x) + norm(center=False)(x)[..., :4])),
        "'culprit' (Dense) reads the stream without LayerNormalization",
    ),
    "an activation": (
        lambda: classifier(**last_of(lambda x: norm()(layers.Dense(4, "relu", name="culprit")(x)))),
        "reads 'culprit' (Dense), which is not a sum",
    ),
    "two activations": (
        lambda: classifier(lambda x: layers.ReLU(name="culprit")(feed_forward(norm()(x))), stem=STEMS["an activation"]),
        "'culprit' and 'stem' write to the stream, and are not linear",
    ),
    "a scale of what others read": (
        lambda: classifier(lambda x: (lambda y: Scale(name="culprit")(y) + y)(feed_forward(norm()(x)))),
        "'culprit.scale' scales what others read, too",
    ),
    "a scale of two": (lambda: classifier(scaled_twice), "'culprit.scale'"),
    "a scale": (
        lambda: classifier(**last_of(lambda x: norm()(layers.BatchNormalization(name="culprit")(x)))),
        "'culprit' (BatchNormalization)",
    ),
    "a beta that is an output": (lambda: classifier(last=norm(name="culprit")), "'culprit' is added to an output"),
    "a beta that an activation reads": (
        lambda: classifier(**last_of(lambda x: layers.ReLU(name="culprit")(norm()(x)))),
        "read by 'culprit' (ReLU), which is not linear",
    ),
    "a beta that meets padding": (
        lambda: classifier(**last_of(lambda x: layers.Conv1D(4, 3, padding="same", name="culprit")(norm()(x)))),
        "different numbers to the outputs of 'culprit'",
    ),
    "attention without biases": (
        lambda: classifier(**last_of(lambda x: layers.MultiHeadAttention(2, 3, use_bias=False)(norm()(x), norm()(x)))),
        "has no bias into which",
    ),
    "a layer that is called twice": (lambda: classifier(**last_of(twice)), "'culprit', which is called several times"),
    "a table that scores tokens": (
        lambda: (lambda table: classifier(stem=table, last=lambda x: table(norm(center=False)(x), reverse=True)))(
            layers.ReversibleEmbedding(20, WIDTH, name="culprit")
        ),
        "'culprit'",
    ),
    "a mask": (
        lambda: classifier(stem=layers.Embedding(20, WIDTH, mask_zero=True)),
        "passes on a mask",
    ),
    "an axis": (lambda: classifier(**last_of(norm(axis=1))), "over the axes"),
    "a regularizer": (lambda: classifier(**last_of(norm(gamma_regularizer="l2"))), "regularizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, rng):
    make, why = REFUSED[case]
    with pytest.raises(ValueError, match="No LayerNormalization can become") as error:
        tfspline.with_rms_norm(scramble(make(), rng))
    assert why in str(error.value)


def test_other_norms_stay(rng, caplog):
    inputs = keras.Input((6, 3))
    x = norm(name="stays")(layers.Dense(WIDTH, "relu")(inputs))
    x = norm(name="goes")(layers.Dense(WIDTH)(x))
    model = scramble(keras.Model(inputs, layers.Dense(2)(x)), rng)
    with caplog.at_level("WARNING", "absl"):
        small = tfspline.with_rms_norm(model)
    assert "'stays': it reads 'dense" in caplog.text and "'goes'" not in caplog.text
    assert type(small.get_layer("goes")) is layers.RMSNormalization
    x = inputs_for(model, rng)
    assert difference(model(x), small(x)) <= 2e-6


def test_open_sizes_that_not_all_models_take(keras, rng):
    """Seven positions at most: sizes for the open axis are found, or the message says what to do."""
    k, inputs = keras.layers, keras.Input((None,), dtype="int32")
    steps = k.Lambda(lambda x: tf.ones_like(x))(inputs)

    def first(limit):
        def call(x):
            tf.debugging.assert_less_equal(tf.shape(x)[1], limit)
            return x

        return k.Lambda(call)

    def build(limit):
        x = k.Embedding(20, WIDTH, name="tokens")(inputs) + k.Embedding(2, WIDTH)(steps)
        x = k.Dense(6, "relu", name="a")(first(limit)(x))
        return scramble(keras.Model(inputs, k.Dense(2)(k.GlobalAveragePooling1D()(x))), rng)

    for limit in (7, 1):
        model = build(limit)
        kernel, bias = model.get_layer("a").get_weights()
        model.get_layer("a").set_weights([kernel * [0, 1, 1, 1, 1, 1], bias])
        if limit == 7:
            assert tfspline.slim_report(model).model.get_layer("a").units == 5
        else:
            with pytest.raises(ValueError, match="leaves sizes of its inputs open.*tfspline.functional"):
                tfspline.slim(model)


def test_plan_says_that_it_helps():
    plan = tfspline.plan(classifier(BLOCKS["feed forward"]), 0.5)
    assert "tfspline.with_rms_norm(model) makes that exact" in group_of(plan, "tokens")[2]


def test_tf_keras_is_refused():
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(4), tf_keras.layers.LayerNormalization()])
    with pytest.raises(ValueError, match="Expected a model of Keras 3"):
        tfspline.with_rms_norm(model)
