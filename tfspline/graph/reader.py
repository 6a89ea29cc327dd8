"""Reads a built model: which weights belong to which unit, what ties units together, what protects them, and MACs.

Every layer that makes channels gives each of them an integer id; the ids flow through the graph by the rules of
`layer_specs`. Ids that must live or die together are tied, and what is tied is one *unit*. A unit knows, through
the list of sites, every slice of every weight that goes with it. That one list serves scoring, masking, slimming and
counting.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tfspline import _keras
from tfspline.graph import layer_specs as rules


@dataclasses.dataclass
class Site:
    """One axis of one weight whose positions belong to units.

    Attributes:
        layer: path of the layer.
        weight: the weight's attribute, dotted where it is in a layer inside the layer ("kernel", "cell.kernel").
        index: its place in `layer.weights`.
        axis: the axis, counted from 0.
        units: int64 [positions], the unit of each position.
        role: "out" where the weight makes the unit, "in" where it reads it, "carry" where it travels with it,
            "state" for statistics that travel with it.
    """

    layer: str
    weight: str
    index: int
    axis: int
    units: np.ndarray
    role: str


@dataclasses.dataclass
class Work:
    """Multiply-accumulates: `positions` (how often a weight is applied to one input) x its size, or x 1 without one."""

    layer: str
    index: int | None
    positions: int


@dataclasses.dataclass
class Group:
    """Units that the same layers make, so that they can be compared with each other.

    Attributes:
        name: path of the first layer that makes them, with "#2" ... where that layer makes several groups.
        layers: paths of all layers that make them: more than one where a residual stream ties them.
        units: int64 [n], in the order of the first layer's channels.
        protected: why they must stay, or None.
    """

    name: str
    layers: tuple[str, ...]
    units: np.ndarray
    protected: str | None


@dataclasses.dataclass
class Graph:
    """What `read` found out about a model. Holds no layer and no weight, only their names and shapes."""

    shapes: dict[str, list[tuple[int, ...]]]  # of every layer's weights
    sites: list[Site]
    groups: list[Group]
    work: list[Work]
    resizes: list[tuple[str, str, Callable]]  # layer, config key, kept [units] bool -> new value
    folded: dict[str, str]  # a layer -> the BatchNormalization that directly follows it
    reads: dict[tuple[str, int], tuple[int, np.ndarray]]  # layer, input -> its channel axis, the units along it
    shared: frozenset[str]  # the layers that are called more than once
    units: int

    @property
    def free(self) -> np.ndarray:
        """The units that may go, bool [units]."""
        free = np.zeros(self.units, bool)
        for group in self.groups:
            free[group.units] = group.protected is None
        return free

    @property
    def makers(self) -> dict[str, Site]:
        """The layers that make channels, each with the site where it does."""
        return {site.layer: site for site in self.sites if site.role == "out"}

    def channels(self, layer: str) -> np.ndarray:
        """The units, int64 [channels], that a layer makes; KeyError where it makes none."""
        makers = self.makers
        if layer not in list(makers):
            raise KeyError(f"Expected a layer that makes channels, one of {sorted(makers)}. Received: {layer!r}")
        return makers[layer].units

    def cut_shapes(self, kept: np.ndarray) -> dict[str, list[tuple[int, ...]]]:
        """The shapes of all weights once only `kept` (bool [units]) are left."""
        shapes = {layer: [list(shape) for shape in weights] for layer, weights in self.shapes.items()}
        for site in self.sites:
            shapes[site.layer][site.index][site.axis] = int(kept[site.units].sum())
        return {layer: [tuple(shape) for shape in weights] for layer, weights in shapes.items()}

    def macs(self, kept: np.ndarray | None = None) -> dict[str, int]:
        """Multiply-accumulates of each layer for one input, of all units or of those kept."""
        shapes = self.shapes if kept is None else self.cut_shapes(kept)
        macs = dict.fromkeys((work.layer for work in self.work), 0)
        for work in self.work:
            size = 1 if work.index is None else int(np.prod(shapes[work.layer][work.index], dtype=np.int64))
            macs[work.layer] += work.positions * size
        return macs

    def params(self, kept: np.ndarray | None = None) -> dict[str, int]:
        """Numbers in the weights of each layer, of all units or of those kept."""
        shapes = self.shapes if kept is None else self.cut_shapes(kept)
        return {layer: sum(int(np.prod(s, dtype=np.int64)) for s in weights) for layer, weights in shapes.items()}


@dataclasses.dataclass(eq=False)
class _Flow:
    """What flows along an edge of the graph: channel ids, and the layer whose bare linear output this is."""

    ids: np.ndarray
    shape: tuple  # static, without the batch dimension
    linear: str | None = None
    readers: int = 0


class Call:
    """One call of a layer as its channel rule sees it; see `layer_specs`.

    Attributes:
        layer: the layer or bare op.
        inputs: for each input the channel ids: an int array of the tensor's rank without its batch dimension.
        output_shapes: the outputs' static shapes without the batch dimension.
    """

    def __init__(self, reader, node, args, kwargs):
        arguments = tf.nest.flatten((args, kwargs))
        self._flows = [flow for flow in arguments if isinstance(flow, _Flow)]
        self.layer, self.inputs = node.layer, [flow.ids for flow in self._flows]
        self.output_shapes = [shape[1:] for shape in node.output_shapes]
        self._arguments = args, kwargs
        self._reader, self._path = reader, node.path

    def described(self) -> str:
        """The layer as a message names it."""
        return f"{self._path!r} ({type(self.layer).__name__})"

    def shape(self, i: int = 0) -> tuple:
        """Static shape of input `i` without the batch dimension; None where a size is not known."""
        return self._flows[i].shape

    def axis(self, axis: int) -> int:
        """An axis as Keras counts it (batch first, or from the end) in the arrays of ids, which have no batch."""
        return axis - 1 if axis > 0 else len(self.shape()) + axis

    def channel_axis(self) -> int:
        """The axis of the channels by the layer's `data_format`: the first or the last, whatever the rank."""
        return 0 if getattr(self.layer, "data_format", None) == "channels_first" else -1

    def spatial(self, shape: tuple) -> tuple:
        """`shape` without its channel axis."""
        return tuple(np.delete(shape, self.channel_axis()))

    def channels(self, i: int = 0, axis: int = -1) -> np.ndarray:
        """The ids [channels] of input `i` along one axis; ids at the same place of it are tied."""
        ids = np.moveaxis(self.inputs[i], axis, -1)
        columns = ids.reshape(-1, ids.shape[-1])
        self.tie(np.broadcast_to(columns[:1], columns.shape)[1:], columns[1:])
        channels = np.broadcast_to(columns[0], self.shape(i)[axis])
        self._reader.reads.setdefault((self._path, i), (axis % ids.ndim, channels))
        return channels

    def full(self, i: int = 0) -> np.ndarray | None:
        """The ids of input `i` at every place of it; None if its static shape is not known."""
        return None if None in self.shape(i) else np.broadcast_to(self.inputs[i], self.shape(i))

    def place(self, ids: np.ndarray, axis: int | None = None) -> np.ndarray:
        """Channel ids [channels] as the ids of the output: along its channel axis, the same all over the rest."""
        shape = np.ones(len(self.output_shapes[0]), int)
        shape[self.channel_axis() if axis is None else axis] = -1
        return ids.reshape(shape)

    def opaque(self) -> Any:
        """Protected ids for outputs that nothing is known of."""
        outputs = []
        for shape in self.output_shapes:
            ids = self._reader.fresh(shape[-1] if shape and shape[-1] else 1)
            self.protect(ids, f"{self.described()} makes it in a way that tfspline does not know")
            outputs.append(ids.reshape((1,) * (len(shape) - 1) + (-1,)) if shape else ids.reshape(()))
        return outputs

    def argument(self, name: str) -> Any:
        """An argument of the call that is no input, by its name; None where it is not given."""
        return _keras.arguments(self.layer, *self._arguments).get(name)

    def input(self, name: str) -> int | None:
        """Which of the inputs is the argument of that name; None where it is not given."""
        value = self.argument(name)
        return self._flows.index(value) if isinstance(value, _Flow) else None

    def constants_are_scalars(self) -> bool:
        """Whether nothing but scalars enters the call besides its inputs."""
        values = tf.nest.flatten(_keras.arguments(self.layer, *self._arguments))
        return all(isinstance(value, _Flow) or np.ndim(value) == 0 for value in values)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Makes the units of `a` and `b`, arrays of the same shape, one unit each."""
        self._reader.ties.append(np.stack([np.ravel(a), np.ravel(b)]))

    def protect(self, ids: np.ndarray, why: str, inexact: bool = False) -> None:
        """Keeps units; `inexact` says that a user may allow the cut although it changes what is left."""
        if not (inexact and self._reader.allow_inexact):
            self._reader.protected.append((np.ravel(ids), why))

    def produce(self, weight: str, axis: int) -> np.ndarray:
        """Fresh ids [channels] for an axis of a weight that makes channels; the same ones at a layer's next call."""
        ids = self._site(weight, axis, None, "out")
        if getattr(self.layer, "quantization_mode", None):
            self.protect(ids, f"{self.described()} is quantized, by a scale for each; prune before")
        return ids

    def consume(self, weight: str, axis: int, ids: np.ndarray) -> None:
        """The axis of a weight that reads channels."""
        self._site(weight, axis, ids, "in")

    def carry(self, weight: str, axis: int, ids: np.ndarray, state: bool = False) -> None:
        """The axis of a weight that travels with its channels; a weight that the layer does not have is skipped."""
        if _keras.weight(self.layer, weight) is not None:
            self._site(weight, axis, ids, "state" if state else "carry")

    def _site(self, weight, axis, ids, role):
        variable = _keras.weight(self.layer, weight)
        axis %= len(variable.shape)
        known = self._reader.sites.get((self._path, weight, axis))
        if known is not None:  # a layer called again: its weights are the same ones
            if ids is not None:
                self.tie(known.units, ids)
            return known.units
        index = self._index(weight)
        if role == "out":
            self._reader.makers.add(self._path)
        ids = self._reader.fresh(variable.shape[axis]) if ids is None else ids
        if ids.shape != (variable.shape[axis],):
            raise ValueError(
                f"Expected {variable.shape[axis]} channel ids for axis {axis} of {weight!r} of {self.described()}. "
                f"Received: {ids.shape}"
            )
        self._reader.sites[self._path, weight, axis] = Site(self._path, weight, index, axis, ids, role)
        return ids

    def resize(self, key: str, value_of: Callable[[np.ndarray], Any]) -> None:
        """A config entry of the layer whose value becomes `value_of(kept)`, `kept` a bool array indexed by id."""
        self._reader.resizes[self._path, key] = value_of

    def macs(self, weight: str | None, positions: int) -> None:
        """The weight is applied `positions` times to one input of the model; None counts work without a weight."""
        index = None if weight is None else self._index(weight)
        self._reader.work.append(Work(self._path, index, positions))

    def _index(self, weight):
        variable = _keras.weight(self.layer, weight)
        for i, other in enumerate(self.layer.weights):
            if other is variable:
                return i
        raise ValueError(
            f"Expected layers whose {weight!r} is one of their weights. Received: {self.described()}, where it is made "
            "of several, as by LoRA; prune before, or merge them"
        )


