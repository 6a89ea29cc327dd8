"""Runs a recipe in a folder: search, sparsify, prune, retrain, baseline, report; can be interrupted at any moment."""

import importlib.metadata
import math
import os
import platform
import time
from typing import Any

import tensorflow as tf

from tfspline import _keras, models, report
from tfspline.codes import RegionEncoder
from tfspline.data import Dataset
from tfspline.flops import flops, training_flops
from tfspline.inputs import probe_inputs
from tfspline.magnitude import hold_zeros, prune_weights, zeros
from tfspline.masks import Masks
from tfspline.plan import Plan, plan
from tfspline.recipe import Recipe
from tfspline.run_dir import RunDir
from tfspline.serving import export
from tfspline.slim import difference
from tfspline.wrapping import unwrap, wrap

SLIM_PHASES = ("search", "sparsify", "prune", "rewind", "retrain")
WEIGHT_PHASES = ("prune_weights", "retrain_weights")
PHASES = (*SLIM_PHASES, *WEIGHT_PHASES, "baseline")
_PROBE_SIZE = 512  # training images
_CODES_SIZE = 2**20  # bytes of region codes that are kept of an epoch
_TOLERANCE = 1e-4  # of the largest output; float32 rounds in another order where there are fewer units


def run(
    recipe: Recipe,
    run_dir: str | os.PathLike,
    verbose: int = 1,
    search_dir: str | os.PathLike | None = None,
    publish: bool = True,
    dataset: Dataset | None = None,
) -> dict:
    """Carries a recipe out, or goes on with it where it was interrupted.

    Args:
        recipe: what to do.
        run_dir: a folder for it: a new one, or that of the same recipe. It is left holding `flags.cfg`,
            `history.jsonl` (a line an epoch, one for the pruning), `summary.json`, `plan.json`, `slim.keras`,
            `dense.keras` (at the end of the baseline if there is one, otherwise before any unit went),
            `weights_pruned.keras` (with `weight_pruning`), `distances.npz` (between the partitions of the dense
            epochs), `serving/<version>/`, pictures, `report.html` with all of it, `logs/` for TensorBoard, and in
            `checkpoints/` the end of the search.
        verbose: as in Keras' `fit`: 0 is silent, 1 shows a progress bar, 2 prints one line an epoch.
        search_dir: the folder of another run, whose dense search is taken over in place of one of its own; the
            fields that define the search have to be the same. It is not read again once the search is in `run_dir`.
        publish: False leaves out what is made to be looked at or served: `serving/`, pictures, `distances.npz` with
            the region codes that it is made of, and `report.html`.
        dataset: what `recipe.load_dataset()` returns, where many runs share it.

    Returns:
        What is in `summary.json`.

    Raises:
        ValueError, OSError: data, a `run_dir` or a `search_dir` that does not fit the recipe; nothing has been
            written then.
        ValueError: a training whose loss is no number any more, or a budget that pruning cannot meet.

    Example:
        >>> import tempfile
        >>> recipe = Recipe(network="mlp", epochs=10, ratio=0.5, learning_rate=0.02)
        >>> summary = run(recipe, tempfile.mkdtemp(), verbose=0)
        >>> summary["training_flops_reduction"] > 1
        True
    """
    folder = RunDir(os.fspath(run_dir), recipe.as_flags())
    if folder.summary() is None:
        taken = None if search_dir is None or folder.last_epoch("search") else _search(os.fspath(search_dir), recipe)
        _Run(recipe, folder, verbose, publish, dataset).run(taken)
    if publish and not os.path.exists(folder.file("report.html")):
        report.write(run_dir)
    return folder.summary()


