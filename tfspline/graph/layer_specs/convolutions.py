"""Dense layers and convolutions."""

import functools
from collections.abc import Callable

import numpy as np
import scipy.linalg

from tfspline._keras.types import KerasLayer
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.activations import activated
from tfspline.graph.layer_specs.dependence import SignalCall
from tfspline.graph.layer_specs.spec import Kernel, LayerSpec, each_dimension


def _produce(call: Call, weight: str, axis: int, size: str = "filters") -> np.ndarray:
    """Produces the output channels, with a bias; `size` is the config entry that holds their number."""
    outputs = call.produce(weight, axis)
    call.per_channel("bias", 0, outputs)
    call.resize(size, lambda kept: int(kept[outputs].sum()))
    return outputs


def _dense(call: Call) -> np.ndarray:
    """Mixes the channels of the last axis."""
    call.consume("kernel", 0, call.channels())
    outputs = _produce(call, "kernel", 1, "units")
    call.macs("kernel", call.positions())
    return activated(call, call.place(outputs))


def _conv(call: Call) -> np.ndarray:
    """Conv1D/2D/3D, grouped or not: kernel [*window, inputs / groups, outputs]."""
    inputs, groups = call.channels(axis=call.channel_axis()), call.layer.groups
    outputs = _produce(call, "kernel", -1)
    call.macs("kernel", call.positions())
    if groups == 1:
        call.consume("kernel", -2, inputs)
    elif groups == inputs.size:  # each group is one channel, which is removed with all that is computed from it
        call.tie(np.repeat(inputs, outputs.size // groups), outputs)
        call.resize("groups", lambda kept: int(kept[inputs].sum()))
    else:  # all groups must stay equally wide, so the same position of every group is removed together
        columns = call.tie_groups(inputs, groups)
        call.tie_groups(outputs, groups)
        call.consume("kernel", -2, columns)
    return activated(call, call.place(outputs))


def _conv_transpose(call: Call) -> np.ndarray:
    """Conv1D/2D/3DTranspose: kernel [*window, outputs, inputs]."""
    call.consume("kernel", -1, call.channels(axis=call.channel_axis()))
    outputs = _produce(call, "kernel", -2)
    call.macs("kernel", call.positions(0))
    return activated(call, call.place(outputs))


def _depthwise(call: Call) -> np.ndarray:
    """DepthwiseConv1D/2D: computes `depth_multiplier` channels from each channel and mixes none."""
    weight = _depthwise_weight(call.layer)
    inputs = call.channels(axis=call.channel_axis())
    call.per_channel(weight, -2, inputs)
    outputs = np.repeat(inputs, call.layer.depth_multiplier)
    call.per_channel("bias", 0, outputs)
    call.macs(weight, call.positions())
    return activated(call, call.place(outputs))


def _separable(call: Call) -> np.ndarray:
    """SeparableConv1D/2D: a depthwise convolution and a pointwise one that mixes channels."""
    inputs = call.channels(axis=call.channel_axis())
    call.per_channel("depthwise_kernel", -2, inputs)
    call.consume("pointwise_kernel", -2, np.repeat(inputs, call.layer.depth_multiplier))
    outputs = _produce(call, "pointwise_kernel", -1)
    for weight in ("depthwise_kernel", "pointwise_kernel"):
        call.macs(weight, call.positions())
    return activated(call, call.place(outputs))


def _depthwise_weight(layer):
    return "depthwise_kernel" if hasattr(layer, "depthwise_kernel") else "kernel"


def _summed(layer: KerasLayer, weight: str, transform: Callable) -> np.ndarray:
    """A kernel, transformed entry by entry and summed over its window: float64, its last two axes."""
    kernel = transform(getattr(layer, weight).numpy().astype(np.float64))
    return kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)


def _conv_response(layer: KerasLayer, transform: Callable) -> np.ndarray:
    kernel = _summed(layer, "kernel", transform)
    return scipy.linalg.block_diag(*np.split(kernel, getattr(layer, "groups", 1), axis=1))


def _transpose_response(layer: KerasLayer, transform: Callable) -> np.ndarray:
    return _summed(layer, "kernel", transform).T / np.prod(layer.strides)


def _depthwise_response(layer: KerasLayer, transform: Callable) -> np.ndarray:
    kernel = _summed(layer, _depthwise_weight(layer), transform)
    return scipy.linalg.block_diag(*kernel[:, None])


def _separable_response(layer: KerasLayer, transform: Callable) -> np.ndarray:
    return _depthwise_response(layer, transform) @ _summed(layer, "pointwise_kernel", transform)


def _through_kernel(response: Callable, call: SignalCall) -> list[np.ndarray]:
    """A channel depends on the input if the kernel reads one that does, at any position."""
    varies = np.moveaxis(call.inputs[0].varies, call.channel_axis, -1)
    channels = varies.reshape(-1, varies.shape[-1]).any(axis=0) @ response(call.layer, np.abs).astype(bool)
    return [np.broadcast_to(call.along_channels(channels, output), output.shape) for output in call.outputs]


def _is_point(layer):
    return set(layer.kernel_size) == {1}


def _conv_sees_padding(layer: KerasLayer) -> bool:
    return not _is_point(layer) and layer.padding != "valid"


def _transpose_sees_padding(layer: KerasLayer) -> bool:
    """Also a gap between the inputs counts as padding."""
    return not _is_point(layer) or set(layer.strides) != {1}


def _spec(rule: Callable, kernel: Kernel) -> LayerSpec:
    return LayerSpec(rule, affine=True, kernel=kernel, dependence=functools.partial(_through_kernel, kernel.response))


_DENSE = Kernel(_conv_response, sees_padding=lambda layer: False, is_hyperplane=True, refittable=True)
_CONV = Kernel(_conv_response, sees_padding=_conv_sees_padding, is_hyperplane=True, refittable=True)

LAYERS: dict[str, LayerSpec] = {
    "Dense": _spec(_dense, _DENSE),
    **dict.fromkeys(each_dimension("Conv"), _spec(_conv, _CONV)),
    **dict.fromkeys(
        (f"{name}Transpose" for name in each_dimension("Conv")),
        _spec(_conv_transpose, Kernel(_transpose_response, sees_padding=_transpose_sees_padding)),
    ),
    **dict.fromkeys(
        each_dimension("SeparableConv", dimensions=(1, 2)),
        _spec(_separable, Kernel(_separable_response, sees_padding=_conv_sees_padding)),
    ),
    **dict.fromkeys(
        each_dimension("DepthwiseConv", dimensions=(1, 2)), _spec(_depthwise, Kernel(_depthwise_response, mixes=False))
    ),
}