class _Reader:
    """The state of one walk over a model."""

    def __init__(self, allow_inexact):
        self.allow_inexact = allow_inexact
        self.count, self.ties, self.protected = 0, [], []
        self.sites, self.resizes, self.work, self.folds, self.makers = {}, {}, [], [], set()
        self.reads, self.calls = {}, collections.Counter()

    def fresh(self, n):
        self.count += n
        return np.arange(self.count - n, self.count)

    def walk(self, model, flows):
        outputs = _keras.run(model, flows, self._visit, nested=True)
        for flow in outputs:
            flow.readers += 1
        return outputs

    def _visit(self, node, args, kwargs):
        arguments = [flow for flow in tf.nest.flatten((args, kwargs)) if isinstance(flow, _Flow)]
        self.calls[node.path] += 1
        outputs = tf.nest.flatten(rules.rule_for(node.layer)(Call(self, node, args, kwargs)))
        for flow in arguments:
            flow.readers += 1
        channels = (node.path, 0) in self.reads  # and not, by a wrong axis, rows
        if _keras.of_class(node.layer, "BatchNormalization") and arguments[0].linear and channels:
            self.folds.append((arguments[0], node.path))
        linear = node.path in self.makers and _keras.activation_name(node.layer) == "linear"
        return [
            _Flow(np.asarray(ids), shape[1:], node.path if linear else None)
            for ids, shape in zip(outputs, node.output_shapes, strict=True)
        ]


