"""Blocks of random graphs that continue from a feature map."""

import numpy as np

from helpers.graph_builder import block


@block("map")
def conv(g, x):
    return g.layers.Conv2D(g.pick(4, 6, 8), g.pick(1, 3), padding="same")(x)


@block("map")
def fused(g, x):
    activation = g.pick("relu", "tanh", "sigmoid", "elu", "swish")
    return g.layers.Conv2D(6, 3, padding="same", activation=activation)(x)


@block("map")
def norm_relu(g, x):
    options = {"scale": g.flag(), "center": g.flag()}
    return g.layers.ReLU(max_value=g.pick(None, 6.0))(g.layers.BatchNormalization(**options)(x))


@block("map")
def prelu(g, x):
    return g.layers.PReLU(shared_axes=g.pick(None, [1, 2]))(x)


@block("map")
def grouped(g, x):
    groups = 2 if x.shape[-1] % 2 == 0 else 1
    return g.layers.Conv2D(8, 3, padding="same", groups=groups)(x)


@block("map")
def shuffled(g, x):
    *space, channels = x.shape[1:]
    if channels % 2:
        return x
    x = g.layers.Permute((1, 2, 4, 3))(g.layers.Reshape((*space, 2, channels // 2))(x))
    return g.layers.Reshape((*space, channels))(x)


@block("map")
def depthwise(g, x):
    return g.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=g.pick(1, 2))(x)


@block("map")
def separable(g, x):
    return g.layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=g.pick(1, 2))(x)


@block("map")
def residual(g, x):
    channels = x.shape[-1]
    y = g.layers.Conv2D(channels, 3, padding="same")(g.layers.ReLU()(x))
    merge = g.pick(g.layers.Add, g.layers.Subtract, g.layers.Maximum, g.layers.Average)
    return merge()([x, y]) if g.flag() else x + y


@block("map")
def dense_block(g, x):
    return g.layers.Concatenate()([x, g.layers.Conv2D(4, 3, padding="same", activation="relu")(x)])


@block("map")
def squeeze_excite(g, x):
    channels = x.shape[-1]
    gate = g.layers.Reshape((1, 1, channels))(g.layers.GlobalAveragePooling2D()(x))
    gate = g.layers.Conv2D(4, 1, activation="relu")(gate)
    return g.layers.Multiply()([x, g.layers.Conv2D(channels, 1, activation="hard_sigmoid")(gate)])


@block("map")
def attention_map(g, x):
    return g.layers.Multiply()([x, g.layers.Conv2D(1, 1, activation="sigmoid")(x)])


@block("map")
def twice(g, x):
    shared = g.layers.Conv2D(x.shape[-1], 3, padding="same")
    return shared(g.layers.ReLU()(shared(x)))


@block("map")
def layer_norm(g, x):
    kind = g.pick("LayerNormalization", "RMSNormalization") if g.is_keras3 else "LayerNormalization"
    return getattr(g.layers, kind)()(x)


@block("map")
def pool(g, x):
    if x.shape[1] < 4:
        return x
    kind = g.pick(g.layers.MaxPooling2D, g.layers.AveragePooling2D)
    return g.layers.ZeroPadding2D(1)(kind(2)(x))


@block("map")
def upsample(g, x):
    return x if x.shape[1] > 8 else g.layers.Cropping2D(1)(g.layers.UpSampling2D(2)(x))


@block("map")
def instance_norm(g, x):
    return g.layers.GroupNormalization(groups=-1)(x)


@block("map")
def group_norm(g, x):
    return g.layers.GroupNormalization(groups=1 if x.shape[-1] % 2 else 2)(x)


@block("map")
def each_group_a_channel(g, x):
    channels = x.shape[-1]
    return g.layers.Conv2D(channels * g.pick(1, 2), 3, padding="same", groups=channels)(x)


@block("map")
def transposed(g, x):
    strides = 2 if x.shape[1] < 4 else 1
    return g.layers.Conv2DTranspose(6, 3, strides=strides, padding="same", use_bias=g.flag())(x)


@block("map")
def in_a_row(g, x):
    """A sequence layer, applied to all positions of the feature map along one axis."""
    height, width, channels = x.shape[1:]
    x = g.layers.Reshape((height * width, channels))(x)
    kind = g.pick("conv", "separable", "depthwise", "transposed", "attention", "gru", "both")
    x = {
        "conv": lambda: g.layers.Conv1D(6, 3, padding="same", activation="relu")(x),
        "separable": lambda: g.layers.SeparableConv1D(6, 3, padding="same")(x),
        "depthwise": lambda: g.layers.DepthwiseConv1D(3, padding="same")(x),
        "transposed": lambda: g.layers.Conv1DTranspose(6, 3, padding="same")(x),
        "attention": lambda: g.layers.Add()([x, g.layers.MultiHeadAttention(2, 3)(x, x)]),
        "gru": lambda: g.layers.GRU(4, return_sequences=True)(x),
        "both": lambda: g.layers.Bidirectional(g.layers.LSTM(3, return_sequences=True))(x),
    }[kind]()
    return g.layers.Reshape((height, width, x.shape[-1]))(x)


@block("map")
def scalars(g, x):
    return g.pick(lambda x: x / 2, lambda x: -x, lambda x: 1 - x, lambda x: x * 3)(x)


@block("map")
def swapped(g, x):
    return g.layers.Permute((2, 1, 3))(x)


@block("map")
def softmax(g, x):
    return g.layers.Softmax()(x)


@block("map")
def seeded(g, x):
    """A dense layer that produces a whole feature map."""
    *space, channels = x.shape[1:]
    seed = g.layers.Dense(int(np.prod(space)) * 2, "relu")(g.layers.GlobalAveragePooling2D()(x))
    return g.layers.Concatenate()([x, g.layers.Reshape((*space, 2))(seed)])
