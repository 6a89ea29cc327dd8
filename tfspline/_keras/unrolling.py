"""Unrolling: a model with subclassed models and composite layers in it as one flat functional graph.

Calling a layer on symbolic tensors records the layers and ops that its `call` uses. While a model is unrolled, Keras'
own way of calling layers is intercepted: the `call` of a composite layer runs on symbolic tensors, so that its parts
are recorded instead of the layer itself, and every other layer is replaced by a twin. A twin is a copy that has the
same weights and a name of its own, so the model that is unrolled stays as it is.
"""

import contextlib
import functools
import inspect
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspline._keras.carriers import Carrier, carrier, constant
from tfspline._keras.closed_layers import why_closed
from tfspline._keras.copying import Copies
from tfspline._keras.drop_paths import stock_drop_path
from tfspline._keras.foreign_activations import foreign_activation, is_made_of
from tfspline._keras.graph import calls_between, is_graph, is_symbolic, mask_of
from tfspline._keras.interception import intercepted, without_training
from tfspline._keras.layers import builtin_base, make_savable, op_name, rename, sublayers
from tfspline._keras.modules import is_model, keras_of
from tfspline._keras.rebuilding import of_same_class
from tfspline._keras.references import holds_weights, map_weights
from tfspline._keras.rms_norms import stock_rms_norm
from tfspline._keras.symbolic_inputs import symbolic_inputs
from tfspline._keras.types import InputShape, KerasLayer, KerasModel


class _NotCopied(ValueError):
    """A layer cannot be copied, whether it is unrolled or a layer around it is kept whole."""


class _Inherited:
    """What a `call` that is recorded gets as `training`: the flat model decides it later, so code must not test it."""

    def _refuse(self, *_):
        raise ValueError("it branches on `training`")

    __bool__ = __eq__ = __hash__ = __int__ = __index__ = _refuse


# Attributes in which Keras keeps the weights of a layer, besides those that the layer's code uses.
_TRACKED = ("_self_", "_trainable_", "_non_trainable_", "_obj_reference")
_ADDED = ("_losses", "_metrics")  # lists of tf_keras that add_loss and add_metric append to
_INHERITED: Any = _Inherited()
_WAY_OUT = "write its `call` with layers and ops of Keras only"
_reasons: Any = weakref.WeakKeyDictionary()  # twin -> why its original was not unrolled


def why_not_unrolled(layer: KerasLayer) -> str | None:
    """Why a composite layer in an unrolled model is kept as one layer; None if that was not tried."""
    return _reasons.get(layer) if op_name(layer) is None else None


def unroll(
    model: KerasModel,
    is_leaf: Callable[[Any], bool],
    takes_weights: Callable[[Any], bool],
    is_elementwise: Callable[[Any], bool],
    is_rms_norm: Callable[[Any], bool],
    input_shape: InputShape,
) -> KerasModel:
    """A functional model that computes the same with the same weights, without composite layers as far as possible.

    Args:
        is_leaf: whether a layer is to be kept as one layer.
        takes_weights: whether channels can be followed through a layer or op if some of its inputs are weights. A layer
            without sublayers is kept as one layer if an op in it is not of this kind.
        is_elementwise: whether channels can be followed through a `Node` of an op that acts on each number alone. An
            activation of a user or another package is recorded if all ops in it are of this kind.
        is_rms_norm: whether an RMSNormalization of Keras with the same weight takes the place of a user's layer.
        input_shape: the shapes of the inputs, as for `tfspline.functional`, where the model does not tell them.

    Raises:
        ValueError: the graph of the model cannot be recorded.
    """
    return _Unrolling(model, is_leaf, takes_weights, is_elementwise, is_rms_norm).run(
        symbolic_inputs(model, input_shape)
    )


