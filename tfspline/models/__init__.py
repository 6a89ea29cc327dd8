"""The networks of the paper's tables, as ordinary functional models of either Keras."""

import functools
import math
import numbers
import re
from collections.abc import Iterable

from tfspline._keras import keras_named
from tfspline.models import mlp, mobilenet, resnet, vgg

__all__ = ["build"]


def build(network: str, input_shape: tuple, classes: int, width: float = 1.0, keras: str = "keras"):
    """Builds a network for classification, whose output layer `head` is linear: logits.

    Train it with a loss that takes logits, such as `SparseCategoricalCrossentropy(from_logits=True)`.

    Args:
        network: one of these. For small images: `"vgg16"` as well as `"vgg8"`, `"vgg11"`, `"vgg13"` and
            `"vgg19"` (Simonyan and Zisserman, 2014, as used on CIFAR: batch norm and a single dense layer);
            `"resnet20"`, `"resnet56"` or any other `"resnet{6n+2}"` (He et al., 2015, section 4.2, with a
            projection wherever the shape changes); `"preresnet101"`, `"preresnet164"` or any other
            `"preresnet{9n+2}"` (He et al., 2016: bottlenecks that begin with batch norm and ReLU). For
            ImageNet: `"resnet18"` and `"resnet50"` (He et al., 2015, section 4.1; so `"resnet50"` is not the
            one of depth 6 * 8 + 2) and `"mobilenetv2"` (Sandler et al., 2018). These three divide the size
            of an image by 32: one of 32x32 pixels, or smaller, is a single pixel in the last stage, which
            works, but sees little of it. And `"mlp"` (two hidden layers of 128 units).
        input_shape: `(height, width, channels)`; an `"mlp"` takes `(features,)` as well.
        classes: how many logits the head has, at least 2.
        width: multiplies the number of channels of every hidden layer; a layer keeps at least one. (The
            authors of MobileNetV2 round to multiples of 8, and leave its last layer at 1280 below width 1.)
        keras: `"keras"` or `"tf_keras"`, the Keras that the model is made of.

    Returns:
        A built functional model, float32 `[batch, *input_shape]` to float32 `[batch, classes]`.

    Raises:
        ValueError: an unknown network or Keras, a shape that does not fit the network, fewer than two
            classes, or a width that is not positive.

    Example:
        >>> model = tfspline.models.build("resnet20", (32, 32, 3), classes=10)
        >>> model.output_shape
        (None, 10)
    """
    check(network, input_shape, classes, width, keras)
    layers = keras_named(keras).layers
    inputs = layers.Input(tuple(input_shape), name="inputs")
    x = _features(network)(layers, inputs, width=width)
    # Logits stay float32 under a mixed-precision policy: their loss needs the range.
    outputs = layers.Dense(classes, dtype="float32", name="head")(x)
    return keras_named(keras).Model(inputs, outputs, name=network)


def check(network: str, input_shape: tuple, classes: int, width: float = 1.0, keras: str = "keras") -> None:
    """Raises the ValueError of `build` for arguments that no network can be built of."""
    _features(network)
    keras_named(keras)
    shape = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    ranks = (1, 3) if network == "mlp" else (3,)
    if len(shape) not in ranks or not all(isinstance(n, numbers.Integral) and n > 0 for n in shape):
        expected = "(height, width, channels)" + (" or (features,)" if network == "mlp" else "")
        raise ValueError(f"Expected input_shape={expected} of positive integers. Received: {input_shape!r}")
    if not isinstance(classes, numbers.Integral) or classes < 2:
        raise ValueError(f"Expected an integer of at least 2 for classes. Received: {classes!r}")
    if not isinstance(width, numbers.Real) or not 0 < width < math.inf:
        raise ValueError(f"Expected a positive width. Received: {width!r}")


_FEATURES = {
    "mlp": mlp.features,
    **{name: functools.partial(vgg.features, convs_per_stage=convs) for name, convs in vgg.CONVS_PER_STAGE.items()},
    "resnet18": resnet.imagenet18,
    "resnet50": resnet.imagenet50,
    "mobilenetv2": mobilenet.features,
}
# Families of any depth: three stages of blocks of 2 or 3 convolutions, between two more layers.
_FAMILIES = {"resnet": (resnet.cifar, 6), "preresnet": (resnet.preactivated, 9)}


def _features(network: str):
    if network in list(_FEATURES):
        return _FEATURES[network]
    family = isinstance(network, str) and re.fullmatch(r"(\D+)([1-9][0-9]{0,5})", network)
    if family and family[1] in _FAMILIES:
        features, layers_per_block = _FAMILIES[family[1]]
        blocks, rest = divmod(int(family[2]) - 2, layers_per_block)
        if blocks > 0 and rest == 0:
            return functools.partial(features, blocks_per_stage=blocks)
    families = "resnet{6n+2} (resnet20, resnet56, ...), preresnet{9n+2} (preresnet101, preresnet164, ...)"
    raise ValueError(f"Expected a network out of: {', '.join(_FEATURES)}, {families}. Received: {network!r}")
