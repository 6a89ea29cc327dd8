"""The graph of a model: its calls in order, run on any values or rebuilt with other layers."""

import collections
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfspline._keras.layers import build_activation, first_argument, first_builtin, sublayers
from tfspline._keras.modules import is_model, keras_modules, of_class
from tfspline._keras.types import KerasLayer, KerasModel


def is_graph(layer: KerasLayer) -> bool:
    """Whether a layer is a model whose graph is known: it is functional, or a Sequential that has been built."""
    return is_model(layer) and hasattr(_functional(layer), "_nodes_by_depth") and not has_own_call(type(layer))


def has_own_call(model_class: Any) -> bool:
    """Whether a user's class of functional or Sequential models computes something else than the graph."""
    return model_class.call is not first_builtin(model_class).call


def _functional(model):
    # A Keras 3 Sequential keeps its graph in a private Functional model, to which there is no public access.
    return getattr(model, "_functional", None) or model


def is_unbuilt_sequential(model: KerasModel) -> bool:
    """Whether a model is a Sequential whose input shape is not known yet."""
    sequential: Any = tuple(module.Sequential for module in keras_modules())
    return isinstance(model, sequential) and not is_graph(model)


def check_model(model: KerasModel) -> KerasModel:
    """Returns `model`, with all activations built, if its graph is known; raises a TypeError or ValueError with advice
    if it is not."""
    if not is_model(model):
        raise TypeError(f"Expected a Keras 3 or tf_keras model. Received: {type(model).__name__}")
    if is_graph(model):
        for layer in sublayers(model):
            build_activation(layer)
        return model
    if is_unbuilt_sequential(model):
        raise ValueError(
            f"Expected a model that is built. Received: the Sequential {model.name!r}, whose input shape is not "
            "known yet; start it with keras.Input(shape), or call model.build(input_shape)."
        )
    raise ValueError(
        f"Expected a functional or Sequential model. Received: the subclassed model {type(model).__name__} "
        f"({model.name!r}), whose graph Keras does not know. {way_out(model)}"
    )


def way_out(model: KerasModel) -> str:
    """What to do with a subclassed model whose graph is needed but not known."""
    parts = [name for name, value in vars(model).items() if is_model(value) and is_graph(value)]
    held = f", or give a model that it holds, by its attribute: {' or '.join(f'model.{name}' for name in parts)}"
    return (
        "Unroll it: model = tfspline.functional(model, input_shape=(32, 32, 3)), with the shapes of your inputs"
        f"{held if parts else ''}."
    )


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of a layer (or of a bare op such as `x + y`) in a model's graph."""

    path: str  # of the layer, see `layer_paths`
    layer: KerasLayer
    inputs: tuple[int, ...]  # ids of the tensors that the call reads
    outputs: tuple[int, ...]  # ids of the tensors that it computes
    input_shapes: tuple[tuple, ...]  # including the batch dimension; a nested model can be called with others
    output_shapes: tuple[tuple, ...]
    output_dtypes: tuple
    fill: Callable[[dict[int, Any]], tuple[tuple, dict]]  # values by tensor id -> args and kwargs of the call
    key: tuple[int, ...]  # identifies the call in the model's graph and in the graphs nested in it
    training: bool | None  # what the call of the model around it says, for layers inside that model
    paths: dict[int, str] = dataclasses.field(repr=False)  # the path of each layer, by its id


def nodes(model: KerasModel, nested: bool = False, parent: Node | None = None) -> Iterator[Node]:
    """Yields the calls in a model's graph in an order in which they can be run, without `InputLayer`s.

    A layer that tfmot has wrapped for pruning appears without its wrapper. With `nested`, the calls inside nested
    models take the place of the calls of these models. `parent` is the call of `model` if it is nested itself.
    """
    if parent is None:
        paths = {id(layer): path for path, layer in layer_paths(model).items()}
        key, training = (), None
    else:
        # A nested model that is called twice has the same nodes both times, so their keys start with that of its call.
        paths, key, training = parent.paths, parent.key, _training(parent)
    for layer, inputs, outputs, fill in _calls(model):
        reads, makes = (tuple(id(tensor) for tensor in tensors) for tensors in (inputs, outputs))
        read, made = (tuple(tuple(tensor.shape) for tensor in tensors) for tensors in (inputs, outputs))
        dtypes = tuple(tensor.dtype for tensor in outputs)
        node = Node(*(paths[id(layer)], layer, reads, makes, read, made, dtypes, fill, (*key, *makes)), training, paths)
        if nested and is_graph(layer):
            yield from nodes(layer, nested, node)
        else:
            yield node


