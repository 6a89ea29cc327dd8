"""Boundaries: which units the bits of a code are of, whether they switch, and how their cuts lie."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph import layer_specs as rules
from tfspline.graph.weights import folded, value_of
from tfspline.spline.activations import bits_of_calls
from tfspline.spline.codes import unique


@dataclasses.dataclass(frozen=True, eq=False)
class Boundaries:
    """The boundaries of the units whose codes a call gives.

    Attributes:
        maker: the Dense or Conv layer that makes the units, or None where the call does not follow it directly.
        norms: the BatchNormalizations in between.
        depth: how many such layers the input of the model has passed; 1 for those that read it themselves.
        first: whether channels come first.
        shape: of the call's output without its batch dimension, None where a size is not known.
    """

    maker: Any = None
    norms: tuple = ()
    depth: int = 0
    first: bool = False
    shape: tuple = ()

    def switching(self, bits: np.ndarray) -> np.ndarray:
        """Which units, bool [channels], are not on the same side of a cut for all samples and places."""
        switch = (bits != bits[:1]).any(axis=0)
        if self.first and None not in self.shape:
            return switch.reshape(-1, self.shape[0], math.prod(self.shape[1:])).any(axis=(0, 2))
        return switch.reshape(-1, self.shape[-1]).any(axis=0)

    def normals(self) -> np.ndarray | None:
        """The normals of the units' cuts in the layer's inputs (a window of them), float64 [channels, inputs]."""
        if self.maker is None:
            return None
        kernel = value_of(self.maker.kernel).astype(np.float64)
        normals = kernel.reshape(-1, kernel.shape[-1]).T
        for norm in self.norms:
            normals = normals * folded(norm)[0][:, None]
        return normals


def boundaries(model: Any, approximate: bool) -> dict[str, Boundaries]:
    """The `Boundaries` of each layer that has a code, by its name in the codes."""
    calls = iter(list(bits_of_calls(model, approximate, max_pooling=False)))
    seen = []

    def visit(node, args, kwargs):
        layer = node.layer
        source = next((one for one in tf.nest.flatten((args, kwargs)) if isinstance(one, Boundaries)), Boundaries())
        first = getattr(layer, "data_format", "channels_first" if source.first else None) == "channels_first"
        units = Boundaries(depth=source.depth, first=first, shape=node.output_shapes[0][1:])
        bend, bits = next(calls)
        if _keras.builtin_class_name(layer) in ("Dense", "Conv1D", "Conv2D", "Conv3D"):
            units = dataclasses.replace(units, maker=layer, depth=source.depth + 1)
        elif _keras.of_class(layer, "BatchNormalization"):
            units = dataclasses.replace(units, maker=source.maker, norms=(*source.norms, layer))
        elif rules.rule_for(layer) in (rules.elementwise, rules.prelu, rules.merge) and len(node.inputs) == 1:
            units = dataclasses.replace(units, maker=source.maker, norms=source.norms)
        if bits:
            seen.append((bend.path, units))
            units = dataclasses.replace(units, maker=None, norms=())
        return [units] * len(node.outputs)

    _keras.run(model, [Boundaries() for _ in model.inputs], visit, nested=True)
    return dict(zip(unique(path for path, _ in seen), (units for _, units in seen), strict=True))


def angles_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between the rows of two matrices, in degrees."""
    norms = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b)]
    a, b = (np.divide(rows, norm, where=norm > 0, out=rows * 0) for rows, norm in zip((a, b), norms, strict=True))
    # An arc cosine would lose half of the digits of a small angle.
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1)))


def angle_to_axes(rows: np.ndarray) -> float:
    """Mean angle of rows to their nearest axis, in degrees; NaN without any."""
    if not len(rows):
        return np.nan
    largest = np.eye(rows.shape[1])[np.abs(rows).argmax(axis=1)]
    return float(angles_between(np.abs(rows), largest).mean())
