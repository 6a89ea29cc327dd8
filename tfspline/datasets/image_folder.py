"""The data set `image_folder`: image files in train/<class>/ and test/<class>/."""

import math
import os
from pathlib import Path

import keras
import numpy as np

from tfspline.datasets import image_files
from tfspline.datasets.image_files import ImageFiles, naming_files, shape_of
from tfspline.datasets.sources import existing


def image_folder(data_dir: Path | None, image_size: tuple[int, int] | None):
    """Images of `image_size`, or of the size of the first training image, and with the channels of that image.

    Images that fit into memory are resized as a whole. Others stay files, of which `ImageFiles` decodes the central
    window.

    Returns:
        As for the functions in `sources`; images are arrays, or `ImageFiles` in a fixed random order for training.
    """
    if data_dir is None:
        raise ValueError("Expected data_dir, a folder with train/ and test/, for 'image_folder'. Received: None")
    folders = [existing(data_dir / part) for part in ("train", "test")]
    class_names, (train_paths, train_labels), (test_paths, test_labels) = _listed(*folders)
    height, width, channels = shape_of(train_paths[0])
    shape = (*(image_size or (height, width)), channels)
    if (len(train_paths) + len(test_paths)) * math.prod(shape) <= image_files.MEMORY_LIMIT:
        with naming_files():
            images = [ImageFiles(paths, shape, whole=True)[:] for paths in (train_paths, test_paths)]
        return class_names, (images[0], train_labels), (images[1], test_labels)
    # The files are listed class by class; in this order, the first ones are a fair sample.
    order = np.random.default_rng(0).permutation(len(train_paths))
    train, test = ImageFiles(train_paths[order], shape), ImageFiles(test_paths, shape)
    return class_names, (train, train_labels[order]), (test, test_labels)


def _listed(*folders: Path):
    """Class names, and (paths, labels) of the images in each folder, class by class."""
    # Keras would draw an unused seed from numpy's global generator.
    found = [
        keras.utils.image_dataset_from_directory(folder, shuffle=False, seed=0, verbose=False) for folder in folders
    ]
    class_names, test_class_names = (source.class_names for source in found)
    if class_names != test_class_names:
        unshared = sorted(set(class_names) ^ set(test_class_names))
        raise ValueError(f"Expected the same classes in train/ and test/. Received: only one of them has {unshared}")
    if len(class_names) < 2:
        raise ValueError(f"Expected folders of at least two classes in {folders[0]}. Received: {class_names}")
    listed = []
    for folder, source in zip(folders, found, strict=True):
        classes = [path.removeprefix(f"{folder}{os.sep}").split(os.sep)[0] for path in source.file_paths]
        if empty := sorted(set(class_names) - set(classes)):
            raise ValueError(f"Expected images of every class in {folder}. Received: none in {empty}")
        listed.append((np.array(source.file_paths, object), np.searchsorted(class_names, classes)))
    return class_names, *listed
