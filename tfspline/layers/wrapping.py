"""Puts SplineUnits into a model in place of BatchNormalization and its activation, and takes them out again."""

import collections
import importlib
from typing import Any

from tfspline import _keras
from tfspline.layers.base import SplineUnitBase, is_activation


def wrap(model: Any) -> Any:
    """A copy of a model with `tfspline.layers.SplineUnit` for every BatchNormalization: Keras 3 trains it faster.

    A SplineUnit has the name, the weights and the config of the BatchNormalization in whose place it is. It takes in
    the activation behind it: a layer ReLU (without a threshold), LeakyReLU or Activation of such a kind, if nothing
    else reads the BatchNormalization and both are called once; any other, and a bare op such as `keras.ops.relu`,
    stays a node of its own. Subclasses of BatchNormalization stay as they are.

    All of tfspline understands the copy as it does the model: the same units, FLOPs and names of codes. `unwrap` gives
    an ordinary model back; do so before you hand it to others, since what is saved of the copy needs tfspline to load.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras; it stays as it is. The BatchNormalization
            of tf_keras is fused already, so there a SplineUnit is a convenience and not faster.

    Returns:
        An uncompiled model of the same Keras with new layers and the same weights. Compile it before training; under a
        `tf.distribute` strategy, wrap inside its scope.

    Raises:
        TypeError, ValueError: the model's graph cannot be read.

    Example:

    >>> import keras, tfspline
    >>> layers = [keras.layers.BatchNormalization(name="bn"), keras.layers.ReLU(name="relu"), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> [type(layer).__name__ for layer in tfspline.wrap(model).layers]
    ['SplineUnit', 'Dense']
    >>> [layer.name for layer in tfspline.unwrap(tfspline.wrap(model)).layers[:2]]
    ['bn', 'relu']
    """
    module = _keras.keras_of(_keras.check_model(model))
    unit = importlib.import_module(f"tfspline.layers.{module.__name__}").SplineUnit
    stacks = _stacks(model, module.layers.BatchNormalization)
    taken = {id(activation) for activation in stacks.values()}

    def copies_of(path, layer):
        if id(layer) in taken:
            return []
        if type(layer) is not module.layers.BatchNormalization:
            return [_copy(layer)]
        activation = stacks.get(id(layer))
        return [_keras.from_config(unit, layer.get_config() | {"activation": activation and _copy(activation)})]

    return _rebuilt(model, copies_of)


def unwrap(model: Any) -> Any:
    """A copy of a model with BatchNormalization and an activation layer for every SplineUnit; the reverse of `wrap`.

    Nothing of tfspline is left in it, and the layers that `wrap` took in have their names and configs back.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras; it stays as it is.

    Returns:
        An uncompiled model of the same Keras with new layers and the same weights.

    Raises:
        TypeError, ValueError: the model's graph cannot be read.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), tfspline.layers.SplineUnit("relu6", name="unit")])
    >>> [(layer.name, type(layer).__name__) for layer in tfspline.unwrap(model).layers]
    [('unit', 'BatchNormalization'), ('unit_relu6', 'Activation')]
    """
    module = _keras.keras_of(_keras.check_model(model))

    def copies_of(path, layer):
        if not isinstance(layer, SplineUnitBase):
            return [_copy(layer)]
        config = layer.get_config()
        del config["activation"]
        activation = [] if layer.activation is None else [_copy(layer.activation)]
        return [_keras.from_config(module.layers.BatchNormalization, config), *activation]

    return _rebuilt(model, copies_of)


def _copy(layer):
    return _keras.from_config(type(layer), _keras.config_of(layer))


def _rebuilt(model, copies_of):
    copy = _keras.rebuild(model, copies_of)
    copies = _keras.layer_paths(copy)
    for path, layer in _keras.layer_paths(model).items():
        if _keras.weights(layer) and not _keras.is_model(layer):
            copies[path].set_weights(layer.get_weights())
            _keras.finalize(copies[path])
    return copy


def _stacks(model: Any, batch_normalization: type) -> dict[int, Any]:
    """The activation layer that each BatchNormalization (by id) can take in, for those that have one."""
    nested = [
        layer for layer in _keras.layer_paths(model).values() if _keras.is_model(layer) and _keras.is_graph(layer)
    ]
    graphs = {id(graph): graph for graph in [model, *nested]}.values()
    nodes = [node for graph in graphs for node in _keras.nodes(graph)]
    calls = collections.Counter(id(node.layer) for node in nodes)
    reads = collections.Counter(tensor for node in nodes for tensor in node.inputs)
    made_by = {tensor: node.layer for node in nodes for tensor in node.outputs}
    outputs = {id(tensor) for graph in graphs for tensor in graph.outputs}
    stacks = {}
    for node in nodes:
        before = made_by.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if type(before) is not batch_normalization or not is_activation(node.layer):
            continue
        alone = reads[node.inputs[0]] == calls[id(before)] == calls[id(node.layer)] == 1
        losses = before.activity_regularizer or node.layer.activity_regularizer
        same_dtype = before.compute_dtype == node.layer.compute_dtype
        if alone and same_dtype and not losses and node.inputs[0] not in outputs:
            stacks[id(before)] = node.layer
    return stacks
