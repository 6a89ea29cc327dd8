"""Layers for sequences: attention, recurrent layers and embeddings."""

import math

import numpy as np

from tfspline import _keras
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.dependence import table_rows
from tfspline.graph.layer_specs.spec import LayerSpec, unknown


def _embedding(call: Call) -> np.ndarray:
    """Produces channels from integers."""
    outputs = call.produce("embeddings", 1)
    call.resize("output_dim", lambda kept: int(kept[outputs].sum()))
    return call.place(outputs)


def _attention(call: Call) -> np.ndarray | list[np.ndarray]:
    """MultiHeadAttention: its projections read channels and produce new ones; the heads in between are not pruned."""
    config = call.layer.get_config()
    inputs = {"query": "query", "gate": "query", "value": "value"}
    inputs["key"] = "value" if call.argument("key") is None else "key"
    if len(call.output_shapes) > 1 or len(call.output_shapes[0]) != len(call.shape_of("query")):
        return unknown(call, "also returns its scores, or returns another rank")
    for mask in (call.input(f"{name}_mask") for name in ("attention", *inputs)):
        if mask is not None:
            call.protect(call.inputs[mask], f"{call.described()} uses it as a mask")
    for name, argument in inputs.items():
        weight, i = _keras.attention_weight(name, "kernel"), call.input(argument)
        if _keras.weight(call.layer, weight) is not None:
            call.macs(weight, _positions(call, argument))
            if i is not None:  # not a constant
                ids = call.channels(i)
                call.consume(weight, 0, ids)
                if f"{name}_shape" in config:
                    call.resize(f"{name}_shape", _with_last_axis(config[f"{name}_shape"], ids))
    call.keep(f"{call.described()} keeps its heads")
    key = call.input(inputs["key"])
    sizes = np.shape(call.argument(inputs["key"])) if key is None else call.sizes(key)
    attended = [sizes[axis] for axis in config["attention_axes"]]
    width = config["num_heads"] * (config["key_dim"] + config["value_dim"])
    call.macs(None, _positions(call, "query"), *attended, width)
    return _attention_outputs(call)


def _positions(call, argument):
    """At how many positions an argument, an input or a constant, has channels."""
    i = call.input(argument)
    return math.prod(call.shape_of(argument)[:-1]) if i is None else call.positions(i)


def _attention_outputs(call):
    kernel = _keras.attention_weight("output", "kernel")
    outputs = call.produce(kernel, -1)
    call.per_channel(_keras.attention_weight("output", "bias"), -1, outputs)
    call.resize("output_shape", _with_last_axis((None,), outputs))
    call.macs(kernel, _positions(call, "query"))
    return call.place(outputs)


def _with_last_axis(shape, ids):
    return lambda kept: (*shape[:-1], int(kept[ids].sum()))


def _recurrent(call: Call, cell: str = "cell") -> list[np.ndarray]:
    """LSTM, GRU, SimpleRNN: reads channels at each step. Its own units feed all of its gates and are not pruned."""
    for ids in call.inputs[1:]:  # initial states
        call.protect(ids, f"{call.described()} starts from it")
    call.keep(f"{call.described()} keeps its units, each of which feeds all gates")
    call.consume(f"{cell}.kernel", 0, call.channels())
    for weight in ("kernel", "recurrent_kernel"):
        call.macs(f"{cell}.{weight}", call.positions(0))
    return call.opaque()


def _bidirectional(call: Call) -> list[np.ndarray]:
    """Two recurrent layers that read the same input."""
    for layer in (call.layer.forward_layer, call.layer.backward_layer):
        if _keras.builtin_class_name(layer) not in _RECURRENT:
            return unknown(call, f"holds a {type(layer).__name__}, not one of {', '.join(_RECURRENT)}")
    for name in ("forward_layer", "backward_layer"):
        outputs = _recurrent(call, f"{name}.cell")
    return outputs


_RECURRENT = ("LSTM", "GRU", "SimpleRNN")

LAYERS: dict[str, LayerSpec] = {
    "Embedding": LayerSpec(_embedding, dependence=table_rows),
    "MultiHeadAttention": LayerSpec(_attention),
    **dict.fromkeys(_RECURRENT, LayerSpec(_recurrent)),
    "Bidirectional": LayerSpec(_bidirectional),
}
