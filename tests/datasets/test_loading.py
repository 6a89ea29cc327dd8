import dataclasses
import gzip
import pickle
import re
import struct

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf

from tfspline import datasets as data
from tfspline.datasets import _readers, augment


@pytest.fixture
def small(rng):
    """23 training images of 8x8x3, each recognisable by its first pixel, which is its label."""
    images = rng.integers(0, 256, (23, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(23, dtype=np.int32)
    images[:, 0, 0, 0] = labels
    train = data.Split(images, labels)
    test = data.Split(images[:5], labels[:5])
    return data.Dataset("small", tuple(map(str, labels)), train, None, test, seed=3)


def take(batches, n):
    return [(x.numpy(), y.numpy()) for x, y in batches.take(n)]


def pixels(dataset, x):
    return np.rint(x * dataset.std + dataset.mean).astype(int)


def assert_same(some, others):
    assert len(some) == len(others)
    for (x, y), (other_x, other_y) in zip(some, others, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


# ---- the batches


def test_moments_worked_by_hand(small):
    images = np.array([0, 10, 20, 30], np.uint8).reshape(2, 1, 2, 1)
    split = data.Split(np.concatenate([images, np.full_like(images, 7)], axis=-1), np.zeros(2, np.int32))
    dataset = dataclasses.replace(small, train=split)
    np.testing.assert_allclose(dataset.mean, [15, 7])
    np.testing.assert_allclose(dataset.std, [np.sqrt(125), 1], rtol=1e-6)
    np.testing.assert_allclose(dataset.normalize(split.images)[1, 0, 1], [15 / np.sqrt(125), 0], rtol=1e-6)


def test_moments_are_those_of_the_training_images_over_several_chunks(small, rng):
    images = rng.integers(0, 256, (9, 512, 512, 1)).astype(np.uint8)
    dataset = dataclasses.replace(small, train=data.Split(images, np.zeros(9, np.int32)))
    np.testing.assert_allclose(dataset.mean, [images.mean()], rtol=1e-6)
    np.testing.assert_allclose(dataset.std, [images.std()], rtol=1e-6)


def test_an_epoch_holds_every_image_at_most_once_and_drops_the_last_batch(small):
    assert small.steps_per_epoch(5) == 4
    epochs = [take(small.train_batches(5, epoch=epoch), 4) for epoch in range(3)]
    orders = [np.concatenate([y for _, y in epoch]) for epoch in epochs]
    for epoch, order in zip(epochs, orders, strict=True):
        assert len(set(order)) == 20
        x = np.concatenate([x for x, _ in epoch])
        np.testing.assert_array_equal(pixels(small, x), small.train.images[order])
    assert len({tuple(order) for order in orders}) == 3


def test_successive_epochs_are_the_epochs_counted_on(small):
    assert_same(take(small.train_batches(5), 8)[4:], take(small.train_batches(5, epoch=1), 4))


@pytest.mark.parametrize("augment", augment.AUGMENTATIONS)
def test_resumed_batches_are_those_of_the_uninterrupted_run(small, augment):
    whole = take(small.train_batches(5, augment=augment), 12)
    assert_same(whole[8:], take(small.train_batches(5, epoch=2, augment=augment), 4))
    assert_same(whole[7:], take(small.train_batches(5, epoch=1, step=3, augment=augment), 5))


@pytest.mark.parametrize("augment", augment.AUGMENTATIONS)
def test_shares_make_the_whole_batch(small, augment):
    whole = take(small.train_batches(6, augment=augment), 4)
    shares = [take(small.train_batches(6, augment=augment, share=(number, 3)), 4) for number in range(3)]
    assert shares[0][0][0].shape == (2, 8, 8, 3)
    joined = [[np.concatenate(parts) for parts in zip(*batch, strict=True)] for batch in zip(*shares, strict=True)]
    assert_same(whole, joined)


def test_epochs_cut_short_hold_other_images_each(small):
    steps = small.steps_per_epoch(4, 2)
    assert steps == 2
    batches = [labels.numpy() for _, labels in small.train_batches(4, steps=steps).take(4)]
    whole = [labels.numpy() for _, labels in small.train_batches(4, epoch=1).take(2)]
    np.testing.assert_array_equal(batches[2:], whole)
    with pytest.raises(ValueError, match="Expected from 1 to .* steps, all batches of an epoch. Received: 1000"):
        small.train_batches(4, steps=1000)


def test_order_and_augmentation_depend_on_the_seed(small):
    other = dataclasses.replace(small, seed=4)
    (x, y), (other_x, other_y) = (next(iter(d.train_batches(23, augment="crop"))) for d in (small, other))
    assert not np.array_equal(y, other_y)
    assert not np.array_equal(x.numpy()[np.argsort(y)], other_x.numpy()[np.argsort(other_y)])


def test_augmentation_differs_between_the_epochs_and_between_the_batches(small):
    same = dataclasses.replace(
        small, train=data.Split(np.repeat(small.train.images[:1], 16, axis=0), np.zeros(16, np.int32))
    )
    first, second, next_epoch = (x for x, _ in take(same.train_batches(8, augment="crop"), 3))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, next_epoch)


def test_fit_resumed_at_an_epoch_ends_with_the_weights_of_an_uninterrupted_fit(keras, small):
    def model():
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(23)]
        model = keras.Sequential(layers)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss)
        return model

    def fit(model, batches, **epochs):
        history = model.fit(batches, steps_per_epoch=small.steps_per_epoch(5), shuffle=False, verbose=0, **epochs)
        return len(history.epoch)

    whole, resumed, wrong = model(), model(), model()
    assert fit(whole, small.train_batches(5, augment="crop_flip"), epochs=3) == 3
    for parts, epoch in ((resumed, 1), (wrong, 0)):
        assert fit(parts, small.train_batches(5, augment="crop_flip"), epochs=1) == 1
        batches = small.train_batches(5, epoch=epoch, augment="crop_flip")
        assert fit(parts, batches, epochs=3, initial_epoch=1) == 2
    np.testing.assert_allclose(whole.get_weights()[0], resumed.get_weights()[0], atol=1e-6)
    assert np.abs(whole.get_weights()[0] - wrong.get_weights()[0]).max() > 1e-3


