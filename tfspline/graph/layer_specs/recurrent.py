"""Recurrent layers: LSTM, GRU, SimpleRNN, RNN with such cells, Bidirectional, ConvLSTM.

A unit owns a column of each gate, at the positions i, u + i, 2 u + i ... of u units, and a row of the recurrent kernel.
Without these nothing reads its state any more, whatever the state is. States that are passed in or out are tied to the
units.
"""

import math

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.activations import activated
from tfspline.graph.layer_specs.spec import LayerSpec, each_dimension, unknown

_CELLS = {  # the number of gates, that of states, and the config entry that holds the number of units
    "LSTMCell": (4, 2, "units"),
    "GRUCell": (3, 1, "units"),
    "SimpleRNNCell": (1, 1, "units"),
    "ConvLSTMCell": (4, 2, "filters"),
}
_WITH_CELL = ("LSTM", "GRU", "SimpleRNN", *each_dimension("ConvLSTM"))  # layers whose config is also that of the cell
_KNOWN = (*_WITH_CELL, "RNN")


def _recurrent(call: Call) -> list[np.ndarray]:
    """A layer that applies a cell, or several in a row, at each step."""
    why = _why_unknown(call.layer)
    if why:
        return unknown(call, why)
    units, states = _units(call)
    return _checked_states(call, [_laid(call, call.layer, units, call.layer.return_sequences)], units, states)


def _bidirectional(call: Call) -> list[np.ndarray]:
    """Two recurrent layers that read the same input, one of them backwards. Keras wants them to be equally wide."""
    sides = [call.layer.forward_layer, call.layer.backward_layer]
    why = next(filter(None, map(_why_unknown, sides)), None)
    sizes = [tf.nest.flatten(side.cell.state_size) for side in sides if not why]
    if why or sizes[0] != sizes[1]:
        return unknown(call, why or "holds two layers of different sizes")
    given = "layer" if hasattr(call.layer, "layer") else "forward_layer"  # in tf_keras, the config is that of `layer`
    if given == "layer" and _keras.is_called(call.layer.layer):
        return unknown(call, f"was made from {call.layer.layer.name!r}, which is called directly, too")
    (units, states), (backward, more) = _units(call, "forward_layer.", given), _units(call, "backward_layer.")
    call.tie(units, backward)
    outputs = [_laid(call, sides[0], part, call.layer.return_sequences) for part in (units, backward)]
    if call.layer.merge_mode == "concat":
        outputs = [np.concatenate(outputs, axis=-1)]
    return _checked_states(call, outputs[: None if call.layer.merge_mode is None else 1], units, [*states, *more])


def _why_unknown(layer):
    """Why nothing is known about a recurrent layer; None if its units are."""
    if _keras.builtin_class_name(layer) not in _KNOWN:
        return f"holds a {type(layer).__name__}, not one of {', '.join(_KNOWN)}"
    cells = getattr(layer.cell, "cells", [layer.cell])
    if len({*map(id, cells)}) < len(cells):
        return "applies one cell twice, and a copy with other sizes would have two"
    for cell in cells:
        if _keras.builtin_class_name(cell) not in _CELLS:
            return f"applies a {type(cell).__name__}, not one of {', '.join(_CELLS)}"
    return None


def _units(call, path="", given=None):
    """The units of the last cell in the layer at `path`, and those of all states, one cell after the other. `given` is
    the path of the layer whose config counts."""
    layer = _keras.weight(call.layer, path[:-1]) if path else call.layer
    cells = [f"{path}cell"]
    if hasattr(layer.cell, "cells"):
        cells = [f"{path}cell.cells.{i}" for i in range(len(layer.cell.cells))]
    inputs, states = call.channels(axis=1 if _channels_first(layer) else -1), []
    for cell in cells:
        owner = path if _keras.builtin_class_name(layer) in _WITH_CELL else f"{cell}."
        owner = owner.replace("forward_layer", given or "", 1)
        inputs = _cell(call, cell, owner, inputs)
        states += [inputs] * _CELLS[_keras.builtin_class_name(_keras.weight(call.layer, cell))][1]
    return inputs, states


def _cell(call, path, owner, inputs):
    """Declares the weights of the cell at `path`, which reads `inputs`; `owner` is what has its config."""
    cell = _keras.weight(call.layer, path)
    gates, _, size = _CELLS[_keras.builtin_class_name(cell)]
    call.consume(f"{path}.kernel", -2, inputs)
    units = call.produce(f"{path}.kernel", -1, gates)
    call.consume(f"{path}.recurrent_kernel", -2, units)
    for weight in ("recurrent_kernel", "bias"):
        call.per_channel(f"{path}.{weight}", -1, np.tile(units, gates))
    call.resize(f"{owner}{size}", lambda kept: int(kept[units].sum()))
    for weight in ("kernel", "recurrent_kernel"):
        call.macs(f"{path}.{weight}", _positions(call, cell))
    for name in ("activation", "recurrent_activation"):
        activated(call, units, cell, name)
    return units


def _positions(call, cell):
    """How often a cell is applied: at each step, and for a convolution at each position."""
    sizes = [*call.sizes(0)[:2]]
    if hasattr(cell, "rank"):  # of a convolution
        space = list(call.sizes()[-cell.rank - 1 :])
        del space[0 if _channels_first(cell) else -1]
        sizes += space
    return None if None in sizes else math.prod(sizes) // call.batch


def _channels_first(layer):
    return getattr(layer, "data_format", None) == "channels_first"


def _laid(call, layer, units, over_time=False):
    """The units along the channel axis of an output or state."""
    rank = getattr(layer.cell, "rank", 0)
    return units.reshape([1] * over_time + ([-1, *[1] * rank] if _channels_first(layer) else [*[1] * rank, -1]))


def _checked_states(call, outputs, units, states):
    """The outputs and, if they are returned, the states. Ties those that the layer starts from."""
    cell = getattr(call.layer, "forward_layer", call.layer)
    if getattr(call.layer, "stateful", False):
        call.protect(units, f"{call.described()} is stateful: it keeps a state from one call to the next")
    mask = call.input("mask")
    given = [ids for i, ids in enumerate(call.inputs[1:], start=1) if i != mask]
    if mask is not None:
        call.protect(call.inputs[mask], f"{call.described()} uses it as a mask")
    if any(np.ndim(value) for value in call.constants().values()):
        call.protect(np.concatenate(states), f"{call.described()} starts from a constant")
    laid = [_laid(call, cell, state) for state in states]
    if given and [ids.shape for ids in given] != [ids.shape for ids in laid]:
        for ids in (*given, *states):
            call.protect(ids, f"{call.described()} starts from it")
    else:
        for ids, state in zip(given, laid, strict=False):
            call.tie(ids, state)
    return [*outputs, *laid] if call.layer.return_state else outputs


LAYERS: dict[str, LayerSpec] = {
    **dict.fromkeys(_KNOWN, LayerSpec(_recurrent)),
    "Bidirectional": LayerSpec(_bidirectional),
}
