"""tfmot's pruning wrappers: the masks that they hold, and the update by which tfmot chooses them."""

from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasModel, KerasVariable

_UPDATE = "conditional_mask_update"  # the method of a wrapper's `pruning_obj` by which tfmot chooses masks


def pruning_vars(model: KerasModel) -> Iterator[tuple[tuple[str, int], KerasVariable, KerasVariable]]:
    """Yields, for every weight that tfmot masks: (layer path, index in `_keras.weights`), mask (1 is on), threshold."""
    for path, wrapper in _keras.pruning_wrappers(model).items():
        for weight, mask, threshold in wrapper.pruning_vars:
            index = next(i for i, other in enumerate(_keras.weights(wrapper.layer)) if other is weight)
            yield (path, index), mask, threshold


def check_wrapped(model: KerasModel) -> None:
    """Raises a TypeError or ValueError unless tfmot has wrapped a layer of the model that has weights to mask."""
    if next(pruning_vars(_keras.check_model(model)), None) is None:
        raise ValueError(
            "Expected a tf_keras model wrapped by tfmot.sparsity.keras.prune_low_magnitude. "
            f"Received: the {_keras.keras_of(model).__name__} model {model.name!r}, without such a wrapper"
        )


def write(model: KerasModel, entries: Mapping[tuple[str, int], np.ndarray]) -> None:
    """Sets the masks of a model's wrappers; weights that are missing in `entries` are on everywhere."""
    for place, mask, threshold in pruning_vars(model):
        on = entries.get(place, np.ones(mask.shape, bool))
        mask.assign(tf.cast(on, mask.dtype))
        threshold.assign(tf.zeros_like(threshold))  # the masks were not chosen by a threshold


def freeze(model: KerasModel) -> bool:
    """Stops tfmot from choosing masks; returns whether traced functions are outdated by that."""
    active = [pruning for pruning in _prunings(model) if _UPDATE not in vars(pruning)]
    for pruning in active:
        # Not by a schedule that never prunes: sparsity_m_by_n ignores the schedule, and a model saved meanwhile would
        # have that schedule in its config.
        setattr(pruning, _UPDATE, tf.no_op)
    return bool(active)


def thaw(model: KerasModel) -> bool:
    """Lets tfmot choose masks again; returns whether traced functions are outdated by that."""
    frozen = [pruning for pruning in _prunings(model) if _UPDATE in vars(pruning)]
    for pruning in frozen:
        delattr(pruning, _UPDATE)
    return bool(frozen)


def _prunings(model):
    return [wrapper.pruning_obj for wrapper in _keras.pruning_wrappers(model).values()]
