"""Copies of models: the same graph from new layers, called in the same way."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfspline._keras.copying import Copies, with_weights_of_zeros, without_objects
from tfspline._keras.graph import is_graph, layer_paths, model_inputs, run, unwrapped
from tfspline._keras.layers import (
    builtin_class_name,
    first_argument,
    function_name,
    is_builtin,
    weight,
    weights,
    with_arguments,
)
from tfspline._keras.modules import is_model, keras_of, of_class
from tfspline._keras.references import OBJECTS, variable_of
from tfspline._keras.types import KerasLayer, KerasModel, KerasTensor
from tfspline._keras.watching import watched_call


def rebuild(
    model: KerasModel,
    changes: Mapping[str, dict] | None = None,
    replacements: Mapping[str, list] | None = None,
    arguments: Mapping[str, dict] | None = None,
) -> Any:
    """Builds an uncompiled copy of a Sequential or functional model, in which each layer is copied once.

    Args:
        changes: the config entries of layers to change, by layer path. Such a layer is made anew from its config, and
            its weights have initial values or zeros. All others are copied with their weights and all that they hold.
        replacements: the layers that replace a layer, by its path, to be called one after the other; without any, the
            first input of the layer is passed on. The layer itself stands for its copy.
        arguments: the arguments to change in the calls of a layer or bare op, by its path; see `with_arguments`.

    Raises:
        ValueError: a layer cannot be copied.
    """
    copy = _Rebuilding(model, changes or {}, replacements or {}, arguments or {}).copy(model)
    if not isinstance(model, keras.Model) and len(copy.losses) < len(model.losses):  # Keras 3 has no Model.add_loss
        logging.warning("The copy of %r lacks the losses of add_loss: call add_loss on the copy as well.", model.name)
    return copy


def copy_of(layer: KerasLayer, changes_of: Callable[[KerasLayer], dict] = lambda layer: {}) -> Any:
    """A new layer with the config of another one, without its weights. See `Copies.changed`."""
    return Copies(lambda inner: None).changed(layer, changes_of)


def why_fixed(layer: KerasLayer, sizes: dict) -> str | None:
    """Why a layer of a user's class cannot be made anew from its config, with these sizes in it; None if it can."""
    kind, advice = type(layer).__name__, "".join(f", {key} included" for key in sizes)
    try:
        lost = _lost(layer, copy_of(layer, lambda inner: sizes if inner is layer else {}), sizes)
        why = f"its config lacks {', '.join(lost)}" if lost else None
    except Exception as error:  # from the user's code
        message = str(error).partition("\n")[0]
        why = f"its config does not make a {kind} ({type(error).__name__}: {message})"
    return why and f"{why}; let get_config return all that __init__ of {kind} takes{advice}"


def _lost(layer, copy, sizes) -> list[str]:
    """The arguments of Keras' own class, from which that of `layer` derives, that a copy does not have."""
    if builtin_class_name(layer) is None:
        return []
    base: Any = next(kind for kind in type(layer).__mro__ if is_builtin(kind))
    names = inspect.signature(base.__init__).parameters.keys() - {"name", "trainable", "dtype", *sizes}
    configs = []
    for one in (layer, copy):
        objects = {name: getattr(one, name, None) for name in names if name.endswith(OBJECTS)}
        words = {name: function_name(value) or value is None for name, value in objects.items()}
        with without_objects(one):
            configs.append(base.get_config(one) | words)
    return sorted(name for name in names if repr(configs[0].get(name)) != repr(configs[1].get(name)))


def object_config(layer: KerasLayer) -> dict[str, Any]:
    """The config of a layer with functions, initializers and other objects instead of their configs."""
    return Copies(lambda inner: None).config(layer)