def test_training_batches_say_that_they_have_no_end(small):
    assert small.train_batches(5).cardinality() == tf.data.INFINITE_CARDINALITY


def test_crop_shifts_by_up_to_an_eighth_and_fills_with_black(small):
    image = np.arange(1, 16 * 24 + 1).reshape(1, 16, 24, 1).clip(0, 255).astype(np.uint8)
    padded = np.pad(image[0], [(2, 2), (3, 3), (0, 0)])
    windows = {padded[i : i + 16, j : j + 24].tobytes() for i in range(5) for j in range(7)}
    crops = augment.crop(
        tf.constant(np.repeat(image, 1000, axis=0)), tf.constant([1, 2], tf.int64), 1000, slice(None)
    ).numpy()
    assert {crop.tobytes() for crop in crops} == windows


def test_flip_mirrors_half_of_the_images(rng):
    images = rng.integers(0, 256, (400, 4, 6, 3)).astype(np.uint8)
    result = augment.flip(tf.constant(images), tf.constant([1, 2], tf.int64), len(images), slice(None)).numpy()
    mirrored = np.array([np.array_equal(new, old[:, ::-1]) for new, old in zip(result, images, strict=True)])
    kept = np.array([np.array_equal(new, old) for new, old in zip(result, images, strict=True)])
    assert np.all(mirrored ^ kept)
    assert 150 < mirrored.sum() < 250


def test_evaluation_batches_hold_all_images_in_their_order(small):
    batches = take(small.evaluation_batches(10, split="train"), -1)
    assert [len(y) for _, y in batches] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), small.train.labels)
    x = np.concatenate([x for x, _ in batches])
    assert x.dtype == np.float32
    np.testing.assert_array_equal(pixels(small, x), small.train.images)
    assert [len(y) for _, y in take(small.evaluation_batches(10), -1)] == [5]


