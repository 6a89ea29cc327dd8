"""Flows of weights: what the weights that a composite layer holds itself become when it is unrolled.

A layer `Weight` returns its weight, and ops may compute with it before it meets an input of the model. Such a flow has
no batch axis.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.call import Call
from tfspline.graph.findings import Findings
from tfspline.graph.flow import Flow


def of_weights(findings: Findings, node: _keras.Node, flows: list[Flow]) -> list[Flow]:
    """The outputs of a call that reads only weights. Ids of a weight are along its last axis; ops do not pass them
    on."""
    outputs = []
    for shape, dtype in zip(node.output_shapes, node.output_dtypes, strict=True):
        flow = Flow(findings.ids.of_tensor(shape), shape, tf.TensorSpec(shape, dtype), batchless=True)
        outputs.append(flow)
        if isinstance(node.layer, _keras.Carrier) and shape and shape[-1] > 1:
            call = Call(findings, node, (), {}, [flow.spec])
            call.per_channel("weight", len(shape) - 1, np.ravel(flow.ids))
            call.resize("weight_shape", _with_last(shape, flow.ids))
            continue
        is_number = isinstance(node.layer, _keras.Carrier)
        why = f"{node.path!r} is a weight for all of them" if is_number else f"{node.path!r} computes it from weights"
        for read in (flow, *flows):
            findings.ids.protect(read.ids, why)
    return outputs


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
    return Flow(ids, shape, tf.TensorSpec((1, *shape), flow.spec.dtype))


def _with_last(shape, ids):
    return lambda kept: (*shape[:-1], int(kept[ids].sum()))