class _Rebuilding:
    """The copies of the layers of one model."""

    def __init__(self, model, changes, replacements, arguments):
        paths = layer_paths(model)
        self._paths = {id(layer): path for path, layer in paths.items()}
        layers = [(path, layer) for path, layer in paths.items() if not is_model(layer)]
        self._owners = {id(variable_of(weight)): path for path, layer in layers for weight in weights(layer)}
        self._changes, self._replacements, self._arguments = changes, replacements, arguments
        self._copies: dict[int, list] = {}  # by the id of the original
        self._open: set[int] = set()  # ids of layers and models that are being copied
        self._objects = Copies(self._copy_inside)

    def copy(self, model: Any, called_with: list | None = None) -> Any:
        """Copies a model; `called_with` are the symbolic inputs of its first call if it is nested."""
        module = keras_of(model)
        self._open.add(id(model))
        pairs = zip(model.inputs, called_with or model.inputs, strict=True)
        inputs = [symbolic_input(module, tensor, _called_shape(tensor, given)) for tensor, given in pairs]

        called: list = []

        def visit(node, args, kwargs):
            args, kwargs = self._copied_arguments(node.layer, args, kwargs)
            path = self._paths.get(id(node.layer))
            if path in self._arguments:
                args, kwargs = with_arguments(node.layer, args, kwargs, self._arguments[path])
            is_new = path in self._changes and path not in self._replacements
            outputs = first_argument(args, kwargs)
            for layer in self._copies_of(node.layer, args, kwargs):
                if of_class(layer, "Lambda") and tuple(getattr(outputs, "shape", ())) not in node.input_shapes:
                    layer._output_shape = None  # Keras 3 would believe it, so it has to find out the new one
                around = with_weights_of_zeros(layer, node.layer) if is_new else contextlib.nullcontext()
                outputs, read = watched_call(layer, args, kwargs, around)
                self._check_read(node.layer, read)
                args, kwargs = (outputs,), {}
                if isinstance(layer, module.layers.Layer):  # in Keras 3, ops that compute masks are none
                    called.append(layer)
            return outputs

        outputs = run(model, inputs, visit)
        if isinstance(model, module.Sequential):
            # Not `model.layers`: in tf_keras, a layer that is called twice occurs once in it.
            copy = of_same_class(model, module.Sequential, layers=[*inputs, *called])
        else:
            structures = {"inputs": (model.input, inputs), "outputs": (model.output, outputs)}
            packed = {name: tf.nest.pack_sequence_as(*pair) for name, pair in structures.items()}
            copy = of_same_class(model, module.Model, **packed)
        self._open.remove(id(model))
        if copy.trainable != model.trainable:  # it is in no config, and setting it sets that of all layers
            copy.trainable = model.trainable
            for layer in map(unwrapped, model.layers):
                for other in self._copies.get(id(layer), ()):
                    if other.trainable != layer.trainable:
                        other.trainable = layer.trainable
        return copy

    def _copies_of(self, layer, args=(), kwargs=None) -> list:
        """The layers that replace a layer, which is called with these symbolic arguments."""
        if id(layer) not in self._copies:
            if id(layer) in self._open:
                raise ValueError("it holds a model that it is a part of; let it hold layers of that model")
            path = self._paths.get(id(layer), layer.name)
            if path in self._replacements:
                copies = [self._copy_of(path, layer) if one is layer else one for one in self._replacements[path]]
            elif is_graph(layer):
                copies = [self.copy(layer, model_inputs(layer, args, kwargs or {}) if args or kwargs else None)]
            else:
                copies = [self._copy_of(path, layer)]
            self._copies[id(layer)] = copies
        return self._copies[id(layer)]

    def _copy_of(self, path, layer):
        self._open.add(id(layer))
        try:
            if path in self._changes:
                return self._objects.changed(layer, functools.partial(self._changes_of, layer, path))
            copy = self._objects.of(layer)
        except Exception as error:  # from the user's code
            raise ValueError(f"Layer {path!r} ({type(layer).__name__}) cannot be copied: {error}") from error
        finally:
            self._open.remove(id(layer))
        if hasattr(layer, "built") and not weights(layer) and layer.get_build_config():
            copy.built = False  # it may have noted the shape of its input, which can become another one
            if of_class(layer, "TimeDistributed"):
                copy.input_spec = None
        return copy

    def _copied_arguments(self, layer, args, kwargs):
        """The arguments of a call with copies of the weights, layers and functions among them."""
        try:
            return tf.nest.map_structure(self._objects.of, (args, kwargs))
        except ValueError as error:
            path = self._paths.get(id(layer), layer.name)
            raise ValueError(f"An argument of {path!r} ({type(layer).__name__}) cannot be copied: {error}") from error

    def _check_read(self, layer, read):
        """Raises a ValueError if the code of a copy of a layer reads weights of the original model."""
        names = {self._owners[id(variable)] for variable in read if id(variable) in self._owners}
        if names:
            raise ValueError(
                f"Layer {self._paths.get(id(layer), layer.name)!r} ({type(layer).__name__}) cannot be copied: its code "
                f"gets weights of {', '.join(map(repr, sorted(names)))} in a way that copies cannot follow; give it "
                "that layer by an attribute of its own layer, a list or dict there, or a closure"
            )

    def _changes_of(self, layer, path, inner):
        """The config entries to change of a layer inside another one, "cell.units" for `units` of its `cell`."""
        changes = dict(self._changes.get(self._paths.get(id(inner)), {}))
        for key, value in self._changes[path].items():
            *owner, name = key.split(".")
            if owner and weight(layer, ".".join(owner)) is inner:
                changes[name] = value
        return {key: value for key, value in changes.items() if "." not in key}

    def _copy_inside(self, layer):
        """The copy of a layer that an object holds; None for a layer that belongs to this object only."""
        is_known = id(layer) in self._copies or id(layer) in self._paths
        if is_graph(layer) or is_known and id(layer) not in self._open:
            copy, *others = self._copies_of(layer)
            if not others:
                return copy
        return None


def _called_shape(tensor, given):
    """The shape of an input, with sizes of the tensor `given` where its own are fixed."""
    sizes = zip(tensor.shape, getattr(given, "shape", tensor.shape), strict=True)
    return [own if own is None or new is None else new for own, new in sizes]


def symbolic_input(module: ModuleType, tensor: KerasTensor, shape: Sequence[int | None]) -> KerasTensor:
    """A symbolic input like `tensor`, but of another shape, batch included."""
    # In Keras 3, the name of a tensor can differ from that of its InputLayer.
    layer = tensor._keras_history[0]
    config = layer.get_config() if type(layer).__name__ == "InputLayer" else {}
    flags = {name: True for name in ("sparse", "ragged", "optional") if config.get(name)}
    return module.Input(batch_shape=shape, dtype=tensor.dtype, name=layer.name, **flags)


def of_same_class(model: KerasModel, base: Any, **graph: Any) -> Any:
    """A model of this graph, of the class of `model` if its constructor takes a graph, else of Keras' own class."""
    own = type(model)
    if not is_builtin(own):
        try:
            inspect.signature(own.__init__).bind(model, name=model.name, **graph)
            copy = own(name=model.name, **graph)
            if is_graph(copy):
                return copy
        except (TypeError, ValueError):
            pass
        logging.log_first_n(
            logging.WARNING,
            "The copy of %r is an ordinary %s and not a %s: methods of that class, such as train_step, are lost. "
            "Let its constructor take %s and name, and pass them to super().__init__, to keep the class.",
            1,
            *(model.name, base.__name__, own.__name__, ", ".join(graph)),
        )
    return base(name=model.name, **graph)
