"""Datasets of labelled images or points, and the batches that a training and an evaluation read from them."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfspline._utils.checks import among, count
from tfspline.datasets.augment import AUGMENTATIONS, random_resized_crop
from tfspline.datasets.image_files import ImageFiles

_MOMENTS_OF = 2048  # image files, of which mean and standard deviation are taken


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 `[n, height, width, channels]`, or points, float32 `[n, features]`; their labels, int32 `[n]`.

    Images of which there are too many for memory are files, and decoded where they are indexed.
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
        """Some of the images and their labels."""
        files = isinstance(self.images, ImageFiles)
        return Split(self.images.part(indices) if files else self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A classification dataset in memory or in image files; `validation` is None where nothing was held out of `train`.

    Example:
        >>> digits = tfspline.datasets.load("digits")
        >>> model = tfspline.models.build("resnet8", digits.input_shape, digits.classes)
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
        """How many classes there are."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(height, width, channels)` of an image, `(features,)` of a point."""
        return self.train.images.shape[1:]

    @property
    def of_images(self) -> bool:
        """Whether it is images that are labelled, not points."""
        return len(self.input_shape) == 3

    @property
    def mean(self) -> np.ndarray:
        """Mean of the training pixels (of image files, the first 2,048), float32 `[channels]`, on the scale 0..255."""
        return self._moments[0].astype(np.float32)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the training pixels, float32 `[channels]`; 1 for a constant channel."""
        return np.where(self._moments[1] > 0, self._moments[1], 1).astype(np.float32)

    @functools.cached_property
    def _moments(self):
        images = self.train.images
        images = images[:_MOMENTS_OF] if isinstance(images, ImageFiles) else images
        pixels = images.reshape(-1, self.input_shape[-1])
        totals = squares = 0.0
        # In chunks, since float64 takes eight times the memory of the images.
        for start in range(0, len(pixels), 2**20):
            chunk = pixels[start : start + 2**20].astype(np.float64)
            totals = totals + chunk.sum(axis=0)
            squares = squares + np.square(chunk).sum(axis=0)
        mean = totals / len(pixels)
        return mean, np.sqrt(squares / len(pixels) - mean**2)

    def normalize(self, images) -> tf.Tensor:
        """What the networks are fed: `(images - mean) / std` as float32, for images on the scale 0..255; points as
        they are."""
        if not self.of_images:
            return tf.cast(images, tf.float32)
        return (tf.cast(images, tf.float32) - self.mean) / self.std

    def steps_per_epoch(self, batch_size: int, steps: int | None = None) -> int:
        """Batches in a training epoch: `steps`, or all there are; the last, partial one is dropped.

        Raises:
            ValueError: a batch size that is not between 1 and the number of training images, or more `steps`
                than there are.
        """
        if count("batch_size", batch_size) > len(self.train):
            raise ValueError(f"Expected a batch_size from 1 to {len(self.train)}. Received: {batch_size!r}")
        most = len(self.train) // batch_size
        if steps is not None and count("steps", steps) > most:
            raise ValueError(f"Expected from 1 to {most} steps, all batches of an epoch. Received: {steps!r}")
        return steps or most

    def sample(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Training examples drawn at random, the same at every call: to watch a partition on, or to look at units.

        Args:
            size: how many; all that there are if these are fewer.

        Returns:
            Normalised images, float32 `[size, *input_shape]`, and labels, int32 `[size]`.

        Example:
            >>> images, labels = tfspline.datasets.load("digits").sample(512)
            >>> images.shape, labels.shape
            ((512, 8, 8, 1), (512,))
        """
        # Image folders come class by class: the first ones would all be alike.
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
        """Training batches without end: the epochs `epoch`, `epoch + 1`, ... one after the other.

        The batches of an epoch, augmentation included, depend on the dataset's seed and the number of the
        epoch and on nothing else. So a training that is resumed with `fit(dataset.train_batches(batch_size,
        epoch=e), initial_epoch=e, steps_per_epoch=dataset.steps_per_epoch(batch_size))` sees what it would
        have seen without the interruption. Without `steps_per_epoch` the first epoch would never end. (In
        Keras 3, `steps_per_execution` must divide the steps of an epoch: otherwise `fit` reads on into the
        next one.)

        Args:
            batch_size: images a batch.
            epoch: number of the first epoch, counted from 0 as `fit` does.
            augment: `"none"`; `"crop"`, which shifts an image by up to an eighth of its size each way and
                fills up with black (4 pixels for CIFAR, as He et al., 2015, section 4.2); `"crop_flip"`,
                which also mirrors half of the images; or `"random_resized_crop"`, which cuts out 8 to 100 % of an
                image's area with a ratio of width to height from 3/4 to 4/3, resizes that and mirrors half of
                the images (as usual on ImageNet; Szegedy et al., 2014, section 6).
            steps: batches an epoch, of other images in each; by default `steps_per_epoch(batch_size)`.
            step: number of the first batch within the first epoch, counted from 0.
            share: (number, parts): gives the part of each batch with that number, out of as many equal ones, and
                decodes no image of the others; what a worker trains on.

        Returns:
            Pairs of normalised images, float32 `[batch_size / parts, *input_shape]`, and labels, int32
            `[batch_size / parts]`.

        Raises:
            ValueError: a bad batch size, a negative epoch, an unknown `augment` or one for points, more `steps`
                than there are, a `step` that is not one of them, or a batch size that cannot be shared equally.
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
        changes = self.augmentation(augment)
        images, labels = _on_host(self.train)
        # Out of files, windows are cut before they are resized, when there are more pixels.
        cut = isinstance(images, ImageFiles) and random_resized_crop in changes

        def one_epoch(number):
            seeds = tf.random.split(tf.stack([tf.constant(self.seed, tf.int64), number]), steps + 1)
            order = tf.random.experimental.stateless_shuffle(tf.range(len(self.train)), seeds[0])
            indices = tf.reshape(order[: steps * batch_size], [steps, batch_size])
            return tf.data.Dataset.from_tensor_slices((indices[:, rows], seeds[1:]))

        def one_batch(indices, seed):
            seeds = tf.unstack(tf.random.split(seed, len(changes)))
            windows = [tf.random.split(seeds[0], batch_size)[rows]] if cut else []
            batch = _gather(images, indices, *windows)
            for change, change_seed in list(zip(changes, seeds, strict=True))[cut:]:
                batch = change(batch, change_seed, batch_size, rows)
            return self.normalize(batch), tf.gather(labels, indices)

        epochs = tf.data.Dataset.counter(epoch).flat_map(one_epoch).skip(step)
        batches = epochs.map(one_batch, num_parallel_calls=tf.data.AUTOTUNE)
        # Told that there is no end, tf_keras' fit asks for a missing steps_per_epoch; Keras 3's does not.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return batches.apply(endless).prefetch(tf.data.AUTOTUNE)

    def augmentation(self, augment: str) -> tuple:
        """The functions of (batch, seed) that `augment` stands for in `train_batches`.

        Raises:
            ValueError: an unknown `augment`, or one for points.
        """
        return AUGMENTATIONS[among("augment", augment, AUGMENTATIONS if self.of_images else ["none"])]

    def evaluation_batches(self, batch_size: int, split: str = "test") -> tf.data.Dataset:
        """All images of a split once, in their order, as they are; the last batch may be smaller.

        Args:
            batch_size: images a batch.
            split: `"train"`, `"validation"` or `"test"`.

        Returns:
            Pairs of normalised images, float32 `[batch, *input_shape]`, and labels, int32 `[batch]`.

        Raises:
            ValueError: a batch size below 1, an unknown split, or `"validation"` where nothing was held out.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        there = [name for name in splits if splits[name] is not None]
        count("batch_size", batch_size)
        images, labels = _on_host(splits[among("split", split, there)])

        def one_batch(indices):
            return self.normalize(_gather(images, indices)), tf.gather(labels, indices)

        indices = tf.data.Dataset.range(len(splits[split])).batch(batch_size)
        return indices.map(one_batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _on_host(split: Split):
    # tf.data runs on the host: images on an accelerator would be copied back for every batch.
    with tf.device("CPU"):
        images = split.images if isinstance(split.images, ImageFiles) else tf.constant(split.images)
        return images, tf.constant(split.labels)


def _gather(images, indices, *windows):
    return images.gather(indices, *windows) if isinstance(images, ImageFiles) else tf.gather(images, indices)
