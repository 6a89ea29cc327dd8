"""How layers pass on the dependence on the model's input, which constant folding propagates.

Each function takes a `SignalCall` and returns, for each output, where it depends on the input: bool of its shape.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer


@dataclasses.dataclass(eq=False)
class Signal:
    """A tensor in constant folding."""

    value: tf.Tensor  # for one random input
    varies: np.ndarray  # bool of the value's shape, where it depends on the input


@dataclasses.dataclass
class SignalCall:
    """A call of a layer or bare op in constant folding."""

    layer: KerasLayer
    args: tuple  # with a `Signal` for each tensor
    kwargs: dict
    inputs: list[Signal]  # the signals among the arguments
    channel_axis: Any  # of the first input, the batch included; None if the layer's rule reads no channels from it
    outputs: list[tf.Tensor]  # their values

    def along_channels(self, channels: np.ndarray, like: Any) -> np.ndarray:
        """Numbers [channels] laid along the channel axis, to be broadcast against arrays of the rank of `like`."""
        shape = np.ones(len(like.shape), int)
        shape[self.channel_axis] = -1
        return channels.reshape(shape)


def everywhere(call: SignalCall) -> list[np.ndarray]:
    """Every number depends on the input: for layers about which too little is known."""
    return [np.ones(output.shape, bool) for output in call.outputs]


def nowhere(call: SignalCall) -> list[np.ndarray]:
    """No number depends on the input."""
    return [np.zeros(output.shape, bool) for output in call.outputs]


def same_position(call: SignalCall) -> list[np.ndarray]:
    """A number depends on the input if the number at the same position of the first argument does."""
    return [call.inputs[0].varies]


def any_input(call: SignalCall) -> list[np.ndarray]:
    """A number depends on the input if one at the same position of any argument does."""
    masks = [signal.varies for signal in call.inputs]
    return [np.logical_or.reduce(np.broadcast_arrays(*masks, np.zeros(call.outputs[0].shape, bool)))]


def product(call: SignalCall) -> list[np.ndarray]:
    """As `any_input`, but zero times anything is zero."""
    (varies,) = any_input(call)
    for signal in call.inputs:
        varies = varies & (signal.varies | (np.asarray(signal.value) != 0))
    return [varies]


def moved(call: SignalCall) -> list[np.ndarray]:
    """The layer moves, adds up or takes the maximum of numbers: it is run on the masks themselves."""
    masks = _keras.call(call.layer, call.args, call.kwargs, Signal, lambda signal: signal.varies.astype(np.float32))
    return [np.asarray(mask) != 0 for mask in masks]


def scaled_by_gamma(call: SignalCall) -> list[np.ndarray]:
    """BatchNormalization: as `same_position`, but where gamma is zero the output is constant."""
    varies = call.inputs[0].varies
    if call.layer.gamma is None:
        return [varies]
    axes = np.atleast_1d(call.layer.axis) % varies.ndim
    return [varies & np.reshape(call.layer.gamma != 0, [n if i in axes else 1 for i, n in enumerate(varies.shape)])]


def zero_stays_zero(call: SignalCall) -> list[np.ndarray]:
    """RMSNormalization: a number that is zero stays zero, and where the scale is zero so is the output."""
    x = call.inputs[0]
    return [(x.varies | (np.asarray(x.value) != 0)) & (np.asarray(call.layer.scale) != 0)]


def table_rows(call: SignalCall) -> list[np.ndarray]:
    """Embedding: a channel depends on the input unless it is the same in all rows of the table."""
    table = call.layer.embeddings.numpy()
    return [np.broadcast_to((table != table[:1]).any(axis=0), call.outputs[0].shape)]
