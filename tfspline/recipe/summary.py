"""The summary of a run: accuracy, size and cost of each of its networks."""

import importlib.metadata
import platform

from tfspline._keras.types import KerasModel
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.graph.cost import flops, training_flops
from tfspline.pruning.planning import Plan
from tfspline.recipe.checkpoints import PHASES, SLIM_PHASES, WEIGHT_PHASES
from tfspline.recipe.networks import count_zeros
from tfspline.recipe.training import Training
from tfspline.spline.codes import RegionEncoder

_SETTINGS = ("network", "dataset", "seed", "evaluate", "epochs", "schedule", "criterion")


def summarize(
    training: Training,
    bird: EarlyBird,
    plan: Plan,
    dense: KerasModel,
    slim: KerasModel,
    weights_pruned: KerasModel | None = None,
) -> dict:
    """The content of `summary.json`. Without a baseline, `dense` is the network at the end of the search."""
    recipe, folder = training.recipe, training.folder
    (pruned,) = (row for row in folder.history if row["phase"] == "prune")
    networks = _networks(training, pruned["steps"], dense, slim, weights_pruned)
    return {
        **{name: getattr(recipe, name) for name in _SETTINGS},
        "ratio": pruned["ratio"],
        "steps_per_epoch": training.steps,
        "early_bird_epoch": bird.epoch,
        "early_bird_step": bird.step or (bird.epoch and bird.epoch * training.steps),
        "search_epochs": folder.last_epoch("search") or 0,
        "pruned_epoch": pruned["epoch"],
        "pruned_step": pruned["steps"],
        "retrain_from": recipe.retrain_from,
        "masked_slim_difference": pruned["difference"],
        "training_flops_reduction": networks["dense"]["training_flops"] / networks["slim"]["training_flops"],
        **networks,
        "layers": plan.rows(),
        "seconds": {phase: folder.seconds(phase) for phase in PHASES},
        "versions": _versions(),
    }


def _networks(training, pruned, dense, slim, weights_pruned):
    """The entry of each network, if units were removed after `pruned` steps."""
    recipe, (images, _) = training.recipe, training.sample()

    def cost(model, steps):
        return training_flops(model, steps * recipe.batch_size)

    def entry(model, cost, *phases):
        seconds = training.folder.seconds(*phases)
        return {**_evaluate(training, model), **_describe(model, images), "training_flops": cost, "seconds": seconds}

    steps = recipe.epochs * training.steps
    of_dense = cost(dense, steps)
    of_slim = cost(dense, pruned) + cost(slim, steps - recipe.retrained_from(pruned))
    if recipe.baseline:
        networks = {"dense": entry(dense, of_dense, "search", "baseline")}
    else:
        networks = {"dense": {**_describe(dense, images), "training_flops": of_dense}}
    networks["slim"] = entry(slim, of_slim, *SLIM_PHASES)
    if weights_pruned is not None:
        # Weights of zero are multiplied like any others, so the training costs as much as that of the dense network.
        networks["weights_pruned"] = entry(weights_pruned, of_dense, "search", *WEIGHT_PHASES)
        networks["weights_pruned"]["params"] -= count_zeros(weights_pruned)
    return networks


def _evaluate(training, model):
    batches = training.data.evaluation_batches(training.recipe.batch_size, training.recipe.evaluate)
    measured = model.evaluate(batches, return_dict=True, verbose=0)
    return {name: float(value) for name, value in measured.items() if name in ("accuracy", "loss")}


def _describe(model, images):
    counted, encode = flops(model), RegionEncoder(model)
    return {"params": counted.params, "macs": counted.macs, "dead_layers": encode.dead(encode(images))}


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("tfspline", "tensorflow", "keras", "tf_keras", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions
