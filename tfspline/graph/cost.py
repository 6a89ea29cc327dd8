"""The cost of a model: multiply-accumulates and floating-point operations of a prediction and of training."""

import dataclasses

from tfspline._keras.types import KerasModel
from tfspline._utils.checks import count
from tfspline.graph import reader as graph

BACKWARD = 2  # the backward pass costs about two forward passes: gradients of the inputs and of the weights


@dataclasses.dataclass(frozen=True)
class Flops:
    """The cost of one prediction.

    Attributes:
        layers: layer path -> (MACs, parameters), for one input.
        macs: multiply-accumulates of all convolutions and dense layers.
        flops: 2 x MACs.
        params: the number of parameters.
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


def flops(model: KerasModel) -> Flops:
    """Counts the MACs and FLOPs of each layer of a model for one input. FLOPs = 2 x MACs.

    The counts of convolutions and dense layers equal those of TensorFlow's profiler. As usual in the literature, the
    rest is not counted: biases, activations, normalization (which can be folded into the kernel before it), pooling,
    gates and residual adds. Layers that tfspline does not know count as zero.

    Args:
        model: a built functional or Sequential model of either Keras version, with a static input shape.

    Returns:
        A `Flops`; `print` shows it as a table.

    Raises:
        TypeError, ValueError: the model's graph cannot be read, or its input shape is not static.

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


def check_static(model: KerasModel) -> None:
    """Raises a ValueError if a size of the model's inputs is not known, since MACs depend on it."""
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"Expected a model with a static input shape, on which its MACs depend. Received: {model.name!r} with "
                f"an input of shape {tuple(tensor.shape)}; build it with fixed sizes."
            )


def training_flops(model: KerasModel, samples: int) -> int:
    """The FLOPs of training on `samples` inputs, each repetition counted: 3 x forward FLOPs x samples.

    The backward pass counts as two forward passes, as usual in the literature. The cost of a recipe is the sum over
    its phases, including the dense search.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> tfspline.training_flops(model, samples=10)  # 3 x 2 x 18 x 10
    1080
    """
    return (1 + BACKWARD) * flops(model).flops * count("samples", samples, least=0)
