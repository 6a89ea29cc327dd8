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

from tfspline._keras.graph import nodes
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
    """The outputs of a layer or bare op on symbolic tensors, and the tf.Variables that code of users reads in it. The
    call is made in the context `around`, which may change what the layer holds."""
    is_watched = _runs_own_code(layer, args, kwargs)
    watched: Any = _watched() if is_watched else contextlib.nullcontext([])
    with around, watched as read:
        outputs = layer(*args, **kwargs)
        if is_watched and isinstance(layer, keras.Operation):
            _trace(layer, args, kwargs)
    return outputs, read


def _trace(layer, args, kwargs):
    """Runs the `call` of a layer or op of Keras 3, which Keras does not run if the layer tells its output shape."""
    given = kwargs.keys() - {"training"} | inspect.signature(layer.call).parameters.keys()
    with contextlib.suppress(Exception):  # code that does not run on symbolic tensors
        keras.Operation.compute_output_spec(layer, *args, **{key: kwargs[key] for key in kwargs if key in given})


@contextlib.contextmanager
def _watched() -> Iterator[list[Any]]:
    """A list that has, at the end, the tf.Variables that layers read which were called on symbolic tensors."""
    found: list[Any] = []
    graph = tf.__internal__.FuncGraph("watched")  # the graphs in which Keras calls layers pass on to it what is read
    with graph.as_default():
        yield found
    found += graph._watched_variables
