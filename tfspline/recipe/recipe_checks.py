"""Which recipes there can be: the range of each field, and which fields contradict each other."""

import dataclasses
import functools
import math
import numbers
import types
import typing
from typing import Any

from tfspline import _keras, models
from tfspline.datasets.augment import AUGMENTATIONS
from tfspline.pruning import criteria
from tfspline.pruning.allocation import SCOPES
from tfspline.pruning.compensation import COMPENSATIONS

SCHEDULES = ("one_shot", "polynomial", "early_bird")
STRATEGIES = ("none", "mirrored", "multi_worker")
RETRAIN_FROM = ("trained", "initial", "random")
BUDGETS = ("ratio", "max_flops", "training_flops_reduction")
_IMAGES = {"input_shape": (32, 32, 3), "classes": 2}  # any; those of the dataset are not known before it is read


def check(recipe: Any) -> None:
    """Raises the ValueError for a `tfspline.recipe.recipe.Recipe` that cannot be."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        plain = typing.get_origin(field.type) is None
        _expect(field.name, value, _is_of(value, field.type), field.type.__name__ if plain else field.type)
    # These three refuse what they do not know.
    models.check(recipe.network, **_IMAGES, width=recipe.width, keras=recipe.keras)
    criteria.named(recipe.criterion)
    recipe.early_bird()
    _one_of("augment", recipe.augment, AUGMENTATIONS)
    _expect("validation_split", recipe.validation_split, 0 <= recipe.validation_split < 1, "in [0, 1)")
    _one_of("evaluate", recipe.evaluate, ("test", "validation") if recipe.validation_split else ("test",))
    _one_of("lr_schedule", recipe.lr_schedule, ("cosine", "step"))
    _one_of("scope", recipe.scope, SCOPES)
    _one_of("compensate", recipe.compensate, COMPENSATIONS)
    _one_of("strategy", recipe.strategy, STRATEGIES)
    _one_of("retrain_from", recipe.retrain_from, RETRAIN_FROM)
    _one_of("schedule", recipe.schedule, SCHEDULES)
    _expect("epochs", recipe.epochs, recipe.epochs >= 2, "at least 2")
    _expect("batch_size", recipe.batch_size, recipe.batch_size >= 1, "at least 1")
    steps = recipe.steps_per_epoch
    _expect("steps_per_epoch", steps, steps is None or steps >= 1, "at least 1")
    _expect("learning_rate", recipe.learning_rate, 0 < recipe.learning_rate < math.inf, "positive")
    _expect("momentum", recipe.momentum, 0 <= recipe.momentum < 1, "in [0, 1)")
    _expect("weight_decay", recipe.weight_decay, 0 <= recipe.weight_decay < math.inf, "0 or more")
    _expect("gamma_l1", recipe.gamma_l1, 0 <= recipe.gamma_l1 < math.inf, "0 or more")
    _expect("lr_drop_factor", recipe.lr_drop_factor, 0 < recipe.lr_drop_factor < 1, "in (0, 1)")
    _expect("min_units", recipe.min_units, recipe.min_units >= 1, "at least 1")
    _check_strategy(recipe)
    _check_drops(recipe)
    _check_schedule(recipe)
    _check_search(recipe)
    _check_restart(recipe)
    _check_penalty(recipe)
    _check_criterion(recipe)
    _check_budget(recipe)


def _is_of(value, kind):
    """Whether a value is of the kind that a field is annotated with."""
    if isinstance(kind, types.UnionType):
        return any(_is_of(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(one, int) for one in value)
    if kind in (bool, str, types.NoneType):
        return isinstance(value, kind)
    if isinstance(value, numbers.Integral):
        return not isinstance(value, bool) and abs(value) < 2**63  # as TensorFlow has them
    return kind is float and isinstance(value, numbers.Real)


def _check_strategy(recipe):
    if recipe.strategy == "multi_worker" and recipe.keras != "tf_keras":
        raise ValueError(
            "Expected keras='tf_keras' with strategy='multi_worker': the fit of Keras 3 trains on one machine only. "
            f"Received: keras={recipe.keras!r}"
        )
    gradient = recipe.gradual and recipe.criterion in ("taylor", "snip")
    if gradient and recipe.strategy != "none" and recipe.keras == "tf_keras":
        raise ValueError(
            f"Expected another criterion with schedule={recipe.schedule!r}, strategy={recipe.strategy!r} and "
            f"keras='tf_keras', where the gradient of the loss cannot be taken. Received: {recipe.criterion!r}"
        )


def _check_drops(recipe):
    drops = recipe.lr_drops
    if drops and recipe.lr_schedule != "step":
        raise ValueError(f"Expected no lr_drops with lr_schedule={recipe.lr_schedule!r}. Received: {drops}")
    # Drops after the last epoch are no mistake: that is how a schedule is tried out in fewer epochs.
    rising = list(drops) == sorted(set(drops)) and all(epoch > 0 for epoch in drops)
    _expect("lr_drops", drops, rising, "rising epochs, from 1")


def _check_schedule(recipe):
    if not recipe.gradual:
        if recipe.pruning_epochs is not None:
            raise ValueError(f"Expected no pruning_epochs with schedule='one_shot'. Received: {recipe.pruning_epochs}")
        return
    limit, most = recipe.pruning_limit, recipe.epochs - (2 if recipe.schedule == "early_bird" else 1)
    _expect("pruning_epochs", limit, 1 <= limit <= most, f"from 1 to {most}, which leaves epochs to train on")
    for name in _given(recipe, "max_flops", "training_flops_reduction", "compensate", "weight_pruning"):
        raise ValueError(
            f"Expected a ratio, and nothing to compensate or compare with, with schedule={recipe.schedule!r}. "
            f"Received: {name}={getattr(recipe, name)}"
        )


def _check_search(recipe):
    if recipe.schedule == "polynomial":
        _expect("search_epochs", recipe.search_epochs, recipe.search_epochs is None, "left out with that schedule")
        return
    limit, least, most = recipe.search_limit, int(recipe.gradual), recipe.longest_search
    left = "" if recipe.restarts else ", which leaves epochs to train on"
    _expect("search_epochs", limit, least <= limit <= most, f"from {least} to {most}{left}")


def _check_restart(recipe):
    for name in _given(recipe, "compensate", "weight_pruning") if recipe.restarts else ():
        raise ValueError(
            f"Expected {name}={getattr(type(recipe), name)} with retrain_from={recipe.retrain_from!r}, where the "
            f"weights that were trained do not stay. Received: {name}={getattr(recipe, name)}"
        )


def _check_penalty(recipe):
    if not recipe.gamma_l1:
        return
    for holds, expected, name in (
        (_normalizes(recipe.network, recipe.keras), "a network with BatchNormalization", "network"),
        (recipe.search_limit > 0, "a search", "schedule" if recipe.gradual else "search_epochs"),
        (not recipe.baseline, "no baseline, which would go on from that search,", "baseline"),
    ):
        if not holds:
            raise ValueError(f"Expected {expected} with gamma_l1. Received: {name}={getattr(recipe, name)}")


def _check_criterion(recipe):
    if recipe.criterion == "bn_scale" and not _normalizes(recipe.network, recipe.keras):
        raise ValueError(
            f"Expected a network with BatchNormalization with criterion='bn_scale'. Received: network={recipe.network}"
        )


def _check_budget(recipe):
    given = {name: getattr(recipe, name) for name in _given(recipe, *BUDGETS)}
    if len(given) != 1:
        raise ValueError(f"Expected exactly one of {', '.join(BUDGETS)}. Received: {given or 'none'}")
    (name, value), *_ = given.items()
    if name == "training_flops_reduction":
        _expect(name, value, 1 < value < math.inf, "greater than 1")
        recipe.slim_share(recipe.search_limit)  # refuses a search that leaves nothing
    else:
        _expect(name, value, 0 < value < 1, "in (0, 1)")


@functools.cache  # a grid of recipes would build the same ones hundreds of times
def _normalizes(network, keras):
    model = models.build(network, **_IMAGES, width=1e-9, keras=keras)  # one channel everywhere
    return any(_keras.of_class(layer, "BatchNormalization") for layer in model.layers)


def _given(recipe, *names):
    """Those of the fields that are not what they are by default."""
    return [name for name in names if getattr(recipe, name) != getattr(type(recipe), name)]


def _expect(name, value, holds, expected):
    if not holds:
        raise ValueError(f"Expected {name} to be {expected}. Received: {value!r}")


def _one_of(name, value, known):
    _expect(name, value, value in known, f"one of {', '.join(known)}")
