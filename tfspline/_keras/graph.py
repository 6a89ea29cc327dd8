"""The graph of a model: its calls in order, run on any values or rebuilt with other layers."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfspline._keras.modules import is_model, keras_modules, keras_of, of_class
from tfspline._keras.types import KerasLayer, KerasModel


def is_graph(layer: KerasLayer) -> bool:
    """Whether a layer is a model whose graph is known: it is functional, or a Sequential that has been built."""
    return is_model(layer) and hasattr(_functional(layer), "_nodes_by_depth")


def _functional(model):
    # A Keras 3 Sequential keeps its graph in a private Functional model, to which there is no public access.
    return getattr(model, "_functional", None) or model


def check_model(model: KerasModel) -> KerasModel:
    """Returns `model` if its graph is known; raises a TypeError or ValueError with advice if it is not."""
    if not is_model(model):
        raise TypeError(f"Expected a Keras 3 or tf_keras model. Received: {type(model).__name__}")
    if is_graph(model):
        return model
    sequential: Any = tuple(module.Sequential for module in keras_modules())
    if isinstance(model, sequential):
        raise ValueError(
            f"Expected a model that is built. Received: the Sequential {model.name!r}, whose input shape is not "
            "known yet; start it with keras.Input(shape), or call model.build(input_shape)."
        )
    parts = [name for name, value in vars(model).items() if is_model(value) and is_graph(value)]
    if parts:
        raise ValueError(
            f"Expected a functional or Sequential model. Received: the subclassed model {type(model).__name__} "
            f"({model.name!r}), whose graph Keras does not know. Give a model that it holds, by its attribute: "
            f"{' or '.join(f'model.{name}' for name in parts)}."
        )
    raise ValueError(
        f"Expected a functional or Sequential model. Received: the subclassed model {type(model).__name__} "
        f"({model.name!r}), whose graph Keras does not know. Build it functionally: "
        "inputs = keras.Input(shape); model = keras.Model(inputs, your_model.call(inputs))."
    )


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of a layer (or of a bare op such as `x + y`) in a model's graph."""

    path: str  # the layer's name; "inner/conv" for a layer of a nested model
    layer: KerasLayer
    inputs: tuple[int, ...]  # ids of the tensors that the call reads
    outputs: tuple[int, ...]  # ids of the tensors that it computes
    input_shapes: tuple[tuple, ...]  # including the batch dimension; a nested model can be called with others
    output_shapes: tuple[tuple, ...]
    output_dtypes: tuple
    fill: Callable[[dict[int, Any]], tuple[tuple, dict]]  # values by tensor id -> args and kwargs of the call
    key: tuple[int, ...]  # identifies the call in the model's graph and in the graphs nested in it


