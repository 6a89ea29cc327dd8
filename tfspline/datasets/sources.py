"""The data sets. Each is a function that `SOURCES` lists by name.

Each takes `(data_dir, image_size)` and returns class names, `(images, labels)` for training and `(images, labels)` for
testing. `data_dir` is an existing, non-empty folder, or None. A function may ignore `image_size`: `load` resizes the
images afterwards. Images are uint8 `[n, height, width, channels]` or `[n, height, width]`, or `ImageFiles` if they do
not fit into memory. Points are float32 `[n, features]`. Labels are integers from 0 on.
"""

import gzip
import math
import os
import pickle
import zlib
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tfspline.datasets import image_files

# Where Debian's package dataset-fashion-mnist puts its files.
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# For the data sets that Keras downloads: the files, how to use a copy of them, and their place in Keras' cache.
_DOWNLOADS = {
    "fashion_mnist": (
        "the four .gz files of https://github.com/zalandoresearch/fashion-mnist",
        "Set data_dir to the folder with them, or move them to",
        "fashion-mnist",
    ),
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "Extract it and set data_dir to its folder cifar-10-batches-py, or save it as",
        "cifar-10-batches-py-target_archive",
    ),
    "cifar100": (
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "Extract it and set data_dir to its folder cifar-100-python, or save it as",
        "cifar-100-python-target_archive",
    ),
}
_CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905, as a hundred quoted words are harder to read


def digits(data_dir: Path | None, _):
    """scikit-learn's 1,797 digits of 8x8 pixels; the test set is always the same fifth of each class."""
    _refuse_data_dir("digits", data_dir)
    source = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=source.target)
    train, test = ((images[part], source.target[part]) for part in parts)
    return [str(name) for name in source.target_names], train, test


def toy2d(data_dir: Path | None, _):
    """1,000 random points in [-5, 5]^2 for training and as many for testing; an X along the diagonals covers half."""
    _refuse_data_dir("toy2d", data_dir)
    points = np.random.default_rng(0).uniform(-5, 5, (2000, 2)).astype(np.float32)
    # In [0, 5]^2, the area outside the X is two triangles with legs of 5 - width: half of the square.
    width = 5 - 5 / np.sqrt(2)
    inside = np.abs(np.abs(points[:, 0]) - np.abs(points[:, 1])) < width
    return ["around", "X"], (points[:1000], inside[:1000]), (points[1000:], inside[1000:])


def fashion_mnist(data_dir: Path | None, _):
    """Fashion-MNIST, from its four idx files or downloaded by Keras."""
    if data_dir is None and _DEBIAN_FASHION_MNIST.is_dir():
        data_dir = _DEBIAN_FASHION_MNIST
    if data_dir is None:
        return _FASHION_MNIST_CLASSES, *_loaded_by_keras("fashion_mnist")
    train, test = (
        [_read_idx(data_dir / f"{part}-{content}-ubyte.gz") for content in ("images-idx3", "labels-idx1")]
        for part in ("train", "t10k")
    )
    return _FASHION_MNIST_CLASSES, train, test


def _loaded_by_keras(name: str):
    """What `keras.datasets` has in its cache, or downloads."""
    try:
        return getattr(keras.datasets, name).load_data()
    except Exception as error:  # a bare one if there is no connection, almost any if a file in the cache is damaged
        files, how, cached = _DOWNLOADS[name]
        home = os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")
        place = os.path.join(home if os.access(home, os.W_OK) else "/tmp/.keras", "datasets", cached)
        damaged = f" What is there already may be damaged: delete {place!r} and try again." * os.path.exists(place)
        raise OSError(
            f"Dataset {name!r} could not be downloaded: {error}. Without a connection, get {files} elsewhere. {how} "
            f"{place!r}.{damaged} No download is needed for digits, toy2d and image_folder, nor for fashion_mnist with "
            "Debian's package dataset-fashion-mnist."
        ) from error