def _calls(model) -> Iterator[tuple[Any, list, list, Callable]]:
    """The calls in a model's own graph: the layer, the tensors it reads and computes, and `Node.fill`."""
    # _nodes_by_depth is private, but the only place where both Keras versions keep the calls of one model. A layer's
    # _inbound_nodes holds every call that was ever made of it.
    by_depth = _functional(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if node.is_input:
                continue
            if hasattr(node, "operation"):  # Keras 3
                yield node.operation, node.input_tensors, node.outputs, node.arguments.fill_in
            else:
                fill = functools.partial(_filled, (tuple(node.call_args), node.call_kwargs))
                yield unwrapped(node.layer), node.keras_inputs, tf.nest.flatten(node.outputs), fill


def _filled(arguments, values):
    return tf.nest.map_structure(lambda x: values.get(id(x), x), arguments)


def _training(node) -> bool | None:
    """The value of `training` with which Keras runs the layers inside the model that is called."""
    _, kwargs = node.fill(dict.fromkeys(node.inputs))
    given = kwargs.get("training")
    outer_wins = isinstance(node.layer, keras.Layer) and node.training is not None
    return node.training if given is None or outer_wins else given


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
    args, kwargs = node.fill(values)
    if nested and is_graph(node.layer):
        return run(node.layer, model_inputs(node.layer, args, kwargs), visit, nested, node)
    if node.training is not None and "training" in inspect.signature(node.layer.call).parameters:
        own = {} if isinstance(node.layer, keras.Layer) else {k: v for k, v in kwargs.items() if v is not None}
        kwargs = kwargs | {"training": node.training} | own
    return tf.nest.flatten(visit(node, args, kwargs))


def is_called(layer: KerasLayer) -> bool:
    """Whether a graph, any graph, calls a layer."""
    return bool(layer._inbound_nodes)


def shapes_called_on(layer: KerasLayer) -> list[tuple]:
    """The shapes, batch included, of the one tensor that each call of a layer reads; none if a call reads several."""
    calls = list(map(_read_by, layer._inbound_nodes))
    return [tuple(inputs[0].shape) for inputs in calls] if all(len(inputs) == 1 for inputs in calls) else []


def keeps_shape(layer: KerasLayer) -> bool:
    """Whether a layer says of inputs of any size that its output has their shape, or is not asked."""
    kind = type(layer)
    if not isinstance(layer, keras.Layer) or kind.compute_output_shape is first_builtin(kind).compute_output_shape:
        return True
    smaller = [(*shape[:-1], shape[-1] and shape[-1] - 1) for shape in shapes_called_on(layer)]
    try:
        return all(tuple(layer.compute_output_shape(shape)) == shape for shape in smaller)
    except Exception:  # from the user's code
        return False


def _read_by(node) -> list:
    """The symbolic tensors that a node of a Keras graph reads."""
    return node.input_tensors if hasattr(node, "operation") else tf.nest.flatten(node.keras_inputs)


def calls_between(inputs: list, outputs: list) -> list[tuple[Any, list, Any]]:
    """The calls by which symbolic tensors are computed from others, in an order in which they can be run: the layer or
    op, the tensors that it reads, and the tensor that it computes."""
    calls: list[tuple[Any, list, Any]] = []
    waiting, seen = [(tensor, False) for tensor in outputs], {id(tensor) for tensor in inputs}
    while waiting:
        tensor, is_ready = waiting.pop()
        layer, index, _ = tensor._keras_history
        reads = _read_by(layer._inbound_nodes[index])
        if is_ready:
            calls.append((layer, reads, tensor))
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            waiting += [(tensor, True), *((read, False) for read in reads)]
    return calls


def computes_mask(layer: KerasLayer) -> bool:
    """Whether a user's layer computes a mask in a way of its own."""
    return type(layer).compute_mask is not first_builtin(type(layer)).compute_mask


def mask_of(tensor: Any) -> Any:
    """The mask that a tensor carries; None without one."""
    return getattr(tensor, "_keras_mask", None)


def model_inputs(model: KerasModel, args: tuple, kwargs: dict) -> list:
    """The arguments of a call of a model in the order of `model.inputs`; a dict is matched by names, as Keras does."""
    given = first_argument(args, kwargs)
    if not isinstance(given, dict):
        return tf.nest.flatten(given)[: len(model.inputs)]
    if isinstance(model.input, dict):
        return [given[name] for name in sorted(model.input)]
    return [given[tensor._keras_history[0].name] for tensor in model.inputs]


def call(layer: KerasLayer, args: tuple, kwargs: dict, kind: type, of: Callable[[Any], Any]) -> list:
    """The outputs of a layer or bare op, called with `of(value)` in place of each argument of that kind."""
    args, kwargs = tf.nest.map_structure(lambda x: of(x) if isinstance(x, kind) else x, (args, kwargs))
    return tf.nest.flatten(layer(*args, **kwargs))


def is_symbolic(value: Any) -> bool:
    """Whether a value is a symbolic tensor of either Keras version."""
    # The public `is_keras_tensor` of tf_keras raises for values that are no tensors.
    return hasattr(value, "_keras_history")


def layer_paths(model: KerasModel) -> dict[str, Any]:
    """All layers and bare ops of a model by their path: the name, "inner/conv" for a layer of a nested model.

    A layer that is reached on several paths occurs once, under the first of them.
    """
    first: dict[int, tuple[str, Any]] = {}
    for path, layer in every_path(model):
        first.setdefault(id(layer), (path, layer))
    return dict(first.values())


def every_path(model: KerasModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all paths to layers and bare ops of a model, each with the layer."""
    for layer, *_ in _calls(model):
        yield prefix + layer.name, layer
        if is_graph(layer):
            yield from every_path(layer, f"{prefix}{layer.name}/")


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
