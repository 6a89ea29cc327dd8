"""`ImageFiles`: which part of an image is decoded, indexing, and files that cannot be decoded."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import assert_same, smooth, take, write

from tfspline import datasets as data
from tfspline.datasets import augment
from tfspline.datasets.image_files import ImageFiles, naming_files

SEED = tf.constant([1, 2], tf.int64)


def files(paths, *image_shape):
    return ImageFiles(np.array(paths, object), image_shape)


@pytest.mark.parametrize(
    ("whole", "size", "rows", "columns"),
    [
        ((256, 256), (224, 224), (16, 240), (16, 240)),
        ((256, 400), (224, 224), (16, 240), (88, 312)),
        ((384, 256), (224, 224), (80, 304), (16, 240)),
        ((256, 256), (112, 224), (72, 184), (16, 240)),
    ],
)
def test_central_224_of_256_pixels_are_decoded(tmp_path, rng, whole, size, rows, columns):
    image = rng.integers(0, 256, (*whole, 3)).astype(np.uint8)
    seen = files([write(tmp_path / "0.png", image)], *size, 3)[0]
    np.testing.assert_array_equal(seen, image[slice(*rows), slice(*columns)])


def test_central_window_is_resized(tmp_path, rng):
    small = smooth(rng, 32, 32)
    image = np.repeat(np.repeat(small, 4, axis=0), 4, axis=1)
    seen = files([write(tmp_path / "0.png", image)], 28, 28, 3)[0]
    np.testing.assert_array_equal(seen, small[2:30, 2:30])


def test_window_of_one_pixel():
    assert augment.window(tf.zeros([1, 9, 3]), tf.constant([0, 4, 1, 1])).shape == (1, 1, 3)


def test_image_of_one_row_is_decoded(tmp_path):
    seen = files([write(tmp_path / "0.png", np.full((1, 9, 3), 7, np.uint8))], 4, 4, 3)[0]
    np.testing.assert_array_equal(seen, np.full((4, 4, 3), 7))


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_random_windows_of_files_equal_those_of_decoded_images(tmp_path, rng, kind):
    path = write(tmp_path / f"0.{kind}", smooth(rng, 60, 80))
    image = tf.io.decode_image(tf.io.read_file(path))
    seeds = tf.random.split(SEED, 20)
    read = files([path], 24, 24, 3).gather(tf.zeros(20, tf.int32), seeds).numpy()
    for seen, seed in zip(read, seeds, strict=True):
        expected = augment.resize(augment.window(image, augment.random_window([60, 80, 3], seed)), (24, 24))
        # The decoder of a JPEG window does not use the colours outside the window.
        np.testing.assert_allclose(seen.astype(int), expected, atol=0 if kind == "png" else 6)


def test_random_windows_have_the_areas_and_ratios_of_inception():
    windows = np.array([augment.random_window([300, 400, 3], seed) for seed in tf.random.split(SEED, 400)])
    top, left, height, width = windows.T
    assert min(top.min(), left.min()) >= 0 and (top + height).max() <= 300 and (left + width).max() <= 400
    areas, ratios = height * width / (300 * 400), width / height
    assert 0.075 < areas.min() < 0.15 and 0.85 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.78 and 1.29 < ratios.max() < 1.35


def test_random_resized_crop_keeps_the_order_of_pixels():
    """Windows of a vertical ramp are ramps over a part of its range, and differ from each other."""
    ramp = np.broadcast_to(np.arange(0, 256, 4, np.uint8)[:, np.newaxis, np.newaxis], (64, 64, 1))
    crops = augment.random_resized_crop(tf.constant(np.stack([ramp] * 50)), SEED, 50, slice(None)).numpy().astype(int)
    assert (
        crops.shape == (50, 64, 64, 1) and (np.diff(crops, axis=1) >= 0).all() and (np.diff(crops, axis=2) == 0).all()
    )
    starts, ends = crops[:, 0, 0, 0], crops[:, -1, 0, 0]
    assert len({*zip(starts, ends, strict=True)}) > 45
    # A window with 8 % of the area has at least a relative height of sqrt(0.08 * 3/4).
    assert np.sqrt(0.08 * 3 / 4) * 252 - 8 < (ends - starts).min() < 120 and (ends - starts).max() > 200


def test_files_are_indexed_like_arrays(tmp_path):
    images = np.arange(5, dtype=np.uint8).repeat(48).reshape(5, 4, 4, 3)
    array = files([write(tmp_path / f"{index}.png", image) for index, image in enumerate(images)], 4, 4, 3)
    assert (array.shape, array.dtype, array.ndim, len(array)) == ((5, 4, 4, 3), np.uint8, 4, 5)
    for key in (-1, np.int64(3), slice(3), [4, 0, 0], images[:, 0, 0, 0] > 2, slice(0, 0)):
        got = array[key]
        np.testing.assert_array_equal(got, images[key])
        assert got.dtype == np.uint8
    np.testing.assert_array_equal(array.part(np.array([3, 1]))[:], images[[3, 1]])
    with pytest.raises(IndexError):
        array[5]


@pytest.mark.parametrize("name", ["crop_flip", "random_resized_crop"])
def test_batches_of_files_equal_those_of_the_same_images_in_memory(tmp_path, rng, monkeypatch, name):
    images = np.stack([smooth(rng, 16, 24) for _ in range(8)])
    paths = [write(tmp_path / f"{index}.png", image) for index, image in enumerate(images)]
    monkeypatch.setattr("tfspline.datasets.image_files._CENTRAL", 1.0)
    datasets = [
        data.Dataset("some", tuple("abcdefgh"), split, None, split, seed=3)
        for split in (data.Split(each, np.arange(8, dtype=np.int32)) for each in (images, files(paths, 16, 24, 3)))
    ]
    memory, stream = (take(dataset.train_batches(3, epoch=1, augment=name), 4) for dataset in datasets)
    assert_same(memory, stream)
    assert_same(*(take(dataset.evaluation_batches(5)) for dataset in datasets))


@pytest.mark.parametrize(
    ("index", "suffix", "damaged"),
    [
        (0, ".png", lambda content: b"no image"),
        (3, ".jpg", lambda content: b""),
        (3, ".png", lambda content: content[: len(content) // 2]),
        (2, ".jpg", lambda content: content[: len(content) // 2]),
    ],
    ids=["text", "empty", "cut png", "cut jpeg"],
)
def test_error_names_a_file_that_is_not_an_image(tmp_path, rng, index, suffix, damaged):
    paths = [tmp_path / f"{name}{suffix}" for name in "abcd"]
    array = files([write(path, smooth(rng, 40, 40)) for path in paths], 8, 8, 3)
    paths[index].write_bytes(damaged(paths[index].read_bytes()))
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"(?s)Cannot decode .*\[{paths[index]}\]"):
        array[:]


def test_errors_of_batches_name_a_file_that_is_not_an_image(tmp_path, rng):
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    array = files([write(path, smooth(rng, 8, 8)) for path in paths], 8, 8, 3)
    paths[2].write_bytes(b"no image")
    split = data.Split(array, np.zeros(4, np.int32))
    dataset = data.Dataset("broken", ("a",), split, None, split)
    dataset.__dict__["_moments"] = np.zeros(3), np.ones(3)
    for batches in (
        dataset.evaluation_batches(1),
        dataset.train_batches(4, augment="random_resized_crop").take(1),
        dataset.train_batches(4).take(1),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"(?s)Cannot decode .*\[{paths[2]}\]"):
            take(batches)
        with pytest.raises(ValueError, match=f"^Cannot decode .* '{paths[2]}'. Replace or remove"), naming_files():
            take(batches)


def test_error_names_a_missing_file(tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{tmp_path}/gone.png"):
        files([f"{tmp_path}/gone.png"], 8, 8, 3)[0]
