"""Augmentation of images `[n, height, width, channels]` with values 0..255; results have the same shape.

`crop`, `flip` and `random_resized_crop` take `(images, seed, size, rows)`: the images are the rows `rows` of a batch of
`size` images, and `seed`, integers `[2]`, is that of the whole batch. Each image is augmented alike whether the others
are present or not, so that several workers can share a batch.
"""

import tensorflow as tf

# As usual for ImageNet (Szegedy et al., "Going Deeper with Convolutions", 2014, section 6).
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


def crop(images: tf.Tensor, seed: tf.Tensor, size: int, rows: slice) -> tf.Tensor:
    """Shifts each image by up to an eighth of its height and width and fills the border with black."""
    height, width = images.shape[1:3]
    pads = [height // 8, width // 8]
    padded = tf.pad(images, [[0, 0], [pads[0]] * 2, [pads[1]] * 2, [0, 0]])
    top, left = (
        tf.random.stateless_uniform([size], offset_seed, 0, 2 * pad + 1, tf.int32)[rows]
        for offset_seed, pad in zip(tf.unstack(tf.random.split(seed, 2)), pads, strict=True)
    )
    lines = tf.gather(padded, top[:, tf.newaxis] + tf.range(height), batch_dims=1)
    return tf.gather(lines, left[:, tf.newaxis] + tf.range(width), axis=2, batch_dims=1)


def flip(images: tf.Tensor, seed: tf.Tensor, size: int, rows: slice) -> tf.Tensor:
    """Mirrors each image with probability 1/2."""
    flipped = tf.random.stateless_uniform([size, 1, 1, 1], seed)[rows] < 0.5
    return tf.where(flipped, tf.reverse(images, [2]), images)


def random_resized_crop(images: tf.Tensor, seed: tf.Tensor, size: int, rows: slice) -> tf.Tensor:
    """Takes a `random_window` of each image and resizes it to the size of the image."""

    def cut(image_and_seed):
        image, image_seed = image_and_seed
        return resize(window(image, random_window(tf.shape(image), image_seed)), image.shape[:2])

    seeds = tf.random.split(seed, size)[rows]
    return tf.map_fn(cut, (images, seeds), fn_output_signature=tf.uint8)


def random_window(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws a window (top, left, height, width), int32, of an image of `shape` (height, width, channels).

    It has 8 to 100 % of the area and a ratio of width to height from 3/4 to 4/3, unless ten random windows did not fit.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=_RATIO,
        area_range=_AREA,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def window(image: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """The part of an image at `place`, (top, left, height, width)."""
    top, left, height, width = tf.unstack(place)
    return image[top : top + height, left : left + width]


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes an image bilinearly to (height, width), as uint8."""
    return tf.cast(tf.round(tf.image.resize(image, size)), tf.uint8)


AUGMENTATIONS = {
    "none": (),
    "crop": (crop,),
    "crop_flip": (crop, flip),
    "random_resized_crop": (random_resized_crop, flip),
}
