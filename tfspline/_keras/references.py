"""What an object refers to, as far as layers and weights are reached through it."""

import dis
import functools
import gc
import inspect
import sys
import types
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspline._keras.layers import is_builtin, is_loaded, op_name, sublayers, weights
from tfspline._keras.modules import is_layer_class, of_class
from tfspline._keras.types import KerasLayer, KerasVariable

# What the calls of a layer have left in it.
CALLS = ("_inbound_nodes", "_outbound_nodes", "_inbound_nodes_value", "_outbound_nodes_value", "_losses")
_SIGNATURES = (inspect.Signature, inspect.FullArgSpec)  # what they hold of a function is reached through the function
_LEAVES = (
    *(type(None), type, types.ModuleType, np.ndarray, np.generic, tf.Tensor),
    *(*_SIGNATURES, BaseException, types.TracebackType, types.FrameType),  # those of an error know all of its callers
)
_PLAIN = {str, bytes, int, float, bool, complex, type(None), type}  # passed over early, since most are
_PLAIN_CONTAINERS = {list, tuple, set, frozenset, dict}  # these, and not classes derived from them, hold nothing else
_LIBRARIES = ("keras", "tf_keras", "tensorflow", "numpy", "tensorflow_model_optimization", "tfspline")
_WITHOUT_LAYERS = {*_LIBRARIES, *sys.stdlib_module_names}
_CONTAINERS = ("tensorflow.python.trackable", "tensorflow.python.util.object_identity")
OBJECTS = ("activation", "initializer", "regularizer", "constraint")  # entries of configs that hold Python objects
_TRACKABLE: Any = tf.__internal__.tracking.AutoTrackable  # among others of tf.Module and what is in a SavedModel
_OPEN: Any = (  # classes that are not written in Python, of which copies are made
    *(*_PLAIN_CONTAINERS, object, OrderedDict, defaultdict, types.SimpleNamespace),
    *(types.FunctionType, types.MethodType, functools.partial),
)
_HEAP_TYPE, _IMMUTABLE_TYPE = 1 << 9, 1 << 8  # flags of CPython: all classes written in Python have only the first
_BUILDING = ("__init__", "__new__", "__init_subclass__", "build")
TF_FUNCTION: Any = type(tf.function(lambda: 0))


def is_layer(value: Any) -> bool:
    """Whether a value is a layer, or a bare op of Keras 3."""
    kind: Any = type(value)
    return _is_layer_class(kind)


_is_layer_class = functools.cache(is_layer_class)  # it is asked for every object that is reached


def variables(value: Any) -> set[int]:
    """The ids of the tf.Variables that a layer, or an argument of a call, reaches, also through closures."""
    if is_layer(value) and op_name(value) is None and not sublayers(value) and not has_own_code(value):
        return {id(variable_of(weight)) for weight in weights(value)}
    return {id(part) for part in reach(value)[0].values() if isinstance(part, tf.Variable)}


def has_own_code(layer: KerasLayer) -> bool:
    """Whether a layer or bare op, or a layer inside it, runs code that is neither Keras' nor TensorFlow's."""
    if (name := op_name(layer)) is not None:
        return "." in name
    if not is_builtin(type(layer)) or of_class(layer, "Lambda") or is_loaded(layer):
        return True
    held = [value for name, value in vars(layer).items() if name.endswith(OBJECTS) and value is not None]
    parts = [part for value in held for part in (value if isinstance(value, list) else [value])]
    return not all(map(_of_library, parts)) or any(map(has_own_code, sublayers(layer)))


def _of_library(value):
    """Whether a function, a class or an object's class is defined in a library that knows no layers of users."""
    return str(getattr(value, "__module__", "")).partition(".")[0] in _LIBRARIES


def is_weight(value: Any) -> bool:
    """Whether a value is a weight or another variable."""
    return isinstance(value, (keras.Variable, tf.Variable))


