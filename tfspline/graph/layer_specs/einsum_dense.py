"""EinsumDense, whose equation says which axes of its kernel belong to the input, to the output or to both."""

import string

import numpy as np

from tfspline.graph.call import Call
from tfspline.graph.layer_specs.activations import activated
from tfspline.graph.layer_specs.spec import LayerSpec, unknown


def _einsum_dense(call: Call) -> np.ndarray | list[np.ndarray]:
    """EinsumDense: a letter of the kernel is summed over, made, or both in the input and the output.

    Units are along one axis: of the letters that are made, along the last.
    """
    layer, rank = call.layer, len(call.shape()) + 1
    (inputs, kernel), output = _letters(layer.equation, [rank, len(layer.kernel.shape)])
    if inputs[0] in kernel or inputs[0] != output[0] or len({*inputs}) < rank or len({*kernel}) < len(kernel):
        return unknown(call, f"has the equation {layer.equation!r}, which moves the batch or repeats a letter")
    call.macs(
        "kernel", *(n for letter, n in zip(inputs[1:], call.sizes(0)[1:], strict=True) if letter not in kernel), 1
    )
    read = [letter for letter in _varying(call.inputs[0], inputs) if letter in kernel]
    letter = (read or [letter for letter in inputs if letter in kernel and letter not in output] or [""])[-1]
    if not letter:
        call.protect(call.inputs[0], f"{call.described()} reads them along an axis that its kernel does not have")
    made = [other for other in output if other in kernel and other not in inputs]
    if letter in output:
        ids = call.channels(0, inputs.index(letter) - 1)
        call.per_channel("kernel", kernel.index(letter), ids)
        made = [letter]
    elif letter:
        call.consume("kernel", kernel.index(letter), call.channels(0, inputs.index(letter) - 1))
    if not made:
        return call.fixed((1,) * (len(output) - 1), f"{call.described()} makes no channels")
    if letter != made[-1]:
        ids = call.produce("kernel", kernel.index(made[-1]))
    _einsum_sizes(call, output, made[-1], ids)
    return activated(call, call.place(ids, output.index(made[-1]) - 1))


def _einsum_sizes(call, output, letter, ids):
    """Declares the bias and the config entry of an EinsumDense whose output has `ids` along the axis of a letter."""
    spec = call.layer.equation.replace(" ", "").partition("->")[2]
    named, biased = spec.replace("...", ""), call.layer.bias_axes or ""
    if letter in biased:
        call.per_channel("bias", named.index(letter) - min(map(named.index, biased)), ids)
    elif biased:
        call.protect(ids, f"{call.described()} adds the same bias to all of them")
    i = named.index(letter) - (not spec.startswith("..."))  # the shape in the config lacks the batch
    shape = call.layer.get_config()["output_shape"]
    if shape[i] is not None:
        call.resize("output_shape", lambda kept: (*shape[:i], int(kept[ids].sum()), *shape[i + 1 :]))


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of input and kernel, of these ranks, and of the output, with letters of their own for "..."."""
    equation = equation.replace(" ", "")
    operands, output = equation.split("->")
    spare = "".join(letter for letter in string.ascii_letters if letter not in equation)
    parts = operands.split(",")
    elided = spare[: ranks[0] - len(parts[0].replace("...", ""))] if "..." in parts[0] else ""
    return [part.replace("...", elided) for part in parts], output.replace("...", elided)


def _varying(ids: np.ndarray, letters: str) -> list[str]:
    """The letters, of which the first is the batch, of the axes along which ids vary."""
    return [letter for letter, size in zip(letters[1:], ids.shape, strict=True) if size > 1]


LAYERS: dict[str, LayerSpec] = {"EinsumDense": LayerSpec(_einsum_dense, affine=True)}
