"""Runs a recipe in a folder, phase after phase; can be interrupted at any moment."""

import contextlib
import os
import time

import tensorflow as tf

from tfspline._keras.inputs import probe_inputs
from tfspline._utils.workers import is_chief, wait
from tfspline.datasets import Dataset
from tfspline.datasets.image_files import naming_files
from tfspline.graph.cost import flops
from tfspline.graph.surgery import difference
from tfspline.layers.wrapping import unwrap, wrap
from tfspline.pruning.masks import Masks
from tfspline.pruning.planning import Plan, plan
from tfspline.recipe import publishing
from tfspline.recipe.magnitude import prune_weights
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.run_dir import ReadOnlyRunDir, RunDir
from tfspline.recipe.stopping import Stopper
from tfspline.recipe.summary import summarize
from tfspline.recipe.training import Training, strategy_of

_PLAN = ".plan.json"  # ending of the plan in the checkpoint of the pruning
_TOLERANCE = 1e-4  # of the largest output; float32 rounds in another order where there are fewer units


def run(
    recipe: Recipe,
    run_dir: str | os.PathLike,
    verbose: int = 1,
    search_dir: str | os.PathLike | None = None,
    publish: bool = True,
    dataset: Dataset | None = None,
) -> dict:
    """Carries a recipe out, or goes on with it where it was interrupted, to the same end.

    It can be killed at any moment; then what was trained since the end of the last epoch is trained again. Ctrl-C and
    SIGTERM end it after the step under way, from which it goes on. Of what it has left when it is over, it makes again
    what is missing, as far as that takes no training.

    With `strategy="multi_worker"` each worker runs it, with its own TF_CONFIG in the environment and a `run_dir` that
    all of them see; the chief alone writes.

    Args:
        recipe: what to do.
        run_dir: a folder for it: a new one, or that of the same recipe. It is left holding `flags.cfg`,
            `history.jsonl` (a line an epoch, one for the pruning), `summary.json`, `plan.json`, `slim.keras`,
            `dense.keras` (at the end of the baseline if there is one, otherwise before any unit went),
            `weights_pruned.keras` (with `weight_pruning`), `distances.npz` (between the partitions of the dense
            epochs), `serving/<version>/`, pictures, `report.html` with all of it, `logs/` for TensorBoard, in
            `checkpoints/` the end of the search, and `SHA256SUMS` of it all.
        verbose: as in Keras' `fit`: 0 is silent, 1 shows a progress bar, 2 prints one line an epoch.
        search_dir: the folder of another run, whose dense search is taken over in place of one of its own; the
            fields that define the search have to be the same. It is not read where `run_dir` has begun a search.
        publish: False leaves out what is made to be looked at or served: `serving/`, pictures, `distances.npz` with
            the region codes that it is made of, and `report.html`.
        dataset: what `recipe.load_dataset()` returns, where many runs share it.

    Returns:
        What is in `summary.json`.

    Raises:
        ValueError, OSError: data, a `run_dir` or a `search_dir` that does not fit the recipe; nothing has been
            written then.
        BlockingIOError: another process works in `run_dir`.
        FileNotFoundError: a run that is over has lost what only training makes.
        OSError: a file could not be written; what was recorded before is as it was.
        ValueError: a training whose loss is no number any more, or a budget that pruning cannot meet.
        Stopped: a KeyboardInterrupt, by Ctrl-C or SIGTERM.
        ConnectionError: another worker has ended.

    Example:
        >>> import tempfile
        >>> recipe = Recipe(network="mlp", epochs=10, ratio=0.5, learning_rate=0.02)
        >>> summary = run(recipe, tempfile.mkdtemp(), verbose=0)
        >>> summary["training_flops_reduction"] > 1
        True
    """
    strategy = strategy_of(recipe)
    chief = is_chief(strategy)
    folder = (RunDir if chief else ReadOnlyRunDir)(os.fspath(run_dir), recipe.as_flags())
    complete = publishing.complete(folder, publish)
    wait(strategy)  # until all workers have seen the folder as it is
    if complete:
        return folder.summary()
    with contextlib.closing(folder), naming_files(), _naming_lost_workers(), Stopper() as stopper:
        if os.path.isdir(folder.path):
            folder.lock()  # or, in a new folder, once all is checked
        training = Training(recipe, folder, verbose, publish, dataset, stopper, strategy)
        if folder.summary() is None:
            searched = search_dir is None or folder.last_epoch("search")
            _Run(training).run(None if searched else _search(os.fspath(search_dir), recipe))
        if chief and publish:
            publishing.publish(training)
        folder.seal()
        wait(strategy)  # a worker that ends takes the others with it
    return folder.summary()


