"""Partition reports: what pruning did to a network's partition, its boundaries and its affine maps."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from tfspline import _keras
from tfspline._keras.inputs import probe
from tfspline._keras.types import Data, KerasModel
from tfspline._utils.checks import count
from tfspline.graph import reader as graphs
from tfspline.graph.structure import Graph
from tfspline.graph.unrolling import functional
from tfspline.spline.affine import affine_map
from tfspline.spline.boundaries import Boundaries, angle_to_axes, angles_between, boundaries
from tfspline.spline.codes import Codes, RegionEncoder

_MIN_ANGLE = 0.01  # degrees: smaller angles are rounding errors
_BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How pruning changed the boundaries of one layer of piecewise-affine units.

    A unit (for a convolution, a channel) has a boundary on the inputs if not all inputs, at all places, lie on the same
    side of it. A pair of values belongs to the models before and after pruning.

    Attributes:
        name: name of the layer, as in `Codes.layers`.
        units: numbers of units.
        boundaries: numbers of units with a boundary on the inputs.
        removed: number of units that had a boundary only before; None if the units cannot be matched.
        turned: number of units with a boundary in both models but in another direction, measured in the layer inputs
            that are still read; None if the units or their weights cannot be matched.
        angle: mean angle in degrees by which the turned boundaries turned; NaN if there are none, None like `turned`.
        axis_angle: mean angles in degrees between the normals of the boundaries and the nearest axis of the layer's
            input space (0 for a unit that reads a single input); None like `turned`.
        changed: share of the code bits that differ; None if the units cannot be matched.
        width: number of units of the layer in the model after pruning itself. With a plan, `units` counts removed ones.
    """

    name: str
    units: tuple[int, int]
    boundaries: tuple[int, int]
    removed: int | None
    turned: int | None
    angle: float | None
    axis_angle: tuple[float, float] | None
    changed: float | None
    width: int = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class PartitionReport:
    """The result of `tfspline.partition_report`; `print` shows it as a table.

    Attributes:
        layers: a `LayerReport` for each layer of piecewise-affine units.
        samples: number of inputs on which the models were compared.
        regions: numbers of distinct regions in which the inputs lie, before and after.
        maps: relative change |A' - A| / |A| of the affine maps of some inputs (Frobenius norms); None if `maps=0`.
        outputs: relative change |f' - f| / |f| of the outputs.
        agreement: share of the inputs with the same largest output; None if the models have single output numbers.

    Example:

    >>> x = np.random.default_rng(0).normal(size=(100, 4))
    >>> print(tfspline.partition_report(model, tfspline.plan(model, 0.5).mask(model), x))
    layer  units  boundaries  removed  turned ...
    conv3 ...
    <BLANKLINE>
    regions ...
    affine maps ...
    outputs ...
    predictions ...
    """

    layers: tuple[LayerReport, ...]
    samples: int
    regions: tuple[int, int]
    maps: float | None
    outputs: float
    agreement: float | None

    def __str__(self) -> str:
        rows = [
            ("layer", "units", "boundaries", "removed", "turned", "by", "to an axis", "bits changed"),
            *(_row(layer) for layer in self.layers),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, "<" + ">" * 7, widths, strict=True))
            for row in rows
        ]
        facts = [("regions", f"{self.regions[0]:,} -> {self.regions[1]:,} of {self.samples:,} inputs")]
        if self.maps is not None:
            facts.append(("affine maps", f"changed by {self.maps:.1%}"))
        facts.append(("outputs", f"changed by {self.outputs:.1%}"))
        if self.agreement is not None:
            facts.append(("predictions", f"{self.agreement:.1%} agree"))
        return "\n".join([*table, "", *(f"{name:<12} {fact}" for name, fact in facts)])


def _row(layer: LayerReport) -> tuple[str, ...]:
    def known(value, text):
        return "-" if value is None or np.isnan(value).any() else text

    return (
        layer.name,
        f"{layer.units[0]:,} -> {layer.width:,}",
        f"{layer.boundaries[0]:,} -> {layer.boundaries[1]:,}",
        known(layer.removed, f"{layer.removed}"),
        known(layer.turned, f"{layer.turned}"),
        known(layer.angle, f"{layer.angle or 0:.1f}°"),
        known(layer.axis_angle, "{:.1f}° -> {:.1f}°".format(*layer.axis_angle or (0, 0))),
        known(layer.changed, f"{layer.changed or 0:.1%}"),
    )