@pytest.mark.parametrize(("batch_size", "expected"), [(0, "at least 1"), (-1, "at least 1"), (24, "from 1 to 23")])
def test_bad_training_batch_size_is_refused(small, batch_size, expected):
    with pytest.raises(ValueError, match=f"{expected}. Received: {batch_size}"):
        small.train_batches(batch_size)


def test_bad_evaluation_batch_size_is_refused(small):
    with pytest.raises(ValueError, match="at least 1. Received: 0"):
        small.evaluation_batches(0)


def test_negative_epoch_is_refused(small):
    with pytest.raises(ValueError, match="`epoch` to be an integer of at least 0. Received: -1"):
        small.train_batches(5, epoch=-1)


@pytest.mark.parametrize(("step", "expected"), [(-1, "at least 0"), (4, "from 0 to 3")])
def test_step_outside_of_the_epoch_is_refused(small, step, expected):
    with pytest.raises(ValueError, match=f"{expected}. Received: {step}"):
        small.train_batches(5, step=step)


@pytest.mark.parametrize("share", [(0, 2), (5, 5), (-1, 5)])
def test_shares_that_are_not_there_are_refused(small, share):
    with pytest.raises(ValueError, match=re.escape(f"equal parts of 5 images. Received: {share}")):
        small.train_batches(5, share=share)


def test_unknown_augmentation_is_refused(small):
    with pytest.raises(ValueError, match="'none', 'crop', 'crop_flip', 'random_resized_crop'.. Received: 'mixup'"):
        small.train_batches(5, augment="mixup")


@pytest.mark.parametrize("split", ["validation", "probe"])
def test_split_that_is_not_there_is_refused(small, split):
    with pytest.raises(ValueError, match=rf"`split` among \('train', 'test'\). Received: '{split}'"):
        small.evaluation_batches(5, split=split)


@pytest.mark.parametrize(
    "images, labels",
    [
        (np.zeros((2, 4, 4, 1), np.float32), np.zeros(2, np.int32)),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, np.int32)),
        (np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, np.int32)),
    ],
)
def test_split_of_other_arrays_is_refused(images, labels):
    with pytest.raises(ValueError, match="Expected uint8 images .* Received: "):
        data.Split(images, labels)


@pytest.mark.parametrize("label", [-1, 23])
def test_labels_without_a_class_are_refused(small, label):
    test = data.Split(small.test.images, np.full(5, label, np.int32))
    with pytest.raises(ValueError, match=rf"labels in \[0, 23\) for 'small'. Received: labels from {label}"):
        dataclasses.replace(small, test=test)


# ---- toy2d


def test_toy2d_by_hand():
    toy = data.load("toy2d")
    assert (toy.input_shape, toy.class_names, len(toy.train), len(toy.test)) == ((2,), ("around", "X"), 1000, 1000)
    points = toy.train.images
    assert points.dtype == np.float32 and np.abs(points).max() <= 5 and np.abs(points).max(axis=0).min() > 4.9
    across = np.abs(points[:, 0] - points[:, 1]) / np.sqrt(2)  # distances from the diagonals
    along = np.abs(points[:, 0] + points[:, 1]) / np.sqrt(2)
    np.testing.assert_array_equal(toy.train.labels, np.minimum(across, along) < (5 - 5 / np.sqrt(2)) / np.sqrt(2))
    assert 0.45 < toy.train.labels.mean() < 0.55
    assert not np.array_equal(points, toy.test.images)


def test_points_are_fed_as_they_are():
    toy = data.load("toy2d", validation_split=0.1, seed=3)
    x, y = next(iter(toy.train_batches(32)))
    where = {tuple(point): label for point, label in zip(toy.train.images.tolist(), toy.train.labels, strict=True)}
    assert [where[tuple(point)] for point in x.numpy().tolist()] == y.numpy().tolist()
    x, _ = next(iter(toy.evaluation_batches(1000)))
    np.testing.assert_array_equal(x, toy.test.images)


def test_points_are_not_augmented():
    with pytest.raises(ValueError, match=r"`augment` among \('none',\). Received: 'crop'"):
        data.load("toy2d").train_batches(32, augment="crop")


