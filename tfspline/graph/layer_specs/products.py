"""Sums of products of two tensors (einsum, matmul, dot), by the letters of their axes.

A letter of both inputs that the output lacks is summed over: the units of both go together, and since they are zero
when they are switched off, removing them changes nothing. A letter of the output passes its units on. A constant is cut
along the letters that it shares with units.
"""

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfspline import _keras
from tfspline.graph.call import Call
from tfspline.graph.flow import Flow
from tfspline.graph.layer_specs.spec import LayerSpec, unknown

Operand = tuple[tuple, Any, list[str]]  # the place of an argument, its value, and the letters of its axes


def contract(call: Call, operands: Sequence[Operand], output: list[str]) -> np.ndarray | list[np.ndarray]:
    """The channel ids of a sum of products; `output` are the letters of the output."""
    inputs = [(call.number_of(value), letters) for _, value, letters in operands if isinstance(value, Flow)]
    if not inputs or len(operands) > 2 or not _per_sample([letters for _, letters in inputs], output):
        return unknown(call, "mixes the inputs of a batch, or multiplies more than two tensors")
    shapes = [call.sizes(call.number_of(v)) if isinstance(v, Flow) else np.shape(v) for _, v, _ in operands]
    sizes: dict[str, int | None] = {}
    for (_, _, letters), shape in zip(operands, shapes, strict=True):
        sizes.update({letter: n for letter, n in zip(letters, shape, strict=True) if sizes.get(letter) in (None, 1)})
    for (_, _, letters), shape in zip(operands, shapes, strict=True):  # an axis of length 1 is broadcast
        letters[1:] = [
            n if size != 1 or sizes[n] == 1 else f"{n} of 1" for n, size in zip(letters[1:], shape[1:], strict=True)
        ]
    rows = [_Ids(call.inputs[i], letters[1:]) for i, letters in inputs]
    _keep_unmatched(call, rows)
    if len(rows) == 2 and {*rows[0].varying()} & {*rows[1].varying()}:
        union = list(dict.fromkeys([*rows[0].letters, *rows[1].letters]))
        call.tie(*np.broadcast_arrays(*(row.along(union) for row in rows)))
    whole = max(rows, key=lambda row: row.ids.size)
    for place, value, letters in operands:
        if not isinstance(value, Flow):
            for row in rows:
                axes = {i: row.letters.index(n) for i, n in enumerate(letters) if n in row.varying()}
                if axes and any(np.shape(value)[i] > 1 for i in axes):
                    call.cut_constant(place, row.ids, {i: a for i, a in axes.items() if np.shape(value)[i] > 1})
    _keep_what_is_not_zero(call, rows, [i for i, _ in inputs], output)
    if len(operands) == 2:
        others = [size for letter, size in sizes.items() if letter not in (*whole.varying(), output[0])]
        batch = sizes[output[0]]
        ids = whole.ids if whole.varying() else None
        call.macs(None, None if batch is None else batch // call.batch, *others, ids=ids)
    return _passed_on(call, rows, output[1:])


class _Ids:
    """The ids of an input with the letters of its axes."""

    def __init__(self, ids: np.ndarray, letters: list[str]):
        self.ids, self.letters = ids, letters

    def varying(self) -> list[str]:
        """The letters along which there are different units."""
        return [letter for letter, n in zip(self.letters, self.ids.shape, strict=True) if n > 1]

    def along(self, letters: list[str]) -> np.ndarray:
        """The ids with the axes in another order, and axes of length 1 for letters that they lack."""
        order = [self.letters.index(letter) for letter in letters if letter in self.letters]
        extra = [i for i, letter in enumerate(letters) if letter not in self.letters]
        return np.expand_dims(self.ids.transpose(order + [i for i in range(self.ids.ndim) if i not in order]), extra)

    def join(self, call: Call, letter: str) -> None:
        """Ties the ids along an axis, so that they do not vary along it."""
        axis = self.letters.index(letter)
        moved = np.moveaxis(self.ids, axis, 0)
        call.tie(np.broadcast_to(moved[:1], moved.shape), moved)
        self.ids = self.ids.take([0], axis)


def _per_sample(inputs, output) -> bool:
    """Whether each output depends on one input of the batch, and no letter occurs twice in a tensor."""
    alone = all(len({*letters}) == len(letters) for letters in (*inputs, output))
    return alone and bool(output) and all(letters and letters[0] == output[0] for letters in inputs)


def _keep_unmatched(call, rows):
    """Ties units along an axis that the other input has without units, and which keeps its size therefore."""
    for row, others in ((row, [other for other in rows if other is not row]) for row in rows):
        for letter in row.varying():
            if any(letter in other.letters and letter not in other.varying() for other in others):
                row.join(call, letter)
                if not row.varying():
                    call.protect(row.ids, f"{call.described()} combines them with an input that keeps its size")


def _keep_what_is_not_zero(call, rows, numbers, output):
    """Protects units that are summed over, unless one of the factors is zero when they are switched off."""
    for row in rows:
        summed = [letter for letter in row.varying() if letter not in output]
        holders = [i for i, other in zip(numbers, rows, strict=True) if {*summed} & {*other.varying()}]
        if summed and not any(call.is_zero_when_off(i) for i in holders):
            call.protect(row.ids, f"{call.described()} adds them up, and they may not be zero when switched off")
        elif summed == row.varying() != []:
            call.absorb(*numbers)


def _passed_on(call, rows, output) -> np.ndarray:
    """The ids of the output."""
    parts = []
    for row in rows:
        summed = [letter for letter in row.varying() if letter not in output]
        for letter in summed if len(summed) < len(row.varying()) else ():  # such as the width of a head
            row.join(call, letter)
        rest = tuple(slice(None) if letter in output else 0 for letter in row.letters)
        parts.append(_Ids(row.ids[rest], [letter for letter in row.letters if letter in output]))
    parts.sort(key=lambda part: -part.ids.size)
    first, *others = parts
    for other in others:
        if not {*other.varying()} <= {*first.varying()}:
            call.protect(other.ids, f"the output of {call.described()} has units of the other input along another axis")
    if not first.varying():
        return call.fixed((1,) * len(output), f"{call.described()} adds up units")
    return first.along(output)


def _einsum(call: Call) -> np.ndarray | list[np.ndarray]:
    equation = next(filter(None, map(call.argument, ("subscripts", "equation")))).replace(" ", "")
    name = "operands" if call.argument("operands") is not None else "inputs"
    values = call.argument(name)
    given, arrow, output = equation.partition("->")
    terms = given.split(",")
    if len(terms) != len(values) or not arrow:
        return unknown(call, "has no '->' in its equation")
    operands: list[Operand] = []
    longest: list[str] = []
    for i, (term, value) in enumerate(zip(terms, values, strict=True)):
        before, dots, after = term.partition("...")
        rank = len(call.shape(call.number_of(value))) + 1 if isinstance(value, Flow) else np.ndim(value)
        more = [f"...{n}" for n in range(rank - len(before) - len(after))][::-1] if dots else []
        longest = max(longest, more, key=len)
        operands.append(((name, i), value, [*before, *more, *after]))
    before, dots, after = output.partition("...")
    return contract(call, operands, [*before, *(longest if dots else []), *after])


def _two(call: Call) -> list[tuple[tuple, Any, int]]:
    """The places, values and ranks of the two operands."""
    names = ("x1", "x2") if call.argument("x1") is not None else ("a", "b")
    values = [call.argument(name) for name in names]
    ranks = [len(v.shape) + 1 if isinstance(v, Flow) else np.ndim(v) for v in values]
    return [((name,), value, rank) for name, value, rank in zip(names, values, ranks, strict=True)]


def _matmul(call: Call) -> np.ndarray | list[np.ndarray]:
    (left, a, rank_a), (right, b, rank_b) = _two(call)
    flags = ("adjoint_a", "adjoint_b", "a_is_sparse", "b_is_sparse")
    if min(rank_a, rank_b) < 2 or any(map(call.argument, flags)):
        return unknown(call, "multiplies vectors, or sparse or adjoint matrices")
    leading = [f"batch{n}" for n in range(max(rank_a, rank_b) - 2)][::-1]
    of_a = ["sum", "row"] if call.argument("transpose_a") else ["row", "sum"]
    of_b = ["column", "sum"] if call.argument("transpose_b") else ["sum", "column"]
    letters = [[*leading[len(leading) - rank + 2 :], *of] for rank, of in ((rank_a, of_a), (rank_b, of_b))]
    return contract(call, [(left, a, letters[0]), (right, b, letters[1])], [*leading, "row", "column"])


def _tensordot(call: Call) -> np.ndarray | list[np.ndarray]:
    """tensordot, and dot, which sums over the last axis of the first and the last but one of the second."""
    (left, a, rank_a), (right, b, rank_b) = _two(call)
    axes = call.argument("axes")
    if axes is None:
        axes = [rank_a - 1], [max(rank_b - 2, 0)]
    elif np.ndim(axes) == 0:
        axes = range(rank_a - int(axes), rank_a), range(int(axes))
    pairs = list(zip(*(np.ravel(list(axis) if isinstance(axis, range) else axis) for axis in axes), strict=True))
    of_a, of_b = list(string.ascii_lowercase[:rank_a]), list(string.ascii_uppercase[:rank_b])
    for i, j in pairs:
        of_b[j] = of_a[i]
    summed = {of_a[i] for i, _ in pairs}
    return contract(call, [(left, a, of_a), (right, b, of_b)], [n for n in (*of_a, *of_b) if n not in summed])


def _is_linear(node: _keras.Node) -> bool:
    """Whether one factor only depends on the model's input."""
    return len(node.inputs) == 1


LAYERS: dict[str, LayerSpec] = {}

OPS: dict[str, LayerSpec] = {
    "einsum": LayerSpec(_einsum, affine=_is_linear),
    "matmul": LayerSpec(_matmul, affine=_is_linear),
    **dict.fromkeys(["dot", "tensordot"], LayerSpec(_tensordot, affine=_is_linear)),
}
