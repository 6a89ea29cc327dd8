"""Intercepts how Keras calls layers and ops while a model is unrolled, in both Keras versions.

Everything here replaces private methods of Keras for the time of one recording.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from tfspline._keras import symbolic_sizes
from tfspline._keras.graph import is_symbolic
from tfspline._keras.layers import op_name
from tfspline._keras.references import is_weight


def intercepted(unrolling: Any, module: ModuleType) -> contextlib.AbstractContextManager:
    """Has the calls of layers and ops of a Keras version decided by an `unrolling._Unrolling`, within the context."""
    stack = contextlib.ExitStack()
    stack.enter_context(_keras3(unrolling, module) if module is keras else _keras2(unrolling, module))
    stack.enter_context(_no_constants(unrolling))
    return stack


@contextlib.contextmanager
def _replaced(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """Replaces attributes for a while."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextlib.contextmanager
def _no_constants(unrolling: Any) -> Iterator[None]:
    """Refuses code whose results would be recorded as constants: it reads weights, or draws random numbers."""
    kind: Any = type(tf.Variable(0))
    owner = next(base for base in kind.__mro__ if "handle" in vars(base))
    own: Any = vars(owner)["handle"]

    def handle(variable):
        if tf.executing_eagerly():  # not inside the trace of a twin
            raise ValueError("it computes with the value of a weight, which would be recorded as a constant")
        return own.fget(variable)

    def check(op_type, inputs, attrs, outputs, op_name=None, graph=None):
        name = tf.compat.as_str(op_type)
        if graph is None and ("Random" in name or name == "Multinomial"):
            raise ValueError("it draws random numbers, which would be recorded as constants")
        if graph is None and any(len(tensor.shape) or id(tensor) in unrolling.computed for tensor in inputs):
            unrolling.computed.update({id(tensor): tensor for tensor in outputs})

    op_callbacks.add_op_callback(check)
    try:
        with _replaced((owner, "handle", property(handle))):
            yield
    finally:
        op_callbacks.remove_op_callback(check)


def _is_symbolic(args: tuple, kwargs: dict) -> bool:
    return any(map(is_symbolic, tf.nest.flatten((args, kwargs))))


def _on_symbols(unrolling: Any, layer: Any, args: tuple, kwargs: dict) -> Any:
    """The arguments of a call, with symbolic tensors in place of constants if the layer has weights."""
    if _is_symbolic(args, kwargs) or not layer.variables or not tf.executing_eagerly():
        return args, kwargs
    return unrolling.symbolic((args, kwargs), f"{layer.name}_input")


def _check_no_weights(arguments: Any) -> None:
    """Refuses an op that reads weights of layers directly: a functional model would not train and save them."""
    if any(map(is_weight, tf.nest.flatten(arguments))):
        raise ValueError("an op in it reads the weight of a layer directly")


def _without_ellipsis(key: Any, rank: int | None) -> Any:
    """The key of `x[key]` without an Ellipsis, which tf_keras cannot save."""
    parts = key if isinstance(key, tuple | list) else (key,)
    place = next((i for i, part in enumerate(parts) if part is Ellipsis), None)
    if place is None or rank is None:
        return key
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    whole = [{"start": None, "stop": None, "step": None}] * (rank - taken)  # tf_keras keeps slices as dicts
    return (*parts[:place], *whole, *parts[place + 1 :])


def _told(unrolling, kwargs) -> tuple[bool | None, dict]:
    """What a call says about `training`, and its keyword arguments as Keras takes them."""
    training, others = unrolling.told(kwargs), without_training(kwargs)
    return training, others if training is None else others | {"training": training}


def without_training(kwargs: dict) -> dict:
    """The keyword arguments of a call besides `training`."""
    return {name: value for name, value in kwargs.items() if name != "training"}


