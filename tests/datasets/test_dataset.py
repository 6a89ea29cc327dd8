"""`Dataset`: its batches, moments and splits; augmentation."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import assert_same, take

from tfspline import datasets as data
from tfspline.datasets import augment


@pytest.fixture
def small(rng):
    """23 training images of 8x8x3; the first pixel of each image is its label."""
    images = rng.integers(0, 256, (23, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(23, dtype=np.int32)
    images[:, 0, 0, 0] = labels
    train = data.Split(images, labels)
    test = data.Split(images[:5], labels[:5])
    return data.Dataset("small", tuple(map(str, labels)), train, None, test, seed=3)


def pixels(dataset, x):
    return np.rint(x * dataset.std + dataset.mean).astype(int)


def test_mean_and_std_match_hand_computed_values(small):
    images = np.array([0, 10, 20, 30], np.uint8).reshape(2, 1, 2, 1)
    split = data.Split(np.concatenate([images, np.full_like(images, 7)], axis=-1), np.zeros(2, np.int32))
    dataset = dataclasses.replace(small, train=split)
    np.testing.assert_allclose(dataset.mean, [15, 7])
    np.testing.assert_allclose(dataset.std, [np.sqrt(125), 1], rtol=1e-6)
    np.testing.assert_allclose(dataset.normalize(split.images)[1, 0, 1], [15 / np.sqrt(125), 0], rtol=1e-6)


def test_mean_and_std_of_many_pixels_match_numpy(small, rng):
    images = rng.integers(0, 256, (9, 512, 512, 1)).astype(np.uint8)
    dataset = dataclasses.replace(small, train=data.Split(images, np.zeros(9, np.int32)))
    np.testing.assert_allclose(dataset.mean, [images.mean()], rtol=1e-6)
    np.testing.assert_allclose(dataset.std, [images.std()], rtol=1e-6)


def test_epoch_has_each_image_at_most_once_and_drops_the_partial_batch(small):
    assert small.steps_per_epoch(5) == 4
    epochs = [take(small.train_batches(5, epoch=epoch), 4) for epoch in range(3)]
    orders = [np.concatenate([y for _, y in epoch]) for epoch in epochs]
    for epoch, order in zip(epochs, orders, strict=True):
        assert len(set(order)) == 20
        x = np.concatenate([x for x, _ in epoch])
        np.testing.assert_array_equal(pixels(small, x), small.train.images[order])
    assert len({tuple(order) for order in orders}) == 3


def test_batches_continue_with_the_next_epoch(small):
    assert_same(take(small.train_batches(5), 8)[4:], take(small.train_batches(5, epoch=1), 4))


@pytest.mark.parametrize("augment", augment.AUGMENTATIONS)
def test_resumed_batches_equal_those_of_an_uninterrupted_run(small, augment):
    whole = take(small.train_batches(5, augment=augment), 12)
    assert_same(whole[8:], take(small.train_batches(5, epoch=2, augment=augment), 4))
    assert_same(whole[7:], take(small.train_batches(5, epoch=1, step=3, augment=augment), 5))


@pytest.mark.parametrize("augment", augment.AUGMENTATIONS)
def test_shares_of_a_batch_join_to_the_whole_batch(small, augment):
    whole = take(small.train_batches(6, augment=augment), 4)
    shares = [take(small.train_batches(6, augment=augment, share=(number, 3)), 4) for number in range(3)]
    assert shares[0][0][0].shape == (2, 8, 8, 3)
    joined = [[np.concatenate(parts) for parts in zip(*batch, strict=True)] for batch in zip(*shares, strict=True)]
    assert_same(whole, joined)


def test_shortened_epochs_have_different_images(small):
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


def test_augmentation_differs_between_epochs_and_between_batches(small):
    same = dataclasses.replace(
        small, train=data.Split(np.repeat(small.train.images[:1], 16, axis=0), np.zeros(16, np.int32))
    )
    first, second, next_epoch = (x for x, _ in take(same.train_batches(8, augment="crop"), 3))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, next_epoch)


def test_resumed_fit_gives_the_weights_of_an_uninterrupted_fit(keras, small):
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


def test_training_batches_have_infinite_cardinality(small):
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


def test_evaluation_batches_contain_all_images_in_order(small):
    batches = take(small.evaluation_batches(10, split="train"), -1)
    assert [len(y) for _, y in batches] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), small.train.labels)
    x = np.concatenate([x for x, _ in batches])
    assert x.dtype == np.float32
    np.testing.assert_array_equal(pixels(small, x), small.train.images)
    assert [len(y) for _, y in take(small.evaluation_batches(10), -1)] == [5]


def test_points_are_not_normalized():
    toy = data.load("toy2d", validation_split=0.1, seed=3)
    x, y = next(iter(toy.train_batches(32)))
    where = {tuple(point): label for point, label in zip(toy.train.images.tolist(), toy.train.labels, strict=True)}
    assert [where[tuple(point)] for point in x.numpy().tolist()] == y.numpy().tolist()
    x, _ = next(iter(toy.evaluation_batches(1000)))
    np.testing.assert_array_equal(x, toy.test.images)


def test_augmentation_of_points_raises():
    with pytest.raises(ValueError, match=r"`augment` among \('none',\). Received: 'crop'"):
        data.load("toy2d").train_batches(32, augment="crop")


@pytest.mark.parametrize(("batch_size", "expected"), [(0, "at least 1"), (-1, "at least 1"), (24, "from 1 to 23")])
def test_bad_training_batch_size_raises(small, batch_size, expected):
    with pytest.raises(ValueError, match=f"{expected}. Received: {batch_size}"):
        small.train_batches(batch_size)


def test_bad_evaluation_batch_size_raises(small):
    with pytest.raises(ValueError, match="at least 1. Received: 0"):
        small.evaluation_batches(0)


def test_negative_epoch_raises(small):
    with pytest.raises(ValueError, match="`epoch` to be an integer of at least 0. Received: -1"):
        small.train_batches(5, epoch=-1)


@pytest.mark.parametrize(("step", "expected"), [(-1, "at least 0"), (4, "from 0 to 3")])
def test_step_outside_the_epoch_raises(small, step, expected):
    with pytest.raises(ValueError, match=f"{expected}. Received: {step}"):
        small.train_batches(5, step=step)


@pytest.mark.parametrize("share", [(0, 2), (5, 5), (-1, 5)])
def test_bad_share_raises(small, share):
    with pytest.raises(ValueError, match=re.escape(f"equal parts of 5 images. Received: {share}")):
        small.train_batches(5, share=share)


def test_unknown_augmentation_raises(small):
    with pytest.raises(ValueError, match="'none', 'crop', 'crop_flip', 'random_resized_crop'.. Received: 'mixup'"):
        small.train_batches(5, augment="mixup")


@pytest.mark.parametrize("split", ["validation", "probe"])
def test_missing_split_raises(small, split):
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
def test_split_of_unsupported_arrays_raises(images, labels):
    with pytest.raises(ValueError, match="Expected uint8 images .* Received: "):
        data.Split(images, labels)


@pytest.mark.parametrize("label", [-1, 23])
def test_labels_out_of_range_raise(small, label):
    test = data.Split(small.test.images, np.full(5, label, np.int32))
    with pytest.raises(ValueError, match=rf"labels in \[0, 23\) for 'small'. Received: labels from {label}"):
        dataclasses.replace(small, test=test)
