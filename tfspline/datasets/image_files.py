"""Image files that are decoded when they are indexed."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfspline.datasets import augment

MEMORY_LIMIT = 2 * 2**30  # bytes that the decoded images of a data set may take
_DECODED_AT_ONCE = 64
_CANNOT_DECODE = "Cannot decode as a JPEG, PNG, GIF or BMP image:"
_GREY_PALETTE = b"".join(bytes([level, level, level, 0]) for level in range(256))
# Evaluation on ImageNet usually crops 224 of 256 pixels (He et al., 2015, section 3.4).
_CENTRAL = 224 / 256


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """JPEG, PNG, GIF or BMP files that can be indexed like an array of images, uint8 `[n, height, width, channels]`.

    Indexing decodes the files in parallel, and raises TensorFlow's error, see `naming_files`, if one is not such an
    image. By default it takes the central window of each image, which has the ratio of height to width of `image_shape`
    and 224/256 of the largest possible size, and resizes it bilinearly.

    Only the first frame of an animation is used, and an orientation in EXIF data is ignored.
    """

    paths: np.ndarray  # names of the files, strings [n]
    image_shape: tuple[int, int, int]  # height, width and channels (1, 3 or 4) of the decoded images
    whole: bool = False  # resize whole images, whatever their ratio, instead of their central window

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
        with tf.init_scope():  # this may be called while tf.data traces a function
            batches = tf.data.Dataset.from_tensor_slices(indices.ravel()).batch(_DECODED_AT_ONCE).map(self.gather)
            for number, batch in enumerate(batches.as_numpy_iterator()):
                images[number * _DECODED_AT_ONCE :][: len(batch)] = batch
        return images.reshape(*indices.shape, *self.image_shape)

    def part(self, indices: np.ndarray) -> "ImageFiles":
        """The files at these indices, without decoding them."""
        return dataclasses.replace(self, paths=self.paths[indices])

    def gather(self, indices: tf.Tensor, seeds: tf.Tensor | None = None) -> tf.Tensor:
        """Decodes the images at `indices` [batch] in parallel; works inside functions that tf.data traces.

        With `seeds` [batch, 2], an `augment.random_window` of each image is taken, drawn with its seed.
        """
        examples = (indices,) if seeds is None else (indices, seeds)

        def decode(index, *seed):
            return index, self._decode(tf.io.read_file(self._paths[index]), *seed)

        # TensorFlow's error does not name the file. So files that fail are skipped, and the first index that is missing
        # from the result names the file.
        decoded = tf.data.Dataset.from_tensor_slices(examples).map(decode, tf.data.AUTOTUNE).ignore_errors()
        nothing = tf.constant(-1, indices.dtype), tf.zeros(self.image_shape, tf.uint8)
        filled = decoded.concatenate(tf.data.Dataset.from_tensors(nothing).repeat())
        found, images = filled.batch(tf.size(indices, tf.int64)).take(1).get_single_element()
        missing = found != indices
        name = self._paths[indices[tf.argmax(missing)]]
        check = tf.debugging.Assert(~tf.reduce_any(missing), [_CANNOT_DECODE, name])
        with tf.control_dependencies([check]):
            return tf.ensure_shape(images, [*indices.shape, *self.image_shape])

    @functools.cached_property
    def _paths(self):
        with tf.init_scope(), tf.device("CPU"):  # where tf.data runs
            return tf.constant(self.paths, tf.string)

    def _decode(self, content, *seed):
        height, width, channels = self.image_shape

        def place(shape):
            return augment.random_window(shape, *seed) if seed else _central_window(shape, height / width)

        def decode_all():
            image = tf.io.decode_image(content, channels, expand_animations=False)
            image.set_shape([None, None, channels])
            return image if self.whole else augment.window(image, place(tf.shape(image)))

        def decode_window():  # decodes only a part of a JPEG, which is faster
            shape = tf.image.extract_jpeg_shape(content)
            return tf.io.decode_and_crop_jpeg(content, place(shape), channels)

        # A JPEG has no alpha channel.
        windows = not self.whole and channels != 4
        with tf.control_dependencies([tf.debugging.Assert(_has_no_colour_palette(content), [_CANNOT_DECODE])]):
            image = tf.cond(tf.io.is_jpeg(content), decode_window, decode_all) if windows else decode_all()
        return augment.resize(image, (height, width))


def _has_no_colour_palette(content):
    """False for an 8-bit BMP in colour, since TensorFlow would read its palette indices as grey values."""

    def is_grey():
        start = tf.io.decode_raw(tf.strings.substr(content, 10, 4), tf.int32)[0]  # of the pixels; the palette ends here
        bits = tf.io.decode_raw(tf.strings.substr(content, 28, 2), tf.int16)[0]
        return tf.cond(bits == 8, lambda: tf.strings.substr(content, start - 1024, 1024) == _GREY_PALETTE, lambda: True)

    return tf.cond(tf.strings.substr(content, 0, 2) == b"BM", is_grey, lambda: True)


def _central_window(shape, ratio):
    """(top, left, height, width), int32, of the central window of height / width = `ratio`."""
    sides = tf.cast(shape[:2], tf.float32)
    largest = tf.minimum(sides[0], ratio * sides[1])
    window = tf.cast(tf.round(_CENTRAL * tf.stack([largest, largest / ratio])), tf.int32)
    window = tf.maximum(window, 1)
    return tf.concat([(shape[:2] - window) // 2, window], axis=0)


def shape_of(path: str) -> tuple[int, int, int]:
    """Height, width and channels (1, 3 or 4) of an image file."""
    content = tf.io.read_file(path)
    try:
        height, width, channels = tf.io.decode_image(content, expand_animations=False).shape
    except tf.errors.InvalidArgumentError as error:
        raise _cannot_decode(path) from error
    # Other images are converted to RGB. TensorFlow reports 4 channels for a BMP whose fourth byte is unused.
    is_bmp = content.numpy().startswith(b"BM")
    return height, width, channels if channels in (1, 4) and not is_bmp else 3


@contextlib.contextmanager
def naming_files() -> Iterator[None]:
    """Turns TensorFlow's error for a file of `ImageFiles` that cannot be decoded into a short ValueError."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(rf"\[{re.escape(_CANNOT_DECODE)}\] \[(.*)\]", error.message)
        if found is None:
            raise
        raise _cannot_decode(found[1]) from error


def _cannot_decode(path: str) -> ValueError:
    return ValueError(f"{_CANNOT_DECODE} '{path}'. Replace or remove the file.")
