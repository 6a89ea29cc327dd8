"""The cost of a model: multiply-accumulates and floating-point operations of a prediction and of training."""

import dataclasses

from tfspline._keras.types import InputShape, KerasModel
from tfspline._utils.checks import count
from tfspline.graph import reader as graph
from tfspline.graph.structure import unknown_lines
from tfspline.graph.unrolling import functional

BACKWARD = 2  # the backward pass costs about two forward passes: gradients of the inputs and of the weights


@dataclasses.dataclass(frozen=True)
class Flops:
    """The cost of one prediction.

    Attributes:
        layers: layer path -> (MACs, parameters), for one input.
        macs: multiply-accumulates of all convolutions and dense layers.
        flops: 2 x MACs.
        params: the number of parameters.
        unknown: path of a layer with work that could not be counted -> why. If there are any, the true MACs are more.
    """

    layers: dict[str, tuple[int, int]]
    macs: int
    flops: int
    params: int
    unknown: dict[str, str]

    def __str__(self):
        total = "at least (FLOPs = 2 x MACs)" if self.unknown else "total (FLOPs = 2 x MACs)"
        rows = [*self.layers.items(), (total, (self.macs, self.params))]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'layer':<{width}}  {'MACs':>14}  {'FLOPs':>14}  {'params':>12}"]
        lines += [f"{name:<{width}}  {macs:>14,}  {2 * macs:>14,}  {params:>12,}" for name, (macs, params) in rows]
        return "\n".join([*lines, *unknown_lines(self.unknown)])


def flops(model: KerasModel, input_shape: InputShape = None) -> Flops:
    """Counts the MACs and FLOPs of each layer of a model for one input. FLOPs = 2 x MACs.

    The counts of convolutions and of products of matrices (dense, recurrent and attention layers, `matmul`, `einsum`)
    equal those of TensorFlow's profiler. As usual in the literature, the rest is not counted: biases, activations,
    normalization (which can be folded into the kernel before it), pooling, gates and residual adds. Custom layers and
    wrappers are traced for one input, and the products inside are counted. Work for which that is impossible, such as
    Python code or a loop whose number of steps depends on data, is listed in `unknown`.

    Args:
        model: a built functional or Sequential model of either Keras version.
        input_shape: the shape of one input, without the batch: a tuple of integers, or a list or dict of tuples for
            several inputs. Needed if the model leaves sizes open.

    Returns:
        A `Flops`; `print` shows it as a table.

    Raises:
        TypeError, ValueError: the model's graph cannot be read, or a size of its inputs is not known.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> tfspline.flops(model).macs  # 4 x 3 + 3 x 2
    18
    """
    model = functional(model)
    read = graph.read(model, input_shape=input_shape)
    check_static(model, read.input_shapes)
    macs, params = read.macs(), read.params()
    layers = {path: (macs.get(path, 0), params.get(path, 0)) for path in {**params, **macs}}
    total = sum(macs.values())
    return Flops(
        {path: counts for path, counts in layers.items() if any(counts)},
        total,
        2 * total,
        sum(params.values()),
        read.unknown,
    )


def check_static(model: KerasModel, shapes: list[tuple]) -> None:
    """Raises a ValueError if a size in `shapes`, those of the model's inputs, is not known."""
    if any(None in shape for shape in shapes):
        example = [tuple(size or 64 for size in shape) for shape in shapes]
        raise ValueError(
            f"Expected a model with a static input shape. Received: {model.name!r} with inputs of shape {shapes}. Give "
            f"the argument `input_shape`, such as input_shape={example[0] if len(example) == 1 else example}."
        )


def training_flops(model: KerasModel, samples: int, input_shape: InputShape = None) -> int:
    """The FLOPs of training on `samples` inputs, each repetition counted: 3 x forward FLOPs x samples.

    `input_shape`, and work that is not counted, are as for `flops`.

    The backward pass counts as two forward passes, as usual in the literature. The cost of a recipe is the sum over
    its phases, including the dense search.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> tfspline.training_flops(model, samples=10)  # 3 x 2 x 18 x 10
    1080
    """
    return (1 + BACKWARD) * flops(model, input_shape).flops * count("samples", samples, least=0)
