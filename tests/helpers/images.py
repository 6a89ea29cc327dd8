"""Image files, and batches of images."""

import numpy as np
import tensorflow as tf


def smooth(rng, height, width, channels=3):
    """An image that JPEG compression hardly changes."""
    coarse = rng.uniform(0, 255, (3, 4, channels)).astype(np.float32)
    return tf.image.resize(coarse, (height, width)).numpy().astype(np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_png if path.suffix == ".png" else tf.io.encode_jpeg
    tf.io.write_file(str(path), encode(image))
    return str(path)


def take(batches, n=-1):
    return [(x.numpy(), y.numpy()) for x, y in batches.take(n)]


def assert_same(some, others):
    assert len(some) == len(others)
    for (x, y), (other_x, other_y) in zip(some, others, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)
