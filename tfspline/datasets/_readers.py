"""Where datasets come from: each reader gives class names, and (images, labels) for training and for testing.

Images are uint8 `[n, height, width, channels]` or `[n, height, width]`, or files of such; points float32
`[n, features]`; labels are integers.
"""

import gzip
import os
import pickle
import zlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tfspline.datasets.image_files import ImageFiles, check_decodes, check_headers, shape_in_header

# Where Debian's package dataset-fashion-mnist puts its files.
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
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

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images; more of them stay files
_DECODED_AT_ONCE = 64
_COLOR_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}  # Keras' names, by channels


def digits(data_dir: Path | None):
    """scikit-learn's 1,797 digits of 8x8; the same fifth of each class is always the test set."""
    if data_dir is not None:
        raise ValueError(f"Expected no data_dir for 'digits'. Received: {str(data_dir)!r}")
    source = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=source.target)
    train, test = ((images[part], source.target[part]) for part in parts)
    return [str(name) for name in source.target_names], train, test


def toy2d(data_dir: Path | None):
    """1,000 points of [-5, 5]^2, half of them in an X of two strokes along the diagonals; and as many for testing."""
    if data_dir is not None:
        raise ValueError(f"Expected no data_dir for 'toy2d'. Received: {str(data_dir)!r}")
    points = np.random.default_rng(0).uniform(-5, 5, (2000, 2)).astype(np.float32)
    # In [0, 5]^2, what is not in the stroke is two triangles with legs of 5 - width: half of the square.
    width = 5 - 5 / np.sqrt(2)
    inside = np.abs(np.abs(points[:, 0]) - np.abs(points[:, 1])) < width
    return ["around", "X"], (points[:1000], inside[:1000]), (points[1000:], inside[1000:])


def fashion_mnist(data_dir: Path | None):
    """Fashion-MNIST from its four idx files, or by a download."""
    if data_dir is None and _DEBIAN_FASHION_MNIST.is_dir():
        data_dir = _DEBIAN_FASHION_MNIST
    if data_dir is None:
        return _FASHION_MNIST_CLASSES, *keras.datasets.fashion_mnist.load_data()
    train, test = (
        [_read_idx(data_dir / f"{part}-{content}-ubyte.gz") for content in ("images-idx3", "labels-idx1")]
        for part in ("train", "t10k")
    )
    return _FASHION_MNIST_CLASSES, train, test


def _read_idx(path: Path) -> np.ndarray:
    # Two zero bytes, 8 for uint8, the number of dimensions, each dimension as a big-endian uint32, the data.
    try:
        with gzip.open(_existing(path)) as file:
            content = file.read(MEMORY_LIMIT + 1)
        if len(content) > MEMORY_LIMIT:
            raise ValueError(f"more than {MEMORY_LIMIT:,} bytes in it")
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"it starts with {content[:3]!r}")
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)
    except (gzip.BadGzipFile, zlib.error, EOFError, LookupError, ValueError) as error:
        raise ValueError(f"Expected an idx file of uint8, gzipped. Received: {str(path)!r} ({error})") from error