def _read_idx(path: Path) -> np.ndarray:
    # Two zero bytes, 8 for uint8, the number of dimensions, each dimension as a big-endian uint32, the data.
    try:
        with gzip.open(_existing(path)) as file:
            content = file.read(image_files.MEMORY_LIMIT + 1)
        if len(content) > image_files.MEMORY_LIMIT:
            raise ValueError(f"it holds more than {image_files.MEMORY_LIMIT:,} bytes")
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"it starts with {content[:3]!r}")
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)
    except (gzip.BadGzipFile, zlib.error, EOFError, LookupError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not a gzipped idx file of uint8: {error}") from error


def cifar10(data_dir: Path | None, _):
    """CIFAR-10, from its Python batches or downloaded by Keras."""
    if data_dir is None:
        return _CIFAR10_CLASSES, *_loaded_by_keras("cifar10")
    *batches, test = (
        _read_cifar(data_dir / name, "labels", len(_CIFAR10_CLASSES))
        for name in (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch")
    )
    train = [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
    return _CIFAR10_CLASSES, train, test


def cifar100(data_dir: Path | None, _):
    """CIFAR-100 with its 100 fine classes, from its Python batches or downloaded by Keras."""
    if data_dir is None:
        return _CIFAR100_CLASSES, *_loaded_by_keras("cifar100")
    train, test = (_read_cifar(data_dir / part, "fine_labels", len(_CIFAR100_CLASSES)) for part in ("train", "test"))
    return _CIFAR100_CLASSES, train, test


def _read_cifar(path: Path, labels_key: str, classes: int):
    with _existing(path).open("rb") as file:
        try:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
            # The distributed files were written by Python 2 and have bytes as keys.
            batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
            # A row holds the red, green and blue plane of one image, each with 32 rows of 32 pixels.
            images = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = np.array(batch[labels_key])
            known = images.dtype == np.uint8 and labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
            if not known or labels.min() < 0 or labels.max() >= classes:
                raise ValueError(f"expected uint8 images with labels in [0, {classes})")
        except Exception as error:  # a damaged pickle can raise almost anything
            raise ValueError(f"{str(path)!r} is not a Python batch of CIFAR: {error}") from error
    return images, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers only, since other pickles can run arbitrary code."""

    # numpy has no public name for the function that its pickles call, and numpy 2 renamed its module.
    _reconstruct = np.empty(0).__reduce__()[0]
    _allowed = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module, name):
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of an array")
        return self._allowed[module, name]


def image_folder(data_dir: Path | None, image_size: tuple[int, int] | None):
    """Images of `image_size`, or of the size of the first training image, and with the channels of that image.

    Images that fit into memory are resized as a whole. Others stay `ImageFiles`, which decode the central window.
    """
    if data_dir is None:
        raise ValueError("Expected data_dir, a folder with train/ and test/, for 'image_folder'. Received: None")
    folders = [_existing(data_dir / part) for part in ("train", "test")]
    class_names, (train_paths, train_labels), (test_paths, test_labels) = _listed(*folders)
    height, width, channels = image_files.shape_of(train_paths[0])
    shape = (*(image_size or (height, width)), channels)
    if (len(train_paths) + len(test_paths)) * math.prod(shape) <= image_files.MEMORY_LIMIT:
        with image_files.naming_files():
            images = [image_files.ImageFiles(paths, shape, whole=True)[:] for paths in (train_paths, test_paths)]
        return class_names, (images[0], train_labels), (images[1], test_labels)
    # The files are listed class by class; in this order, the first ones are a fair sample.
    order = np.random.default_rng(0).permutation(len(train_paths))
    train, test = image_files.ImageFiles(train_paths[order], shape), image_files.ImageFiles(test_paths, shape)
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


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"data_dir {str(path.parent)!r} has no {path.name!r}.")
    return path


def _refuse_data_dir(name: str, data_dir: Path | None) -> None:
    if data_dir is not None:
        raise ValueError(f"{name!r} takes no data_dir. Received: {str(data_dir)!r}")


# To add a data set, write a function like those above and enter it here.
SOURCES = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "toy2d": toy2d,
    "image_folder": image_folder,
}
