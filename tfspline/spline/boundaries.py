"""Boundaries of units: whether inputs lie on both sides of them, and their normals."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer, KerasModel
from tfspline.graph.layer_specs.registry import spec_of
from tfspline.graph.weights import folded, value_of
from tfspline.spline.calls import coded_calls


@dataclasses.dataclass(frozen=True, eq=False)
class Boundaries:
    """The boundaries of the units of one call."""

    producer: KerasLayer | None = None  # the Dense or Conv layer that computes the pre-activations, if it is known
    norms: tuple[KerasLayer, ...] = ()  # the BatchNormalizations between the producer and the call
    depth: int = 0  # how many Dense and Conv layers come before the call, the producer included
    channels_first: bool = False
    shape: tuple = ()  # of the call's output without its batch dimension; None for an unknown size

    def after(self, node: _keras.Node) -> "Boundaries":
        """The boundaries after a call that reads the units of these."""
        spec = spec_of(node.layer)
        default = "channels_first" if self.channels_first else None
        following = Boundaries(
            depth=self.depth,
            channels_first=getattr(node.layer, "data_format", default) == "channels_first",
            shape=node.output_shapes[0][1:],
        )
        if spec.kernel is not None and spec.kernel.is_hyperplane:
            return dataclasses.replace(following, producer=node.layer, depth=self.depth + 1)
        if _keras.of_class(node.layer, "BatchNormalization"):
            axes = np.atleast_1d(node.layer.axis) % len(node.output_shapes[0])
            if axes.tolist() != [1 if following.channels_first else len(following.shape)]:  # not over the channels
                return following
            return dataclasses.replace(following, producer=self.producer, norms=(*self.norms, node.layer))
        if spec.elementwise and len(node.inputs) == 1:
            return dataclasses.replace(following, producer=self.producer, norms=self.norms)
        return following

    def switching(self, bits: np.ndarray) -> np.ndarray:
        """Which units, bool [channels], have bits [samples, bits] that differ between samples or positions."""
        switch = (bits != bits[:1]).any(axis=0)
        if self.channels_first and None not in self.shape:
            return switch.reshape(-1, self.shape[0], math.prod(self.shape[1:])).any(axis=(0, 2))
        return switch.reshape(-1, self.shape[-1]).any(axis=0)

    def normals(self) -> np.ndarray | None:
        """The normals of the boundaries in a window of the producer's inputs, float64 [channels, inputs], if known."""
        if self.producer is None:
            return None
        kernel = value_of(self.producer.kernel).astype(np.float64)
        normals = kernel.reshape(-1, kernel.shape[-1]).T
        for norm in self.norms:
            normals = normals * folded(norm)[0][:, None]
        return normals


def boundaries(model: KerasModel, approximate: bool) -> dict[str, Boundaries]:
    """The `Boundaries` of each layer that has a region code, by its name in the codes."""
    coded, _ = coded_calls(model, approximate, max_pooling=False)
    names, found = {one.call.node.key: name for name, one in coded.items()}, {}

    def visit(node, args, kwargs):
        sources = (value for value in tf.nest.flatten((args, kwargs)) if isinstance(value, Boundaries))
        units = next(sources, Boundaries()).after(node)
        if node.key in names:
            found[names[node.key]] = units
            units = dataclasses.replace(units, producer=None, norms=())
        return [units] * len(node.outputs)

    _keras.run(model, [Boundaries() for _ in model.inputs], visit, nested=True)
    return found


def angles_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The angle between each row of a matrix and the same row of another one, in degrees."""
    norms = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b)]
    a, b = (np.divide(rows, norm, where=norm > 0, out=rows * 0) for rows, norm in zip((a, b), norms, strict=True))
    # An arc cosine would lose half of the digits of small angles.
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1)))


def angle_to_axes(rows: np.ndarray) -> float:
    """The mean angle of the rows to their nearest axis, in degrees; NaN without rows."""
    if not len(rows):
        return np.nan
    largest = np.eye(rows.shape[1])[np.abs(rows).argmax(axis=1)]
    return float(angles_between(np.abs(rows), largest).mean())
