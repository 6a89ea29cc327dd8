"""Copies of layers with all that they hold: weights, sublayers, functions, and objects that refer to them.

A copy from a layer's config lacks what the config does not hold: Python objects that Keras cannot serialize, and which
sublayers and weights two layers share. So attributes are copied instead. Objects that reach neither a layer nor a
weight, such as most functions and initializers, are not copied: original and copy use the same ones.
"""

import contextlib
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline._keras.constraints import Zeros
from tfspline._keras.layers import config_of, from_config, is_builtin, is_loaded, op_name, rename, sublayers
from tfspline._keras.modules import keras_of
from tfspline._keras.references import (
    CALLS,
    OBJECTS,
    TF_FUNCTION,
    attributes,
    checkpointed,
    class_attributes,
    globals_of,
    has_contents,
    is_layer,
    is_opaque,
    is_proxy,
    is_weight,
    reach,
    read_from_modules,
    slots,
)
from tfspline._keras.types import KerasLayer


class Copies:
    """Copies objects, each of them once, however many paths lead to it.

    Args:
        of_layer: returns the copy of a layer that is to be used wherever the layer occurs, or None: it is then copied
            here, with all that it holds.
        shares_weights: whether copies have the same weights instead of copies of them.
    """

    def __init__(self, of_layer: Callable[[Any], Any], shares_weights: bool = False):
        self._of_layer, self._shares_weights = of_layer, shares_weights
        self._copies: dict[int, tuple[Any, Any]] = {}  # with the original, so that its id is not used again
        self._copied: dict[int, Any] = {}  # by id, the objects that reach a layer or a weight
        self._failed: list[Any] = []  # what could not be copied, then what holds it

    def of(self, value: Any) -> Any:
        """The copy of a layer or other object; a ValueError if a part of it cannot be copied."""
        if value is None:
            return None
        objects, reaching = reach(value)
        self._copied |= {key: objects[key] for key in reaching}
        try:
            return self._copy(value)
        except Exception as error:  # from the user's code, which defines how its objects are copied
            why = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{why}{self._place(value)}") from error

    def _place(self, owner):
        """Which attribute of `owner` holds what could not be copied, for an error message."""
        failed = set(map(id, self._failed))
        holders = [name for name, part in attributes(owner).items() if id(part) in failed]
        names = sorted(holders, key=lambda name: name.startswith("_"))  # Keras has private attributes for all parts
        return f" (attribute {names[0]!r})" if names else ""

    def changed(self, layer: KerasLayer, changes_of: Callable[[KerasLayer], dict]) -> KerasLayer:
        """A new layer of the class and name of `layer`, without its weights, from its config with changes.

        `changes_of(layer)` are the config entries to change, for the layer and for each layer in its config.
        """
        config = self.config(layer, changes_of) | changes_of(layer)
        nested = any(
            is_layer(part) for value in config.values() for part in (value if type(value) is list else [value])
        )
        copy = type(layer)(**config) if nested else from_config(type(layer), config)
        if copy.name != layer.name:  # the config of a custom layer may lack its name
            rename(copy, layer.name)
        return copy

    def config(self, layer: KerasLayer, changes_of: Callable[[KerasLayer], dict] = lambda layer: {}) -> dict[str, Any]:
        """The config of a layer with objects instead of their configs; `changes_of` is for the layers among them."""
        with without_objects(layer):
            config = config_of(layer)
        for key, value in config.items():
            names = (key, f"_{key}", *(["forward_layer"] if key == "layer" else []))  # the last one in Bidirectional
            held = next((part for part in (getattr(layer, name, None) for name in names) if part is not None), None)
            if is_layer(held) and isinstance(value, dict):
                config[key] = self._of_layer(held) or self.changed(held, changes_of)
            elif isinstance(held, (list, tuple)) and held and all(map(is_layer, held)):
                config[key] = [self._of_layer(part) or self.changed(part, changes_of) for part in held]
            elif key.endswith(OBJECTS) or isinstance(value, dict) and not isinstance(held, (str, dict, list, tuple)):
                config[key] = self.of(held)
        if "dtype" in config:
            config["dtype"] = layer.dtype_policy
        return config

    def _copy(self, value):
        if id(value) in self._copies:
            return self._copies[id(value)][1]
        if type(value) is int and value in self._copied:  # the id of an object, such as a key of a dict
            return id(self._copy(self._copied[value]))
        if id(value) not in self._copied and type(value) not in (list, dict, set, tuple):
            return value
        if self._shares_weights and is_weight(value):
            return value
        try:
            if is_layer(value) and is_loaded(value):
                advice = "with its class, by custom_objects, or call it before or after the model"
                raise ValueError(f"it is a function of a SavedModel; load {value.name!r} {advice}")
            copy = self._of_layer(value) if is_layer(value) else None
            if copy is not None:
                return self._remember(value, copy)
            return self._maker(type(value))(self, value)
        except Exception:
            self._failed.append(value)
            raise

    @classmethod
    @functools.cache
    def _maker(cls, kind):
        return next(make for base, make in cls._MAKERS if issubclass(kind, base))

    def _remember(self, value, copy):
        self._copies[id(value)] = value, copy
        return copy

    def _variable(self, variable):
        if "_variable" in vars(variable):  # with mixed precision, tf_keras wraps it
            return self._object(variable)
        return self._remember(
            variable,
            tf.Variable(
                tf.convert_to_tensor(variable),
                trainable=variable.trainable,
                name=variable.name.partition(":")[0],
                shape=variable.shape,
                constraint=self._copy(variable.constraint),
                synchronization=variable.synchronization,
                aggregation=variable.aggregation,
            ),
        )

    def _function(self, function):
        for name, part in read_from_modules(function).items():
            if id(part) in self._copied:
                raise ValueError(
                    f"it reads {name!r}, of which a copy needs its own; give it to the function by a closure"
                )
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        read = {name: part for name, part in globals_of(function).items() if id(part) in self._copied}
        # Without globals of the model, the copy sees later changes of the module's globals, as the original does.
        namespace = {**function.__globals__} if read else function.__globals__
        copy = types.FunctionType(function.__code__, namespace, function.__name__, None, cells)
        self._remember(function, copy)
        namespace.update({name: self._copy(part) for name, part in read.items()})
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            if has_contents(original):
                cell.cell_contents = self._copy(original.cell_contents)
        copy.__defaults__, copy.__kwdefaults__ = map(self._copy, (function.__defaults__, function.__kwdefaults__))
        copy.__dict__.update(self._copy(vars(function)))
        return copy

    def _method(self, method):
        return types.MethodType(self._copy(method.__func__), self._copy(method.__self__))

    def _partial(self, partial):
        func, args, keywords = map(self._copy, (partial.func, partial.args, partial.keywords))
        return self._remember(partial, functools.partial(func, *args, **keywords))

    def _opaque(self, value):
        raise ValueError(f"it holds a {type(value).__name__} with layers or weights; hold them in a list or dict")

    def _array(self, values):
        if type(values) is not np.ndarray or values.dtype.names:
            return self._opaque(values)
        copy = self._remember(values, values.copy())
        for place in np.ndindex(values.shape):
            copy[place] = self._copy(values[place])
        return copy

    def _weak_set(self, values):
        return self._remember(values, weakref.WeakSet(map(self._copy, values)))

    def _weak_keys(self, values):
        parts = {self._copy(key): self._copy(part) for key, part in values.items()}
        return self._remember(values, weakref.WeakKeyDictionary(parts))

    def _checkpoint(self, checkpoint):
        parts = {name: self._copy(part) for name, part in checkpointed(checkpoint).items()}
        weak = {name for name, part in checkpoint._kwargs.items() if type(part) is weakref.ref}
        parts = {name: weakref.ref(part) if name in weak else part for name, part in parts.items()}
        return self._remember(checkpoint, tf.train.Checkpoint(**parts))

    def _tf_function(self, function):
        if type(function) is not TF_FUNCTION:
            raise ValueError("it holds a function of a loaded SavedModel; call it before or after the model")
        return self._remember(function, function._clone(self._copy(function.python_function)))

    def _fixed(self, values):
        self._check_class(type(values))
        parts = [self._copy(part) for part in values]
        make = getattr(values, "_make", type(values))
        return self._remember(values, make(parts))

    def _collection(self, values):
        self._check_class(type(values))
        copy = self._remember(values, type(values).__new__(type(values)))
        parts = values.items() if isinstance(values, dict) else tuple(values)
        # The methods of the base class: those of Keras' and TensorFlow's collections would track the parts again.
        for kind, extend in ((list, list.extend), (OrderedDict, OrderedDict.update), (dict, dict.update)):
            if isinstance(values, kind):
                extend(copy, [self._copy(part) for part in parts])
                break
        else:
            set.update(copy, [self._copy(part) for part in parts])
        if hasattr(type(values), "default_factory"):
            copy.default_factory = self._copy(values.default_factory)
        return self._with_attributes(values, copy)

    def _check_class(self, kind):
        for name, part in class_attributes(kind):
            if reach(part)[1]:
                raise ValueError(
                    f"{name!r} of {kind.__name__} uses a layer or weight as a global, a closure or an attribute of a "
                    "class or module; give it to the constructor and hold it as an attribute of the object"
                )

    def _object(self, value):
        self._check_class(type(value))
        if is_opaque(value):
            self._opaque(value)
        if is_proxy(value):
            return self._remember(value, type(value)(self._copy(value.__wrapped__)))
        new = types.SimpleNamespace if isinstance(value, types.SimpleNamespace) else object
        return self._with_attributes(value, self._remember(value, new.__new__(type(value))))

    def _with_attributes(self, value, copy):
        own_way = hasattr(type(value), "__setstate__")  # tf_keras has locks, which cannot be copied
        state = value.__getstate__() if own_way else attributes(value)
        if isinstance(state, dict):
            state = {name: [] if name in CALLS else self._copy(part) for name, part in state.items()}
        else:
            state = self._copy(state)  # a list in a dataclass with slots
        if own_way:
            copy.__setstate__(state)
        elif state:
            vars(copy).update(state)
        for name, part in slots(value):
            object.__setattr__(copy, name, self._copy(part))
        if "stored_ids" in attributes(copy):  # Keras 3 looks layers and weights up by their ids
            copy.stored_ids = {name: {id(part) for part in store} for name, (_, store) in copy.config.items()}
        return copy

    _MAKERS: tuple[tuple[Any, Callable], ...] = (
        (tf.Variable, _variable),
        (Zeros, lambda self, value: self._copy(value.own)),  # a copy is not masked
        (types.FunctionType, _function),
        (types.MethodType, _method),
        (functools.partial, _partial),
        (weakref.WeakSet, _weak_set),  # tf_keras keeps the books of layers in a list in it
        (weakref.WeakKeyDictionary, _weak_keys),  # in models, what was trainable when they were compiled
        (tf.train.Checkpoint, _checkpoint),
        (np.ndarray, _array),
        (weakref.ref, _opaque),
        (TF_FUNCTION, _tf_function),
        ((tuple, frozenset), _fixed),
        ((list, dict, set), _collection),
        (object, _object),
    )


