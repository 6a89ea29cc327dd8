"""The CIFAR ResNets of He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2."""

from tfspline.models._blocks import channels, conv_bn, conv_bn_relu


def features(layers, x, blocks_per_stage: int, width: float):
    """Features of a ResNet of depth 6 * `blocks_per_stage` + 2, `[batch, channels]`."""
    x = conv_bn_relu(layers, x, channels(16, width), "stem")
    for stage, base in enumerate((16, 32, 64), start=1):
        for block in range(1, blocks_per_stage + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(layers, x, channels(base, width), strides, f"stage{stage}_block{block}")
    return layers.GlobalAveragePooling2D(name="pool")(x)


def _basic_block(layers, x, filters, strides, name):
    shortcut = x
    if strides > 1:
        shortcut = conv_bn(layers, x, filters, f"{name}_shortcut", kernel_size=1, strides=strides)
    x = conv_bn(layers, x, filters, f"{name}_conv1", strides=strides)
    x = layers.ReLU(name=f"{name}_conv1_relu")(x)
    x = conv_bn(layers, x, filters, f"{name}_conv2")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)
