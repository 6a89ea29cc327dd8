"""Checks of a recipe that need its dataset, made before anything is written."""

from tfspline import models
from tfspline.datasets import Dataset
from tfspline.layers.wrapping import unwrap
from tfspline.pruning.planning import plan
from tfspline.recipe import networks
from tfspline.recipe.checks import BUDGETS
from tfspline.recipe.recipe import Recipe


def check_dataset(recipe: Recipe, dataset: Dataset, steps: int, devices: int) -> None:
    """Check that the network, the augmentation and the batches fit the dataset and the devices.

    Args:
        recipe: the recipe.
        dataset: its dataset.
        steps: number of steps per epoch.
        devices: number of devices that share each batch.

    Raises:
        ValueError: they do not fit.
    """
    models.check(recipe.network, dataset.input_shape, dataset.classes, recipe.width, recipe.keras)
    dataset.augmentation(recipe.augment)
    if recipe.eb_every and recipe.eb_every > steps:
        raise ValueError(f"Expected eb_every to be at most the {steps} steps of an epoch. Received: {recipe.eb_every}")
    held_out = len(dataset.validation or ())
    first = min(recipe.batch_size, held_out) if held_out else recipe.batch_size
    if recipe.batch_size % devices or first % devices:  # Keras 3 needs a first batch that the devices share equally
        raise ValueError(
            f"The {devices} devices must share the batches equally. Received: batch_size={recipe.batch_size}, "
            f"{held_out} validation images. Change batch_size or validation_split."
        )


def check_budget(recipe: Recipe, dataset: Dataset) -> None:
    """Check that the budget can be met after the longest search, and that it removes units.

    Raises:
        ValueError: it cannot be met, or it removes nothing.
    """
    limit = recipe.search_limit
    share = recipe.slim_share(limit)
    try:
        chosen = plan(
            unwrap(networks.build(recipe, dataset)),
            recipe.ratio,
            max_flops=share,
            criterion="random",  # every criterion removes the same number of units
            scope=recipe.scope,
            min_units=recipe.min_units,
        )
    except ValueError as error:
        if recipe.training_flops_reduction is None:
            raise
        raise ValueError(
            f"training_flops_reduction={recipe.training_flops_reduction:g} cannot be met after a search of {limit} "
            f"epochs: the slim network may have {share:.2g} of the FLOPs, which is too little. Reduce "
            "training_flops_reduction or search_epochs, or increase epochs."
        ) from error
    if not chosen.removed.any():
        given = {name: getattr(recipe, name) for name in (*BUDGETS, "min_units")}
        settings = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        raise ValueError(f"No unit of network={recipe.network!r} would be removed with {settings}.")
