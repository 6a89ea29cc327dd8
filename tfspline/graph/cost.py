"""What a model costs: multiply-accumulates and floating-point operations, of one prediction and of a training."""

import dataclasses
from typing import Any

from tfspline._utils.checks import count
from tfspline.graph import reader as graph

BACKWARD = 2  # the backward pass costs about twice the forward pass: gradients of inputs and of weights


@dataclasses.dataclass(frozen=True)
class Flops:
    """The cost of one prediction.

    Attributes:
        layers: layer path -> (MACs, parameters), for one input.
        macs: multiply-accumulates in all: those of convolutions and dense layers, as the field counts them.
        flops: 2 x MACs.
        params: numbers in all weights.
    """

    layers: dict[str, tuple[int, int]]
    macs: int
    flops: int
    params: int

    def __str__(self):
        width = max(map(len, self.layers))
        lines = [f"{'layer':<{width}}  {'MACs':>14}  {'FLOPs':>14}  {'params':>12}"]
        rows = [*self.layers.items(), ("total (FLOPs = 2 x MACs)", (self.macs, self.params))]
        lines += [f"{name:<{width}}  {macs:>14,}  {2 * macs:>14,}  {params:>12,}" for name, (macs, params) in rows]
        return "\n".join(lines)


def flops(model: Any) -> Flops:
    """Counts MACs and FLOPs of a model, layer by layer, for one input; FLOPs = 2 x MACs.

    Args:
        model: a built functional or Sequential model of either Keras, with a static input shape.

    Returns:
        A `Flops`; `print` shows it as a table.

    Raises:
        TypeError, ValueError: the model's graph cannot be read, or a size of its input is not known.

    What a convolution or dense layer does is counted, to the operation as TensorFlow's own profiler counts it. The
    rest is not, as is usual in the field: biases, activations, normalisations (which can be folded into the kernel
    before them), pooling, gates and residual adds; nor is anything that a layer unknown to tfspline does.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> tfspline.flops(model).macs  # 4 x 3 + 3 x 2
    18
    """
    read = graph.read(model)
    check_static(model)
    macs, params = read.macs(), read.params()
    layers = {path: (macs.get(path, 0), params[path]) for path in params if params[path] or macs.get(path)}
    total = sum(macs.values())
    return Flops(layers, total, 2 * total, sum(params.values()))


def check_static(model: Any) -> None:
    """Raises a ValueError if a size of the model's inputs, which MACs depend on, is not known."""
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"Expected a model with a static input shape, which its MACs depend on. Received: {model.name!r} with "
                f"an input of shape {tuple(tensor.shape)}; build it with a given one."
            )


def training_flops(model: Any, samples: int) -> int:
    """FLOPs of training on `samples` inputs, repeats counted: 3 x forward FLOPs x samples.

    The backward pass counts as two forward passes, as is usual in the field. A recipe's cost is the sum over its
    phases, the dense search included.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> tfspline.training_flops(model, samples=10)  # 3 x 2 x 18 x 10
    1080
    """
    return (1 + BACKWARD) * flops(model).flops * count("samples", samples, least=0)
