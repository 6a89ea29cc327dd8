"""Building blocks of the networks; `layers` is `keras.layers` or `tf_keras.layers`."""


def channels(base: int, width: float) -> int:
    """Number of channels of a layer with `base` channels at width 1."""
    return max(1, round(base * width))


def conv(layers, x, filters: int, name: str, kernel_size: int = 3, strides: int = 1):
    """A convolution without bias."""
    options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    return layers.Conv2D(filters, kernel_size, strides, name=name, **options)(x)


def bn(layers, x, name: str):
    """Batch normalization, named `{name}_bn`."""
    # With the default momentum of 0.99, statistics lag hundreds of steps behind the weights. That is most of a training
    # on a small data set, and region codes depend on these statistics.
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)


def bn_relu(layers, x, name: str, max_value: float | None = None):
    """Batch normalization and ReLU, named `{name}_bn` and `{name}_relu`."""
    return layers.ReLU(max_value=max_value, name=f"{name}_relu")(bn(layers, x, name))


def conv_bn(layers, x, filters: int, name: str, **options):
    """`conv` and batch normalization, named `name` and `{name}_bn`."""
    return bn(layers, conv(layers, x, filters, name, **options), name)


def conv_bn_relu(layers, x, filters: int, name: str, max_value: float | None = None, **options):
    """`conv`, batch normalization and ReLU, named `name`, `{name}_bn` and `{name}_relu`."""
    return bn_relu(layers, conv(layers, x, filters, name, **options), name, max_value)
