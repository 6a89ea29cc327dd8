"""`load`: its arguments, which hold for every data set."""

import numpy as np
import pytest

from tfspline import datasets as data
from tfspline.datasets import image_files, loading


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


def test_train_images_keeps_the_same_share_of_each_class():
    digits = data.load("digits", validation_split=0.1, seed=1, train_images=200)
    assert len(digits.train) == 200 and len(digits.validation) == 144
    whole, part = (np.bincount(split.labels) for split in (data.load("digits").train, digits.train))
    assert np.abs(part - 200 * whole / whole.sum()).max() < 1
    assert not {image.tobytes() for image in digits.train.images} & {i.tobytes() for i in digits.validation.images}


def test_pixels_of_resized_images_are_means_over_areas(monkeypatch):
    monkeypatch.setattr(loading, "_RESIZED_AT_ONCE", 1000)
    whole, halved = data.load("digits"), data.load("digits", image_size=(4, 2), validation_split=0.1)
    assert halved.input_shape == (4, 2, 1) and halved.validation.images.shape[1:] == (4, 2, 1)
    means = whole.test.images.reshape(-1, 4, 2, 2, 4).mean(axis=(2, 4))
    np.testing.assert_array_equal(halved.test.images[..., 0], np.rint(means))
    np.testing.assert_array_equal(halved.test.labels, whole.test.labels)
    doubled = data.load("digits", image_size=[16, 16]).train.images
    np.testing.assert_array_equal(doubled, whole.train.images.repeat(2, axis=1).repeat(2, axis=2))
    assert doubled.dtype == np.uint8


def test_image_size_too_large_for_memory_raises(monkeypatch):
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 1437 * 12 * 8 - 1)
    with pytest.raises(
        ValueError,
        match=r"137,952 bytes at image_size=\(12, 8\), more than the limit of 137,951. Use a smaller image_size",
    ):
        data.load("digits", image_size=(12, 8))
    assert data.load("digits", image_size=(8, 8)).train.images.shape[1:3] == (8, 8)


def test_image_size_for_points_raises():
    with pytest.raises(ValueError, match=r"image_size .*'toy2d' holds points. Received: \(4, 4\)"):
        data.load("toy2d", image_size=(4, 4))


def test_unknown_name_raises_and_lists_known_names():
    with pytest.raises(ValueError, match="'digits', 'fashion_mnist', 'cifar10', .*'image_folder'.. Received: 'mnist'"):
        data.load("mnist")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_bad_validation_split_raises(share):
    with pytest.raises(ValueError, match=r"validation_split in \[0, 1\). Received: "):
        data.load("digits", validation_split=share)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_bad_seed_raises(seed):
    with pytest.raises(ValueError, match=f"Received: {seed}"):
        data.load("digits", seed=seed)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "image_folder"])
def test_bad_data_dir_raises(name, tmp_path):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "empty").mkdir()
    for data_dir in (tmp_path / "nowhere", str(tmp_path / "nowhere"), file):
        with pytest.raises(FileNotFoundError, match=f"data_dir '{data_dir}' is not an existing folder"):
            data.load(name, data_dir=data_dir)
    with pytest.raises(FileNotFoundError, match="data_dir .* is empty"):
        data.load(name, data_dir=tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=f"data_dir '{tmp_path}' has no"):
        data.load(name, data_dir=tmp_path)


@pytest.mark.parametrize("count", [9, 1433])
def test_train_images_out_of_range_raises(count):
    with pytest.raises(ValueError, match=f"train_images from 10 to 1427, .* Received: {count}"):
        data.load("digits", train_images=count)


def test_data_dir_for_digits_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="'digits' takes no data_dir"):
        data.load("digits", data_dir=tmp_path)
