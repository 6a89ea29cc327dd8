"""`load`: a data set by name, checked, resized and divided."""

import math
import numbers
import os
from pathlib import Path

import numpy as np
import tensorflow as tf
from sklearn.model_selection import train_test_split

from tfspline._utils.checks import among, count, several
from tfspline.datasets import image_files
from tfspline.datasets.dataset import Dataset, Split
from tfspline.datasets.image_files import ImageFiles
from tfspline.datasets.sources import SOURCES

_RESIZED_AT_ONCE = 1024  # images; TensorFlow resizes them as float32


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    validation_split: float = 0.0,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    train_images: int | None = None,
) -> Dataset:
    """Loads a data set by name.

    Examples are held in memory. The images of a folder stay files if they need more than 2 GiB decoded; each batch is
    then decoded when it is needed, and a file that cannot be decoded is named in the error raised at that moment.

    Args:
        name: `"digits"` (scikit-learn's 1,797 images of 8x8 pixels, a fifth of each class for testing),
            `"fashion_mnist"`, `"cifar10"`, `"cifar100"`, `"toy2d"` (1,000 points in [-5, 5]^2, inside or outside an X,
            and 1,000 more for testing) or `"image_folder"`.
        data_dir: folder with the files. `fashion_mnist`: four idx .gz files; `cifar10`, `cifar100`: the Python batches;
            by default, `keras.datasets` downloads them, unless Debian's package dataset-fashion-mnist is installed.
            `image_folder`: required, has `train/` and `test/` with a sub-folder for each class. Others take none.
        validation_split: share of each class's training images that is held out as `validation`, in [0, 1).
        seed: seed of the validation split, of the choice of `train_images`, and of training order and augmentation.
        image_size: `(height, width)` that images are resized to. By default images keep their size; those of an
            `image_folder` get the size of its first training image.
        train_images: number of training images to use, the same share of every class; by default all.

    Raises:
        ValueError: an unknown name, an argument that does not fit the data set, or a file with invalid content.
        FileNotFoundError: `data_dir` or a file in it does not exist.
        OSError: the data set could not be downloaded; the message says where to put a copy of the files.

    Example:
        >>> digits = tfspline.datasets.load("digits", validation_split=0.1)
        >>> digits.input_shape, digits.classes, len(digits.test)
        ((8, 8, 1), 10, 360)
    """
    source = SOURCES[among("dataset", name, SOURCES)]
    if not isinstance(validation_split, numbers.Real) or not 0 <= validation_split < 1:
        raise ValueError(f"Expected a validation_split in [0, 1). Received: {validation_split!r}")
    if count("seed", seed, least=0) >= 2**32:
        raise ValueError(f"Expected a seed in [0, 2**32). Received: {seed!r}")
    size = None if image_size is None else _checked_size(image_size)
    class_names, *parts = source(_checked_folder(data_dir), size)
    train, test = (_resized(_split(*part), size, name) for part in parts)
    validation = None
    if validation_split > 0:
        train, validation = _divided(train, seed, test_size=validation_split)
    if train_images is not None:
        classes, most = len(class_names), len(train) - len(class_names)
        if not classes <= count("train_images", train_images) <= most:
            raise ValueError(
                f"Expected train_images from {classes} to {most}, since at least one image of each class is used and "
                f"one is left out. Received: {train_images!r}"
            )
        train, _ = _divided(train, seed, train_size=train_images)
    return Dataset(name, tuple(class_names), train, validation, test, seed)


def _checked_size(image_size) -> tuple[int, int]:
    size = several("image_size", image_size)
    if len(size) != 2 or not all(isinstance(n, numbers.Integral) and int(n) > 0 for n in size):
        raise ValueError(f"Expected image_size=(height, width) of positive integers. Received: {image_size!r}")
    return size


def _checked_folder(data_dir) -> Path | None:
    if data_dir is None:
        return None
    path = Path(data_dir)
    if not path.is_dir():
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} is not an existing folder.")
    if not any(path.iterdir()):
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} is empty.")
    return path


def _split(images, labels) -> Split:
    if not isinstance(images, ImageFiles):
        images = np.ascontiguousarray(images[..., np.newaxis] if images.ndim == 3 else images)
    return Split(images, np.asarray(labels, np.int32).reshape(-1))


def _divided(split: Split, seed: int, **size) -> tuple[Split, Split]:
    """Two disjoint parts of a split, each with the same share of every class."""
    try:
        parts = train_test_split(np.arange(len(split)), random_state=seed, stratify=split.labels, **size)
    except ValueError as error:
        raise ValueError(
            f"{len(split)} images cannot be divided by {', '.join(f'{name}={value}' for name, value in size.items())} "
            f"with images of every class on both sides: {error}"
        ) from error
    first, second = map(split.part, parts)
    return first, second


def _resized(split: Split, size: tuple[int, int] | None, name: str) -> Split:
    if size is None or split.images.shape[1:3] == size:
        return split
    images = split.images
    if images.ndim != 4:
        raise ValueError(f"image_size applies to images only, but {name!r} holds points. Received: {size!r}")
    needed = len(images) * math.prod(size) * images.shape[-1]
    if needed > image_files.MEMORY_LIMIT:
        raise ValueError(
            f"The images need {needed:,} bytes at image_size={size}, more than the limit of "
            f"{image_files.MEMORY_LIMIT:,}. Use a smaller image_size."
        )
    resized = np.empty((len(images), *size, images.shape[-1]), np.uint8)
    for start in range(0, len(images), _RESIZED_AT_ONCE):
        here = slice(start, start + _RESIZED_AT_ONCE)
        resized[here] = np.rint(tf.image.resize(images[here], size, "area"))
    return Split(resized, split.labels)
