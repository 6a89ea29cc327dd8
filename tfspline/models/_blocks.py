"""What the networks are made of."""


def channels(base: int, width: float) -> int:
    """The number of channels of a layer that has `base` of them at width 1."""
    return max(1, round(base * width))


def conv_bn(layers, x, filters: int, name: str, kernel_size: int = 3, strides: int = 1):
    """Convolution and batch norm, `name` and `{name}_bn`; `layers` is the `layers` module of either Keras."""
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    # With Keras' default momentum of 0.99 the statistics lag hundreds of steps behind the weights, which is
    # most of a training on a small dataset; region codes are taken with these statistics.
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)


def conv_bn_relu(layers, x, filters: int, name: str):
    """A 3x3 convolution, batch norm and ReLU: `name`, `{name}_bn`, `{name}_relu`."""
    return layers.ReLU(name=f"{name}_relu")(conv_bn(layers, x, filters, name))
