"""Flows of weights: what the weights that a composite layer holds itself become when it is unrolled.

A layer `Weight` returns its weight, and ops may compute with it before it meets an input of the model. Such a flow has
no batch axis.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.call import Call
from tfspline.graph.findings import Findings
from tfspline.graph.flow import Flow
from tfspline.graph.layer_specs.elementwise import merge
from tfspline.graph.layer_specs.registry import UNKNOWN, spec_of

# Ops that only move numbers, and the names of their arguments that say how many channels there are.
MOVES = {
    "slice",
    "stridedslice",
    "getitem",
    "expanddims",
    "squeeze",
    "reshape",
    "broadcastto",
    "tile",
    "take",
    "cast",
    "converttotensor",
}
_SIZES = "shape", "newshape", "size"


def of_weights(
    findings: Findings, node: _keras.Node, args: tuple, kwargs: dict, read: Callable[..., list[Flow]]
) -> list[Flow] | None:
    """The outputs of a call that reads only weights; None for other calls. `read` reads a call whose inputs have a
    batch."""
    flows = [value for value in tf.nest.flatten((args, kwargs)) if isinstance(value, Flow)]
    if isinstance(node.layer, _keras.Carrier):
        return [_carried(findings, node)]
    if not all(flow.batchless for flow in flows):
        return _for_each_sample(findings, node, args, kwargs)
    if not flows:
        return None
    if _has_batch(node, flows):
        return [_without_batch(flow) for flow in read(node, *_with_batch(args, kwargs))]
    specs = [tf.TensorSpec(*spec) for spec in zip(node.output_shapes, node.output_dtypes, strict=True)]
    call = Call(findings, node, args, kwargs, specs)
    ids = _moved(call, flows[0], tuple(specs[0].shape)) if len(flows) == len(specs) == 1 else None
    if ids is not None:
        return [Flow(ids, tuple(specs[0].shape), specs[0], off=_off_of(flows[0]), batchless=True)]
    numbers = all(np.ndim(value) == 0 for value in call.constants().values())
    if len(flows) == len(specs) == 1 and spec_of(node.layer).rule is merge and numbers:
        return [Flow(flows[0].ids, flows[0].shape, specs[0], batchless=True)]
    pairs = [(tuple(spec.shape), spec) for spec in specs]
    outputs = [Flow(findings.ids.of_tensor(shape), shape, spec, batchless=True) for shape, spec in pairs]
    for flow in (*outputs, *flows):
        findings.ids.protect(flow.ids, f"{node.path!r} computes it from weights")
    return outputs


def _carried(findings: Findings, node: _keras.Node) -> Flow:
    """What a carrier returns: the ids of a weight are along its last axis, and a constant has none."""
    (shape,), (dtype,) = node.output_shapes, node.output_dtypes
    if not _keras.weights(node.layer):
        ids = findings.ids.fresh(1).reshape([1] * len(shape))
        findings.ids.protect(ids, f"{node.path!r} is a constant")
        return Flow(ids, shape, tf.TensorSpec(shape, dtype), batchless=True)
    flow = Flow(findings.ids.of_tensor(shape), shape, tf.TensorSpec(shape, dtype), batchless=True)
    if shape and shape[-1] > 1:
        call = Call(findings, node, (), {}, [flow.spec])
        call.per_channel("weight", len(shape) - 1, np.ravel(flow.ids))
        call.resize("weight_shape", _with_last(shape, flow.ids))
        flow.off = lambda: np.array(0.0)
    else:
        findings.ids.protect(flow.ids, f"{node.path!r} is a weight for all of them")
    return flow


def _for_each_sample(findings, node, args, kwargs) -> list[Flow] | None:
    """The output of `tf.tile(weight, [batch, 1, 1])` with a batch that the graph computes; None for other calls."""
    if _keras.op_name(node.layer) != "tile":
        return None
    weight, times = list(_keras.arguments(node.layer, args, kwargs).values())[:2]
    first, *others = times if isinstance(times, list | tuple) else [None]
    if not isinstance(weight, Flow) or not weight.batchless or not isinstance(first, Flow) or {*others} - {1}:
        return None
    shape = weight.shape[1:]
    return [Flow(weight.ids[0], shape, tf.TensorSpec((findings.batch, *shape), weight.spec.dtype), off=_off_of(weight))]


def _has_batch(node, flows) -> bool:
    """Whether a call can be read as if the first axis of its inputs were the batch, which layers do not mix."""
    is_layer = _keras.op_name(node.layer) is None or (spec_of(node.layer).elementwise and len(flows) == 1)
    return is_layer and spec_of(node.layer) is not UNKNOWN and all(flow.ids.shape[:1] == (1,) for flow in flows)


def _with_batch(args, kwargs):
    """The arguments of such a call with the first axis as the batch."""

    def of(value):
        if not isinstance(value, Flow):
            return value
        return dataclasses.replace(value, ids=value.ids[0], shape=value.shape[1:], batchless=False)

    return tf.nest.map_structure(of, (args, kwargs))


def _without_batch(flow: Flow) -> Flow:
    """An output of such a call with all its axes."""
    return dataclasses.replace(flow, ids=flow.ids[None], shape=tuple(flow.spec.shape), batchless=True)


def _moved(call: Call, flow: Flow, shape: tuple) -> np.ndarray | None:
    """The ids of the output of an op that only moves numbers, and leaves all channels along the last axis; otherwise
    None."""
    op = _keras.op_name(call.layer)
    if op is None or op.replace("_", "") not in MOVES or not shape or flow.shape[-1:] != shape[-1:]:
        return None
    row = np.ravel(flow.ids)
    positions = np.broadcast_to(np.arange(row.size), flow.shape)
    (after,) = call.run([tf.constant(positions, tf.int32)])
    if row.size != shape[-1] or not (np.asarray(after) == np.arange(row.size)).all():
        return None
    sizes = next((name for name in _SIZES if call.argument(name) is not None), None)
    if sizes is not None and (given := call.argument(sizes))[-1] != -1:
        call.resize(sizes, _with_last(given, row))
    return row.reshape([1] * (len(shape) - 1) + [-1])


def beside_inputs(args: tuple, kwargs: dict, flows: list[Flow]) -> Any:
    """The arguments of an elementwise call with weights broadcast to the rank of its inputs, where that is possible."""
    if not any(flow.batchless for flow in flows):
        return args, kwargs
    inputs = [flow for flow in flows if not flow.batchless]
    rank = max(len(flow.shape) for flow in inputs)
    varying = np.max([np.array(flow.ids.shape) > 1 for flow in inputs if len(flow.shape) == rank], axis=0)
    beside = {id(flow): _beside(flow, rank, varying) for flow in flows if flow.batchless}
    return tf.nest.map_structure(lambda value: beside.get(id(value)) or value, (args, kwargs))


def _beside(flow, rank, varying):
    """A flow of weights as a flow with a batch; None if its first axis would meet the batch, or if another axis than
    the last has numbers for each channel."""
    missing = rank - len(flow.shape)
    if missing < 0 and (missing < -1 or flow.shape[0] != 1):
        return None
    ids = flow.ids[0] if missing < 0 else flow.ids.reshape((1,) * missing + flow.ids.shape)
    shape = flow.shape[1:] if missing < 0 else (1,) * missing + flow.shape
    if any(varies and size > 1 == known for varies, size, known in zip(varying, shape, ids.shape, strict=True)):
        return None
    return Flow(ids, shape, tf.TensorSpec((1, *shape), flow.spec.dtype), off=_off_of(flow))


def _off_of(flow):
    """What a part of a flow is if all units are switched off: zero if the flow is."""
    return lambda: np.array(np.nan if np.any(flow.off()) else 0.0)


def _with_last(shape, ids):
    return lambda kept: (*shape[:-1], int(kept[ids].sum()))
