"""The networks of a recipe: how they are built, compiled and, for comparison, pruned by single weights."""

import numpy as np

from tfspline import _keras, models
from tfspline._keras.constraints import hold, weights
from tfspline._keras.types import KerasModel
from tfspline.datasets import Dataset
from tfspline.layers.wrapping import unwrap, wrap
from tfspline.recipe.recipe import Recipe


def build(recipe: Recipe, dataset: Dataset) -> KerasModel:
    """The network as the recipe's seed initialises it, wrapped for faster training, not compiled."""
    _keras.keras_named(recipe.keras).utils.set_random_seed(recipe.seed)
    return wrap(models.build(recipe.network, dataset.input_shape, dataset.classes, recipe.width, recipe.keras))


def compile_network(recipe: Recipe, model: KerasModel) -> None:
    """Compile a network for training with the recipe's optimizer; the state of the optimizer it had is kept."""
    keras, optimizer = _keras.keras_named(recipe.keras), recipe.optimizer()
    optimizer.build(model.trainable_variables)  # otherwise Keras warns when a saved model is loaded
    previous = getattr(model, "optimizer", None)
    if previous is not None:
        for variable, value in zip(optimizer.variables, previous.variables, strict=True):
            variable.assign(value)
    loss, metrics = keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]
    if model.losses:  # penalties are part of "loss", so show the cross entropy separately
        metrics.append(keras.metrics.SparseCategoricalCrossentropy("cross_entropy", from_logits=True))
    model.compile(optimizer, loss, metrics=metrics)
    model.distribute_reduction_method = "first"  # otherwise tf_keras shows sums over replicas within an epoch


def penalize_gammas(recipe: Recipe, model: KerasModel) -> None:
    """Add `gamma_l1` times the L1 norm of all BatchNormalization gammas to the loss, and compile the network again.

    This is the penalty of network slimming (Liu et al., ICCV 2017).
    """
    penalty = _keras.keras_named(recipe.keras).regularizers.L1(recipe.gamma_l1)
    for layer in _keras.layer_paths(model).values():
        if _keras.of_class(layer, "BatchNormalization") and layer.gamma is not None:
            _keras.add_penalty(layer, "gamma", penalty)
    compile_network(recipe, model)


def finished(recipe: Recipe, model: KerasModel) -> KerasModel:
    """A trained network as an ordinary compiled Keras model, without layers of tfspline."""
    model = unwrap(model)
    compile_network(recipe, model)
    return model


def prune_weights(model: KerasModel, count: int) -> None:
    """Set the `count` kernel entries of the smallest magnitude to zero, in place, ranked across all layers.

    This is the global magnitude pruning of Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks" (NeurIPS 2015). Kernels are the weights with two or more dimensions.
    """
    kernels = _kernels(model)
    sizes = [np.abs(kernel.numpy()).ravel() for kernel in kernels]
    order = np.argsort(np.concatenate(sizes), kind="stable")
    if not 0 <= count <= len(order):
        raise ValueError(f"Expected count to be from 0 to {len(order)}, all of {model.name!r}. Received: {count}")
    on = np.ones(len(order), bool)
    on[order[:count]] = False
    for kernel, kept in zip(kernels, np.split(on, np.cumsum([len(size) for size in sizes])[:-1]), strict=True):
        kernel.assign(np.where(kept.reshape(kernel.shape), kernel.numpy(), 0))


def hold_zeros(model: KerasModel) -> None:
    """Keep kernel entries that are zero at zero during training; call this before the train step is traced."""
    for kernel in _kernels(model):
        hold(kernel, kernel.numpy() != 0)


def count_zeros(model: KerasModel) -> int:
    """The number of kernel entries that are zero."""
    return sum(int((kernel.numpy() == 0).sum()) for kernel in _kernels(model))


def _kernels(model):
    return [weight for _, weight in weights(model) if len(weight.shape) > 1]