class _Unrolling:
    """The twins of the layers of one model, and where in it the recording is."""

    def __init__(self, model, is_leaf, takes_weights, is_elementwise, is_rms_norm):
        self._model, self._is_leaf, self._takes_weights = model, is_leaf, takes_weights
        self._is_elementwise, self._is_rms_norm = is_elementwise, is_rms_norm
        self._module = keras_of(model)
        self._twins: dict[int, Any] = {}  # by the id of the original
        self._is_twin: set[int] = set()  # ids of twins and of the ops that were recorded
        self._carriers: dict[int, Any] = {}  # by the id of a weight or constant: this, and the tensor with its value
        self._input_specs = {id(layer): getattr(layer, "input_spec", None) for layer in sublayers(model)}
        self._failed: dict[int, str] = {}
        self._names: set[str] = set()
        self._open: list[Any] = []  # the composite layers whose `call` is running, from the outermost on
        self._training: list[Any] = [None]  # what each of them was told
        self._activations: dict[int, Any] = {}  # by the id of the original: the function that its twin lacks
        self._copies = Copies(self._whole_twin, shares_weights=True)
        self.computed: dict[int, Any] = {}  # by id, what ops have computed from more than numbers while recording
        self.anchor: Any = None  # a symbolic tensor on which carriers are called

    def run(self, inputs: Any) -> Any:
        """Records the graph of the model on symbolic inputs."""
        self.anchor = tf.nest.flatten(inputs)[0]
        self._names = {tensor._keras_history[0].name for tensor in tf.nest.flatten(inputs)}
        if not all(layer.built for layer in (self._model, *sublayers(self._model))):  # twins must not be built instead
            self._model(tf.nest.map_structure(lambda x: tf.zeros([size or 1 for size in x.shape], x.dtype), inputs))
        try:
            with intercepted(self, self._module):
                outputs = self._model(inputs)
        except _NotCopied as error:
            raise ValueError(_first_line(error)) from error
        if id(self._model) in self._failed:
            raise ValueError(
                f"The graph of the subclassed model {type(self._model).__name__} ({self._model.name!r}) cannot be "
                f"recorded: {self._failed[id(self._model)]}; {_WAY_OUT}"
            )
        base: Any = self._module.Model
        if is_graph(self._model) and not isinstance(self._model, self._module.Sequential):
            flat = of_same_class(self._model, base, inputs=inputs, outputs=outputs)
        else:
            flat = base(inputs, outputs, name=self._model.name)
        if flat.trainable != self._model.trainable:
            flat.trainable = self._model.trainable
        return flat

    def is_twin(self, layer: Any) -> bool:
        """Whether a layer or op belongs to the flat model."""
        return id(layer) in self._is_twin

    def is_composite(self, layer: Any) -> bool:
        """Whether the `call` of a layer is to be recorded."""
        return not (id(layer) in self._is_twin or id(layer) in self._failed or op_name(layer) or self._is_leaf(layer))

    def is_open(self, layer: Any) -> bool:
        """Whether the `call` of this layer is running."""
        return any(layer is other for other in self._open)

    def composite(self, layer: Any, call: Callable, training: Any, inputs: Any) -> Any:
        """The outputs of a composite layer, as `call()` records them with the layer opened; None if it fails."""
        reason = why_closed(layer)
        if reason is None:
            self._open.append(layer)
            self._training.append(self._training[-1] if training is None else training)
            try:
                with self._symbolic_weights(layer):
                    outputs = call()
                if not sublayers(layer):
                    self._check_products(*(filter(is_symbolic, tf.nest.flatten(part)) for part in (inputs, outputs)))
                return outputs
            except _NotCopied:
                raise
            except Exception as error:  # the code of users
                reason = f"its call does not run on symbolic tensors ({type(error).__name__}: {_first_line(error)})"
            finally:
                self._open.pop()
                self._training.pop()
        self._failed[id(layer)] = reason
        return None

    def _check_products(self, inputs, outputs):
        """Refuses a layer whose own weights meet its inputs in an op through which channels cannot be followed."""
        of_weights: dict[int, bool] = {}
        for layer, reads, tensor in calls_between([*inputs, self.anchor], list(outputs)):
            kinds = {of_weights.get(id(read), False) for read in reads}
            of_weights[id(tensor)] = isinstance(layer, Carrier) or kinds == {True}
            if kinds == {True, False} and not self._takes_weights(layer):
                raise ValueError(f"its {op_name(layer)!r} combines inputs with a weight of its own")

    def told(self, kwargs: dict) -> bool | None:
        """What a call says about `training`; None if it leaves that to the call of the model."""
        if self._module is keras and self.from_graph():  # Keras 3 passes on what the model was told
            return self._training[-1]
        value = kwargs.get("training")
        return None if value is _INHERITED else value

    def from_graph(self) -> bool:
        """Whether a graph runs that Keras recorded before, whose ops have the constants of their calls."""
        return bool(self._open) and is_graph(self._open[-1])

    def may_be_of_weights(self, value: Any) -> bool:
        """Whether an argument of an op may have been computed from weights, which TensorFlow can read unnoticed."""
        if not isinstance(value, tf.Tensor) or not value.dtype.is_floating or self.from_graph():
            return False
        numbers = any(not weight.shape.rank for weight in self._model.weights)
        return bool(value.shape.rank) or numbers or id(value) in self.computed

    def arguments(self, layer: Any, kwargs: dict) -> dict:
        """The keyword arguments of the `call` of an open layer or of a twin: `training` only as the model says it."""
        own = self.told(kwargs)
        if own is not None and self._module is keras and not self.from_graph():
            raise ValueError(f"it fixes `training` of {layer.name!r}, which the call of a functional model overrides")
        given = self._training[-1] if own is None else own
        others = without_training(kwargs)
        takes_it = "training" in inspect.signature(layer.call).parameters
        return others if given is None or not takes_it else others | {"training": given}

    def opened(self, layer: Any, args: tuple, kwargs: dict) -> Any:
        """Runs the `call` of an open layer; Keras has filled in `training` by the default of its signature."""
        kwargs = without_training(kwargs)
        if kwargs.get("mask") is not None and self._module is not keras:
            inputs, masks = tf.nest.flatten(args[:1]), tf.nest.flatten(kwargs["mask"])
            passed_on = [mask_of(x) for x in inputs]
            # The layers of a graph take the masks that their inputs carry; another mask would be lost.
            if not is_graph(layer) or any(a is not b for a, b in zip(passed_on, masks, strict=True)):
                raise ValueError("it takes a mask")
        if "training" in inspect.signature(layer.call).parameters:
            told = self._training[-1]
            kwargs["training"] = _INHERITED if told is None and not is_graph(layer) else told
        return layer.call(*args, **kwargs)

    def twin(self, layer: Any, *inputs: Any) -> Any:
        """The twin of a layer or bare op of the model, for a call on some inputs.

        An op that the recording has made gets a free name. A layer that drops samples has a twin for each call.
        """
        if self.is_twin(layer):
            return layer
        if id(layer) in self._failed and (stock := stock_drop_path(layer, *inputs)) is not None:
            copy, name = stock, self._path(layer.name)
        elif op_name(layer) is not None and not layer._inbound_nodes:
            copy, name = layer, re.sub(r"_\d+$", "", layer.name)
        elif id(layer) in self._twins:
            return self._twins[id(layer)]
        else:
            copy = self._twins[id(layer)] = self._copy_of(layer)
            name = self._path(layer.name)
            if id(layer) in self._failed:
                _reasons[copy] = self._failed[id(layer)]
        self._is_twin.add(id(copy))
        rename(copy, self._free(name))
        return copy

    def activated(self, layer: Any, outputs: Any) -> Any:
        """The outputs of the twin of a layer after the activation that the twin lacks, if it lacks one."""
        function = self._activations.get(id(layer))
        if function is None:
            return outputs
        if mask_of(outputs) is None:
            return function(outputs)
        activation = self._module.layers.Activation(function, dtype=layer.dtype_policy)  # ops do not pass masks on
        rename(activation, self._free(f"{self._twins[id(layer)].name}_activation"))
        self._is_twin.add(id(activation))
        return activation(outputs)

    def _whole_twin(self, layer):
        return None if id(layer) in self._activations else self._twins.get(id(layer))

    def _copy_of(self, layer):
        if is_model(layer):
            why = self._failed[id(layer)]
            raise ValueError(f"Model {layer.name!r} ({type(layer).__name__}) cannot be unrolled, as {why}; {_WAY_OUT}")
        if self._is_rms_norm(layer):
            return stock_rms_norm(layer)
        try:
            function = self._activation_to_record(layer)
            copies = self._copies if function is None else Copies(self._whole_twin, shares_weights=True)
            copy = copies.of(layer)
        except ValueError as error:
            raise _NotCopied(f"Layer {layer.name!r} ({type(layer).__name__}) cannot be copied: {error}") from error
        spec = self._input_specs.get(id(layer))
        if spec is not None:  # tf_keras has another one while it calls a recurrent layer with initial states
            copy.input_spec = spec
        base = builtin_base(type(layer))
        if base is not None:  # so that it can be loaded without the module of its own class
            object.__setattr__(copy, "__class__", base)
        make_savable(copy)
        if function is not None:
            self._activations[id(layer)] = function
            copy.activation = self._module.activations.linear
        return copy

    def _activation_to_record(self, layer):
        """The function that is recorded after a layer of Keras instead of being its activation; None without one."""
        function, names = foreign_activation(layer), set(self._names)
        if function is None or not is_made_of(function, self._is_elementwise, self._module, layer.compute_dtype):
            function = None
        self._names = names
        return function

    def _path(self, name):
        return ".".join([*(part.name for part in self._open[1:]), name])

    def _free(self, name):
        name, number = name.lstrip("_."), 0
        free = name
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free

    @contextlib.contextmanager
    def _symbolic_weights(self, layer) -> Iterator[None]:
        """Puts symbolic tensors in place of the weights that a composite layer holds itself, in its attributes.

        Afterwards the attributes are as they were, whatever the layer's `call` has assigned.
        """
        held = vars(layer)
        before, added = dict(held), [(held[name], len(held[name])) for name in _ADDED if name in held]
        try:
            for name, value in before.items():
                if not name.startswith(_TRACKED) and holds_weights(value):
                    held[name] = map_weights(functools.partial(self._carried, layer, name), value)
            yield
            if any(len(values) > number for values, number in added):
                raise ValueError("it adds a loss or a metric")
        finally:
            for values, number in added:
                del values[number:]
            held.clear()
            held.update(before)

    def _carried(self, layer, name, weight):
        return self._carry(weight, name.lstrip("_"), lambda name: carrier(self._module, weight, layer, name))

    def symbolic(self, arguments: Any, name: str) -> Any:
        """The arguments of a call of a layer with weights, with symbolic tensors in place of constants.

        Called on constants, the layer would give a constant. `name` is that of the layers that return them.
        """

        def of(value):
            if not isinstance(value, tf.Tensor | np.ndarray):
                return value
            return self._carry(value, name, lambda name: constant(self._module, value, name))

        return tf.nest.map_structure(of, arguments)

    def _carry(self, value, name, make):
        """The tensor that stands for a weight or constant in the graph."""
        if id(value) not in self._carriers:
            new = make(self._free(self._path(name)))
            self._is_twin.add(id(new))
            self._carriers[id(value)] = value, new(self.anchor)
        return self._carriers[id(value)][1]


def _first_line(error):
    """What an error says, without the colours and the introduction that Keras adds."""
    lines = [re.sub("\x1b.*?m", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception encountered")), "")
