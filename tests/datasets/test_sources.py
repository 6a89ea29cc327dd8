"""The data sets toy2d, digits, fashion_mnist, cifar10 and cifar100."""

import gzip
import pathlib
import pickle
import re
import struct
import tarfile

import keras as keras3
import numpy as np
import pytest
from helpers.command import start

from tfspline import datasets as data
from tfspline.datasets import image_files, sources

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_toy2d_labels_match_hand_computed_distances():
    toy = data.load("toy2d")
    assert (toy.input_shape, toy.class_names, len(toy.train), len(toy.test)) == ((2,), ("around", "X"), 1000, 1000)
    points = toy.train.images
    assert points.dtype == np.float32 and np.abs(points).max() <= 5 and np.abs(points).max(axis=0).min() > 4.9
    across = np.abs(points[:, 0] - points[:, 1]) / np.sqrt(2)  # distances from the diagonals
    along = np.abs(points[:, 0] + points[:, 1]) / np.sqrt(2)
    np.testing.assert_array_equal(toy.train.labels, np.minimum(across, along) < (5 - 5 / np.sqrt(2)) / np.sqrt(2))
    assert 0.45 < toy.train.labels.mean() < 0.55
    assert not np.array_equal(points, toy.test.images)


def test_digits_shapes_and_shares():
    digits = data.load("digits")
    assert digits.input_shape == (8, 8, 1)
    assert digits.classes == 10
    assert digits.class_names == tuple("0123456789")
    assert (len(digits.train), len(digits.test), digits.validation) == (1437, 360, None)
    assert digits.train.images.max() == 255
    shares = np.bincount(digits.test.labels) / np.bincount(np.r_[digits.train.labels, digits.test.labels])
    np.testing.assert_allclose(shares, 0.2, atol=0.005)


def test_digits_test_images_do_not_depend_on_the_seed():
    some, others = data.load("digits", seed=1), data.load("digits", seed=2)
    np.testing.assert_array_equal(some.test.images, others.test.images)


def test_data_dir_for_toy2d_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="'toy2d' takes no data_dir"):
        data.load("toy2d", data_dir=tmp_path)


def write_idx(path, array, type_code=8):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, type_code, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def idx_dir(tmp_path, rng):
    for part, n in (("train", 6), ("t10k", 4)):
        images = rng.integers(0, 256, (n, 3, 5)).astype(np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8))
        np.save(tmp_path / f"{part}.npy", images)
    return tmp_path


def test_fashion_mnist_from_idx_files(idx_dir):
    fashion = data.load("fashion_mnist", data_dir=idx_dir)
    np.testing.assert_array_equal(fashion.train.images[..., 0], np.load(idx_dir / "train.npy"))
    np.testing.assert_array_equal(fashion.test.images[..., 0], np.load(idx_dir / "t10k.npy"))
    np.testing.assert_array_equal(fashion.train.labels, range(6))
    assert fashion.input_shape == (3, 5, 1)
    assert fashion.class_names[9] == "Ankle boot"


def test_fashion_mnist_prefers_the_debian_package_to_a_download(idx_dir, monkeypatch):
    monkeypatch.setattr(sources, "_DEBIAN_FASHION_MNIST", idx_dir)
    assert len(data.load("fashion_mnist").train) == 6


