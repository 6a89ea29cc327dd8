"""ResNets for CIFAR and ImageNet, and pre-activated ResNets.

The first two are from He et al., "Deep Residual Learning for Image Recognition", 2015, sections 4.2 and 4.1, the last
from He et al., "Identity Mappings in Deep Residual Networks", 2016.

Where channels or size change, a 1x1 convolution projects the shortcut.
"""

from collections.abc import Callable

from tfspline.models._blocks import bn_relu, channels, conv, conv_bn, conv_bn_relu


def cifar(layers, x, blocks_per_stage: int, width: float):
    """Features of a ResNet for CIFAR of depth 6 * `blocks_per_stage` + 2."""
    x = conv_bn_relu(layers, x, channels(16, width), "stem")
    x = _stages(layers, x, basic_block, (16, 32, 64), (blocks_per_stage,) * 3, width)
    return layers.GlobalAveragePooling2D(name="pool")(x)


def preactivated(layers, x, blocks_per_stage: int, width: float):
    """Features of a pre-activated ResNet with bottlenecks, of depth 9 * `blocks_per_stage` + 2."""
    x = conv(layers, x, channels(16, width), "stem")
    x = _stages(layers, x, _preactivated_bottleneck, (16, 32, 64), (blocks_per_stage,) * 3, width)
    return layers.GlobalAveragePooling2D(name="pool")(bn_relu(layers, x, "top"))


def imagenet(layers, x, block: Callable, blocks_per_stage: tuple[int, ...], width: float):
    """Features of a ResNet for ImageNet, of `basic_block`s or `bottleneck`s."""
    x = conv_bn_relu(layers, x, channels(64, width), "stem", kernel_size=7, strides=2)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
    x = _stages(layers, x, block, (64, 128, 256, 512), blocks_per_stage, width)
    return layers.GlobalAveragePooling2D(name="pool")(x)


def _stages(layers, x, block, bases, blocks_per_stage, width):
    for stage, (base, blocks) in enumerate(zip(bases, blocks_per_stage, strict=True), start=1):
        for number in range(1, blocks + 1):
            strides = 2 if stage > 1 and number == 1 else 1
            x = block(layers, x, channels(base, width), strides, f"stage{stage}_block{number}")
    return x


def basic_block(layers, x, filters: int, strides: int, name: str):
    """Two 3x3 convolutions."""
    y = conv_bn_relu(layers, x, filters, f"{name}_conv1", strides=strides)
    y = conv_bn(layers, y, filters, f"{name}_conv2")
    return _add_relu(layers, x, y, strides, name)


def bottleneck(layers, x, filters: int, strides: int, name: str):
    """A 1x1, a 3x3 and a 1x1 convolution."""
    # The 3x3 convolution has the strides, as in torchvision (v1.5); in the paper, the 1x1 before it has them.
    y = conv_bn_relu(layers, x, filters, f"{name}_conv1", kernel_size=1)
    y = conv_bn_relu(layers, y, filters, f"{name}_conv2", strides=strides)
    y = conv_bn(layers, y, 4 * filters, f"{name}_conv3", kernel_size=1)
    return _add_relu(layers, x, y, strides, name)


def _add_relu(layers, x, y, strides, name):
    if strides > 1 or x.shape[-1] != y.shape[-1]:
        x = conv_bn(layers, x, y.shape[-1], f"{name}_shortcut", kernel_size=1, strides=strides)
    y = layers.Add(name=f"{name}_add")([y, x])
    return layers.ReLU(name=f"{name}_relu")(y)


def _preactivated_bottleneck(layers, x, filters, strides, name):
    y = bn_relu(layers, x, f"{name}_preact")
    y = conv_bn_relu(layers, y, filters, f"{name}_conv1", kernel_size=1)
    y = conv_bn_relu(layers, y, filters, f"{name}_conv2", strides=strides)
    y = conv(layers, y, 4 * filters, f"{name}_conv3", kernel_size=1)
    if strides > 1 or x.shape[-1] != y.shape[-1]:
        # Projects x itself, as the code of network slimming and of the paper on splines does. He et al. project the
        # output of the block's first ReLU.
        x = conv(layers, x, y.shape[-1], f"{name}_shortcut", kernel_size=1, strides=strides)
    return layers.Add(name=f"{name}_add")([y, x])
