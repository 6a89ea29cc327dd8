"""Attention layers. Each of their heads is a unit."""

import math

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.call import Call
from tfspline.graph.flow import Flow
from tfspline.graph.layer_specs.products import contract
from tfspline.graph.layer_specs.spec import LayerSpec, unknown


def _kernel(projection: str) -> str:
    return _keras.attention_weight(projection, "kernel")


def _bias(projection: str) -> str:
    return _keras.attention_weight(projection, "bias")


def _multi_head(call: Call) -> list[np.ndarray]:
    """MultiHeadAttention: a head is a column of the query, key and value kernels and a row of the output kernel."""
    config = call.layer.get_config()
    heads = call.produce(_kernel("value"), 1)
    call.resize("num_heads", lambda kept: int(kept[heads].sum()))
    outputs = _attention(call, heads, heads, config["attention_axes"], config["key_dim"] + config["value_dim"])
    sizes = _keras.weight(call.layer, _kernel("output")).shape[2:-1]
    call.resize("output_shape", _with_last_axis(sizes, outputs))
    for name in ("query", "key", "value"):
        i = call.input(_argument(call, name))
        if f"{name}_shape" in config and i is not None:  # tf_keras
            call.resize(f"{name}_shape", _with_last_axis(config[f"{name}_shape"][:-1], call.channels(i)))
    return _results(call, outputs)


