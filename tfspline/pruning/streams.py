"""Residual streams: sums of what linear layers compute, which LayerNormalization alone reads.

A walk over the graph finds the streams, and how the beta of each LayerNormalization reaches the biases of its readers.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline.graph.layer_specs.registry import spec_of
from tfspline.graph.layer_specs.spec import each_dimension
from tfspline.graph.structure import Graph
from tfspline.graph.weight_flows import MOVES
from tfspline.pruning.constant_folding import random_inputs

_WITH_BIAS = "Dense", "EinsumDense", *each_dimension("Conv")
_ATTENTION = "MultiHeadAttention", "GroupedQueryAttention"
_LINEAR = *_WITH_BIAS, *_ATTENTION, "Embedding", "ReversibleEmbedding"  # in their weights, without an activation
_SHARED = "is called several times or has weights that others use, too"
_HOOKS = "beta_regularizer", "gamma_regularizer", "beta_constraint", "gamma_constraint"


class Stream:
    """A sum of the outputs of layers, and the norms that read it."""

    def __init__(self, *writers: str, starts: Mapping[str, int] | None = None):
        self.writers, self.norms = {*writers}, set[str]()  # paths of layers
        self.starts = dict(starts or {})  # paths of what writes to it without being linear, with the width
        self.tensors: list[Tensor] = []  # those that hold it
        self.why: str | None = None  # why its norms have to stay as they are
        self._joined: Stream | None = None

    def root(self) -> "Stream":
        """The stream that this one has become a part of."""
        return self if self._joined is None else self._joined.root()

    def join(self, other: "Stream") -> "Stream":
        """Makes both one stream."""
        one, other = self.root(), other.root()
        if one is not other:
            one.writers, one.norms, one.starts = (
                one.writers | other.writers, one.norms | other.norms, one.starts | other.starts,
            )  # fmt: skip
            one.tensors, one.why = one.tensors + other.tensors, one.why or other.why
            other._joined = one
        return one

    def spoil(self, why: str) -> None:
        """Notes why the norms have to stay; of several reasons, the first counts."""
        self.root().why = self.root().why or why


@dataclasses.dataclass(eq=False)
class Tensor:
    """A tensor on the walk."""

    value: tf.Tensor  # for one random input
    origin: str  # what computes it
    stream: Stream | None = None  # None for inputs of the model, and for numbers that are not floating
    weight: str | None = None  # path of the `Weight` whose weight it is
    readers: int = 0  # how many calls and outputs of the model read it
    offsets: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)  # by norm: the part that its beta makes up


class Walk:
    """One walk over a model of Keras 3. Its layers are called without their activations, so it should be a copy.

    `side` is the size of axes that the inputs leave open.

    Attributes:
        streams: those that some LayerNormalization reads.
        scales: path of a `Weight` that scales what one linear layer writes to a stream -> the path of this layer.
        shifts: (path of a layer, weight) -> for each norm, by its path, what its beta adds to this bias.
        without_bias: path of a layer without a bias -> the norms whose beta it reads.
        refused: paths of the LayerNormalizations that read no stream -> why.
    """

    def __init__(self, model: KerasModel, graph: Graph, side: int):
        self.scales: dict[str, str] = {}
        self.shifts: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        self.without_bias: dict[str, set[str]] = {}
        self.refused: dict[str, str] = {}
        self._unfolded: dict[str, str] = {}  # norm -> why its beta cannot be folded
        self._written: dict[str, Stream] = {}  # by the path of a linear layer
        self._rng = np.random.default_rng(0)
        self._arguments: set[int] = set()  # ids of tf.Variables that calls read as arguments
        self._normalized: dict[str, Tensor] = {}  # what each norm reads
        self._scaled: list[tuple[Tensor, Stream, list[Tensor]]] = []  # scale, stream, what holds it before the scale
        inputs = [Tensor(value, "an input of the model") for value in random_inputs(model, side, self._rng)]
        for tensor in _keras.run(model, inputs, self._visit, nested=True):
            tensor.readers += 1
            self._spoil([tensor], "the stream is an output of the model")
            self._fail(tensor.offsets, "is added to an output of the model")
        for path, x in self._normalized.items():
            if x.stream is None or not x.stream.root().writers:
                self.refused.setdefault(path, f"it reads {x.origin}, which is not a sum of what linear layers compute")
        self._keep_shared(model, graph)
        roots = {id(stream.root()): stream.root() for stream in self._written.values()}
        self.streams = [stream for stream in roots.values() if stream.norms]
        for stream in self.streams:
            for norm in sorted(stream.norms & (self._unfolded.keys() | self.refused.keys())):
                stream.spoil(f"of {norm!r}: {self.refused[norm]}" if norm in self.refused else self._unfolded[norm])

    def _keep_shared(self, model, graph):
        """Notes what cannot change because a layer is called again, or because another one has its weights."""
        shared = set(graph.shared)
        for path, layer in _keras.layer_paths(model).items():
            if (
                self._arguments
                and {id(_keras.variable_of(weight)) for weight in _keras.weights(layer)} & self._arguments
            ):
                shared.add(path)
        for (path, _), norms in self.shifts.items():
            if path in shared:
                self._fail(norms, f"is read by {path!r}, which {_SHARED}")
        for path in shared & self._written.keys():
            self._written[path].spoil(f"{path!r} {_SHARED}")
        for scale, stream, before in self._scaled:
            if scale.weight in shared or any(tensor.readers > 1 for tensor in (scale, *before)):
                stream.spoil(f"{scale.weight!r} scales what others read, too")
        for stream in self._written.values():
            for path in sorted(shared & (stream.root().norms | stream.root().starts.keys())):
                stream.spoil(f"{path!r} {_SHARED}")
            if len(stream.root().starts) > 1:
                what = " and ".join(map(repr, sorted(stream.root().starts)[:2]))
                stream.spoil(f"{what} write to the stream, and are not linear")

    def _visit(self, node, args, kwargs):
        given = tf.nest.flatten((args, kwargs))
        inputs = [value for value in given if isinstance(value, Tensor)]
        for tensor in inputs:
            tensor.readers += 1
        self._arguments |= {id(_keras.variable_of(value)) for value in given if _keras.is_weight(value)}
        values = _keras.call(node.layer, args, kwargs, Tensor, lambda tensor: tensor.value)
        outputs = [Tensor(value, f"{node.path!r} ({type(node.layer).__name__})") for value in values]
        name = (_keras.op_name(node.layer) or "").replace("_", "") or _keras.builtin_class_name(node.layer)
        if name == "shape":
            return outputs
        if name == "LayerNormalization" and not getattr(node.layer, "rms_scaling", False):
            self._normalize(node, inputs[0], outputs[0])
            return outputs
        for output, offsets in zip(outputs, self._passed_on(node, name, args, kwargs, inputs, values), strict=True):
            output.offsets = offsets
        stream = self._stream(node, name, args, kwargs, inputs)
        for output in outputs if stream is not None else ():
            output.stream = stream
            stream.root().tensors.append(output)
        if isinstance(node.layer, _keras.Carrier) and _keras.weights(node.layer):
            outputs[0].weight = node.path
        if stream is None and len(outputs) == 1 and outputs[0].value.dtype.is_floating:
            outputs[0].stream = _started(node.path, values[0])
        return outputs

    def _spoil(self, tensors, why):
        for tensor in tensors:
            if tensor.stream is not None:
                tensor.stream.spoil(why)

    def _fail(self, norms, why):
        for norm in norms:
            self._unfolded.setdefault(norm, f"the beta of {norm!r} {why}")

    def _normalize(self, node, x, output):
        """The call of a LayerNormalization."""
        layer, path = node.layer, node.path
        if np.ravel(layer.axis).tolist() not in ([-1], [len(output.value.shape) - 1]):
            self.refused[path] = f"it normalizes over the axes {layer.axis}"
        elif any(getattr(layer, name) is not None for name in _HOOKS):
            self.refused[path] = "it has a regularizer or constraint, which RMSNormalization cannot have"
        elif _keras.mask_of(x.value) is not None:
            self.refused[path] = "it passes on a mask, which RMSNormalization does not"
        self._fail(x.offsets, f"is read by {path!r} (LayerNormalization), which is not linear")
        if x.stream is not None:
            x.stream.root().norms.add(path)
        self._normalized[path] = x
        output.stream = _started(path, output.value)
        if path not in self.refused and layer.beta is not None and np.any(layer.beta):
            beta = tf.cast(tf.convert_to_tensor(layer.beta), output.value.dtype)
            output.offsets = {path: tf.broadcast_to(beta, output.value.shape)}

    def _stream(self, node, name, args, kwargs, inputs) -> Stream | None:
        """The stream that a call writes or passes on."""
        layer, read = node.layer, [tensor for tensor in inputs if tensor.value.dtype.is_floating]
        is_weight = isinstance(layer, _keras.Carrier) and bool(_keras.weights(layer))
        if name in _LINEAR or is_weight:
            self._spoil(read, f"{node.path!r} ({type(layer).__name__}) reads the stream without LayerNormalization")
            stream = self._written.setdefault(node.path, Stream(node.path))
            if getattr(layer, "quantization_mode", None):
                stream.spoil(f"{node.path!r} is quantized")
            if name == "ReversibleEmbedding" and _keras.arguments(layer, args, kwargs).get("reverse"):
                stream.spoil(f"{node.path!r} also scores tokens by its table")
                return None
            return None if _keras.own_activation(layer) is not None else stream.root()
        if name == "zeroslike":  # to give a weight the shape of a batch
            return Stream()
        if name == "multiply" and (scaled := self._scale(read)) is not None:
            return scaled
        streams = [tensor.stream for tensor in read if tensor.stream is not None]
        others = [tensor.origin for tensor in read if tensor.stream is None]
        if not streams:
            return None
        if others or not _is_affine(node) or not self._keeps_mean(node, args, kwargs):
            what = f" with {others[0]}, which is not a sum of what linear layers compute" if others else ""
            self._spoil(read, f"{node.path!r} ({type(layer).__name__}) reads the stream{what}")
            return None
        for stream in streams[1:]:
            streams[0].join(stream)
        return streams[0].root()

    def _scale(self, read) -> Stream | None:
        """The stream of a product of what one linear layer writes and a weight with a number for each channel."""
        weights = [tensor for tensor in read if tensor.weight is not None and tensor.value.shape.rank]
        others = [tensor for tensor in read if tensor.weight is None]
        if len(weights) != 1 or len(others) != 1 or others[0].stream is None:
            return None
        (scale,), stream = weights, others[0].stream.root()
        is_written = len(stream.writers) == 1 and not stream.norms and not stream.starts
        if not is_written or scale.value.shape.num_elements() != scale.value.shape[-1] != 1:
            return None
        self._scaled.append((scale, stream, list(stream.tensors)))
        self.scales[str(scale.weight)] = min(stream.writers)
        return stream

    def _keeps_mean(self, node, args, kwargs) -> bool:
        """Whether a call gives the same if the mean over channels is subtracted before it and after it."""
        values: dict[int, tf.Tensor] = {}

        def random(tensor):
            if not tensor.value.dtype.is_floating:
                return tensor.value
            drawn = self._rng.normal(size=tensor.value.shape)
            return values.setdefault(id(tensor), tf.cast(drawn, tensor.value.dtype))

        after = [_centred(value) for value in _keras.call(node.layer, args, kwargs, Tensor, random)]
        before = _keras.call(node.layer, args, kwargs, Tensor, lambda tensor: _centred(random(tensor)))
        return all(_close(*pair) for pair in zip(before, after, strict=True))

    def _passed_on(self, node, name, args, kwargs, inputs, values) -> list[dict]:
        """The offsets of the outputs of a call; those that a layer with a bias reads go into its bias."""
        norms = {norm: None for tensor in inputs for norm in tensor.offsets}
        found: list[dict] = [{} for _ in values]
        is_linear = name in _WITH_BIAS or (_is_affine(node) and _keras.own_activation(node.layer) is None)
        is_linear = is_linear and all(value.dtype.is_floating for value in values)
        if norms and name in _ATTENTION:
            self._fold_into_attention(node, _keras.arguments(node.layer, args, kwargs))
        elif norms and not is_linear:
            self._fail(norms, f"is read by {node.path!r} ({type(node.layer).__name__}), which is not linear")
        elif norms:
            zero = self._parts(node, args, kwargs, None)
            for norm in norms:
                added = [part - base for part, base in zip(self._parts(node, args, kwargs, norm), zero, strict=True)]
                if name in _WITH_BIAS:
                    self._fold(node.path, node.layer, "bias", norm, added[0])
                else:
                    for offsets, part in zip(found, added, strict=True):
                        offsets[norm] = part
        return found

    def _parts(self, node, args, kwargs, norm) -> list[tf.Tensor]:
        """What a call, without its activation, makes of the parts that the beta of a norm makes up; zeros for None."""

        def of(tensor):
            if not tensor.value.dtype.is_floating:  # indices
                return tensor.value
            return tensor.offsets.get(norm, tf.zeros_like(tensor.value))

        with _keras.without_activation(node.layer):
            return _keras.call(node.layer, args, kwargs, Tensor, of)

    def _fold_into_attention(self, node, arguments):
        """Folds what the query, key and value of an attention layer hold into the biases of the projections."""
        for argument, value in arguments.items():
            if not isinstance(value, Tensor) or not value.offsets:
                continue
            if argument not in ("query", "key", "value"):
                self._fail(value.offsets, f"is read by {node.path!r} as its {argument}")
                continue
            both = argument == "value" and arguments.get("key") is None
            for projection in ["value", "key"] if both else [argument]:
                bias = _keras.attention_weight(projection, "bias")
                part = _keras.weight(node.layer, bias.rpartition(".")[0])
                for norm, offset in value.offsets.items():
                    self._fold(node.path, part, bias, norm, part(offset) - part(tf.zeros_like(offset)))

    def _fold(self, path, layer, weight, norm, added):
        """Notes what a beta adds to what a layer computes before its activation, as a shift of its bias."""
        if layer.bias is None:
            self.without_bias.setdefault(path, set()).add(norm)
            return
        added, shape = np.asarray(added, np.float64), tuple(layer.bias.shape)
        first = added.ndim - len(shape)
        axes = [i for i in range(added.ndim) if i < first or shape[i - first] == 1]
        shift = added.mean(axis=tuple(axes), keepdims=True)
        if not _close(np.broadcast_to(shift, added.shape), added):
            self._fail(
                [norm], f"adds different numbers to the outputs of {path!r}, which has padding or mixes positions"
            )
            return
        shifts = self.shifts.setdefault((path, weight), {})
        shifts[norm] = shifts.get(norm, 0) + shift.reshape(shape)


def _started(path, value) -> Stream:
    return Stream(starts={path: value.shape[-1]} if value.shape.rank > 1 else None)


def _is_affine(node) -> bool:
    name = (_keras.op_name(node.layer) or "").replace("_", "")
    return name in MOVES or spec_of(node.layer).is_affine(node)


def _centred(value):
    has_channels = value.dtype.is_floating and value.shape.rank
    return value - tf.reduce_mean(value, -1, keepdims=True) if has_channels else value


def _close(a, b) -> bool:
    """Whether two tensors are equal up to rounding."""
    if tuple(a.shape) != tuple(b.shape):
        return False
    exact = 1e-4 if tf.as_dtype(b.dtype).size >= 4 else 2e-2
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return bool(np.abs(a - b).max(initial=0) <= exact * np.abs(b).max(initial=0))
