"""`functional`: models with subclassed parts and layers of users as flat graphs, which the rest of tfspline reads."""

from tfspline import _keras
from tfspline._keras.types import InputShape, KerasLayer, KerasModel
from tfspline.graph.layer_specs import functions
from tfspline.graph.layer_specs.dependence import moved
from tfspline.graph.layer_specs.elementwise import divide
from tfspline.graph.layer_specs.registry import is_custom, is_declared, spec_of


def functional(model: KerasModel, input_shape: InputShape = None) -> KerasModel:
    """Turns a model with composite layers, or a subclassed model, into a functional model with the same weights.

    The `call` of a layer of a user's class is run on symbolic tensors, so that the layers and ops in it become layers
    of the result, named after their place ("block.attention"). So is the function of a `Lambda` layer, unless it acts
    on each number alone. A layer of a user that computes the same as RMSNormalization (Keras 3) is replaced by one with
    its weight, and one that drops whole samples in training by a Dropout. A function of a user or a package that is the
    activation of a layer becomes ops, so that a saved model needs no code of theirs. The weights are those of `model`,
    not copies: training one trains the other. Weights that a user's layer holds itself become layers of the class
    `tfspline.layers.Weight`; import tfspline before you load a saved model with them.

    The other functions of tfspline do this themselves. Use it to look at the layers, or to plan with other sizes.

    Args:
        model: any model of Keras 3 or tf_keras. It is not changed.
        input_shape: shapes without the batch, as the model takes its inputs: a tuple, or a list or dict of tuples. A
            subclassed model that has not been called needs it; give a `keras.Input` in place of a tuple if the input is
            not of float32. For any other model it fixes sizes that the model leaves open.

    Returns:
        A functional model, compiled with the loss of `model` if that has one; `model` itself if there is nothing to
        unroll. A layer that cannot be unrolled, because its `call` branches on data or on `training`, or does not run
        on symbolic tensors, is kept as one layer.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the input shape is not known, or the `call` of the model itself does not run on symbolic tensors.

    Example:

    >>> import keras, tfspline
    >>> class Block(keras.layers.Layer):
    ...     def __init__(self):
    ...         super().__init__(name="block")
    ...         self.wide = keras.layers.Dense(8, "relu", name="wide")
    ...         self.narrow = keras.layers.Dense(4, name="narrow")
    ...     def call(self, x):
    ...         return x + self.narrow(self.wide(x))
    >>> model = keras.Sequential([keras.Input((4,)), Block(), keras.layers.Dense(2, name="head")])
    >>> [layer.name for layer in tfspline.functional(model).layers[1:]]
    ['block.wide', 'block.narrow', 'head']
    """
    if not _keras.is_model(model) or (input_shape is None and not _needs_unrolling(model)):
        return _keras.check_model(model)
    with model.distribute_strategy.scope():
        flat = _keras.unroll(model, _is_leaf, _takes_weights, _is_elementwise, _is_rms_norm, input_shape)
    _keras.share_loss(model, flat)
    return flat


def _needs_unrolling(model) -> bool:
    if not _keras.is_graph(model):
        return not _keras.is_unbuilt_sequential(model)
    layers = _keras.layer_paths(model).values()
    layers = [layer for layer in layers if _keras.op_name(layer) is None and not _keras.is_graph(layer)]
    return any(not _is_leaf(layer) or _is_rms_norm(layer) for layer in layers)


def _is_leaf(layer: KerasLayer) -> bool:
    """Whether a layer stays one layer: tfspline has a rule for its class, or it derives from a layer of Keras with a
    kernel or other weights, which ops read in ways that tfspline cannot follow."""
    if _keras.is_model(layer):
        return False
    if _keras.builtin_class_name(layer) == "Lambda" and not is_custom(layer):
        function = functions.of_lambda(layer)
        return functions.known_name(function) is not None or functions.objection(function) is None
    if is_declared(layer) or _is_rms_norm(layer):
        return True
    holds_weights = bool(_keras.weights(layer)) and not _keras.sublayers(layer)
    return holds_weights and _keras.first_builtin(type(layer)).__name__ != "Layer"


def _is_rms_norm(layer: KerasLayer) -> bool:
    """Whether a layer of Keras with the same weights takes the place of a user's layer."""
    return not is_declared(layer) and _keras.is_rms_norm(layer)


def _takes_weights(layer: KerasLayer) -> bool:
    """Whether channels are followed through a layer or op that combines inputs with weights."""
    spec = spec_of(layer)
    return spec.elementwise or spec.dependence is moved


def _is_elementwise(node: _keras.Node) -> bool:
    """Whether channels pass through a call of an op that acts on each number alone. They are no divisors."""
    spec = spec_of(node.layer)
    return spec.elementwise and (spec.rule is not divide or spec.is_affine(node))
