"""Trains one network in the folder of a run: from a checkpoint to the next, each epoch recorded."""

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
from tfspline.workers import is_chief, join, wait
from tfspline.wrapping import unwrap, wrap

_SAMPLE_SIZE = 512  # training images
_CODES_SIZE = 2**20  # bytes of region codes that are kept of an epoch
_EACH_BATCH_SHARED = tf.data.Options()  # among workers
_EACH_BATCH_SHARED.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA


class Training:
    """What the phases of a run make, load and train their networks with, all as the recipe has it.

    Attributes:
        recipe, folder, verbose, publish: as they were given.
        keras: the module of the recipe's Keras.
        strategy: the `tf.distribute` strategy that networks are made and trained under.
        chief: whether this process is the one of all workers that writes; True where there is only one.
        data: the `Dataset`.
        steps: how many training steps an epoch has.

    Args:
        recipe: see `tfspline.runner.run`, as for all others.
        folder: where epochs are recorded and checkpoints are.
        verbose: as in Keras' `fit`.
        publish: whether the region codes of the dense epochs are kept, for pictures.
        dataset: what `recipe.load_dataset()` returns, if it is there already.
        strategy: what `strategy_of(recipe)` returns, if it is there already.

    Raises:
        ValueError, OSError: data, or a batch size, that does not fit the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunDir,
        verbose: int = 1,
        publish: bool = True,
        dataset: Dataset | None = None,
        strategy: tf.distribute.Strategy | None = None,
    ):
        self.recipe, self.folder, self.publish = recipe, folder, publish
        self.keras = _keras.keras_named(recipe.keras)
        self.strategy = strategy_of(recipe) if strategy is None else strategy
        self.chief = is_chief(self.strategy)
        self.verbose = verbose if self.chief else 0
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
            model = self.keras.models.load_model(self.folder.checkpoint(phase)) if left else self.fresh()
            if phase in WEIGHT_PHASES:
                hold_zeros(model)
            self.compile(model)
        self.wait()  # until all workers have read what the chief may replace
        return model

    def wait(self) -> None:
        """Waits until all workers have come to this place, and see the files that the chief has written before."""
        wait(self.strategy)

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
        model.distribute_reduction_method = "first"  # or tf_keras shows the sum over all replicas within an epoch

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
            ValueError: a loss that is no number any more.
        """
        recipe, callbacks = self.recipe, self.keras.callbacks
        first_epoch, first_step = divmod(done, self.steps)
        held_out = None
        if self.data.validation is not None:
            held_out = self.data.evaluation_batches(recipe.batch_size, "validation").with_options(_EACH_BATCH_SHARED)
        watch = self._watch(model) if self.publish and phase in ("search", "baseline") else None
        model.fit(
            self._train_batches(first_epoch, first_step),
            steps_per_epoch=self.steps - first_step,
            initial_epoch=first_epoch,
            epochs=first_epoch + 1 if first_step else epochs,
            validation_data=held_out,
            shuffle=False,  # the batches are; Keras 3 warns otherwise
            verbose=self.verbose,
            callbacks=[
                callbacks.LearningRateScheduler(recipe.learning_rate_at),
                *([] if callback is None else [callback]),
                *([callbacks.TensorBoard(self.folder.file("logs", phase), write_graph=False)] if self.chief else []),
                _Record(self, phase, done, callback, watch),
            ],
        )

    def _train_batches(self, epoch, step):
        """The batches of `Dataset.train_batches`; where there are several workers, the shares of this one."""
        recipe, data = self.recipe, self.data

        def batches(context):
            share = context.input_pipeline_id, context.num_input_pipelines
            return data.train_batches(recipe.batch_size, epoch, recipe.augment, self.steps, step, share)

        if recipe.strategy != "multi_worker":
            return batches(tf.distribute.InputContext())
        size = recipe.batch_size // self.strategy.num_replicas_in_sync
        return self.strategy.distribute_datasets_from_function(lambda context: batches(context).rebatch(size))

    def _watch(self, model):
        """What keeps the region codes of an epoch of the dense training, for the distances between all epochs.

        These need all codes at once, in the end. So they are of fewer images than the early bird looks at, where its
        would fill the disk: a ResNet-56 has 66 KB an image.
        """
        encode, (images, _) = RegionEncoder(model), self.sample()
        size = sum(-(-bits // 8) for bits in encode(images[:1]).bits.values())
        images = images[: max(1, _CODES_SIZE // size)]

        def watch(epoch):
            codes = encode(images)  # all workers' statistics of BatchNormalization go into it
            if self.chief:
                codes.save(self.folder.codes(epoch))

        return watch


class _Record(_keras.Callback):
    """Records each epoch of a phase: a row of the history, with a checkpoint of the network and of `callback`."""

    def __init__(self, training, phase, done, callback, watch):
        super().__init__()
        self.training, self.recipe, self.folder, self.phase = training, training.recipe, training.folder, phase
        self.done, self.callback, self.watch = done, callback, watch

    def on_train_begin(self, logs=None):
        self.uncounted = self.done - _keras.iterations(self.model)  # the optimizer of a slim network begins anew
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.start
        if not math.isfinite(logs["loss"]):
            raise ValueError(
                f"Expected a loss that stays finite. Received: {logs['loss']} in epoch {epoch + 1} of "
                f"the {self.phase}; try a smaller learning_rate."
            )
        row = {"phase": self.phase, "epoch": epoch + 1, "steps": self.uncounted + _keras.iterations(self.model)}
        row |= {name: float(value) for name, value in logs.items()}
        row.pop("lr", None)  # tf_keras' name for the learning rate
        row |= {"learning_rate": self.recipe.learning_rate_at(epoch), "seconds": seconds}
        if self.watch:
            self.watch(epoch + 1)
        self.folder.record(row, self.save)
        self.training.wait()
        if self.phase == "search" and self.callback.found:
            self.model.stop_training = True  # with a gradual schedule the bird itself leaves the epoch whole
        self.start = time.perf_counter()

    def save(self, path):
        self.model.save(path(".keras"))
        if self.callback is not None:
            self.callback.save(path(".npz"))


def strategy_of(recipe: Recipe) -> tf.distribute.Strategy:
    """What a recipe is trained under: a new strategy for all devices or all workers, or the one that is active."""
    if recipe.strategy == "none":
        return tf.distribute.get_strategy()
    if recipe.strategy == "multi_worker":
        return join()
    # By itself it would take one CPU, even where that is several logical devices.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