def holds_weights(value: Any) -> bool:
    """Whether a value is a weight, or a list, tuple or dict with one."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return is_weight(value) or any(map(is_weight, parts))


def map_weights(of: Callable[[Any], Any], value: Any) -> Any:
    """A weight, or a list, tuple or dict, with `of(weight)` in place of each weight."""
    if is_weight(value):
        return of(value)
    if isinstance(value, dict):
        return {key: of(part) if is_weight(part) else part for key, part in value.items()}
    return [of(part) if is_weight(part) else part for part in value]


def variable_of(weight: KerasVariable) -> Any:
    """The tf.Variable of a weight; under a strategy, that of all replicas."""
    return weight._value if isinstance(weight, keras.Variable) else weight


def reach(value: Any) -> tuple[dict[int, Any], set[int]]:
    """The objects that a value reaches, by id, and the ids of those among them that reach a layer or a weight."""
    objects: dict[int, Any] = {}
    readers: dict[int, list[int]] = {}
    todo = [value]
    while todo:
        value = todo.pop()
        if id(value) not in objects:
            objects[id(value)] = value
            for part in _parts(value):
                if type(part) not in _PLAIN:
                    readers.setdefault(id(part), []).append(id(value))
                    todo.append(part)
    states = [key for key, part in objects.items() if _is_state(part)]
    reaching: set[int] = set()
    while states:
        key = states.pop()
        if key not in reaching:
            reaching.add(key)
            states += readers.get(key, ())
    return objects, reaching


def _is_state(value: Any) -> bool:
    """Whether a value is a layer or a weight, or keeps the books of those that belong to a layer."""
    if type(value) in _PLAIN_CONTAINERS:
        return False
    module = type(value).__module__
    keeps_books = module.startswith(_CONTAINERS) or "stored_ids" in attributes(value)
    if module.startswith("tensorflow.") and isinstance(value, _TRACKABLE):
        return True
    return keeps_books or is_layer(value) or isinstance(value, tf.Variable)


def _parts(value: Any) -> Iterator[Any]:
    """The objects that a value refers to, as far as layers and weights are reached through them."""
    kind = type(value)
    home = kind.__module__
    if kind in _PLAIN_CONTAINERS:
        yield from (*value, *value.values()) if kind is dict else value
    elif issubclass(kind, tf.Variable):
        yield from (value.constraint, vars(value).get("_variable"))
    elif issubclass(kind, np.ndarray) and value.dtype.hasobject:
        yield value.tolist()
    elif issubclass(kind, _LEAVES) or "_keras_history" in attributes(value):  # the latter are symbolic tensors
        return
    elif issubclass(kind, weakref.ref):
        yield value()
    elif issubclass(kind, tf.train.Checkpoint):
        yield from checkpointed(value).values()
    elif issubclass(kind, types.FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if has_contents(cell))
        yield from (value.__defaults__, value.__kwdefaults__, vars(value), *globals_of(value).values())
        yield from read_from_modules(value).values()
    elif issubclass(kind, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif issubclass(kind, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif issubclass(kind, TF_FUNCTION):
        yield value.python_function
    elif home.startswith("tensorflow.") and not home.startswith(_CONTAINERS) and not issubclass(kind, _TRACKABLE):
        return
    elif is_opaque(value):
        yield from gc.get_referents(value)
        yield from (part for _, part in class_attributes(kind))
    else:
        if isinstance(value, dict):
            yield from (*value, *value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from value
        if is_proxy(value):
            yield value.__wrapped__
        elif isinstance(value, defaultdict):
            yield value.default_factory
        yield from (part for name, part in attributes(value).items() if name not in CALLS)
        yield from (part for _, part in slots(value))
        yield from (part for _, part in class_attributes(kind))


def checkpointed(checkpoint: tf.train.Checkpoint) -> dict[str, Any]:
    """What a checkpoint is made of, by name. A model of tf_keras holds one of itself, by a weak reference."""
    return {name: part() if type(part) is weakref.ref else part for name, part in checkpoint._kwargs.items()}


def is_opaque(value: Any) -> bool:
    """Whether a value may refer to others in a way that only the garbage collector sees, such as an iterator."""
    kind: Any = type(value)
    return _is_opaque_class(kind) and not is_proxy(value)


@functools.cache
def _is_opaque_class(kind: Any) -> bool:
    foreign = (base for base in kind.__mro__ if base.__flags__ & (_HEAP_TYPE | _IMMUTABLE_TYPE) != _HEAP_TYPE)
    return any(base not in _OPEN for base in foreign)


def is_proxy(value: Any) -> bool:
    """Whether a value stands for a dict or tuple that a layer holds, such as a namedtuple: TensorFlow wraps them."""
    return isinstance(value, (dict, tuple)) and not issubclass(type(value), (dict, tuple))


def has_contents(cell) -> bool:
    """Whether a cell of a closure has a value."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def globals_of(function) -> dict[str, Any]:
    """The globals that a user's function reads, by name. Functions of libraries know no layers."""
    namespace = function.__globals__
    if _is_function_of_library(function):
        return {}
    return {name: namespace[name] for name in _names_read(function.__code__)[0] if name in namespace}


