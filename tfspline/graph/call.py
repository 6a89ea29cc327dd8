"""The call of a layer as its channel rule sees it."""

import copy
import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.findings import Findings
from tfspline.graph.flow import Flow, constants, each_step, kept_along, taken
from tfspline.graph.structure import WeightSlice, Work


class Call:
    """One call of a layer as its channel rule sees it; `tfspline.graph.layer_specs` describes what rules do.

    Attributes:
        layer: the layer or bare op.
        inputs: the channel ids of each input, see `Flow.ids`.
        output_shapes: the outputs' static shapes without the batch dimension.
        batch: how many inputs the model is run on at once; 1, unless its graph fixes another number.
        is_opaque, declares_macs: whether the rule has called `opaque` or `macs`.
        may_change_width: whether the layer has an activation that may do anything to the channels, which are protected.
    """

    def __init__(self, findings: Findings, node: _keras.Node, args: tuple, kwargs: dict, outputs: list[tf.TensorSpec]):
        self._flows = [value for value in tf.nest.flatten((args, kwargs)) if isinstance(value, Flow)]
        self.layer, self.inputs = node.layer, [flow.ids for flow in self._flows]
        self.output_shapes, self.is_opaque, self.declares_macs = [s[1:] for s in node.output_shapes], False, False
        self.may_change_width = False
        self.batch, self._arguments = findings.batch, (args, kwargs)
        self._findings, self._path, self._outputs = findings, node.path, outputs
        self._outermost, self._inside, self._first_axis = node.layer, "", 0

    def described(self) -> str:
        """The layer's path and class, for messages."""
        return f"{self._path!r} ({type(self.layer).__name__})"

    def of_each_step(self, name: str) -> "Call":
        """The call of a layer inside, an attribute of this one, that is applied to each step of the first input."""
        call = copy.copy(self)
        call.layer, call._inside = _keras.weight(self.layer, name), f"{self._inside}{name}."
        call._first_axis += 1
        flow, ids = self._flows[0], self.inputs[0]
        if 1 < len(ids) < ids.size:
            self.tie_groups(ids, len(ids))
        elif len(ids) > 1:
            self.protect(ids, f"{self.described()} reads each step with the same weights")
        call._flows = [dataclasses.replace(flow, ids=ids[0], shape=flow.shape[1:], spec=each_step(flow.spec))]
        call.inputs, call._arguments = [ids[0]], (tuple(call._flows), {})
        call.output_shapes = [shape[1:] for shape in self.output_shapes]
        call._outputs = [each_step(spec) for spec in self._outputs]
        return call

    def shape(self, i: int = 0) -> tuple:
        """The static shape of input `i` without the batch dimension; None for an unknown size."""
        return self._flows[i].shape

    def axis(self, axis: int) -> int:
        """Converts an axis as Keras counts it (batch first, or from the end) to an axis of the arrays of ids."""
        return axis - 1 if axis > 0 else len(self.shape()) + axis

    def channel_axis(self) -> int:
        """The axis of the channels by the layer's `data_format`: the first or the last."""
        return 0 if getattr(self.layer, "data_format", None) == "channels_first" else -1

    def sizes(self, i: int | None = None) -> tuple:
        """The shape of input `i`, or of the output, in a prediction of one input, batch first; None if unknown."""
        return tuple((self._outputs[0] if i is None else self._flows[i].spec).shape)

    def positions(self, i: int | None = None) -> int | None:
        """At how many positions a channel of input `i`, or of the output, has a number; None if unknown."""
        sizes = list(self.sizes(i))
        del sizes[self.channel_axis() or 1]
        return None if None in sizes else math.prod(sizes) // self.batch

    def channels(self, i: int = 0, axis: int = -1) -> np.ndarray:
        """The ids [channels] of input `i` along one axis; ids at the same position of it are tied.

        Ids that are along other axes only are protected: the call mixes positions, with the same weights for all ids.
        """
        ids = np.moveaxis(self.inputs[i], axis, -1)
        if ids.shape[-1] == 1 < ids.size:
            self.protect(ids, f"{self.described()} reads them along another axis than that of its channels")
            row = ids.reshape(-1)[:1]
        else:
            row = self.tie_groups(ids, ids.size // ids.shape[-1])
        if self.shape(i)[axis] is None:
            sizes = f"axis {axis} of an input of shape {self.shape(i)}"
            self.refuse(
                f"reads channels along {sizes}, whose size is not known; give tfspline.functional `input_shape`"
            )
        channels = np.broadcast_to(row, self.shape(i)[axis])
        self._findings.reads.setdefault((self._path, i), (axis % ids.ndim + self._first_axis, channels))
        return channels

    def full(self, i: int = 0) -> np.ndarray | None:
        """The ids of input `i` at every position; None if its static shape is not known."""
        return None if None in self.shape(i) else np.broadcast_to(self.inputs[i], self.shape(i))

    def place(self, ids: np.ndarray, axis: int | None = None) -> np.ndarray:
        """Lays channel ids [channels] along an axis of the output, the channel axis by default."""
        ids = self.checked(ids, "call.place")
        shape = np.ones(len(self.output_shapes[0]), int)
        shape[self.channel_axis() if axis is None else axis] = -1
        return ids.reshape(shape)

    def fixed(self, shape: tuple, why: str) -> np.ndarray:
        """Fresh ids of a shape, protected for the reason `why`."""
        ids = self.fresh(shape)
        self.protect(ids, why)
        return ids

    def fresh(self, shape: tuple) -> np.ndarray:
        """Fresh ids of a shape, of units that no weight produces."""
        return self._findings.ids.fresh(math.prod(shape)).reshape(shape)

    def opaque(self) -> list[np.ndarray]:
        """Fresh protected ids for outputs about which nothing is known."""
        self.is_opaque, outputs = True, []
        for shape in self.output_shapes:
            outputs.append(self._findings.ids.of_tensor(shape))
            self.protect(outputs[-1], f"{self.described()} computes it in a way that tfspline does not know")
        return outputs

    def argument(self, name: str) -> Any:
        """An argument of the call by name; None if it was not given."""
        return _keras.arguments(self.layer, *self._arguments).get(name)

    def input(self, name: str) -> int | None:
        """The number of the input that was given as the argument `name`; None if there is none."""
        value = self.argument(name)
        return self.number_of(value) if isinstance(value, Flow) else None

    def number_of(self, flow: Flow) -> int:
        """The number of an input."""
        return self._flows.index(flow)

    def is_zero_when_off(self, i: int) -> bool:
        """Whether input `i` is known to be zero if all its units are switched off."""
        return not np.any(self._flows[i].off())

    def shape_of(self, name: str) -> tuple:
        """The static shape of the argument `name`, an input or a constant, without the batch dimension."""
        value = self.argument(name)
        return value.shape if isinstance(value, Flow) else np.shape(value)[1:]

    def constants(self) -> dict[tuple, Any]:
        """The arguments that are not inputs, numbers, arrays, lists of numbers and so on, by their place.

        A place is the name of an argument, and further keys if it is in a list, tuple or dict: ("values", 1).
        """
        return dict(constants(dict(_keras.arguments(self.layer, *self._arguments))))

    def cut_constant(self, place: tuple, ids: np.ndarray, axes: Mapping[int, int]) -> None:
        """Declares that a constant is cut along some of its axes as `ids` are: {axis of the constant: axis of ids}."""
        value = self.constants()[place]
        if _keras.is_weight(value):
            self.protect(ids, f"{self.described()} reads a variable with a number for each of them")
            return
        self.resize(place, lambda kept: taken(value, {a: kept_along(kept, ids)[axis] for a, axis in axes.items()}))

    def sizes_as_numbers(self) -> np.ndarray:
        """The ids of an output that holds the sizes of the first input; `read_sizes` says which of them are read."""
        ids = self.fixed((), f"{self.described()} holds sizes")
        self._findings.sizes[int(ids)] = self.inputs[0]
        return ids

    def read_sizes(self, key: Any = slice(None)) -> None:
        """Protects channels along axes of which sizes are read as numbers: those of `shape[key]`."""
        for ids in self.inputs:
            source = self._findings.sizes.get(int(ids)) if not ids.ndim else None
            if source is not None:
                part = slice(key["start"], key["stop"], key["step"]) if isinstance(key, dict) else key
                read = np.ravel(np.arange(source.ndim + 1)[part])
                if any(axis and source.shape[axis - 1] > 1 for axis in read):
                    self.protect(source, f"{self.described()} reads their number")

    def run(self, values: list) -> list:
        """The outputs of the layer or op, called with `values` in place of the inputs."""
        given = iter(values)
        return _keras.call(self.layer, *self._arguments, Flow, lambda _: next(given))

    def shares_with(self) -> str | None:
        """The path of another layer that has weights of this one, with which no rule can cut them."""
        return self._findings.shared.get(self._path)

    def keep(self, why: str) -> None:
        """Says why weights of the layer are kept as they are, for the plan."""
        if _keras.weights(self.layer):
            self._findings.kept.setdefault(self._path, why)

    def checked(self, ids: Any, use: str) -> np.ndarray:
        """`ids` as an array; ValueError, which names their `use`, unless they are channel ids."""
        try:
            ids = np.asarray(ids)
        except ValueError:  # rows of different lengths
            ids = np.asarray(None)
        known = ids.dtype.kind in "iu" and (not ids.size or ids.min() >= 0 and ids.max() < self._findings.ids.count)
        if not known:
            self.refuse(f"must pass channel ids, as in call.inputs, to {use}. Received: {ids!r}")
        return ids

    def refuse(self, problem: str) -> NoReturn:
        """Raises a ValueError about the channel rule."""
        raise ValueError(f"The channel rule of {self.described()} {problem}")

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Makes the ids in `a` and those at the same place in `b`, an array of the same shape, one unit each."""
        a, b = self.checked(a, "call.tie"), self.checked(b, "call.tie")
        if a.shape != b.shape:
            self.refuse(f"must tie arrays of the same shape. Received: {a.shape} and {b.shape}")
        self._findings.ids.tie(a, b)

    def tie_groups(self, ids: np.ndarray, groups: int) -> np.ndarray:
        """Ties the ids at the same position of every group, so that all stay equally wide; returns those of one."""
        rows = ids.reshape(groups, -1)
        self.tie(np.broadcast_to(rows[:1], rows[1:].shape), rows[1:])
        return rows[0]

    def protect(self, ids: np.ndarray, why: str, inexact: bool = False) -> None:
        """Keeps the units of `ids`, for the reason `why`. With `inexact`, `allow_inexact` lifts the protection."""
        if not (inexact and self._findings.allow_inexact):
            advice = "; allow_inexact=True prunes them nevertheless" if inexact else ""
            self._findings.ids.protect(self.checked(ids, "call.protect"), why + advice)

    def produce(self, weight: str, axis: int, gates: int = 1) -> np.ndarray:
        """Fresh ids [channels] for an axis of a weight that produces channels; a later call gets the same ids.

        With several `gates`, the axis holds all channels that often, one gate after the other.
        """
        ids = self.tie_groups(self._slice(weight, axis, None, "produced", gates), gates)
        if getattr(self.layer, "quantization_mode", None):
            self.protect(ids, f"{self.described()} is quantized with a scale for each channel; prune before quantizing")
        return ids

    def consume(self, weight: str, axis: int, ids: np.ndarray) -> None:
        """Declares that a weight reads the channels `ids` along an axis."""
        self._slice(weight, axis, self.checked(ids, repr(weight)), "read")

    def per_channel(self, weight: str, axis: int, ids: np.ndarray, statistic: bool = False, power: float = 0.0) -> None:
        """Declares that a weight has one entry for each channel along an axis; ignored if the layer lacks the weight.

        `statistic` marks a moving statistic, which is not trained and not masked. A cut that leaves K of D entries
        multiplies them by (D / K) ** power.
        """
        if _keras.weight(self.layer, weight) is not None or not self._may_lack(weight):
            ids = self.checked(ids, repr(weight))
            self._slice(weight, axis, ids, "statistic" if statistic else "per_channel", power=power)

    def resize(self, key: str | tuple, value_of: Callable[[np.ndarray], Any]) -> None:
        """Declares that the config entry `key` becomes `value_of(kept)`, with `kept` a bool array indexed by id.

        For a bare op, `key` is the name of an argument; a tuple is the place of an argument, see `constants`.
        """
        if isinstance(key, str) or (len(key) == 1 and _keras.op_name(self.layer) is not None):
            key = _keras.place_of(self.layer, key if isinstance(key, str) else key[0])
        key = self._inside + key if isinstance(key, str) else key
        self._findings.resizes.setdefault((self._path, key), []).append(value_of)

    def absorb(self, *inputs: int) -> None:
        """Declares that the call adds up units of these inputs without a weight, so that the output lacks them.

        The sum must not change if a unit is removed that is zero in one of the inputs that hold it.
        """
        found = self._findings.absorbed.setdefault((self._path, self._findings.calls[self._path]), [])
        found.append({i: self.inputs[i] for i in inputs})

    def part(self, ids: np.ndarray) -> None:
        """Declares that an output holds some of the ids of an input; at least one of their units is always kept."""
        self._findings.parts.append(np.ravel(ids))

    def broadcast(self, ids: np.ndarray, whole: np.ndarray) -> None:
        """Declares that the numbers of `ids` are repeated to meet those of `whole`, along axes on which this varies."""
        self._findings.ids.broadcast(ids, whole, f"{self.described()} broadcasts it over several channels")

    def macs(self, weight: str | None, *times: int | None, ids: np.ndarray | None = None) -> None:
        """Declares that a weight is applied so many times, a product, to one model input, as a rule `positions()`.

        Without a weight (None), this is the number of MACs; with `ids`, int [n], that for each of these channels. A
        factor of None says that a size is not known.
        """
        self.declares_macs = True
        if not times or any(not isinstance(n, numbers.Integral | None) for n in times):
            self.refuse(f"must pass integers to call.macs after the weight. Received: {times}")
        index = None if weight is None else self._index(weight)
        if None in times:
            self.unknown(
                "the sizes that it is called with are not known; give `input_shape` if the model's input has them"
            )
        else:
            self._findings.work.append(Work(self._path, index, math.prod(n or 0 for n in times), ids))

    def unknown(self, why: str) -> None:
        """Declares that work of the layer is not counted, for the reason `why`."""
        self._findings.unknown.setdefault(self._path, why)

    def _slice(self, weight, axis, ids, role, gates=1, power=0.0):
        variable = self._variable(weight)
        shape = tuple(variable.shape)
        if not -len(shape) <= axis < len(shape):
            self.refuse(f"must name an axis of {weight!r}, whose shape is {shape}. Received: axis {axis}")
        axis %= len(shape)
        place = id(variable), axis
        known = self._findings.slices.get(place)
        if known is not None and ids is not None:  # the layer is called again, or another one has the same weight
            self.tie(known.units, ids)
            return known.units
        if ids is None:
            ids = self._findings.ids.fresh(shape[axis]) if known is None else known.units
            self._findings.producers.setdefault(self._path, {})[place] = ids
        if known is not None:
            return ids
        index = self._index(weight)
        if ids.shape != (shape[axis],):
            self.refuse(f"must give {shape[axis]} channel ids for axis {axis} of {weight!r}. Received: {ids.shape}")
        name = self._inside + weight
        self._findings.slices[place] = WeightSlice(self._path, name, index, axis, ids, role, gates, power)
        return ids

    def _may_lack(self, weight):
        """Whether the layer may do without a weight. In the rule of a custom layer, its name is a typing error."""
        return _keras.builtin_class_name(self.layer) is not None or hasattr(self.layer, weight)

    def _variable(self, weight):
        variable = _keras.weight(self.layer, weight)
        if not hasattr(variable, "shape"):
            names = sorted(
                name for name, value in vars(self.layer).items() if any(value is w for w in _keras.weights(self.layer))
            )
            self.refuse(f"must name a weight of the layer, such as {names}. Received: {weight!r}")
        return variable

    def _index(self, weight):
        variable = self._variable(weight)
        for i, other in enumerate(_keras.weights(self._outermost)):
            if other is variable:
                return i
        raise ValueError(
            f"The {weight!r} of {self.described()} is not a weight but computed from several, as with LoRA. "
            "Prune before they are added, or merge them: save_weights, then load_weights of a model without them."
        )