def without_objects(layer: KerasLayer) -> contextlib.AbstractContextManager[None]:
    """Takes the Python objects out of a layer while its config is read: Keras cannot put all of them into a config."""
    return _replaced(
        layer, lambda part, name, _: keras_of(part).activations.linear if name.endswith("activation") else None
    )


def with_weights_of_zeros(layer: KerasLayer, original: KerasLayer) -> contextlib.AbstractContextManager[None]:
    """Lets a new layer be built with weights of zeros: drawing values that those of the original replace takes long."""
    # A layer that makes other layers when it is built, such as attention, passes its initializers on to them.
    if op_name(layer) is not None or len(sublayers(layer)) < len(sublayers(original)):
        return contextlib.nullcontext()
    return _replaced(layer, lambda part, name, value: _zeros if _draws(part, name) else value)


def _draws(layer, name):
    return name.endswith("initializer") and is_builtin(type(layer))


def _zeros(shape, dtype=None, **_):
    return tf.convert_to_tensor(np.zeros(shape, tf.as_dtype(dtype).as_numpy_dtype))  # tf.zeros takes four times as long


@contextlib.contextmanager
def _replaced(layer: KerasLayer, of: Callable[[KerasLayer, str, Any], Any]) -> Iterator[None]:
    """Puts `of(part, name, value)` for a while where a layer, or a layer inside it, holds a Python object."""
    layers = [layer, *sublayers(layer)] if op_name(layer) is None else []
    held = [(part, name, value) for part in layers for name, value in vars(part).items() if name.endswith(OBJECTS)]
    try:
        for part, name, value in held:
            if value is not None:
                vars(part)[name] = of(part, name, value)
        yield
    finally:
        for part, name, value in held:
            vars(part)[name] = value
