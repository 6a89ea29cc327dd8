"""What flows along the edges of a graph, and which parts of it a cut leaves."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(eq=False)
class Flow:
    """What flows along an edge of the graph.

    `ids` holds the channel ids, an int array of the tensor's rank without its batch dimension. An axis of length 1
    stands for the same ids at all its positions.
    """

    ids: np.ndarray
    shape: tuple  # the tensor's static shape without its batch dimension
    spec: tf.TensorSpec  # its shape in a prediction of one input, batch included, where the graph may lack sizes
    linear: str | None = None  # name of its units if nothing, no activation, came after the weight that produced them
    off: Callable[[], np.ndarray] = lambda: np.array(np.nan)  # its numbers if all units are switched off, if known
    readers: int = 0  # how many calls and model outputs read the edge
    batchless: bool = False  # whether it is made of weights only: then `ids` and `shape` have all axes of the tensor


def constants(value: Any, place: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """The parts of the arguments of a call that are not inputs, each with its place; see `Call.constants`."""
    if any(isinstance(part, Flow) for part in tf.nest.flatten(value)):
        parts = value.items() if isinstance(value, Mapping) else [] if isinstance(value, Flow) else enumerate(value)
        for key, part in parts:
            yield from constants(part, (*place, key))
    else:
        yield place, value


def kept_along(kept: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """The positions along each axis of an array of ids that a cut leaves; `kept` is as in `Call.resize`."""
    return [np.unique(places) for places in np.nonzero(kept[ids])]


def taken(value: Any, positions: Mapping[int, np.ndarray]) -> Any:
    """The numbers at some positions along some axes of a constant, in the form of the constant."""
    array = np.asarray(value)
    for axis, where in positions.items():
        array = array.take(where, axis)
    if isinstance(value, list | tuple):
        return type(value)(array.tolist())
    return tf.convert_to_tensor(array) if tf.is_tensor(value) else array


def each_step(spec: tf.TensorSpec) -> tf.TensorSpec:
    """The shape of a tensor [batch, steps, ...] whose steps become the batch."""
    batch, steps, *sizes = spec.shape
    return tf.TensorSpec((None if None in (batch, steps) else batch * steps, *sizes), spec.dtype)
