"""Blocks of random graphs with everything that is hard to copy: shared layers, nested models, Python objects, axes."""

import numpy as np
import tensorflow as tf

from helpers import custom_layers
from helpers.graph_builder import block


@block("vector", "sequence")
def dense(g, x):
    activation = g.pick(None, "relu", "tanh", "softmax")
    return g.shared(g.layers.Dense(g.pick(4, 6), activation, use_bias=g.flag()), x)


@block()
def normalized(g, x):
    return g.layers.ReLU()(g.layers.BatchNormalization()(x))


@block("sequence")
def recurrent(g, x):
    kind = g.pick(g.layers.LSTM, g.layers.GRU, g.layers.SimpleRNN)
    return g.shared(kind(4, return_sequences=True), x)


@block("sequence")
def encoder_and_decoder(g, x):
    """A recurrent layer that starts from the last states of another one, or from units of a dense layer."""
    lstm = g.flag()
    kind = g.layers.LSTM if lstm else g.pick(g.layers.GRU, g.layers.SimpleRNN)
    if g.flag():
        y, *states = kind(4, return_sequences=g.flag(), return_state=True)(x)
    else:
        states = [g.layers.Dense(4, "relu")(g.layers.GlobalAveragePooling1D()(x)) for _ in range(1 + lstm)]
    decoder = kind(4, return_sequences=True)
    if g.flag(0.3):
        decoder = g.layers.Bidirectional(decoder, merge_mode=g.pick("sum", "concat"))
        states = states * 2
    y = decoder(x, initial_state=states)
    return y if g.flag() else g.layers.Add()([y, decoder(x)])


@block("sequence")
def cells(g, x):
    kinds = [g.layers.LSTMCell, g.layers.GRUCell, g.layers.SimpleRNNCell]
    parts = [g.pick(*kinds)(g.pick(3, 4)) for _ in range(g.pick(1, 2))]
    return g.layers.RNN(parts if len(parts) > 1 else parts[0], return_sequences=True)(x)


@block("sequence")
def masked(g, x):
    return g.layers.Masking(0.0)(x)


@block("sequence")
def attended(g, x):
    """Attention of any kind, perhaps with a constant query, which needs a fixed batch size."""
    if g.batch is None:
        options = {"value_dim": g.pick(None, 2), "use_bias": g.flag(), "attention_axes": g.pick(None, 1)}
        attend = g.layers.MultiHeadAttention(g.pick(1, 3, 4), 3, **options)
        if g.is_keras3 and g.flag(0.3):
            attend = g.layers.GroupQueryAttention(2, 4, g.pick(1, 2, 4), use_bias=g.flag())
        memory = g.layers.Dense(x.shape[-1], "relu")(x) if g.flag() else x
        y = attend(x, memory, use_causal_mask=g.flag(0.3))
        if g.flag(0.3):
            y = attend(y, memory)
        return g.layers.Add()([x, y]) if g.flag() else y
    query = tf.constant(np.linspace(-1, 1, g.batch * 2 * x.shape[-1], dtype="float32").reshape(g.batch, 2, -1))
    pooled = g.layers.GlobalAveragePooling1D(keepdims=True)(g.layers.MultiHeadAttention(2, 3)(query, x))
    return x + g.layers.Dense(x.shape[-1])(pooled)


@block("sequence")
def contracted(g, x):
    """EinsumDense, and sums over the channels of two tensors."""
    other = g.layers.Dense(x.shape[-1], g.pick(None, "relu", "sigmoid", "tanh"))(x)
    y = g.pick(
        lambda: g.layers.EinsumDense("...c,cd->...d", 4, bias_axes=g.pick(None, "d"), activation=g.pick(None, "relu"))(
            x
        ),
        lambda: g.layers.EinsumDense("abde,def->abf", (None, 5))(
            g.layers.EinsumDense("abc,cde->abde", (None, 2, 3))(x)
        ),
        lambda: g.layers.EinsumDense("abc,c->abc", x.shape[1:], bias_axes="c")(x),
        lambda: g.layers.Attention(use_scale=g.flag())([x, other]),
        lambda: g.layers.AdditiveAttention(use_scale=g.flag())([x, other, g.layers.Dense(x.shape[-1])(x)]),
        lambda: g.layers.Dot((2, 1))([g.layers.Softmax()(g.layers.Dot(-1)([x, other])), g.layers.Dense(5)(x)]),
    )()
    return g.layers.Reshape((x.shape[1], y.shape[-1]))(y) if None in y.shape[1:] else y  # Keras 3 leaves sizes open


