"""Reports of what a pruning did to a network: to its partition, to the boundaries that make it, and to its maps."""

import dataclasses
from typing import Any

import numpy as np

from tfspline import _keras
from tfspline._keras.inputs import probe_inputs
from tfspline._utils.checks import count, instance
from tfspline.pruning.planning import Plan
from tfspline.spline.affine import affine_map
from tfspline.spline.boundaries import angle_to_axes, angles_between, boundaries
from tfspline.spline.codes import Codes, RegionEncoder

_TURNED = 0.01  # degrees: less is rounding
_ROWS = 128  # inputs that run at a time


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of the boundaries of one layer of units in pieces.

    A unit (a channel, of a convolution) has a boundary on the inputs if it switches on them: if it is not on the same
    side of its cut for all of them, at all places.

    Attributes:
        name: the layer, as in `Codes.layers`.
        units: how many units it has, before and after.
        boundaries: how many of them have a boundary on the inputs, before and after.
        removed: how many had one and have none any more, None where the units cannot be matched.
        turned: how many have one before and after, of another direction in those inputs of the layer that are still
            read, None where the units or their weights cannot be matched.
        angle: mean angle of the turned ones between before and after, in degrees; NaN without any.
        axis_angle: mean angle of the normals to the nearest axis of the layer's inputs, in degrees, before and after,
            of the units with a boundary: 0 for one that looks at a single input; None as `turned`.
        changed: share of the code bits that differ; None where the units cannot be matched.
    """

    name: str
    units: tuple[int, int]
    boundaries: tuple[int, int]
    removed: int | None
    turned: int | None
    angle: float | None
    axis_angle: tuple[float, float] | None
    changed: float | None


@dataclasses.dataclass(frozen=True)
class PartitionReport:
    """What a pruning did, made by `tfspline.partition_report`; `print` shows it as a table.

    Attributes:
        layers: a `LayerReport` for each layer of units in pieces.
        samples: how many inputs it was seen on.
        regions: in how many different regions they lie, before and after.
        maps: |A' - A| / |A|, Frobenius norms over the affine maps of some inputs, before (A) and after; None if it was
            not asked for.
        outputs: |f' - f| / |f|, norms over all outputs.
        agreement: share of the inputs of which the largest output is the same; None for a single output number.

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

    def __str__(self):
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


def _row(layer):
    def known(value, text):
        return "-" if value is None or np.isnan(value).any() else text

    return (
        layer.name,
        f"{layer.units[0]:,} -> {layer.units[1]:,}",
        f"{layer.boundaries[0]:,} -> {layer.boundaries[1]:,}",
        known(layer.removed, f"{layer.removed}"),
        known(layer.turned, f"{layer.turned}"),
        known(layer.angle, f"{layer.angle or 0:.1f}°"),
        known(layer.axis_angle, "{:.1f}° -> {:.1f}°".format(*layer.axis_angle or (0, 0))),
        known(layer.changed, f"{layer.changed or 0:.1%}"),
    )


def partition_report(
    before: Any, after: Any, x: Any, plan: Plan | None = None, maps: int = 8, approximate: bool = False
) -> PartitionReport:
    """What a pruning did to a network's partition of its input space, to its boundaries and to its affine maps.

    Pruning units takes boundaries away; pruning weights leaves them where they are in number and turns them towards
    the axes of the layer's inputs, since a normal loses coordinates (You et al., "Max-Affine Spline Insights Into
    Deep Network Pruning", TMLR 2022). The report tells the two apart, for whatever made `after` of `before`: masks,
    slimming, tfmot, a user's own zeros, training on.

    Layers are matched by their names. One that is as wide as before is compared unit by unit. In a narrower network it
    is not known which unit is which, unless the `plan` that cut it is given; without it, layers of other widths only
    have their units and boundaries counted. Directions are known of the units of Dense and Conv layers whose activation
    follows at once or behind BatchNormalization, and are compared where the layer has as many inputs as before.

    Args:
        before: the model before, see `tfspline.region_codes`.
        after: the model after, of the same Keras, with the same inputs and outputs.
        x: inputs to see both on: arrays as for `tfspline.region_codes`, or a tf.data.Dataset, of which the first 1,024
            are taken. Boundaries that no input crosses are not seen.
        plan: the plan that was applied, where `after` is narrower than `before`.
        maps: on how many of the inputs to compare the affine maps (`tfspline.affine_map` with `logits`); 0 for models
            that it refuses.
        approximate: as for `tfspline.region_codes`; needs `maps=0`.

    Returns:
        A `PartitionReport`.

    Raises:
        TypeError, ValueError: models that `region_codes` refuses, or, unless `maps=0`, `affine_map`; inputs that do
            not fit; outputs of other shapes; models without a common layer; a plan of another model.

    Example:

    >>> plan = tfspline.plan(model, 0.5)
    >>> report = tfspline.partition_report(model, plan.mask(model), x)
    >>> report.layers[0].units, tfspline.partition_report(model, plan.apply(model), x, plan=plan) == report
    ((8, 8), True)
    """
    count("maps", maps, least=0)
    if plan is not None:
        after = _widened(before, after, instance("plan", plan, Plan))
    inputs = probe_inputs(before, x)
    codes = [RegionEncoder(model, approximate)(inputs) for model in (before, after)]
    cuts = [boundaries(model, approximate) for model in (before, after)]
    names = [name for name in codes[0].layers if name in codes[1].layers]
    if not names:
        raise ValueError(
            f"Expected models with layers of the same names. Received: {codes[0].layers} and {codes[1].layers}"
        )
    layers = tuple(_layer(name, codes, [one[name] for one in cuts]) for name in names)
    f, g = (_outputs(model, inputs) for model in (before, after))
    shapes = [[y.shape[1:] for y in outputs] for outputs in (f, g)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"Expected models with the same outputs. Received: outputs of {shapes[0]} and {shapes[1]}")
    agreements = [(a.argmax(-1) == b.argmax(-1)).mean() for a, b in zip(f, g, strict=True) if a.shape[-1] > 1]
    f, g = (np.concatenate([y.ravel() for y in outputs]) for outputs in (f, g))
    return PartitionReport(
        layers=layers,
        samples=len(codes[0]),
        regions=tuple(_regions(one) for one in codes),
        maps=_map_change(before, after, [value[:maps] for value in inputs]) if maps else None,
        outputs=_relative(f, g),
        agreement=float(np.mean(agreements)) if agreements else None,
    )


