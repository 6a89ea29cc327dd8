"""Placement: finds the units of a group along the axes of weights and tensors, and brings them into matrix form."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfspline.graph.structure import Group, WeightSlice


class Placement:
    """Where the weights that produce a group's units hold each of them, by producer (`Graph.producers`)."""

    def __init__(self, producers: Mapping[str, WeightSlice], group: Group):
        parts = {name: part for name, part in producers.items() if part.layer in group.layers}
        places = {name: places_of(part.units, group.units) for name, part in parts.items()}
        self.places = {name: at for name, at in places.items() if at.size}
        self.slices = {name: parts[name] for name in self.places}

    def parts(self, weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """For each producer a matrix [n, positions a unit x fan_in] of its weight in `weights`, or of an array of the
        same shape."""
        return [take(rows(weights[name], self.slices[name].axis), at) for name, at in self.places.items()]

    def matrix(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """The `parts` of all producers side by side, [n, fan_in]."""
        return side_by_side(self.parts(weights))


def places_of(unit_at: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The positions of n units along an axis, int [n, positions a unit], given the unit at each position of the axis.

    The second dimension is 0 unless every unit is there, equally often.
    """
    places = np.argsort(unit_at, kind="stable")
    places = places[np.isin(unit_at[places], units)]
    counts = np.unique(unit_at[places], return_counts=True)[1]
    if len(counts) < len(units) or (counts != counts[0]).any():
        return np.empty((len(units), 0), int)
    return places.reshape(len(units), -1)[np.argsort(np.argsort(units))]


def rows(weight: np.ndarray, axis: int) -> np.ndarray:
    """A weight as a matrix [channels, rest]; a view if channels are its first or last axis, as weights are large."""
    if axis == weight.ndim - 1:
        return weight.reshape(-1, weight.shape[-1]).T
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def take(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The rows of each unit side by side, [n, positions a unit x columns], for places [n, positions a unit]."""
    if np.array_equal(places[:, 0], np.arange(len(matrix))):
        return matrix
    return matrix[places].reshape(len(places), -1)


def side_by_side(matrices: list[np.ndarray]) -> np.ndarray:
    """Matrices with the same number of rows as one; no copy of a single one."""
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)


def channels_last(x: tf.Tensor, axis: int) -> tf.Tensor:
    """A tensor as a float32 matrix [samples and positions, channels], with the channels taken from `axis`."""
    order = [i for i in range(x.shape.rank) if i != axis % x.shape.rank] + [axis % x.shape.rank]
    return tf.cast(tf.reshape(tf.transpose(x, order), [-1, x.shape[axis]]), tf.float32)
