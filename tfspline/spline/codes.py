"""Region codes: for each input and unit, a bit that says on which side of the unit's boundary the input lies.

The bits are packed, eight to a byte.
"""

import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from absl import logging

from tfspline import _keras
from tfspline._keras.constraints import check_finite
from tfspline._keras.inputs import check_inputs
from tfspline._keras.types import Data, KerasModel
from tfspline._utils.checks import count, instance
from tfspline._utils.files import read_npz, write_npz
from tfspline.graph.unrolling import functional
from tfspline.spline.calls import coded_calls, how_to_code


class Codes:
    """Region codes of a model on some inputs, as packed bits per layer and sample.

    `codes[layer]` is a uint8 array `[samples, ceil(bits / 8)]`, packed as by `numpy.packbits(bitorder="little")`: bit k
    of a sample is bit k % 8 of byte k // 8, and unused bits of the last byte are 0. The bits follow the order of the
    layer's flattened output. An activation with two knots (ReLU6) has two bits per unit: first the bits of the lower
    knot for all units, then those of the upper knot.

    Args:
        arrays: layer name -> uint8 array `[samples, ceil(bits / 8)]`.
        bits: layer name -> number of bits per sample, for the same layers in the same order. Also an attribute.

    Raises:
        TypeError: `arrays` or `bits` is not a mapping.
        ValueError: the arrays have different numbers of samples, or do not match `bits`.

    Example:

    >>> codes = Codes({"relu": np.array([[5], [4]], "uint8")}, {"relu": 3})
    >>> len(codes), codes.layers, codes.unpack("relu").tolist()
    (2, ['relu'], [[1, 0, 1], [0, 0, 1]])
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], bits: Mapping[str, int]):
        instance("arrays", arrays, Mapping)
        if not arrays or list(arrays) != list(instance("bits", bits, Mapping)):
            raise ValueError(
                "Expected `arrays` and `bits` of the same layers, at least one. "
                f"Received: {list(arrays)} and {list(bits)}"
            )
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.bits = {name: count(f"bits[{name!r}]", number) for name, number in bits.items()}
        samples = max(1, *next(iter(self._arrays.values())).shape[:1])
        for name, array in self._arrays.items():
            _check_packed(name, array, samples, self.bits[name])

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order in which they run."""
        return list(self._arrays)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, layer: str) -> np.ndarray:
        if layer not in self.layers:
            raise KeyError(f"There are no codes of layer {layer!r}, only of {self.layers}")
        return self._arrays[layer]

    def __iter__(self):
        # Without this method, Python would iterate by codes[0], codes[1] ... and fail with a confusing KeyError.
        raise TypeError("A Codes object is not iterable. Iterate over `codes.layers`")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Codes)
            and list(self.bits.items()) == list(other.bits.items())
            and all(np.array_equal(self[layer], other[layer]) for layer in self.layers)
        )

    def __repr__(self) -> str:
        return f"Codes({len(self)} samples, {sum(self.bits.values())} bits in {len(self.bits)} layers)"

    def unpack(self, layer: str) -> np.ndarray:
        """Return the bits of a layer as a uint8 array of zeros and ones, `[samples, bits]`."""
        return np.unpackbits(self[layer], axis=1, count=self.bits[layer], bitorder="little")

    def save(self, path: str | os.PathLike) -> None:
        """Write the codes to an .npz file at exactly this path."""
        write_npz(path, self.to_arrays())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Codes":
        """Read codes written by `save`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or was not written by `save`.
        """
        return read_npz(path, cls.from_arrays)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the codes as plain named arrays, to be stored together with others."""
        packed = {str(index): array for index, array in enumerate(self._arrays.values())}
        return {
            "layers": np.array(self.layers),
            "bits": np.array(list(self.bits.values()), np.int64),
            **packed,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Codes":
        """Return the codes that `to_arrays` was called on; ValueError if the arrays do not describe any."""
        names, bits = arrays["layers"], arrays["bits"]
        if names.dtype.kind != "U" or bits.dtype.kind != "i" or len({*names.tolist()}) != names.size:
            raise ValueError(
                f"Expected distinct layer names and integer numbers of bits. Received: {names!r} and {bits!r}"
            )
        packed = {name: arrays[str(index)] for index, name in enumerate(names.tolist())}
        return cls(packed, dict(zip(packed, bits.tolist(), strict=True)))


def _check_packed(layer, array, samples, bits):
    shape = (samples, -(-bits // 8))
    if array.dtype != np.uint8 or array.shape != shape:
        raise ValueError(
            f"Expected uint8 codes of shape {shape} for the {bits} bits of layer {layer!r}. "
            f"Received: {array.dtype} of shape {array.shape}"
        )
    if bits % 8 and (array[:, -1] >> bits % 8).any():
        raise ValueError(
            f"The codes of layer {layer!r} have {bits} bits, but there are ones in the unused bits after them"
        )


def region_codes(
    model: KerasModel,
    x: Data,
    batch_size: int = 128,
    approximate: bool = False,
    max_pooling: bool = False,
    units: str = "activations",
) -> Codes:
    """Compute in which region of the model's partition of the input space each input lies.

    A unit with pre-activation z has the bit 1[z > 0] for ReLU, LeakyReLU, PReLU and abs (1[z > t] with a threshold t).
    Activations with three pieces (ReLU6, hard sigmoid, hard tanh, hard swish, shrink, clip) have two bits, 1[z > low]
    and 1[z >= high]. Maximum and Minimum of k tensors have ceil(log2 k) bits per output: the index of the chosen
    tensor, lowest bit first. The same holds for max-pooling over k places with `max_pooling=True` (Balestriero and
    Baraniuk, "A Spline Theory of Deep Learning", ICML 2018).

    Fused activations (`Dense(8, activation="relu")`) and bare ops (`keras.ops.relu`) count like activation layers. A
    smooth activation has no bits; unless it is at the model's output (softmax), a warning names its layer. The model
    runs in inference mode, batch by batch.

    Args:
        model: a built functional or Sequential model of Keras 3 or tf_keras. Nested models and shared layers are
            supported. Calls are named after their layer, with the path of a nested model in front ("inner/relu"), and
            "#2", "#3" ... appended from the second call on.
        x: an array or tensor `[samples, ...]`; for several inputs, a list in the order of `model.inputs` or a dict by
            input name.
        batch_size: number of samples per batch.
        approximate: use the sign of z for smooth activations (GELU, swish, sigmoid ...) instead of leaving them out.
        max_pooling: include the argmax choices of max-pooling. Off by default, as in the early-bird test of You et al.
        units: "activations", or "batch_norm" for the sign of each BatchNormalization's output, whatever follows it, as
            in the authors' early-bird test. They differ where no ReLU follows, as at the end of a residual block.

    Returns:
        The `Codes` of all samples.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model's graph is unknown, it has no piecewise-affine unit, or `x` is empty or does not fit it.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu"), keras.layers.Dense(1)])
    >>> codes = tfspline.region_codes(model, np.array([[1.0, -1.0], [2.0, 3.0]]))
    >>> codes.unpack("relu").tolist()
    [[1, 0], [1, 1]]
    """
    return RegionEncoder(model, approximate, max_pooling, units)(x, batch_size)


class RegionEncoder:
    """Computes region codes of one model repeatedly, tracing the model only once per batch shape."""

    def __init__(
        self,
        model: KerasModel,
        approximate: bool = False,
        max_pooling: bool = False,
        units: str = "activations",
    ):
        self.model = model = functional(model)
        self._calls, left_out = coded_calls(model, approximate, max_pooling, units)
        self._names = {one.call.node.key: name for name, one in self._calls.items()}
        if not self._calls:
            raise ValueError(
                "Expected a model with at least one piecewise-affine unit (ReLU, LeakyReLU, PReLU, ReLU6 ...), or "
                f"BatchNormalization for units='batch_norm'. Received: {model.name!r}, which has none"
            )
        if left_out:
            names = "; ".join(call.described() for call in left_out)
            logging.warning("The region codes of %s leave out %s; %s.", model.name, names, how_to_code(approximate))
        self._encode = tf.function(self._encode_batch, autograph=False)

    def __call__(self, x: Data, batch_size: int = 128) -> Codes:
        """Return the `Codes` of all samples of `x`."""
        count("batch_size", batch_size)
        check_finite(self.model)  # a unit that computes NaN has no side
        values = check_inputs(self.model, x)
        samples = len(values[0])
        arrays: dict[str, np.ndarray] = {}
        for start in range(0, samples, batch_size):
            batch = [
                tf.cast(value[start : start + batch_size], tensor.dtype)
                for value, tensor in zip(values, self.model.inputs, strict=True)
            ]
            packed, bits = self._encode(batch)
            if not arrays:
                arrays = {name: np.empty((samples, packed[name].shape[1]), np.uint8) for name in self._calls}
            for name, array in arrays.items():
                array[start : start + batch_size] = packed[name]
        return Codes(arrays, {name: int(bits[name]) for name in self._calls})

    def dead(self, codes: Codes) -> list[str]:
        """Return the names of the layers in which no input of `codes` switches on any unit.

        Such a layer outputs a constant and passes no gradient on. Layers whose units are not constant when they are
        off, such as LeakyReLU, are never dead.
        """
        return [name for name, one in self._calls.items() if one.call.constant_when_off and not codes[name].any()]

    def _encode_batch(self, inputs):
        bits = {}

        def visit(node, args, kwargs):
            outputs = node.layer(*args, **kwargs)
            if node.key in self._names:
                name = self._names[node.key]
                bits[name] = code_bits(self._calls[name].bits(args, kwargs, tf.nest.flatten(outputs)[0]))
            return outputs

        _keras.run(self.model, inputs, visit, nested=True)
        return tf.nest.map_structure(pack_bits, bits), {name: tf.shape(array)[1] for name, array in bits.items()}


def code_bits(bits: list[tf.Tensor]) -> tf.Tensor:
    """Return bool tensors `[samples, ...]` side by side, bool `[samples, bits]`."""
    return tf.concat([tf.reshape(bit, [tf.shape(bit)[0], -1]) for bit in bits], 1)


def pack_bits(bits: tf.Tensor) -> tf.Tensor:
    """Pack bools `[n, m]` into uint8 `[n, ceil(m / 8)]`, the first of each eight into the lowest bit."""
    bits = tf.pad(tf.cast(bits, tf.uint8), [[0, 0], [0, -tf.shape(bits)[1] % 8]])
    eights = tf.bitcast(tf.reshape(bits, [tf.shape(bits)[0], -1, 8]), tf.uint64)
    # Bit i is at position 8 i of the eight bytes. The term 2**(56 - 7 i) of the factor moves it to position 56 + i, in
    # the top byte. No two products share a position, so nothing carries. Five times faster than a weighted sum.
    gathered = tf.bitwise.right_shift(eights * tf.constant(0x0102040810204080, tf.uint64), tf.constant(56, tf.uint64))
    return tf.cast(gathered, tf.uint8)