@runtime_checkable
class PruningPlan(Protocol):
    """The part of `tfspline.Plan` that a report uses; this package does not import `tfspline.pruning`."""

    @property
    def graph(self) -> Graph:
        """The graph of the model that was pruned."""

    @property
    def removed(self) -> np.ndarray:
        """Which units are removed, bool `[units]`."""

    def mask(self, model: KerasModel) -> KerasModel:
        """Return a copy of the model with the removed units set to zero."""


def partition_report(
    before: KerasModel,
    after: KerasModel,
    x: Data,
    plan: PruningPlan | None = None,
    maps: int = 8,
    approximate: bool = False,
) -> PartitionReport:
    """Report what pruning did to a network's partition of the input space, its boundaries and its affine maps.

    Removing units removes boundaries. Removing weights keeps the boundaries but turns them towards the axes of the
    layer's inputs, since their normals lose coordinates (You et al., "Max-Affine Spline Insights Into Deep Network
    Pruning", TMLR 2022). The report tells both apart, however `after` was made: by masks, slimming, tfmot or training.

    Layers are matched by name, and units by position in layers of equal width. With the `plan`, the units of a slim
    model are matched too; without it, only the units and boundaries of its narrower layers are counted. Directions are
    known for Dense and Conv layers followed by their activation, with or without BatchNormalization in between.

    Args:
        before: the model before pruning, see `tfspline.region_codes`.
        after: the model after pruning, of the same Keras version and with the same inputs and outputs.
        x: inputs, as for `tfspline.region_codes`, or a tf.data.Dataset, of which the first 1,024 samples are used.
            Boundaries that no input crosses are not seen.
        plan: the plan by which `after` was slimmed.
        maps: number of inputs on which to compare the affine maps, see `tfspline.affine_map`; 0 to skip this.
        approximate: as for `tfspline.region_codes`; requires `maps=0`.

    Returns:
        A `PartitionReport`.

    Raises:
        TypeError: `before` or `after` is not a Keras model, or `plan` is not a plan.
        ValueError: `tfspline.region_codes` or (unless `maps=0`) `tfspline.affine_map` rejects a model or `x`, the
            models have no layer name in common or different outputs, or `after` is not what `plan` makes of `before`.

    Example:

    >>> plan = tfspline.plan(model, 0.5)
    >>> report = tfspline.partition_report(model, plan.mask(model), x)
    >>> report.layers[0].units, tfspline.partition_report(model, plan.apply(model), x, plan=plan) == report
    ((8, 8), True)
    """
    count("maps", maps, least=0)
    before, after = functional(before), functional(after)
    inputs, slim = probe(before, x).inputs, after
    if plan is not None:
        after = _expanded(before, after, plan)
    a, b = (_Observed.of(model, inputs, approximate) for model in (before, after))
    _check_comparable(a, b)
    widths = b.widths() if plan is None else _Observed.of(slim, [value[:1] for value in inputs], approximate).widths()
    some = [value[:maps] for value in inputs]
    affine_maps = [affine_map(model, some, logits=True)[0] for model in (before, after)] if maps else None
    return PartitionReport(
        layers=tuple(_layer_report(name, a, b, widths[name]) for name in a.codes.layers if name in b.codes.layers),
        samples=len(a.codes),
        regions=(_regions(a.codes), _regions(b.codes)),
        maps=_relative_change(*affine_maps) if affine_maps else None,
        outputs=_relative_change(*(np.concatenate([y.ravel() for y in one.outputs]) for one in (a, b))),
        agreement=_agreement(a.outputs, b.outputs),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Observed:
    """Codes, boundaries (by layer) and outputs of a model on the inputs of a report."""

    codes: Codes
    boundaries: dict[str, Boundaries]
    outputs: list[np.ndarray]

    @classmethod
    def of(cls, model, inputs, approximate):
        codes = RegionEncoder(model, approximate)(inputs)
        return cls(codes, boundaries(model, approximate), _outputs(model, inputs))

    def widths(self) -> dict[str, int]:
        """The number of units of each layer."""
        return {name: len(self.boundaries[name].switching(self.codes.unpack(name))) for name in self.codes.layers}


def _outputs(model, inputs):
    batches = [
        _keras.run(
            model, [value[i : i + _BATCH_SIZE] for value in inputs], lambda node, args, kw: node.layer(*args, **kw)
        )
        for i in range(0, len(inputs[0]), _BATCH_SIZE)
    ]
    return [np.concatenate([np.asarray(y, np.float64) for y in parts]) for parts in zip(*batches, strict=True)]


def _check_comparable(a: _Observed, b: _Observed) -> None:
    if not {*a.codes.layers} & {*b.codes.layers}:
        raise ValueError(
            f"Expected models with layers of the same names. Received: {a.codes.layers} and {b.codes.layers}"
        )
    shapes = [[y.shape[1:] for y in one.outputs] for one in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Expected models with the same outputs. Received: outputs of shapes {shapes[0]} and {shapes[1]}"
        )


def _agreement(before, after) -> float | None:
    shares = [(f.argmax(-1) == g.argmax(-1)).mean() for f, g in zip(before, after, strict=True) if f.shape[-1] > 1]
    return float(np.mean(shares)) if shares else None


def _relative_change(before: np.ndarray, after: np.ndarray) -> float:
    change, size = np.linalg.norm(after - before), np.linalg.norm(before)
    return float(change / size) if size else float("inf" if change else 0)


def _regions(codes: Codes) -> int:
    rows = np.concatenate([codes[name] for name in codes.layers], axis=1)
    return len({row.tobytes() for row in rows})


def _layer_report(name: str, a: _Observed, b: _Observed, width: int) -> LayerReport:
    bits = [one.codes.unpack(name) for one in (a, b)]
    made = [one.boundaries[name] for one in (a, b)]
    crossed = [one.switching(of_layer) for one, of_layer in zip(made, bits, strict=True)]
    matched = bits[0].shape == bits[1].shape
    turned, angle, axis_angle = _directions(*made, *crossed) if matched else (None, None, None)
    return LayerReport(
        name=name,
        units=(len(crossed[0]), len(crossed[1])),
        boundaries=(int(crossed[0].sum()), int(crossed[1].sum())),
        removed=int((crossed[0] & ~crossed[1]).sum()) if matched else None,
        turned=turned,
        angle=angle,
        axis_angle=axis_angle,
        changed=float((bits[0] != bits[1]).mean()) if matched else None,
        width=width,
    )


def _directions(before, after, crossed_before, crossed_after):
    """Compute `turned`, `angle` and `axis_angle` of a `LayerReport`."""
    normals = [one.normals() for one in (before, after)]
    if any(one is None for one in normals) or normals[0].shape != normals[1].shape:
        return None, None, None
    if before.depth > 1:
        # An input that is no longer read is a removed unit, and counts in the layer that made it.
        normals = [one[:, normals[1].any(axis=0)] for one in normals]
    both = crossed_before & crossed_after
    angles = angles_between(*(one[both] for one in normals))
    angles = angles[angles > _MIN_ANGLE]
    axis_angles = [angle_to_axes(one[on]) for one, on in zip(normals, (crossed_before, crossed_after), strict=True)]
    return len(angles), float(angles.mean()) if len(angles) else np.nan, tuple(axis_angles)


def _expanded(before: KerasModel, after: KerasModel, plan: PruningPlan) -> KerasModel:
    """Return `after`, slimmed by the plan, in the shapes of `before`: removed units have zero weights."""
    if not isinstance(plan, PruningPlan):
        raise TypeError(f"Expected `plan` to be a Plan. Received: {type(plan).__name__}")
    expanded = plan.mask(before)
    graph, kept = graphs.matching(before, plan.graph), ~plan.removed
    layers, paths = _keras.layer_paths(after), _keras.layer_paths(expanded)
    places: dict[tuple, dict[int, np.ndarray]] = {}  # (layer, weight): axis -> kept positions
    for part in graph.slices:
        places.setdefault((part.layer, part.index), {})[part.axis] = np.flatnonzero(kept[part.units])
    for path, shapes in graph.cut_shapes(kept).items():
        received = _keras.weight_shapes(layers[path]) if path in layers else None
        if received != shapes:
            raise ValueError(
                f"Expected `after` to be the result of applying `plan` to {before.name!r}, with weights of shapes "
                f"{shapes} in layer {path!r}. Received: {received}"
            )
        pairs = zip(_keras.weights(paths[path]), _keras.weights(layers[path]), strict=True)
        for i, (weight, narrow) in enumerate(pairs):
            value = weight.numpy()
            axes = [places.get((path, i), {}).get(axis, np.arange(n)) for axis, n in enumerate(value.shape)]
            value[np.ix_(*axes)] = narrow.numpy()
            weight.assign(value)
    return expanded
