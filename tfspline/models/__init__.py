"""The networks of the paper's tables, as ordinary functional models of either Keras."""

import functools
import math
import numbers
import re

from tfspline._keras import keras_named
from tfspline.models import mlp, resnet, vgg

__all__ = ["build"]


def build(network: str, input_shape: tuple, classes: int, width: float = 1.0, keras: str = "keras"):
    """Builds a network for classification, whose output layer `head` is linear: logits.

    Train it with a loss that takes logits, such as `SparseCategoricalCrossentropy(from_logits=True)`.

    Args:
        network: `"resnet20"`, `"resnet56"` or any other `"resnet{6n+2}"` (He et al., 2015, section 4.2, with
            a projection wherever the shape changes); `"vgg8"`, `"vgg11"`, `"vgg13"`, `"vgg16"` or
            `"vgg19"` (Simonyan and Zisserman, 2014, as used on CIFAR: batch norm and a single dense
            layer); `"mlp"` (two hidden layers of 128 units).
        input_shape: `(height, width, channels)`; an `"mlp"` takes `(features,)` as well.
        classes: how many logits the head has, at least 2.
        width: multiplies the number of channels of every hidden layer; a layer keeps at least one.
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
    features = _features(network)
    layers = keras_named(keras).layers
    shape = tuple(input_shape)
    ranks = (1, 3) if network == "mlp" else (3,)
    if len(shape) not in ranks or not all(isinstance(n, numbers.Integral) and n > 0 for n in shape):
        expected = "(height, width, channels)" + (" or (features,)" if network == "mlp" else "")
        raise ValueError(f"Expected input_shape={expected} of positive integers. Received: {input_shape!r}")
    if not isinstance(classes, numbers.Integral) or classes < 2:
        raise ValueError(f"Expected an integer of at least 2 for classes. Received: {classes!r}")
    if not isinstance(width, numbers.Real) or not 0 < width < math.inf:
        raise ValueError(f"Expected a positive width. Received: {width!r}")

    inputs = layers.Input(shape, name="inputs")
    x = features(layers, inputs, width=width)
    # Logits stay float32 under a mixed-precision policy: their loss needs the range.
    outputs = layers.Dense(classes, dtype="float32", name="head")(x)
    return keras_named(keras).Model(inputs, outputs, name=network)


def _features(network: str):
    if network == "mlp":
        return mlp.features
    if network in vgg.CONVS_PER_STAGE:
        return functools.partial(vgg.features, convs_per_stage=vgg.CONVS_PER_STAGE[network])
    depth = re.fullmatch(r"resnet([1-9]\d*)", network)
    if depth and int(depth[1]) > 2 and int(depth[1]) % 6 == 2:
        return functools.partial(resnet.features, blocks_per_stage=int(depth[1]) // 6)
    known = ", ".join(["mlp", *vgg.CONVS_PER_STAGE, "resnet{6n+2} (resnet20, resnet56, ...)"])
    raise ValueError(f"Expected a network out of: {known}. Received: {network!r}")
