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

from tfspline._keras import symbolic_sizes
from tfspline._keras.graph import is_symbolic


def intercepted(unrolling: Any, module: ModuleType) -> contextlib.AbstractContextManager:
    """Has the calls of layers and ops of a Keras version decided by an `unrolling._Unrolling`, within the context."""
    stack = contextlib.ExitStack()
    stack.enter_context(_keras3(unrolling, module) if module is keras else _keras2(unrolling, module))
    stack.enter_context(_no_reads())
    return stack


@contextlib.contextmanager
def _replaced(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """Replaces attributes for a while."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _no_reads() -> contextlib.AbstractContextManager:
    """Refuses code that computes with the values of weights, which would be recorded as constants."""
    kind: Any = type(tf.Variable(0))
    owner = next(base for base in kind.__mro__ if "_read_variable_op" in vars(base))
    own = owner._read_variable_op

    def read(variable, *args, **kwargs):
        if tf.executing_eagerly():  # not inside the trace of a twin
            raise ValueError("it computes with the value of a weight, which would be recorded as a constant")
        return own(variable, *args, **kwargs)

    return _replaced((owner, "_read_variable_op", read))


def _keras3(unrolling: Any, module: ModuleType):
    """Intercepts the calls of Keras 3: of layers, of bare ops, and the recording of a call."""
    layers: Any = inspect.getmodule(keras.layers.Layer)
    call, symbolic_call, op_call = (
        keras.layers.Layer.__call__, keras.layers.Layer.symbolic_call, keras.Operation.symbolic_call,
    )  # fmt: skip
    node = layers.Node

    def call_layer(layer, *args, **kwargs):
        symbolic = any(map(is_symbolic, tf.nest.flatten((args, kwargs))))
        if not symbolic or unrolling.is_twin(layer):
            return call(layer, *args, **kwargs)
        if unrolling.is_composite(layer):
            outputs = unrolling.composite(layer, lambda: call(layer, *args, **kwargs), kwargs.get("training"))
            if outputs is not None:
                return outputs
        return unrolling.twin(layer)(*args, **unrolling.arguments(layer, kwargs))

    def call_symbolic(layer, *args, **kwargs):
        if unrolling.is_open(layer):
            return unrolling.opened(layer, args, kwargs)
        return symbolic_call(layer, *args, **kwargs)

    def call_op(op, *args, **kwargs):
        symbolic_sizes.check_known(op, args)
        return op_call(unrolling.twin(op), *args, **kwargs)

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
    construct, infer, connect = (
        base._functional_construction_call, base._keras_tensor_symbolic_call, base._set_connectivity_metadata,
    )  # fmt: skip

    def call_layer(layer, inputs, args, kwargs, input_list):
        if unrolling.is_composite(layer):
            run = lambda: construct(layer, inputs, args, kwargs, input_list)  # noqa: E731
            outputs = unrolling.composite(layer, run, kwargs.get("training"))
            if outputs is not None:
                return outputs
        twin = unrolling.twin(layer)
        if twin is layer:
            return construct(layer, inputs, args, kwargs, input_list)
        return twin(inputs, *args, **unrolling.arguments(layer, kwargs))

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
        (base, "_functional_construction_call", call_layer),
        (base, "_keras_tensor_symbolic_call", call_symbolic),
        (base, "_set_connectivity_metadata", record),
    )
