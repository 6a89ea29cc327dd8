"""The datasets that can be loaded by name: what of them is trained on, held out and tested on, and in which size."""

import math
import numbers
import os
from pathlib import Path

import numpy as np
import tensorflow as tf
from sklearn.model_selection import train_test_split

from tfspline._utils.checks import among, count, several
from tfspline.datasets import _readers
from tfspline.datasets.dataset import Dataset, Split
from tfspline.datasets.image_files import ImageFiles

__all__ = ["Dataset", "Split", "load"]

_READERS = {
    "digits": _readers.digits,
    "fashion_mnist": _readers.fashion_mnist,
    "cifar10": _readers.cifar10,
    "cifar100": _readers.cifar100,
    "toy2d": _readers.toy2d,
    "image_folder": _readers.image_folder,
}
_RESIZED_AT_ONCE = 1024  # images, which are float32 meanwhile


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    validation_split: float = 0.0,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    train_images: int | None = None,
) -> Dataset:
    """Loads a dataset into memory, or lists the files of one that does not fit.

    An image folder of more than 2 GiB, decoded, is not read but listed, its training images in a fixed random order.
    They are decoded in parallel while they are needed: for evaluation the central window in the shape of `image_size`,
    224/256 of the largest (of smaller folders, the whole image is resized, whatever its shape); mean and standard
    deviation are those of the first 2,048 for training.

    Of every image file the header is read beforehand, so that what is no image, or too large a one, is refused at once.
    To find one that is damaged behind its header takes decoding it: of listed files, that happens when they are needed,
    with a `tf.errors.InvalidArgumentError` that names the file. Files of other endings than .jpg, .jpeg, .png, .gif and
    .bmp are left aside. Of an animation the first frame is taken; an orientation in EXIF data is not applied.

    Args:
        name: `"digits"` (scikit-learn's 1,797 images of 8x8, a fifth of each class for testing),
            `"fashion_mnist"`, `"cifar10"`, `"cifar100"`, `"toy2d"` (1,000 points of [-5, 5]^2, in an X or around it,
            and as many for testing) or `"image_folder"`.
        data_dir: where the files are. For `fashion_mnist` the four idx .gz files (default: where Debian's
            package dataset-fashion-mnist puts them, otherwise `keras.datasets` downloads them); for
            `cifar10` and `cifar100` the python batches (default: `keras.datasets` downloads them); for
            `image_folder` a folder with `train` and `test`, each with a sub-folder a class. `digits` and
            `toy2d` take none.
        validation_split: share of each class's training images that is held out as `validation`, in [0, 1).
        seed: of what is held out or left out, and of the order and augmentation of the training batches.
        image_size: `(height, width)` that images are resized to, each pixel the mean of the area that it covers, those
            of an `image_folder` bilinearly; by default they stay as they are, those of an `image_folder` get the size
            of the first one.
        train_images: how many of those that are not held out are trained on, each class its share; by default all.

    Raises:
        ValueError: an unknown name; a `data_dir` missing, or one or an `image_size` given where none is taken;
            `validation_split` outside [0, 1); `train_images` that are not there; files that do not hold what they
            should; classes that differ between `train` and `test`.
        FileNotFoundError: `data_dir`, or something that should be in it, is not there.

    Example:
        >>> digits = tfspline.datasets.load("digits", validation_split=0.1)
        >>> digits.input_shape, digits.classes, len(digits.test)
        ((8, 8, 1), 10, 360)
    """
    among("dataset", name, _READERS)
    if not isinstance(validation_split, numbers.Real) or not 0 <= validation_split < 1:
        raise ValueError(f"Expected a validation_split in [0, 1). Received: {validation_split!r}")
    if count("seed", seed, least=0) >= 2**32:
        raise ValueError(f"Expected a seed in [0, 2**32). Received: {seed!r}")
    size = None if image_size is None else _checked_size(image_size, name)
    folder = _checked_folder(data_dir)
    if name == "image_folder":
        class_names, *parts = _readers.image_folder(folder, size)
    else:
        class_names, *parts = _READERS[name](folder)
    train, test = (_split(*part) for part in parts)
    if size and train.images.shape[1:3] != size:
        train, test = (Split(_resized(split.images, size), split.labels) for split in (train, test))
    validation = None
    if validation_split > 0:
        train, validation = _divided(train, seed, test_size=validation_split)
    if train_images is not None:
        if not len(class_names) <= count("train_images", train_images) <= len(train) - len(class_names):
            raise ValueError(
                f"Expected train_images from {len(class_names)}, the number of classes, to {len(train)} less as many. "
                f"Received: {train_images!r}"
            )
        train, _ = _divided(train, seed, train_size=train_images)
    return Dataset(name, tuple(class_names), train, validation, test, seed)


def _checked_size(image_size, name) -> tuple[int, int]:
    if name == "toy2d":
        raise ValueError(f"Expected an image_size for images only. Received: {image_size!r} for {name!r}")
    size = several("image_size", image_size)
    if len(size) != 2 or not all(isinstance(n, numbers.Integral) and n > 0 for n in size):
        raise ValueError(f"Expected image_size=(height, width) of positive integers. Received: {image_size!r}")
    return size


def _checked_folder(data_dir) -> Path | None:
    if data_dir is None:
        return None
    path = Path(data_dir)
    if not path.is_dir():
        raise FileNotFoundError(f"Expected data_dir to be a folder that is there. Received: {str(data_dir)!r}")
    if not any(path.iterdir()):
        raise FileNotFoundError(f"Expected files in data_dir. Received: {str(data_dir)!r}, which is empty")
    return path


def _split(images, labels) -> Split:
    if not isinstance(images, ImageFiles):
        images = np.ascontiguousarray(images[..., np.newaxis] if images.ndim == 3 else images)
    return Split(images, np.asarray(labels, np.int32).reshape(-1))


def _divided(split, seed, **size):
    try:
        parts = train_test_split(np.arange(len(split)), random_state=seed, stratify=split.labels, **size)
    except ValueError as error:
        raise ValueError(
            f"Expected shares of {len(split)} images that leave some of every class on both sides. "
            f"Received: {', '.join(map(str, size.values()))} ({error})"
        ) from error
    return map(split.part, parts)


def _resized(images, size):
    needed = len(images) * math.prod(size) * images.shape[-1]
    if needed > _readers.MEMORY_LIMIT:
        raise ValueError(
            f"Expected images of at most {_readers.MEMORY_LIMIT:,} bytes once resized. Received: {needed:,} bytes; "
            "give a smaller image_size."
        )
    resized = np.empty((len(images), *size, images.shape[-1]), np.uint8)
    for start in range(0, len(images), _RESIZED_AT_ONCE):
        here = slice(start, start + _RESIZED_AT_ONCE)
        resized[here] = np.rint(tf.image.resize(images[here], size, "area"))
    return resized