def _search(path, recipe):
    """The run in a folder, whose search is over and the one that a recipe asks for."""
    other = RunDir.of(path)
    theirs, ours = (of.search_fields() for of in (Recipe.from_flags(other.flags), recipe))
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        expected, received = (", ".join(f"{name}={of.get(name)!r}" for name in names) for of in (theirs, ours))
        raise ValueError(f"Expected a recipe with the search of {path!r}: {expected}. Received: {received}")
    searched, phases = other.last_epoch("search"), [row["phase"] for row in other.history]
    if not searched or phases[-1] == "search" or not os.path.exists(other.checkpoint("search")):
        raise ValueError(
            f"Expected a search_dir with a search that is over, and its checkpoint. Received: {path!r}, with "
            f"{searched or 'no'} epochs of search{', not over' * (phases[-1:] == ['search'])}"
        )
    return other


class _Run:
    """A recipe under way in a folder; each phase leaves its network as a checkpoint for those after it."""

    def __init__(self, recipe, folder, verbose, publish=True, dataset=None):
        self.recipe, self.folder, self.verbose, self.publish = recipe, folder, verbose, publish
        self.keras = _keras.keras_named(recipe.keras)
        self.strategy = _strategy(recipe.strategy)
        self.data = recipe.load_dataset() if dataset is None else dataset
        self.steps = self.data.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)

    def run(self, taken=None):
        recipe, folder = self.recipe, self.folder
        # What does not fit the images is refused before anything is written.
        self.fresh()
        self.data.augmentation(recipe.augment)
        self.check_batches()
        folder.start()
        if taken:
            folder.take_search(taken)
        bird = self.search()
        self.sparsify()
        self.prune()
        self.rewind()
        slim = self.retrain()
        trained = {"dense": None, "slim": slim}  # in the order of pictures
        if recipe.weight_pruning:
            trained["weights_pruned"] = self.retrain_weights(slim)
        dense = self.train_on("baseline", "search", recipe.epochs) if recipe.baseline else self.load("search")
        dense = self.ordinary(dense)
        folder.put("dense.keras", dense.save)
        trained["dense"] = dense
        summary = self.summary(bird, **trained)
        if self.publish:
            self.draw(bird, summary, trained)
        folder.finish(summary)

    def check_batches(self):
        """Refuses looks that are rarer than epochs, and batches that the devices cannot share equally: Keras 3 cannot
        begin a training or a validation with such a one."""
        if self.recipe.eb_every and self.recipe.eb_every > self.steps:
            raise ValueError(
                f"Expected eb_every to be at most the {self.steps} steps of an epoch. Received: {self.recipe.eb_every}"
            )
        size, held_out, devices = self.recipe.batch_size, self.data.validation, self.strategy.num_replicas_in_sync
        first = size if held_out is None else min(size, len(held_out))
        if size % devices or first % devices:
            raise ValueError(
                f"Expected a batch_size that is a multiple of the number of devices, {devices}, and as many images "
                f"held out, or a multiple. Received: batch_size={size}, {len(held_out or ())} images held out"
            )

    def search(self):
        """Trains the dense network until the partition has settled; returns the early bird."""
        recipe, done = self.recipe, self.folder.last_step("search")
        # Gradual schedules begin with an epoch; `fit` ends the search then.
        bird = recipe.early_bird(probe=self.probe(), verbose=self.verbose, stop_training=not recipe.gradual)
        if done:
            bird.load(self.folder.checkpoint("search", ".npz"))
        if not bird.found and done < recipe.search_limit * self.steps:
            self.fit("search", self.penalized(self.load("search")), done, recipe.search_limit, bird)
        return bird

    def sparsify(self):
        """Switches units off little by little while the dense network trains on, if the schedule is a gradual one."""
        recipe, folder = self.recipe, self.folder
        if recipe.gradual and folder.last_epoch("prune") is None:
            pruning = recipe.pruning(self.steps, data=self.data.sample(_PROBE_SIZE))
            if folder.last_epoch("sparsify"):
                pruning.load(folder.checkpoint("sparsify", ".npz"))
            searched = folder.last_epoch("search") or 0
            self.train_on("sparsify", "search", searched + recipe.pruning_limit, pruning)

    def prune(self):
        """Makes a small network of what was searched or sparsified: chooses the units, unless they are off already,
        cuts them out, and checks that the small network does what the masked one does."""
        if self.folder.last_epoch("prune") is not None:
            return
        recipe, phase = self.recipe, "sparsify" if self.recipe.gradual else "search"
        start = time.perf_counter()
        images, labels = self.data.sample(_PROBE_SIZE)
        dense = self.ordinary(self.load(phase))
        chosen = self.choose(dense, (images, labels))
        slim = chosen.apply(dense)
        error = difference(chosen.mask(dense), slim, probe_inputs(dense, images))
        if not error <= _TOLERANCE:
            raise ValueError(
                f"Expected the slim network to do what the masked one does. Received: outputs that differ by "
                f"{error:.1e} of the largest; a bug of tfspline or of TensorFlow on this machine"
            )
        if recipe.compensate != "none":
            slim = chosen.apply(dense, images, recipe.compensate)
        seconds = time.perf_counter() - start
        if self.verbose:
            print(f"{chosen}\nmasked and slim network: the same function, to {error:.1e} of the largest output")
        self.folder.put("plan.json", chosen.save)
        row = {"phase": "prune", "epoch": self.folder.last_epoch(phase) or 0, "steps": self.folder.last_step(phase)}
        row |= {"ratio": chosen.ratio, "difference": error, "seconds": seconds}
        self.folder.record(row, lambda path: wrap(slim).save(path(".keras")))

    def choose(self, dense, data):
        """The plan of what goes, by labelled training images."""
        recipe = self.recipe
        options = {"criterion": recipe.criterion, "scope": recipe.scope, "min_units": recipe.min_units}
        if recipe.gradual:
            masks = Masks.from_model(dense)
            return Plan(masks.graph, masks.off, {**options, "ratio": recipe.ratio, "seed": recipe.seed})
        share = recipe.slim_share(self.folder.last_step("search") / self.steps)
        return plan(dense, ratio=recipe.ratio, flops=share, seed=recipe.seed, data=data, **options)

    def rewind(self):
        """Gives the slim network other weights than the trained ones, if the recipe has it start anew."""
        recipe, folder = self.recipe, self.folder
        if not recipe.restarts or folder.last_epoch("rewind") is not None:
            return
        start = time.perf_counter()
        dense = unwrap(self.fresh())
        slim = Plan.load(folder.file("plan.json"), dense).apply(dense)
        if recipe.retrain_from == "random":
            self.keras.utils.set_random_seed(recipe.seed)
            slim = self.keras.models.clone_model(slim)
        row = {"phase": "rewind", "epoch": 0, "steps": 0, "seconds": time.perf_counter() - start}
        folder.record(row, lambda path: wrap(slim).save(path(".keras")))

    def retrain(self):
        """Trains the slim network to the end and publishes it; returns it."""
        slim = self.train_on("retrain", "rewind" if self.recipe.restarts else "prune", self.recipe.epochs)
        slim = self.ordinary(slim)
        self.folder.put("slim.keras", slim.save)
        if self.publish and not os.path.exists(self.folder.file("serving", "1")):
            export(slim, self.folder.file("serving"), version=1)
        return slim

    def retrain_weights(self, slim):
        """Trains the searched network to the end with as many single weights at zero as the slim one has fewer;
        returns it."""
        if self.folder.last_epoch("prune_weights") is None:
            start = time.perf_counter()
            model = self.load("search")
            prune_weights(model, flops(model).params - flops(slim).params)
            row = {"phase": "prune_weights", "epoch": self.folder.last_epoch("search") or 0}
            row |= {"steps": self.folder.last_step("search"), "seconds": time.perf_counter() - start}
            self.folder.record(row, lambda path: model.save(path(".keras")))
        model = self.ordinary(self.train_on("retrain_weights", "prune_weights", self.recipe.epochs))
        self.folder.put("weights_pruned.keras", model.save)
        return model

    def train_on(self, phase, after, epochs, *callbacks):
        """Trains the network that another phase left until `epochs` are done; returns it."""
        done = self.folder.last_step(phase)
        model = self.load(phase if done else after)
        done = done or self.folder.last_step(after)
        while done < epochs * self.steps:
            self.fit(phase, model, done, epochs, *callbacks)
            done = self.folder.last_step(phase)
        return model

    def fit(self, phase, model, done, epochs, *callbacks):
        """Trains on after `done` steps until `epochs` are done, or a callback stops it; records every epoch. Inside an
        epoch it goes to the end of that one only, since Keras' epochs are all as long."""
        recipe, callback_of = self.recipe, self.keras.callbacks
        first_epoch, first_step = divmod(done, self.steps)
        started = before = 0

        def begin(epoch, logs):
            nonlocal started, before
            started, before = time.perf_counter(), _keras.iterations(model)

        def record(epoch, logs):
            nonlocal done
            seconds = time.perf_counter() - started
            done += _keras.iterations(model) - before
            if not math.isfinite(logs["loss"]):
                raise ValueError(
                    f"Expected a loss that stays finite. Received: {logs['loss']} in epoch {epoch + 1} of "
                    f"the {phase}; try a smaller learning_rate."
                )
            row = {"phase": phase, "epoch": epoch + 1, "steps": done}
            row |= {name: float(value) for name, value in logs.items()}
            row.pop("lr", None)  # tf_keras' name for the learning rate
            row |= {"learning_rate": recipe.learning_rate_at(epoch), "seconds": seconds}
            if watch:
                watch(epoch)
            self.folder.record(row, save)
            if phase == "search" and callbacks[0].found:
                model.stop_training = True

        def save(path):
            model.save(path(".keras"))
            for callback in callbacks:
                callback.save(path(".npz"))

        watch = self.watch(model) if self.publish and phase in ("search", "baseline") else None
        held_out = self.data.validation
        model.fit(
            self.data.train_batches(recipe.batch_size, first_epoch, recipe.augment, self.steps, first_step),
            steps_per_epoch=self.steps - first_step,
            initial_epoch=first_epoch,
            epochs=first_epoch + 1 if first_step else epochs,
            validation_data=None if held_out is None else self.batches("validation"),
            shuffle=False,  # the batches are; Keras 3 warns otherwise
            verbose=self.verbose,
            callbacks=[
                callback_of.LambdaCallback(on_epoch_begin=begin),
                callback_of.LearningRateScheduler(recipe.learning_rate_at),
                *callbacks,
                callback_of.TensorBoard(self.folder.file("logs", phase), write_graph=False),
                callback_of.LambdaCallback(on_epoch_end=record),
            ],
        )

    def watch(self, model):
        """What keeps the region codes of an epoch of the dense training, for the distances between all epochs.

        These need all codes at once, in the end. So they are of fewer images than the early bird looks at, where its
        would fill the disk: a ResNet-56 has 66 KB an image.
        """
        encode, images = RegionEncoder(model), self.images()
        size = sum(-(-bits // 8) for bits in encode(images[:1]).bits.values())
        images = images[: max(1, _CODES_SIZE // size)]
        return lambda epoch: encode(images).save(self.folder.codes(epoch + 1))

    def load(self, phase):
        """The network that a phase left, a fresh one before the first, and its optimizer, ready to be trained on."""
        left = self.folder.last_epoch(phase) is not None
        with self.strategy.scope():
            model = self.keras.models.load_model(self.folder.checkpoint(phase)) if left else self.fresh()
            if phase in WEIGHT_PHASES:
                hold_zeros(model)
            self.compile(model)
        return model

    def penalized(self, model):
        """The network with the L1 norm of its gammas in the loss, as the recipe has it in the search: network slimming
        (Liu et al., ICCV 2017)."""
        if self.recipe.gamma_l1:
            penalty = self.keras.regularizers.L1(self.recipe.gamma_l1)
            with self.strategy.scope():
                for layer in _keras.layer_paths(model).values():
                    if _keras.of_class(layer, "BatchNormalization") and layer.gamma is not None:
                        _keras.add_penalty(layer, "gamma", penalty)
                self.compile(model)
        return model

    def fresh(self):
        """The network as its seed makes it, wrapped to train faster."""
        recipe = self.recipe
        self.keras.utils.set_random_seed(recipe.seed)
        return wrap(models.build(recipe.network, self.data.input_shape, self.data.classes, recipe.width, recipe.keras))

    def ordinary(self, model):
        """A trained network as others are to see it, with nothing of tfspline in it."""
        model = unwrap(model)
        self.compile(model)
        return model

    def compile(self, model):
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

    def probe(self):
        # A probe that is given is the same again after an interruption.
        return self.images() if self.recipe.eb_metric == "partition" else None

    def images(self):
        """The training images on which the partition is watched and units are looked at."""
        images, _ = self.data.sample(_PROBE_SIZE)
        return images

    def batches(self, split):
        return self.data.evaluation_batches(self.recipe.batch_size, split)

    def draw(self, bird, summary, trained):
        from tfspline import pictures  # matplotlib is slow to import, and only needed here

        pictures.draw(self.folder, self.data, bird, summary, trained)

    def summary(self, bird, dense, slim, weights_pruned=None):
        recipe, folder = self.recipe, self.folder
        (pruned,) = (row for row in folder.history if row["phase"] == "prune")
        steps = recipe.epochs * self.steps
        dense_training = training_flops(dense, steps * recipe.batch_size)
        slim_training = training_flops(dense, pruned["steps"] * recipe.batch_size)
        slim_training += training_flops(slim, (steps - recipe.retrained_from(pruned["steps"])) * recipe.batch_size)
        of_dense = {**_size(dense), "training_flops": dense_training}
        if recipe.baseline:
            of_dense = self.test(dense) | of_dense | {"seconds": folder.seconds("search", "baseline")}
        of_slim = {**self.test(slim), **_size(slim), "training_flops": slim_training}
        networks = {"dense": of_dense, "slim": of_slim | {"seconds": folder.seconds(*SLIM_PHASES)}}
        if weights_pruned is not None:
            # Zeros among the weights are multiplied with like any others.
            of_weights = {**self.test(weights_pruned), **_size(weights_pruned), "training_flops": dense_training}
            of_weights["params"] -= zeros(weights_pruned)
            networks["weights_pruned"] = of_weights | {"seconds": folder.seconds("search", *WEIGHT_PHASES)}
        return {
            "network": recipe.network,
            "dataset": recipe.dataset,
            "seed": recipe.seed,
            "evaluate": recipe.evaluate,
            "epochs": recipe.epochs,
            "schedule": recipe.schedule,
            "criterion": recipe.criterion,
            "ratio": pruned["ratio"],
            "steps_per_epoch": self.steps,
            "early_bird_epoch": bird.epoch,
            "early_bird_step": bird.step or (bird.epoch and bird.epoch * self.steps),
            "search_epochs": folder.last_epoch("search") or 0,
            "pruned_epoch": pruned["epoch"],
            "pruned_step": pruned["steps"],
            "retrain_from": recipe.retrain_from,
            "masked_slim_difference": pruned["difference"],
            "training_flops_reduction": dense_training / slim_training,
            **networks,
            "layers": Plan.load(folder.file("plan.json"), dense).rows(),
            "seconds": {phase: folder.seconds(phase) for phase in PHASES},
            "versions": _versions(),
        }

    def test(self, model):
        return {
            name: float(value)
            for name, value in model.evaluate(self.batches(self.recipe.evaluate), return_dict=True, verbose=0).items()
            if name in ("accuracy", "loss")
        }


def _strategy(name):
    if name == "none":
        return tf.distribute.get_strategy()
    # By itself it would take one CPU, even where that is several logical devices.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _size(model):
    counted = flops(model)
    return {"params": counted.params, "macs": counted.macs}


def _versions() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in ("tfspline", "tensorflow", "keras", "tf_keras", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None  # tfspline, in a clone that was not installed
    return versions
