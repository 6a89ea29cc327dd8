"""Layers for sequences: recurrent layers and embeddings."""

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
    **dict.fromkeys(_RECURRENT, LayerSpec(_recurrent)),
    "Bidirectional": LayerSpec(_bidirectional),
}
