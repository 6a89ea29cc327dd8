"""`build`, and the registry of networks."""

import functools
import math
import numbers
import re
from collections.abc import Callable, Iterable

from tfspline._keras import keras_named
from tfspline._keras.types import KerasModel
from tfspline._utils.checks import count
from tfspline.models import mobilenet, resnet, vgg
from tfspline.models._blocks import channels


def mlp(layers, x, width: float):
    """Features of a multilayer perceptron: two hidden layers of 128 units."""
    if len(x.shape) > 2:
        x = layers.Flatten(name="flatten")(x)
    for name in ("dense1", "dense2"):
        x = layers.Dense(channels(128, width), kernel_initializer="he_normal", name=name)(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    return x


# Each entry is a function of (layers, inputs, width) that returns features `[batch, channels]`, where `layers` is the
# module `keras.layers` or `tf_keras.layers`. To add a network, write such a function and enter it here.
NETWORKS: dict[str, Callable] = {
    "mlp": mlp,
    **{name: functools.partial(vgg.features, convs_per_stage=convs) for name, convs in vgg.CONVS_PER_STAGE.items()},
    "resnet18": functools.partial(resnet.imagenet, block=resnet.basic_block, blocks_per_stage=(2, 2, 2, 2)),
    "resnet50": functools.partial(resnet.imagenet, block=resnet.bottleneck, blocks_per_stage=(3, 4, 6, 3)),
    "mobilenetv2": mobilenet.features,
}
# Networks of any depth: a function that also takes `blocks_per_stage`, and the number of layers that one more block in
# each of the three stages adds.
FAMILIES: dict[str, tuple[Callable, int]] = {"resnet": (resnet.cifar, 6), "preresnet": (resnet.preactivated, 9)}


def build(
    network: str, input_shape: tuple[int, ...], classes: int, width: float = 1.0, keras: str = "keras"
) -> KerasModel:
    """Builds a classification network; its output layer `head` is linear and returns logits.

    Train it with a loss for logits, such as `SparseCategoricalCrossentropy(from_logits=True)`.

    Args:
        network: for small images: `"vgg8"`, `"vgg11"`, `"vgg13"`, `"vgg16"`, `"vgg19"` (Simonyan and Zisserman, 2014,
            with batch normalization and one dense layer, as usual on CIFAR); `"resnet20"`, `"resnet56"` or any
            `"resnet{6n+2}"` (He et al., 2015, section 4.2, with projection shortcuts); `"preresnet101"` or any
            `"preresnet{9n+2}"` (He et al., 2016, bottlenecks). For ImageNet: `"resnet18"`, `"resnet50"` (He et al.,
            2015, section 4.1) and `"mobilenetv2"` (Sandler et al., 2018), which divide height and width by 32. And
            `"mlp"` with two hidden layers of 128 units.
        input_shape: `(height, width, channels)`; for `"mlp"` also `(features,)`.
        classes: number of logits, at least 2.
        width: multiplies the channels of every hidden layer, at least one of which remains. (The authors of
            MobileNetV2 round to multiples of 8, and keep 1280 channels in the last layer if width is below 1.)
        keras: `"keras"` or `"tf_keras"`.

    Returns:
        A built functional model, float32 `[batch, *input_shape]` to float32 `[batch, classes]`.

    Raises:
        ValueError: an unknown network or Keras, or an argument that does not fit the network.

    Example:
        >>> model = tfspline.models.build("resnet20", (32, 32, 3), classes=10)
        >>> model.output_shape
        (None, 10)
    """
    check(network, input_shape, classes, width, keras)
    module = keras_named(keras)
    layers = module.layers
    inputs = layers.Input(tuple(input_shape), name="inputs")
    x = _features(network)(layers, inputs, width=width)
    # Logits stay float32 under a mixed-precision policy, since the loss needs the range.
    outputs = layers.Dense(classes, dtype="float32", name="head")(x)
    return module.Model(inputs, outputs, name=network)


def check(network: str, input_shape: tuple[int, ...], classes: int, width: float = 1.0, keras: str = "keras") -> None:
    """Raises the ValueError that `build` would raise for these arguments, without building."""
    _features(network)
    keras_named(keras)
    shape = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    ranks = (1, 3) if network == "mlp" else (3,)
    if len(shape) not in ranks or not all(isinstance(n, numbers.Integral) and int(n) > 0 for n in shape):
        expected = "(height, width, channels)" + (" or (features,)" if network == "mlp" else "")
        raise ValueError(f"Expected input_shape={expected} of positive integers. Received: {input_shape!r}")
    count("classes", classes, least=2)
    if not isinstance(width, numbers.Real) or not 0 < float(width) < math.inf:
        raise ValueError(f"Expected a positive width. Received: {width!r}")


def _features(network: str) -> Callable:
    if network in list(NETWORKS):  # a list, since the name may be unhashable
        return NETWORKS[network]
    name = isinstance(network, str) and re.fullmatch(r"(\D+)([1-9][0-9]{0,5})", network)
    if name and name[1] in FAMILIES:
        features, layers_per_block = FAMILIES[name[1]]
        blocks, rest = divmod(int(name[2]) - 2, layers_per_block)
        if blocks > 0 and rest == 0:
            return functools.partial(features, blocks_per_stage=blocks)
    families = "resnet{6n+2} (resnet20, resnet56, ...), preresnet{9n+2} (preresnet101, preresnet164, ...)"
    raise ValueError(f"Expected `network` among: {', '.join(NETWORKS)}, {families}. Received: {network!r}")
