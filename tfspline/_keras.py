"""The two Kerases: which one a model is made of, and everything in which they differ.

Nothing else in the package asks whether a model is a Keras 3 or a tf_keras (Keras 2) model.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tfspline needs Keras 3 on the TensorFlow backend. Received: KERAS_BACKEND="
        f"{keras.backend.backend()!r}; set KERAS_BACKEND=tensorflow before keras is imported."
    )


def kerases() -> list[ModuleType]:
    """The Keras modules that this process has loaded: `keras`, and `tf_keras` if somebody imported it."""
    # A tf_keras model exists only where tf_keras was imported, so it never has to be imported here.
    return [keras] + [sys.modules[name] for name in ("tf_keras",) if name in sys.modules]


def keras_named(name: str) -> ModuleType:
    """The module `keras` or `tf_keras`, imported if need be."""
    if name not in ("keras", "tf_keras"):
        raise ValueError(f"Expected 'keras' or 'tf_keras'. Received: {name!r}")
    if name == "tf_keras":
        import tf_keras

        return tf_keras
    return keras


def keras_of(obj: Any) -> ModuleType:
    """The Keras that a model, layer or optimizer belongs to; TypeError where it belongs to none."""
    for module in kerases():
        if isinstance(obj, (module.layers.Layer, module.optimizers.Optimizer, module.callbacks.Callback)):
            return module
    raise TypeError(f"Expected a model or layer of Keras 3 or tf_keras. Received: {type(obj).__name__}")


def of_class(layer: Any, *names: str) -> bool:
    """Whether `layer` is an instance of one of these `keras.layers` classes, in its own Keras."""
    return any(
        isinstance(layer, getattr(module.layers, name))
        for module in kerases()
        for name in names
        if hasattr(module.layers, name)
    )


def is_model(layer: Any) -> bool:
    """Whether `layer` is a model, which may be nested in another one."""
    return any(isinstance(layer, module.Model) for module in kerases())


def is_graph(model: Any) -> bool:
    """Whether a model knows its own graph: functional, or a Sequential that has been built."""
    return hasattr(_functional(model), "_nodes_by_depth")


def _functional(model):
    # A Keras 3 Sequential keeps its graph in a private Functional; there is no public way to it.
    return getattr(model, "_functional", None) or model


def check_model(model: Any) -> Any:
    """Returns `model` if its graph can be read; raises a TypeError or ValueError that says what to do if not."""
    if not is_model(model):
        raise TypeError(f"Expected a Keras 3 or tf_keras model. Received: {type(model).__name__}")
    if is_graph(model):
        return model
    if isinstance(model, tuple(module.Sequential for module in kerases())):
        raise ValueError(
            f"Expected a model that is built. Received: the Sequential {model.name!r}, whose input shape is not "
            "known yet; start it with keras.Input(shape), or call model.build(input_shape)."
        )
    raise ValueError(
        f"Expected a functional or Sequential model. Received: the subclassed model {type(model).__name__} "
        f"({model.name!r}), whose graph Keras does not know. Build it functionally: "
        "inputs = keras.Input(shape); model = keras.Model(inputs, your_model.call(inputs))."
    )


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of a layer (or of a bare op such as `x + y`) in a model's graph.

    `inputs` and `outputs` name tensors by identity; `input_shapes` and `output_shapes` hold their static
    shapes, the batch dimension included.
    """

    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_shapes: tuple[tuple, ...]
    output_shapes: tuple[tuple, ...]
    fill: Callable[[dict[int, Any]], tuple[tuple, dict]]  # tensor id -> value: the args and kwargs of the call


def nodes(model: Any) -> Iterator[Node]:
    """The calls in a model's graph in an order in which they can be run, `InputLayer`s left out."""
    # _nodes_by_depth is private, but the only place where both Kerases keep the graph of a model and not, as
    # layer._inbound_nodes does, every call that was ever made of the layer.
    by_depth = _functional(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield _node_keras3(node) if hasattr(node, "operation") else _node_tf_keras(node)


def _node_keras3(node) -> Node:
    return _node(node.operation, node.input_tensors, node.outputs, node.arguments.fill_in)


def _node_tf_keras(node) -> Node:
    def fill(values):
        return tf.nest.map_structure(lambda x: values.get(id(x), x), (tuple(node.call_args), node.call_kwargs))

    return _node(node.layer, node.keras_inputs, tf.nest.flatten(node.outputs), fill)


def _node(layer, inputs, outputs, fill) -> Node:
    shapes = [tuple(tuple(tensor.shape) for tensor in tensors) for tensors in (inputs, outputs)]
    ids = [tuple(id(tensor) for tensor in tensors) for tensors in (inputs, outputs)]
    return Node(layer, *ids, *shapes, fill)


def run(model: Any, inputs: list, visit: Callable[[Node, tuple, dict], Any]) -> list:
    """Runs a model's graph on any kind of value.

    Args:
        model: a model whose graph is known; nested models are handed to `visit` as one node.
        inputs: one value for each of `model.inputs`.
        visit: called as `visit(node, args, kwargs)` for each node; returns the value(s) of its output(s).

    Returns:
        One value for each of `model.outputs`.
    """
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    for node in nodes(model):
        args, kwargs = node.fill(values)
        results = tf.nest.flatten(visit(node, args, kwargs))
        values.update(zip(node.outputs, results, strict=True))
    return [values[id(tensor)] for tensor in model.outputs]
