"""Streaming: a model and a cut copy run side by side, at each call on as many samples as memory has room for."""

import collections
import contextlib
import dataclasses
import itertools
import weakref
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasModel

_NUMBERS = 2**28  # the most numbers in the tensors that are in memory at a time


@dataclasses.dataclass(eq=False)
class Pair:
    """A tensor of the uncut model and the corresponding tensor of the cut model."""

    whole: tf.Tensor
    cut: tf.Tensor


class Stream:
    """Runs the calls of a model on `Pair`s, one after the other.

    The first layers of a network often compute much more for a sample than the others. So the run begins with a few
    samples. Where there is room for more, these go through the calls so far, and join.

    Args:
        model: the uncut model.
        inputs: one tensor for each of its inputs.
        outputs: node, args, kwargs -> the `Pair`s that a call computes.
    """

    def __init__(self, model: KerasModel, inputs: list[tf.Tensor], outputs: Callable[..., list[Pair]]):
        self._model, self._inputs, self._outputs = model, inputs, outputs
        self.pairs: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by the id of the symbolic tensor
        self._by_call: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by call and number of the output

    def run(self, before: Callable[..., None]) -> list[Pair]:
        """Runs the model, with `before(node, args, kwargs)` before each call, which may change weights of the cut one.
        Returns the outputs."""
        self._room = _room(self._model, self._inputs)
        self._samples, self._number, self._before = self._room[0], 0, before
        inputs = self._part(0, self._samples)
        for i, (pair, tensor) in enumerate(zip(inputs, self._model.inputs, strict=True)):
            self.pairs[id(tensor)] = self._by_call[None, i] = pair
        return _keras.run(self._model, inputs, self._visit, nested=True)

    def _part(self, start, stop):
        return [Pair(x[start:stop], x[start:stop]) for x in self._inputs]

    def _visit(self, node, args, kwargs):
        most = self._room[self._number]
        if most >= min(2 * self._samples, len(self._inputs[0])) and most > self._samples:
            self._join(most)
        self._number += 1
        self._before(node, args, kwargs)
        pairs = self._outputs(node, args, kwargs)
        self.pairs.update(zip(node.outputs, pairs, strict=True))
        self._by_call.update(((node.key, i), pair) for i, pair in enumerate(pairs))
        return pairs

    def _join(self, most):
        """Brings more samples to the present call, `most` in all."""
        parts = collections.defaultdict(list)
        for start in range(self._samples, most, self._room[0]):
            for key, pair in self._caught_up(start, min(start + self._room[0], most)).items():
                parts[key].append(pair)
        for key, pairs in parts.items():
            live = self._by_call[key]
            live.whole = tf.concat([live.whole, *(pair.whole for pair in pairs)], 0)
            live.cut = tf.concat([live.cut, *(pair.cut for pair in pairs)], 0)
        self._samples = most

    def _caught_up(self, start, stop):
        """The pairs for some samples of all tensors that are still needed, by their keys in `_by_call`."""
        inputs, calls = self._part(start, stop), itertools.count()
        found = {(None, i): pair for i, pair in enumerate(inputs) if (None, i) in self._by_call}

        def visit(node, args, kwargs):
            if next(calls) == self._number:
                raise _Reached
            pairs = self._outputs(node, args, kwargs)
            found.update(((node.key, i), pair) for i, pair in enumerate(pairs) if (node.key, i) in self._by_call)
            return pairs

        with contextlib.suppress(_Reached):
            _keras.run(self._model, inputs, visit, nested=True)
        return found


class _Reached(Exception):  # noqa: N818 - not an error
    """The calls so far are made."""


def _room(model, inputs) -> list[int]:
    """For each call the number of samples for which that call and all later ones fit into memory."""
    samples, nodes = len(inputs[0]), list(_keras.nodes(model, nested=True))
    shapes = [shape for node in nodes for shape in node.output_shapes]
    known = all(len(shape) and shape[0] is None and None not in shape[1:] for shape in shapes)
    numbers = sum(int(np.prod(shape[1:], dtype=np.int64)) for shape in shapes) if known else 0
    everything = [samples] * max(len(nodes), 1)
    if 2 * samples * numbers <= _NUMBERS:  # or not known: other axes may depend on the samples
        return everything
    alive: weakref.WeakSet = weakref.WeakSet()
    used, masked = [], []

    def visit(node, args, kwargs):
        pairs = [Pair(y, y) for y in _keras.call(node.layer, args, kwargs, Pair, lambda pair: pair.whole)]
        alive.update(pairs)
        masked.extend(getattr(pair.whole, "_keras_mask", None) is not None for pair in pairs)
        used.append(2 * sum(int(tf.size(pair.whole)) for pair in alive))
        return pairs

    _keras.run(model, [Pair(x[:1], x[:1]) for x in inputs], visit, nested=True)
    if any(masked):  # masks are not carried along
        return everything
    room = np.minimum.accumulate((_NUMBERS // np.maximum(used, 1))[::-1])[::-1]
    return [int(one) for one in np.clip(room, 1, samples)]
