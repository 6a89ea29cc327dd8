"""`with_rms_norm`: residual streams behind LayerNormalization become prunable, without a change of the function."""

from typing import Any

import numpy as np
from absl import logging

from tfspline import _keras
from tfspline._keras.types import KerasModel
from tfspline.graph import reader as graphs
from tfspline.graph.structure import Graph
from tfspline.graph.surgery import cut
from tfspline.graph.unrolling import functional
from tfspline.pruning.constant_folding import at_open_sizes
from tfspline.pruning.streams import Stream, Walk


def with_rms_norm(model: KerasModel) -> KerasModel:
    """Returns a copy of a model of Keras 3 with RMSNormalization instead of LayerNormalization, the same function.

    Channels that LayerNormalization runs over cannot be removed exactly; those of RMSNormalization can. In a
    transformer that normalizes before each branch (pre-LN), linear layers write to the residual stream, and
    LayerNormalization alone reads it. Then the mean over the channels is subtracted from the weights of the writers, so
    that LayerNormalization finds no mean, and is an RMSNormalization. A scale of the channels that follows a writer
    (LayerScale) is multiplied into its weights. One part of a stream may be anything, such as the GELU that Whisper
    starts with: a Dense layer "..._centred" subtracts its mean. Each beta is folded into the biases of its readers; a
    reader without a bias gets one.

    The function is the same in inference. In training, dropout on the stream makes a small difference.

    Args:
        model: any model of Keras 3 that tfspline can read. It is not changed.

    Returns:
        An uncompiled functional model. A warning names the LayerNormalizations that stay, with the reason: those of
        networks that normalize after each branch (BERT), of streams that other layers read or write (ConvNeXt), or with
        a beta that cannot be folded, because it is added to an output of the model.

    Raises:
        TypeError, ValueError: the model's graph cannot be read, is one of tf_keras, or no LayerNormalization can be
            replaced.

    Example:

    >>> import keras, tfspline
    >>> layers = keras.layers
    >>> inputs = keras.Input((5,))
    >>> x = layers.Dense(8, name="stem")(inputs)
    >>> x = x + layers.Dense(8)(layers.Dense(16, "gelu")(layers.LayerNormalization()(x)))
    >>> model = keras.Model(inputs, layers.Dense(2)(layers.LayerNormalization()(x)))
    >>> tfspline.prune(tfspline.with_rms_norm(model), 0.5).get_layer("stem").units
    4
    """
    model = functional(model)
    module = _keras.keras_of(model)
    if not hasattr(module.layers, "RMSNormalization"):
        raise ValueError(f"Expected a model of Keras 3. Received: {model.name!r} of tf_keras, without RMSNormalization")
    graph = graphs.read(model)
    copy = cut(model, graph, np.ones(graph.units, bool))
    walk = _walked(copy, graph)
    if walk.without_bias:
        paths = _keras.layer_paths(model)
        biased = {path: config for path in walk.without_bias if (config := _with_bias(paths[path])) is not None}
        copy = cut(model, graph, np.ones(graph.units, bool), biased)
        graph = graphs.read(copy)
        walk = _walked(copy, graph)
    streams = _convertible(walk, graph)
    layers = _keras.layer_paths(copy)
    norms = {path: _rms_norm(module, layers[path]) for stream in streams for path in stream.norms}
    centres = {path: _centring(module, layers, path, stream) for stream in streams for path in stream.starts}
    replacements = {path: [norm] for path, norm in norms.items()}
    for path, centre in centres.items():
        replacements[path] = [*replacements.get(path, [layers[path]]), centre]
    small = _keras.rebuild(copy, replacements=replacements)
    for centre in centres.values():
        centre.kernel.assign(np.eye(centre.units) - 1 / centre.units)
    for path, norm in norms.items():
        if layers[path].gamma is not None:
            norm.scale.assign(layers[path].gamma)
    _change_weights(_keras.layer_paths(small), walk, graph, streams)
    return small


def _walked(model, graph) -> Walk:
    return at_open_sizes(model, lambda sides: Walk(model, graph, sides[0]))


