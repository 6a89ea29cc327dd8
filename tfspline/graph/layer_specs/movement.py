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


def varying(call: Call, axis: Any) -> bool:
    """Whether there are different channels along an axis of the first input."""
    return axis is not None and axis >= 0 and call.inputs[0].shape[axis] > 1


def name_of(call: Call, *names: str) -> str:
    """The name that the op has for one of its arguments."""
    return next(name for name in names if call.argument(name) is not None)


def like(value: Any, example: Any) -> Any:
    """An array of integers in the form of an argument."""
    if tf.is_tensor(example):
        return tf.convert_to_tensor(value, example.dtype)
    return np.asarray(value, example.dtype) if hasattr(example, "dtype") else type(example)(np.asarray(value).tolist())


def _stack(call: Call) -> list[np.ndarray]:
    """Puts tensors side by side along a new axis. Numbers at the same position of all of them go together."""
    values = call.argument(name_of(call, "x", "values"))
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


def _squeeze(call: Call) -> list[np.ndarray]:
    """Without an axis, it would also drop the axis of channels if a cut leaves one."""
    outputs, ids = move(call), call.inputs[0]
    if not call.is_opaque and call.argument("axis") in (None, []) and ids.size > 1:
        axes = [i for i, n in enumerate(call.shape()) if n == 1]
        call.resize("axis", lambda kept: tuple(i + 1 for i, _ in enumerate(kept_along(kept, ids)) if i in axes))
    return outputs


def _pad(call: Call) -> np.ndarray | list[np.ndarray]:
    """Channels that padding adds are new ones, and go with those that they are added to."""
    name, ids = name_of(call, "pad_width", "paddings"), call.inputs[0]
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
    if any(varying(call, a) for a in axes):

        def new(kept):
            shifts = np.broadcast_to(np.array(shift), len(axes)).tolist()
            for i, a in enumerate(axes):
                if varying(call, a):
                    size = ids.shape[a]
                    shifts[i] = int((kept_along(kept, ids)[a] >= size - shifts[i] % size).sum())
            return shifts if np.ndim(shift) else shifts[0]

        call.resize("shift", new)
    return outputs


def _repeat(call: Call) -> list[np.ndarray]:
    """Each channel as often as it is repeated."""
    ids, axis, outputs = call.inputs[0], axis_of(call), move(call)
    repeats = call.argument("repeats")
    if not call.is_opaque and varying(call, axis) and np.size(repeats) > 1:
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
    if not varying(call, axis):
        return ids
    first, gates = np.split(ids, 2, axis)
    call.tie(first, gates)
    return first


def _shape(call: Call) -> np.ndarray:
    """The sizes of a tensor, which must not be those of channels if they are read as numbers."""
    return call.sizes_as_numbers()


def moves(rule: Callable) -> LayerSpec:
    """The spec of an op that only moves numbers."""
    return LayerSpec(rule, affine=True, dependence=moved)


_PLAIN = [
    *("expanddims", "tile", "flip", "reverse", "moveaxis", "swapaxes", "permutedims", "transpose"),
    *("matrixtranspose", "spacetodepth"),
]

LAYERS: dict[str, LayerSpec] = {}

OPS: dict[str, LayerSpec] = {
    **dict.fromkeys(_PLAIN, moves(move)),
    "shape": LayerSpec(_shape),
    "stack": moves(_stack),
    "squeeze": moves(_squeeze),
    "pad": moves(_pad),
    "roll": moves(_roll),
    "repeat": moves(_repeat),
    "broadcastto": moves(_broadcast_to),
    "depthtospace": moves(_depth_to_space),
}