@contextlib.contextmanager
def _naming_lost_workers():
    try:
        yield
    except tf.errors.UnavailableError as error:
        raise ConnectionError(
            "Expected all workers to train on. Received: one that has ended, see what it has printed; start all of "
            "them again with the same flags to go on after the last epoch that was recorded"
        ) from error


def _search(path, recipe):
    """The run in a folder, whose search is over and the one that a recipe asks for."""
    other = RunDir.of(path)
    theirs, ours = (of.search_fields() for of in (Recipe.from_flags(other.flags), recipe))
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        expected, received = (", ".join(f"{name}={of.get(name)!r}" for name in names) for of in (theirs, ours))
        raise ValueError(f"Expected a recipe with the search of {path!r}: {expected}. Received: {received}")
    searched, phases = other.last_epoch("search"), [row["phase"] for row in other.history]
    if not searched or phases[-1] == "search" or other.damaged("search"):
        raise ValueError(
            f"Expected a search_dir with a search that is over, and its checkpoint. Received: {path!r}, with "
            f"{searched or 'no'} epochs of search{', not over' * (phases[-1:] == ['search'])}"
        )
    return other


class _Run:
    """A recipe under way; each phase leaves its network as a checkpoint in the folder for those after it."""

    def __init__(self, training: Training):
        self.training, self.recipe, self.folder = training, training.recipe, training.folder

    def run(self, taken):
        """Goes through all phases; the search of the run `taken`, unless that is None, is taken over."""
        training, folder = self.training, self.folder
        training.check()  # before anything is written
        if training.chief:
            folder.start()
            if taken:
                folder.take_search(taken)
            publishing.withdraw(folder)
        training.wait()
        if not training.chief:
            folder.start()
        bird = self.search()
        self.sparsify()
        self.prune()
        self.rewind()
        slim = self.retrain()
        others = {"weights_pruned": self.retrain_weights(slim)} if self.recipe.weight_pruning else {}
        trained = {"dense": self.baseline(), "slim": slim, **others}
        if training.chief:
            chosen = self.chosen(trained["dense"])
            folder.put("plan.json", chosen.save)
            folder.finish(summarize(training, bird, chosen, **trained))

    def search(self):
        """Trains the dense network until the partition has settled; returns the early bird."""
        training, folder = self.training, self.folder
        bird = training.early_bird()
        if not self.searched(bird):
            model = training.load("search")
            training.penalize(model)
            while not self.searched(bird):
                training.fit("search", model, folder.last_step("search"), self.recipe.search_limit, bird)
        return bird

    def searched(self, bird):
        """Whether the search is over: inside an epoch only where the pruning does not begin with one."""
        done, steps = self.folder.last_step("search"), self.training.steps
        inside = self.recipe.gradual and done % steps
        return done >= self.recipe.search_limit * steps or (bird.found and not inside)

    def sparsify(self):
        """Switches units off little by little while the dense network trains on, if the schedule is a gradual one."""
        recipe, folder, training = self.recipe, self.folder, self.training
        if not recipe.gradual or folder.last_epoch("prune") is not None:
            return
        pruning = recipe.pruning(training.steps, data=training.sample())
        if folder.last_epoch("sparsify"):
            pruning.load(folder.checkpoint("sparsify", ".npz"))
        searched = folder.last_epoch("search") or 0
        training.train_on("sparsify", "search", searched + recipe.pruning_limit, pruning)

    def prune(self):
        """Makes a small network of what was searched or sparsified: chooses the units, unless they are off already,
        and cuts them out."""
        if self.folder.last_epoch("prune") is not None:
            return
        phase, start = "sparsify" if self.recipe.gradual else "search", time.perf_counter()
        sample = self.training.sample()
        dense = self.training.ordinary(self.training.load(phase))
        chosen = self.choose(dense, sample)
        slim, error = self.cut(chosen, dense, sample[0])
        if self.training.verbose:
            print(f"{chosen}\nmasked and slim network: the same function, to {error:.1e} of the largest output")
        seconds, facts = time.perf_counter() - start, {"ratio": chosen.ratio, "difference": error}
        self.record("prune", phase, seconds, {".keras": wrap(slim).save, _PLAN: chosen.save}, **facts)

    def chosen(self, dense):
        """The plan that the dense network was pruned by."""
        return Plan.load(self.folder.checkpoint("prune", _PLAN), dense)

    def choose(self, dense, data):
        """The plan of what goes, by labelled training images."""
        recipe = self.recipe
        options = {"criterion": recipe.criterion, "scope": recipe.scope, "min_units": recipe.min_units}
        if recipe.gradual:
            masks = Masks.from_model(dense)
            return Plan(masks.graph, masks.off, {**options, "ratio": recipe.ratio, "seed": recipe.seed})
        share = recipe.slim_share(self.folder.last_step("search") / self.training.steps)
        return plan(dense, ratio=recipe.ratio, max_flops=share, seed=recipe.seed, data=data, **options)

    def cut(self, chosen, dense, images):
        """The network without what was chosen, and how far it is from the masked one before anything is compensated:
        no more than rounding."""
        slim = chosen.apply(dense)
        error = difference(chosen.mask(dense), slim, probe_inputs(dense, images))
        if not error <= _TOLERANCE:
            raise ValueError(
                f"Expected the slim network to do what the masked one does. Received: outputs that differ by "
                f"{error:.1e} of the largest; a bug of tfspline or of TensorFlow on this machine"
            )
        if self.recipe.compensate != "none":
            slim = chosen.apply(dense, images, self.recipe.compensate)
        return slim, error

    def rewind(self):
        """Gives the slim network other weights than the trained ones, if the recipe has it start anew."""
        recipe, training = self.recipe, self.training
        if not recipe.restarts or self.folder.last_epoch("rewind") is not None:
            return
        start = time.perf_counter()
        dense = unwrap(training.fresh())
        slim = self.chosen(dense).apply(dense)
        if recipe.retrain_from == "random":
            training.keras.utils.set_random_seed(recipe.seed)
            slim = training.keras.models.clone_model(slim)
        self.record("rewind", None, time.perf_counter() - start, {".keras": wrap(slim).save})

    def retrain(self):
        """Trains the slim network to the end; returns it."""
        before = "rewind" if self.recipe.restarts else "prune"
        return self.leave("slim", self.training.train_on("retrain", before, self.recipe.epochs))

    def retrain_weights(self, slim):
        """Trains the searched network to the end with as many single weights at zero as the slim one has fewer;
        returns it."""
        if self.folder.last_epoch("prune_weights") is None:
            start = time.perf_counter()
            model = self.training.load("search")
            prune_weights(model, flops(model).params - flops(slim).params)
            self.record("prune_weights", "search", time.perf_counter() - start, {".keras": model.save})
        model = self.training.train_on("retrain_weights", "prune_weights", self.recipe.epochs)
        return self.leave("weights_pruned", model)

    def baseline(self):
        """Trains the dense network to the end, if the recipe has it so; returns it, or as the search has left it."""
        training = self.training
        if not self.recipe.baseline:
            return self.leave("dense", training.load("search"))
        return self.leave("dense", training.train_on("baseline", "search", self.recipe.epochs))

    def record(self, phase, after, seconds, files, **facts):
        """Records a phase that has trained nothing, and the files that it leaves: at the epoch and step where the phase
        `after` has ended, or, where that is None, before the first."""
        folder = self.folder
        epoch, steps = (0, 0) if after is None else (folder.last_epoch(after) or 0, folder.last_step(after))
        folder.record({"phase": phase, "epoch": epoch, "steps": steps, **facts, "seconds": seconds}, files)
        self.training.wait()

    def leave(self, name, model):
        """Leaves a trained network in the folder as others are to see it; returns it."""
        model = self.training.ordinary(model)
        self.folder.put(f"{name}.keras", model.save)
        return model
