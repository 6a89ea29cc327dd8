"""Slimming: removes units that are already switched off and folds the constants that they emit into their readers."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tensorflow as tf
from absl import logging

from tfspline import _keras
from tfspline._keras.constraints import check_finite
from tfspline._keras.types import KerasLayer, KerasModel
from tfspline._utils.checks import several, share
from tfspline.graph import reader as graphs
from tfspline.graph.layer_specs.registry import kernel_of
from tfspline.graph.structure import Graph, Group
from tfspline.graph.surgery import difference
from tfspline.graph.unrolling import functional
from tfspline.pruning.constant_folding import (
    at_open_sizes,
    constants,
    cut_and_shift,
    random_inputs,
    shifts,
    without_small_slopes,
)
from tfspline.pruning.masks import Masks
from tfspline.pruning.placement import rows

PROBES = 8  # random inputs on which the difference is measured


@dataclasses.dataclass(frozen=True)
class SlimReport:
    """The result of `tfspline.slim_report`.

    Attributes:
        model: the smaller model, as `tfspline.slim` returns it.
        masks: the `Masks` of the original model, with the removed units off.
        difference: max |slim - original| / max |original| over eight random normal inputs, for the model output where
            it is largest.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> report = tfspline.slim_report(tfspline.plan(model, 0.5).mask(model))
    >>> report.model.layers[0].units, report.difference < 1e-5
    (4, True)
    """

    model: KerasModel
    masks: Masks
    difference: float


def slim(
    model: KerasModel,
    *,
    tolerance: float = 0.0,
    allow_inexact: bool = False,
    protect: Iterable[str | Callable[[KerasLayer], bool]] = (),
) -> KerasModel:
    """Removes the units that are switched off: zeroed by hand, by network slimming or by tfmot's masks.

    A unit is removed if no kept unit reads it, or if kept units read only a constant from it. The constant is folded
    into the next layers' biases (or into the moving mean of the BatchNormalization that follows a layer without a
    bias), so the function stays the same. Where folding is not exact, the unit is kept: a convolution with padding
    "same", for instance, sees zeros at the border and the constant elsewhere. At least one unit of each group is kept.

    The number of removed units per layer, and of constant units that are kept, is logged (absl, INFO). A model wrapped
    by `tfmot.sparsity.keras.prune_low_magnitude` is treated as `strip_pruning` would return it.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras. It is not changed.
        tolerance: a unit also counts as constant if it varies by at most this share of the largest scale or offset in
            its layer: gammas and betas of a BatchNormalization, otherwise norms of kernel columns and biases. 0 changes
            nothing; with 1e-3, a gamma of 1e-6 beside a beta of 1 is folded. `slim_report` measures the difference.
        allow_inexact: also remove units whose removal changes the function of the rest, so that the result differs
            from `model`: constant units that cannot be folded exactly (their mean is folded), and channels that
            LayerNormalization and similar layers normalize over.
        protect: layers whose units are kept: paths, or predicates of a layer.

    Returns:
        An uncompiled model of the same Keras version without those units; a copy if no unit is switched off.

    Raises:
        TypeError, ValueError: the model's graph cannot be read, `tolerance` is not in [0, 1), or `protect` names an
            unknown layer.

    Example:

    >>> import keras, numpy as np, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2)])
    >>> kernel, bias = model.get_layer("a").get_weights()
    >>> kernel[:, 3:] = 0
    >>> model.get_layer("a").set_weights([kernel, np.ones_like(bias)])
    >>> tfspline.slim(model).get_layer("a").units
    3
    """
    return _slim(model, tolerance, allow_inexact, protect)[0]


def slim_report(
    model: KerasModel,
    *,
    tolerance: float = 0.0,
    allow_inexact: bool = False,
    protect: Iterable[str | Callable[[KerasLayer], bool]] = (),
) -> SlimReport:
    """Does what `tfspline.slim` does, and reports which units were removed and how much the outputs changed.

    Args, Raises: as for `tfspline.slim`.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2)])
    >>> report = tfspline.slim_report(tfspline.plan(model, {"a": 0.5}).mask(model))
    >>> int(report.masks["a"].sum())
    4
    """
    small, masks = _slim(model, tolerance, allow_inexact, protect)
    model = functional(model)
    rng = np.random.default_rng(0)
    changed = at_open_sizes(model, lambda sides: difference(model, small, random_inputs(model, sides[0], rng, PROBES)))
    return SlimReport(small, masks, changed)


def _slim(model, tolerance, allow_inexact, protect) -> tuple[KerasModel, Masks]:
    model = functional(model)
    graph = graphs.read(model, several("protect", protect), allow_inexact)
    check_finite(model)
    if tolerance:
        model = without_small_slopes(model, graph, share("tolerance", tolerance))
    read_constants, added_up = constants(model, graph, graph.free)
    selection = _Selection(model, graph, read_constants, added_up, allow_inexact)
    selection.keep_one_per_group(graph.groups)
    removed = ~selection.kept
    _log(model, graph, removed, selection.constant_but_kept)
    small = cut_and_shift(model, graph, removed, shifts(model, graph, removed, read_constants))
    return small, Masks(graph, removed)


class _Reader:
    """How one layer reads units that may be constant."""

    def __init__(self, graph: Graph, path: str, layer: KerasLayer, mean, low, high):
        self.inputs, self.outputs = graph.reads[path, 0][1], graph.channels(path)  # units
        self.depends = kernel_of(layer).response(layer, np.abs).astype(bool)  # [inputs, outputs]
        self.varies = np.isnan(mean)  # whether each input depends on the model's input
        self.inexact = ~_folds_exactly(layer, low, high)  # whether folding each input, if constant, is inexact


class _Selection:
    """The units that `slim` keeps, as the fixed point of: a kept unit needs what it reads. All are bool [units].

    `needed` are units that are protected, or from which a kept unit reads a value that varies; `inexact`, those from
    which it reads a constant that cannot be folded exactly. `kept` are `needed` and, unless `allow_inexact`, `inexact`.
    """

    def __init__(
        self, model: KerasModel, graph: Graph, read_constants: Mapping, added_up: np.ndarray, allow_inexact: bool
    ):
        layers = _keras.layer_paths(model)
        self._allow_inexact = allow_inexact
        self._readers = []
        self.needed, self.inexact = ~graph.free | added_up, np.zeros(graph.units, bool)
        for part in graph.slices:
            if part.role != "read":
                continue
            layer = layers[part.layer]
            if part.layer in read_constants:
                self._readers.append(_Reader(graph, part.layer, layer, *read_constants[part.layer]))
            else:
                self.needed[part.units[rows(_keras.weights(layer)[part.index].numpy(), part.axis).any(axis=1)]] = True
        self.kept = self.needed.copy()
        self._propagate()

    @property
    def constant_but_kept(self) -> np.ndarray:
        """The units, bool [units], that are kept only because folding them is not exact."""
        return ~self.needed & self.inexact & self.kept

    def keep_one_per_group(self, groups: list[Group]) -> None:
        """Keeps a unit of each group that would lose all, and everything that this unit needs."""
        for group in reversed(groups):
            if not self.kept[group.units].any():
                self.kept[group.units[np.argmax(self.inexact[group.units])]] = True
                self._propagate()

    def _propagate(self):
        before = None
        while before != self.kept.sum():
            before = self.kept.sum()
            for reader in reversed(self._readers):  # from outputs to inputs: in most networks one pass is enough
                read = reader.depends[:, self.kept[reader.outputs]].any(axis=1)
                self.needed[reader.inputs[read & reader.varies]] = True
                self.inexact[reader.inputs[read & reader.inexact]] = True
                self.kept |= self.needed if self._allow_inexact else self.needed | self.inexact


def _log(model, graph, removed, constant_but_kept):
    zero = np.zeros_like(removed)
    if any("allow_inexact" in (group.protected or "") for group in graph.groups):
        for layer, on in Masks.from_model(model, allow_inexact=True).items():  # of a graph with other units
            zero[graph.channels(layer)[~on]] = True
        zero &= ~graph.free
    if zero.any():
        logging.warning(
            "Slimming %s keeps %d unit(s) that are switched off, as removing them changes the function of the rest; "
            "allow_inexact=True removes them: %s",
            *(model.name, zero.sum(), _by_group(graph, zero)),
        )
    elif not (removed | constant_but_kept).any():
        logging.warning(
            "Slimming %s removes nothing: no unit that may be removed is switched off. SplinePruning and Masks.apply "
            "switch units off; prune chooses and removes them at once.",
            model.name,
        )
    logging.info("Slimming %s removes %d unit(s): %s", model.name, removed.sum(), _by_group(graph, removed))
    if constant_but_kept.any():
        logging.info(
            "Slimming %s keeps %d constant unit(s) because folding them is not exact: %s",
            *(model.name, constant_but_kept.sum(), _by_group(graph, constant_but_kept)),
        )


def _by_group(graph, units):
    counts = {group.name: (units[group.units].sum(), len(group.units)) for group in graph.groups}
    return ", ".join(f"{name} ({n} of {size})" for name, (n, size) in counts.items() if n) or "none"


def _folds_exactly(layer: KerasLayer, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether folding constants within these bounds, [channels], into the bias keeps the layer's function."""
    zero = (low == 0) & (high == 0)
    if kernel_of(layer).sees_padding(layer):
        return zero
    rounding = 1e-5 if tf.as_dtype(layer.compute_dtype).size >= 4 else 1e-2
    return high - low <= rounding * np.maximum(np.abs(low), np.abs(high))