@block()
def again(g, x):
    """A layer of the pool, called directly or inside a wrapper: anywhere in the graph, or in another nested model."""
    fitting = [layer for layer, shape in g.pool if len(shape) == len(x.shape) and shape[-1] == x.shape[-1]]
    if not fitting:
        return g.shared(g.layers.Dense(x.shape[-1], g.pick("relu", None)), x)
    layer = g.pick(*fitting)
    if len(x.shape) > 2 and isinstance(layer, g.layers.Dense) and g.flag():
        return g.layers.TimeDistributed(layer)(x)
    if g.is_keras3 and isinstance(layer, (g.layers.Dense, g.layers.Conv2D)) and g.flag(0.3):
        return g.layers.SpectralNormalization(layer)(x)
    return layer(x)


@block("sequence")
def bidirectional(g, x):
    """The layers inside are called directly as well."""
    both = g.layers.Bidirectional(g.layers.SimpleRNN(3, return_sequences=True), merge_mode=g.pick("sum", "concat"))
    y = both(x)
    if g.flag():
        g.pool.append((both.forward_layer, tuple(x.shape)))
        return g.layers.Concatenate()([y, both.forward_layer(x)])
    return y


@block("map")
def shared_conv(g, x):
    return g.shared(g.layers.Conv2D(g.pick(4, 6), 3, padding="same", activation=g.pick("relu", None)), x)


@block()
def nested(g, x):
    """A model of its own, perhaps called again, with another size or with `training=False`."""
    fitting = [model for model, shape in g.models if len(shape) == len(x.shape) and shape[-1] == x.shape[-1]]
    if fitting and g.flag():
        return g.pick(*fitting)(x)
    if g.depth == 2:
        return x
    free = len(x.shape) == 4 and g.flag(0.3)
    inner = g.input((None, None, x.shape[-1]) if free else x.shape[1:])
    g.depth += 1
    first = g.layers.Dense(x.shape[-1], "relu")(inner)
    if free:
        names = [g.pick("conv", "normalized", "again", "shared_conv", "fused", "constant", "activated") for _ in "ab"]
    else:
        names = g.names(x, 2)
    outputs = g.run(first, names)
    g.depth -= 1
    model = g.keras.Model(inner, outputs)
    if free or outputs.shape[1:-1] == x.shape[1:-1]:
        g.models.append((model, tuple(inner.shape)))
    if g.flag(0.2):
        model.trainable = False
    y = model(x, training=False) if g.flag(0.3) else model(x)
    if free and x.shape[1] >= 2:
        pooled = model(g.layers.AveragePooling2D(2)(x))
        return y + g.layers.GlobalAveragePooling2D(keepdims=True)(pooled)
    return y


@block()
def nested_sequential(g, x):
    layers = [g.layers.Dense(6, "relu"), g.layers.BatchNormalization(), g.layers.Dense(x.shape[-1])]
    fitting = [layer for layer, shape in g.pool if len(shape) == len(x.shape) and shape[-1] == 6]
    if fitting and g.flag():
        layers[1] = g.pick(*fitting)
    model = g.keras.Sequential([g.input(x.shape[1:]), *layers])
    return model(x)


@block()
def nested_with_two_inputs(g, x):
    """Its inputs are a list or a dict, in any order, and so are the arguments of its call."""
    other = g.layers.Dense(4, "relu")(x)
    a, b = g.input(x.shape[1:], name="a"), g.input(other.shape[1:], name="b")
    y = g.layers.Concatenate()([g.layers.Dense(5, "relu")(a), g.layers.Dense(3)(b)])
    if g.flag():
        y = {"y": y, "x": g.layers.Dense(4)(b)} if g.flag() else [y, g.layers.Dense(4)(b)]
    inputs = g.pick([a, b], [b, a], {"a": a, "b": b}, {"b": b, "a": a})
    model = g.keras.Model(inputs, y)
    given = {"a": x, "b": other}
    if isinstance(inputs, list) and g.flag():
        given = [given[tensor.name.split(":")[0]] for tensor in inputs]
    outputs = model(given, training=False) if g.flag(0.3) else model(given)
    if isinstance(outputs, dict):
        outputs = [outputs["x"], outputs["y"]]
    return g.layers.Concatenate()(outputs) if isinstance(outputs, list) else outputs


@block()
def tied(g, x):
    """An autoencoder whose decoder reads the kernel of the encoder."""
    encoder = g.layers.Dense(5, "relu")
    y = encoder(x)
    if g.flag(0.3):
        return g.layers.Dense(4, "relu")(g.custom.Tied(encoder)(y))
    return g.custom.Tied(encoder)(y)