def nodes(model: KerasModel, nested: bool = False, parent: Node | None = None) -> Iterator[Node]:
    """Yields the calls in a model's graph in an order in which they can be run, without `InputLayer`s.

    A layer that tfmot has wrapped for pruning appears without its wrapper. With `nested`, the calls inside nested
    models take the place of the calls of these models. `parent` is the call of `model` if it is nested itself.
    """
    # _nodes_by_depth is private, but the only place where both Keras versions keep the calls of one model. A layer's
    # _inbound_nodes holds every call that was ever made of it.
    by_depth = _functional(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if node.is_input:
                continue
            make = _node_keras3 if hasattr(node, "operation") else _node_tf_keras
            node = make(node, parent)
            if nested and is_graph(node.layer):
                yield from nodes(node.layer, nested, node)
            else:
                yield node


def _node_keras3(node, parent) -> Node:
    return _node(node.operation, node.input_tensors, node.outputs, node.arguments.fill_in, parent)


def _node_tf_keras(node, parent) -> Node:
    def fill(values):
        return tf.nest.map_structure(lambda x: values.get(id(x), x), (tuple(node.call_args), node.call_kwargs))

    return _node(unwrapped(node.layer), node.keras_inputs, tf.nest.flatten(node.outputs), fill, parent)


def _node(layer, inputs, outputs, fill, parent) -> Node:
    reads, makes = (tuple(id(tensor) for tensor in tensors) for tensors in (inputs, outputs))
    read, made = ([tuple(tensor.shape) for tensor in tensors] for tensors in (inputs, outputs))
    dtypes = tuple(tensor.dtype for tensor in outputs)
    path, key = (f"{parent.path}/{layer.name}", (*parent.key, *makes)) if parent else (layer.name, makes)
    # A nested model that is called twice has the same nodes both times, so their keys start with that of its call.
    return Node(path, layer, reads, makes, tuple(read), tuple(made), dtypes, fill, key)


def run(
    model: KerasModel,
    inputs: list,
    visit: Callable[[Node, tuple, dict], Any],
    nested: bool = False,
    parent: Node | None = None,
) -> list:
    """Runs a model's graph on values of any kind, one for each of `model.inputs`; returns those of `model.outputs`.

    `visit(node, args, kwargs)` returns the values of a node's outputs. `nested` and `parent` are as for `nodes`.
    """
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    outputs = [id(tensor) for tensor in model.outputs]
    calls = list(nodes(model, parent=parent))
    reads = collections.Counter(tensor for node in calls for tensor in set(node.inputs))
    reads.update(outputs)
    for node in calls:
        values.update(zip(node.outputs, _results(node, values, visit, nested), strict=True))
        reads.subtract(set(node.inputs))
        for tensor in {*node.inputs, *node.outputs}:
            if reads[tensor] == 0:  # values can be large, so each is dropped after its last use
                del values[tensor]
    return [values[tensor] for tensor in outputs]


def _results(node, values, visit, nested) -> list:
    """The values of the outputs of a call."""
    if nested and is_graph(node.layer):
        return run(node.layer, [values[tensor] for tensor in node.inputs], visit, nested, node)
    args, kwargs = node.fill(values)
    return tf.nest.flatten(visit(node, args, kwargs))


def call(layer: KerasLayer, args: tuple, kwargs: dict, kind: type, of: Callable[[Any], Any]) -> list:
    """The outputs of a layer or bare op, called with `of(value)` in place of each argument of that kind."""
    args, kwargs = tf.nest.map_structure(lambda x: of(x) if isinstance(x, kind) else x, (args, kwargs))
    return tf.nest.flatten(layer(*args, **kwargs))


def is_symbolic(value: Any) -> bool:
    """Whether a value is a symbolic tensor of either Keras version."""
    # The public `is_keras_tensor` of tf_keras raises for values that are no tensors.
    return hasattr(value, "_keras_history")


def layer_paths(model: KerasModel, prefix: str = "") -> dict[str, Any]:
    """All layers and bare ops of a model by their path; "inner/conv" for a layer of a nested model."""
    paths = {}
    for node in nodes(model):
        paths[prefix + node.layer.name] = node.layer
        if is_graph(node.layer):
            paths.update(layer_paths(node.layer, f"{prefix}{node.layer.name}/"))
    return paths


def unwrapped(layer: KerasLayer) -> Any:
    """The layer inside a pruning wrapper of tfmot; any other layer itself."""
    # The class of the wrapper is not public, and tfmot must not be imported for it.
    return layer.layer if of_class(layer, "Wrapper") and hasattr(layer, "pruning_vars") else layer


def pruning_wrappers(model: KerasModel, prefix: str = "") -> dict[str, Any]:
    """The pruning wrappers of tfmot in a model, by the path of the layer inside."""
    wrappers = {}
    for layer in model.layers:
        if is_model(layer):
            wrappers.update(pruning_wrappers(layer, f"{prefix}{layer.name}/"))
        elif unwrapped(layer) is not layer:
            wrappers[prefix + layer.layer.name] = layer
    return wrappers


def rebuild(
    model: KerasModel, copies_of: Callable[[str, Any], list], prefix: str = "", inputs: list | None = None
) -> Any:
    """Builds an uncompiled Sequential or functional model with the same graph from new layers, without their weights.

    `copies_of(path, layer)`, called once for each layer, returns the new layers that replace it, to be called one after
    the other; without any, the first input of the layer is passed on. For a nested model, `prefix` is its path with a
    trailing slash, and `inputs` are symbolic tensors with the shapes that it is called with.
    """
    module = keras_of(model)
    inputs = [
        # In Keras 3, the name of a tensor can differ from that of its InputLayer.
        module.Input(batch_shape=like.shape, dtype=tensor.dtype, name=tensor._keras_history[0].name)
        for tensor, like in zip(model.inputs, inputs or model.inputs, strict=True)
    ]
    copies = {}

    def visit(node, args, kwargs):
        layer = node.layer
        if id(layer) not in copies:
            path = prefix + layer.name
            if is_graph(layer):
                symbolic = [x for x in tf.nest.flatten((args, kwargs)) if module.backend.is_keras_tensor(x)]
                copies[id(layer)] = [rebuild(layer, copies_of, f"{path}/", symbolic)]
            else:
                copies[id(layer)] = copies_of(path, layer)
        if not copies[id(layer)]:
            return tf.nest.flatten((args, kwargs))[0]
        first, *rest = copies[id(layer)]
        return functools.reduce(lambda x, copy: copy(x), rest, first(*args, **kwargs))

    outputs = run(model, inputs, visit)
    if isinstance(model, module.Sequential):
        copy = module.Sequential([*inputs, *itertools.chain(*copies.values())], name=model.name)
    else:
        structures = zip((model.input, model.output), (inputs, outputs), strict=True)
        copy = module.Model(*(tf.nest.pack_sequence_as(*pair) for pair in structures), name=model.name)
    _freeze(model, copy)
    return copy


def _freeze(model, copy):
    """Copies the `trainable` flags. That of a model is in no config, and setting it sets those of all its layers."""
    if copy.trainable != model.trainable:
        copy.trainable = model.trainable
    copies = {layer.name: layer for layer in copy.layers}
    for layer in map(unwrapped, model.layers):
        other = copies.get(layer.name)
        if is_graph(layer):
            _freeze(layer, other)
        elif other and other.trainable != layer.trainable:
            other.trainable = layer.trainable
