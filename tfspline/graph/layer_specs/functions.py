"""Functions of one number, as activations, in Lambda layers and as bare ops: which are known, and their pieces.

Functions are known by the object that Keras or TensorFlow has, never by name: a user's `relu` may be anything. Names
are written without underscores, as Keras 3 has a LeakyRelu and TensorFlow a leaky_relu.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasLayer
from tfspline.graph.layer_specs.elementwise_trace import is_elementwise, is_finite_at_zero
from tfspline.graph.piecewise import PiecewiseAffine, Smooth

Arguments = dict[str, Any]  # of a function by name, without the first, which is the number that it acts on
Breakpoints = tuple[Any, ...]


def _of_hard_sigmoid(function: Callable, arguments: Arguments) -> Breakpoints:
    """Keras 3 has them at -3 and 3, tf_keras at -2.5 and 2.5."""
    low, high = np.asarray(function(tf.constant([0.0, 1.0], tf.float64)))
    return -low / (high - low), (1 - low) / (high - low)


def _of_relu(function: Callable, arguments: Arguments) -> Breakpoints:
    threshold, maximum = arguments.get("threshold") or 0.0, arguments.get("max_value")
    return (threshold,) if maximum is None else (threshold, maximum)


def _of_shrink(function: Callable, arguments: Arguments) -> Breakpoints:
    return -arguments["threshold"], arguments["threshold"]


def _given(*names: str) -> Callable[[Callable, Arguments], Breakpoints]:
    return lambda function, arguments: tuple(arguments.get(name) for name in names)


# Where the pieces of a function meet. What the function is between these points is read off its values.
PIECEWISE: dict[str, Breakpoints | Callable[[Callable, Arguments], Breakpoints]] = {
    **dict.fromkeys(["leakyrelu", "abs", "absolute", "fabs"], (0.0,)),
    "relu": _of_relu,
    "relu6": (0.0, 6.0),
    **dict.fromkeys(["hardtanh", "sparsesigmoid"], (-1.0, 1.0)),
    **dict.fromkeys(["hardsilu", "hardswish"], (-3.0, 3.0)),
    **dict.fromkeys(["softshrink", "hardshrink"], _of_shrink),
    "hardsigmoid": _of_hard_sigmoid,
    "threshold": _given("threshold"),
    "clip": _given("x_min", "x_max"),
    "clipbyvalue": _given("clip_value_min", "clip_value_max"),
}

# Functions that exceed their value at 0 exactly where the number is positive.
SMOOTH = frozenset(
    [
        *("elu", "selu", "celu", "gelu", "silu", "swish", "mish", "sigmoid", "logsigmoid", "tanh"),
        *("tanhshrink", "softplus", "softsign", "exponential", "squareplus", "sparseplus"),
    ]
)

# Other functions of one number. As bare ops, they are part of a computation rather than activations.
NUMERIC = frozenset(
    [
        *("acos", "angle", "arccos", "arcsin", "arcsinh", "arctan", "arctanh", "asin", "asinh", "atan", "atanh"),
        *("besseli0", "besseli0e", "besseli1", "besseli1e", "ceil", "conj", "conjugate", "copy", "cos", "cosh"),
        *("deg2rad", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "floor", "i0", "identity", "imag", "log1p"),
        *("nantonum", "negative", "rad2deg", "real", "reciprocalnonan", "rint", "round", "sign", "sin", "sinh"),
        *("square", "stopgradient", "tan", "trunc"),
    ]
)

# Functions of one number without a finite value and slope at 0, where units are that are switched off.
SINGULAR = frozenset(
    [
        *("acosh", "arccosh", "cbrt", "digamma", "erfcinv", "lgamma", "log", "log10", "log2", "ndtri"),
        *("reciprocal", "rsqrt", "sinc", "sqrt"),
    ]
)

# Functions that mix channels.
MIXING = frozenset(["softmax", "logsoftmax", "sparsemax", "glu"])

_KNOWN = {*PIECEWISE, *SMOOTH, *NUMERIC, *SINGULAR, *MIXING}
_registered: list[Callable] = []


def register_elementwise(function: Callable) -> None:
    """Declares that a function acts on each number alone, so that units can be pruned through it.

    The functions of Keras and TensorFlow are known, and so are functions that are made of their elementwise operations
    only. Any other function that is an `activation` or that a `Lambda` layer calls may mix channels, so the units that
    it reads are not pruned unless it is registered. Functions are recognised by identity: register the very object
    that the layer holds, in each process, before the plan is made.

    Args:
        function: takes a float tensor of any shape; returns a tensor of the same shape and dtype in which each number
            depends only on the number at the same place.

    Raises:
        TypeError: `function` is not callable, or is a layer (see `register_channel_rule`).
        ValueError: `function` is not elementwise for random numbers, or has no finite value and slope at 0, where
            units are that are switched off.

    Example:

    >>> import keras, tfspline
    >>> def low(x):
    ...     return keras.ops.reshape(keras.ops.minimum(keras.ops.reshape(x, -1), 0.1), keras.ops.shape(x))
    >>> tfspline.register_elementwise(low)
    >>> layers = [keras.Input((4,)), keras.layers.Dense(8, activation=low, name="hidden"), keras.layers.Dense(2)]
    >>> tfspline.plan(keras.Sequential(layers), 0.5, criterion="l1").rows()[0]["units_after"]
    4
    """
    if not callable(function) or isinstance(function, type) or _keras.op_name(function) is None:
        raise TypeError(
            "Expected `function` to be a function of a tensor; for the class of a layer, use "
            f"tfspline.register_channel_rule. Received: {function!r}"
        )
    fault = _fault(function)
    if fault:
        raise ValueError(f"Expected `function` to be elementwise. Received: {label(function)!r}, which {fault}")
    _registered.append(function)


def _fault(function: Callable) -> str | None:
    """What keeps channels from passing through a function, as far as trying it shows; None if nothing does."""
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 4)), tf.float32)
    try:
        y = np.asarray(function(x))
        parts = [*np.ndindex(*x.shape)][::5]
        alone = [np.asarray(function(tf.reshape(x[part], [1, 1, 1]))) for part in parts]
        is_finite = is_finite_at_zero(function)
    except Exception as error:  # a user's function, which can raise anything
        return f"fails for tensors of shape (2, 3, 4) or (1, 1, 1): {str(error).partition(chr(10))[0]}"
    if y.shape != x.shape or y.dtype != np.float32:
        return f"returns {y.dtype} {list(y.shape)} for float32 [2, 3, 4]"
    same = np.allclose(np.ravel(alone), [y[part] for part in parts], 1e-4, 1e-5, equal_nan=True)
    if not same or {one.shape for one in alone} != {(1, 1, 1)}:
        return "computes something else for a tensor than for each of its numbers alone"
    return None if is_finite else NOT_FINITE


NOT_FINITE = "has no finite value and slope at 0, where units are that are switched off"


def label(function: Any) -> str:
    """A function, callable object or layer in messages."""
    if isinstance(function, functools.partial):
        return f"partial of {label(function.func)}"
    return getattr(function, "__name__", None) or getattr(function, "name", None) or type(function).__name__


def _opened(function: Callable) -> tuple[Callable, Arguments]:
    """A function and the keyword arguments that a `functools.partial` gives it."""
    if isinstance(function, functools.partial) and not function.args:
        return function.func, function.keywords
    return function, {}


def known_name(function: Callable) -> str | None:
    """The name of a function of one number, or a partial of one, that Keras or TensorFlow has; None for any other."""
    name = _keras.function_name(_opened(function)[0])
    return name if name in _KNOWN else None


def of_lambda(layer: KerasLayer) -> Callable:
    """What a Lambda layer computes, as a function of its input."""
    return functools.partial(layer.function, **layer.arguments) if layer.arguments else layer.function


def objection(function: Callable) -> str | None:
    """Why channels do not pass through a function, as the end of a sentence about it; None if they do."""
    if function in _registered:
        return None
    inner, given = _opened(function)
    name = known_name(function)
    if name in MIXING:
        return "mixes channels"
    if name in SINGULAR:
        return NOT_FINITE
    if any(np.ndim(value) for value in given.values()):
        return "has an argument that is not a number and cannot be cut"
    if name is None and inner not in _registered:
        if is_elementwise(function):
            return None if is_finite_at_zero(function) else NOT_FINITE
        return "may mix channels; if it acts on each number alone, declare that with tfspline.register_elementwise"
    return _fault(function) if given else None


def pieces(function: Callable) -> PiecewiseAffine | Smooth | None:
    """The pieces of a known function, as `pieces_of`; None for a function that is not known."""
    name = known_name(function)
    if name is None:
        return None
    inner, given = _opened(function)
    bound = inspect.signature(inner).bind(None, **given)
    bound.apply_defaults()
    return pieces_of(function, name, dict([*bound.arguments.items()][1:]))


def pieces_of(function: Callable, name: str, arguments: Arguments) -> PiecewiseAffine | Smooth | None:
    """The pieces of the function with a known name; a `Smooth` if it has none, None if it is `NUMERIC`."""
    breakpoints = PIECEWISE.get(name)
    if breakpoints is None:
        return Smooth.named(name) if name in SMOOTH | MIXING else None
    if not any(np.ndim(value) for value in arguments.values()):
        points = breakpoints(function, arguments) if callable(breakpoints) else breakpoints
        if None not in points:
            return PiecewiseAffine.of(function, points)
    return Smooth(f"{name!r} with bounds or slopes that are not numbers", lambda z, y: z > 0)
