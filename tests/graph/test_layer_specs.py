"""Layer by layer: which units can be pruned through it, that masked equals slimmed, and its MACs."""

import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference, inputs_for, scramble

import tfspline

SHAPES = {1: (8,), 2: (6, 8), 3: (4, 4, 8), 4: (4, 4, 4, 8)}  # input shape of the tested layer, by rank


def after_dense(keras, shape, layer, **options):
    """input -> Dense "before" of `shape` -> `layer` -> Dense: the units of "before" go through `layer`."""
    inputs = keras.Input((*shape[:-1], 3))
    x = layer(keras.layers.Dense(shape[-1], name="before", **options)(inputs))
    x = keras.layers.Dense(5, "tanh", name="after")(x)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))


def check(model, rng, tolerance=1e-5, **options):
    """Prunes half of the units and checks that masked equals slimmed and costs what the plan says."""
    scramble(model, rng)
    plan = tfspline.plan(model, 0.5, criterion="l1", **options)
    slim, masked = plan.apply(model), plan.mask(model)
    x = inputs_for(model, rng)
    assert difference(masked(x), slim(x)) <= tolerance
    assert difference(model(x), slim(x)) > 1e-3
    assert slim.count_params() == plan.cost()["params"][1] < plan.cost()["params"][0]
    assert tfspline.flops(slim).macs == plan.cost()["macs"][1]
    return plan, slim


def units(plan):
    """{layer: (units before, units after)} of a plan."""
    return {row["layer"]: (row["units_before"], row["units_after"]) for row in plan.rows()}


