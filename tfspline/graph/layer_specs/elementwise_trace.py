"""Whether code acts on each number alone, by the TensorFlow operations that it is made of.

The code is traced once with sizes that are not known, so that nothing in it can depend on them, and the operations
between input and output are looked up in a list. What is not in the list may mix channels.
"""

import functools
import inspect
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer

# Operations of which each number depends only on the numbers at the same position of the inputs.
_ELEMENTWISE = frozenset(
    [
        *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atan2", "Atanh", "Cast", "Ceil", "CheckNumerics", "Cos"),
        *("Cosh", "Elu", "Erf", "Erfc", "Exp", "Expm1", "Floor", "Identity", "IdentityN", "IsFinite", "IsInf", "IsNan"),
        *("LeakyRelu", "Log", "Log1p", "LogicalNot", "Neg", "OnesLike", "PreventGradient", "Reciprocal", "Relu"),
        *("Relu6", "Rint", "Round", "Rsqrt", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt"),
        *("Square", "StopGradient", "Tan", "Tanh", "ZerosLike"),
        *("Add", "AddN", "AddV2", "ClipByValue", "Div", "DivNoNan", "Equal", "FloorDiv", "FloorMod", "Greater"),
        *("GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalOr", "Maximum", "Minimum", "Mul", "MulNoNan"),
        *("NotEqual", "Pow", "RealDiv", "Select", "SelectV2", "SquaredDifference", "Sub", "TruncateDiv", "Xdivy"),
        *("Xlog1py", "Xlogy"),
    ]
)
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def is_elementwise(function: Callable, spec: tf.TensorSpec | None = None) -> bool:
    """Whether each number that a function of a tensor returns depends only on the number at the same position.

    Numbers that do not depend on the input are allowed if they are alike for all channels: constants and weights with
    one entry, and random numbers, one for each input of the batch.

    Args:
        spec: rank and dtype of the input, with None for sizes that code must not depend on; by default any rank.
    """
    spec = spec or tf.TensorSpec(None)
    try:
        graph = tf.function(function, autograph=False).get_concrete_function(spec).graph
    except Exception:  # custom code, which can raise anything
        return False
    outputs = graph.structured_outputs
    return tf.is_tensor(outputs) and _Kinds(graph.inputs[0], spec.shape.rank).of(outputs) is _ITSELF


def is_elementwise_layer(layer: KerasLayer) -> bool:
    """Whether a layer acts on each number alone, in training and in inference, and has a finite value and slope at 0.

    False for a layer that is in no graph: what it is called on is not known.
    """
    shapes = _keras.shapes_called_on(layer)
    if not shapes or _keras.computes_mask(layer):
        return False
    takes_training = "training" in inspect.signature(layer.call).parameters
    modes = [functools.partial(layer, training=told) for told in (False, True)] if takes_training else [layer]
    dtype = layer.compute_dtype
    specs = {tf.TensorSpec([None] * len(shape), dtype) for shape in shapes}
    elementwise = _keras.keeps_shape(layer) and all(is_elementwise(mode, spec) for mode in modes for spec in specs)
    _keras.clear_losses(layer)
    return elementwise and all(is_finite_at_zero(modes[0], [n or 1 for n in shape], dtype) for shape in shapes)


def is_finite_at_zero(function: Callable, shape: Sequence[int] = (1, 1, 1), dtype: str = "float32") -> bool:
    """Whether a function has a finite value and slope at 0, where units are that are switched off.

    Raises whatever the function raises.
    """
    zero = tf.zeros(shape, dtype)
    with tf.GradientTape() as tape:
        tape.watch(zero)
        value = function(zero)
    slope = tape.gradient(value, zero, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return bool(np.isfinite(value).all() and np.isfinite(slope).all())


_ITSELF = "a tensor of the shape of the input, computed from the number at the same position"
_NUMBER = "one number, or one for each input of the batch"


class _Kinds:
    """What the tensors of one graph are, as functions of its input: `_ITSELF`, `_NUMBER` or anything (None)."""

    def __init__(self, source: tf.Tensor, rank: int | None, known: dict[str, str | None] | None = None):
        self._rank = rank
        self._known: dict[str, str | None] = {source.name: _ITSELF} if known is None else known

    def of(self, tensor: tf.Tensor) -> str | None:
        """The kind of a tensor."""
        if tensor.name not in self._known:
            self._known[tensor.name] = self._found(tensor)
        return self._known[tensor.name]

    def _found(self, tensor):
        op = tensor.op
        if op.type in ("Const", "Placeholder", "ReadVariableOp") or self._is_random(op):
            return _NUMBER if self._is_number(tensor.shape) else None
        if op.type in _CALLS:
            return self._inside(op, tensor.value_index)
        if op.type == "IdentityN":
            return self.of(op.inputs[tensor.value_index])
        kinds = {self.of(part) for part in op.inputs}
        if op.type not in _ELEMENTWISE or not kinds or None in kinds:
            return None
        return _ITSELF if _ITSELF in kinds else _NUMBER

    def _inside(self, op, i):
        """The kind of an output of a function that an operation calls."""
        graph = _keras.function_graph(op, op.get_attr("f").name)
        given = {inner.name: self.of(outer) for inner, outer in zip(graph.inputs, op.inputs, strict=True)}
        return _Kinds(graph.inputs[0], self._rank, given).of(graph.outputs[i])

    def _is_random(self, op):
        """Whether an operation draws random numbers; a seed must not be computed from the input."""
        return "Random" in op.type and not any(map(self._reads_input, op.inputs[1:]))

    def _reads_input(self, tensor):
        return self._known.get(tensor.name) is _ITSELF or any(map(self._reads_input, tensor.op.inputs))

    def _is_number(self, shape):
        """Whether a tensor of a shape has the same number for all positions of an input."""
        if shape.rank is None or shape.rank > (self._rank or 1):
            return False
        return all(size == 1 for size in (shape[1:] if shape.rank == self._rank else shape))
