"""The signature of a model: its calls in order, by which plans, masks and states recognise a model that is built anew.

Automatic names such as "dense_3" count for nothing, since they differ each time that a model is built in one process.
"""

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Mapping, Sequence
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
        words = [_class(_keras.innermost(node.layer)), *_settings(node), *_arguments(node, args, kwargs)]
        if first.setdefault(id(node.layer), number) != number:
            words.append(f"as call {first[id(node.layer)]}")
        if chosen := _chosen_name(node.path, layers):
            words.append(f"named {chosen!r}")
        steps.append((node.path, " ".join(words)))
        return [_Value(f"{number}.{i}" if i else f"{number}") for i in range(len(node.outputs))]

    outputs = _keras.run(model, [_Value(f"input{i}") for i in range(len(model.inputs))], visit, nested=True)
    return *steps, ("", f"outputs {' '.join(map(str, outputs))}")


def _class(layer):
    """The class of a layer, which may be a user's of the same name as Keras' own."""
    return f"{'' if _keras.is_builtin(type(layer)) else 'own '}{type(layer).__name__}"


def _settings(node):
    layer = _keras.innermost(node.layer)
    shapes = _keras.weight_shapes(node.layer)
    words = [f"weights={shapes}"] if shapes else []
    if _keras.op_name(layer) is not None:
        return [_keras.op_name(layer)]
    words += _numbers(layer, len(node.output_shapes[0]))
    if _keras.of_class(layer, "Lambda") and layer.arguments:
        words.append(f"arguments={_digest(layer.arguments)}")
    functions = {name: getattr(layer, name, None) for name in ("function", "recurrent_activation")}  # of a Lambda
    functions["activation"] = _keras.own_activation(layer)
    return [*words, *(f"{name}={_function(value)}" for name, value in functions.items() if callable(value))]


def _numbers(layer, rank):
    words = []
    for name in _SETTINGS:
        value = getattr(layer, name, None)
        if name == "axis" and value is not None:  # tf_keras counts it from the start, in a list
            value = [int(axis) % rank for axis in np.atleast_1d(value)]
        if isinstance(value, bool | int | str | tuple | list):
            words.append(f"{name}={value}")
        elif isinstance(value, float | np.ndarray | np.number):  # tf_keras keeps max_value as an array
            words.append(f"{name}={np.asarray(value, float).tolist()}")
    return words


def _function(function) -> str:
    """A function, callable object or layer in words. The name alone tells only those of Keras and TensorFlow apart."""
    name = _name(function) or type(function).__name__
    if known := _keras.function_name(function):
        return known
    if _keras.is_layer(function) and _keras.builtin_class_name(function):
        return " ".join([name, *_numbers(function, 1)])
    return f"own {name} {_digest(function)}"


def _digest(value):
    return hashlib.sha256(repr(_content(value)).encode()).hexdigest()[:8]


def _content(value, around=()):
    """What a function computes: bytecode and constants. The same in each process, without ids and line numbers."""
    if id(value) in around:  # a function that calls itself
        return "itself"
    around = (*around, id(value))
    if known := _keras.function_name(value):
        return known
    if not isinstance(value, bool | int | float) and (array := _array(value)) is not None:
        value = array.tolist()
    if isinstance(value, types.CodeType):
        parts = [value.co_code, value.co_names, value.co_consts]
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _keras.has_contents(cell)]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    elif isinstance(value, types.MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, dict):
        parts = [[name, value[name]] for name in sorted(value, key=repr)]
    elif isinstance(value, set | frozenset):
        return sorted(repr(_content(part, around)) for part in value)
    elif isinstance(value, list | tuple):
        parts = [*value]
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    else:
        return _of_object(value, around)
    return [_content(part, around) for part in parts]


def _of_object(value, around):
    """The content of an object of any other kind: that of its call if it is a user's, and its numbers."""
    python = value.python_function if isinstance(value, _keras.TF_FUNCTION) else None
    calls = [vars(base)["__call__"] for base in type(value).__mro__ if "__call__" in vars(base)]
    call = calls[0] if calls and not _keras.is_layer(value) and not _keras.is_builtin(type(value)) else None
    attributes = getattr(value, "__dict__", {}).items() if call else ()
    numbers = {name: part for name, part in attributes if isinstance(part, bool | int | float)}
    return [type(value).__name__, _name(value), *_content([python, call, numbers], around)]


def _name(value):
    try:
        return value.__name__
    except Exception:  # a user's __getattr__ may raise anything
        return ""


def _arguments(node, args, kwargs):
    """What a call reads, and its constants, by argument."""
    found = _keras.arguments(node.layer, args, kwargs).items()
    return [f"{name}={words}" for name, value in found if name not in _IGNORED and (words := _argument(value))]


def _argument(value) -> str:
    """An argument of a call in words. Keras turns arrays, tuples and slices into lists and dicts when it saves."""
    if (array := _array(value)) is not None:
        return _array_in_words(array)
    if isinstance(value, slice):
        value = {"start": value.start, "stop": value.stop, "step": value.step}
    if isinstance(value, Mapping):
        value = [value[name] for name in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_argument, value))}]"
    if isinstance(value, tf.DType):
        return value.name
    if isinstance(value, _Value | str):
        return str(value)
    return f"{type(value).__name__}{list(value.shape)}" if hasattr(value, "shape") else ""


def _array(value) -> np.ndarray | None:
    """The numbers of an array, tensor, number or list of them, whatever holds them; None of anything else."""
    if isinstance(value, list | tuple):
        if not value or not _is_numeric(value):
            return None
    elif not isinstance(value, bool | int | float | np.number | np.ndarray) and not _is_eager(value):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        return None
    if array.dtype.kind in "fV" and array.dtype.names is None:  # V: bfloat16, or records
        return array.astype(float)
    return array.astype(np.int64) if array.dtype.kind in "biu" else None


def _is_numeric(value):
    if isinstance(value, list | tuple):
        return all(map(_is_numeric, value))
    return isinstance(value, bool | int | float | np.number)


def _is_eager(value):
    return isinstance(value, tf.Tensor) and hasattr(value, "numpy")


def _array_in_words(array: np.ndarray) -> str:
    if array.size <= 8:
        return str(array.tolist())
    return f"{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:8]}"


def _chosen_name(path: str, layers: dict[str, Any]) -> str:
    """A path without the parts that Keras named automatically."""
    if "." in path:  # of a layer inside a composite one, whose name may be automatic, too
        return ""
    parts = path.split("/")
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return "/".join(name for name, at in zip(parts, paths, strict=True) if not _is_automatic(name, layers.get(at)))


def _is_automatic(name: str, layer: KerasLayer) -> bool:
    stem = re.sub(r"_\d+$", "", name).replace("_", "").lower()
    classes = {type(layer).__name__.replace("_", "").lower()}
    if _keras.is_model(layer):
        classes |= {"model", "functional"}
    return stem in classes or (_keras.op_name(layer) is not None and name.startswith("tf."))


def by_new_name(values: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """Values by producer (`Graph.producers`), with its name in another model; `paths` as `renamed` returns them."""
    parts = {name: (name, "", "") if name in paths else name.rpartition("#") for name in values}
    return {paths[path] + mark + number: values[name] for name, (path, mark, number) in parts.items()}


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
