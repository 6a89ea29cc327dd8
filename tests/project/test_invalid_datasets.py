"""Invalid arguments of the datasets are rejected with a message that names the problem."""

import functools

import pytest
from helpers.invalid import expected_integer

from tfspline import datasets


@functools.cache
def digits():
    return datasets.load("digits")


CASES = {
    "a list as dataset": (
        lambda: datasets.load(["digits"]),
        ValueError,
        r"Expected `dataset` among \('digits', .* Received: \['digits'\]",
    ),
    "a string as validation_split": (
        lambda: datasets.load("digits", validation_split="0.1"),
        ValueError,
        r"Expected a validation_split in \[0, 1\). Received: '0.1'",
    ),
    "a validation_split of a single image": (
        lambda: datasets.load("digits", validation_split=1e-9),
        ValueError,
        "1437 images cannot be divided by test_size=1e-09",
    ),
    "a validation_split of all images but one": (
        lambda: datasets.load("digits", validation_split=0.9999),
        ValueError,
        "1437 images cannot be divided by test_size=0.9999",
    ),
    "a seed that is not an integer": (
        lambda: datasets.load("digits", seed=1.5),
        ValueError,
        expected_integer("seed", 0, 1.5),
    ),
    "a number as image_size": (
        lambda: datasets.load("digits", image_size=8),
        TypeError,
        "Expected `image_size` to be a list or tuple. Received: 8",
    ),
    "train_images that is not an integer": (
        lambda: datasets.load("digits", train_images=99.5),
        ValueError,
        expected_integer("train_images", 1, 99.5),
    ),
    "lists as arrays of a split": (
        lambda: datasets.Split([[1.0, 2.0]], [0]),
        TypeError,
        "Expected arrays of images and of labels. Received: list",
    ),
    "a string as batch_size": (
        lambda: digits().train_batches("8"),
        ValueError,
        expected_integer("batch_size", 1, "'8'"),
    ),
    "a batch_size that is not an integer": (
        lambda: digits().train_batches(8.5),
        ValueError,
        expected_integer("batch_size", 1, 8.5),
    ),
    "a string as steps": (
        lambda: digits().train_batches(8, steps="3"),
        ValueError,
        expected_integer("steps", 1, "'3'"),
    ),
    "an epoch that is not an integer": (
        lambda: digits().train_batches(8, epoch=1.5),
        ValueError,
        expected_integer("epoch", 0, 1.5),
    ),
    "a step that is not an integer": (
        lambda: digits().train_batches(8, step=0.5),
        ValueError,
        expected_integer("step", 0, 0.5),
    ),
    "a list as augment": (
        lambda: digits().train_batches(8, augment=["crop"]),
        ValueError,
        r"Expected `augment` among \('none', 'crop', .* Received: \['crop'\]",
    ),
    "a list as split": (
        lambda: digits().evaluation_batches(8, ["test"]),
        ValueError,
        r"Expected `split` among \('train', 'test'\). Received: \['test'\]",
    ),
    "a sample of size 0": (lambda: digits().sample(0), ValueError, expected_integer("size", 1, 0)),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_invalid_dataset_argument_is_rejected(call, error, message):
    with pytest.raises(error, match=message):
        call()
