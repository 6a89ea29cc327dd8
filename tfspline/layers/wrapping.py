"""Replace BatchNormalization and its activation by SplineUnits in a model, and the reverse."""

import collections
import importlib

from tfspline import _keras
from tfspline._keras.types import KerasLayer, KerasModel
from tfspline.graph.unrolling import functional
from tfspline.layers.base import SplineUnitBase, is_activation


def wrap(model: KerasModel) -> KerasModel:
    """Copy a model with a `tfspline.layers.SplineUnit` for each BatchNormalization, which Keras 3 trains faster.

    A SplineUnit keeps the name, weights and config of its BatchNormalization. It absorbs the activation layer after it
    (ReLU without a threshold, LeakyReLU, or an Activation that computes one of them or ReLU6), if nothing else reads
    the BatchNormalization and both layers are called once. Other activations, bare ops such as `keras.ops.relu` and
    subclasses of BatchNormalization stay as they are.

    For tfspline, the copy has the same units, FLOPs and names of codes as the model. Call `unwrap` before you share the
    model: a saved wrapped model needs tfspline to be loaded.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras (see docs/layers.md); it is not changed.

    Returns:
        An uncompiled model of the same Keras version with new layers and the same weights. Compile it before training.
        With a `tf.distribute` strategy, call `wrap` in its scope.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model's graph is unknown.

    Example:

    >>> import keras, tfspline
    >>> layers = [keras.layers.BatchNormalization(name="bn"), keras.layers.ReLU(name="relu"), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> [type(layer).__name__ for layer in tfspline.wrap(model).layers]
    ['SplineUnit', 'Dense']
    >>> [layer.name for layer in tfspline.unwrap(tfspline.wrap(model)).layers[:2]]
    ['bn', 'relu']
    """
    model = functional(model)
    module = _keras.keras_of(model)
    unit = importlib.import_module(f"tfspline.layers.{module.__name__}").SplineUnit
    stacks = _stacks(model, module.layers.BatchNormalization)
    absorbed = {id(activation) for activation in stacks.values()}
    replacements: dict[str, list] = {}
    for path, layer in _keras.layer_paths(model).items():
        if id(layer) in absorbed:
            replacements[path] = []
        elif type(layer) is module.layers.BatchNormalization:
            activation = stacks.get(id(layer))
            activation = None if activation is None else _keras.copy_of(activation)
            replacements[path] = [unit(**_keras.object_config(layer) | {"activation": activation})]
    return _replaced(model, replacements)


def unwrap(model: KerasModel) -> KerasModel:
    """Copy a model with BatchNormalization and an activation layer for each SplineUnit; the reverse of `wrap`.

    The copy contains no tfspline classes. Layers that `wrap` absorbed get their names and configs back.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras; it is not changed.

    Returns:
        An uncompiled model of the same Keras version with new layers and the same weights.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model's graph is unknown.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), tfspline.layers.SplineUnit("relu6", name="unit")])
    >>> [(layer.name, type(layer).__name__) for layer in tfspline.unwrap(model).layers]
    [('unit', 'BatchNormalization'), ('unit_relu6', 'Activation')]
    """
    model = functional(model)
    module = _keras.keras_of(model)

    replacements = {}
    for path, layer in _keras.layer_paths(model).items():
        if isinstance(layer, SplineUnitBase):
            config = _keras.object_config(layer)
            del config["activation"]
            activation = [] if layer.activation is None else [_keras.copy_of(layer.activation)]
            replacements[path] = [module.layers.BatchNormalization(**config), *activation]
    return _replaced(model, replacements)


def _replaced(model, replacements):
    copy = _keras.rebuild(model, replacements=replacements)
    layers = _keras.layer_paths(model)
    for path, (first, *_) in ((path, copies) for path, copies in replacements.items() if copies):
        first.set_weights(layers[path].get_weights())
    return copy


def _stacks(model: KerasModel, batch_normalization: type[KerasLayer]) -> dict[int, KerasLayer]:
    """Map the id of each BatchNormalization that can absorb an activation layer to that layer."""
    layers = _keras.layer_paths(model).values()
    nested = [layer for layer in layers if _keras.is_graph(layer)]
    graphs = {id(graph): graph for graph in [model, *nested]}.values()
    nodes = [node for graph in graphs for node in _keras.nodes(graph)]
    calls = collections.Counter(id(node.layer) for node in nodes)
    reads = collections.Counter(tensor for node in nodes for tensor in node.inputs)
    made_by: dict[int, KerasLayer] = {tensor: node.layer for node in nodes for tensor in node.outputs}
    outputs = {id(tensor) for graph in graphs for tensor in graph.outputs}
    stacks = {}
    for node in nodes:
        if len(node.inputs) != 1 or not is_activation(node.layer):
            continue
        before = made_by.get(node.inputs[0])
        if before is None or type(before) is not batch_normalization:
            continue
        alone = reads[node.inputs[0]] == calls[id(before)] == calls[id(node.layer)] == 1
        alone = alone and node.inputs[0] not in outputs
        losses = before.activity_regularizer or node.layer.activity_regularizer
        if alone and not losses and before.compute_dtype == node.layer.compute_dtype:
            stacks[id(before)] = node.layer
    return stacks
