"""The signature of a model: its calls in order, by which plans, masks and states recognise a model that is built anew.

Automatic names such as "dense_3" count for nothing, since they differ each time that a model is built in one process.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer, KerasModel

# For each call the path of its layer, and in words: class, weights, settings, what it reads, and its chosen name.
Signature = Sequence[Sequence[str]]

# The settings of layers that change what happens to channels. Rates, momenta and the like do not.
_SETTINGS = (
    *("axis", "data_format", "dims", "groups", "kernel_size", "padding", "pool_size", "strides", "dilation_rate"),
    *("target_shape", "max_value", "negative_slope", "alpha", "threshold", "num_heads", "n", "cropping", "size"),
    *("go_backwards", "return_sequences", "equation"),
)
_IGNORED = ("name", "training")  # arguments of calls; Keras 3 does not record `training` reliably


@dataclasses.dataclass(frozen=True)
class _Value:
    """A tensor: an output of a call, or an input of the model."""

    source: str

    def __str__(self):
        return self.source


def signature(model: KerasModel) -> Signature:
    """The signature of a model, for `renamed`."""
    layers = _keras.layer_paths(model)
    steps: list[tuple[str, str]] = []
    first: dict[int, int] = {}  # layer -> the number of its first call

    def visit(node, args, kwargs):
        number = len(steps)
        words = [type(_keras.innermost(node.layer)).__name__, *_settings(node), *_arguments(node, args, kwargs)]
        if first.setdefault(id(node.layer), number) != number:
            words.append(f"as call {first[id(node.layer)]}")
        if chosen := _chosen_name(node.path, layers):
            words.append(f"named {chosen!r}")
        steps.append((node.path, " ".join(words)))
        return [_Value(f"{number}.{i}" if i else f"{number}") for i in range(len(node.outputs))]

    outputs = _keras.run(model, [_Value(f"input{i}") for i in range(len(model.inputs))], visit, nested=True)
    return *steps, ("", f"outputs {' '.join(map(str, outputs))}")


def _settings(node):
    layer, rank = _keras.innermost(node.layer), len(node.output_shapes[0])
    shapes = _keras.weight_shapes(node.layer)
    words = [f"weights={shapes}"] if shapes else []
    if _keras.op_name(layer) is not None:
        return [_keras.op_name(layer)]
    for name in _SETTINGS:
        value = getattr(layer, name, None)
        if name == "axis" and value is not None:  # tf_keras counts it from the start, in a list
            value = [int(axis) % rank for axis in np.atleast_1d(value)]
        if isinstance(value, bool | int | str | tuple | list):
            words.append(f"{name}={value}")
        elif isinstance(value, float | np.ndarray | np.number):  # tf_keras keeps max_value as an array
            words.append(f"{name}={np.asarray(value, float).tolist()}")
    activation = _keras.own_activation(layer)
    name = _keras.function_name(activation) or getattr(activation, "__name__", type(activation).__name__)
    return words if activation is None else [*words, f"activation={name}"]


def _arguments(node, args, kwargs):
    """What a call reads, and its constants, by argument."""
    words = []
    for name, argument in _keras.arguments(node.layer, args, kwargs).items():
        for value in tf.nest.flatten(argument):
            if isinstance(value, _Value | bool | int | float | str) and name not in _IGNORED:
                words.append(f"{name}={value}")
            elif hasattr(value, "shape"):
                words.append(f"{name}={type(value).__name__}{list(value.shape)}")
    return words


def _chosen_name(path: str, layers: dict[str, Any]) -> str:
    """A path without the parts that Keras named automatically."""
    parts = path.split("/")
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return "/".join(name for name, at in zip(parts, paths, strict=True) if not _is_automatic(name, layers.get(at)))


def _is_automatic(name: str, layer: KerasLayer) -> bool:
    stem = re.sub(r"_\d+$", "", name).replace("_", "").lower()
    classes = {type(layer).__name__.replace("_", "").lower()}
    if _keras.is_model(layer):
        classes |= {"model", "functional"}
    return stem in classes or (_keras.op_name(layer) is not None and name.startswith("tf."))


def renamed(saved: Signature, found: Signature, expected: str) -> dict[str, str]:
    """The path in one model of each layer path of another one with the same signature, apart from automatic names.

    Raises a ValueError that starts with `expected` and names the first difference.
    """
    for (path, call), (other_path, other_call) in zip(saved, found, strict=False):
        if call != other_call:
            here = f"with the same layers and channels, here {path!r}: {call}"
            raise ValueError(f"{expected}, {here}. Received: {other_path!r}: {other_call}")
    if len(saved) != len(found):
        raise ValueError(f"{expected}, with the same layers, {len(saved) - 1} calls. Received: {len(found) - 1}")
    return {path: other_path for (path, _), (other_path, _) in zip(saved, found, strict=True)}
