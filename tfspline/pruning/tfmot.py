"""tfmot's pruning wrappers: the masks that they hold for the weights inside them, and the update that chooses these."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras

_UPDATE = "conditional_mask_update"  # the method of a wrapper's `pruning_obj` with which tfmot chooses masks


def pruning_vars(model: Any) -> Iterator[tuple[tuple[str, int], Any, Any]]:
    """Of every weight that tfmot masks in a wrapped model: the path of its layer with its place in `layer.weights`,
    tfmot's mask (1 for on) and tfmot's threshold."""
    for path, wrapper in _keras.pruning_wrappers(model).items():
        for weight, mask, threshold in wrapper.pruning_vars:
            index = next(i for i, other in enumerate(wrapper.layer.weights) if other is weight)
            yield (path, index), mask, threshold


def check_wrapped(model: Any) -> None:
    """Raises a TypeError or ValueError if tfmot has wrapped no layer of the model that has weights to mask."""
    if next(pruning_vars(_keras.check_model(model)), None) is None:
        raise ValueError(
            "Expected a tf_keras model wrapped by tfmot.sparsity.keras.prune_low_magnitude. "
            f"Received: the {_keras.keras_of(model).__name__} model {model.name!r}, without such a wrapper"
        )


def write(model: Any, entries: Mapping[tuple[str, int], np.ndarray]) -> None:
    """Gives the wrappers of a model other masks, of a weight that `entries` leaves out one that is on all over."""
    for place, mask, threshold in pruning_vars(model):
        on = entries.get(place, np.ones(mask.shape, bool))
        mask.assign(tf.cast(on, mask.dtype))
        threshold.assign(tf.zeros_like(threshold))  # what is off was not chosen by it


def freeze(model: Any) -> bool:
    """Keeps tfmot from choosing masks of its own; returns whether what was traced before is out of date by that."""
    going = [pruning for pruning in _prunings(model) if _UPDATE not in vars(pruning)]
    for pruning in going:
        # A schedule that never prunes would do too, but sparsity_m_by_n asks no schedule, and the schedule in the
        # config of a model that is saved meanwhile would not be the user's.
        setattr(pruning, _UPDATE, tf.no_op)
    return bool(going)


def thaw(model: Any) -> bool:
    """Lets tfmot choose masks again; returns whether what was traced before is out of date by that."""
    frozen = [pruning for pruning in _prunings(model) if _UPDATE in vars(pruning)]
    for pruning in frozen:
        delattr(pruning, _UPDATE)
    return bool(frozen)


def _prunings(model):
    return [wrapper.pruning_obj for wrapper in _keras.pruning_wrappers(model).values()]
