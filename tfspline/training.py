"""Trains one network in the folder of a run: from a checkpoint to the next, each epoch recorded."""

import importlib
import math
import time
from typing import Any

import tensorflow as tf

from tfspline import _keras, models
from tfspline.codes import RegionEncoder
from tfspline.data import Dataset
from tfspline.magnitude import hold_zeros
from tfspline.recipe import Recipe
from tfspline.run_dir import WEIGHT_PHASES, RunDir
from tfspline.trouble import not_finite
from tfspline.wrapping import unwrap, wrap

_SAMPLE_SIZE = 512  # training images
_CODES_SIZE = 2**20  # bytes of region codes that are kept of an epoch


class Training:
    """What the phases of a run make, load and train their networks with, all as the recipe has it.

    Attributes:
        recipe, folder, verbose, publish: as they were given.
        keras: the module of the recipe's Keras.
        strategy: the `tf.distribute` strategy that networks are made and trained under.
        data: the `Dataset`.
        steps: how many training steps an epoch has.

    Args:
        recipe: see `tfspline.runner.run`, as for all others.
        folder: where epochs are recorded and checkpoints are.
        verbose: as in Keras' `fit`.
        publish: whether the region codes of the dense epochs are kept, for pictures.
        dataset: what `recipe.load_dataset()` returns, if it is there already.

    Raises:
        ValueError, OSError: data, or a batch size, that does not fit the recipe.
    """

    def __init__(
        self, recipe: Recipe, folder: RunDir, verbose: int = 1, publish: bool = True, dataset: Dataset | None = None
    ):
        self.recipe, self.folder, self.verbose, self.publish = recipe, folder, verbose, publish
        self.keras = _keras.keras_named(recipe.keras)
        importlib.import_module(f"tfspline.layers.{recipe.keras}")  # which checkpoints hold
        self.strategy = strategy_of(recipe)
        self.data = recipe.load_dataset() if dataset is None else dataset
        self.steps = self.data.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)

    def check(self) -> None:
        """Raises the ValueError for a recipe that does not fit the images: the network, the augmentation, looks that
        are rarer than epochs, or batches that the devices cannot share equally."""
        recipe, held_out, devices = self.recipe, self.data.validation, self.strategy.num_replicas_in_sync
        models.check(recipe.network, self.data.input_shape, self.data.classes, recipe.width, recipe.keras)
        self.data.augmentation(recipe.augment)
        if recipe.eb_every and recipe.eb_every > self.steps:
            raise ValueError(
                f"Expected eb_every to be at most the {self.steps} steps of an epoch. Received: {recipe.eb_every}"
            )
        size = recipe.batch_size
        first = size if held_out is None else min(size, len(held_out))
        if size % devices or first % devices:  # Keras 3 cannot begin a training or a validation with such a one
            raise ValueError(
                f"Expected a batch_size that is a multiple of the number of devices, {devices}, and as many images "
                f"held out, or a multiple. Received: batch_size={size}, {len(held_out or ())} images held out"
            )

    def sample(self) -> tuple:
        """The training images on which the partition is watched and units are looked at, and their labels."""
        return self.data.sample(_SAMPLE_SIZE)

    def fresh(self) -> Any:
        """The network as its seed makes it, wrapped to train faster, not compiled."""
        recipe = self.recipe
        self.keras.utils.set_random_seed(recipe.seed)
        return wrap(models.build(recipe.network, self.data.input_shape, self.data.classes, recipe.width, recipe.keras))

    def load(self, phase: str) -> Any:
        """The network that a phase left, a fresh one before the first, and its optimizer, ready to be trained on."""
        left = self.folder.last_epoch(phase) is not None
        with self.strategy.scope():
            model = _keras.load_model(self.keras, self.folder.checkpoint(phase)) if left else self.fresh()
            if phase in WEIGHT_PHASES:
                hold_zeros(model)
            self.compile(model)
        return model

    def penalize(self, model: Any) -> None:
        """Adds the L1 norm of a network's gammas to its loss, as the recipe has it in the search: network slimming
        (Liu et al., ICCV 2017)."""
        if not self.recipe.gamma_l1:
            return
        penalty = self.keras.regularizers.L1(self.recipe.gamma_l1)
        with self.strategy.scope():
            for layer in _keras.layer_paths(model).values():
                if _keras.of_class(layer, "BatchNormalization") and layer.gamma is not None:
                    _keras.add_penalty(layer, "gamma", penalty)
            self.compile(model)

    def ordinary(self, model: Any) -> Any:
        """A trained network as others are to see it, with nothing of tfspline in it."""
        model = unwrap(model)
        self.compile(model)
        return model

    def compile(self, model: Any) -> None:
        """Compiles for training; an optimizer that the model was loaded with hands its state on."""
        optimizer = self.recipe.optimizer()
        optimizer.build(model.trainable_variables)  # or Keras warns when what is saved is loaded
        saved = getattr(model, "optimizer", None)
        if saved is not None:
            for variable, value in zip(optimizer.variables, saved.variables, strict=True):
                variable.assign(value)
        loss, metrics = self.keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]
        if model.losses:  # that are added to the cross entropy, which is to be seen as well
            metrics.append(self.keras.metrics.SparseCategoricalCrossentropy("cross_entropy", from_logits=True))
        model.compile(optimizer, loss, metrics=metrics)

    def train_on(self, phase: str, after: str, epochs: int, callback: Any = None) -> Any:
        """Trains the network that the phase `after` left until `epochs` are done, or goes on with `phase` where it was
        interrupted; returns it."""
        done = self.folder.last_step(phase)
        model = self.load(phase if done else after)
        done = done or self.folder.last_step(after)
        while done < epochs * self.steps:
            self.fit(phase, model, done, epochs, callback)
            done = self.folder.last_step(phase)
        return model

    def fit(self, phase: str, model: Any, done: int, epochs: int, callback: Any = None) -> None:
        """Trains on after `done` steps until `epochs` are done, or `callback` stops it; records every epoch. Inside an
        epoch it goes to the end of that one only, since Keras' epochs are all as long.

        Args:
            phase: what the epochs are recorded as.
            model: a network that `load` has returned.
            done: how many steps the run has trained before.
            epochs: where it ends, counted from the beginning of the run.
            callback: the EarlyBird of the search, or a SplinePruning; its state is saved with each checkpoint.

        Raises:
            ValueError: a loss, at any step, or a weight, at the end of an epoch, that is not finite any more; nothing
                of that epoch is recorded.
        """
        recipe, callbacks = self.recipe, self.keras.callbacks
        first_epoch, first_step = divmod(done, self.steps)
        held_out = None
        if self.data.validation is not None:
            held_out = self.data.evaluation_batches(recipe.batch_size, "validation")
        watch = self._watch(model) if self.publish and phase in ("search", "baseline") else None
        model.fit(
            self.data.train_batches(recipe.batch_size, first_epoch, recipe.augment, self.steps, first_step),
            steps_per_epoch=self.steps - first_step,
            initial_epoch=first_epoch,
            epochs=first_epoch + 1 if first_step else epochs,
            validation_data=held_out,
            shuffle=False,  # the batches are; Keras 3 warns otherwise
            verbose=self.verbose,
            callbacks=[
                callbacks.LearningRateScheduler(recipe.learning_rate_at),
                *([] if callback is None else [callback]),
                callbacks.TensorBoard(self.folder.file("logs", phase), write_graph=False),
                _Record(self, phase, done, callback, watch),
            ],
        )

    def _watch(self, model):
        """What keeps the region codes of an epoch of the dense training, for the distances between all epochs.

        These need all codes at once, in the end. So they are of fewer images than the early bird looks at, where its
        would fill the disk: a ResNet-56 has 66 KB an image.
        """
        encode, (images, _) = RegionEncoder(model), self.sample()
        size = sum(-(-bits // 8) for bits in encode(images[:1]).bits.values())
        images = images[: max(1, _CODES_SIZE // size)]
        return lambda epoch: encode(images).save(self.folder.codes(epoch))


class _Record(_keras.StepCallback):
    """Records each epoch of a phase: a row of the history, with a checkpoint of the network and of `callback`."""

    def __init__(self, training, phase, done, callback, watch):
        super().__init__()
        self.recipe, self.folder, self.phase, self.steps = training.recipe, training.folder, phase, training.steps
        self.done, self.callback, self.watch = done, callback, watch

    def on_train_begin(self, logs=None):
        self.uncounted = self.done - _keras.iterations(self.model)  # the optimizer of a slim network begins anew
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self.refuse("a loss that stays", float(logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.start
        if broken := not_finite(self.model):
            self.refuse("weights that stay", f"others in layer {broken!r}")
        row = {"phase": self.phase, "epoch": epoch + 1, "steps": self.trained}
        row |= {name: float(value) for name, value in logs.items()}
        row.pop("lr", None)  # tf_keras' name for the learning rate
        row |= {"learning_rate": self.recipe.learning_rate_at(epoch), "seconds": seconds}
        if self.watch:
            self.watch(epoch + 1)
        self.folder.record(row, self.save)
        if self.phase == "search" and self.callback.found:
            self.model.stop_training = True  # with a gradual schedule the bird itself leaves the epoch whole
        self.start = time.perf_counter()

    @property
    def trained(self):
        """How many steps were trained, from the beginning of the run."""
        return self.uncounted + _keras.iterations(self.model)

    def refuse(self, what, received):
        raise ValueError(
            f"Expected {what} finite. Received: {received} after step {self.trained}, in epoch "
            f"{math.ceil(self.trained / self.steps)} of the {self.phase}; try a smaller learning_rate in a new run_dir"
        )

    def save(self, path):
        self.model.save(path(".keras"))
        if self.callback is not None:
            self.callback.save(path(".npz"))


def strategy_of(recipe: Recipe) -> tf.distribute.Strategy:
    """What a recipe is trained under: a new strategy for all devices, or the one that is active."""
    if recipe.strategy == "none":
        return tf.distribute.get_strategy()
    # By itself it would take one CPU, even where that is several logical devices.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
