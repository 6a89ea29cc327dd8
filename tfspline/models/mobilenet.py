"""MobileNetV2 (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018)."""

import functools

from tfspline.models._blocks import bn_relu, channels, conv_bn, conv_bn_relu

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
_conv_bn_relu6 = functools.partial(conv_bn_relu, max_value=6.0)


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
    options = {"padding": "same", "use_bias": False, "depthwise_initializer": "he_normal"}
    y = layers.DepthwiseConv2D(3, strides, name=f"{name}_depthwise", **options)(y)
    y = bn_relu(layers, y, f"{name}_depthwise", max_value=6.0)
    y = conv_bn(layers, y, filters, f"{name}_project", kernel_size=1)
    return layers.Add(name=f"{name}_add")([y, x]) if strides == 1 and filters == x.shape[-1] else y
