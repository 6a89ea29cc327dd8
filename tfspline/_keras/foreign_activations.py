"""Activations of users and other packages, which a flat graph has as ops: it can be loaded without their code."""

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tfspline._keras.graph import Node, is_symbolic, nodes
from tfspline._keras.layers import builtin_base, builtin_class_name, function_name, is_builtin, op_name, own_activation
from tfspline._keras.references import reach
from tfspline._keras.types import KerasLayer

# Layers whose activation comes last.
_ACTIVATED = re.compile("Activation|Dense|EinsumDense|(Depthwise|Separable)?Conv[123]D(Transpose)?")


def foreign_activation(layer: KerasLayer) -> Callable | None:
    """The function that a layer of Keras applies to its output, if it is a stateless one of a user or a package."""
    if not (is_builtin(type(layer)) or builtin_base(type(layer))) or getattr(layer, "activity_regularizer", None):
        return None
    function = own_activation(layer) if _ACTIVATED.fullmatch(builtin_class_name(layer) or "") else None
    is_foreign = function is not None and op_name(function) is not None and function_name(function) is None
    return function if is_foreign and not reach(function)[1] else None


def is_made_of(function: Any, accepted: Callable[[Node], bool], module: ModuleType, dtype: str) -> bool:
    """Whether a function of a tensor of any size, called on a symbolic tensor, records only ops that are accepted."""
    x = module.Input((None, None), dtype=dtype, name="x")
    try:
        y = function(x)
        return is_symbolic(y) and y.dtype == x.dtype and all(map(accepted, nodes(module.Model(x, y, name="trial"))))
    except Exception:  # from the user's code
        return False
