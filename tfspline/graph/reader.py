"""Reads the structure of a built model: its units, the weights that belong to them, and its MACs.

Every layer that produces channels gives each of them an integer id. The ids flow through the graph by the channel
rules of the layers (`layer_specs`). Ids that can only be removed together are tied, and ids that are tied form one
*unit*. The list of weight slices says which part of which weight belongs to a unit. Scoring, masking, slimming and
counting all use that list.
"""

import functools
import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import shapes_of_inputs
from tfspline._keras.types import InputShape
from tfspline._utils.checks import instance, known_layer
from tfspline.graph.call import Call, Flow
from tfspline.graph.channel_ids import group_units
from tfspline.graph.findings import Findings
from tfspline.graph.fixed_arrays import holder, regularizes
from tfspline.graph.layer_specs.registry import is_homogeneous, spec_of
from tfspline.graph.layer_specs.spec import apply_rule, unknown
from tfspline.graph.signature import Signature, renamed, signature
from tfspline.graph.structure import Graph, Repeats, Resize, Shapes, producer_name
from tfspline.graph.switched_off import off_values
from tfspline.graph.weight_flows import beside_inputs, of_weights
from tfspline.graph.work import CallWork


def read(model: Any, protect: tuple = (), allow_inexact: bool = False, input_shape: InputShape = None) -> Graph:
    """Reads which units a model has, where their weights are and how many MACs they cost.

    `protect` holds paths of layers whose units must stay, or predicates of a layer. `allow_inexact` does not protect
    units whose removal changes the function of the rest, such as channels that a LayerNormalization normalizes over.
    `input_shape` gives a value to sizes of the model's inputs that are not known; only MACs depend on them.
    """
    _keras.check_model(model)
    layers, every_path = _keras.layer_paths(model), list(_keras.every_path(model))
    _check_protect(protect, dict(every_path))
    shapes = _weight_shapes(layers)

    users = _users(layers)
    walk = _Walk(instance("allow_inexact", allow_inexact, bool))
    walk.findings.shared = {path: other for group in users.values() for path, other in itertools.permutations(group, 2)}
    for flow in walk.run(model, shapes_of_inputs(model, input_shape)):
        walk.findings.ids.protect(flow.ids, "it feeds an output of the model", first=True)
    protected = []
    paths: dict[int, list[str]] = {}
    for path, layer in every_path:
        paths.setdefault(id(layer), []).append(path)
    for part in walk.findings.slices.values():
        layer = layers[part.layer]
        function = holder(layer, part.weight, part.axis)
        if function is not None:
            why = f"the {function!r} of {part.layer!r} works only for the weight's present shape"
            walk.findings.ids.protect(part.units, why)
        if part.role == "produced" and any(_protects(protect, path, layer) for path in paths[id(layer)]):
            protected.append(part.layer)
            walk.findings.ids.protect(part.units, "it is listed in `protect`")
    _protect_fixed(walk.findings, layers)
    repeats = _protect_shared(walk.findings, layers, users, walk.arguments)
    return walk.graph(shapes, signature(model), tuple(protected), repeats)


def matching(model: Any, graph: Graph, made: str = "plan was") -> Graph:
    """The graph of a model that is built like that of `graph`: `graph` itself unless automatic names differ.

    The units have the same numbers. ValueError for another model; `made` is what was made from the graph, and "was" or
    "were", for the message.
    """
    paths = renamed(
        graph.signature, signature(_keras.check_model(model)), f"Expected the model that the {made} made for"
    )
    if all(old == new for old, new in paths.items()):
        return graph
    return read(model, tuple(paths[path] for path in graph.protect), graph.allow_inexact, graph.input_shapes)


def _protect_fixed(findings, layers) -> None:
    """Protects the units of layers that cannot be made anew with other sizes."""
    reasons: dict[str, str | None] = {}
    whole = np.ones(findings.ids.count, bool)
    for part in findings.slices.values():
        layer = layers[part.layer]
        if part.layer not in reasons:
            builtin = all(_keras.is_builtin(type(one)) for one in (layer, *_keras.sublayers(layer)))
            sizes = {key: of[0](whole) for (path, key), of in findings.resizes.items() if path == part.layer}
            inner = _keras.innermost(layer)  # a wrapper is made anew from the layer in it
            if inner is not layer:
                sizes = {key.replace("layer.", ""): value for key, value in sizes.items()}
            sizes = {key: value for key, value in sizes.items() if "." not in key}  # not of a layer inside
            reasons[part.layer] = None if builtin else _keras.why_fixed(inner, sizes)
        if reasons.get(part.layer):
            findings.ids.protect(part.units, f"{part.layer!r} has to stay as it is: {reasons[part.layer]}")


def _users(layers) -> dict[int, dict[str, None]]:
    """The id of each tf.Variable -> the paths of the layers that reach it."""
    users: dict[int, dict[str, None]] = {}
    for path, layer in layers.items():
        if not _keras.is_model(layer):
            for variable in _keras.variables(layer):
                users.setdefault(variable, {})[path] = None
    return users


