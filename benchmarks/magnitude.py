"""Magnitude pruning of single weights with tfmot only, a baseline for pruning units."""

import time

import numpy as np
from common import accuracy, compiled, network, train

import tfspline
from tfspline import _keras
from tfspline.datasets import Dataset
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.training import strategy_of


def run(recipe: Recipe, dataset: Dataset, params: int, begin_epoch: int) -> dict:
    """Train a network and prune it to `params` nonzero parameters.

    Pruning follows tfmot's PolynomialDecay, from the end of `begin_epoch`, for as many epochs as the recipe's gradual
    schedule takes.

    Returns:
        The fields of a line of results.
    """
    pruning = _keras.tfmot().sparsity.keras
    steps = dataset.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)
    strategy = strategy_of(recipe)
    with strategy.scope():
        model = network(recipe, dataset)
    kernels = sum(weight.shape.num_elements() for weight in model.weights if "kernel" in weight.name)
    sparsity = 1 - (params - (model.count_params() - kernels)) / kernels
    begin, end = begin_epoch * steps, (begin_epoch + recipe.pruning_limit) * steps
    schedule = pruning.PolynomialDecay(0.0, sparsity, begin, end, frequency=max(1, (end - begin) // 20))
    training = tfspline.training_flops(model, recipe.epochs * steps * recipe.batch_size)
    with strategy.scope():
        wrapped = compiled(pruning.prune_low_magnitude(model, schedule), recipe)
    start = time.perf_counter()
    train(wrapped, recipe, dataset, 0, recipe.epochs, pruning.UpdatePruningStep(), verbose=0)
    seconds = time.perf_counter() - start
    model = pruning.strip_pruning(wrapped)
    return {
        "accuracy": accuracy(model, dataset, recipe.evaluate),
        "params": sum(int(np.count_nonzero(weight.numpy())) for weight in model.weights),
        "macs": tfspline.flops(tfspline.slim(model)).macs,
        "training_flops": training,
        "training_flops_reduction": 1.0,
        "seconds": seconds,
    }