def read(model: Any, protect: tuple = (), allow_inexact: bool = False) -> Graph:
    """Reads which units a model has, where their weights are and what they cost.

    Args:
        model: a built functional or Sequential model of either Keras; models nested in it are read as well.
        protect: paths of layers whose units must stay, or predicates of a layer.
        allow_inexact: do not protect the channels that LayerNormalization and its kin run over.

    Returns:
        A `Graph`.

    Raises:
        TypeError, ValueError: the model's graph cannot be read, `protect` names a layer that it does not have, or a
            weight has no numbers in it.

    Example:

    >>> import keras
    >>> from tfspline.graph import reader
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu", name="a"), keras.layers.Dense(2)])
    >>> [(group.name, len(group.units), group.protected) for group in reader.read(model).groups][0]
    ('a', 3, None)
    """
    _keras.check_model(model)
    paths = _keras.layer_paths(model)
    unknown = [name for name in protect if name not in list(paths) and (not callable(name) or name in paths.values())]
    if unknown:
        raise ValueError(f"Expected names of layers in `protect`, among {sorted(paths)}. Received: {unknown}")

    for path, layer in paths.items():
        shapes = [tuple(weight.shape) for weight in _keras.weights(layer)]
        if any(0 in shape for shape in shapes) and not _keras.is_model(layer):
            raise ValueError(f"Expected weights that hold numbers. Received: layer {path!r} with shapes {shapes}")

    reader = _Reader(allow_inexact)
    flows = []
    for tensor in model.inputs:
        ids = reader.fresh(tensor.shape[-1] or 1 if len(tensor.shape) > 1 else 1)
        reader.protected.append((ids, "it is an input of the model"))
        shape = (1,) * (len(tensor.shape) - 2) + (-1,) if len(tensor.shape) > 1 else ()
        flows.append(_Flow(ids.reshape(shape), tuple(tensor.shape)[1:]))
    outputs = [(np.ravel(flow.ids), "it feeds an output of the model") for flow in reader.walk(model, flows)]
    reader.protected = outputs + reader.protected  # of several reasons, the first is given
    for site in reader.sites.values():
        if site.role == "out" and any(
            name(paths[site.layer]) if callable(name) else site.layer == name or site.layer.startswith(f"{name}/")
            for name in protect
        ):
            reader.protected.append((site.units, "it was asked for in `protect`"))
    return _graph(reader, paths)


