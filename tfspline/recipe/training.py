"""Train the networks of a run from checkpoint to checkpoint."""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline._utils.files import read_npz
from tfspline._utils.workers import is_chief, join, wait
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.early_bird_tests import TESTS
from tfspline.datasets import Dataset
from tfspline.recipe import networks
from tfspline.recipe.checkpoints import WEIGHT_PHASES
from tfspline.recipe.checks import check_dataset, check_removal
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.recording import METRICS, Recorder, Start
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.stopping import Stopper
from tfspline.spline.codes import RegionEncoder

_SAMPLE_SIZE = 512  # training images
_CODES_SIZE = 2**20  # bytes of region codes that are kept per epoch
_EACH_BATCH_SHARED = tf.data.Options()  # among workers
_EACH_BATCH_SHARED.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA


class Training:
    """Trains the networks of one run and records their epochs in its folder; none of its attributes changes.

    With `publish`, the region codes of dense epochs are kept for pictures. A `stopper` is an entered context.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunDir,
        verbose: int = 1,
        publish: bool = True,
        dataset: Dataset | None = None,
        stopper: Stopper | None = None,
        strategy: tf.distribute.Strategy | None = None,
    ):
        importlib.import_module(f"tfspline.layers.{recipe.keras}")  # registers the layers that checkpoints contain
        if recipe.deterministic:
            _keras.keras_named(recipe.keras).utils.set_random_seed(recipe.seed)  # ops without a seed are errors then
            tf.config.experimental.enable_op_determinism()
        self.recipe, self.folder, self.publish = recipe, folder, publish
        self.stopper = stopper or Stopper()
        self.strategy = strategy_of(recipe) if strategy is None else strategy
        self.chief = is_chief(self.strategy)  # whether this process writes files
        self.verbose = verbose if self.chief else 0
        self.data = recipe.load_dataset() if dataset is None else dataset
        self.steps = self.data.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)

    def check(self) -> None:
        """Raise a ValueError if the recipe does not fit the dataset or the devices, or cannot meet its budget.

        Raise an ImportError, or log a warning, if a package is missing that is needed later.
        """
        if self.recipe.gradual:
            _keras.tfmot()
        for package, what in (("matplotlib", "pictures"), ("tensorboard", "logs for TensorBoard")):
            if self.chief and not importlib.util.find_spec(package):
                logging.warning("%s is not installed, so there are no %s: pip install 'tfspline[plots]'", package, what)
        check_dataset(self.recipe, self.data, self.steps, self.strategy.num_replicas_in_sync)
        if not self.folder.history:
            check_removal(self.recipe, self.data)

    def sample(self) -> tuple:
        """The training images, and their labels, for the early bird and for criteria that use data."""
        return self.data.sample(_SAMPLE_SIZE)

    def early_bird(self) -> EarlyBird:
        """The early-bird callback of the search, in the state of the last checkpoint."""
        recipe = self.recipe
        # A given probe is the same after an interruption, while recorded inputs would not be. A gradual schedule starts
        # at the beginning of an epoch, so `Recorder` ends the search there.
        probe = self.sample()[0] if TESTS[recipe.eb_metric].uses_inputs else None
        bird = recipe.early_bird(probe=probe, verbose=self.verbose, stop_training=not recipe.gradual)
        if self.folder.last_step("search"):
            self.folder.read("search", ".npz", bird.load)
        return bird

    def load(self, phase: str) -> KerasModel:
        """The network at the end of a phase, or a new one if it has not started, with its optimizer, compiled."""
        with self.strategy.scope():
            if self.folder.last_epoch(phase) is None:
                model = networks.build(self.recipe, self.data)
            else:
                load = functools.partial(_keras.load_model, _keras.keras_named(self.recipe.keras))
                model = self.folder.read(phase, ".keras", load)
            if phase in WEIGHT_PHASES:
                networks.hold_zeros(model)
            networks.compile_network(self.recipe, model)
        self.wait()  # until all workers have read what the chief may replace
        return model

    def wait(self) -> None:
        """Wait until all workers call this. Files that the chief wrote before are then visible to all of them."""
        wait(self.strategy)

    def train_on(self, phase: str, after: str, epochs: int, callback: Any = None) -> KerasModel:
        """Train the network of the phase `after`, or continue `phase` if it has started, until `epochs` are done."""
        done = self.folder.last_step(phase)
        model = self.load(phase if done else after)
        done = done or self.folder.last_step(after)
        while done < epochs * self.steps:
            self.fit(phase, model, done, epochs, callback)
            done = self.folder.last_step(phase)
        return model

    def fit(self, phase: str, model: KerasModel, done: int, epochs: int, callback: Any = None) -> None:
        """Train a network from `load`, whose run has `done` steps, until `epochs` are done or `callback` stops it.

        If `done` is within an epoch, this trains to the end of that epoch only, because all epochs of a `fit` have the
        same length. Raises a ValueError, without recording the epoch, if the loss or a weight is not finite.
        """
        first_epoch, first_step = divmod(done, self.steps)
        recorder = Recorder(self, phase, self._start(phase, model, done, epochs), callback, self._watch(phase, model))
        scheduler = _keras.keras_named(self.recipe.keras).callbacks.LearningRateScheduler(self.recipe.learning_rate_at)
        # If one of several workers stopped within an epoch by itself, the others would wait for it.
        several = self.recipe.strategy == "multi_worker"
        with contextlib.nullcontext() if several else self.stopper.steps():
            model.fit(
                self._train_batches(first_epoch, first_step),
                steps_per_epoch=self.steps - first_step,
                initial_epoch=first_epoch,
                epochs=first_epoch + 1 if first_step else epochs,
                validation_data=self._validation_batches(),
                shuffle=False,  # the dataset shuffles; otherwise Keras 3 warns
                verbose=self.verbose,
                callbacks=[scheduler, *([] if callback is None else [callback]), *self._tensorboard(phase), recorder],
            )

    def _start(self, phase, model, done, epochs):
        """Where a `fit` starts, with the state of the metrics if a signal stopped `phase` within an epoch."""
        if not done % self.steps or self.folder.last_step(phase) != done:
            return Start(done, epochs)
        model.evaluate(self.data.evaluation_batches(self.recipe.batch_size).take(1), verbose=0)  # creates the metrics
        metrics = self.folder.read(phase, METRICS, functools.partial(read_npz, build=dict))
        return Start(done, epochs, metrics, self.folder.history[-1]["seconds"])

    def _train_batches(self, epoch, step):
        """The batches of `Dataset.train_batches`; with several workers, this worker's share of them."""
        recipe, data = self.recipe, self.data

        def batches(context):
            share = context.input_pipeline_id, context.num_input_pipelines
            return data.train_batches(recipe.batch_size, epoch, recipe.augment, self.steps, step, share)

        if recipe.strategy != "multi_worker":
            return batches(tf.distribute.InputContext())
        size = recipe.batch_size // self.strategy.num_replicas_in_sync
        return self.strategy.distribute_datasets_from_function(lambda context: batches(context).rebatch(size))

    def _validation_batches(self):
        if self.data.validation is None:
            return None
        return self.data.evaluation_batches(self.recipe.batch_size, "validation").with_options(_EACH_BATCH_SHARED)

    def _tensorboard(self, phase):
        if not self.chief or not importlib.util.find_spec("tensorboard"):
            return []
        callbacks = _keras.keras_named(self.recipe.keras).callbacks
        return [callbacks.TensorBoard(self.folder.file("logs", phase), write_graph=False)]

    def _watch(self, phase, model) -> Callable[[int], None] | None:
        """A function that saves the region codes of an epoch of the dense training, for the distances between epochs.

        All codes are compared at the end, so they are of fewer images than those of the early bird, which could fill
        the disk: a ResNet-56 has 66 KB of codes per image.
        """
        if not self.publish or phase not in ("search", "baseline"):
            return None
        encode, (images, _) = RegionEncoder(model), self.sample()
        size = sum(-(-bits // 8) for bits in encode(images[:1]).bits.values())
        images = images[: max(1, _CODES_SIZE // size)]

        def watch(epoch):
            codes = encode(images)  # every worker, because batch normalization combines the statistics of all
            if self.chief:
                codes.save(self.folder.codes(epoch))

        return watch


def strategy_of(recipe: Recipe) -> tf.distribute.Strategy:
    """The strategy of a recipe: a new one for all devices or all workers, or the active one for "none"."""
    if recipe.strategy == "none":
        return tf.distribute.get_strategy()
    if recipe.strategy == "multi_worker":
        return join()
    # By default MirroredStrategy uses one CPU even if there are several logical ones.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