def _protect_shared(findings, layers, users, arguments) -> Repeats:
    """Protects the units of layers whose weights others use as well; returns `Graph.repeats`.

    A layer with fewer units is made anew, so that it could not share weights. `arguments` are weights that calls read
    as arguments: (layer path, id of the tf.Variable).
    """
    for path, variable in arguments:
        users.setdefault(variable, {})[path] = None
    first: dict[int, tuple[str, int]] = {}  # id of a weight -> where it occurs first
    repeats = {}
    for path, layer in layers.items():
        if not _keras.is_model(layer):
            for i, weight in enumerate(_keras.weights(layer)):
                if first.setdefault(id(weight), (path, i)) != (path, i):
                    repeats[path, i] = first[id(weight)]
    for part in findings.slices.values():
        weights = _keras.weights(layers[part.layer])
        other = {user for weight in weights for user in users[id(_keras.variable_of(weight))]} - {part.layer}
        for user in sorted(other):
            why = f"{user!r} ({type(layers[user]).__name__}) uses weights of {part.layer!r}, too"
            if _keras.innermost(layers[user]) is _keras.innermost(layers[part.layer]):  # one is a wrapper of the other
                why += "; call the same of the two in both places"
            findings.ids.protect(part.units, why)
    return repeats


def _check_protect(protect, layers):
    for name in protect:
        if not callable(name) or name in layers.values():
            known_layer("protect", name, layers)


def _protects(protect, path, layer):
    return any(
        name(layer) if callable(name) else path == name or path.startswith(f"{name}/")  # "inner" protects "inner/conv"
        for name in protect
    )


def _weight_shapes(layers: dict[str, Any]) -> Shapes:
    """The shapes of the weights of all layers whose graph is not known; ValueError if a weight is empty."""
    shapes = {}
    for path, layer in layers.items():
        if _keras.is_graph(layer) or not hasattr(layer, "weights"):
            continue
        shapes[path] = _keras.weight_shapes(layer)
        if any(0 in shape for shape in shapes[path]):
            raise ValueError(f"Layer {path!r} has an empty weight: its weights have shapes {shapes[path]}")
    return shapes


class _Kept(np.ndarray):
    """Notes which ids are looked up."""

    ids: list[np.ndarray]

    def __getitem__(self, ids):
        self.ids.append(np.ravel(ids))
        return np.asarray(self)[ids]


def _ids_read(value_of, count: int) -> np.ndarray:
    """The ids on which the value of a config entry depends."""
    kept = np.ones(count, bool).view(_Kept)
    kept.ids = [np.array([], int)]
    value_of(kept)
    return np.concatenate(kept.ids)


