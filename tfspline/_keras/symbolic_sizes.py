"""Sizes that are not known while a Keras 3 model is unrolled.

`keras.ops.shape(x)` of a symbolic tensor has None for such a size, on which code that computes with it fails or, worse,
records an op that fails later. While a model is unrolled, it has a `Size` instead.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import keras

from tfspline._keras.modules import of_class
from tfspline._keras.types import KerasTensor


class Size(int):
    """The size of an axis that is not known. A multiple of it is not known either."""

    is_batch: bool

    def __new__(cls, is_batch: bool):
        """A size of -1, which stands for what is left in `keras.ops.reshape`."""
        size = super().__new__(cls, -1)
        size.is_batch = is_batch
        return size

    def __mul__(self, other):
        return self

    __rmul__ = __mul__

    def _refuse(self, *_):
        raise ValueError(_UNKNOWN)

    __add__ = __radd__ = __sub__ = __rsub__ = __floordiv__ = __truediv__ = __mod__ = _refuse


_REPEATED = {"broadcast_to": "shape", "tile": "repeats", "repeat": "repeats"}  # function -> argument
_UNKNOWN = "it depends on a size that is not known; give `input_shape` to tfspline.functional"


def replacements(anchor: KerasTensor) -> list[tuple[Any, str, Callable]]:
    """The functions of `keras.ops` to replace, as (module, name, function); `anchor` is a symbolic tensor that has the
    batch."""
    own = {name: getattr(keras.ops, name) for name in ("shape", "reshape", "zeros", "ones", *_REPEATED)}

    def shape(x):
        sizes = own["shape"](x)
        if not hasattr(x, "_keras_history"):
            return sizes
        return tuple(Size(axis == 0) if size is None else size for axis, size in enumerate(sizes))

    def reshape(x, newshape):
        return own["reshape"](x, _reshaped(newshape, tuple(x.shape)) if _has_size(newshape) else newshape)

    def filled(name):
        def fill(shape, *args, **kwargs):
            if not _has_size(shape):
                return own[name](shape, *args, **kwargs)
            return with_batch(own[name](_without_batch(shape), *args, **kwargs), anchor)

        return fill

    def repeated(name, argument):
        def repeat(x, sizes=None, axis=None, **kwargs):
            sizes = kwargs.get(argument, sizes)
            options = {} if axis is None else {"axis": axis}
            if not _has_size(sizes):
                return own[name](x, sizes, **options)
            if isinstance(sizes, int):
                sizes = (sizes,) if axis == 0 else ()
            if not sizes or name != "broadcast_to" and x.shape[0] != 1:
                raise ValueError(_UNKNOWN)
            return with_batch(x if name == "repeat" else own[name](x, _without_batch(sizes)), anchor)

        return repeat

    replaced = {"shape": shape, "reshape": reshape, **{name: filled(name) for name in ("zeros", "ones")}}
    replaced |= {name: repeated(name, argument) for name, argument in _REPEATED.items()}
    modules = [keras.ops, *filter(None, map(sys.modules.get, ("keras.src.ops", "keras.src.ops.core")))]
    return [(module, name, new) for module in modules for name, new in replaced.items() if hasattr(module, name)]


def with_batch(x: KerasTensor, anchor: KerasTensor) -> KerasTensor:
    """`x`, whose first axis has length 1, repeated for each sample of the batch."""
    first = [slice(None), *[slice(0, 1)] * (len(anchor.shape) - 1)]
    one = anchor[tuple(first)]
    zeros = keras.ops.zeros_like(keras.ops.reshape(one, (-1, *[1] * (len(x.shape) - 1))), dtype=x.dtype)
    return keras.ops.logical_or(x, zeros) if zeros.dtype == "bool" else keras.ops.add(x, zeros)


def _without_batch(sizes):
    if not getattr(sizes[0], "is_batch", False) or _has_size(sizes[1:]):
        raise ValueError(_UNKNOWN)
    return (1, *sizes[1:])


def check_known(op: Any, args: tuple) -> None:
    """Raises a ValueError if an op that is about to be recorded depends on a size that is not known."""
    if any(map(_has_size, (*args, *(value for name, value in vars(op).items() if not name.startswith("_"))))):
        raise ValueError(_UNKNOWN)


def _has_size(value):
    if isinstance(value, slice):
        return any(isinstance(part, Size) for part in (value.start, value.stop, value.step))
    if isinstance(value, (list, tuple)):
        return any(map(_has_size, value))
    return isinstance(value, Size)


def _reshaped(new, old):
    """The new shape with one -1 at most, which is the batch where that is not known."""
    new = (new,) if isinstance(new, int) else tuple(new)
    unknown = [axis for axis, size in enumerate(new) if size == -1]
    if len(unknown) > 1 and None not in old[1:] and unknown[0] == 0 and len(unknown) == 2:
        known = math.prod(size for axis, size in enumerate(new) if axis not in unknown)
        new = tuple(math.prod(old[1:]) // known if axis == unknown[1] else size for axis, size in enumerate(new))
        unknown = unknown[:1]
    if len(unknown) > 1:
        raise ValueError(_UNKNOWN)
    return tuple(-1 if axis in unknown else int(size) for axis, size in enumerate(new))


def complete(layer: Any, *inputs: KerasTensor) -> None:
    """Has an EinsumDense of Keras 3 infer the sizes of its output from its input, which its config leaves open.

    A layer around it, such as attention, knows them; code that is unrolled must know them, too.
    """
    if not of_class(layer, "EinsumDense") or "..." in layer.equation or not inputs:
        return
    given, output = layer.equation.replace(" ", "").split("->")
    sizes = dict(zip(given.split(",")[0], inputs[0].shape, strict=True))
    open_sizes = zip(output[1:], layer.partial_output_shape, strict=True)
    built = tuple(inputs[0].shape)
    if not layer._inbound_nodes:
        layer.partial_output_shape = tuple(sizes.get(letter) if n is None else n for letter, n in open_sizes)
    else:
        layer.partial_output_shape = tuple(n if sizes.get(letter, n) == n else None for letter, n in open_sizes)
        before = layer.get_build_config()["input_shape"]
        built = tuple(n if n == old else None for n, old in zip(built, before, strict=True))
    # A saved model is built for this shape, which must not contradict the sizes above.
    layer._build_shapes_dict = {"input_shape": built}