@block()
def closure(g, x):
    """A Lambda that reads the kernel of a layer."""
    encoder = g.layers.Dense(5, "relu")
    y = encoder(x)
    return g.layers.Lambda(lambda z: tf.einsum("...i,oi->...o", z, tf.convert_to_tensor(encoder.kernel)))(y)


@block()
def activated(g, x):
    function = g.pick(*custom_layers.functions(g.keras))
    form = g.pick("dense", "dense", "activation", "lambda")
    if form == "dense":
        return g.layers.Dense(6, function)(x)
    if form == "lambda" and callable(function) and not isinstance(function, g.layers.Layer):
        return g.layers.Lambda(function)(x)
    return g.layers.Activation(function)(x)


@block()
def with_globals(g, x):
    """A Lambda that uses global names and the variables of a function."""
    factor = g.pick(0.5, 2.0)
    return g.layers.Lambda(lambda z: tf.minimum(z * np.float32(factor), 3.0))(x)


@block()
def constant(g, x):
    """An operation with a constant of any form, for each channel, along other axes, or on the other side."""
    width = x.shape[-1]
    values = np.linspace(0.2, 1.2, width).astype("float32")
    if len(x.shape) > 2 and x.shape[1] and g.flag(0.3):
        values = np.linspace(0.2, 1.2, x.shape[1]).astype("float32").reshape(-1, *[1] * (len(x.shape) - 2))
    forms = [values, tf.constant(values), np.float32(0.5), tf.constant(2.0), values[None]]
    if not g.is_keras3:  # Keras 3 takes no lists
        forms += [values.tolist(), tuple(values.tolist())]
    value = g.pick(*forms)
    if not isinstance(value, (np.ndarray, np.generic)) and g.flag(
        0.3
    ):  # an array on the left asks for a number of each position
        return g.pick(lambda: value * x, lambda: value - x, lambda: value + x)()
    if np.ndim(value) > 1 and g.is_keras3:  # Keras 3.15 adds [n, 1] to [batch, n, n] along the wrong axis
        return g.pick(lambda: x * value, lambda: x - value, lambda: x / value)()
    return g.pick(lambda: x * value, lambda: x - value, lambda: x + value, lambda: x / value)()


@block()
def constant_beside(g, x):
    """A constant as another input of a layer."""
    if getattr(x, "sparse", False):  # Keras 3 asks the constant whether it is sparse, too
        return x
    if g.batch and None not in x.shape and g.flag():
        more = np.ones((*x.shape[:-1], 2), "float32")
        return g.layers.Concatenate()([x, tf.constant(more)] if g.is_keras3 or g.flag() else [tf.constant(more), x])
    row = np.linspace(-1, 1, x.shape[-1]).astype("float32").reshape([1] * (len(x.shape) - 1) + [-1])
    row = np.repeat(row, x.shape[0] or 1, axis=0)
    return g.pick(g.layers.Add, g.layers.Multiply, g.layers.Maximum)()([x, tf.constant(row)])


@block()
def unusual_config(g, x):
    width = x.shape[-1]
    return g.pick(
        lambda: g.custom.Mismatched(3.0),
        lambda: g.custom.Unconfigured(width, 0.5),
        lambda: g.custom.Renamed(4),
        lambda: g.custom.Holder(g.layers.Dense(4)),
    )()(x)


@block()
def holder(g, x):
    """A layer called directly and by another one, whose config holds it."""
    inner = g.layers.Dense(x.shape[-1], "relu")
    return g.custom.Holder(inner)(inner(x))


@block("map")
def standardised(g, x):
    return g.layers.Conv2D(4, 1)(g.custom.Standardised(6, 3, padding="same", activation="relu")(x))


@block()
def unusual_objects(g, x):
    """A dense layer with regularizers, initializers and constraints of a user."""
    fixed = np.linspace(-0.5, 0.5, x.shape[-1] * 6).astype("float32").reshape(-1, 6)
    options = {
        "kernel_regularizer": g.pick(None, g.custom.Penalty(), lambda w: 0.1 * tf.reduce_sum(tf.convert_to_tensor(w))),
        "kernel_initializer": g.pick("he_normal", lambda shape, dtype=None: tf.constant(fixed)),
        "kernel_constraint": g.pick(None, g.custom.Bounded(), lambda w: w * 1.0),
        "bias_initializer": g.pick("zeros", lambda shape, dtype=None: tf.ones(shape, dtype)),
    }
    return g.layers.Dense(6, "relu", **options)(x)


@block("sequence", "map")
def batch_norm_axis(g, x):
    axes = [1, -2] if g.is_keras3 else [1, -2, [1, len(x.shape) - 1]]
    return g.layers.ReLU()(g.layers.BatchNormalization(axis=g.pick(*axes))(x))


