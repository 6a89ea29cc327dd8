"""The summary of a run: what each of its networks is, can do and has cost."""

import importlib.metadata
import platform
from typing import Any

from tfspline.callbacks.early_bird import EarlyBird
from tfspline.graph.cost import flops, training_flops
from tfspline.pruning.planning import Plan
from tfspline.recipe.checkpoints import PHASES, SLIM_PHASES, WEIGHT_PHASES
from tfspline.recipe.magnitude import zeros
from tfspline.recipe.training import Training
from tfspline.spline.codes import RegionEncoder


def summarize(
    training: Training, bird: EarlyBird, plan: Plan, dense: Any, slim: Any, weights_pruned: Any = None
) -> dict:
    """What `summary.json` holds of a run whose networks are trained.

    Args:
        training: what they were trained with; its folder has the history.
        bird: the early bird of the search.
        plan: what went.
        dense: the network at the end of the baseline if there is one, otherwise before any unit went.
        slim: the one without the units.
        weights_pruned: the one without single weights, if there is one.
    """
    recipe, folder = training.recipe, training.folder
    (pruned,) = (row for row in folder.history if row["phase"] == "prune")
    networks = _networks(training, pruned["steps"], dense, slim, weights_pruned)
    return {
        "network": recipe.network,
        "dataset": recipe.dataset,
        "seed": recipe.seed,
        "evaluate": recipe.evaluate,
        "epochs": recipe.epochs,
        "schedule": recipe.schedule,
        "criterion": recipe.criterion,
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
    """The figures of each network, units having gone after `pruned` steps."""
    recipe, (images, _) = training.recipe, training.sample()

    def cost(model, steps):
        return training_flops(model, steps * recipe.batch_size)

    def figures(model, cost, *phases):
        seconds = training.folder.seconds(*phases)
        return {**_test(training, model), **_described(model, images), "training_flops": cost, "seconds": seconds}

    steps = recipe.epochs * training.steps
    of_dense = cost(dense, steps)
    of_slim = cost(dense, pruned) + cost(slim, steps - recipe.retrained_from(pruned))
    if recipe.baseline:
        networks = {"dense": figures(dense, of_dense, "search", "baseline")}
    else:
        networks = {"dense": {**_described(dense, images), "training_flops": of_dense}}
    networks["slim"] = figures(slim, of_slim, *SLIM_PHASES)
    if weights_pruned is not None:
        # Zeros among the weights are multiplied with like any others.
        networks["weights_pruned"] = figures(weights_pruned, of_dense, "search", *WEIGHT_PHASES)
        networks["weights_pruned"]["params"] -= zeros(weights_pruned)
    return networks


def _test(training, model):
    batches = training.data.evaluation_batches(training.recipe.batch_size, training.recipe.evaluate)
    measured = model.evaluate(batches, return_dict=True, verbose=0)
    return {name: float(value) for name, value in measured.items() if name in ("accuracy", "loss")}


def _described(model, images):
    counted, encode = flops(model), RegionEncoder(model)
    return {"params": counted.params, "macs": counted.macs, "dead_layers": encode.dead(encode(images))}


def _versions() -> dict[str, str | None]:
    versions = {"python": platform.python_version()}
    for package in ("tfspline", "tensorflow", "keras", "tf_keras", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None  # tfspline, in a clone that was not installed
    return versions