def test_data_dir_is_refused_by_toy2d(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Expected no data_dir for 'toy2d'"):
        data.load("toy2d", data_dir=tmp_path)


# ---- digits, and what all datasets share


def test_digits():
    digits = data.load("digits")
    assert digits.input_shape == (8, 8, 1)
    assert digits.classes == 10
    assert digits.class_names == tuple("0123456789")
    assert (len(digits.train), len(digits.test), digits.validation) == (1437, 360, None)
    assert digits.train.images.max() == 255
    shares = np.bincount(digits.test.labels) / np.bincount(np.r_[digits.train.labels, digits.test.labels])
    np.testing.assert_allclose(shares, 0.2, atol=0.005)


def test_test_images_of_digits_do_not_depend_on_the_seed():
    some, others = data.load("digits", seed=1), data.load("digits", seed=2)
    np.testing.assert_array_equal(some.test.images, others.test.images)


def test_validation_is_a_seeded_stratified_share_of_train():
    whole = data.load("digits")
    first, again, other = (data.load("digits", validation_split=0.25, seed=seed) for seed in (1, 1, 2))
    assert (len(first.train), len(first.validation)) == (1077, 360)
    np.testing.assert_array_equal(first.validation.images, again.validation.images)
    assert not np.array_equal(first.validation.images, other.validation.images)
    shares = np.bincount(first.validation.labels) / np.bincount(whole.train.labels)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)
    together = np.concatenate([first.train.images, first.validation.images]).reshape(1437, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, whole.train.images.reshape(1437, -1)))
    np.testing.assert_array_equal(first.test.images, whole.test.images)


def test_unknown_dataset_is_refused_with_those_known():
    with pytest.raises(ValueError, match="'digits', 'fashion_mnist', 'cifar10', .*'image_folder'.. Received: 'mnist'"):
        data.load("mnist")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_bad_validation_split_is_refused(share):
    with pytest.raises(ValueError, match=r"validation_split in \[0, 1\). Received: "):
        data.load("digits", validation_split=share)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match=f"Received: {seed}"):
        data.load("digits", seed=seed)


def test_data_dir_is_refused_by_digits(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Expected no data_dir for 'digits'"):
        data.load("digits", data_dir=tmp_path)


def test_image_size_is_refused_for_points():
    with pytest.raises(ValueError, match=r"for images only. Received: \(4, 4\) for 'toy2d'"):
        data.load("toy2d", image_size=(4, 4))


def test_resized_image_is_of_means(monkeypatch):
    monkeypatch.setattr(data, "_RESIZED_AT_ONCE", 1000)
    whole, halved = data.load("digits"), data.load("digits", image_size=(4, 2), validation_split=0.1)
    assert halved.input_shape == (4, 2, 1) and halved.validation.images.shape[1:] == (4, 2, 1)
    means = whole.test.images.reshape(-1, 4, 2, 2, 4).mean(axis=(2, 4))
    np.testing.assert_array_equal(halved.test.images[..., 0], np.rint(means))
    np.testing.assert_array_equal(halved.test.labels, whole.test.labels)
    doubled = data.load("digits", image_size=[16, 16]).train.images
    np.testing.assert_array_equal(doubled, whole.train.images.repeat(2, axis=1).repeat(2, axis=2))
    assert doubled.dtype == np.uint8


def test_resized_images_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", 1437 * 12 * 8 - 1)
    with pytest.raises(ValueError, match="at most 137,951 bytes once resized. Received: 137,952 bytes; give"):
        data.load("digits", image_size=(12, 8))


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "image_folder"])
def test_bad_data_dir_is_refused(name, tmp_path):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "empty").mkdir()
    for data_dir in (tmp_path / "nowhere", str(tmp_path / "nowhere"), file):
        with pytest.raises(FileNotFoundError, match=f"a folder that is there. Received: '.*{data_dir}'"):
            data.load(name, data_dir=data_dir)
    with pytest.raises(FileNotFoundError, match="Expected files in data_dir. .* which is empty"):
        data.load(name, data_dir=tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=f"Expected '.*' in data_dir. Received: '{tmp_path}' without"):
        data.load(name, data_dir=tmp_path)


# ---- fashion_mnist


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


def test_fashion_mnist_takes_the_debian_package_before_a_download(idx_dir, monkeypatch):
    monkeypatch.setattr(_readers, "_DEBIAN_FASHION_MNIST", idx_dir)
    assert len(data.load("fashion_mnist").train) == 6


def test_fashion_mnist_is_downloaded_otherwise(tmp_path, monkeypatch):
    arrays = np.zeros((4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8)
    monkeypatch.setattr(_readers, "_DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    monkeypatch.setattr(keras3.datasets.fashion_mnist, "load_data", lambda: (arrays, arrays))
    assert data.load("fashion_mnist").train.images.shape == (4, 28, 28, 1)


@pytest.mark.parametrize("damage", ["not gzip", "cut gzip", "cut data", "other type", "empty"])
def test_damaged_idx_file_is_refused(idx_dir, damage):
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
    with pytest.raises(ValueError, match=f"Expected an idx file of uint8, gzipped. Received: '{path}'"):
        data.load("fashion_mnist", data_dir=idx_dir)


def test_idx_file_that_swells_is_refused(idx_dir, monkeypatch):
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", 99)
    path = idx_dir / "train-images-idx3-ubyte.gz"
    with pytest.raises(ValueError, match=rf"Received: '{path}' \(more than 99 bytes in it\)"):
        data.load("fashion_mnist", data_dir=idx_dir)


def test_images_without_labels_are_refused(idx_dir):
    write_idx(idx_dir / "train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match="a label for each"):
        data.load("fashion_mnist", data_dir=idx_dir)


# ---- cifar10, cifar100


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


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


def test_malicious_pickle_is_refused_and_not_run(tmp_path):
    target = tmp_path / "executed"
    content = pickle.dumps({b"data": Malicious(target), b"fine_labels": [0]})
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(ValueError, match="Expected a python batch of CIFAR.*it asks for builtins.exec"):
        data.load("cifar100", data_dir=tmp_path)
    assert not target.exists()
    pickle.loads(content)
    assert target.exists(), "the pickle of this test is harmless"


def batch(data=None, labels=(0,)):
    data = np.zeros((1, 3072), np.uint8) if data is None else data
    return pickle.dumps({b"data": data, b"fine_labels": labels}, protocol=3)


# Pickles of an array that is as large as the address space, of other code than find_class sees, of a huge frame.
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
def test_damaged_cifar_batch_is_refused(tmp_path, content):
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(ValueError, match=f"Expected a python batch of CIFAR. Received: '{tmp_path / 'train'}'"):
        data.load("cifar100", data_dir=tmp_path)


def test_train_images_leaves_each_class_its_share_and_validation_whole():
    digits = data.load("digits", validation_split=0.1, seed=1, train_images=200)
    assert len(digits.train) == 200 and len(digits.validation) == 144
    whole, part = (np.bincount(split.labels) for split in (data.load("digits").train, digits.train))
    assert np.abs(part - 200 * whole / whole.sum()).max() < 1
    assert not {image.tobytes() for image in digits.train.images} & {i.tobytes() for i in digits.validation.images}


@pytest.mark.parametrize("count", [9, 1433])
def test_train_images_that_are_not_there_are_refused(count):
    with pytest.raises(ValueError, match=f"Expected train_images from 10, .* to 1437 less as many. Received: {count}"):
        data.load("digits", train_images=count)


def test_sample_is_of_all_classes_where_images_come_class_by_class(image_dir):
    folder = data.load("image_folder", data_dir=image_dir, seed=3)
    images, labels = folder.sample(len(folder.train))
    assert labels.tolist() != sorted(labels) and sorted(labels) == sorted(folder.train.labels)
    whole = folder.normalize(folder.train.images).numpy()
    order = [np.flatnonzero((whole == image).all((1, 2, 3))) for image in images]
    np.testing.assert_array_equal(folder.train.labels[np.concatenate(order)], labels)
    np.testing.assert_array_equal(folder.sample(2)[1], folder.sample(2)[1])
    assert len(folder.sample(10**6)[0]) == len(folder.train)


# ---- image_folder


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    tf.io.write_file(str(path), tf.io.encode_png(array))


@pytest.fixture
def image_dir(tmp_path, rng):
    for part, n in (("train", 3), ("test", 2)):
        for class_name in ("cat", "dog"):
            for index in range(n):
                image = rng.integers(0, 256, (6, 4, 3)).astype(np.uint8)
                write_image(tmp_path / part / class_name / f"{index}.png", image)
                np.save(tmp_path / f"{part}-{class_name}-{index}.npy", image)
    return tmp_path


def test_image_folder_keeps_every_pixel(image_dir):
    folder = data.load("image_folder", data_dir=str(image_dir))
    assert folder.class_names == ("cat", "dog")
    assert folder.input_shape == (6, 4, 3)
    for part, split in (("train", folder.train), ("test", folder.test)):
        n = len(split) // 2
        np.testing.assert_array_equal(split.labels, [0] * n + [1] * n)
        expected = [np.load(image_dir / f"{part}-{c}-{index}.npy") for c in ("cat", "dog") for index in range(n)]
        np.testing.assert_array_equal(split.images, expected)


def test_image_folder_of_grey_images_has_one_channel(tmp_path, rng):
    for part in ("train", "test"):
        for class_name in "ab":
            write_image(tmp_path / part / class_name / "0.png", np.full((4, 4, 1), 9, np.uint8))
    folder = data.load("image_folder", data_dir=tmp_path)
    assert folder.input_shape == (4, 4, 1)
    assert np.all(folder.train.images == 9)


def test_image_folder_resizes(image_dir):
    write_image(image_dir / "train" / "cat" / "1.png", np.full((9, 9, 3), 200, np.uint8))
    assert np.all(data.load("image_folder", data_dir=image_dir).train.images[1] == 200)
    folder = data.load("image_folder", data_dir=image_dir, image_size=(5, 7))
    assert folder.input_shape == (5, 7, 3)
    assert np.all(folder.train.images[1] == 200)


@pytest.mark.parametrize("size", [(4,), (4, 0), (4.0, 4), (4, 4, 3)])
def test_bad_image_size_is_refused(image_dir, size):
    with pytest.raises(ValueError, match=r"image_size=\(height, width\) of positive integers. Received: "):
        data.load("image_folder", data_dir=image_dir, image_size=size)


def test_image_folder_without_a_data_dir_is_refused():
    with pytest.raises(ValueError, match="Expected data_dir, .* for 'image_folder'. Received: None"):
        data.load("image_folder")


@pytest.mark.parametrize("part", ["train", "test"])
def test_image_folder_without_train_or_test_is_refused(image_dir, part):
    (image_dir / part).rename(image_dir / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"Expected '{part}' in data_dir"):
        data.load("image_folder", data_dir=image_dir)


@pytest.mark.parametrize("part", ["train", "test"])
def test_image_folder_without_images_is_refused(image_dir, part):
    for path in (image_dir / part).glob("*/*"):
        path.unlink()
    with pytest.raises(ValueError, match=f"No images found in directory {image_dir / part}"):
        data.load("image_folder", data_dir=image_dir)


def test_classes_that_differ_between_train_and_test_are_refused(image_dir):
    (image_dir / "test" / "dog").rename(image_dir / "test" / "cow")
    with pytest.raises(ValueError, match=r"the same classes .* only one of them has \['cow', 'dog'\]"):
        data.load("image_folder", data_dir=image_dir)


def test_class_without_images_is_refused(image_dir):
    for path in (image_dir / "test" / "dog").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=rf"every class in {image_dir / 'test'}. Received: none in \['dog'\]"):
        data.load("image_folder", data_dir=image_dir)


def test_single_class_is_refused(image_dir):
    for part in ("train", "test"):
        (image_dir / part / "dog").rename(image_dir / f"{part}-dogs")
    with pytest.raises(ValueError, match=r"at least two classes in .*. Received: \['cat'\]"):
        data.load("image_folder", data_dir=image_dir)


@pytest.mark.parametrize("index", [0, 1])
def test_damaged_image_is_named(image_dir, index):
    path = image_dir / "train" / "cat" / f"{index}.png"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"Expected a JPEG, PNG, GIF or BMP image. Received: '{path}'"):
        data.load("image_folder", data_dir=image_dir)