def _relative(before, after):
    change, size = np.linalg.norm(after - before), np.linalg.norm(before)
    return float(change / size) if size else float("inf" if change else 0)


def _map_change(before, after, inputs):
    return _relative(*(affine_map(model, inputs, logits=True)[0] for model in (before, after)))


def _outputs(model, inputs):
    batches = [
        _keras.run(model, [value[i : i + _ROWS] for value in inputs], lambda node, args, kw: node.layer(*args, **kw))
        for i in range(0, len(inputs[0]), _ROWS)
    ]
    return [np.concatenate([np.asarray(y, np.float64) for y in parts]) for parts in zip(*batches, strict=True)]


def _regions(codes: Codes) -> int:
    rows = np.concatenate([codes[name] for name in codes.layers], axis=1)
    return len({row.tobytes() for row in rows})


def _layer(name, codes, cuts) -> LayerReport:
    bits = [one.unpack(name) for one in codes]
    switches = [one.switching(pair) for one, pair in zip(cuts, bits, strict=True)]
    same = bits[0].shape == bits[1].shape
    kept = switches[0] & switches[1] if same else None
    normals = [one.normals() for one in cuts]
    turned = angle = axis_angle = None
    if same and all(one is not None for one in normals) and normals[0].shape == normals[1].shape:
        if cuts[0].depth > 1:
            # An input that nothing reads any more is a unit that went, and counts as removed where it was made.
            normals = [one[:, normals[1].any(axis=0)] for one in normals]
        angles = angles_between(*(one[kept] for one in normals))
        turned = int((angles > _TURNED).sum())
        angle = float(angles[angles > _TURNED].mean()) if turned else np.nan
        axis_angle = tuple(angle_to_axes(one[on]) for one, on in zip(normals, switches, strict=True))
    return LayerReport(
        name=name,
        units=tuple(len(one) for one in switches),
        boundaries=tuple(int(one.sum()) for one in switches),
        removed=int((switches[0] & ~switches[1]).sum()) if same else None,
        turned=turned,
        angle=angle,
        axis_angle=axis_angle,
        changed=float((bits[0] != bits[1]).mean()) if same else None,
    )


def _widened(before, after, plan):
    """The masked model that `after`, cut by the plan, stands for: of the shape of `before`, what is gone zero."""
    wide = plan.mask(before)
    kept = ~plan.removed
    layers, paths = _keras.layer_paths(_keras.check_model(after)), _keras.layer_paths(wide)
    places = {}
    for site in plan.graph.sites:
        places.setdefault((site.layer, site.index), {})[site.axis] = np.flatnonzero(kept[site.units])
    for path, shapes in plan.graph.cut_shapes(kept).items():
        received = [tuple(weight.shape) for weight in _keras.weights(layers[path])] if path in layers else None
        if received != shapes:
            raise ValueError(
                f"Expected what the plan makes of {before.name!r}, with weights of shapes {shapes} in layer {path!r}. "
                f"Received: {received}"
            )
        pairs = zip(_keras.weights(paths[path]), _keras.weights(layers[path]), strict=True)
        for i, (weight, narrow) in enumerate(pairs):
            value = weight.numpy()
            axes = [places.get((path, i), {}).get(axis, np.arange(n)) for axis, n in enumerate(value.shape)]
            value[np.ix_(*axes)] = narrow.numpy()
            weight.assign(value)
    return wide
