"""Layers and bare ops that only move numbers: reshape, transpose, concatenate."""

import math

import numpy as np

from tfspline.graph.call import Call, Flow
from tfspline.graph.layer_specs.dependence import moved
from tfspline.graph.layer_specs.elementwise import merge
from tfspline.graph.layer_specs.spec import LayerSpec, unknown


def _flatten(call: Call) -> np.ndarray | list[np.ndarray]:
    """Each channel moves to as many positions as its feature map has."""
    ids = call.full()
    if ids is None:
        return unknown(call, "flattens an input of unknown size")
    # Keras flattens in channels_last order, whatever the order of the input.
    return np.moveaxis(np.atleast_1d(ids), call.channel_axis(), -1).reshape(-1)


def _reshape(call: Call, key: str = "target_shape", batch: tuple = ()) -> np.ndarray | list[np.ndarray]:
    """Moves ids as it moves numbers. If this spreads channels over several axes, one of them is cut as a whole.

    `key` is the config entry that holds the shape, which starts with `batch`.
    """
    ids, shape = call.full(), call.output_shapes[0]
    if ids is None or None in shape or ids.size != math.prod(shape):
        return unknown(call, "reshapes an input of unknown size")
    ids = ids.reshape(shape)
    varying = [axis for axis in range(ids.ndim) if (ids != ids.take([0], axis=axis)).any()]
    ids = ids[tuple(slice(None if axis in varying else 1) for axis in range(ids.ndim))]

    def target_shape(kept):
        sizes = [len(places) for places in map(np.unique, np.nonzero(kept[ids]))]
        return *batch, *(sizes[axis] if axis in varying else size for axis, size in enumerate(shape))

    call.resize(key, target_shape)
    if len(varying) > 1:
        call.spread(ids)
    return ids


def _reshape_op(call: Call) -> np.ndarray | list[np.ndarray]:
    """The bare op of Keras 3. TensorFlow's takes its shape as an argument of the call, which cannot be changed."""
    shape = call.argument("newshape")
    if shape is None or shape[0] != -1:
        return unknown(call, "has a fixed shape as argument")
    return _reshape(call, "newshape", (-1,))


def _transpose(call: Call) -> np.ndarray | list[np.ndarray]:
    """The bare op, which can move the batch as well."""
    order = call.argument("axes") or call.argument("perm")
    if order is None or order[0] != 0:
        return unknown(call, "moves the batch")
    return np.transpose(call.inputs[0], [call.axis(axis) for axis in order[1:]])


def _concatenate(call: Call) -> np.ndarray | list[np.ndarray]:
    """Puts ids side by side, and protected ones in place of constants.

    Along an axis on which the ids do not vary, those at the same position are tied.
    """
    values = next(filter(None, map(call.argument, ("inputs", "xs", "values"))))
    axis = getattr(call.layer, "axis", call.argument("axis")) % (len(call.shape()) + 1)
    if axis == 0:  # one batch after the other
        return merge(call)
    axis = call.axis(axis)
    inputs = [value.ids if isinstance(value, Flow) else None for value in values]
    sizes = [value.shape[axis] if isinstance(value, Flow) else np.shape(value)[1:][axis] for value in values]
    joined = any(ids.shape[axis] > 1 for ids in call.inputs) or all(size == 1 for size in sizes)
    rest = np.broadcast_shapes(*(np.delete(ids.shape, axis) for ids in call.inputs))
    why = f"{call.described()} joins them with a constant"
    parts = [
        np.broadcast_to(
            call.fixed((*rest[:axis], 1, *rest[axis:]), why) if ids is None else ids,
            (*rest[:axis], size if joined else 1, *rest[axis:]),
        )
        for ids, size in zip(inputs, sizes, strict=True)
    ]
    if joined:
        return np.concatenate(parts, axis=axis)
    for other in parts[1:]:
        call.tie(parts[0], other)
    return parts[0]


def _moves(rule) -> LayerSpec:
    return LayerSpec(rule, affine=True, dependence=moved)


LAYERS: dict[str, LayerSpec] = {
    "Flatten": _moves(_flatten),
    "Reshape": _moves(_reshape),
    "Permute": _moves(lambda call: np.transpose(call.inputs[0], [dim - 1 for dim in call.layer.dims])),
    "RepeatVector": _moves(lambda call: call.inputs[0].reshape(1, -1)),  # [channels] -> [n, channels]
    "Concatenate": _moves(_concatenate),
}

# The channels of these ops cannot be followed, but they are affine.
_AFFINE_OPS = [
    *("permutedims", "stack", "squeeze", "expanddims", "pad", "tile", "getitem", "repeat", "flip", "broadcastto"),
    *("moveaxis", "swapaxes"),
]

OPS: dict[str, LayerSpec] = {
    **dict.fromkeys(["concatenate", "concat"], _moves(_concatenate)),
    "reshape": _moves(_reshape_op),
    "transpose": _moves(_transpose),
    **dict.fromkeys(_AFFINE_OPS, LayerSpec(affine=True)),
}