def cifar10(data_dir: Path | None):
    """CIFAR-10 from its python batches, or by a download."""
    if data_dir is None:
        return _CIFAR10_CLASSES, *keras.datasets.cifar10.load_data()
    *batches, test = (
        _read_cifar(data_dir / name, "labels", len(_CIFAR10_CLASSES))
        for name in (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch")
    )
    train = [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
    return _CIFAR10_CLASSES, train, test


def cifar100(data_dir: Path | None):
    """CIFAR-100, its fine classes, from its python batches, or by a download."""
    if data_dir is None:
        return _CIFAR100_CLASSES, *keras.datasets.cifar100.load_data()
    train, test = (_read_cifar(data_dir / part, "fine_labels", len(_CIFAR100_CLASSES)) for part in ("train", "test"))
    return _CIFAR100_CLASSES, train, test


def _read_cifar(path: Path, labels_key: str, classes: int):
    with _existing(path).open("rb") as file:
        try:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
            # Python 2 has written the files that are distributed; what Python 3 writes anew has keys of str.
            batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
            # A row holds the red, the green and the blue plane of one image, 32 rows of 32 pixels each.
            images = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = np.array(batch[labels_key])
            known = images.dtype == np.uint8 and labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
            if not known or labels.min() < 0 or labels.max() >= classes:
                raise ValueError(f"it holds no bytes of images with labels in [0, {classes})")
        except Exception as error:  # a damaged pickle fails in a dozen ways
            raise ValueError(f"Expected a python batch of CIFAR. Received: {str(path)!r} ({error})") from error
    return images, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers; anything else could run code of the file's author."""

    # numpy has no public name for the function that its pickles call; its module was renamed in numpy 2.
    _reconstruct = np.empty(0).__reduce__()[0]
    _admitted = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module, name):
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of an array")
        return self._admitted[module, name]


def image_folder(data_dir: Path | None, image_size: tuple[int, int] | None = None):
    """Image files in train/<class>/ and test/<class>/, of `image_size` and channels or those of the first one."""
    if data_dir is None:
        raise ValueError("Expected data_dir, a folder with train/ and test/, for 'image_folder'. Received: None")
    folders = [_existing(data_dir / part) for part in ("train", "test")]
    class_names, *listed = _list_images(*folders)
    train_paths, train_labels = listed[0]
    *first_size, channels = shape_in_header(train_paths[0])
    height, width = image_size or first_size
    check_headers(np.concatenate([paths for paths, _ in listed]), channels)
    if sum(len(paths) for paths, _ in listed) * height * width * channels <= MEMORY_LIMIT:
        options = {"image_size": (height, width), "color_mode": _COLOR_MODES[channels]}
        sources = (_find_images(folder, **options) for folder in folders)
        return class_names, *(_decode(source, (height, width, channels)) for source in sources)
    # Not class by class, so that the first images are as good a sample as any.
    order = np.random.default_rng(0).permutation(len(train_paths))
    listed[0] = train_paths[order], train_labels[order]
    return class_names, *((ImageFiles(paths, (height, width, channels)), labels) for paths, labels in listed)


def _list_images(*folders: Path):
    """Class names, and for each folder (paths, labels) of its images, class by class."""
    sources = [_find_images(folder) for folder in folders]
    class_names, test_class_names = (source.class_names for source in sources)
    if class_names != test_class_names:
        unshared = sorted(set(class_names) ^ set(test_class_names))
        raise ValueError(f"Expected the same classes in train/ and test/. Received: only one of them has {unshared}")
    if len(class_names) < 2:
        raise ValueError(f"Expected folders of at least two classes in {folders[0]}. Received: {class_names}")
    listed = []
    for folder, source in zip(folders, sources, strict=True):
        classes = [path.removeprefix(f"{folder}{os.sep}").split(os.sep)[0] for path in source.file_paths]
        if empty := sorted(set(class_names) - set(classes)):
            raise ValueError(f"Expected images of every class in {folder}. Received: none in {empty}")
        listed.append((np.array(source.file_paths, object), np.searchsorted(class_names, classes)))
    return class_names, *listed


def _find_images(folder: Path, **options):
    # Keras would draw an unused seed from numpy's global generator.
    return keras.utils.image_dataset_from_directory(
        folder, shuffle=False, seed=0, verbose=False, batch_size=_DECODED_AT_ONCE, **options
    )


def _decode(source, shape: tuple[int, int, int]):
    images = np.empty((len(source.file_paths), *shape), np.uint8)
    labels = np.empty(len(images), np.int32)
    done = 0
    try:
        for some_images, some_labels in source.as_numpy_iterator():
            here = slice(done, done + len(some_labels))
            images[here] = np.rint(some_images)
            labels[here] = some_labels
            done = here.stop
    except tf.errors.InvalidArgumentError:
        # TensorFlow does not say which file it was.
        for path in source.file_paths[done : done + _DECODED_AT_ONCE]:
            check_decodes(path, shape[-1])
        raise
    return images, labels


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"Expected {path.name!r} in data_dir. Received: {str(path.parent)!r} without it")
    return path
