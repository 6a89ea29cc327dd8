"""Trains one network in the folder of a run: from a checkpoint to the next, each epoch recorded."""

import contextlib
import importlib
import importlib.util
import math
import time
from typing import Any

import tensorflow as tf

from tfspline import _keras, models
from tfspline._keras.trouble import not_finite
from tfspline._utils.files import read_npz, write_npz
from tfspline._utils.workers import is_chief, join, wait
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.datasets import Dataset
from tfspline.layers.wrapping import unwrap, wrap
from tfspline.pruning.planning import plan
from tfspline.recipe.checkpoints import WEIGHT_PHASES
from tfspline.recipe.magnitude import hold_zeros
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.recipe_checks import BUDGETS
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.stopping import Stopper
from tfspline.spline.codes import RegionEncoder

_SAMPLE_SIZE = 512  # training images
_CODES_SIZE = 2**20  # bytes of region codes that are kept of an epoch
_METRICS = ".metrics.npz"  # ending of what the metrics of an epoch that is not over have counted
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
        stopper: what may ask to stop inside an epoch.

    Args:
        recipe: see `tfspline.recipe.runner.run`, as for all others.
        folder: where epochs are recorded and checkpoints are.
        verbose: as in Keras' `fit`.
        publish: whether the region codes of the dense epochs are kept, for pictures.
        dataset: what `recipe.load_dataset()` returns, if it is there already.
        stopper: entered by who wants to be able to stop; by default nothing stops.
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
        stopper: Stopper | None = None,
        strategy: tf.distribute.Strategy | None = None,
    ):
        self.recipe, self.folder, self.publish = recipe, folder, publish
        self.stopper = stopper or Stopper()
        self.keras = _keras.keras_named(recipe.keras)
        importlib.import_module(f"tfspline.layers.{recipe.keras}")  # which checkpoints hold
        if recipe.deterministic:
            self.keras.utils.set_random_seed(recipe.seed)  # ops without a seed are refused then
            tf.config.experimental.enable_op_determinism()
        self.strategy = strategy_of(recipe) if strategy is None else strategy
        self.chief = is_chief(self.strategy)
        self.verbose = verbose if self.chief else 0
        self.data = recipe.load_dataset() if dataset is None else dataset
        self.steps = self.data.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)

    def check(self) -> None:
        """Raises the ValueError for a recipe that does not fit the images: the network, the augmentation, looks that
        are rarer than epochs, or batches that the devices cannot share equally; and for a budget that cannot be met
        after the longest search, or by which no unit goes."""
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
        if not self.folder.history:
            self._check_budget()

    def _check_budget(self):
        recipe, limit = self.recipe, self.recipe.search_limit
        options = {"scope": recipe.scope, "min_units": recipe.min_units, "criterion": "random"}  # as many go by any
        try:
            chosen = plan(unwrap(self.fresh()), recipe.ratio, max_flops=recipe.slim_share(limit), **options)
        except ValueError as error:
            if recipe.training_flops_reduction is None:
                raise
            raise ValueError(
                f"Expected a training_flops_reduction that can be met after a search of {limit} epochs. Received: "
                f"{recipe.training_flops_reduction:g}, which leaves too little to the slim network. {error}"
            ) from error
        if not chosen.removed.any():
            given = {name: getattr(recipe, name) for name in (*BUDGETS, "min_units")}
            raise ValueError(
                f"Expected a budget by which units go. Received, of {recipe.network!r}, by which none goes: "
                f"{', '.join(f'{name}={value}' for name, value in given.items() if value is not None)}"
            )

    def sample(self) -> tuple:
        """The training images on which the partition is watched and units are looked at, and their labels."""
        return self.data.sample(_SAMPLE_SIZE)

    def early_bird(self) -> EarlyBird:
        """The early bird of the search, as far as that has come."""
        recipe = self.recipe
        # A probe that is given is the same again after an interruption. Gradual schedules begin with an epoch; `fit`
        # ends the search then.
        probe = self.sample()[0] if recipe.eb_metric == "partition" else None
        bird = recipe.early_bird(probe=probe, verbose=self.verbose, stop_training=not recipe.gradual)
        if self.folder.last_step("search"):
            bird.load(self.folder.checkpoint("search", ".npz"))
        return bird

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
            ValueError: a loss, at any step, or a weight, at the end of an epoch, that is not finite any more; nothing
                of that epoch is recorded.
            Stopped: a signal has come; the step under way is trained and recorded.
        """
        recipe, callbacks = self.recipe, self.keras.callbacks
        first_epoch, first_step = divmod(done, self.steps)
        held_out = None
        if self.data.validation is not None:
            held_out = self.data.evaluation_batches(recipe.batch_size, "validation").with_options(_EACH_BATCH_SHARED)
        watch = self._watch(model) if self.publish and phase in ("search", "baseline") else None
        tensorboard = []
        if self.chief and importlib.util.find_spec("tensorboard"):
            tensorboard = [callbacks.TensorBoard(self.folder.file("logs", phase), write_graph=False)]
        # One of several workers that saved by itself, inside an epoch, would leave the others waiting.
        with contextlib.nullcontext() if recipe.strategy == "multi_worker" else self.stopper.steps():
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
                    *tensorboard,
                    _Record(self, phase, done, epochs, callback, watch, *self._begun(phase, model, done)),
                ],
            )

    def _begun(self, phase, model, done):
        """What the metrics had counted of an epoch that a signal has stopped, and how many seconds that took."""
        if not done % self.steps or self.folder.last_step(phase) != done:
            return [], 0.0
        model.evaluate(self.data.evaluation_batches(self.recipe.batch_size).take(1), verbose=0)  # makes the metrics
        counted = read_npz(self.folder.checkpoint(phase, _METRICS), lambda arrays: list(arrays.values()))
        return counted, self.folder.history[-1]["seconds"]

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


class _Record(_keras.StepCallback):
    """Records each epoch of a phase: a row of the history, with a checkpoint of the network and of `callback`. Of an
    epoch that a signal stops it records what was trained, and what the metrics had counted."""

    def __init__(self, training, phase, done, epochs, callback, watch, counted, seconds):
        super().__init__()
        self.training, self.phase, self.done, self.epochs = training, phase, done, epochs
        self.callback, self.watch, self.counted, self.seconds = callback, watch, counted, seconds

    def set_params(self, params):
        super().set_params(params)
        # Where it begins inside an epoch, Keras knows of the rest of that only. All callbacks share what they are told.
        params |= {"steps": self.training.steps, "epochs": self.epochs}

    def on_train_begin(self, logs=None):
        self.uncounted = self.done - _keras.iterations(self.model)  # the optimizer of a slim network begins anew
        self.start = time.perf_counter() - self.seconds

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if self.counted:
            for variable, value in zip(self.metrics(), self.counted, strict=True):
                variable.assign(value)
            self.counted = []

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self.refuse("a loss that stays", float(logs["loss"]))
        stopper = self.training.stopper
        if stopper.received is None or self.model.stop_training or not self.trained % self.training.steps:
            return  # what is the end of an epoch is recorded as such
        counted = {str(i): variable.numpy() for i, variable in enumerate(self.metrics())}
        self.record({}, {_METRICS: lambda path: write_npz(path, counted)})
        stopper.check()

    def on_epoch_end(self, epoch, logs=None):
        facts = {name: float(value) for name, value in logs.items()}
        facts.pop("lr", None)  # tf_keras' name for the learning rate
        facts["learning_rate"] = self.training.recipe.learning_rate_at(epoch)
        if self.watch:
            self.watch(epoch + 1)
        self.record(facts, {})
        if self.phase == "search" and self.callback.found:
            self.model.stop_training = True  # with a gradual schedule the bird itself leaves the epoch whole
        self.start = time.perf_counter()
        self.training.stopper.check()

    def record(self, facts, files):
        if broken := not_finite(self.model):
            self.refuse("weights that stay", f"others in layer {broken!r}")
        row = {"phase": self.phase, "epoch": self.epoch + 1, "steps": self.trained, **facts}
        files = {".keras": self.model.save, **files}
        if self.callback is not None:
            files[".npz"] = self.callback.save
        self.training.folder.record(row | {"seconds": time.perf_counter() - self.start}, files)
        self.training.wait()

    def refuse(self, what, received):
        raise ValueError(
            f"Expected {what} finite. Received: {received} after step {self.trained}, in epoch {self.epoch + 1} of the "
            f"{self.phase}; try a smaller learning_rate in a new run_dir"
        )

    @property
    def trained(self):
        """How many steps were trained, from the beginning of the run."""
        return self.uncounted + _keras.iterations(self.model)

    def metrics(self):
        return [variable for metric in self.model.metrics for variable in metric.variables]


def strategy_of(recipe: Recipe) -> tf.distribute.Strategy:
    """What a recipe is trained under: a new strategy for all devices or all workers, or the one that is active."""
    if recipe.strategy == "none":
        return tf.distribute.get_strategy()
    if recipe.strategy == "multi_worker":
        return join()
    # By itself it would take one CPU, even where that is several logical devices.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
