"""Layers and bare ops: their class, arguments, weights and config."""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfspline._keras.modules import keras_modules, of_class
from tfspline._keras.types import KerasLayer

_REPLACED = ("call", "convolution_op")  # methods that some layers replace on the instance
_COMPUTING = (*_REPLACED, "__call__", "kernel")  # `kernel` is a property in Keras 3
_HOMES = ("keras", "tf_keras", "tensorflow")
_VOCABULARIES = ("TextVectorization", "StringLookup", "IntegerLookup")


def op_name(layer: KerasLayer) -> str | None:
    """The name of a bare op in a graph ("add" for `x + y`, "relu" for `tf.nn.relu(x)`); None for a layer.

    Ops that are not from Keras or TensorFlow have a name with the module in front.
    """
    if type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda"):  # not public in tf_keras
        home, name = layer.function.__module__, layer.symbol.split(".")[-1].strip("_").lower()
    elif isinstance(layer, tuple(module.layers.Layer for module in keras_modules())):
        return None
    else:  # a keras.Operation that is no Layer: Keras 3's bare ops
        home, name = type(layer).__module__, type(layer).__name__.lower()
    return name if home.partition(".")[0] in _HOMES else f"{home}.{name}"


def rename(layer: KerasLayer, name: str) -> None:
    """Gives a layer or bare op another name."""
    setattr(layer, "name" if isinstance(layer, keras.Operation) else "_name", name)


def make_savable(layer: KerasLayer) -> None:
    """Gives an Identity or ELU of Keras 3 a config if Keras has made none, as it was given a dtype policy."""
    has_default = is_builtin(type(layer)) and type(layer).get_config is keras.layers.Layer.get_config
    if has_default and layer._auto_config is None:
        names = inspect.signature(type(layer).__init__).parameters.keys() - {"self", "kwargs"}
        own = {name: getattr(layer, name) for name in names}
        layer._auto_config = type(layer)(**own, name=layer.name)._auto_config


def own_activation(layer: KerasLayer, name: str = "activation") -> Any:
    """The activation that a layer holds, a function or another layer; None without one, or if it changes nothing."""
    activation: Any = getattr(layer, name, None)
    if activation is None:
        return None
    while builtin_class_name(activation) == "Activation":
        activation = activation.activation
    return activation if callable(activation) and function_name(activation) not in ("linear", "identity") else None


@contextlib.contextmanager
def without_activation(layer: KerasLayer) -> Iterator[None]:
    """Takes away the activation that a layer holds, for a while."""
    held: Any = vars(layer)  # set so, an attribute does not count as a change of the layer
    own = held.get("activation")
    if own is not None:
        held["activation"] = None
    try:
        yield
    finally:
        if own is not None:
            held["activation"] = own


def build_activation(layer: KerasLayer) -> None:
    """Builds the activation of a layer in a graph if it is a layer: Keras 3 does so only when the graph is run."""
    activation = own_activation(layer)
    if not getattr(activation, "built", True) and isinstance(layer, keras.Layer) and layer._inbound_nodes:
        activation.build(layer._inbound_nodes[0].output_tensors[0].shape)


def function_name(function: Any) -> str | None:
    """The name, without underscores, of a function of Keras or TensorFlow. None for any other, whatever its name."""
    return _functions(*keras_modules()).get(id(function))


@functools.cache
def _functions(*modules) -> dict[int, str]:
    """The names of the functions of Keras and TensorFlow by their ids."""
    homes = [
        getattr(module, home)
        for module in modules
        for home in ("activations", "ops", "backend")
        if hasattr(module, home)
    ]
    found = {id(tf.identity): "identity", id(tf.clip_by_value): "clipbyvalue"}
    for home in (tf.nn, tf.math, *homes):
        for name in dir(home):
            found.setdefault(id(getattr(home, name)), name.replace("_", ""))
    return found


def innermost(layer: KerasLayer) -> KerasLayer:
    """The layer inside a wrapper of Keras (TimeDistributed) or of tfmot's pruning; any other layer itself."""
    # What other wrappers compute with their layer is not known, such as those of tfmot for quantization.
    # Bidirectional is a wrapper in tf_keras only.
    while of_class(layer, "Wrapper") and (builtin_class_name(layer) or hasattr(layer, "pruning_vars")):
        if of_class(layer, "Bidirectional"):
            break
        layer = layer.layer
    return layer


