"""Region codes: on which side of every unit's cut an input lies, one bit a cut, packed eight to a byte."""

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import check_inputs
from tfspline._utils.checks import count, instance
from tfspline._utils.files import read_npz, write_npz
from tfspline.spline.activations import bits_of_calls


class Codes:
    """The region codes of a model on some inputs: packed bits for each piecewise-affine layer and sample.

    `codes[layer]` is a uint8 array `[samples, ceil(bits / 8)]`, bit k of a row in byte k // 8, lowest bit
    first, as in `numpy.packbits(bitorder="little")`; the bits that fill up the last byte are 0. A layer's
    bits are its units in the order of its flattened output; one with two bits a unit (ReLU6) has all lower
    cuts first, then all upper ones.

    Attributes:
        layers: the names of the layers, in the order in which they run.
        bits: a dict, layer name -> number of bits a sample.

    Args:
        arrays: a dict, layer name -> uint8 array `[samples, ceil(bits / 8)]`.
        bits: a dict, layer name -> number of bits.

    Raises:
        TypeError: no dicts.
        ValueError: the arrays do not fit together or do not fit their bits.

    Example:

    >>> codes = Codes({"relu": np.array([[5], [4]], "uint8")}, {"relu": 3})
    >>> len(codes), codes.layers, codes.unpack("relu").tolist()
    (2, ['relu'], [[1, 0, 1], [0, 0, 1]])
    """

    def __init__(self, arrays: dict[str, np.ndarray], bits: dict[str, int]):
        instance("arrays", arrays, Mapping)
        if not arrays or list(arrays) != list(instance("bits", bits, Mapping)):
            raise ValueError(
                f"Expected the packed bits and the number of bits of the same layers, at least one. "
                f"Received: {list(arrays)} and {list(bits)}"
            )
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.bits = {name: count(f"bits[{name!r}]", number) for name, number in bits.items()}
        samples = max(1, *next(iter(self._arrays.values())).shape[:1])
        for name, array in self._arrays.items():
            shape = (samples, -(-bits[name] // 8))
            if array.dtype != np.uint8 or array.shape != shape:
                raise ValueError(
                    f"Expected uint8 codes of shape {shape} for the {bits[name]} bits of layer {name!r}. "
                    f"Received: {array.dtype} of shape {array.shape}"
                )
            if bits[name] % 8 and (array[:, -1] >> bits[name] % 8).any():
                raise ValueError(f"Expected zeros behind the {bits[name]} bits of layer {name!r}. Received: others")

    @property
    def layers(self) -> list[str]:
        """The names of the layers, in the order in which they run."""
        return list(self._arrays)

    def __len__(self):
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, layer):
        if layer not in self.layers:
            raise KeyError(f"Expected one of the layers {self.layers}. Received: {layer!r}")
        return self._arrays[layer]

    def __iter__(self):
        # Without this, Python would iterate by codes[0], codes[1] ... and fail with a KeyError that explains
        # nothing.
        raise TypeError("Expected a loop over codes.layers. Received: a loop over the codes themselves")

    def __eq__(self, other):
        return (
            isinstance(other, Codes)
            and list(self.bits.items()) == list(other.bits.items())
            and all(np.array_equal(self[layer], other[layer]) for layer in self.layers)
        )

    def __repr__(self):
        return f"Codes({len(self)} samples, {sum(self.bits.values())} bits in {len(self.bits)} layers)"

    def unpack(self, layer: str) -> np.ndarray:
        """The bits of one layer as a uint8 array of 0 and 1, `[samples, bits]`."""
        return np.unpackbits(self[layer], axis=1, count=self.bits[layer], bitorder="little")

    def save(self, path: str | os.PathLike) -> None:
        """Writes the codes to an .npz file, under exactly this name."""
        write_npz(path, self.to_arrays())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Codes":
        """Reads what `save` has written; ValueError where the file is damaged or is something else."""
        return read_npz(path, cls.from_arrays)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The codes as plain arrays by name, to be stored together with others."""
        packed = {str(index): array for index, array in enumerate(self._arrays.values())}
        return {
            "layers": np.array(self.layers),
            "bits": np.array(list(self.bits.values()), np.int64),
            **packed,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Codes":
        """The codes that `to_arrays` gave."""
        names, bits = arrays["layers"], arrays["bits"]
        if names.dtype.kind != "U" or bits.dtype.kind != "i" or len({*names.tolist()}) != names.size:
            raise ValueError(f"Expected names that differ, and integers. Received: {names!r} and {bits!r}")
        packed = {name: arrays[str(index)] for index, name in enumerate(names.tolist())}
        return cls(packed, dict(zip(packed, bits.tolist(), strict=True)))


def region_codes(
    model: Any, x: Any, batch_size: int = 128, approximate: bool = False, max_pooling: bool = False
) -> Codes:
    """The region of the model's partition of its input space that each input lies in.

    The code of a unit at x, with pre-activation z, is 1[z > 0] for ReLU, LeakyReLU, PReLU and abs (with a
    `threshold`, 1[z > threshold]), and the two bits 1[z > lo] and 1[z >= hi] for those of three pieces: ReLU6
    and other ReLUs with a `max_value`, hard sigmoid, hard tanh, hard swish, shrinks, clip. Maximum and Minimum
    of k tensors (maxout) have ceil(log2 k) bits an output, the number of the chosen one, lowest bit first; so,
    with `max_pooling`, have max-pooling and maxima over axes, whose k is the size of the window (Balestriero and
    Baraniuk, "A Spline Theory of Deep Learning", ICML 2018). Activations count as layers of their own, fused
    into another layer (`Dense(8, activation="relu")`) and as bare ops (`keras.ops.relu`). The model runs in
    inference mode, batch by batch: only one batch of floats is alive at a time.

    Whatever is neither an activation nor holds one has no bits, and what a custom layer computes in its own
    `call` cannot be seen. A smooth activation at the very output (softmax) has no bits either.

    Args:
        model: a built functional or Sequential model, Keras 3 or tf_keras; it may hold nested models and may
            call layers more than once. A call is named after its layer, with the path of a nested model in
            front ("inner/relu") and "#2", "#3" ... behind if it is not the first.
        x: an array or tensor `[samples, ...]`; for several inputs a list in the order of `model.inputs`, or a
            dict by name.
        batch_size: how many samples run at a time.
        approximate: take the sign of z for smooth activations (GELU, swish, sigmoid ...) instead of refusing
            them.
        max_pooling: give max-pooling a code, the arg-max of each window. Off by default: the authors of the
            early bird look at the units only.

    Returns:
        The `Codes` of all samples.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: a model whose graph is not known, one with a smooth activation (unless `approximate`) or
            without any piecewise-affine unit; inputs that do not fit the model, or none.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu"), keras.layers.Dense(1)])
    >>> codes = tfspline.region_codes(model, np.array([[1.0, -1.0], [2.0, 3.0]]))
    >>> codes.unpack("relu").tolist()
    [[1, 0], [1, 1]]
    """
    return RegionEncoder(model, approximate, max_pooling)(x, batch_size)


class RegionEncoder:
    """Turns inputs into the region codes of one model; kept, it does not trace the model again.

    Args:
        model: see `region_codes`, also for what is refused.
        approximate: see `region_codes`.
        max_pooling: see `region_codes`.
    """

    def __init__(self, model: Any, approximate: bool = False, max_pooling: bool = False):
        self.model = _keras.check_model(model)
        calls = list(bits_of_calls(model, approximate, max_pooling))
        self._bits = [bits for _, bits in calls]
        coded = [bend for bend, bits in calls if bits]
        self._bends = dict(zip(unique(bend.path for bend in coded), coded, strict=True))  # by the names in the codes
        if not coded:
            raise ValueError(
                "Expected a model with at least one piecewise-affine unit (ReLU, LeakyReLU, PReLU, ReLU6 "
                f"...). Received: {model.name!r}, which has none"
            )
        self._encode = tf.function(self._encode_batch, autograph=False)

    def __call__(self, x: Any, batch_size: int = 128) -> Codes:
        """The `Codes` of all samples of `x`."""
        count("batch_size", batch_size)
        values = check_inputs(self.model, x)
        samples = len(values[0])
        arrays = {}
        for start in range(0, samples, batch_size):
            batch = [
                tf.cast(value[start : start + batch_size], tensor.dtype)
                for value, tensor in zip(values, self.model.inputs, strict=True)
            ]
            packed, bits = self._encode(batch)
            if not arrays:
                arrays = {name: np.empty((samples, packed[name].shape[1]), np.uint8) for name in self._bends}
            for name, array in arrays.items():
                array[start : start + batch_size] = packed[name]
        return Codes(arrays, {name: int(bits[name]) for name in self._bends})

    def dead(self, codes: Codes) -> list[str]:
        """The layers that are dead by their `codes`: no input switches any of their units on.

        Their outputs are constants, through which no gradient gets to what comes before. A layer whose units are
        something while they are off, as those of LeakyReLU, cannot be dead.
        """
        return [name for name, bend in self._bends.items() if bend.silent and not codes[name].any()]

    def _encode_batch(self, inputs):
        remaining = iter(self._bits)  # in the order of the graph, in which the calls are visited here too
        bits = []

        def visit(node, args, kwargs):
            outputs = node.layer(*args, **kwargs)
            bits_of = next(remaining)
            if bits_of:
                bits.append(code_bits(bits_of(args, kwargs, tf.nest.flatten(outputs)[0])))
            return outputs

        _keras.run(self.model, inputs, visit, nested=True)
        bits = dict(zip(self._bends, bits, strict=True))
        return tf.nest.map_structure(pack_bits, bits), {name: tf.shape(array)[1] for name, array in bits.items()}


def code_bits(bits: list[tf.Tensor]) -> tf.Tensor:
    """The bits of a layer, bool `[samples, bits]`, of tensors `[samples, ...]`."""
    return tf.concat([tf.reshape(bit, [tf.shape(bit)[0], -1]) for bit in bits], 1)


def pack_bits(bits: tf.Tensor) -> tf.Tensor:
    """Packs booleans `[n, m]` into uint8 `[n, ceil(m / 8)]`, the first of each eight into the lowest bit.

    Example:

    >>> pack_bits(tf.constant([[True, False, True]])).numpy()
    array([[5]], dtype=uint8)
    """
    bits = tf.pad(tf.cast(bits, tf.uint8), [[0, 0], [0, -tf.shape(bits)[1] % 8]])
    eights = tf.bitcast(tf.reshape(bits, [tf.shape(bits)[0], -1, 8]), tf.uint64)
    # Bit i stands at position 8 i of its eight bytes; the factor 2**(56 - 7 i) moves it to 56 + i, the top
    # byte. No two products meet at one position, so nothing carries. Five times as fast as a weighted sum.
    gathered = tf.bitwise.right_shift(eights * tf.constant(0x0102040810204080, tf.uint64), tf.constant(56, tf.uint64))
    return tf.cast(gathered, tf.uint8)


def unique(names: Iterator[str]) -> list[str]:
    """The names in their order, "#2", "#3" ... behind those that have occurred before."""
    unique = {}
    for name in names:
        numbered = itertools.chain([name], (f"{name}#{count}" for count in itertools.count(2)))
        unique[next(candidate for candidate in numbered if candidate not in unique)] = None
    return list(unique)
