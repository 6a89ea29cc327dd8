"""The work of calls that no layer spec counts: MACs of the operations in the TensorFlow graph that a call traces to."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras

_UNCOUNTED = re.compile(
    "MatMul|Conv(?!ert)|Einsum|Gemm|RNN|LSTM|GRU|FFT|PyFunc|Xla|Cholesky|Svd|Qr|Eig|Matrix(Inverse|Determinant|Solve)"
)


@dataclasses.dataclass
class Trace:
    """What one call of a layer or bare op computes."""

    outputs: list[tf.TensorSpec] | None  # None if the call cannot be traced
    macs: int = 0
    unknown: str | None = None  # why `macs` lacks a part of the work; None if it is all of it


def trace(node: _keras.Node, args: tuple, kwargs: dict, kind: type, inputs: list[tf.TensorSpec]) -> Trace:
    """Traces a call, with `inputs` in place of its arguments of a kind, and counts the MACs of what it computes."""
    over_time = _keras.of_class(node.layer, "TimeDistributed")  # Keras 3 unrolls it, which takes long
    steps = inputs[0].shape[1] if over_time else 1
    if over_time:
        inputs = [_with_steps(spec, 1) for spec in inputs]
    try:
        graph, outputs = _traced(node.layer, args, kwargs, kind, inputs)
    except Exception as error:  # custom code can fail in any way
        return _failed("it", error)
    if over_time:
        outputs = [_with_steps(spec, steps) for spec in outputs]
    counter = _count(graph)
    if steps is None and counter.macs:
        return Trace(outputs, unknown="its number of time steps is not known; give `input_shape`")
    return Trace(outputs, counter.macs * (steps or 0), counter.unknown)


def trace_function(function: Callable, spec: tf.TensorSpec) -> Trace:
    """Traces a function or layer that is the activation of another layer."""
    try:
        graph = tf.function(lambda x: function(x), autograph=False).get_concrete_function(spec).graph
    except Exception as error:  # custom code can fail in any way
        return _failed("its activation", error)
    if _keras.is_layer(function):
        _keras.clear_losses(function)
    counter = _count(graph)
    return Trace(None, counter.macs, counter.unknown)


def _failed(what, error):
    reason = str(error).strip().partition("\n")[0]
    return Trace(None, unknown=f"{what} cannot be traced for one input ({type(error).__name__}: {reason})")


def _with_steps(spec, steps):
    return tf.TensorSpec((spec.shape[0], steps, *spec.shape[2:]), spec.dtype)


def _traced(layer, args, kwargs, kind, inputs):
    def call(*tensors):
        values = iter(tensors)
        return _keras.call(layer, args, kwargs, kind, lambda _: next(values))

    concrete = tf.function(call, autograph=False).get_concrete_function(*inputs)
    _keras.clear_losses(layer)
    return concrete.graph, [tf.TensorSpec(x.shape, x.dtype) for x in tf.nest.flatten(concrete.structured_outputs)]


class _Counter:
    """Adds up the MACs of graphs."""

    def __init__(self):
        self.macs = 0
        self.unknown: str | None = None

    def add(self, graph: tf.Graph, times: int = 1) -> None:
        """Adds what the outputs of a graph take, `times` over."""
        for op in _needed(graph):
            if op.type in _PRODUCTS:
                macs = 0 if _is_zero(op.inputs[-1]) else _PRODUCTS[op.type](op)
                if macs is None:
                    self.unknown = f"the sizes of a {op.type} in it are not known"
                self.macs += times * (macs or 0)
            elif op.type in ("While", "StatelessWhile"):
                self._loop(op, times)
            elif op.type in ("If", "StatelessIf", "Case", "StatelessCase"):
                self._branches(op, times)
            elif _UNCOUNTED.search(op.type):
                self.unknown = f"the MACs of a {op.type} in it are not known"
            else:
                for function in _functions(op):
                    self.add(function, times)

    def _loop(self, op, times):
        cond, body = (_keras.function_graph(op, op.get_attr(name).name) for name in ("cond", "body"))
        once, steps = _count(body), _steps(op, cond, body)
        if steps is None and (once.macs or once.unknown):
            self.unknown = "the number of steps of a loop in it is not known"
        self.macs += times * (steps or 0) * once.macs
        self.unknown = once.unknown or self.unknown

    def _branches(self, op, times):
        counts = [_count(function) for function in _functions(op)]
        if len({count.macs for count in counts}) > 1:
            self.unknown = "its work depends on data"
        self.macs += times * min(count.macs for count in counts)
        self.unknown = next((count.unknown for count in counts if count.unknown), self.unknown)


def _count(graph):
    counter = _Counter()
    counter.add(graph)
    return counter


def _needed(graph) -> Iterator[tf.Operation]:
    """The operations that the outputs depend on: Keras runs the first step of a loop once more, to learn its dtype."""
    waiting, seen = [tensor.op for tensor in graph.outputs], set()
    while waiting:
        op = waiting.pop()
        if op.name not in seen:
            seen.add(op.name)
            waiting += [tensor.op for tensor in op.inputs]
            yield op


def _functions(op) -> list[tf.Graph]:
    values = (value for attr in op.node_def.attr.values() for value in (attr.func, *attr.list.func))
    return [_keras.function_graph(op, value.name) for value in values if value.name]


def _steps(op, cond, body) -> int | None:
    """How often a loop runs, if it counts from a known number up to a known number; None otherwise.

    It goes on as long as `counter < end` for each of its counters, of which one is enough to know.
    """
    conditions, ends = [cond.outputs[0]], []
    while conditions:
        tensor = conditions.pop()
        if tensor.op.type in ("Identity", "LogicalAnd"):
            conditions += tensor.op.inputs
        elif tensor.op.type == "Less":
            counter, end = tensor.op.inputs
            ends.append(_steps_to(counter, end, op, cond, body))
        else:
            return None
    return min((end for end in ends if end is not None), default=None)


def _steps_to(counter, end, op, cond, body):
    places = {tensor.name: i for i, tensor in enumerate(cond.inputs)}
    if counter.name not in places:
        return None
    place = places[counter.name]
    grown = body.outputs[place]
    while grown.op.type == "Identity":
        grown = grown.op.inputs[0]
    by_one = grown.op.type == "AddV2" and any(_static(tensor) == 1 for tensor in grown.op.inputs)
    start, end = _static(op.inputs[place]), _static(op.inputs[places[end.name]] if end.name in places else end)
    return max(int(end - start), 0) if by_one and start is not None and end is not None else None


def _static(tensor) -> Any:
    """The value of a tensor that does not depend on inputs, also if it is one entry of a known shape."""
    if tensor.dtype in (tf.resource, tf.variant):
        return None
    value = tf.get_static_value(tensor)
    if value is None and tensor.op.type == "StridedSlice" and tensor.shape.rank == 0:
        array, begin = (tf.get_static_value(part) for part in tensor.op.inputs[:2])
        return None if array is None or begin is None else array[tuple(begin)]
    return value


def _is_zero(tensor):
    """Whether a kernel is a constant 0: by applying one, tf_keras learns the shape of the state of a ConvLSTM."""
    value = tf.get_static_value(tensor)
    return value is not None and value.size > 0 and not value.any()


def _size(shape) -> int | None:
    return tf.TensorShape(shape).num_elements()


def _product(*factors) -> int | None:
    return None if None in factors else int(np.prod(factors, dtype=np.int64))


def _convolution(op) -> int | None:
    return _product(_size(op.outputs[0].shape), _size(op.inputs[1].shape[:-1]))


def _transposed(op) -> int | None:
    return _product(_size(op.inputs[2].shape), _size(op.inputs[1].shape[:-1]))


def _depthwise(op) -> int | None:
    return _product(_size(op.outputs[0].shape), _size(op.inputs[1].shape[:2]))


def _matmul(op) -> int | None:
    transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    return _product(_size(op.outputs[0].shape), op.inputs[0].shape[-2 if transposed else -1])


def _einsum(op) -> int | None:
    """Each letter that is not in the output is summed over, for each number of the output."""
    if len(op.inputs) == 1:
        return 0
    inputs, output = op.get_attr("equation").decode().split("->")
    sizes: dict[str, int | None] = {}
    for letters, tensor in zip(inputs.split(","), op.inputs, strict=True):
        before, _, after = letters.partition("...")
        sizes.update(zip(before, tensor.shape[: len(before)], strict=True))
        sizes.update(zip(after, tensor.shape[len(tensor.shape) - len(after) :], strict=True))
    return _product(_size(op.outputs[0].shape), *(size for letter, size in sizes.items() if letter not in output))


_PRODUCTS: dict[str, Callable[[tf.Operation], int | None]] = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _matmul),
    "Einsum": _einsum,
    **dict.fromkeys(("Conv2D", "Conv3D"), _convolution),
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), _transposed),
    "DepthwiseConv2dNative": _depthwise,
}