def _convertible(walk: Walk, graph: Graph) -> list[Stream]:
    """The streams whose norms can be replaced; logs why the others cannot, a ValueError if there are none."""
    for stream in walk.streams:
        for path, norms in walk.without_bias.items():
            for norm in sorted(norms & stream.norms):
                stream.spoil(f"{path!r} has no bias into which the beta of {norm!r} could be folded")
        units = {norm: graph.reads.get((norm, 0), (0, None))[1] for norm in stream.norms}
        for path in sorted(stream.writers):
            if not all(_parts(graph, path, of) for of in units.values()):
                stream.spoil(f"the channels of {path!r} are not those that are normalized")
    streams = [stream for stream in walk.streams if stream.why is None]
    spoiled = {norm: str(stream.why) for stream in walk.streams for norm in sorted(stream.norms) if stream.why}
    staying: dict[str, list[str]] = {}  # why -> norms
    for norm, why in (spoiled | walk.refused).items():
        staying.setdefault(why, []).append(repr(norm))
    lines = "; ".join(f"{', '.join(of)}: {why}" for why, of in staying.items())
    if not streams:
        raise ValueError(f"No LayerNormalization can become an RMSNormalization. {lines or 'The model has none'}")
    if lines:
        logging.warning("These LayerNormalizations stay. %s", lines)
    return streams


def _parts(graph: Graph, path: str, units: Any) -> list:
    """The slices of the weights of a layer that hold these units, in this order."""
    return [
        part
        for part in graph.slices
        if part.layer == path and part.role in ("produced", "per_channel") and np.array_equal(part.units, units)
    ]


def _change_weights(layers, walk, graph, streams):
    """Adds the betas to the biases that read them, and scales and centres what writes to the streams."""
    converted = {norm for stream in streams for norm in stream.norms}
    for (path, weight), shifts in walk.shifts.items():
        shift = sum(value for norm, value in shifts.items() if norm in converted)
        bias = _keras.weight(layers[path], weight)
        bias.assign(np.asarray(bias.numpy() + shift, bias.numpy().dtype))
    for stream in streams:
        units = graph.reads[min(stream.norms), 0][1]
        for path in stream.writers:
            scales = [layers[scale].weight for scale, writer in walk.scales.items() if writer == path]
            factor = np.prod([scale.numpy().ravel() for scale in scales], axis=0, dtype=np.float64)
            for scale in scales:
                scale.assign(np.ones(scale.shape))
            for part in _parts(graph, path, units):
                weight = _keras.weights(layers[path])[part.index]
                value = np.moveaxis(weight.numpy().astype(np.float64), part.axis, -1) * factor
                value = np.moveaxis(value - value.mean(-1, keepdims=True), -1, part.axis)
                weight.assign(value.astype(weight.numpy().dtype))


def _centring(module, layers, path, stream):
    """A Dense layer that subtracts the mean over channels from what a layer that is not linear writes to a stream."""
    name, dtype = f"{layers[path].name}_centred", layers[min(stream.norms)].dtype_policy
    return module.layers.Dense(stream.starts[path], use_bias=False, dtype=dtype, name=name)


def _rms_norm(module, norm):
    """The RMSNormalization that replaces a LayerNormalization."""
    new = module.layers.RMSNormalization(epsilon=norm.epsilon, dtype=norm.dtype_policy, name=norm.name)
    new.trainable = norm.trainable
    return new


def _with_bias(layer) -> dict | None:
    """The config entries that give a layer a bias; None if that is not known."""
    if _keras.of_class(layer, "EinsumDense"):
        operands, output = layer.equation.replace(" ", "").split("->")
        axes = "".join(letter for letter in output if letter in operands.split(",")[1] and letter != ".")
        return {"bias_axes": axes, "bias_initializer": "zeros"}
    if _keras.of_class(layer, "MultiHeadAttention", "GroupedQueryAttention"):
        return None
    return {"use_bias": True, "bias_initializer": "zeros"}
