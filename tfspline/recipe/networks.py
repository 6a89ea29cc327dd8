"""The networks of a recipe: how they are built, compiled and loaded."""

from tfspline import _keras, models
from tfspline._keras.types import KerasModel
from tfspline.datasets import Dataset
from tfspline.layers.wrapping import unwrap, wrap
from tfspline.recipe.recipe import Recipe


def build(recipe: Recipe, dataset: Dataset) -> KerasModel:
    """The network as the recipe's seed initialises it, wrapped for faster training, not compiled."""
    keras = _keras.keras_named(recipe.keras)
    keras.utils.set_random_seed(recipe.seed)
    return wrap(models.build(recipe.network, dataset.input_shape, dataset.classes, recipe.width, recipe.keras))


def load(recipe: Recipe, path: str) -> KerasModel:
    """The network in a `.keras` file. Raises a ValueError if the file is damaged or contains code."""
    return _keras.load_model(_keras.keras_named(recipe.keras), path)


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
