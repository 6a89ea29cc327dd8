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


LAYERS: dict[str, LayerSpec] = {
    "Embedding": LayerSpec(_embedding, dependence=table_rows),
}
