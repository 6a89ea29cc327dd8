"""Validation of a recipe: the type and range of each field, fields that contradict each other, and the dataset."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

from tfspline import _keras, models
from tfspline.datasets import Dataset
from tfspline.pruning import criteria
from tfspline.pruning.planning import plan
from tfspline.recipe.flags import described, is_valid

BUDGETS = ("ratio", "max_flops", "training_flops_reduction")
_INPUT_SHAPE, _CLASSES = (32, 32, 3), 2  # placeholders, because the dataset is not loaded yet
_MAX_INTEGER = 2**63  # TensorFlow stores integers in 64 bits


def check(recipe: Any) -> None:
    """Raise a ValueError that names the field if a `tfspline.recipe.Recipe` is invalid."""
    for field in dataclasses.fields(recipe):
        _check_type_and_choice(field, getattr(recipe, field.name))
    # Each of these three raises a ValueError for an unknown or invalid value.
    models.check(recipe.network, _INPUT_SHAPE, _CLASSES, recipe.width, recipe.keras)
    criteria.named(recipe.criterion)
    recipe.early_bird()
    _check_ranges(recipe)
    _check_lengths(recipe)
    for conflict in (*_training_conflicts(recipe), *_pruning_conflicts(recipe)):
        raise ValueError(conflict)
    _check_budget(recipe)


def _check_type_and_choice(field, value):
    name, choices = field.name, field.metadata["choices"]
    _expect(name, value, is_valid(value, field.type), described(field.type))
    for number in value if isinstance(value, tuple) else [value]:
        if isinstance(number, int):
            _expect(name, value, abs(number) < _MAX_INTEGER, "less than 2**63")
    if choices:
        _expect(name, value, value in choices, f"one of {', '.join(choices)}")


def _check_ranges(recipe):
    steps, drops = recipe.steps_per_epoch, recipe.lr_drops
    for name, holds, expected in (
        ("validation_split", 0 <= recipe.validation_split < 1, "in [0, 1)"),
        ("epochs", recipe.epochs >= 2, "at least 2"),
        ("batch_size", recipe.batch_size >= 1, "at least 1"),
        ("steps_per_epoch", steps is None or steps >= 1, "at least 1"),
        ("learning_rate", 0 < recipe.learning_rate < math.inf, "positive"),
        ("momentum", 0 <= recipe.momentum < 1, "in [0, 1)"),
        ("weight_decay", 0 <= recipe.weight_decay < math.inf, "0 or more"),
        ("gamma_l1", 0 <= recipe.gamma_l1 < math.inf, "0 or more"),
        # Drops after the last epoch are allowed, so that a schedule can be tried out with fewer epochs.
        ("lr_drops", list(drops) == sorted(set(drops)) and min(drops, default=1) > 0, "increasing epochs from 1"),
        ("lr_drop_factor", 0 < recipe.lr_drop_factor < 1, "in (0, 1)"),
        ("min_units", recipe.min_units >= 1, "at least 1"),
    ):
        _expect(name, getattr(recipe, name), holds, expected)


def _check_lengths(recipe):
    """Check the numbers of epochs of the search and of gradual pruning."""
    remain = "" if recipe.restarts else ", so that epochs remain for the retraining"
    if recipe.gradual:
        most = recipe.epochs - (2 if recipe.schedule == "early_bird" else 1)
        _expect("pruning_epochs", recipe.pruning_limit, 1 <= recipe.pruning_limit <= most, f"from 1 to {most}{remain}")
    if recipe.schedule != "polynomial":
        limit, least, most = recipe.search_limit, int(recipe.gradual), recipe.longest_search
        _expect("search_epochs", limit, least <= limit <= most, f"from {least} to {most}{remain}")


def _training_conflicts(recipe) -> Iterator[str]:
    if recipe.evaluate == "validation" and not recipe.validation_split:
        yield "evaluate='validation' needs validation images. Set validation_split above 0."
    if recipe.strategy == "multi_worker" and recipe.keras != "tf_keras":
        yield (
            "strategy='multi_worker' needs keras='tf_keras', because the fit method of Keras 3 trains on one machine "
            f"only. Received: keras={recipe.keras!r}"
        )
    if recipe.lr_drops and recipe.lr_schedule != "step":
        yield f"lr_drops needs lr_schedule='step'. Received: {recipe.lr_drops}, lr_schedule={recipe.lr_schedule!r}"
    if recipe.gamma_l1:
        for holds, reason, name in (
            (_normalizes(recipe.network, recipe.keras), "needs a network with BatchNormalization", "network"),
            (recipe.search_limit > 0, "needs a search", "schedule" if recipe.gradual else "search_epochs"),
            (not recipe.baseline, "changes the search, which the baseline would continue", "baseline"),
        ):
            if not holds:
                yield f"gamma_l1 {reason}. Received: {name}={getattr(recipe, name)}"


def _pruning_conflicts(recipe) -> Iterator[str]:
    if recipe.pruning_epochs is not None and not recipe.gradual:
        yield f"pruning_epochs={recipe.pruning_epochs} needs a gradual schedule. Received: schedule='one_shot'"
    if recipe.search_epochs is not None and recipe.schedule == "polynomial":
        yield f"schedule='polynomial' has no search. Received: search_epochs={recipe.search_epochs}"
    if recipe.gradual:
        for name in _changed(recipe, "max_flops", "training_flops_reduction", "compensate", "weight_pruning"):
            yield f"schedule={recipe.schedule!r} takes a ratio and cannot be combined with {_setting(recipe, name)}."
    if recipe.restarts:
        for name in _changed(recipe, "compensate", "weight_pruning"):
            kept = f"retrain_from={recipe.retrain_from!r} discards the trained weights"
            yield f"{kept} and cannot be combined with {_setting(recipe, name)}."
    if recipe.criterion == "bn_scale" and not _normalizes(recipe.network, recipe.keras):
        yield f"criterion='bn_scale' needs a network with BatchNormalization. Received: network={recipe.network}"
    gradient = recipe.gradual and recipe.criterion in ("taylor", "snip")
    if gradient and recipe.strategy != "none" and recipe.keras == "tf_keras":
        yield (
            f"criterion={recipe.criterion!r} needs the gradient of the loss, which is not available with schedule="
            f"{recipe.schedule!r}, strategy={recipe.strategy!r} and keras='tf_keras'. Choose another criterion."
        )


def _check_budget(recipe):
    given = {name: getattr(recipe, name) for name in _changed(recipe, *BUDGETS)}
    if len(given) != 1:
        raise ValueError(f"Expected exactly one of {', '.join(BUDGETS)}. Received: {given or 'none'}")
    (name, value), *_ = given.items()
    if name == "training_flops_reduction":
        _expect(name, value, 1 < value < math.inf, "greater than 1")
        recipe.slim_share(recipe.search_limit)  # raises a ValueError if the search alone exceeds the budget
    else:
        _expect(name, value, 0 < value < 1, "in (0, 1)")


def check_dataset(recipe: Any, dataset: Dataset, steps: int, devices: int) -> None:
    """Raise a ValueError if the dataset, its `steps` per epoch or the devices that share each batch do not fit."""
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


def check_removal(recipe: Any, dataset: Dataset) -> None:
    """Raise a ValueError if the budget cannot be met after the longest search, or if it removes no unit."""
    limit = recipe.search_limit
    share = recipe.slim_share(limit)
    dense = models.build(recipe.network, dataset.input_shape, dataset.classes, recipe.width, recipe.keras)
    try:  # with any criterion: all remove the same number of units
        chosen = plan(
            dense, recipe.ratio, max_flops=share, criterion="random", scope=recipe.scope, min_units=recipe.min_units
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
        given = [_setting(recipe, name) for name in (*_changed(recipe, *BUDGETS), "min_units")]
        raise ValueError(f"No unit of network={recipe.network!r} would be removed with {', '.join(given)}.")


@functools.cache  # a grid of recipes would build the same networks hundreds of times
def _normalizes(network, keras):
    """Whether a network has BatchNormalization layers."""
    model = models.build(network, _INPUT_SHAPE, _CLASSES, width=1e-9, keras=keras)  # one channel per layer
    return any(_keras.of_class(layer, "BatchNormalization") for layer in model.layers)


def _changed(recipe, *names):
    """The given fields that differ from their defaults."""
    return [name for name in names if getattr(recipe, name) != getattr(type(recipe), name)]


def _setting(recipe, name):
    return f"{name}={getattr(recipe, name)}"


def _expect(name, value, holds, expected):
    if not holds:
        raise ValueError(f"Expected {name} to be {expected}. Received: {value!r}")
