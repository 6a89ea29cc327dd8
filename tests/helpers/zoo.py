"""Small networks with every structure that slimming must handle, and random weights like those of a training."""

import numpy as np
import tensorflow as tf


def scramble(model, rng):
    """Set every weight, including the statistics of BatchNormalization, to random values."""
    for weight in model.weights:
        value = weight.numpy()
        name = getattr(weight, "path", weight.name)
        if "variance" in name or "gamma" in name:
            value = rng.uniform(0.5, 1.5, value.shape)
        elif value.ndim == 1 or "bias" in name:
            value = rng.normal(0, 0.3, value.shape)
        weight.assign(value.astype(weight.numpy().dtype))
    return model


def scramble_statistics(keras, model, x, rng):
    """Set every weight to random values, with the statistics of BatchNormalization near those of `x`.

    With arbitrary statistics, the output of a deep network is constant, whether the network is pruned or not.
    """
    scramble(model, rng)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        norm.moving_mean.assign(mean + rng.normal(0, 0.3, mean.shape) * np.sqrt(variance))
        norm.moving_variance.assign(variance * rng.uniform(0.5, 1.5, variance.shape) + 0.01 * variance.mean())
        norm.momentum = momentum
    return model


def difference(a, b):
    """Largest absolute difference relative to the largest value of `a`, the maximum over all outputs."""

    def relative(x, y):
        x, y = np.asarray(x, "float32"), np.asarray(y, "float32")
        return np.abs(x - y).max() / np.abs(x).max()

    return float(np.max(tf.nest.flatten(tf.nest.map_structure(relative, a, b))))


def assert_close(a, b, tolerance=1e-4):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())


def inputs_for(model, rng, batch=3):
    """Random inputs with the shapes of the model inputs, float, integer or sparse as each input requires."""

    def of(tensor):
        shape = (batch, *tensor.shape[1:])
        if tf.as_dtype(tensor.dtype).is_integer:
            return rng.integers(0, 5, shape)
        value = rng.normal(size=shape).astype("float32")
        sparse = getattr(tensor, "sparse", isinstance(getattr(tensor, "type_spec", None), tf.SparseTensorSpec))
        return tf.sparse.from_dense(value) if sparse else value

    # A Keras 3 Sequential has no `input` unless it was called as a layer.
    values = tf.nest.map_structure(of, getattr(model, "input", model.inputs[0]))
    if any(isinstance(value, tf.SparseTensor) for value in tf.nest.flatten(values)):
        return tf.nest.map_structure(lambda x: x if isinstance(x, tf.SparseTensor) else tf.constant(x), values)
    return values


def small_cnn(keras):
    """Two convolutions, each with batch norm and a ReLU."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(6, 3, padding="same", name="conv2")(x)
    x = layers.Activation("relu", name="relu2")(layers.BatchNormalization(name="bn2")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)))


def chain(keras):
    """Dense layers only."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, "relu", name="a"),
            layers.Dense(8, name="b"),
            layers.ReLU(),
            layers.Dense(3),
        ]
    )


def flattened(keras):
    """A convolution with pooling and padding, flattened into dense layers."""
    layers = keras.layers
    x = inputs = keras.Input((9, 9, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(x)
    x = layers.ZeroPadding2D(1)(layers.MaxPooling2D(2)(x))
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(4)(layers.Dense(10, "relu", name="fc")(x)))


def residual(keras):
    """Residual additions with and without a projection, batch norm after the convolutions."""
    layers = keras.layers

    def bn_conv(x, filters, strides=1, relu=True, **options):
        x = layers.Conv2D(filters, 3, strides, "same", use_bias=False, **options)(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if relu else x

    inputs = keras.Input((8, 8, 3))
    x = bn_conv(inputs, 8, name="stem")
    x = layers.ReLU()(layers.Add()([x, bn_conv(bn_conv(x, 6, name="inner"), 8, relu=False)]))
    y = bn_conv(bn_conv(x, 12, strides=2), 12, relu=False)
    x = layers.Add()([layers.Conv2D(12, 1, strides=2, name="projection")(x), y])
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(layers.ReLU()(x))))


def preactivated(keras):
    """Batch norm before the convolutions, and a residual stream without normalization."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for name in "ab":
        y = layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.Conv2D(6, 1, name=f"{name}1")(y)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        x = layers.Add()([x, layers.Conv2D(8, 3, padding="same", name=f"{name}2")(y)])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))


def dense_concat(keras):
    """Every convolution reads the outputs of all previous ones (DenseNet)."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    for i in range(3):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same", name=f"growth{i}")(y)])
    x = layers.AveragePooling2D(2)(layers.Conv2D(6, 1, name="transition", activation="relu")(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def inverted(keras):
    """Depthwise convolutions with a multiplier, and squeeze-and-excite with its sigmoid gate (MobileNet)."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="expand")(inputs)
    x = layers.ReLU(max_value=6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = layers.ReLU(max_value=6.0)(layers.BatchNormalization()(x))
    gate = layers.Reshape((1, 1, 16))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(4, 1, activation="relu", name="squeeze")(gate)
    gate = layers.Conv2D(16, 1, activation="sigmoid", name="excite")(gate)
    x = layers.Multiply()([x, gate])
    x = layers.SeparableConv2D(6, 3, depth_multiplier=2, name="separable")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D(keepdims=True)(x)))


def grouped(keras):
    """Grouped convolutions with a channel shuffle in between, and one with a group per channel."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="wide")(inputs)
    x = layers.Conv2D(12, 3, padding="same", groups=3, name="grouped")(x)
    x = layers.Reshape((6, 6, 3, 4))(x)
    x = layers.Reshape((6, 6, 12))(layers.Permute((1, 2, 4, 3))(x))
    x = layers.Conv2D(12, 1, groups=3, activation="relu", name="shuffled")(x)
    x = layers.Conv2D(24, 3, groups=12, activation="tanh", name="each")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def shared_and_nested(keras):
    """A layer called twice, a nested model, bare ops, two inputs and two outputs."""
    layers = keras.layers
    left, right = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    twice = layers.Dense(10, "relu", name="twice")
    inner = keras.Sequential(
        [keras.Input((10,)), layers.Dense(12, "relu", name="hidden"), layers.Dense(10)], name="inner"
    )
    a, b = twice(left), twice(right)
    x = inner(a) + b
    x = layers.PReLU(name="prelu")(x * 0.5)
    y = layers.Dense(6, "sigmoid", name="gate")(inner(b))
    return keras.Model([left, right], [layers.Dense(2)(x), layers.Dense(3)(layers.Concatenate()([x, y]))])


def odd_ones(keras):
    """One-dimensional and transposed convolutions, upsampling, a repeated vector, Dense -> Reshape -> Conv."""
    layers = keras.layers
    inputs = keras.Input((5,))
    x = layers.Reshape((4, 4, 6))(layers.Dense(96, "relu", name="seed")(inputs))
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu", name="up")(x)
    x = layers.UpSampling2D(2)(layers.Cropping2D(1)(x))
    x = layers.Reshape((144, 8))(x)
    x = layers.Conv1D(6, 3, activation="elu", name="conv1d")(layers.AveragePooling1D(2)(x))
    x = layers.RepeatVector(3)(layers.GlobalMaxPooling1D()(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Dense(7, "relu", name="each")(x))))


FAMILIES = (
    chain, flattened, residual, preactivated, dense_concat, inverted, grouped, shared_and_nested, odd_ones,
)  # fmt: skip