def test_fashion_mnist_is_downloaded_without_the_debian_package(tmp_path, monkeypatch):
    arrays = np.zeros((4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8)
    monkeypatch.setattr(sources, "_DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    monkeypatch.setattr(keras3.datasets.fashion_mnist, "load_data", lambda: (arrays, arrays))
    assert data.load("fashion_mnist").train.images.shape == (4, 28, 28, 1)


@pytest.mark.parametrize("damage", ["not gzip", "cut gzip", "cut data", "other type", "empty"])
def test_damaged_idx_file_raises(idx_dir, damage):
    path = idx_dir / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    damaged = {
        "not gzip": b"\0\0\x08\1\0\0\0\1\0",
        "cut gzip": whole[:-12],
        "cut data": gzip.compress(gzip.decompress(whole)[:-1]),
        "other type": gzip.compress(b"\0\0\x0d" + gzip.decompress(whole)[3:]),
        "empty": gzip.compress(b""),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=f"'{path}' is not a gzipped idx file"):
        data.load("fashion_mnist", data_dir=idx_dir)


def test_idx_file_too_large_for_memory_raises(idx_dir, monkeypatch):
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 99)
    path = idx_dir / "train-images-idx3-ubyte.gz"
    with pytest.raises(ValueError, match=rf"'{path}' .* more than 99 bytes"):
        data.load("fashion_mnist", data_dir=idx_dir)


def test_fewer_labels_than_images_raise(idx_dir):
    write_idx(idx_dir / "train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match="a label for each"):
        data.load("fashion_mnist", data_dir=idx_dir)


def write_cifar(path, images, key, labels, numpy_1=False):
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    data_key = "data" if isinstance(key, str) else b"data"
    pickled = pickle.dumps({data_key: rows, key: labels, b"batch_label": b"a batch"}, protocol=3)
    if numpy_1:
        pickled = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert b"numpy.core.multiarray" in pickled
    path.write_bytes(pickled)


@pytest.mark.parametrize("numpy_1", [True, False])
@pytest.mark.parametrize("key", [b"labels", "labels"])
def test_cifar10_from_python_batches(tmp_path, rng, numpy_1, key):
    images = rng.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    names = [f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]
    for index, name in enumerate(names):
        here = slice(2 * index, 2 * index + 2)
        write_cifar(tmp_path / name, images[here], key, [index, index + 1], numpy_1)
    cifar = data.load("cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(cifar.train.images, images[:10])
    np.testing.assert_array_equal(cifar.train.labels, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5])
    np.testing.assert_array_equal(cifar.test.images, images[10:])
    assert cifar.class_names[5] == "dog"


def test_cifar100_from_python_batches(tmp_path, rng):
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    write_cifar(tmp_path / "train", images, b"fine_labels", [99, 0])
    write_cifar(tmp_path / "test", images[1:], b"fine_labels", [42])
    cifar = data.load("cifar100", data_dir=tmp_path)
    np.testing.assert_array_equal(cifar.train.images, images)
    assert [cifar.class_names[label] for label in cifar.train.labels] == ["worm", "apple"]
    assert cifar.classes == 100


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_downloaded_without_a_data_dir(name, monkeypatch):
    arrays = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4, dtype=np.uint8).reshape(4, 1)
    monkeypatch.setattr(getattr(keras3.datasets, name), "load_data", lambda: (arrays, arrays))
    np.testing.assert_array_equal(data.load(name).train.labels, range(4))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The cache of Keras, empty, on a machine without a connection and without the Debian package."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(sources, "_DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    return tmp_path / "datasets"


def advice(name):
    """Where the error of a failed download says that a copy of the files can be put."""
    with pytest.raises(OSError, match=f"'{name}' could not be downloaded: .*data_dir.*digits, toy2d") as raised:
        data.load(name)
    return re.search(r"https://\S+\w", str(raised.value))[0], pathlib.Path(re.search("'(/.*?)'", str(raised.value))[1])


def test_advice_of_a_failed_download_of_cifar100_works(offline, tmp_path, rng, monkeypatch):
    _, place = advice("cifar100")
    place.write_bytes(b"a part of the archive")
    assert advice("cifar100")[1] == place and place.parent == offline
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    (tmp_path / "cifar-100-python").mkdir()
    for part in ("train", "test"):
        write_cifar(tmp_path / "cifar-100-python" / part, images, b"fine_labels", [99, 0])
    np.testing.assert_array_equal(data.load("cifar100", tmp_path / "cifar-100-python").train.images, images)
    monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda *args, **kwargs: True)  # another hash
    with tarfile.open(place, "w:gz") as archive:
        archive.add(tmp_path / "cifar-100-python", "cifar-100-python")
    np.testing.assert_array_equal(data.load("cifar100").train.images, images)


def test_advice_of_a_failed_download_of_fashion_mnist_works(offline, rng):
    _, place = advice("fashion_mnist")
    for part, n in (("train", 6), ("t10k", 4)):
        write_idx(place / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28)).astype(np.uint8))
        write_idx(place / f"{part}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8))
    assert len(data.load("fashion_mnist", place).train) == len(data.load("fashion_mnist").train) == 6
    images = place / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-12])  # as a killed download leaves it
    with pytest.raises(OSError, match=f"delete '{place}' and try again"):
        data.load("fashion_mnist")


def test_headline_command_says_what_to_do_without_a_connection(offline, tmp_path):
    url, place = advice("cifar10")
    assert url.endswith("cifar-10-python.tar.gz") and place.name == "cifar-10-batches-py-target_archive"
    with pytest.raises(SystemExit, match="'cifar10' could not be downloaded: .*data_dir"):
        start(f"--flagfile={CONFIGS / 'resnet56.cfg'}", f"--run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


def test_malicious_pickle_raises_and_is_not_run(tmp_path):
    target = tmp_path / "executed"
    content = pickle.dumps({b"data": Malicious(target), b"fine_labels": [0]})
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(ValueError, match="not a Python batch of CIFAR.*builtins.exec"):
        data.load("cifar100", data_dir=tmp_path)
    assert not target.exists()
    pickle.loads(content)
    assert target.exists(), "the pickle of this test is harmless"


def batch(data=None, labels=(0,)):
    data = np.zeros((1, 3072), np.uint8) if data is None else data
    return pickle.dumps({b"data": data, b"fine_labels": labels}, protocol=3)


# The first pickle is an array as large as the address space; others have code that find_class does not see, or a huge
# frame.
HUGE = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L72057594037927936L\ntS'b'\ntR."


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no pickle", pickle.dumps([1]), pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}, protocol=3)),
        *(batch(np.zeros((1, 10), np.uint8)), batch(np.zeros((1, 3072))), batch(np.zeros((0, 3072), np.uint8), [])),
        *(batch(labels=[0, 1]), batch(labels=[100]), batch(labels=[-1]), batch(labels=[2**40]), batch(labels=[0.5])),
        *(batch(labels=["0"]), batch(labels=[None]), batch(labels=[[0], [1, 2]]), batch()[:-9]),
        *(HUGE, b"P0\n.", b"\x82\x01.", b"\x80\x04\x95" + b"\xff" * 8, b"c__builtin__\neval\n."),
    ],
    ids=lambda content: repr(content[-20:]),
)
def test_damaged_cifar_batch_raises(tmp_path, content):
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(ValueError, match=f"'{tmp_path / 'train'}' is not a Python batch of CIFAR"):
        data.load("cifar100", data_dir=tmp_path)