@block("sequence", "map")
def dense_on_axis(g, x):
    """A dense layer over an axis that is not the last one."""
    order = (2, 1) if len(x.shape) == 3 else g.pick((3, 1, 2), (3, 2, 1), (1, 3, 2))
    back = tuple(int(i) + 1 for i in np.argsort(order))
    y = g.layers.Permute(order)(x)
    return g.layers.Permute(back)(g.layers.Dense(y.shape[-1], g.pick("relu", None))(y))


@block("sequence", "map")
def softmax_axis(g, x):
    if g.depth or getattr(x, "_keras_mask", None) is not None:  # Keras would apply the mask of steps to another axis
        return x
    return g.layers.Softmax(axis=g.pick(1, -2))(g.layers.Dense(5)(x))


@block("map")
def channels_first(g, x):
    """Channels first for a while, spread over several axes and back."""
    height, width, channels = x.shape[1:]
    x = g.layers.Permute((3, 1, 2))(x)
    x = g.layers.Reshape((channels, height * width))(x)
    x = g.pick(
        lambda: g.layers.BatchNormalization(axis=1),
        lambda: g.layers.GroupNormalization(channels, axis=1),
        lambda: g.layers.ReLU(),
        lambda: g.layers.Dense(height * width),
    )()(x)
    return g.layers.Permute((2, 3, 1))(g.layers.Reshape((channels, height, width))(x))


@block("map")
def seeded_channels_first(g, x):
    """A dense layer that produces a feature map with the channels first."""
    height, width = x.shape[1:-1]
    y = g.layers.Dense(height * width * 4, "relu")(g.layers.GlobalAveragePooling2D()(x))
    y = g.layers.Permute((2, 3, 1))(g.layers.Reshape((4, height, width))(y))
    return g.layers.Concatenate()([x, y])


@block("map")
def reshaped_twice(g, x):
    """One Reshape for two tensors."""
    height, width, channels = x.shape[1:]
    shape = g.layers.Reshape((height * width, channels))
    a = shape(g.layers.Conv2D(channels, 1, activation="relu")(x))
    b = shape(g.layers.Conv2D(channels, 3, padding="same")(x))
    return g.layers.Reshape((height, width, 2 * channels))(g.layers.Concatenate()([a, b]))


@block("map")
def group_norm_twice(g, x):
    """One GroupNormalization for two tensors."""
    norm = g.layers.GroupNormalization(groups=g.pick(-1, 3))
    a, b = g.layers.Conv2D(6, 1)(x), g.layers.Conv2D(6, 3, padding="same")(x)
    return g.layers.Concatenate()([norm(a), g.layers.ReLU()(norm(b))])


@block()
def two_norms(g, x):
    """A layer that is called twice, each time followed by a normalization of its own."""
    layer = g.layers.Dense(x.shape[-1])
    y = g.layers.ReLU()(g.layers.BatchNormalization()(layer(x)))
    return g.layers.ReLU()(g.layers.BatchNormalization()(layer(y)))


@block()
def frozen(g, x):
    layer = g.layers.Dense(4, "relu")
    norm = g.layers.BatchNormalization()
    y = norm(layer(x))
    g.pick(layer, norm).trainable = False
    return y


@block()
def other_dtype(g, x):
    policy = g.keras.DTypePolicy if g.is_keras3 else g.keras.mixed_precision.Policy
    dtype = g.pick("float64", policy("float64"), policy("float32"))
    y = g.layers.Dense(5, "relu", dtype=dtype)(x)
    return g.layers.Activation(g.pick("linear", "relu"), dtype="float32")(y)


@block()
def identity(g, x):
    policy = g.keras.DTypePolicy if g.is_keras3 else g.keras.mixed_precision.Policy
    return g.layers.Identity(dtype=policy("float32"))(x) if hasattr(g.layers, "Identity") else x


@block("map")
def noise(g, x):
    return g.layers.Dropout(1e-7, noise_shape=(None, 1, 1, x.shape[-1]))(x)


@block()
def another_input(g, x):
    """An input of the outermost model, sparse or optional where the Keras version has that."""
    if g.depth:
        return x
    kind = g.pick("plain", "sparse", "optional" if g.is_keras3 else "plain")
    name = f"input_of_{len(g.inputs)}"
    other = g.input((5,), name=name, **({kind: True} if kind != "plain" else {}))
    g.inputs.append(other)
    y = g.layers.Dense(x.shape[-1], "relu")(other)
    if len(x.shape) > 2:
        y = g.layers.Reshape((*[1] * (len(x.shape) - 2), x.shape[-1]))(y)
    return g.layers.Add()([x, y])
