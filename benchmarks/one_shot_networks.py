"""The trained networks of `one_shot.py`, and how much of each is removed."""

import dataclasses
import functools
import os
from collections.abc import Callable

import efficientnet_lite
import numpy as np
import tf_keras
from common import dense_resnet20, is_stream, trained
from sklearn.linear_model import LogisticRegression
from tf_keras import layers

from tfspline import datasets
from tfspline.recipe.recipe import Recipe

EPOCHS = {"preact_resnet18": 10, "lenet_300_100": 60, "resnet20": 10}
SIZE = 128  # pixels, to which EfficientNet-Lite0 enlarges the images of CIFAR-10
HEAD_IMAGES = 1500  # training images of the classifier on its features


@dataclasses.dataclass
class Problem:
    """A trained network, and the data to prune it on and to test it with.

    Attributes:
        dense: the network.
        probe: unlabelled training images, as the network takes them.
        test: (images, labels).
        held_out: (images, labels) that are for neither training nor pruning nor testing; None if there are none.
    """

    dense: tf_keras.Model
    probe: np.ndarray
    test: tuple
    held_out: tuple | None = None


@dataclasses.dataclass
class Case:
    """A network, and how much of it is removed.

    Attributes:
        title: what is pruned, for the table.
        budgets: by name, the arguments of `tfspline.plan` that say how much is removed.
        images: the number of unlabelled training images.
        load: a function of (folder of networks, folder of CIFAR-10, seed, number of images) that returns a `Problem`.
        folding: whether model folding is compared, which needs shares of units and BatchNormalization.
    """

    title: str
    budgets: dict[str, dict]
    images: int
    load: Callable
    folding: bool = False


def _problem(dense, dataset, images):
    test = (dataset.normalize(dataset.test.images).numpy(), dataset.test.labels)
    return Problem(dense, dataset.sample(images)[0], test)


def _resnet20(folder, cifar, seed, images):
    dataset = datasets.load("fashion_mnist", seed=seed)
    os.makedirs(folder := os.path.join(folder, "resnet20"), exist_ok=True)
    return _problem(dense_resnet20(folder, dataset, seed, EPOCHS["resnet20"]), dataset, images)


def _lenet_300_100(folder, cifar, seed, images):
    dataset = datasets.load("fashion_mnist", seed=seed)

    def build():
        hidden = [layers.Dense(units, "relu", name=f"dense{units}") for units in (300, 100)]
        return tf_keras.Sequential(
            [tf_keras.Input(dataset.input_shape), layers.Flatten(), *hidden, layers.Dense(dataset.classes, name="head")]
        )

    epochs = EPOCHS["lenet_300_100"]
    recipe = Recipe(  # that of Neuron Merging (Kim et al., 2020), which trains for 200 epochs
        keras="tf_keras", learning_rate=0.1, weight_decay=5e-4, lr_schedule="step", lr_drops=(epochs // 2,),
        epochs=epochs, seed=seed, ratio=0.5,
    )  # fmt: skip
    path = os.path.join(folder, f"lenet_300_100-{recipe.epochs}-{seed}.keras")
    return _problem(trained(path, build, recipe, dataset), dataset, images)


def _preact_resnet18(folder, cifar, seed, images):
    dataset = _cifar10(cifar, seed)
    recipe = Recipe(
        keras="tf_keras", augment="crop_flip", learning_rate=0.1, weight_decay=5e-4, epochs=EPOCHS["preact_resnet18"],
        seed=seed, ratio=0.5,
    )  # fmt: skip
    path = os.path.join(folder, f"preact_resnet18-{recipe.epochs}-{seed}.keras")
    build = functools.partial(preact_resnet18, dataset.input_shape, dataset.classes)
    return _problem(trained(path, build, recipe, dataset), dataset, images)


def preact_resnet18(shape, classes, width=16):
    """Build the pre-activation ResNet-18 for small images (He et al., 2016), which has `width` 64 in the literature."""

    def conv(x, filters, name, size=3, strides=1):
        options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        return layers.Conv2D(filters, size, strides, name=name, **options)(x)

    def activated(x, name):
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    inputs = tf_keras.Input(shape)
    x = conv(inputs, width, "stem")
    for stage in range(4):
        for block in range(2):
            name, filters, strides = f"stage{stage}_block{block}", width * 2**stage, 2 if stage and not block else 1
            y = activated(x, f"{name}_pre")
            x = x if strides == 1 else conv(y, filters, f"{name}_shortcut", 1, strides)
            y = activated(conv(y, filters, f"{name}_conv1", strides=strides), f"{name}_conv1")
            x = layers.Add(name=f"{name}_add")([x, conv(y, filters, f"{name}_conv2")])
    x = layers.GlobalAveragePooling2D(name="pool")(activated(x, "top"))
    return tf_keras.Model(inputs, layers.Dense(classes, name="head")(x), name="preact_resnet18")


def _efficientnet_lite0(folder, cifar, seed, images):
    dataset = _cifar10(cifar, seed)
    order = np.random.default_rng(seed).permutation(len(dataset.train))
    head, probe, held_out = np.split(order, [HEAD_IMAGES, HEAD_IMAGES + images])
    path = os.path.join(folder, f"efficientnet_lite0-{HEAD_IMAGES}-{seed}.keras")
    if not os.path.exists(path):
        _with_classifier(dataset.train.part(head), dataset.classes).save(path)
    train, test = dataset.train.images, dataset.test
    return Problem(
        tf_keras.models.load_model(path),
        train[probe].astype("float32"),
        (test.images, test.labels),
        (train[held_out], dataset.train.labels[held_out]),
    )


def _with_classifier(split, classes):
    """EfficientNet-Lite0 for images [32, 32, 3] in 0..255, with a linear classifier trained on a split."""
    inputs = tf_keras.Input(split.images.shape[1:])
    features = efficientnet_lite.features(SIZE)(layers.Resizing(SIZE, SIZE)(inputs))
    seen = tf_keras.Model(inputs, features).predict(split.images, batch_size=50, verbose=0)
    found = LogisticRegression(C=1, max_iter=1000).fit(seen, split.labels)
    classifier = layers.Dense(classes, name="classifier")
    model = tf_keras.Model(inputs, classifier(features), name="efficientnet_lite0")
    classifier.set_weights([found.coef_.T, found.intercept_])
    return model


@functools.cache
def _cifar10(folder, seed):
    return datasets.load("image_folder", folder, seed=seed)


def _shares(*ratios, units="units", **options):
    return {f"{100 * ratio:.0f} % of the {units}": {"ratio": ratio, **options} for ratio in ratios}


CASES = {
    "lenet_300_100": Case(
        "LeNet-300-100, Fashion-MNIST, hidden units", _shares(0.5, 0.6, 0.7, 0.8), 1024, _lenet_300_100
    ),
    "resnet20": Case(
        "ResNet-20, Fashion-MNIST",
        _shares(0.5, 0.7, units="inner channels", protect=(is_stream,)) | _shares(0.5, units="channels"),
        512,
        _resnet20,
        folding=True,
    ),
    "preact_resnet18": Case(
        "PreActResNet-18 of width 16, CIFAR-10, residual streams included",
        _shares(0.1, 0.3, 0.5, units="channels"),
        512,
        _preact_resnet18,
        folding=True,
    ),
    "efficientnet_lite0": Case(
        "EfficientNet-Lite0 at 128 px, CIFAR-10",
        {f"MACs / {factor}": {"max_flops": 1 / factor} for factor in (1.25, 1.43, 1.92, 2.8, 3)},
        256,
        _efficientnet_lite0,
    ),
}