def _grouped_query(call: Call) -> list[np.ndarray]:
    """GroupQueryAttention: a head of keys and values is a unit, with the heads of queries that share it."""
    layer, groups = call.layer, call.produce(_kernel("value"), 1)
    heads = np.repeat(groups, layer.num_query_heads // layer.num_key_value_heads)
    call.resize("num_key_value_heads", lambda kept: int(kept[groups].sum()))
    call.resize("num_query_heads", lambda kept: int(kept[heads].sum()))
    outputs = _attention(call, heads, groups, (1,), 2 * layer.head_dim)
    for name in ("query", "value"):  # Keras wants as many output channels as both have
        i = call.input(name)
        if i is None:
            call.protect(outputs, f"{call.described()} has as many channels as its {name}, a constant")
        else:
            call.tie(outputs, call.channels(i))
    return _results(call, outputs)


def _attention(call: Call, heads: np.ndarray, shared: np.ndarray, axes: tuple, width: int) -> np.ndarray:
    """Declares all projections; returns the channels of the output.

    `heads` are the heads of the queries, `shared` those of keys and values; `axes` are those that are attended to, and
    `width` is the number of MACs of a head for each query and key.
    """
    for name in ("query", "gate", "key", "value"):
        if _keras.weight(call.layer, _kernel(name)) is not None:
            argument, ids = _argument(call, name), shared if name in ("key", "value") else heads
            call.macs(_kernel(name), _positions(call, argument))
            call.per_channel(_kernel(name), 1, ids)
            call.per_channel(_bias(name), 0, ids)
            i = call.input(argument)
            if i is not None:  # not a constant
                call.consume(_kernel(name), 0, call.channels(i))
    _masks(call, heads, len(axes))
    key = call.input(_argument(call, "key"))
    sizes = np.shape(call.argument(_argument(call, "key"))) if key is None else call.sizes(key)
    call.macs(None, _positions(call, "query"), *(sizes[axis] for axis in axes), width, ids=heads)
    call.consume(_kernel("output"), 0, heads)
    call.macs(_kernel("output"), _positions(call, "query"))
    outputs = call.produce(_kernel("output"), -1)
    call.per_channel(_bias("output"), -1, outputs)
    return outputs


def _masks(call, heads, attended):
    """Protects what is used as a mask, and the heads if each has its own."""
    for name in ("attention", "query", "key", "value"):
        mask = call.input(f"{name}_mask")
        if mask is not None:
            call.protect(call.inputs[mask], f"{call.described()} uses it as a mask")
    mask = call.argument("attention_mask")
    if mask is not None:
        # Scores have the axes [batch ..., head, queries ..., keys ...]; a mask with fewer axes lacks that of the heads.
        shape, rank = (None, *call.shape_of("attention_mask")), len(call.shape_of("query")) + 1 + attended
        if len(shape) == rank and shape[-2 * attended - 1] != 1:
            call.protect(heads, f"{call.described()} has a mask for each head")


def _results(call, outputs):
    results = [call.place(outputs, -1)]
    if len(call.output_shapes) > 1:
        call.protect(call.produce(_kernel("value"), 1), f"{call.described()} also returns the scores of each head")
        results += call.opaque()[1:]
    return results


def _dot(call: Call) -> np.ndarray | list[np.ndarray]:
    """Dot: sums over an axis of each of two inputs."""
    values = call.argument("inputs")
    letters = [list(text[: _rank(value)]) for text, value in zip(("aBCDEF", "auvwxy"), values, strict=True)]
    i, j = (axis % len(of) for axis, of in zip(np.broadcast_to(call.layer.axes, 2), letters, strict=True))
    letters[1][j] = letters[0][i]
    output = [letter for letter in (*letters[0], *letters[1][1:]) if letter != letters[0][i]]
    operands = [(("inputs", k), value, of) for k, (value, of) in enumerate(zip(values, letters, strict=True))]
    ids = contract(call, operands, output)
    return ids.reshape(1) if isinstance(ids, np.ndarray) and len(output) == 1 else ids


def _scores(call: Call) -> list[np.ndarray]:
    """Attention, AdditiveAttention: sums over the channels of query and key; those of the value pass."""
    values = call.argument("inputs")
    query, value, key = values[0], values[1], values[-1]
    for mask in tf.nest.flatten(call.argument("mask")):
        if isinstance(mask, Flow):
            call.protect(mask.ids, f"{call.described()} uses it as a mask")
    inputs = [call.number_of(flow) for flow in (query, key) if isinstance(flow, Flow)]
    rows = [call.channels(i) for i in inputs]
    _add_up(call, inputs, rows)
    if rows and len(getattr(call.layer.scale, "shape", ())):
        call.per_channel("scale", 0, rows[0])
        if isinstance(value, Flow) and value.shape[-1] == len(rows[0]):  # tf_keras wants it to be as wide
            call.tie(rows[0], call.channels(call.number_of(value)))
    sizes = [call.sizes(call.number_of(part)) if isinstance(part, Flow) else np.shape(part) for part in (query, value)]
    times = *sizes[0][1:-1], sizes[1][-2]
    if not _keras.of_class(call.layer, "AdditiveAttention") and call.layer.score_mode == "dot":
        call.macs(None, *times, *(() if rows else sizes[0][-1:]), ids=rows[0] if rows else None)
    if not isinstance(value, Flow):
        call.macs(None, *times, sizes[1][-1])
        return call.opaque()
    row = call.channels(call.number_of(value))
    call.macs(None, *times, ids=row)
    return [call.place(row, -1), *call.opaque()[1:]]


def _dot_product(call: Call) -> np.ndarray | list[np.ndarray]:
    """dot_product_attention of queries, keys and values [batch, positions, heads, width].

    Units are heads, which all three have, or lie along the width: then those of queries and keys are added up, and
    those of values pass. Keras takes it that all three are equally wide.
    """
    names = ("query", "key", "value")
    numbers = [i for i in map(call.input, names) if i is not None]
    for name in ("bias", "mask"):
        i = call.input(name)
        if i is not None:
            call.protect(call.inputs[i], f"{call.described()} uses it as a mask")
    if len(numbers) < 3 or len({call.sizes(i)[-1] for i in numbers}) > 1:
        return unknown(call, "attends to a constant, or to values of another width than that of the queries")
    query, key, value = numbers
    (_, queries, heads, width), (_, keys, kv_heads, _) = call.sizes(query), call.sizes(value)
    if any(call.inputs[i].shape[1] > 1 for i in numbers):
        rows = [call.channels(i, 1) for i in numbers]
        if heads != kv_heads or any(call.argument(name) is not None for name in ("bias", "mask")):
            for row in rows:
                call.protect(
                    row, f"{call.described()} has a mask for each head, or fewer heads of keys than of queries"
                )
        else:
            call.tie(rows[0], rows[1])
            call.tie(rows[0], rows[2])
        call.macs(None, queries, keys, 2 * width, ids=rows[0])
        return call.place(rows[0], 1)
    rows = [call.channels(i, -1) for i in numbers]
    if call.argument("scale") is None:
        for row in rows[:2]:
            call.protect(row, f"{call.described()} divides by the root of their number, unless `scale` is given")
    _add_up(call, [query, key], rows[:2])
    call.tie(rows[0], rows[2])
    call.macs(None, queries, keys, heads, ids=rows[0])
    call.macs(None, queries, keys, heads, ids=rows[2])
    return call.place(rows[2], -1)


def _add_up(call, inputs, rows):
    """Ties channels of queries and keys, which are added up."""
    if len(rows) == 2 and all(map(call.is_zero_when_off, inputs)):
        call.tie(*rows)
        for i in inputs:
            call.absorb(i)
        return
    why = f"{call.described()} adds them up, and they, or what they meet, may not be zero when switched off"
    for row in rows:
        call.protect(row, why)


def _rank(value):
    return len(value.shape) + isinstance(value, Flow)


def _argument(call, name):
    """The argument of the call that a projection reads."""
    if name == "key" and call.argument("key") is None:
        return "value"
    return "query" if name == "gate" else name


def _positions(call, argument):
    """At how many positions an argument, an input or a constant, has channels."""
    i = call.input(argument)
    return math.prod(call.shape_of(argument)[:-1]) if i is None else call.positions(i)


def _with_last_axis(shape, ids):
    return lambda kept: (*shape, int(kept[ids].sum()))


LAYERS: dict[str, LayerSpec] = {
    "MultiHeadAttention": LayerSpec(_multi_head, reads_own=_kernel("output")),
    "GroupedQueryAttention": LayerSpec(_grouped_query, reads_own=_kernel("output")),
    **dict.fromkeys(["Attention", "AdditiveAttention"], LayerSpec(_scores)),
    "Dot": LayerSpec(_dot),
}

OPS: dict[str, LayerSpec] = {"dotproductattention": LayerSpec(_dot_product)}
