"""Finds the numbers in a network that do not depend on its input, and folds them into biases.

A unit whose kernel column or whose BatchNormalization gamma is zero is constant: it computes its bias or shift, through
the activation. A walk over the graph finds for every number whether it depends on the input and, if not, its value.
"""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline.graph.layer_specs.dependence import Signal, SignalCall, everywhere
from tfspline.graph.layer_specs.registry import kernel_of, spec_of
from tfspline.graph.structure import Graph
from tfspline.graph.surgery import cut
from tfspline.graph.weights import value_of
from tfspline.pruning.placement import rows

_SIDES = (80, 96), (24, 32), (8, 12), (2, 3)  # for axes that a model leaves open; not all models take the larger ones


def constants(model: KerasModel, graph: Graph, free: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Finds the constants that are read by layers which can fold them into their bias, and what else is not zero.

    Returns, by path of such a layer, the mean, smallest and largest value of each channel over all positions and calls,
    float64 [3, channels]; NaN for a channel that varies with the model's input. Units that are not `free` (bool
    [units]) may be mixed with others before they are read, so they count as varying. Returns also, bool [units], which
    units calls without a weight add up that are not zero.
    """
    walk = at_open_sizes(model, lambda sides: _walked(model, graph, free, sides))
    calls = {path: np.stack(rows, axis=1) for path, rows in walk.read.items()}
    found = {
        path: np.stack([mean.mean(axis=0), low.min(axis=0), high.max(axis=0)])
        for path, (mean, low, high) in calls.items()
    }
    return found, walk.added_up & ~_zero_units(model, graph)


def _walked(model, graph, free, sides):
    walk, rng = _Walk(graph, free), np.random.default_rng(0)
    for side in sides:  # what is constant does not depend on them
        walk.calls.clear()
        inputs = [Signal(value, np.ones(value.shape, bool)) for value in random_inputs(model, side, rng)]
        _keras.run(model, inputs, walk.visit, nested=True)
    return walk


def _zero_units(model, graph):
    """The units, bool [units], of which all weights that produce or scale them are zero.

    Where calls without a weight add units up, these are zero, or else the channel rules protect them: no walk is needed
    to find that out.
    """
    layers, (produced, used) = _keras.layer_paths(model), np.zeros((2, graph.units), bool)
    for part in graph.slices:
        produced[part.units] |= part.role == "produced"
        if part.role in ("produced", "per_channel"):
            used[part.units[rows(_keras.weights(layers[part.layer])[part.index].numpy(), part.axis).any(axis=1)]] = True
    return produced & ~used


class _Walk:
    """Propagates signals through a model and notes what the layers read that can fold constants into their bias."""

    def __init__(self, graph: Graph, free: np.ndarray):
        self._graph, self._free = graph, free
        self.read: dict[str, list[list[np.ndarray]]] = {}  # layer path -> mean, smallest, largest value for each call
        self.added_up = np.zeros(graph.units, bool)  # units that are not zero where calls without a weight add them up
        self.calls: collections.Counter[str] = collections.Counter()  # of each layer so far, by path

    def visit(self, node, args, kwargs):
        spec = spec_of(node.layer)
        self.calls[node.path] += 1
        inputs = [signal for signal in tf.nest.flatten((args, kwargs)) if isinstance(signal, Signal)]
        values = _keras.call(node.layer, args, kwargs, Signal, lambda signal: signal.value)
        axis, units = self._graph.reads.get((node.path, 0), (None, None))
        call = SignalCall(node.layer, args, kwargs, inputs, None if axis is None else axis + 1, values)
        if spec.kernel is not None and spec.kernel.mixes:
            call.inputs[0] = self._note(node.path, call, units)
        for summed in self._graph.absorbed.get((node.path, self.calls[node.path]), ()):
            self.added_up |= self._not_zero(summed, inputs)
        return [Signal(*pair) for pair in zip(values, spec.dependence(call), strict=True)]

    def _not_zero(self, summed, inputs):
        """Which units, bool [units], are zero in none of the inputs that hold them; `summed` is of `Graph.absorbed`."""
        held, zero = np.zeros((2, self._graph.units), bool)
        for i, units in summed.items():
            used = (inputs[i].varies | (np.asarray(inputs[i].value) != 0)).any(axis=0)
            not_zero = np.zeros_like(held)
            not_zero[np.broadcast_to(units, used.shape)[used]] = True
            held[units] = True
            zero[units] |= ~not_zero[units]
        return held & ~zero

    def _note(self, path, call, units):
        """Notes the values that a layer reads; returns its input with all units that are not free varying."""
        value, varies = call.inputs[0].value, call.inputs[0].varies
        varies = varies | call.along_channels(~self._free[units], varies)
        channels = np.moveaxis(np.where(varies, np.nan, np.asarray(value, np.float64)), call.channel_axis, -1)
        rows = channels.reshape(-1, channels.shape[-1])
        self.read.setdefault(path, []).append([rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)])
        return Signal(value, varies)


def constant_shifts(model: KerasModel, graph: Graph, removed: np.ndarray) -> dict[str, np.ndarray]:
    """`shifts`, for all constants in a model; the model is searched for them only if it may have any."""
    layers = _keras.layer_paths(model)
    for part in graph.slices:
        is_scale = part.role == "produced" or part.weight == "gamma"
        if is_scale and not rows(value_of(_keras.weights(layers[part.layer])[part.index]), part.axis).any(1).all():
            try:
                return shifts(model, graph, removed, constants(model, graph, graph.free)[0])
            except tf.errors.UnimplementedError as error:  # such as convolutions that are channels-first, on a CPU
                logging.warning("Constants that units of %r emit are not folded: %s", model.name, error)
                return {}
    return {}


def shifts(
    model: KerasModel, graph: Graph, removed: np.ndarray, read_constants: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What the biases of layers must gain to make up for units `removed` (bool [units]) that are constant.

    `read_constants` is what `constants` returns. Returns, by layer path, float64 [channels], 0 for removed channels.
    """
    layers, found = _keras.layer_paths(model), {}
    for path, (mean, _, _) in read_constants.items():
        folded = removed[graph.reads[path, 0][1]] & ~np.isnan(mean)
        response = kernel_of(layers[path]).response(layers[path], np.asarray)
        shift = np.where(removed[graph.channels(path)], 0, mean[folded] @ response[folded])
        if shift.any():
            found[path] = shift
    return found


