"""Bare ops that take some of the channels: slices, parts and lists of positions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tfspline.graph.call import Call
from tfspline.graph.flow import kept_along
from tfspline.graph.layer_specs.movement import axis_of, is_fixed, like, move, moves, name_of, varying
from tfspline.graph.layer_specs.spec import LayerSpec, unknown


def _subkeys(call: Call, key: Any) -> dict[int, int]:
    """Which entry of the key of `x[key]` belongs to which axis of the ids, with the batch at -1."""
    entries = [i for i, part in enumerate(key) if part is not None]
    rank = len(call.shape()) + 1
    gap = next((i for i in entries if key[i] is Ellipsis), None)
    before = entries if gap is None else [i for i in entries if i < gap]
    after = [] if gap is None else [i for i in entries if i > gap]
    axes = {axis - 1: i for axis, i in enumerate(before)}
    return axes | {rank - len(after) + n - 1: i for n, i in enumerate(after)}


def _getitem(call: Call) -> list[np.ndarray]:
    """`x[key]`: slices of channels are computed anew; a single channel stays."""
    name = name_of(call, "key", "slice_spec")
    given = call.argument(name)
    if not call.inputs[0].ndim and len(call.inputs) == 1:  # of the sizes of a tensor
        call.read_sizes(given)
        return call.opaque()
    key = list(given) if isinstance(given, tuple | list) else [given]
    if not is_fixed(given) or any(np.ndim(part) for part in key if not isinstance(part, dict)):
        return unknown(call, "takes positions that are computed, or listed in an array")
    changed = {}
    for axis, i in _subkeys(call, key).items():
        if varying(call, axis):
            changed[i] = _sliced(call, axis, key[i])

    outputs = move(call)
    if changed and not call.is_opaque:

        def new_key(kept):
            new = [changed[i](kept) if i in changed else part for i, part in enumerate(key)]
            return type(given)(new) if isinstance(given, tuple | list) else new[0]

        call.resize(name, new_key)
        call.part(outputs[0])
    return outputs


def _sliced(call: Call, axis: int, part: Any) -> Callable[[np.ndarray], Any]:
    """How an index or slice of an axis along which channels are changes with the kept channels."""
    ids, size = call.inputs[0], call.inputs[0].shape[axis]
    if not isinstance(part, slice | dict):
        index = int(part) % size
        call.protect(ids.take(index, axis), f"{call.described()} takes it alone")
        return lambda kept: int((kept_along(kept, ids)[axis] < index).sum())
    whole = slice(part["start"], part["stop"], part["step"]) if isinstance(part, dict) else part
    chosen = range(*whole.indices(size))
    forwards, step = (chosen, chosen.step) if chosen.step > 0 else (chosen[::-1], -chosen.step)
    rows = np.moveaxis(ids, axis, 0)
    for start in forwards if step > 1 else ():  # the numbers that a step skips go with the one before them
        window = rows[start : start + step] if chosen.step > 0 else rows[max(start - step + 1, 0) : start + 1]
        call.tie(np.broadcast_to(window[:1], window.shape), window)

    def new(kept):
        places = np.flatnonzero(np.isin(kept_along(kept, ids)[axis], forwards))
        first, last = int(places[0]), int(places[-1])
        bounds = (first, last + 1, step) if chosen.step > 0 else (last, first - 1 if first else None, -step)
        return dict(zip(("start", "stop", "step"), bounds, strict=True)) if isinstance(part, dict) else slice(*bounds)

    return new


def _split(call: Call) -> list[np.ndarray]:
    """Parts along an axis; if channels are along it, the sizes of the parts change."""
    name, axis = name_of(call, "indices_or_sections", "num_or_size_splits"), axis_of(call, 0)
    outputs = move(call)
    if call.is_opaque or not varying(call, axis) or len(outputs) == 1:
        return outputs
    whole = [
        np.broadcast_to(ids, call.output_shapes[i]) if None not in call.output_shapes[i] else ids
        for i, ids in enumerate(outputs)
    ]
    for ids in outputs:
        call.part(ids)

    def sizes(kept):
        return [len(kept_along(kept, ids)[axis]) for ids in whole]

    if name == "num_or_size_splits":
        call.resize(name, sizes)
    else:
        call.resize(name, lambda kept: np.cumsum(sizes(kept))[:-1].tolist())
    return outputs


def _array_split(call: Call) -> list[np.ndarray]:
    """Parts that differ by at most one channel: those at the same place of all parts go together."""
    axis, outputs = axis_of(call, 0), move(call)
    if not call.is_opaque and varying(call, axis):
        first = np.moveaxis(outputs[0], axis, 0)
        for other in (np.moveaxis(ids, axis, 0) for ids in outputs[1:]):
            call.tie(first[: len(other)], other)
    return outputs


def _unstack(call: Call) -> list[np.ndarray]:
    """All parts lose the same channels, such as queries, keys and values."""
    ids, axis = call.inputs[0], axis_of(call, 0)
    if varying(call, axis):
        if ids.shape[axis] == ids.size:
            call.protect(ids, f"{call.described()} takes them apart")
        else:
            call.tie_groups(np.moveaxis(ids, axis, 0), ids.shape[axis])
    return move(call)


def _take(call: Call) -> list[np.ndarray]:
    """take and gather with indices that are known."""
    ids, axis, indices = call.inputs[0], axis_of(call), call.argument("indices")
    if not is_fixed(indices) or axis is None or axis < 0 or len(call.inputs) > 1:
        return unknown(call, "takes numbers of the batch, or at positions that are computed")
    outputs = move(call)
    if call.is_opaque or not varying(call, axis):
        return outputs
    places = np.asarray(indices) % ids.shape[axis]
    if places.ndim != 1:
        call.protect(ids, f"{call.described()} takes them one by one")
        return outputs

    def chosen(kept):
        left = kept_along(kept, ids)[axis]
        return like(np.searchsorted(left, places[np.isin(places, left)]), indices)

    call.resize("indices", chosen)
    call.part(outputs[0])
    return outputs


LAYERS: dict[str, LayerSpec] = {}

OPS: dict[str, LayerSpec] = {
    "getitem": moves(_getitem),
    "split": moves(_split),
    "arraysplit": moves(_array_split),
    "unstack": moves(_unstack),
    **dict.fromkeys(["take", "gather"], moves(_take)),
}
