"""Bare ops that only move numbers: the channel ids are moved by running the op on them.

Where an argument says how many channels there are, or which, it is computed anew from the kept ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline.graph.call import Call, Flow, kept_along
from tfspline.graph.layer_specs.dependence import moved
from tfspline.graph.layer_specs.spec import LayerSpec, unknown

_OPEN = 97  # stands for a size that is not known; what the op does to channels does not depend on it


def moved_ids(call: Call) -> list[np.ndarray] | None:
    """The ids of the outputs, found by running the op on ids; None if it cannot be run or mixes inputs of a batch."""
    batch = call.sizes(0)[0] or 2
    batch = 2 if batch == 1 and call.batch == 1 else batch
    step = 1 + max(int(ids.max()) for ids in call.inputs)  # the ids of the second input of the batch are others
    values = []
    for i, ids in enumerate(call.inputs):
        sizes = [static or size or _OPEN for static, size in zip(call.shape(i), call.sizes(i)[1:], strict=True)]
        whole = np.broadcast_to(ids, sizes)
        values.append(tf.constant(np.stack([whole + step * n for n in range(batch)])))
    try:
        outputs = [np.asarray(output) for output in call.run(values)]
    except Exception:  # whatever the op raises for another batch size or for integers
        return None
    offsets = step * np.arange(batch)
    for output, shape in zip(outputs, call.output_shapes, strict=True):
        if output.ndim != len(shape) + 1 or len(output) != batch or not output.size:
            return None
        if (output != output[:1] + offsets.reshape(-1, *[1] * len(shape))).any():
            return None
    return [compressed(output[0]) for output in outputs]


def compressed(ids: np.ndarray) -> np.ndarray:
    """Ids without repetitions along the axes on which they do not vary."""
    for axis in range(ids.ndim):
        if ids.shape[axis] > 1 and (ids == ids.take([0], axis)).all():
            ids = ids.take([0], axis)
    return ids


def move(call: Call) -> list[np.ndarray]:
    """Moves ids as the op moves numbers."""
    outputs = moved_ids(call)
    return unknown(call, "moves the batch, or in a way that tfspline cannot follow") if outputs is None else outputs


def is_fixed(value: Any) -> bool:
    """Whether an argument holds no tensor of the model."""
    return not any(isinstance(part, Flow) for part in tf.nest.flatten(value))


def axis_of(call: Call, default: int | None = None) -> Any:
    """The argument `axis` as an axis of the ids, with the batch at -1; None if there is none."""
    axis = call.argument("axis")
    axis = default if axis is None else axis
    return None if axis is None else int(np.ravel(axis)[0]) % (len(call.shape()) + 1) - 1


def _varying(call: Call, axis: Any) -> bool:
    return axis is not None and axis >= 0 and call.inputs[0].shape[axis] > 1


def _name(call: Call, *names: str) -> str:
    """The name that the op has for one of its arguments."""
    return next(name for name in names if call.argument(name) is not None)


def _like(value: Any, example: Any) -> Any:
    """An array of integers in the form of an argument."""
    if tf.is_tensor(example):
        return tf.convert_to_tensor(value, example.dtype)
    return np.asarray(value, example.dtype) if hasattr(example, "dtype") else type(example)(np.asarray(value).tolist())


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
    name = _name(call, "key", "slice_spec")
    given = call.argument(name)
    if not call.inputs[0].ndim and len(call.inputs) == 1:  # of the sizes of a tensor
        call.read_sizes(given)
        return call.opaque()
    key = list(given) if isinstance(given, tuple | list) else [given]
    if not is_fixed(given) or any(np.ndim(part) for part in key if not isinstance(part, dict)):
        return unknown(call, "takes positions that are computed, or listed in an array")
    changed = {}
    for axis, i in _subkeys(call, key).items():
        if _varying(call, axis):
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
    name, axis = _name(call, "indices_or_sections", "num_or_size_splits"), axis_of(call, 0)
    outputs = move(call)
    if call.is_opaque or not _varying(call, axis) or len(outputs) == 1:
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
    if not call.is_opaque and _varying(call, axis):
        first = np.moveaxis(outputs[0], axis, 0)
        for other in (np.moveaxis(ids, axis, 0) for ids in outputs[1:]):
            call.tie(first[: len(other)], other)
    return outputs


def _unstack(call: Call) -> list[np.ndarray]:
    axis = axis_of(call, 0)
    if _varying(call, axis):
        call.protect(call.inputs[0], f"{call.described()} takes them apart")
    return move(call)


def _take(call: Call) -> list[np.ndarray]:
    """take and gather with indices that are known."""
    ids, axis, indices = call.inputs[0], axis_of(call), call.argument("indices")
    if not is_fixed(indices) or axis is None or axis < 0 or len(call.inputs) > 1:
        return unknown(call, "takes numbers of the batch, or at positions that are computed")
    outputs = move(call)
    if call.is_opaque or not _varying(call, axis):
        return outputs
    places = np.asarray(indices) % ids.shape[axis]
    if places.ndim != 1:
        call.protect(ids, f"{call.described()} takes them one by one")
        return outputs

    def chosen(kept):
        left = kept_along(kept, ids)[axis]
        return _like(np.searchsorted(left, places[np.isin(places, left)]), indices)

    call.resize("indices", chosen)
    call.part(outputs[0])
    return outputs


def _stack(call: Call) -> list[np.ndarray]:
    """Puts tensors side by side along a new axis. Numbers at the same position of all of them go together."""
    values = call.argument(_name(call, "x", "values"))
    inputs = [value for value in values if isinstance(value, Flow)]
    if len(inputs) < len(values):
        return unknown(call, "joins them with a constant")
    axis = int(call.argument("axis") or 0) % (len(call.shape()) + 2) - 1
    outputs = move(call)
    if call.is_opaque or outputs[0].shape[axis] == 1:
        return outputs
    rows = np.moveaxis(outputs[0], axis, 0)
    call.tie_groups(rows, len(rows))
    return [outputs[0].take([0], axis)]


# ---- sizes


def _squeeze(call: Call) -> list[np.ndarray]:
    """Without an axis, it would also drop an axis of which a cut leaves one channel."""
    outputs, ids, axis = move(call), call.inputs[0], call.argument("axis")
    varying = [i for i, n in enumerate(ids.shape) if n > 1]
    if not call.is_opaque and axis in (None, []) and varying:
        axes = [i + 1 for i, n in enumerate(call.shape()) if n == 1]
        call.resize("axis", lambda kept: axes if kept[ids].any() else axes)
    return outputs


def _pad(call: Call) -> np.ndarray | list[np.ndarray]:
    """Channels that padding adds are new ones, and go with those that they are added to."""
    name, ids = _name(call, "pad_width", "paddings"), call.inputs[0]
    given = call.argument(name)
    if not is_fixed(given):
        return unknown(call, "pads by a width that is computed")
    widths = np.broadcast_to(np.asarray(given), (ids.ndim + 1, 2)).copy()
    axes = [axis for axis in range(ids.ndim) if ids.shape[axis] > 1 and widths[axis + 1].any()]
    if widths[0].any():
        return unknown(call, "pads the batch")
    if axes and str(call.argument("mode") or "constant").lower() != "constant":
        return unknown(call, "repeats some of them at the border")
    blocks = {}
    for axis in axes:
        before, after = (call.fresh((*ids.shape[:axis], int(n), *ids.shape[axis + 1 :])) for n in widths[axis + 1])
        ids = np.concatenate([before, ids, after], axis)
        blocks[axis] = before, after
    if axes:

        def new(kept):
            for axis, pair in blocks.items():
                widths[axis + 1] = [len(kept_along(kept, block)[axis]) for block in pair]
            return [(int(before), int(after)) for before, after in widths]

        call.resize(name, new)
    return ids


def _roll(call: Call) -> list[np.ndarray]:
    """Along the axis of channels, as many are rolled over as stay of those that were."""
    ids, outputs = call.inputs[0], move(call)
    if call.is_opaque:
        return outputs
    shift, axis = call.argument("shift"), call.argument("axis")
    axes = [int(a) % (ids.ndim + 1) - 1 for a in np.ravel(axis)]
    if any(_varying(call, a) for a in axes):

        def new(kept):
            shifts = np.broadcast_to(np.array(shift), len(axes)).tolist()
            for i, a in enumerate(axes):
                if _varying(call, a):
                    size = ids.shape[a]
                    shifts[i] = int((kept_along(kept, ids)[a] >= size - shifts[i] % size).sum())
            return shifts if np.ndim(shift) else shifts[0]

        call.resize("shift", new)
    return outputs


def _repeat(call: Call) -> list[np.ndarray]:
    """Each channel as often as it is repeated."""
    ids, axis, outputs = call.inputs[0], axis_of(call), move(call)
    repeats = call.argument("repeats")
    if not call.is_opaque and _varying(call, axis) and np.size(repeats) > 1:
        call.cut_constant(("repeats",), ids, {0: axis})
    return outputs


def _broadcast_to(call: Call) -> list[np.ndarray]:
    outputs, shape = move(call), call.argument("shape")
    axes = [axis for axis, n in enumerate(outputs[0].shape) if n > 1]
    if call.is_opaque or not axes:
        return outputs

    def new(kept):
        sizes = [len(places) for places in kept_along(kept, outputs[0])]
        return [sizes[i - 1] if i - 1 in axes else n for i, n in enumerate(shape)]

    call.resize("shape", new)
    return outputs


def _depth_to_space(call: Call) -> list[np.ndarray]:
    """Channels that become neighbours in space go together."""
    outputs = move(call)
    if call.is_opaque:
        return outputs
    axis = 0 if call.argument("data_format") in ("channels_first", "NCHW") else -1
    ids = np.moveaxis(outputs[0], axis, -1)
    row = call.tie_groups(ids, ids.size // ids.shape[-1])
    return [call.place(row, axis)]


def glu(call: Call) -> np.ndarray:
    """Half of the channels are gates of the other half."""
    axis, ids = axis_of(call, -1), call.inputs[0]
    if not _varying(call, axis):
        return ids
    first, gates = np.split(ids, 2, axis)
    call.tie(first, gates)
    return first


def _shape(call: Call) -> np.ndarray:
    """The sizes of a tensor, which must not be those of channels if they are read as numbers."""
    return call.sizes_as_numbers()


def _moves(rule: Callable) -> LayerSpec:
    return LayerSpec(rule, affine=True, dependence=moved)


_PLAIN = [
    *("expanddims", "tile", "flip", "reverse", "moveaxis", "swapaxes", "permutedims", "transpose"),
    *("matrixtranspose", "spacetodepth"),
]

LAYERS: dict[str, LayerSpec] = {}

OPS: dict[str, LayerSpec] = {
    **dict.fromkeys(_PLAIN, _moves(move)),
    "shape": LayerSpec(_shape),
    "getitem": _moves(_getitem),
    "split": _moves(_split),
    "arraysplit": _moves(_array_split),
    "unstack": _moves(_unstack),
    **dict.fromkeys(["take", "gather"], _moves(_take)),
    "stack": _moves(_stack),
    "squeeze": _moves(_squeeze),
    "pad": _moves(_pad),
    "roll": _moves(_roll),
    "repeat": _moves(_repeat),
    "broadcastto": _moves(_broadcast_to),
    "depthtospace": _moves(_depth_to_space),
}
