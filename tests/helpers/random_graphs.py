"""Random model graphs."""

import numpy as np
from hypothesis import HealthCheck
from hypothesis import strategies as st

BLOCKS = {}


def block(function):
    """Registers a function that continues a graph from a feature map of at most 8 x 8."""
    BLOCKS[function.__name__] = function
    return function


@block
def conv(layers, x, draw):
    return layers.Conv2D(draw(st.sampled_from([4, 6, 8])), draw(st.sampled_from([1, 3])), padding="same")(x)


@block
def fused(layers, x, draw):
    activation = draw(st.sampled_from(["relu", "tanh", "sigmoid", "elu", "swish"]))
    return layers.Conv2D(6, 3, padding="same", activation=activation)(x)


@block
def norm_relu(layers, x, draw):
    options = {"scale": draw(st.booleans()), "center": draw(st.booleans())}
    return layers.ReLU(max_value=draw(st.sampled_from([None, 6.0])))(layers.BatchNormalization(**options)(x))


@block
def prelu(layers, x, draw):
    return layers.PReLU(shared_axes=draw(st.sampled_from([None, [1, 2]])))(x)


@block
def grouped(layers, x, draw):
    groups = 2 if x.shape[-1] % 2 == 0 else 1
    return layers.Conv2D(8, 3, padding="same", groups=groups)(x)


@block
def shuffled(layers, x, draw):
    *space, channels = x.shape[1:]
    if channels % 2:
        return x
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((*space, 2, channels // 2))(x))
    return layers.Reshape((*space, channels))(x)


@block
def depthwise(layers, x, draw):
    return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=draw(st.sampled_from([1, 2])))(x)


@block
def separable(layers, x, draw):
    return layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=draw(st.sampled_from([1, 2])))(x)


@block
def residual(layers, x, draw):
    channels = x.shape[-1]
    y = layers.Conv2D(channels, 3, padding="same")(layers.ReLU()(x))
    merge = draw(st.sampled_from([layers.Add, layers.Subtract, layers.Maximum, layers.Average]))
    return merge()([x, y]) if draw(st.booleans()) else x + y


@block
def dense_block(layers, x, draw):
    return layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same", activation="relu")(x)])


@block
def squeeze_excite(layers, x, draw):
    channels = x.shape[-1]
    gate = layers.Reshape((1, 1, channels))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(4, 1, activation="relu")(gate)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation="hard_sigmoid")(gate)])


@block
def attention_map(layers, x, draw):
    return layers.Multiply()([x, layers.Conv2D(1, 1, activation="sigmoid")(x)])


@block
def twice(layers, x, draw):
    shared = layers.Conv2D(x.shape[-1], 3, padding="same")
    return shared(layers.ReLU()(shared(x)))


@block
def layer_norm(layers, x, draw):
    return layers.LayerNormalization()(x)


@block
def pool(layers, x, draw):
    if x.shape[1] < 4:
        return x
    kind = draw(st.sampled_from([layers.MaxPooling2D, layers.AveragePooling2D]))
    return layers.ZeroPadding2D(1)(kind(2)(x))


@block
def upsample(layers, x, draw):
    return x if x.shape[1] > 8 else layers.Cropping2D(1)(layers.UpSampling2D(2)(x))


@block
def instance_norm(layers, x, draw):
    return layers.GroupNormalization(groups=-1)(x)


@block
def group_norm(layers, x, draw):
    return layers.GroupNormalization(groups=1 if x.shape[-1] % 2 else 2)(x)


@block
def each_group_a_channel(layers, x, draw):
    channels = x.shape[-1]
    return layers.Conv2D(channels * draw(st.sampled_from([1, 2])), 3, padding="same", groups=channels)(x)


@block
def transposed(layers, x, draw):
    strides = 2 if x.shape[1] < 4 else 1
    return layers.Conv2DTranspose(6, 3, strides=strides, padding="same", use_bias=draw(st.booleans()))(x)


@block
def in_a_row(layers, x, draw):
    """A sequence layer, applied to all positions of the feature map along one axis."""
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height * width, channels))(x)
    kind = draw(st.sampled_from(["conv", "separable", "depthwise", "transposed", "attention", "gru", "both"]))
    x = {
        "conv": lambda: layers.Conv1D(6, 3, padding="same", activation="relu")(x),
        "separable": lambda: layers.SeparableConv1D(6, 3, padding="same")(x),
        "depthwise": lambda: layers.DepthwiseConv1D(3, padding="same")(x),
        "transposed": lambda: layers.Conv1DTranspose(6, 3, padding="same")(x),
        "attention": lambda: layers.Add()([x, layers.MultiHeadAttention(2, 3)(x, x)]),
        "gru": lambda: layers.GRU(4, return_sequences=True)(x),
        "both": lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x),
    }[kind]()
    return layers.Reshape((height, width, x.shape[-1]))(x)


@block
def scalars(layers, x, draw):
    return draw(st.sampled_from([lambda x: x / 2, lambda x: -x, lambda x: 1 - x, lambda x: x * 3]))(x)


@block
def swapped(layers, x, draw):
    return layers.Permute((2, 1, 3))(x)


@block
def softmax(layers, x, draw):
    return layers.Softmax()(x)


@block
def seeded(layers, x, draw):
    """A dense layer that produces a whole feature map."""
    *space, channels = x.shape[1:]
    seed = layers.Dense(int(np.prod(space)) * 2, "relu")(layers.GlobalAveragePooling2D()(x))
    return layers.Concatenate()([x, layers.Reshape((*space, 2))(seed)])


def build(keras, draw):
    """A random model: a chain of blocks with one or two outputs. Some are nested models, perhaps called twice."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    names = draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=6))
    nested = draw(st.integers(0, 2 * len(names)))
    for i, name in enumerate(names):
        if i == nested:
            inner = keras.Input(x.shape[1:])
            block = keras.Model(inner, BLOCKS[name](layers, layers.Activation("linear")(inner), draw), name="nested")
            x = block(x)
            if x.shape[1:] == inner.shape[1:] and draw(st.booleans()):
                x = block(x)
        else:
            x = BLOCKS[name](layers, x, draw)
    features = layers.Flatten()(x) if draw(st.booleans()) else layers.GlobalAveragePooling2D()(x)
    outputs = [layers.Dense(3)(layers.Dense(6, "relu")(features))]
    if draw(st.booleans()):
        outputs.append(layers.Conv2D(2, 1)(x))
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0])


RELAXED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
