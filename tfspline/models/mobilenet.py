"""MobileNetV2 (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018)."""

from tfspline.models._blocks import bn_relu, channels, conv, conv_bn

# Expansion, channels, number of blocks, and strides of the first block (table 2 of the paper).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def features(layers, x, width: float):
    """Features of a MobileNetV2."""
    x = _conv_bn_relu6(layers, x, channels(32, width), "stem", strides=2)
    for stage, (expansion, base, blocks, first_strides) in enumerate(_STAGES, start=1):
        for block in range(1, blocks + 1):
            strides = first_strides if block == 1 else 1
            x = _inverted_residual(layers, x, expansion, channels(base, width), strides, f"stage{stage}_block{block}")
    x = _conv_bn_relu6(layers, x, channels(1280, width), "top", kernel_size=1)
    return layers.GlobalAveragePooling2D(name="pool")(x)


def _inverted_residual(layers, x, expansion, filters, strides, name):
    y = x
    if expansion > 1:
        y = _conv_bn_relu6(layers, y, expansion * x.shape[-1], f"{name}_expand", kernel_size=1)
    y = _depthwise_bn_relu6(layers, y, strides, f"{name}_depthwise")
    y = conv_bn(layers, y, filters, f"{name}_project", kernel_size=1)
    return layers.Add(name=f"{name}_add")([y, x]) if strides == 1 and filters == x.shape[-1] else y


def _conv_bn_relu6(layers, x, filters, name, **options):
    return bn_relu(layers, conv(layers, x, filters, name, **options), name, max_value=6.0)


def _depthwise_bn_relu6(layers, x, strides, name):
    x = layers.DepthwiseConv2D(
        3, strides=strides, padding="same", use_bias=False, depthwise_initializer="he_normal", name=name
    )(x)
    return bn_relu(layers, x, name, max_value=6.0)
