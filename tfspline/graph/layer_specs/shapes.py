"""Layers and bare ops that only move numbers: reshape, transpose, concatenate."""

import functools
import math

import numpy as np

from tfspline.graph.call import Call, Flow, kept_along
from tfspline.graph.layer_specs.dependence import moved
from tfspline.graph.layer_specs.elementwise import merge
from tfspline.graph.layer_specs.movement import compressed, is_fixed
from tfspline.graph.layer_specs.spec import LayerSpec, unknown


def _flatten(call: Call) -> np.ndarray | list[np.ndarray]:
    """Each channel moves to as many positions as its feature map has."""
    ids = call.full()
    if ids is None:
        return unknown(call, "flattens an input of unknown size")
    # Keras flattens in channels_last order, whatever the order of the input.
    return np.moveaxis(np.atleast_1d(ids), call.channel_axis(), -1).reshape(-1)


def _reshape(call: Call, key: str = "target_shape") -> np.ndarray | list[np.ndarray]:
    """Moves ids as it moves numbers. `key` is the config entry or argument that holds the shape."""
    shape = call.output_shapes[0]
    ids = _reshaped(call.inputs[0], call.shape(), shape)
    if ids is None:
        return unknown(call, "reshapes an input of unknown size, or joins channels with the batch")
    given = shape if key == "target_shape" else call.argument(key)
    if isinstance(given, Flow):
        return unknown(call, "has a shape that is computed")
    given = list(given)
    first = len(given) - len(shape)  # that of an op starts with the batch
    places = {
        first + axis: axis
        for axis, n in enumerate(ids.shape)
        if n > 1 and (isinstance(given[first + axis], Flow) or given[first + axis] != -1)
    }

    def new_shape(kept):
        sizes = kept_along(kept, ids)
        return tuple(len(sizes[places[i]]) if i in places else size for i, size in enumerate(given))

    if places and is_fixed(given):
        call.resize(key, new_shape)
    for i in () if is_fixed(given) else places:
        call.resize((key, i), functools.partial(lambda i, kept: new_shape(kept)[i], i))
    return ids


def _reshaped(ids: np.ndarray, old: tuple, new: tuple) -> np.ndarray | None:
    """Ids of a tensor [batch, *old] as they are in [batch, *new]; None if that is not known.

    Counted from the end, groups of axes become others of the same size. What is left, the batch included, must not have
    channels along it.
    """
    i, j, whole = len(old), len(new), list(ids.shape)
    sizes: list[int] = []
    while i and j:
        a, b = i - 1, j - 1
        while None not in (*old[a:i], *new[b:j]) and math.prod(old[a:i]) != math.prod(new[b:j]):
            shorter_old = math.prod(old[a:i]) < math.prod(new[b:j])
            a, b = a - shorter_old, b - (not shorter_old)
            if min(a, b) < 0:
                break
        if min(a, b) < 0 or None in (*old[a:i], *new[b:j]):
            break
        varies = max(ids.shape[a:i]) > 1
        whole[a:i] = old[a:i] if varies else ids.shape[a:i]
        sizes = [*(new[b:j] if varies else [1] * (j - b)), *sizes]
        i, j = a, b
    if max(ids.shape[:i], default=1) > 1:
        return None
    return compressed(np.broadcast_to(ids, whole).reshape([1] * j + sizes))


def _concatenate(call: Call) -> np.ndarray | list[np.ndarray]:
    """Puts ids side by side, and protected ones in place of constants.

    Along an axis on which the ids do not vary, those at the same position are tied, and constants are cut with them.
    Along the other axes, all tensors keep the same positions.
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
    if not joined:
        return _along_positions(call, axis, rest)
    for other in range(len(call.shape())):
        varies = [ids is not None and ids.shape[other] > 1 for ids in inputs]
        if other != axis and any(varies) and not all(varies):
            for ids in call.inputs:
                call.tie_groups(np.moveaxis(ids, other, 0), ids.shape[other])
    why = f"{call.described()} joins them with a constant"
    parts = [
        np.broadcast_to(
            call.fixed((*rest[:axis], 1, *rest[axis:]), why) if ids is None else ids,
            (*rest[:axis], size, *rest[axis:]),
        )
        for ids, size in zip(inputs, sizes, strict=True)
    ]
    return np.concatenate(parts, axis=axis)


def _along_positions(call: Call, axis: int, rest: tuple) -> np.ndarray:
    """The ids of tensors that are joined along an axis without channels, those at the same position tied."""
    first, *others = (np.broadcast_to(ids, (*rest[:axis], 1, *rest[axis:])) for ids in call.inputs)
    for other in others:
        call.tie(first, other)
    for place in call.constants():
        if len(place) > 1:  # not the axis
            axes = {i + 1: i for i, n in enumerate(first.shape) if n > 1}
            if axes:
                call.cut_constant(place, first, axes)
    return first


def _moves(rule) -> LayerSpec:
    return LayerSpec(rule, affine=True, dependence=moved)


LAYERS: dict[str, LayerSpec] = {
    "Flatten": _moves(_flatten),
    "Reshape": _moves(_reshape),
    "Permute": _moves(lambda call: np.transpose(call.inputs[0], [dim - 1 for dim in call.layer.dims])),
    "RepeatVector": _moves(lambda call: call.inputs[0].reshape(1, -1)),  # [channels] -> [n, channels]
    "Concatenate": _moves(_concatenate),
}

OPS: dict[str, LayerSpec] = {
    **dict.fromkeys(["concatenate", "concat"], _moves(_concatenate)),
    "reshape": _moves(lambda call: _reshape(call, "newshape" if call.argument("newshape") is not None else "shape")),
}