# A layer and the rank of its input. 4 of its 8 input channels can be pruned through it.
THROUGH = {
    "Conv1D": (2, lambda k: k.Conv1D(6, 3, padding="causal", dilation_rate=2)),
    "Conv3D": (4, lambda k: k.Conv3D(6, 2)),
    "Conv3D of groups": (4, lambda k: k.Conv3D(8, 2, groups=2)),
    "Conv1DTranspose": (2, lambda k: k.Conv1DTranspose(6, 3, strides=2)),
    "Conv2DTranspose": (3, lambda k: k.Conv2DTranspose(6, 3, strides=2, padding="same")),
    "Conv3DTranspose": (4, lambda k: k.Conv3DTranspose(6, 2)),
    "DepthwiseConv1D": (2, lambda k: k.DepthwiseConv1D(3, depth_multiplier=2)),
    "DepthwiseConv2D": (3, lambda k: k.DepthwiseConv2D(3, depth_multiplier=2)),
    "SeparableConv1D": (2, lambda k: k.SeparableConv1D(6, 3, depth_multiplier=2)),
    "SeparableConv2D": (3, lambda k: k.SeparableConv2D(6, 3, depth_multiplier=2)),
    "UpSampling1D": (2, lambda k: k.UpSampling1D(2)),
    "UpSampling2D": (3, lambda k: k.UpSampling2D(2, interpolation="bilinear")),
    "UpSampling3D": (4, lambda k: k.UpSampling3D(2)),
    "Resizing": (3, lambda k: k.Resizing(6, 5)),
    "AdaptiveAveragePooling2D": (3, lambda k: getattr(k, "AdaptiveAveragePooling2D", k.AveragePooling2D)(2)),
    "AdaptiveMaxPooling2D": (3, lambda k: getattr(k, "AdaptiveMaxPooling2D", k.MaxPooling2D)(2)),
    "Cropping1D": (2, lambda k: k.Cropping1D(1)),
    "Cropping3D": (4, lambda k: k.Cropping3D(1)),
    "ZeroPadding1D": (2, lambda k: k.ZeroPadding1D(1)),
    "ZeroPadding3D": (4, lambda k: k.ZeroPadding3D(1)),
    "MaxPooling1D": (2, lambda k: k.MaxPooling1D(2)),
    "AveragePooling3D": (4, lambda k: k.AveragePooling3D(2)),
    "GlobalAveragePooling1D": (2, lambda k: k.GlobalAveragePooling1D()),
    "GlobalMaxPooling3D": (4, lambda k: k.GlobalMaxPooling3D(keepdims=True)),
    "Permute": (3, lambda k: k.Permute((2, 1, 3))),
    "Permute, there and back": (2, lambda k: lambda x: k.Permute((2, 1))(k.Permute((2, 1))(x))),
    "PReLU": (3, lambda k: k.PReLU(alpha_initializer="normal")),
    "PReLU, shared": (3, lambda k: k.PReLU(shared_axes=[1, 2], alpha_initializer="normal")),
    "LeakyReLU": (1, lambda k: k.LeakyReLU()),
    "SpatialDropout1D": (2, lambda k: k.SpatialDropout1D(0.5)),
    "BatchNormalization": (3, lambda k: k.BatchNormalization()),
    "GroupNormalization of one channel each": (3, lambda k: k.GroupNormalization(groups=-1)),
    "LayerNormalization over space": (2, lambda k: k.LayerNormalization(axis=1)),
    "MultiHeadAttention": (2, lambda k: lambda x: k.MultiHeadAttention(2, 3, value_dim=4)(x, x)),
    "MultiHeadAttention without bias": (2, lambda k: lambda x: k.MultiHeadAttention(2, 3, use_bias=False)(x, x)),
    "MultiHeadAttention over an image": (3, lambda k: lambda x: k.MultiHeadAttention(2, 3)(x, x)),
    "MultiHeadAttention of another width": (2, lambda k: lambda x: k.MultiHeadAttention(2, 3, output_shape=10)(x, x)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", THROUGH)
def test_units_go_through(keras, rng, what):
    rank, make = THROUGH[what]
    plan, slim = check(after_dense(keras, SHAPES[rank], make(keras.layers)), rng)
    before = {"Conv3D of groups": (4, 2)}.get(what, (8, 4))  # the same position of both groups is removed together
    assert units(plan)["before"] == before
    assert slim.get_layer("before").units == 4


def ops(keras):
    """Bare ops: those of Keras 3 work on its own tensors only, and so do TensorFlow's on those of tf_keras."""
    if keras.__name__ == "keras":
        return keras.ops
    return types.SimpleNamespace(
        concatenate=tf.concat, mean=tf.reduce_mean, sum=tf.reduce_sum, max=tf.reduce_max, transpose=tf.transpose,
        leaky_relu=tf.nn.leaky_relu,
    )  # fmt: skip


OPS = {
    "x / 2": lambda keras, x: x / 2,
    "-x": lambda keras, x: -x,
    "1 - x": lambda keras, x: 1 - x,
    "x - y": lambda keras, x: x - keras.layers.Conv2D(8, 1)(x),
    "concatenate": lambda keras, x: ops(keras).concatenate([x, keras.layers.ReLU()(x)], -1),
    "concatenate space": lambda keras, x: ops(keras).concatenate([x, x], axis=1),
    "concatenate batches": lambda keras, x: ops(keras).concatenate([x, keras.layers.Conv2D(8, 1)(x)], axis=0),
    "mean": lambda keras, x: ops(keras).mean(x, axis=[1, 2]) + keras.layers.GlobalMaxPooling2D()(x),
    "mean, kept": lambda keras, x: ops(keras).mean(x, axis=(-3, -2), keepdims=True),
    "transpose": lambda keras, x: ops(keras).transpose(x, (0, 2, 1, -1)),
    "max": lambda keras, x: ops(keras).max(x, axis=1),
    "leaky_relu": lambda keras, x: ops(keras).leaky_relu(x),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", OPS)
def test_units_go_through_bare_ops(keras, rng, what):
    plan, _ = check(after_dense(keras, SHAPES[3], lambda x: OPS[what](keras, x)), rng)
    assert units(plan)["before"] == (8, 4)


# A layer and the rank of its input. All its input channels are protected, and the plan names the layer.
def reverse(x, training=None):
    """The channels in reverse order; a function that tests `training` is not unrolled."""
    return x[..., ::-1] if training else x[..., ::-1]


PROTECTED = {
    "Masking": (2, lambda k: k.Masking(name="culprit")),
    "LayerNormalization": (2, lambda k: k.LayerNormalization(name="culprit")),
    "LayerNormalization over all": (2, lambda k: k.LayerNormalization(axis=[1, 2], name="culprit")),
    "GroupNormalization": (2, lambda k: k.GroupNormalization(groups=4, name="culprit")),
    "UnitNormalization": (2, lambda k: k.UnitNormalization(name="culprit")),
    "Lambda": (2, lambda k: k.Lambda(reverse, name="culprit", output_shape=(6, 8))),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", PROTECTED)
def test_units_are_protected_by_name(keras, rng, what):
    rank, make = PROTECTED[what]
    plan, _ = check(after_dense(keras, SHAPES[rank], make(keras.layers)), rng)
    (why,) = (row["protected"] for row in plan.rows() if row["layer"] == "before")
    before, after = units(plan)["before"]
    assert "culprit" in why and before == after


PROTECTED_OPS = {
    "2 / x": lambda keras, x: 2 / x,
    "x / y": lambda keras, x: x / keras.layers.Dense(8)(x),
    "the sum of a batch": lambda keras, x: x + ops(keras).sum(x, axis=0, keepdims=True),
    "the sum of the channels": lambda keras, x: x + ops(keras).sum(x, axis=-1, keepdims=True),
    "the sum of all": lambda keras, x: x + ops(keras).sum(x),
    "transpose the batch": lambda keras, x: ops(keras).transpose(ops(keras).transpose(x, (1, 0, 2)), (1, 0, 2)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", PROTECTED_OPS)
def test_units_are_protected_by_bare_ops(keras, rng, what):
    plan, _ = check(after_dense(keras, SHAPES[2], lambda x: PROTECTED_OPS[what](keras, x)), rng)
    (why,) = (row["protected"] for row in plan.rows() if row["layer"] == "before")
    reasons = ("is not a layer that tfspline knows", "divides by units", "reduces", "moves the batch")
    assert any(reason in why for reason in reasons) and units(plan)["before"] == (8, 8)


# Layers that normalize over 8 channels, and how many units these are. The groups must stay equally wide.
NORMALISED = {
    "LayerNormalization": (8, lambda k: k.LayerNormalization()),
    "LayerNormalization over all": (8, lambda k: k.LayerNormalization(axis=[1, 2])),
    "one group": (8, lambda k: k.GroupNormalization(groups=1)),
    "two groups": (4, lambda k: k.GroupNormalization(groups=2)),
    "four groups": (2, lambda k: k.GroupNormalization(groups=4)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", NORMALISED)
def test_allow_inexact_prunes_normalized_channels(keras, rng, what):
    width, make = NORMALISED[what]
    model = scramble(after_dense(keras, SHAPES[2], make(keras.layers)), rng)
    plan = tfspline.plan(model, 0.5, allow_inexact=True)
    slim = plan.apply(model)
    assert units(plan)["before"] == (width, width // 2) and slim.get_layer("before").units == 4
    assert slim.count_params() == plan.cost()["params"][1]
    assert np.isfinite(slim(inputs_for(model, rng))).all()


def test_embedding(keras, rng):
    layers = keras.layers
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True, name="embedding")(inputs)
    x = layers.Add()([x, layers.Dense(8, name="tied")(x)])
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(6, "tanh")(layers.GRU(4)(x))))
    _, slim = check(model, rng)
    assert slim.get_layer("embedding").output_dim == slim.get_layer("tied").units == 4


def test_channel_shuffle_by_ops(keras, rng):
    layers = keras.layers
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    x = layers.Conv2D(8, 1, groups=2, name="grouped")(x)
    if keras.__name__ == "keras":
        y = keras.ops.transpose(keras.ops.reshape(x, (-1, 4, 4, 2, 4)), (0, 1, 2, 4, 3))
        y = keras.ops.reshape(y, (-1, 4, 4, 8))
    else:
        y = tf.reshape(tf.transpose(tf.reshape(x, (-1, 4, 4, 2, 4)), (0, 1, 2, 4, 3)), (-1, 4, 4, 8))
    y = layers.Conv2D(8, 1, groups=2, name="shuffled")(y)
    plan, _ = check(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(y))), rng)
    assert units(plan)["conv"] == (4, 2) and units(plan)["shuffled"] == (4, 2)
    grouped = next(row for row in plan.rows() if row["layer"] == "grouped")
    assert (grouped["units_before"], grouped["units_after"]) == (2, 1)  # tied across two groups twice


def test_macs_by_hand(keras):
    layers = keras.layers
    inputs = keras.Input((5, 8))
    query, memory = inputs, layers.Dense(6, name="dense")(inputs)[:, :3]
    x = layers.MultiHeadAttention(2, 3, value_dim=4, name="attention")(query, memory)
    x = layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="einsum")(x)
    x = layers.Reshape((5, 6))(x)
    x = layers.LSTM(4, return_sequences=True, name="lstm")(x)
    x = layers.GRU(3, return_sequences=True, name="gru")(x)
    x = layers.Bidirectional(layers.SimpleRNN(2), name="both")(x)
    x = layers.Conv1DTranspose(6, 3, strides=2, name="transposed")(layers.Reshape((2, 2))(x))
    macs = {name: macs for name, (macs, _) in tfspline.flops(keras.Model(inputs, x)).layers.items()}
    projections = 5 * 8 * 2 * 3 + 3 * 6 * 2 * 3 + 3 * 6 * 2 * 4 + 5 * 2 * 4 * 8  # query, key, value, output
    assert macs["attention"] == projections + 5 * 3 * 2 * 3 + 5 * 3 * 2 * 4  # scores, and sums of values
    assert macs["einsum"] == 5 * 8 * 6
    assert macs["lstm"] == 5 * (6 * 16 + 4 * 16)
    assert macs["gru"] == 5 * (4 * 9 + 3 * 9)
    assert macs["both"] == 2 * 5 * (3 * 2 + 2 * 2)
    assert macs["transposed"] == 2 * 3 * 2 * 6


def test_empty_weights_are_refused(keras):
    layers = keras.layers
    inputs = keras.Input((0,))
    inner = keras.Sequential([inputs, layers.Dense(4, name="empty")], name="inner")
    model = keras.Model(inputs, layers.Dense(3)(inner(inputs)))
    with pytest.raises(ValueError, match=r"'inner/empty'.*\(0, 4\)"):
        tfspline.plan(model, 0.5)