def _graph(reader, paths) -> Graph:
    ties = np.concatenate([np.zeros((2, 0), int), *reader.ties], axis=1)
    edges = coo_array((np.ones(ties.shape[1], bool), (ties[0], ties[1])), shape=(reader.count, reader.count))
    count, unit_of = connected_components(edges, directed=False)
    for site in reader.sites.values():
        site.units = unit_of[site.units]
    why = np.full(count, None, object)
    for ids, reason in reversed(reader.protected):
        why[unit_of[ids]] = reason
    sites = list(reader.sites.values())
    resizes = [(path, key, _of_ids(value_of, unit_of)) for (path, key), value_of in reader.resizes.items()]
    shapes = {
        path: [tuple(weight.shape) for weight in _keras.weights(layer)]
        for path, layer in paths.items()
        if not _keras.is_model(layer) and hasattr(layer, "weights")
    }
    folded = {flow.linear: path for flow, path in reader.folds if flow.readers == 1}
    reads = {read: (axis, unit_of[ids]) for read, (axis, ids) in reader.reads.items()}
    shared = frozenset(path for path, calls in reader.calls.items() if calls > 1)
    return Graph(shapes, sites, _groups(sites, why), reader.work, resizes, folded, reads, shared, count)


def _of_ids(value_of, unit_of):
    return lambda kept: value_of(kept[unit_of])


def _groups(sites, why) -> list[Group]:
    # A unit's signature sums a random number for each of its positions in each producing site: units of equal
    # signature are made by the same layers, in as many places each.
    makers = [site for site in sites if site.role == "out"]
    number = np.random.default_rng(0).integers(1, 2**62, len(makers) + 1, dtype=np.uint64)
    signature = (why != None).astype(np.uint64) * number[-1]  # noqa: E711 (elementwise)
    for site, one in zip(makers, number, strict=False):
        np.add.at(signature, site.units, one)
    groups, names, seen = [], {}, np.zeros(len(why), bool)
    layers_of = {}
    for site in makers:
        for mark in np.unique(signature[site.units]):
            layers_of.setdefault(mark, []).append(site.layer)
    for site in makers:
        units = site.units[np.sort(np.unique(site.units, return_index=True)[1])]
        units = units[~seen[units]]
        seen[units] = True
        for mark in dict.fromkeys(signature[units].tolist()):
            members = units[signature[units] == mark]
            names[site.layer] = names.get(site.layer, 0) + 1
            name = site.layer if names[site.layer] == 1 else f"{site.layer}#{names[site.layer]}"
            groups.append(Group(name, tuple(dict.fromkeys(layers_of[mark])), members, why[members[0]]))
    return groups
