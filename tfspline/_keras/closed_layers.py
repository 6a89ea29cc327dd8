"""Composite layers that stay closed when a model is unrolled, by what their `call` looks like."""

import dis
import inspect

import keras

from tfspline._keras.graph import computes_mask, has_own_call, is_graph
from tfspline._keras.modules import keras_of
from tfspline._keras.types import KerasLayer


def why_closed(layer: KerasLayer) -> str | None:
    """Why the `call` of a layer cannot be recorded once for training and inference."""
    call, module = inspect.signature(layer.call).parameters, keras_of(layer)
    if "training" in call and call["training"].default is True:
        return "its call trains unless it is told otherwise"
    others = [name for name, parameter in call.items() if parameter.kind is parameter.VAR_KEYWORD]
    if others and "training" not in call and not is_graph(layer) and _reads(layer.call, others[0]):
        return "its call takes any keyword arguments, `training` among them"
    if getattr(layer, "activity_regularizer", None) is not None or getattr(layer, "_callable_losses", None):
        return "it has a regularizer of its own"
    if module is not keras:
        if computes_mask(layer):
            return "it computes a mask of its own"
        if isinstance(layer, module.Sequential) and has_own_call(type(layer)):
            return "it is a Sequential with a `call` of its own"
    code = getattr(layer.call, "__code__", None)
    if code is None or "training" not in code.co_varnames or is_graph(layer):
        return None
    instructions = list(dis.get_instructions(code))
    for load, use, then in zip(instructions, instructions[1:], [*instructions[2:], None], strict=False):
        is_test = use.opname == "LOAD_CONST" and then is not None and then.opname in ("IS_OP", "COMPARE_OP")
        tests = is_test or use.opname.startswith(("POP_JUMP", "TO_BOOL", "UNARY_NOT", "JUMP_IF"))
        if tests and load.opname.startswith("LOAD_FAST") and load.argval == "training":
            return "its call branches on `training`"
    return None


def _reads(call, name):
    """Whether the code of a method uses a name; True if the code is not known."""
    code = getattr(call, "__code__", None)
    return code is None or any(instruction.argval == name for instruction in dis.get_instructions(code))
