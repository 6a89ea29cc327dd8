"""The graph of a model of either Keras: its calls in their order, run on any values, or built anew."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfspline._keras.modules import is_model, keras_of, kerases, of_class


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

    `path` is the layer's name, that of a layer of a nested model "inner/conv". `inputs` and `outputs` name tensors by
    identity; `output_shapes` holds the static shapes of the outputs, the batch dimension included.
    """

    path: str
    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output_shapes: tuple[tuple, ...]
    fill: Callable[[dict[int, Any]], tuple[tuple, dict]]  # tensor id -> value: the args and kwargs of the call


def nodes(model: Any, prefix: str = "", nested: bool = False) -> Iterator[Node]:
    """The calls in a model's graph in an order in which they can be run, `InputLayer`s left out.

    A layer that tfmot has wrapped for pruning is seen as what it is without its wrapper, also in `layer_paths`.

    Args:
        model: a model whose graph is known.
        prefix: what the nodes' paths start with.
        nested: give the calls inside of nested models in place of the calls of these.
    """
    # _nodes_by_depth is private, but the only place where both Kerases keep the graph of a model and not, as
    # layer._inbound_nodes does, every call that was ever made of the layer.
    by_depth = _functional(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if node.is_input:
                continue
            node = _node_keras3(node, prefix) if hasattr(node, "operation") else _node_tf_keras(node, prefix)
            if nested and is_model(node.layer) and is_graph(node.layer):
                yield from nodes(node.layer, f"{node.path}/", nested)
            else:
                yield node


def _node_keras3(node, prefix) -> Node:
    return _node(prefix, node.operation, node.input_tensors, node.outputs, node.arguments.fill_in)


def _node_tf_keras(node, prefix) -> Node:
    def fill(values):
        return tf.nest.map_structure(lambda x: values.get(id(x), x), (tuple(node.call_args), node.call_kwargs))

    return _node(prefix, unwrapped(node.layer), node.keras_inputs, tf.nest.flatten(node.outputs), fill)


def _node(prefix, layer, inputs, outputs, fill) -> Node:
    ids = [tuple(id(tensor) for tensor in tensors) for tensors in (inputs, outputs)]
    return Node(prefix + layer.name, layer, *ids, tuple(tuple(tensor.shape) for tensor in outputs), fill)


def run(
    model: Any, inputs: list, visit: Callable[[Node, tuple, dict], Any], nested: bool = False, prefix: str = ""
) -> list:
    """Runs a model's graph on any kind of value.

    Args:
        model: a model whose graph is known.
        inputs: one value for each of `model.inputs`.
        visit: called as `visit(node, args, kwargs)` for each node; returns the value(s) of its output(s).
        nested: run the graphs of nested models too, instead of handing each to `visit` as one node.
        prefix: what the nodes' paths start with.

    Returns:
        One value for each of `model.outputs`.
    """
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    calls, outputs = list(nodes(model, prefix)), [id(tensor) for tensor in model.outputs]
    reads = collections.Counter(tensor for node in calls for tensor in set(node.inputs))
    reads.update(outputs)
    for node in calls:
        if nested and is_model(node.layer) and is_graph(node.layer):
            inner = [values[tensor] for tensor in node.inputs]
            results = run(node.layer, inner, visit, nested, f"{node.path}/")
        else:
            args, kwargs = node.fill(values)
            results = tf.nest.flatten(visit(node, args, kwargs))
        values.update(zip(node.outputs, results, strict=True))
        reads.subtract(set(node.inputs))
        for tensor in {*node.inputs, *node.outputs}:
            if reads[tensor] == 0:  # values can be large: one that nobody reads any more goes at once
                del values[tensor]
        args = kwargs = results = inner = None
    return [values[tensor] for tensor in outputs]


def call(layer: Any, args: tuple, kwargs: dict, kind: type, of: Callable[[Any], Any]) -> list:
    """The outputs of a layer or bare op, called with `of(value)` in place of each argument of that kind."""
    args, kwargs = tf.nest.map_structure(lambda x: of(x) if isinstance(x, kind) else x, (args, kwargs))
    return tf.nest.flatten(layer(*args, **kwargs))


def is_symbolic(value: Any) -> bool:
    """Whether a value is a symbolic tensor of either Keras version."""
    # The public `is_keras_tensor` of tf_keras raises for values that are no tensors.
    return hasattr(value, "_keras_history")


def layer_paths(model: Any, prefix: str = "") -> dict[str, Any]:
    """All layers and bare ops of a model by their path; one of a nested model is called "inner/conv"."""
    paths = {}
    for node in nodes(model):
        paths[prefix + node.layer.name] = node.layer
        if is_model(node.layer) and is_graph(node.layer):
            paths.update(layer_paths(node.layer, f"{prefix}{node.layer.name}/"))
    return paths


def unwrapped(layer: Any) -> Any:
    """The layer inside a pruning wrapper of tfmot; any other layer as it is."""
    # The wrapper's class is not in tfmot's public names, and tfmot is not to be imported for it.
    return layer.layer if of_class(layer, "Wrapper") and hasattr(layer, "pruning_vars") else layer


def pruning_wrappers(model: Any, prefix: str = "") -> dict[str, Any]:
    """tfmot's pruning wrappers in a model, each by the path of the layer inside it."""
    wrappers = {}
    for layer in model.layers:
        if is_model(layer):
            wrappers.update(pruning_wrappers(layer, f"{prefix}{layer.name}/"))
        elif unwrapped(layer) is not layer:
            wrappers[prefix + layer.layer.name] = layer
    return wrappers


def rebuild(model: Any, copies_of: Callable[[str, Any], list], prefix: str = "", inputs: list | None = None) -> Any:
    """A new model with the same graph as `model`, made of new layers, weights not copied.

    Args:
        model: a model whose graph is known.
        copies_of: called as `copies_of(path, layer)` once for each layer; returns the new layers that take its place,
            one after the other; where there are none, its first input passes.
        prefix: the path of a nested model, with a trailing slash.
        inputs: symbolic tensors whose shapes a nested model is to accept in place of its own.

    Returns:
        An uncompiled model of the same Keras: Sequential where `model` is one, otherwise functional.
    """
    module = keras_of(model)
    inputs = [
        # A tensor of Keras 3 is not always called as its InputLayer is.
        module.Input(batch_shape=like.shape, dtype=tensor.dtype, name=tensor._keras_history[0].name)
        for tensor, like in zip(model.inputs, inputs or model.inputs, strict=True)
    ]
    copies = {}

    def visit(node, args, kwargs):
        layer = node.layer
        if id(layer) not in copies:
            path = prefix + layer.name
            if is_model(layer) and is_graph(layer):
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
    """Makes trainable in a copy what is in the model: a model's own flag is in no config, and setting it sets all."""
    if copy.trainable != model.trainable:
        copy.trainable = model.trainable
    copies = {layer.name: layer for layer in copy.layers}
    for layer in map(unwrapped, model.layers):
        other = copies.get(layer.name)
        if is_model(layer) and is_graph(layer):
            _freeze(layer, other)
        elif other and other.trainable != layer.trainable:
            other.trainable = layer.trainable
