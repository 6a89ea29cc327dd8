"""Runs a recipe in a folder: search, sparsify, prune, retrain, baseline, report; can be interrupted at any moment."""

import importlib.metadata
import math
import os
import platform
import time
from typing import Any

from tfspline import data, models, report
from tfspline._keras import keras_named
from tfspline.codes import RegionEncoder
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

SLIM_PHASES = ("search", "sparsify", "prune", "retrain")
WEIGHT_PHASES = ("prune_weights", "retrain_weights")
PHASES = (*SLIM_PHASES, *WEIGHT_PHASES, "baseline")
_PROBE_SIZE = 512  # training images
_CODES_SIZE = 2**20  # bytes of region codes that are kept of an epoch
_TOLERANCE = 1e-4  # of the largest output; float32 rounds in another order where there are fewer units


def run(recipe: Recipe, run_dir: str | os.PathLike, verbose: int = 1) -> dict:
    """Carries a recipe out, or goes on with it where it was interrupted.

    Args:
        recipe: what to do.
        run_dir: a folder for it: a new one, or that of the same recipe. It is left holding `flags.cfg`,
            `history.jsonl` (a line an epoch, one for the pruning), `summary.json`, `plan.json`, `slim.keras`,
            `dense.keras` (at the end of the baseline if there is one, otherwise before any unit went),
            `weights_pruned.keras` (with `weight_pruning`), `distances.npz` (between the partitions of the dense
            epochs), `serving/<version>/`, pictures, `report.html` with all of it, and `logs/` for TensorBoard.
        verbose: as in Keras' `fit`: 0 is silent, 1 shows a progress bar, 2 prints one line an epoch.

    Returns:
        What is in `summary.json`.

    Raises:
        ValueError, OSError: data or a `run_dir` that does not fit the recipe; nothing has been written then.
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
        _Run(recipe, folder, verbose).run()
    if not os.path.exists(folder.file("report.html")):
        report.write(run_dir)
    return folder.summary()


class _Run:
    """A recipe under way in a folder; each phase leaves its network as a checkpoint for those after it."""

    def __init__(self, recipe, folder, verbose):
        self.recipe, self.folder, self.verbose = recipe, folder, verbose
        self.keras = keras_named(recipe.keras)
        self.data = data.load(recipe.dataset, recipe.data_dir, recipe.validation_split, recipe.seed, recipe.image_size)
        self.steps = self.data.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)

    def run(self):
        recipe, folder = self.recipe, self.folder
        # What does not fit the images is refused before anything is written.
        self.fresh()
        self.data.augmentation(recipe.augment)
        folder.start()
        bird = self.search()
        self.sparsify()
        self.prune()
        slim = self.retrain()
        trained = {"dense": None, "slim": slim}  # in the order of pictures
        if recipe.weight_pruning:
            trained["weights_pruned"] = self.retrain_weights(slim)
        dense = self.train_on("baseline", "search", recipe.epochs) if recipe.baseline else self.load("search")
        dense = self.ordinary(dense)
        folder.put("dense.keras", dense.save)
        trained["dense"] = dense
        summary = self.summary(bird, **trained)
        self.draw(bird, summary, trained)
        folder.finish(summary)

    def search(self):
        """Trains the dense network until the partition has settled; returns the early bird."""
        bird = self.recipe.early_bird(probe=self.probe(), verbose=self.verbose)
        done = self.folder.last_epoch("search") or 0
        if done:
            bird.load(self.folder.checkpoint("search", ".npz"))
        if not bird.found and done < self.recipe.search_limit:
            self.fit("search", self.load("search"), done, self.recipe.search_limit, bird)
        return bird

    def sparsify(self):
        """Switches units off little by little while the dense network trains on, if the schedule is a gradual one."""
        recipe, folder = self.recipe, self.folder
        if recipe.gradual and not folder.last_epoch("prune"):
            pruning = recipe.pruning(self.steps, data=self.images())
            if folder.last_epoch("sparsify"):
                pruning.load(folder.checkpoint("sparsify", ".npz"))
            searched = folder.last_epoch("search") or 0
            self.train_on("sparsify", "search", searched + recipe.pruning_limit, pruning)

    def prune(self):
        """Makes a small network of what was searched or sparsified: chooses the units, unless they are off already,
        cuts them out, and checks that the small network does what the masked one does."""
        if self.folder.last_epoch("prune"):
            return
        recipe, phase = self.recipe, "sparsify" if self.recipe.gradual else "search"
        start = time.perf_counter()
        images, dense = self.images(), unwrap(self.load(phase))
        chosen = self.choose(dense, images)
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
        epoch = self.folder.last_epoch(phase)
        row = {"phase": "prune", "epoch": epoch, "ratio": chosen.ratio, "difference": error, "seconds": seconds}
        self.folder.record(row, lambda path: wrap(slim).save(path(".keras")))

    def choose(self, dense, images):
        """The plan of what goes."""
        recipe = self.recipe
        options = {"criterion": recipe.criterion, "scope": recipe.scope, "min_units": recipe.min_units}
        if recipe.gradual:
            masks = Masks.from_model(dense)
            return Plan(masks.graph, masks.off, {**options, "ratio": recipe.ratio, "seed": recipe.seed})
        share = recipe.slim_share(self.folder.last_epoch("search"))
        return plan(dense, ratio=recipe.ratio, flops=share, seed=recipe.seed, data=images, **options)

    def retrain(self):
        """Trains the slim network on to the end and publishes it; returns it."""
        slim = self.ordinary(self.train_on("retrain", "prune", self.recipe.epochs))
        self.folder.put("slim.keras", slim.save)
        if not os.path.exists(self.folder.file("serving", "1")):
            export(slim, self.folder.file("serving"), version=1)
        return slim

    def retrain_weights(self, slim):
        """Trains the searched network to the end with as many single weights at zero as the slim one has fewer;
        returns it."""
        if not self.folder.last_epoch("prune_weights"):
            start = time.perf_counter()
            model = self.load("search")
            prune_weights(model, flops(model).params - flops(slim).params)
            epoch, seconds = self.folder.last_epoch("search"), time.perf_counter() - start
            row = {"phase": "prune_weights", "epoch": epoch, "seconds": seconds}
            self.folder.record(row, lambda path: model.save(path(".keras")))
        model = self.ordinary(self.train_on("retrain_weights", "prune_weights", self.recipe.epochs))
        self.folder.put("weights_pruned.keras", model.save)
        return model

    def train_on(self, phase, after, epochs, *callbacks):
        """Trains the network that another phase left until `epochs` are done; returns it."""
        done = self.folder.last_epoch(phase)
        model = self.load(phase if done else after)
        done = done or self.folder.last_epoch(after) or 0
        if done < epochs:
            self.fit(phase, model, done, epochs, *callbacks)
        return model

    def fit(self, phase, model, done, epochs, *callbacks):
        """Trains from epoch `done` to `epochs`, or until a callback has it; records every epoch."""
        recipe, callback_of = self.recipe, self.keras.callbacks
        started = 0.0

        def begin(epoch, logs):
            nonlocal started
            started = time.perf_counter()

        def record(epoch, logs):
            seconds = time.perf_counter() - started
            if not math.isfinite(logs["loss"]):
                raise ValueError(
                    f"Expected a loss that stays finite. Received: {logs['loss']} in epoch {epoch + 1} of "
                    f"the {phase}; try a smaller learning_rate."
                )
            row = {"phase": phase, "epoch": epoch + 1} | {name: float(value) for name, value in logs.items()}
            row.pop("lr", None)  # tf_keras' name for the learning rate
            row |= {"learning_rate": recipe.learning_rate_at(epoch), "seconds": seconds}
            if watch:
                watch(epoch)
            self.folder.record(row, save)

        def save(path):
            model.save(path(".keras"))
            for callback in callbacks:
                callback.save(path(".npz"))

        watch = self.watch(model) if phase in ("search", "baseline") else None
        held_out = self.data.validation
        model.fit(
            self.data.train_batches(recipe.batch_size, done, recipe.augment, self.steps),
            steps_per_epoch=self.steps,
            initial_epoch=done,
            epochs=epochs,
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
        return lambda epoch: encode(images).save(self.folder.file("checkpoints", f"codes-{epoch + 1:04d}.npz"))

    def load(self, phase):
        """The network that a phase left, a fresh one before the first, and its optimizer, ready to be trained on."""
        trained = self.folder.last_epoch(phase)
        model = self.keras.models.load_model(self.folder.checkpoint(phase)) if trained else self.fresh()
        if phase in WEIGHT_PHASES:
            hold_zeros(model)
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
        loss = self.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])

    def probe(self):
        # A probe that is given is the same again after an interruption.
        return self.images() if self.recipe.eb_metric == "partition" else None

    def images(self):
        """The training images on which the partition is watched and units are looked at."""
        return self.data.normalize(self.data.train.images[:_PROBE_SIZE]).numpy()

    def batches(self, split):
        return self.data.evaluation_batches(self.recipe.batch_size, split)

    def draw(self, bird, summary, trained):
        from tfspline import pictures  # matplotlib is slow to import, and only needed here

        pictures.draw(self.folder, self.data, bird, summary, trained)

    def summary(self, bird, dense, slim, weights_pruned=None):
        recipe, folder = self.recipe, self.folder
        (pruned,) = (row for row in folder.history if row["phase"] == "prune")
        images = self.steps * recipe.batch_size  # an epoch
        dense_training = training_flops(dense, recipe.epochs * images)
        slim_training = training_flops(dense, pruned["epoch"] * images)
        slim_training += training_flops(slim, (recipe.epochs - pruned["epoch"]) * images)
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
            "early_bird_epoch": bird.epoch,
            "search_epochs": folder.last_epoch("search") or 0,
            "pruned_epoch": pruned["epoch"],
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
