"""Image files as an array of images of which only what is asked for is decoded."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from PIL import Image

from tfspline.datasets import augment

_AT_ONCE = 64
_READERS = 16  # threads, since a disk may be far away
_FORMATS = ("BMP", "GIF", "JPEG", "PNG")
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "RGBA": 4}  # of Pillow's modes, where TensorFlow makes others than 3
_EXPECTED = "Expected a JPEG, PNG, GIF or BMP image. Received:"
_CENTRAL = 224 / 256  # of the largest window of the right shape: evaluation crops 224 pixels out of 256


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """JPEG, PNG, GIF or BMP files as uint8 images `[n, height, width, channels]`; an index decodes, as h5py's does.

    An image is the central window of the right shape, 224/256 as high or as wide as the largest one, resized bilinearly
    to height and width: as ImageNet is evaluated, where the shorter side is resized to 256 and the central 224 x 224
    are kept (He et al., 2015, section 3.4), in one step.

    Args:
        paths: names of the files, string `[n]`.
        image_shape: height, width and channels (1, 3 or 4) of what they are decoded to.

    Raises:
        tf.errors.InvalidArgumentError: a file that is gone or no image, when it is decoded; the message names it.
    """

    paths: np.ndarray
    image_shape: tuple[int, int, int]

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, height, width, channels)`."""
        return (len(self), *self.image_shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key) -> np.ndarray:
        indices = np.arange(len(self))[key]
        images = np.empty((indices.size, *self.image_shape), np.uint8)
        with tf.init_scope():  # out of the function that tf.data is tracing, if it is
            batches = tf.data.Dataset.from_tensor_slices(indices.ravel()).batch(_AT_ONCE).map(self.gather)
            for batch, some in enumerate(batches.as_numpy_iterator()):
                images[batch * _AT_ONCE :][: len(some)] = some
        return images.reshape(*indices.shape, *self.image_shape)

    def part(self, indices: np.ndarray) -> "ImageFiles":
        """Some of the files, not decoded."""
        return dataclasses.replace(self, paths=self.paths[indices])

    def gather(self, indices: tf.Tensor, seeds: tf.Tensor | None = None) -> tf.Tensor:
        """As `tf.gather` of the images, for integers `[batch]`; decodes in parallel.

        With `seeds`, integers `[batch, 2]`, an image is an `augment.random_window` in place of the central one.
        """
        examples = (indices,) if seeds is None else (indices, seeds)

        def decode(index, *seed):
            return index, self._decode(tf.io.read_file(self._paths[index]), *seed)

        # TensorFlow does not say which file it could not decode: so that one is left out, and missed.
        decoded = tf.data.Dataset.from_tensor_slices(examples).map(decode, tf.data.AUTOTUNE).ignore_errors()
        nothing = tf.constant(-1, indices.dtype), tf.zeros(self.image_shape, tf.uint8)
        filled = decoded.concatenate(tf.data.Dataset.from_tensors(nothing).repeat())
        found, images = filled.batch(tf.size(indices, tf.int64)).take(1).get_single_element()
        missed = found != indices
        name = self._paths[indices[tf.argmax(missed)]]
        whole = tf.debugging.Assert(~tf.reduce_any(missed), [_EXPECTED, name])
        with tf.control_dependencies([whole]):
            return tf.ensure_shape(images, [*indices.shape, *self.image_shape])

    @functools.cached_property
    def _paths(self):
        with tf.init_scope(), tf.device("CPU"):  # where tf.data runs
            return tf.constant(self.paths, tf.string)

    def _decode(self, content, *seed):
        height, width, channels = self.image_shape

        def place(shape):
            return augment.random_window(shape, *seed) if seed else _central_window(shape, height / width)

        def decode_window():  # saves time
            shape = tf.image.extract_jpeg_shape(content)
            return tf.io.decode_and_crop_jpeg(content, place(shape), channels)

        def decode_all():
            image = tf.io.decode_image(content, channels, expand_animations=False)
            image.set_shape([None, None, channels])
            return augment.window(image, place(tf.shape(image)))

        # No JPEG has an alpha channel.
        image = decode_all() if channels == 4 else tf.cond(tf.io.is_jpeg(content), decode_window, decode_all)
        return augment.resize(image, (height, width))


def _central_window(shape, ratio):
    """(top, left, height, width), int32, of the central window of height / width = `ratio`."""
    sides = tf.cast(shape[:2], tf.float32)
    largest = tf.minimum(sides[0], ratio * sides[1])
    window = tf.cast(tf.round(_CENTRAL * tf.stack([largest, largest / ratio])), tf.int32)
    window = tf.maximum(window, 1)
    return tf.concat([(shape[:2] - window) // 2, window], axis=0)


@contextlib.contextmanager
def naming_files() -> Iterator[None]:
    """Where a file of `ImageFiles` cannot be decoded, the block ends with a ValueError that names it, in place of the
    error of many lines that TensorFlow makes of it."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(rf"\[{re.escape(_EXPECTED)}\] \[(.*)\]", error.message)
        if found is None:
            raise
        raise ValueError(f"{_EXPECTED} '{found[1]}', which cannot be decoded") from error


def check_headers(paths: np.ndarray, channels: int) -> None:
    """Refuses files that cannot be decoded to images of so many channels, by their headers only.

    Raises:
        ValueError: as `shape_in_header`, for the first of them.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        parts = np.array_split(paths, _READERS)
        list(readers.map(lambda part: [shape_in_header(path, channels) for path in part], parts))


def check_decodes(path: str, channels: int) -> None:
    """Raises the ValueError for a file that cannot be decoded to so many channels."""
    try:
        tf.io.decode_image(tf.io.read_file(path), channels, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{_EXPECTED} {path!r}, which cannot be decoded") from error


def shape_in_header(path: str, channels: int | None = None) -> tuple[int, int, int]:
    """Height, width and channels (1, 3 or 4) of an image, by its header: nothing is decoded.

    Args:
        path: the file.
        channels: how many it is going to be decoded to.

    Raises:
        ValueError: it is empty, damaged or no such image; it has more pixels than Pillow takes for safe, 178,956,970;
            TensorFlow does not read its colours, or not to `channels`.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            kind, mode, (width, height) = image.format, image.mode, image.size
            transparent = mode == "P" and "transparency" in image.info
        if kind == "BMP" and mode in ("1", "P"):
            raise ValueError("colours of a palette, which TensorFlow does not read in a BMP")
        if channels == 1 and (kind in ("BMP", "GIF") or mode == "CMYK") or channels == 4 and kind in ("GIF", "JPEG"):
            raise ValueError(
                f"a {kind} of {mode}, which cannot be decoded to the channels of the first image, {channels}"
            )
    except Exception as error:  # a damaged header fails in a dozen ways
        raise ValueError(f"{_EXPECTED} {path!r} ({error})") from error
    own = 3 if kind in ("BMP", "GIF") else 4 if transparent else _CHANNELS.get(mode, 3)
    return height, width, own
