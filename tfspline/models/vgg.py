"""VGG networks (Simonyan and Zisserman, 2014) with batch normalization and one dense layer, as usual on CIFAR."""

from tfspline.models._blocks import channels, conv_bn_relu

# The number in a name counts the convolutions and the three dense layers of the original for ImageNet.
CONVS_PER_STAGE = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def features(layers, x, convs_per_stage: tuple[int, ...], width: float):
    """Features of a VGG."""
    for stage, convs in enumerate(convs_per_stage, start=1):
        filters = channels(min(32 * 2**stage, 512), width)
        for conv in range(1, convs + 1):
            x = conv_bn_relu(layers, x, filters, f"stage{stage}_conv{conv}")
        # Images smaller than 32x32 pixels shrink to a single pixel before the last stage.
        if min(x.shape[1:3]) > 1:
            x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    return layers.GlobalAveragePooling2D(name="pool")(x)