class _Walk:
    """One walk over a model, in which each layer's channel rule passes the channel ids on."""

    def __init__(self, allow_inexact: bool):
        self.findings = Findings(allow_inexact)
        self._linear: list[Flow] = []  # what linear layers compute, call by call
        self._followers: list[tuple[Flow, str]] = []  # one of these, the BatchNormalization that reads it
        self._bent: list[np.ndarray] = []  # ids of what passes a call that is not positively homogeneous
        self._input_shapes: list[tuple] = []
        self.arguments: set[tuple[str, int]] = set()  # what arguments reach: (layer path, id of the tf.Variable)

    def run(self, model: Any, input_shapes: list[tuple]) -> list[Flow]:
        """Walks over the model; returns what flows into its outputs."""
        self._input_shapes = input_shapes
        flows = []
        for tensor, sizes in zip(model.inputs, input_shapes, strict=True):
            shape = tuple(tensor.shape)
            self.findings.batch = shape[0] or 1
            spec = tf.TensorSpec((self.findings.batch, *sizes), tensor.dtype)
            flows.append(Flow(self.findings.ids.of_tensor(shape[1:]), shape[1:], spec))
            self.findings.ids.protect(flows[-1].ids, "it is an input of the model")
        outputs = _keras.run(model, flows, self._visit, nested=True)
        for flow in outputs:
            flow.readers += 1
        return outputs

    def _visit(self, node, args, kwargs):
        self.findings.calls[node.path] += 1
        return self._read(node, args, kwargs)

    def _read(self, node, args, kwargs):
        values = tf.nest.flatten((args, kwargs))
        flows = [flow for flow in values if isinstance(flow, Flow)]
        outputs = of_weights(self.findings, node, args, kwargs, self._read)
        if outputs is not None:
            return outputs
        args, kwargs = beside_inputs(args, kwargs, flows)
        values = tf.nest.flatten((args, kwargs))
        arguments = [flow for flow in values if isinstance(flow, Flow)]
        others = [value for value in values if not isinstance(value, Flow)]
        self.arguments |= {(node.path, variable) for value in others for variable in _keras.variables(value)}
        work = CallWork(node, args, kwargs)
        call = Call(self.findings, node, args, kwargs, work.outputs)
        followed = spec_of(node.layer).elementwise or not any(flow.batchless for flow in flows)
        rule = unknown if not followed or any(flow.batchless for flow in arguments) else spec_of(node.layer).rule
        outputs = apply_rule(rule, call)
        for ids in outputs:
            self.findings.ids.lay_out(ids)
        if _keras.op_name(node.layer) != "getitem":
            call.read_sizes()
        work.count(call)
        if not is_homogeneous(node, lambda: list(call.constants().values())):
            self._bent += self.findings.producers.get(node.path, {}).values() or call.inputs
        for flow in arguments:
            flow.readers += 1
        mean = id(getattr(node.layer, "moving_mean", None)), 0  # not over rows, nor over two axes
        is_norm = _keras.of_class(node.layer, "BatchNormalization") and mean in self.findings.slices
        if is_norm and arguments[0].linear:
            self._followers.append((arguments[0], node.path))
        linear = self._linear_producer(node, outputs[0])
        gamma = getattr(_keras.innermost(node.layer), "gamma", None)
        scales = any((id(gamma), axis) in self.findings.slices for axis in range(len(getattr(gamma, "shape", ()))))
        has_units = scales or node.path in self.findings.producers
        off = functools.cache(functools.partial(off_values, node, args, kwargs, has_units))
        flows = [
            Flow(ids, shape[1:], spec, linear, functools.partial(lambda i, off: off()[i], i, off))
            for i, (ids, shape, spec) in enumerate(zip(outputs, node.output_shapes, work.outputs, strict=True))
        ]
        self._linear += flows[:1] if linear else []
        for axis in np.flatnonzero(np.array(flows[0].ids.shape) > 1):
            grown = [(size or 2) + (i == axis) for i, size in enumerate(flows[0].shape)]
            if not regularizes(node.layer, (1, *grown)):
                why = f"the 'activity_regularizer' of {node.path!r} works only for the present shape of its output"
                self.findings.ids.protect(flows[0].ids, why)
        return flows

    def _linear_producer(self, node, ids):
        """The name of the units in the output of a call if nothing comes after the weight that produces them."""
        if _keras.own_activation(_keras.innermost(node.layer)) is None:
            for number, produced in enumerate(self.findings.producers.get(node.path, {}).values(), start=1):
                if np.array_equal(np.unique(produced), np.unique(ids)):
                    return producer_name(node.path, number)
        return None

    def _folded(self):
        """`Graph.folded`."""
        norms = {id(flow): path for flow, path in self._followers if flow.readers == 1}
        folded: dict[str, tuple[str | None, ...]] = {}
        for flow in self._linear:
            folded[flow.linear] = (*folded.get(flow.linear, ()), norms.get(id(flow)))
        return {layer: followers for layer, followers in folded.items() if any(followers)}

    def _agree(self):
        """Ties or protects the units that several calls of one layer read, so that all of them need the same size."""
        ids = self.findings.ids
        for (path, key), values in self.findings.resizes.items():
            if self.findings.calls[path] == 1:
                continue
            reads = [_ids_read(value_of, ids.count) for value_of in values]
            unit_of, reasons = ids.units()
            units, every_call = [unit_of[read] for read in reads], len(reads) >= self.findings.calls[path]
            if every_call and all(np.array_equal(units[0], others) for others in units):
                continue
            if every_call and len({read.size for read in reads}) == 1 and not reasons[np.concatenate(units)].any():
                ids.tie(np.broadcast_to(reads[0], np.shape(reads)), np.stack(reads))
            else:
                why = f"{path!r} is called several times, with the same {key!r} for all of its inputs"
                ids.protect(np.concatenate(reads), why)

    def graph(self, shapes: Shapes, signature: Signature, protect: tuple[str, ...], repeats: Repeats) -> Graph:
        """Ties the channel ids that were found into units."""
        found = self.findings
        found.ids.settle()
        self._agree()
        unit_of, reasons = found.ids.units()
        slices = list(found.slices.values())
        for part in slices:
            part.units = unit_of[part.units]
        for work in found.work:
            work.units = None if work.units is None else unit_of[work.units]
        bent = np.zeros(len(reasons), bool)
        for ids in self._bent:
            bent[unit_of[ids]] = True
        return Graph(
            shapes=shapes,
            slices=slices,
            groups=group_units(slices, reasons, [unit_of[ids] for ids in found.parts]),
            work=found.work,
            unknown=found.unknown,
            input_shapes=self._input_shapes,
            resizes=[
                Resize(path, key, value_of, unit_of, unit_of[_ids_read(value_of, found.ids.count)])
                for (path, key), (value_of, *_) in found.resizes.items()
            ],
            folded=self._folded(),
            reads={read: (axis, unit_of[ids]) for read, (axis, ids) in found.reads.items()},
            absorbed={
                call: [{i: unit_of[ids] for i, ids in inputs.items()} for inputs in sums]
                for call, sums in found.absorbed.items()
            },
            shared=frozenset(path for path, calls in found.calls.items() if calls > 1)
            | {path for places in repeats.items() for path, _ in places},
            repeats=repeats,
            signature=signature,
            protect=protect,
            kept=found.kept,
            allow_inexact=found.allow_inexact,
            bent=bent,
            units=len(reasons),
        )