def _keras3(unrolling: Any, module: ModuleType):
    """Intercepts the calls of Keras 3: of layers, of bare ops, and the recording of a call."""
    layers: Any = inspect.getmodule(keras.layers.Layer)
    call, symbolic_call, op_call = (
        keras.layers.Layer.__call__, keras.layers.Layer.symbolic_call, keras.Operation.symbolic_call,
    )  # fmt: skip
    node = layers.Node

    def call_layer(layer, *args, **kwargs):
        args, kwargs = _on_symbols(unrolling, layer, args, kwargs)
        if not _is_symbolic(args, kwargs) or unrolling.is_twin(layer):
            return call(layer, *args, **kwargs)
        if unrolling.is_composite(layer):
            training, kwargs = _told(unrolling, kwargs)
            outputs = unrolling.composite(layer, lambda: call(layer, *args, **kwargs), training, (args, kwargs))
            if outputs is not None:
                return outputs
        twin = unrolling.twin(layer, *args)
        symbolic_sizes.complete(twin, *args)
        kwargs = unrolling.arguments(layer, kwargs)
        if not args and len(kwargs) == 1:  # a layer of Keras can have another name for its input
            args, kwargs = tuple(kwargs.values()), {}
        return unrolling.activated(layer, twin(*args, **kwargs))

    def call_symbolic(layer, *args, **kwargs):
        if unrolling.is_open(layer):
            return unrolling.opened(layer, args, kwargs)
        return symbolic_call(layer, *args, **kwargs)

    def call_op(op, *args, **kwargs):
        symbolic_sizes.check_known(op, args)
        _check_no_weights((args, kwargs))
        outputs = op_call(unrolling.twin(op), *args, **kwargs)
        if op_name(op) == "multiply":  # Keras takes the product with a number for a sparse tensor, on which layers fail
            outputs._sparse = any(getattr(x, "sparse", False) for x in (*args, *kwargs.values()))
        return outputs

    def record(operation, **arguments):
        if not unrolling.is_open(operation):
            node(operation=operation, **arguments)

    return _replaced(
        (keras.layers.Layer, "__call__", call_layer),
        (keras.layers.Layer, "symbolic_call", call_symbolic),
        (keras.Operation, "symbolic_call", call_op),
        (layers, "Node", record),
        *symbolic_sizes.replacements(unrolling.anchor),
    )


def _keras2(unrolling: Any, module: ModuleType):
    """Intercepts the calls of tf_keras, whose bare ops are layers."""
    base = module.layers.Layer
    call = base.__call__
    construct, infer, connect = (
        base._functional_construction_call, base._keras_tensor_symbolic_call, base._set_connectivity_metadata,
    )  # fmt: skip

    def call_any(layer, *args, **kwargs):
        args, kwargs = _on_symbols(unrolling, layer, args, kwargs)
        return call(layer, *args, **kwargs)

    def call_layer(layer, inputs, args, kwargs, input_list):
        if unrolling.is_composite(layer):
            run = lambda: construct(layer, inputs, args, {**kwargs}, input_list)  # noqa: E731 - Keras adds a mask
            training, kwargs = _told(unrolling, kwargs)
            outputs = unrolling.composite(layer, run, training, (inputs, args, kwargs))
            if outputs is not None:
                return outputs
        if op_name(layer) is not None:
            if op_name(layer) == "getitem":
                args = tuple(_without_ellipsis(key, inputs.shape.rank) for key in args)
            _check_no_weights((inputs, args, kwargs))
            for value in tf.nest.flatten((inputs, args, kwargs)):
                if unrolling.may_be_of_weights(value):
                    raise ValueError("an op in it reads a tensor that is not computed from the inputs")
        twin = unrolling.twin(layer, inputs, *args)
        if twin is layer:
            return construct(layer, inputs, args, kwargs, input_list)
        return unrolling.activated(layer, twin(inputs, *args, **unrolling.arguments(layer, kwargs)))

    def call_symbolic(layer, inputs, input_masks, args, kwargs):
        if not unrolling.is_open(layer):
            return infer(layer, inputs, input_masks, args, kwargs)
        layer._maybe_build(inputs)
        if isinstance(layer, module.Sequential):  # its own `call` would build its graph anew
            return functools.reduce(lambda x, part: part(x), layer.layers, inputs)
        outputs = unrolling.opened(layer, (layer._maybe_cast_inputs(inputs), *args), kwargs)
        layer._set_mask_metadata(inputs, outputs, input_masks, build_graph=False)
        return outputs

    def record(layer, args, kwargs, outputs):
        return outputs if unrolling.is_open(layer) else connect(layer, args, kwargs, outputs)

    return _replaced(
        (base, "__call__", call_any),
        (base, "_functional_construction_call", call_layer),
        (base, "_keras_tensor_symbolic_call", call_symbolic),
        (base, "_set_connectivity_metadata", record),
    )