def first_argument(args: tuple, kwargs: dict) -> Any:
    """The first argument of a call, whether it was given by position or by name."""
    return next(iter((*args, *kwargs.values())))


def builtin_class_name(layer: KerasLayer | type) -> str | None:
    """The name of the built-in class that a layer, or the layers of a class, compute the same as; None without one."""
    layer_class, own = (layer, {}) if isinstance(layer, type) else (type(layer), getattr(layer, "__dict__", {}))
    if not own.keys().isdisjoint(_REPLACED):
        return None
    if is_builtin(layer_class):
        return layer_class.__name__
    for base in layer_class.__mro__:
        if is_builtin(base):
            parts = [name for name in vars(base) if name.startswith("_") and not name.startswith("__")]
            names = (*_COMPUTING, *parts)  # a built-in class may compute in several methods, such as _compute_attention
            # Static, since getattr makes a new object of a class method each time.
            static = inspect.getattr_static
            changed = any(static(layer_class, name, None) is not static(base, name, None) for name in names)
            return None if changed else base.__name__
    return None


def builtin_base(layer_class: type) -> type | None:
    """The built-in class of which a class of a user differs only in how it is made; None without one."""
    own = list(itertools.takewhile(lambda base: not is_builtin(base), layer_class.__mro__))
    if not own or builtin_class_name(layer_class) is None:
        return None
    base = layer_class.__mro__[len(own)]
    changed = {name for kind in own for name in vars(kind) if hasattr(base, name) and not name.startswith("__")}
    return base if changed <= {"build", "get_config", "from_config"} else None


def is_builtin(layer_class: type) -> bool:
    """Whether a class belongs to Keras or TensorFlow."""
    return layer_class.__module__.partition(".")[0] in _HOMES


def is_loaded(layer: KerasLayer) -> bool:
    """Whether what a layer computes is a function of a SavedModel, not its own code."""
    return of_class(layer, "TFSMLayer") or ".saved_model." in type(layer).__module__


def first_builtin(layer_class: type) -> Any:
    """The class of Keras that a class of layers is, or derives from."""
    return next(filter(is_builtin, layer_class.__mro__))


def attention_weight(projection: str, name: str) -> str:
    """The path of a projection's ("query", "value", "key", "gate", "output") kernel or bias in MultiHeadAttention."""
    return f"_{projection}_dense.{name}"  # Keras 3 has public names for the projections, but tf_keras has not