def read_from_modules(function) -> dict[str, Any]:
    """What a user's function reads as attributes of modules of users, by "module.attribute"."""
    if _is_function_of_library(function):
        return {}
    _, names, imports = _names_read(function.__code__)
    closed = [cell.cell_contents for cell in function.__closure__ or () if has_contents(cell)]
    known = [*globals_of(function).values(), *closed, *map(sys.modules.get, imports)]
    modules, found = [part for part in known if _is_module_of_user(part)], {}
    for module in modules:
        for name in names & vars(module).keys():
            part = vars(module)[name]
            found[f"{module.__name__}.{name}"] = part
            if _is_module_of_user(part) and not any(part is other for other in modules):
                modules.append(part)
    return found


def _is_function_of_library(function):
    # Not by `__module__`, which functools.wraps copies.
    return function.__globals__.get("__name__", "").partition(".")[0] in _LIBRARIES


def _is_module_of_user(value):
    return isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in _WITHOUT_LAYERS


@functools.lru_cache(
    maxsize=4096
)  # disassembling took a third of a cut: the same few functions are met again and again
def _names_read(code: types.CodeType) -> tuple[list[str], set[str], set[str]]:
    """The globals, attributes and modules that code reads, also in the functions that it defines, by their names."""
    codes = [code]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    read = [(one.opname, one.argval) for code in codes for one in dis.get_instructions(code)]
    attributes, imports = ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"), ("IMPORT_NAME",)
    of = [{name for kind, name in read if kind in kinds} for kinds in (("LOAD_GLOBAL",), attributes, imports)]
    return sorted(of[0]), of[1], of[2]


def class_attributes(kind: Any) -> list[tuple[str, Any]]:
    """What the classes of a user's object hold and use after it is built: methods, and attributes of the class."""
    if _of_library(kind):
        return []
    classes = [base for base in kind.__mro__ if not _of_library(base) and base.__module__ != "builtins"]
    held = [(name, value) for base in classes for name, value in vars(base).items() if _is_used(name, value)]
    unwrapped = [(name, getattr(value, "__func__", getattr(value, "fget", value))) for name, value in held]
    return [(name, value) for name, value in unwrapped if type(value) not in _PLAIN and not isinstance(value, _LEAVES)]


def _is_used(name, value):
    """Whether a layer that is built uses the attribute of its class."""
    is_special = name.startswith("__")
    return name not in _BUILDING and (isinstance(value, types.FunctionType) or not is_special)


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object itself, by name."""
    try:
        return object.__getattribute__(value, "__dict__")  # a user's __getattr__ may raise anything
    except AttributeError:
        return {}


def slots(value: Any) -> list[tuple[str, Any]]:
    """The attributes of an object that are in slots."""
    kind: Any = type(value)
    return [(name, getattr(value, name)) for name in _slot_names(kind) if hasattr(value, name)]


@functools.cache
def _slot_names(kind: Any) -> Any:
    found = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{name}" if is_private else name)
    return [name for name in found if not name.startswith("__")]