def cut_and_shift(model: KerasModel, graph: Graph, removed: np.ndarray, shifts: dict[str, np.ndarray]) -> KerasModel:
    """A copy of a model without the units `removed`, with `shifts` added to what layers compute before activations."""
    layers, added, configs = _keras.layer_paths(model), [], {}
    for path, shift in shifts.items():
        (norm, *_) = graph.folded.get(path, (None,))
        shift = shift[~removed[graph.channels(path)]]
        if layers[path].bias is None and norm and not {path, norm} & graph.shared:
            added.append((norm, "moving_mean", -shift))
            continue
        if layers[path].bias is None:
            configs[path] = {"use_bias": True, "bias_initializer": "zeros"}
        added.append((path, "bias", shift))
    small = cut(model, graph, ~removed, configs)
    layers = _keras.layer_paths(small)
    for path, weight, shift in added:
        variable = getattr(layers[path], weight)
        value = variable.numpy()
        variable.assign((value + shift).astype(value.dtype))
    return small


def at_open_sizes(model: KerasModel, run: Callable[[tuple[int, int]], Any]) -> Any:
    """What `run` returns for two sizes, to be given to axes that the inputs of a model leave open.

    Raises:
        ValueError: the model takes no size that was tried.
    """
    is_open = any(None in tensor.shape[1:] for tensor in model.inputs)
    for sides in _SIDES if is_open else _SIDES[:1]:
        try:
            return run(sides)
        except tf.errors.InvalidArgumentError as error:  # such as more steps than there are positions
            if not is_open:
                raise
            failed = error
    raise ValueError(
        f"{model.name!r} leaves sizes of its inputs open, and runs with none of {_SIDES}. Fix them first: "
        "model = tfspline.functional(model, input_shape=...)"
    ) from failed


def random_inputs(model: KerasModel, side: int, rng: np.random.Generator, batch: int = 1) -> list[tf.Tensor]:
    """Random inputs for a model: normal numbers, or tokens if it has an Embedding. `side` and `batch` are the sizes of
    axes that the model leaves open."""
    tokens = [layer.input_dim for layer in _keras.layer_paths(model).values() if _keras.of_class(layer, "Embedding")]
    inputs = []
    for tensor in model.inputs:
        shape = tensor.shape[0] or batch, *(size or side for size in tensor.shape[1:])
        dtype = tf.as_dtype(tensor.dtype)
        if dtype.is_floating:
            inputs.append(tf.cast(rng.normal(size=shape), dtype))
        elif dtype.is_integer:
            inputs.append(tf.cast(rng.integers(0, min(tokens, default=2), shape), dtype))
        else:
            inputs.append(tf.zeros(shape, dtype))
    return inputs


def without_small_slopes(model: KerasModel, graph: Graph, tolerance: float) -> KerasModel:
    """A copy of a model in which prunable units that hardly depend on the input are exactly constant.

    Such a unit varies by at most `tolerance` times the largest scale or offset of its layer: for BatchNormalization,
    |gamma| sqrt(variance / (variance + epsilon)) against all |gamma| and |beta|, and for a layer that none follows, the
    norm of the kernel's column against all norms and |bias|.
    """
    copy = cut(model, graph, np.ones(graph.units, bool))
    layers, free = _keras.layer_paths(copy), graph.free
    for part in graph.slices:
        layer, name = layers[part.layer], part.weight
        if name == "gamma" and _keras.of_class(layer, "BatchNormalization"):
            scale, offset = np.abs(value_of(layer.gamma)), layer.beta
            variance = value_of(layer.moving_variance)
            spread = scale * np.sqrt(variance / (variance + layer.epsilon))
        elif part.role == "produced" and part.layer not in graph.folded and spec_of(layer).dependence is not everywhere:
            spread = scale = np.linalg.norm(rows(value_of(_keras.weight(layer, name)), part.axis), axis=1)
            offset = _keras.weight(layer, ".".join([*name.split(".")[:-1], "bias"]))
        else:
            continue
        largest = max(scale.max(), 0 if offset is None else np.abs(value_of(offset)).max())
        constant = (spread <= tolerance * largest) & free[part.units]
        weight = _keras.weight(layer, name)
        value = weight.numpy()
        np.moveaxis(value, part.axis, 0)[constant] = 0
        weight.assign(value)
    return copy