def arguments(layer: KerasLayer, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call of a layer or bare op, by name."""
    given = _bound(layer, args, kwargs).arguments
    has_config = isinstance(layer, keras.Operation) and op_name(layer) is not None
    return _constants(layer) | given if has_config else given  # Keras 3 keeps arguments that are not tensors in the op


def place_of(layer: KerasLayer, name: str) -> str | tuple:
    """The place at which a layer or bare op keeps an argument: its config ("axis"), or its calls (("axis",))."""
    if op_name(layer) is None or (isinstance(layer, keras.Operation) and name in _constants(layer)):
        return name
    return (name,)


def with_arguments(layer: KerasLayer, args: tuple, kwargs: dict, values: dict[tuple, Any]) -> tuple[tuple, dict]:
    """The arguments of a call of a layer or bare op with other values at some places.

    A place is the name of an argument, and further keys if it is in a list, tuple or dict: ("values", 1).
    """
    bound = _bound(layer, args, kwargs)
    for (name, *keys), value in values.items():
        bound.arguments[name] = _with(bound.arguments.get(name), keys, value)
    return bound.args, bound.kwargs


def _bound(layer, args, kwargs):
    is_tf_op = op_name(layer) is not None and not isinstance(layer, keras.Operation)
    call = layer.function if is_tf_op else layer.call
    if is_loaded(layer):  # the signature of its `call` lacks the inputs
        call = lambda *inputs, **options: None  # noqa: E731
    return inspect.signature(call).bind(*args, **kwargs)


def _with(values, keys, value):
    if not keys:
        return value
    first, *others = keys
    parts = dict(values) if isinstance(values, dict) else list(values)
    parts[first] = _with(parts[first], others, value)
    return tuple(parts) if isinstance(values, tuple) else parts


def _constants(op: KerasLayer) -> dict[str, Any]:
    try:
        return op.get_config()
    except NotImplementedError:  # for arrays; the ops of Keras keep their arguments as attributes
        return {name: getattr(op, name) for name in inspect.signature(type(op)).parameters if hasattr(op, name)}


def weight(layer: KerasLayer, path: str) -> Any:
    """A weight of a layer by its attribute ("kernel", or "cell.kernel" for one of a layer inside); None without it.

    A layer inside has a path, too. A number is a place in a list ("cell.cells.0.kernel").
    """
    part: Any = layer
    for name in path.split("."):
        part = part[int(name)] if name.isdecimal() else getattr(part, name, None)
    return part


def weights(layer: KerasLayer) -> list:
    """All weights of a layer; none for a bare op."""
    # In tf_keras a vocabulary is among the weights, but is not an array.
    return [weight for weight in getattr(layer, "weights", ()) if hasattr(type(weight), "shape")]


def weight_shapes(layer: KerasLayer) -> list[tuple[int, ...]]:
    """The shapes of `weights(layer)`."""
    # A variable whose size tf_keras leaves open, such as the boundaries of a Discretization, knows it only by value.
    shapes = [(weight, tuple(weight.shape)) for weight in weights(layer)]
    return [tuple(tf.shape(weight).numpy()) if None in shape else shape for weight, shape in shapes]


def output_shape(layer: KerasLayer, shapes: Any) -> tuple | None:
    """The shape of the one output of a layer for inputs of other shapes, batch included; None if Keras cannot tell."""
    try:
        shape = tuple(layer.compute_output_shape(shapes))
    except Exception:  # layers of users, and bare ops, need not have the method
        return None
    return shape if all(size is None or isinstance(size, int) for size in shape) else None


def function_graph(op: tf.Operation, name: str) -> tf.Graph:
    """The graph of a function that an operation of a TensorFlow graph calls."""
    return op.graph._get_function(name).graph  # TensorFlow has no public way to it


@contextlib.contextmanager
def inputs_of(layer: KerasLayer) -> Iterator[list]:
    """Collects what a layer is called on: its first arguments, call by call."""
    inputs, call = [], layer.call

    def recording(x, *args, **kwargs):
        inputs.append(x)
        return call(x, *args, **kwargs)

    layer.call = recording
    try:
        yield inputs
    finally:
        del layer.call


def clear_losses(layer: KerasLayer) -> None:
    """Drops the losses of the last call of a layer and of the layers inside it."""
    if hasattr(layer, "_clear_losses"):
        layer._clear_losses()


def sublayers(layer: KerasLayer) -> list:
    """All layers inside a layer, at any depth."""
    # Keras 3 has no public way to them.
    return list(layer._flatten_layers(include_self=False))


def is_lookup(layer: KerasLayer) -> bool:
    """Whether a layer maps words or numbers to indices."""
    return _has_vocabulary(layer) or of_class(layer, "Hashing")


def _has_vocabulary(layer):
    return any(of_class(layer, name) for name in _VOCABULARIES)


def config_of(layer: KerasLayer) -> dict:
    """The config of a layer, including a vocabulary that it has adapted to, which no weight holds."""
    config = layer.get_config() if op_name(layer) is None else _constants(layer)
    if _has_vocabulary(layer):
        config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False)
    return config


def finalize(layer: KerasLayer) -> None:
    """Makes a Normalization use weights that were assigned to it, which it reads only here."""
    if of_class(layer, "Normalization"):
        layer.finalize_state()


def copy_states(layer: KerasLayer, copy: KerasLayer) -> None:
    """Gives a copy of a stateful recurrent layer the states of the original, which are none of its weights."""
    parts = ((one, *(sublayers(one) if op_name(one) is None else ())) for one in (layer, copy))
    pairs = zip(*parts, strict=False)
    for states, others in ((getattr(a, "states", None), getattr(b, "states", None)) for a, b in pairs):
        for state, other in zip(tf.nest.flatten(states), tf.nest.flatten(others), strict=False):
            if state is not None and other is not None:
                other.assign(state)


def from_config(layer_class: Any, config: dict) -> KerasLayer:
    """A new layer from the config of a layer in memory."""
    # With a build_config, a layer inside would be built at once, for the input shape of its original.
    inner = {key: dict(value) for key, value in config.items() if isinstance(value, dict)}
    for value in inner.values():
        value.pop("build_config", None)
    config = config | inner
    if issubclass(layer_class, keras.layers.Lambda):  # from_config of Keras 3 takes no functions
        return layer_class(**config)
    return layer_class.from_config(config)
