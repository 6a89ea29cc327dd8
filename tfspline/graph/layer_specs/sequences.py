"""Layers for sequences other than attention and recurrent layers: embeddings."""

import numpy as np

from tfspline.graph.call import Call
from tfspline.graph.layer_specs.dependence import table_rows
from tfspline.graph.layer_specs.spec import LayerSpec


def _embedding(call: Call) -> np.ndarray:
    """Produces channels from integers."""
    outputs = call.produce("embeddings", 1)
    call.resize("output_dim", lambda kept: int(kept[outputs].sum()))
    return call.place(outputs)


def _reversible_embedding(call: Call) -> np.ndarray | list[np.ndarray]:
    """ReversibleEmbedding: called with `reverse`, it multiplies its inputs by the table, or by a second one."""
    outputs, channels = _embedding(call), call.produce("embeddings", 1)
    if not call.layer.tie_weights:  # it has the second table even if it is never called with `reverse`
        call.consume("reverse_embeddings", 0, channels)
    if not call.argument("reverse"):
        return outputs
    call.tie(channels, call.channels())
    if call.layer.tie_weights:
        call.absorb(0)
    call.macs("embeddings" if call.layer.tie_weights else "reverse_embeddings", call.positions(0))
    why = f"{call.described()} has a number for each token"
    return call.fixed((*[1] * (len(call.output_shapes[0]) - 1), call.layer.input_dim), why)


LAYERS: dict[str, LayerSpec] = {
    "Embedding": LayerSpec(_embedding, dependence=table_rows),
    "ReversibleEmbedding": LayerSpec(_reversible_embedding),
}
