"""The phases of a run, from the dense search to the summary."""

import importlib.util
import shutil
import time
from collections.abc import Callable, Mapping

from tfspline import _keras
from tfspline._keras.inputs import probe
from tfspline._keras.types import KerasModel
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.deployment.saved_model import export
from tfspline.graph.cost import flops
from tfspline.graph.surgery import difference
from tfspline.layers.wrapping import unwrap, wrap
from tfspline.pruning.masks import Masks
from tfspline.pruning.planning import Plan, plan
from tfspline.recipe import networks, report
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.summary import summarize
from tfspline.recipe.training import Training

_PLAN = ".plan.json"  # extension of the plan in the checkpoint of the pruning
_TOLERANCE = 1e-4  # of the largest output; float32 sums round differently if there are fewer units


class Phases:
    """Executes the phases of a run. Each saves its network in a checkpoint, from which later phases load it."""

    def __init__(self, training: Training):
        self.training, self.recipe, self.folder = training, training.recipe, training.folder

    def run(self, source: RunDir | None) -> None:
        """Execute all phases that are not recorded yet, and write the results. Copy the search of `source`, if any."""
        training, folder = self.training, self.folder
        training.check()  # before anything is written
        if training.chief:
            folder.start()
            if source:
                folder.take_search(source)
        training.wait()
        if not training.chief:
            folder.start()  # reads what the chief has written
        bird = self.search()
        self.sparsify()
        self.prune()
        self.rewind()
        slim = self.retrain()
        others = {"weights_pruned": self.retrain_weights(slim)} if self.recipe.weight_pruning else {}
        trained = {"dense": self.baseline(), "slim": slim, **others}
        if training.chief:
            self.finish(bird, trained)

    def search(self) -> EarlyBird:
        """Train the dense network until the partition has settled."""
        training, folder = self.training, self.folder
        bird = training.early_bird()
        if not self._searched(bird):
            model = training.load("search")
            if self.recipe.gamma_l1:
                with training.strategy.scope():
                    networks.penalize_gammas(self.recipe, model)
            while not self._searched(bird):
                training.fit("search", model, folder.last_step("search"), self.recipe.search_limit, bird)
        return bird

    def _searched(self, bird):
        """Whether the search is finished. It can end within an epoch only if the pruning is not gradual."""
        done, steps = self.folder.last_step("search"), self.training.steps
        within_epoch = self.recipe.gradual and done % steps
        return done >= self.recipe.search_limit * steps or (bird.found and not within_epoch)

    def sparsify(self) -> None:
        """With a gradual schedule, switch units off a few at a time while the dense network is trained."""
        recipe, folder, training = self.recipe, self.folder, self.training
        if not recipe.gradual or folder.last_epoch("prune") is not None:
            return
        pruning = recipe.pruning(training.steps, data=training.sample())
        if folder.last_epoch("sparsify"):
            folder.read("sparsify", ".npz", pruning.load)
        searched = folder.last_epoch("search") or 0
        training.train_on("sparsify", "search", searched + recipe.pruning_limit, pruning)

    def prune(self) -> None:
        """Choose the units to remove, unless they are switched off already, and make the slim network."""
        if self.folder.last_epoch("prune") is not None:
            return
        phase, start = "sparsify" if self.recipe.gradual else "search", time.perf_counter()
        sample = self.training.sample()
        dense = networks.finished(self.recipe, self.training.load(phase))
        chosen = self._choose(dense, sample)
        slim, error = self._cut(chosen, dense, sample[0])
        if self.training.verbose:
            print(f"{chosen}\nThe masked and the slim network agree to {error:.1e} of the largest output")
        files = {".keras": wrap(slim).save, _PLAN: chosen.save}
        self._record("prune", phase, start, files, ratio=chosen.ratio, difference=error)

    def _choose(self, dense, data):
        """The plan, made with labelled training images."""
        recipe = self.recipe
        options = {"criterion": recipe.criterion, "scope": recipe.scope, "min_units": recipe.min_units}
        if recipe.gradual:
            masks = Masks.from_model(dense)
            return Plan(masks.graph, masks.off, {**options, "ratio": recipe.ratio, "seed": recipe.seed})
        share = recipe.slim_share(self.folder.last_step("search") / self.training.steps)
        return plan(dense, ratio=recipe.ratio, max_flops=share, seed=recipe.seed, data=data, **options)

    def _cut(self, chosen, dense, images):
        """The slim network, and the difference of its outputs from those of the masked network before compensation."""
        slim = chosen.apply(dense)
        error = difference(chosen.mask(dense), slim, probe(dense, images).inputs)
        if not error <= _TOLERANCE:
            raise ValueError(
                f"The outputs of the masked and the slim network differ by {error:.1e} of the largest output. This is "
                "a bug of tfspline, or of TensorFlow on this machine."
            )
        if self.recipe.compensate != "none":
            slim = chosen.apply(dense, images, self.recipe.compensate)
        return slim, error

    def rewind(self) -> None:
        """Give the slim network its initial weights or new random ones, if the recipe restarts the training."""
        recipe, training = self.recipe, self.training
        if not recipe.restarts or self.folder.last_epoch("rewind") is not None:
            return
        start = time.perf_counter()
        dense = unwrap(networks.build(recipe, training.data))
        slim = self._plan_for(dense).apply(dense)
        if recipe.retrain_from == "random":
            keras = _keras.keras_named(recipe.keras)
            keras.utils.set_random_seed(recipe.seed)
            slim = keras.models.clone_model(slim)
        self._record("rewind", None, start, {".keras": wrap(slim).save})

    def _plan_for(self, dense):
        """The plan by which the dense network was pruned."""
        return self.folder.read("prune", _PLAN, lambda path: Plan.load(path, dense))

    def retrain(self) -> KerasModel:
        """Train the slim network to the end."""
        before = "rewind" if self.recipe.restarts else "prune"
        return self._leave("slim", self.training.train_on("retrain", before, self.recipe.epochs))

    def retrain_weights(self, slim: KerasModel) -> KerasModel:
        """Remove single weights of the searched network until it has as many as the slim one; train it to the end."""
        if self.folder.last_epoch("prune_weights") is None:
            start = time.perf_counter()
            model = self.training.load("search")
            networks.prune_weights(model, flops(model).params - flops(slim).params)
            self._record("prune_weights", "search", start, {".keras": model.save})
        model = self.training.train_on("retrain_weights", "prune_weights", self.recipe.epochs)
        return self._leave("weights_pruned", model)

    def baseline(self) -> KerasModel:
        """Train the dense network to the end if the recipe asks for it; otherwise return that of the search."""
        training = self.training
        if not self.recipe.baseline:
            return self._leave("dense", training.load("search"))
        return self._leave("dense", training.train_on("baseline", "search", self.recipe.epochs))

    def finish(self, bird: EarlyBird, trained: Mapping[str, KerasModel]) -> None:
        """Write all results; the summary comes last, because it marks the run as finished."""
        chosen = self._plan_for(trained["dense"])
        self.folder.put("plan.json", chosen.save)
        summary = summarize(self.training, bird, chosen, **trained)
        if self.training.publish:
            self._export(trained["slim"], chosen, summary)
            if importlib.util.find_spec("matplotlib"):
                from tfspline.recipe import pictures  # imports matplotlib, which is slow

                pictures.draw(self.folder, self.training.data, bird, summary, trained)
            report.write(self.folder.path, summary)
        self.folder.finish(summary)

    def _export(self, slim, chosen, summary):
        """Write the SavedModel for serving, in place of what an interrupted attempt wrote."""
        serving, classes = self.folder.file("serving"), self.training.data.class_names
        accuracy = {name: summary[name].get("accuracy") for name in ("dense", "slim")}
        metadata = {"accuracy": accuracy, "evaluated_on": summary["evaluate"]}
        shutil.rmtree(serving, ignore_errors=True)
        export(slim, serving, version=1, class_names=classes, plan=chosen, metadata=metadata)

    def _record(self, phase, after, start, files: Mapping[str, Callable[[str], None]], **facts):
        """Record a phase without training, at the end of the phase `after`, or at step 0 if that is None."""
        folder, seconds = self.folder, time.perf_counter() - start
        epoch, steps = (0, 0) if after is None else (folder.last_epoch(after) or 0, folder.last_step(after))
        folder.record({"phase": phase, "epoch": epoch, "steps": steps, **facts, "seconds": seconds}, files)
        self.training.wait()

    def _leave(self, name, model):
        """Write a trained network to the folder as an ordinary Keras model, and return that."""
        model = networks.finished(self.recipe, model)
        self.folder.put(f"{name}.keras", model.save)
        return model
