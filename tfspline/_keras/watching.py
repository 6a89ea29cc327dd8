"""Copies of layers are called while it is watched which variables their code reads.

A copy that reads a variable of the original model is bound to that model, whatever way its code has found to it:
through a registry, `globals()`, an iterator, a context variable.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfspline._keras.graph import is_symbolic, mask_of, nodes
from tfspline._keras.layers import clear_losses, is_builtin, op_name, sublayers, weights
from tfspline._keras.modules import of_class
from tfspline._keras.references import has_own_code
from tfspline._keras.types import KerasLayer, KerasModel


def runs_own_code(model: KerasModel) -> bool:
    """Whether a layer of a model, or an argument of a call in it, has code that is neither Keras' nor TensorFlow's."""
    calls = ((node.layer, node.fill(dict.fromkeys(node.inputs))) for node in nodes(model, nested=True))
    return any(_runs_own_code(layer, *arguments) for layer, arguments in calls)


def _runs_own_code(layer, args, kwargs):
    return has_own_code(layer) or any(map(callable, tf.nest.flatten((args, kwargs))))


def watched_call(
    layer: KerasLayer, args: tuple, kwargs: dict, around: contextlib.AbstractContextManager
) -> tuple[Any, list[Any]]:
    """The outputs of a layer or bare op on symbolic tensors, and the tf.Variables that code of users reads in it, also
    when it trains. The call is made in the context `around`, which may change what the layer holds."""
    is_watched = _runs_own_code(layer, args, kwargs)
    watched: Any = _watched() if is_watched else contextlib.nullcontext([])
    with watched as read:
        with around:
            outputs = layer(*args, **kwargs)
        if is_watched and isinstance(layer, keras.Operation):  # Keras 3 runs no `call` if the layer tells its shape
            _trace(layer, args, kwargs)
        if is_watched and kwargs.get("training") is None and _may_tell_training(layer):
            _trace(layer, args, {**kwargs, "training": True})
        if is_watched and op_name(layer) is None:
            _regularize(layer)
    return outputs, read


def _may_tell_training(layer):
    """Whether code of users in a layer may do something else in training."""
    layers = [layer, *sublayers(layer)] if op_name(layer) is None else []
    own = (one.call for one in layers if not is_builtin(type(one)) or of_class(one, "Lambda"))
    return any("training" in inspect.signature(call).parameters for call in own)


def _trace(layer, args, kwargs):
    """Calls a layer or op in a TensorFlow graph. It changes no state, as nothing runs the graph."""
    symbols = [value for value in tf.nest.flatten((args, kwargs)) if is_symbolic(value)]
    masked = [i for i, symbol in enumerate(symbols) if mask_of(symbol) is not None]

    @tf.function(autograph=False)
    def traced(tensors, masks):
        for i, mask in zip(masked, masks, strict=True):
            tensors[i]._keras_mask = mask
        values = iter(tensors)
        own_args, own_kwargs = tf.nest.map_structure(lambda x: next(values) if is_symbolic(x) else x, (args, kwargs))
        layer(*own_args, **own_kwargs)

    with contextlib.suppress(Exception):  # code that does not run on symbolic tensors
        traced.get_concrete_function([*map(_spec, symbols)], [_spec(mask_of(symbols[i])) for i in masked])
    clear_losses(layer)


def _regularize(layer):
    """Calls the regularizers and constraints of a layer."""
    with contextlib.suppress(Exception):
        _ = layer.losses
        for weight in weights(layer):
            if weight.constraint is not None:
                weight.constraint(weight)


def _spec(tensor):
    """The TensorFlow type of a symbolic tensor of either Keras version."""
    if hasattr(tensor, "type_spec"):  # tf_keras
        return tensor.type_spec
    kind = tf.SparseTensorSpec if tensor.sparse else tf.RaggedTensorSpec if tensor.ragged else tf.TensorSpec
    return kind(tensor.shape, tensor.dtype)


@contextlib.contextmanager
def _watched() -> Iterator[list[Any]]:
    """A list that has, at the end, the tf.Variables that layers read which were called on symbolic tensors."""
    found: list[Any] = []
    # The graphs in which Keras calls layers pass on to it what is read. In one of another name, tf_keras drops losses.
    graph = tf.__internal__.FuncGraph("keras_graph")
    with graph.as_default():
        yield found
    found += graph._watched_variables
