"""`LayerSpec`: everything that tfspline knows about a layer class or a bare op."""

import dataclasses
from collections.abc import Callable

import numpy as np

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.dependence import everywhere
from tfspline.graph.piecewise import Activation

ChannelRule = Callable[[Call], "np.ndarray | list[np.ndarray]"]


def unknown(call: Call, why: str = "") -> list[np.ndarray]:
    """The channel rule of layers about which nothing is known: protects all their inputs and outputs."""
    if not why and _keras.op_name(call.layer) is None:
        why = why_unknown(call, call.layer)
    why = f"{call.described()} {why or 'is not an operation through which tfspline can follow channels'}"
    call.keep(why)
    for ids in call.inputs:
        call.protect(ids, why)
    return call.opaque()


def why_unknown(call: Call, layer: KerasLayer) -> str:
    """Why nothing is known about the layer that is called, or about one inside it, and the way out."""
    reason, other = _keras.why_not_unrolled(layer), call.shares_with()
    why = f"cannot be unrolled, as {reason}" if reason else "is not a layer that tfspline knows"
    if other:
        return f"{why}, and {other!r} uses its weights, too"
    if _keras.is_model(layer):
        return f"{why}; wrap each of its layers instead of all together"
    return f"{why}; describe it with tfspline.register_channel_rule({type(layer).__name__}, rule)"


def apply_rule(rule: ChannelRule, call: Call) -> list[np.ndarray]:
    """The channel ids that a rule returns, one array for each output; a ValueError names the layer of a wrong rule."""
    try:
        result = rule(call)
    except Exception as error:
        if str(error).startswith("The channel rule of "):
            raise
        call.refuse(f"failed with {type(error).__name__}: {error}")
    outputs = list(result) if isinstance(result, list | tuple) else [result]
    if result is None or len(outputs) != len(call.output_shapes):
        received = None if result is None else len(outputs)
        call.refuse(f"must return the channel ids of each output: {len(call.output_shapes)}. Received: {received}")
    outputs = [call.checked(ids, "its output") for ids in outputs]
    for ids, shape in zip(outputs, call.output_shapes, strict=True):
        if ids.ndim != len(shape) or any(n not in (1, size) for n, size in zip(ids.shape, shape, strict=True)):
            if call.may_change_width:
                return call.opaque()
            call.refuse(f"must return ids that fit the output, {shape}, or have length 1. Received: {ids.shape}")
    return outputs


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How a layer with a kernel computes its output channels from its input channels.

    `response(layer, transform)`, float64 [inputs, outputs], says how much each output changes if an input channel grows
    by 1 at all positions: the sum over the positions of the kernel, of which each entry is transformed first. A
    transposed convolution does not apply all positions everywhere, so its sum is a mean.
    """

    response: Callable[[KerasLayer, Callable], np.ndarray]
    mixes: bool = True  # whether each output reads several inputs, so that constant inputs can be folded into the bias
    sees_padding: Callable[[KerasLayer], bool] = lambda layer: True  # whether outputs at the border read padding
    is_hyperplane: bool = False  # whether a column of the kernel [..., inputs, outputs] is normal to a unit's boundary
    refittable: bool = False  # whether compensation can refit it


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """Everything that tfspline knows about a layer class or a bare op.

    The defaults describe a layer about which nothing is known. Only `rule` is needed to prune through a layer.

    Attributes:
        rule: the channel rule: declares which weights belong to which channels, and the MACs; returns the channel ids
            of the output. See `tfspline.graph.call.Call`.
        affine: whether the layer is an affine function of its inputs, apart from its own activation; for a bare op
            that depends on its arguments a predicate of the `Node`.
        activation: layer, or for a bare op `Node`, -> the `Activation` that it is. None for layers that are not
            activations; their `activation` attribute is looked at in any case.
        elementwise: whether each number of the output depends only on the numbers at the same position of the inputs.
        adds: whether the output is the sum of the inputs.
        kernel: how the kernel combines channels; None for layers without one.
        dependence: how the output depends on the model's input if some numbers that the layer reads do not
            (`dependence.py`).
        reads_own: the weight by which the layer reads units of its own, such as heads, before its output; None without.
        float64: (layer, input) -> output in float64, if the layer itself does not run or is not needed in float64.
    """

    rule: ChannelRule = unknown
    affine: bool | Callable[[_keras.Node], bool] = False
    activation: Callable[[KerasLayer | _keras.Node], Activation | None] | None = None
    elementwise: bool = False
    adds: bool = False
    kernel: Kernel | None = None
    dependence: Callable = everywhere
    reads_own: str | None = None
    float64: Callable | None = None

    def is_affine(self, node: _keras.Node) -> bool:
        """Whether a call of such a layer or op is affine, apart from its own activation."""
        return self.affine(node) if callable(self.affine) else self.affine


def each_dimension(*names: str, dimensions: tuple[int, ...] = (1, 2, 3)) -> list[str]:
    """The names of layer classes in each number of dimensions: "Conv" -> ["Conv1D", "Conv2D", "Conv3D"]."""
    return [f"{name}{n}D" for name in names for n in dimensions]
