"""`Dataset`: labelled images or points, and the batches to train on and to evaluate with."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfspline._utils.checks import among, count
from tfspline.datasets.augment import AUGMENTATIONS, random_resized_crop
from tfspline.datasets.image_files import ImageFiles

_MOMENT_FILES = 2048  # image files that mean and standard deviation are computed from


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled examples.

    Args:
        images: images, uint8 `[n, height, width, channels]`, in memory or as `ImageFiles`; or points, float32
            `[n, features]`.
        labels: int32 `[n]`.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray

    def __post_init__(self):
        images, labels = self.images, self.labels
        for array in (images, labels):
            if not hasattr(array, "dtype"):
                raise TypeError(f"Expected arrays of images and of labels. Received: {type(array).__name__}")
        known = (images.dtype, images.ndim) in ((np.uint8, 4), (np.float32, 2))
        if not known or 0 in images.shape or labels.shape != images.shape[:1]:
            raise ValueError(
                "Expected uint8 images [n, height, width, channels] or float32 points [n, features], a label for each. "
                f"Received: {images.dtype} {images.shape} and labels {labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def part(self, indices: np.ndarray) -> "Split":
        """The examples at these indices."""
        images = self.images.part(indices) if isinstance(self.images, ImageFiles) else self.images[indices]
        return Split(images, self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set for classification.

    Attributes:
        name: its name in `load`.
        class_names: the name of each class.
        train: examples to train on.
        validation: examples held out of `train`, or None.
        test: examples to test on.
        seed: seed of order and augmentation in `train_batches`, and of `sample`.

    Example:
        >>> digits = tfspline.datasets.load("digits")
        >>> model = tfspline.models.build("mlp", digits.input_shape, digits.classes)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> model.compile("sgd", loss, metrics=["accuracy"])
        >>> batches, steps = digits.train_batches(128), digits.steps_per_epoch(128)
        >>> history = model.fit(batches, steps_per_epoch=steps, epochs=2, shuffle=False, verbose=0)
        >>> loss, accuracy = model.evaluate(digits.evaluation_batches(256), verbose=0)
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    seed: int = 0

    def __post_init__(self):
        for split in filter(None, (self.train, self.validation, self.test)):
            if split.labels.min() < 0 or split.labels.max() >= self.classes:
                raise ValueError(
                    f"Expected labels in [0, {self.classes}) for {self.name!r}. "
                    f"Received: labels from {split.labels.min()} to {split.labels.max()}"
                )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)` of an image, or `(features,)` of a point."""
        return self.train.images.shape[1:]

    @property
    def of_images(self) -> bool:
        """Whether the examples are images, not points."""
        return len(self.input_shape) == 3

    @property
    def mean(self) -> np.ndarray:
        """Mean of the training pixels, float32 `[channels]`, in 0..255; of image files, of the first 2,048."""
        return self._moments[0].astype(np.float32)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the training pixels, float32 `[channels]`; 1 for a constant channel."""
        return np.where(self._moments[1] > 0, self._moments[1], 1).astype(np.float32)

    @functools.cached_property
    def _moments(self):
        images = self.train.images
        images = images[:_MOMENT_FILES] if isinstance(images, ImageFiles) else images
        pixels = images.reshape(-1, self.input_shape[-1])
        # Unlike `pixels.std`, this makes no copy in float64, which would take eight times the memory of the images.
        mean = np.einsum("nc->c", pixels, dtype=np.float64) / len(pixels)
        squares = np.einsum("nc,nc->c", pixels, pixels, dtype=np.float64) / len(pixels)
        return mean, np.sqrt(squares - mean**2)

    def normalize(self, images: np.ndarray | tf.Tensor) -> tf.Tensor:
        """Converts examples to model inputs: `(images - mean) / std` as float32 for images in 0..255; points are only
        cast."""
        if not self.of_images:
            return tf.cast(images, tf.float32)
        return (tf.cast(images, tf.float32) - self.mean) / self.std

    def steps_per_epoch(self, batch_size: int, steps: int | None = None) -> int:
        """Number of batches in a training epoch: `steps`, or by default all full batches.

        Raises:
            ValueError: `batch_size` is not between 1 and the number of training examples, or there are fewer than
                `steps` batches.
        """
        if count("batch_size", batch_size) > len(self.train):
            raise ValueError(f"Expected a batch_size from 1 to {len(self.train)}. Received: {batch_size!r}")
        most = len(self.train) // batch_size
        if steps is not None and count("steps", steps) > most:
            raise ValueError(f"Expected from 1 to {most} steps, all batches of an epoch. Received: {steps!r}")
        return steps or most

    def sample(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws training examples at random, the same ones in every call.

        Args:
            size: number of examples; all of them if there are fewer.

        Returns:
            Normalised images, float32 `[size, *input_shape]`, and labels, int32 `[size]`.

        Example:
            >>> images, labels = tfspline.datasets.load("digits").sample(512)
            >>> images.shape, labels.shape
            ((512, 8, 8, 1), (512,))
        """
        # Image folders are listed class by class, so that the first examples would all be alike.
        size = min(count("size", size), len(self.train))
        drawn = np.random.default_rng(self.seed).choice(len(self.train), size, replace=False)
        return self.normalize(self.train.images[drawn]).numpy(), self.train.labels[drawn]

    def train_batches(
        self,
        batch_size: int,
        epoch: int = 0,
        augment: str = "none",
        steps: int | None = None,
        step: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """Endless training batches: epochs `epoch`, `epoch + 1`, ..., each in its own random order.

        The batches of an epoch depend on the seed and the number of the epoch only. So a training that is resumed
        with `epoch` and `step` sees the same batches as one that was never interrupted. Pass `steps_per_epoch` to
        `fit`; in Keras 3, `steps_per_execution` must divide it.

        Args:
            batch_size: examples in a batch.
            epoch: number of the first epoch, from 0 on as in `fit`.
            augment: `"none"`; `"crop"`: shift by up to an eighth of the size and fill with black (4 pixels on CIFAR, as
                in He et al., 2015, section 4.2); `"crop_flip"`: also mirror half of the images; or
                `"random_resized_crop"`: resize a window of 8 to 100 % of the area, and mirror (as usual on ImageNet).
            steps: batches in an epoch; by default `steps_per_epoch(batch_size)`.
            step: number of the first batch within the first epoch.
            share: (number, parts): return only part `number` of `parts` equal parts of each batch, for a worker that
                trains on it, and decode no other images.

        Returns:
            Pairs of normalised images, float32 `[batch_size / parts, *input_shape]`, and labels, int32.

        Raises:
            ValueError: an argument is out of its range, or `augment` is given for points.
        """
        steps = self.steps_per_epoch(batch_size, steps)
        count("epoch", epoch, least=0)
        if count("step", step, least=0) >= steps:
            raise ValueError(f"Expected a step from 0 to {steps - 1}. Received: {step!r}")
        number, parts = share
        if batch_size % parts or number not in range(parts):
            raise ValueError(f"Expected a share out of equal parts of {batch_size} images. Received: {share!r}")
        part = batch_size // parts
        rows = slice(number * part, (number + 1) * part)
        indices = self._train_indices(batch_size, steps, epoch, rows).skip(step)
        batches = indices.map(self._train_batch(batch_size, rows, augment), num_parallel_calls=tf.data.AUTOTUNE)
        # tf_keras then refuses to fit without steps_per_epoch.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return batches.apply(endless).prefetch(tf.data.AUTOTUNE)

    def _train_indices(self, batch_size, steps, epoch, rows) -> tf.data.Dataset:
        """The examples in `rows` of each batch, and a seed for its augmentation."""

        def one_epoch(number):
            seeds = tf.random.split(tf.stack([tf.constant(self.seed, tf.int64), number]), steps + 1)
            order = tf.random.experimental.stateless_shuffle(tf.range(len(self.train)), seeds[0])
            indices = tf.reshape(order[: steps * batch_size], [steps, batch_size])
            return tf.data.Dataset.from_tensor_slices((indices[:, rows], seeds[1:]))

        return tf.data.Dataset.counter(epoch).flat_map(one_epoch)

    def _train_batch(self, batch_size, rows, augment):
        """A function of (indices, seed) that returns augmented images and their labels."""
        changes = self.augmentation(augment)
        images, labels = _on_host(self.train)
        # Windows of files are cut at full resolution, while they are decoded.
        windows = isinstance(images, ImageFiles) and random_resized_crop in changes

        def one_batch(indices, seed):
            seeds = tf.unstack(tf.random.split(seed, len(changes)))
            window_seeds = [tf.random.split(seeds[0], batch_size)[rows]] if windows else []
            batch = _gather(images, indices, *window_seeds)
            for change, change_seed in list(zip(changes, seeds, strict=True))[windows:]:
                batch = change(batch, change_seed, batch_size, rows)
            return self.normalize(batch), tf.gather(labels, indices)

        return one_batch

    def augmentation(self, augment: str) -> tuple:
        """The functions that `train_batches` applies for this name; a ValueError if it is unknown, or for points."""
        return AUGMENTATIONS[among("augment", augment, AUGMENTATIONS if self.of_images else ["none"])]

    def evaluation_batches(self, batch_size: int, split: str = "test") -> tf.data.Dataset:
        """All examples of a split once, in order and without augmentation; the last batch may be smaller.

        Args:
            batch_size: examples in a batch.
            split: `"train"`, `"validation"` or `"test"`.

        Returns:
            Pairs of normalised images, float32 `[batch, *input_shape]`, and labels, int32 `[batch]`.

        Raises:
            ValueError: `batch_size` is below 1, or the data set has no such split.
        """
        count("batch_size", batch_size)
        known = [name for name in ("train", "validation", "test") if getattr(self, name) is not None]
        images, labels = _on_host(getattr(self, among("split", split, known)))

        def one_batch(indices):
            return self.normalize(_gather(images, indices)), tf.gather(labels, indices)

        indices = tf.data.Dataset.range(len(labels)).batch(batch_size)
        return indices.map(one_batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _on_host(split: Split):
    # tf.data runs on the host: images on an accelerator would be copied back for every batch.
    with tf.device("CPU"):
        images = split.images if isinstance(split.images, ImageFiles) else tf.constant(split.images)
        return images, tf.constant(split.labels)


def _gather(images, indices, *window_seeds):
    return images.gather(indices, *window_seeds) if isinstance(images, ImageFiles) else tf.gather(images, indices)
