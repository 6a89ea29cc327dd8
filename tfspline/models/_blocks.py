"""What the networks are made of; `layers` is the `layers` module of either Keras."""


def channels(base: int, width: float) -> int:
    """The number of channels of a layer that has `base` of them at width 1."""
    return max(1, round(base * width))


def conv(layers, x, filters: int, name: str, kernel_size: int = 3, strides: int = 1):
    """A convolution without bias."""
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def bn(layers, x, name: str):
    """Batch norm, `{name}_bn`."""
    # With Keras' default momentum of 0.99 the statistics lag hundreds of steps behind the weights, which is
    # most of a training on a small dataset; region codes are taken with these statistics.
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)


def bn_relu(layers, x, name: str, max_value: float | None = None):
    """Batch norm and ReLU, `{name}_bn` and `{name}_relu`."""
    return layers.ReLU(max_value=max_value, name=f"{name}_relu")(bn(layers, x, name))


def conv_bn(layers, x, filters: int, name: str, **options):
    """`conv` and batch norm: `name` and `{name}_bn`."""
    return bn(layers, conv(layers, x, filters, name, **options), name)


def conv_bn_relu(layers, x, filters: int, name: str, **options):
    """`conv`, batch norm and ReLU: `name`, `{name}_bn`, `{name}_relu`."""
    return bn_relu(layers, conv(layers, x, filters, name, **options), name)
