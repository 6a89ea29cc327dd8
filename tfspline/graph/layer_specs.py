"""What each layer does with its channels: one small rule a kind of layer.

A rule sees a `Call`: the layer, and for each input an array of channel ids that has the rank of the tensor without
its batch dimension, an axis of length 1 standing for "the same ids all along". It returns the ids of the output.
On the way it says which axes of which weights go with which ids:

- `call.produce(weight, axis)` makes fresh channels (Conv, Dense), `call.consume(weight, axis, ids)` reads them
  through a kernel, `call.per_channel(weight, axis, ids)` lets a weight travel with its channel (BatchNormalization);
- `call.tie(a, b)` makes units of two ids one unit, `call.protect(ids, why)` keeps them whatever happens;
- `call.resize(key, value_of)` names a config entry that shrinks, `call.macs(weight, positions)` counts the work;
- `call.input(name)` and `call.argument(name)` find an argument of the call where the order of inputs does not tell.

A weight of a layer inside the layer goes by a dotted name ("cell.kernel").
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras

# Activations that act on each number alone; any other may mix channels (softmax), so its channels are protected.
ELEMENTWISE = frozenset(
    [
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish", "threshold"),
        *("sigmoid", "hard_sigmoid", "hard_silu", "hard_swish", "log_sigmoid", "tanh", "hard_tanh", "tanh_shrink"),
        *("softplus", "softsign", "exponential", "hard_shrink", "soft_shrink", "squareplus", "sparse_plus"),
    ]
)

_custom: dict[type, Callable] = {}


def register_channel_rule(layer_class: type, rule: Callable) -> None:
    """Teaches tfspline what a custom layer does with its channels, so that units can be pruned through it.

    Args:
        layer_class: the layer's class; its subclasses follow the same rule unless they have one of their own.
        rule: called as `rule(call)` with a `Call`; returns the ids of the output. `call.layer` is the layer,
            `call.inputs` the channel ids of its inputs; see the methods of `tfspline.graph.call.Call`.

    Raises:
        TypeError: `layer_class` is not a class or `rule` cannot be called.

    Example:

    >>> import keras, tfspline
    >>> class Scale(keras.layers.Layer):
    ...     def build(self, shape):
    ...         self.scale = self.add_weight(name="scale", shape=shape[-1:], initializer="ones")
    ...     def call(self, x):
    ...         return x * self.scale
    >>> def rule(call):
    ...     call.per_channel("scale", 0, call.channels())
    ...     return call.inputs[0]
    >>> tfspline.register_channel_rule(Scale, rule)
    """
    if not isinstance(layer_class, type) or not callable(rule):
        raise TypeError(f"Expected a layer class and a callable. Received: {layer_class!r} and {rule!r}")
    _custom[layer_class] = rule


def rule_for(layer: Any) -> Callable:
    """The rule of a layer or bare op; `unknown` where there is none."""
    for base in type(layer).__mro__:
        if base in _custom:
            return _custom[base]
    op = _keras.op_name(layer)
    if op is not None:
        return OPS.get(op.replace("_", ""), unknown)
    return LAYERS.get(_keras.builtin_class_name(layer), unknown)


def unknown(call):
    """Nothing is known of this layer, so what it reads keeps its shape and what it makes is nobody's unit."""
    for ids in call.inputs:
        call.protect(ids, f"{call.described()} is not a layer that tfspline knows")
    return call.opaque()


def elementwise(call):
    """Acts on every number alone: dropout and activations."""
    if getattr(call.layer, "activation", None) is not None:
        return activated(call, call.inputs[0])
    return call.inputs[0]


def rescaling(call):
    """Elementwise if it scales all channels alike; a scale a channel sits in the config, where it cannot be cut."""
    alike = np.ndim(call.layer.scale) == np.ndim(call.layer.offset) == 0
    return call.inputs[0] if alike else unknown(call)


def activated(call, ids):
    """`ids` after the layer's own activation."""
    activation = getattr(call.layer, "activation", None)
    name = _keras.activation_name(call.layer)
    homes = [
        tf.nn,
        tf.math,
        *(getattr(m, home, None) for m in _keras.kerases() for home in ("activations", "ops")),
    ]
    builtin = any(getattr(home, name, None) is activation for home in homes)
    # An activation given as a layer (keras.layers.ReLU()) is elementwise if that layer's rule is.
    if activation is None or (builtin and name in ELEMENTWISE) or rule_for(activation) is elementwise:
        return ids
    call.protect(ids, f"the activation {name!r} of {call.described()} may mix channels")
    return ids


def merge(call):
    """Add, Multiply, Maximum ...: what meets at a place is one unit, an axis of length 1 broadcast over the others.

    Also all bare ops that act on every number alone, by themselves or with scalars.
    """
    if not call.constants_are_scalars():
        return unknown(call)
    if len(call.inputs) == 1:
        return call.inputs[0]
    if len({ids.ndim for ids in call.inputs}) > 1:
        return unknown(call)
    target = np.broadcast_shapes(*(ids.shape for ids in call.inputs))
    met = []
    for i, ids in enumerate(call.inputs):
        if any(real == 1 < varying for real, varying in zip(call.shape(i), target, strict=True)):
            call.protect(ids, f"{call.described()} broadcasts it over several channels")
        else:
            met.append(np.broadcast_to(ids, target))
    for other in met[1:]:
        call.tie(met[0], other)
    return met[0] if met else call.opaque()


def divide(call):
    """Elementwise by a scalar; where units divide, one that is off would divide by zero."""
    numerators = call.input("x1"), call.input("x")  # as Keras 3 and TensorFlow call it
    return merge(call) if len(call.inputs) == 1 and numerators != (None, None) else unknown(call)


def reduce(call):
    """A mean, sum, maximum or minimum over axes along which the channels stay the same."""
    axes = np.atleast_1d(call.argument("axis"))
    if any(axis is None or axis % (len(call.shape()) + 1) == 0 for axis in axes):
        return unknown(call)
    ids, axes = call.inputs[0], tuple(call.axis(axis) for axis in axes)
    if any(ids.shape[axis] > 1 for axis in axes):
        return unknown(call)
    return ids if call.argument("keepdims") else ids.squeeze(axes)


def batch_normalization(call):
    """Scale, offset and statistics travel with their channel; a SplineUnit has an activation too."""
    axis = call.layer.axis
    axis = call.axis(axis if isinstance(axis, int) else axis[0])
    if call.inputs[0].shape[axis] == 1 != call.shape()[axis]:  # not the axis of the channels
        return activated(call, call.inputs[0])
    ids = call.channels(axis=axis)
    for weight in ("gamma", "beta"):
        call.per_channel(weight, 0, ids)
    for weight in ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev"):
        call.per_channel(weight, 0, ids, statistic=True)
    return activated(call, call.inputs[0])


def layer_scale(call):
    """One factor a channel (ConvNeXt)."""
    call.per_channel("gamma", 0, call.channels())
    return call.inputs[0]


def normalise_over_channels(call):
    """LayerNormalization and its kin: removing one channel changes all others, so the channels are protected."""
    for i, axis in enumerate(np.atleast_1d(call.layer.axis)):
        if call.inputs[0].shape[call.axis(axis)] > 1:
            ids = call.channels(axis=call.axis(axis))
            for weight in ("gamma", "beta", "scale"):
                if hasattr(getattr(call.layer, weight, None), "shape"):  # tf_keras: scale=True is a flag
                    call.per_channel(weight, i, ids)
            call.protect(ids, f"{call.described()} normalises over channels", inexact=True)
    return call.inputs[0]


def group_normalization(call):
    """Normalises over the channels of each group, which all have to stay equally wide; exact where a group is one."""
    groups = call.layer.groups
    ids = call.channels(axis=call.axis(call.layer.axis))
    for weight in ("gamma", "beta"):
        call.per_channel(weight, 0, ids)
    if groups == ids.size:
        call.resize("groups", lambda kept: int(kept[ids].sum()))
    else:
        _equal_groups(call, ids, groups)
        call.protect(ids, f"{call.described()} normalises over channels", inexact=True)
    return call.inputs[0]


def softmax(call):
    """Shares of a whole: no channel can go without changing the others."""
    call.protect(call.inputs[0], f"{call.described()} mixes channels")
    return call.inputs[0]


def prelu(call):
    """A slope a place, shared along `shared_axes`."""
    for axis, size in enumerate(call.layer.alpha.shape):
        if size > 1 and call.inputs[0].shape[axis] > 1:
            call.per_channel("alpha", axis, call.channels(axis=axis))
    return call.inputs[0]


def dense(call):
    """Mixes the channels of the last axis."""
    call.consume("kernel", 0, call.channels())
    outputs = call.produce("kernel", 1)
    call.per_channel("bias", 0, outputs)
    call.resize("units", lambda kept: int(kept[outputs].sum()))
    call.macs("kernel", _size(call.shape()[:-1]))
    return activated(call, call.place(outputs))


def conv(call):
    """Conv1D/2D/3D, grouped or not: kernel [*window, inputs / groups, outputs]."""
    inputs, groups = call.channels(axis=call.channel_axis()), call.layer.groups
    outputs = call.produce("kernel", -1)
    call.macs("kernel", _size(call.spatial(call.output_shapes[0])))
    call.per_channel("bias", 0, outputs)
    call.resize("filters", lambda kept: int(kept[outputs].sum()))
    if groups == 1:
        call.consume("kernel", -2, inputs)
    elif groups == inputs.size:  # a group is one channel: it goes with all that is made of it
        call.tie(np.repeat(inputs, outputs.size // groups), outputs)
        call.resize("groups", lambda kept: int(kept[inputs].sum()))
    else:  # all groups must stay equally wide: the same place of every group goes at once
        columns = _equal_groups(call, inputs, groups)
        _equal_groups(call, outputs, groups)
        call.consume("kernel", -2, columns)
    return activated(call, call.place(outputs))


def _equal_groups(call, ids, groups):
    """Ties what is at the same place of every group; returns the ids of one group."""
    rows = ids.reshape(groups, -1)
    call.tie(np.broadcast_to(rows[:1], rows.shape), rows)
    return rows[0]


def conv_transpose(call):
    """Conv1D/2D/3DTranspose: kernel [*window, outputs, inputs]."""
    call.consume("kernel", -1, call.channels(axis=call.channel_axis()))
    outputs = call.produce("kernel", -2)
    call.per_channel("bias", 0, outputs)
    call.resize("filters", lambda kept: int(kept[outputs].sum()))
    call.macs("kernel", _size(call.spatial(call.shape())))
    return activated(call, call.place(outputs))


def depthwise(call):
    """DepthwiseConv1D/2D: `depth_multiplier` channels out of each channel, none mixed."""
    weight = "depthwise_kernel" if hasattr(call.layer, "depthwise_kernel") else "kernel"
    inputs = call.channels(axis=call.channel_axis())
    call.per_channel(weight, -2, inputs)
    outputs = np.repeat(inputs, call.layer.depth_multiplier)
    call.per_channel("bias", 0, outputs)
    call.macs(weight, _size(call.spatial(call.output_shapes[0])))
    return activated(call, call.place(outputs))


def separable(call):
    """SeparableConv1D/2D: a depthwise convolution, then a pointwise one that mixes."""
    inputs = call.channels(axis=call.channel_axis())
    call.per_channel("depthwise_kernel", -2, inputs)
    call.consume("pointwise_kernel", -2, np.repeat(inputs, call.layer.depth_multiplier))
    outputs = call.produce("pointwise_kernel", -1)
    call.per_channel("bias", 0, outputs)
    call.resize("filters", lambda kept: int(kept[outputs].sum()))
    for weight in ("depthwise_kernel", "pointwise_kernel"):
        call.macs(weight, _size(call.spatial(call.output_shapes[0])))
    return activated(call, call.place(outputs))


def embedding(call):
    """Makes its output's channels out of integers."""
    outputs = call.produce("embeddings", 1)
    call.resize("output_dim", lambda kept: int(kept[outputs].sum()))
    return outputs.reshape((1,) * (len(call.output_shapes[0]) - 1) + (-1,))


def attention(call):
    """MultiHeadAttention: reads channels and makes new ones through its projections; the heads between them stay."""
    config = call.layer.get_config()
    query, value, key = (call.input(name) for name in ("query", "value", "key"))
    inputs = {"query": query, "gate": query, "value": value, "key": value if key is None else key}
    if len(call.output_shapes) > 1 or len(call.output_shapes[0]) != len(call.shape(query)):
        return unknown(call)
    for i in (call.input(f"{name}_mask") for name in ("attention", *inputs)):
        if i is not None:
            call.protect(call.inputs[i], f"{call.described()} takes it for a mask")
    for name, i in inputs.items():
        # Keras 3 has public names for its projections, but tf_keras has not.
        weight = f"_{name}_dense.kernel"
        if _keras.weight(call.layer, weight) is not None:
            ids = call.channels(i)
            call.consume(weight, 0, ids)
            call.macs(weight, _size(call.shape(i)[:-1]))
            if f"{name}_shape" in config:
                call.resize(f"{name}_shape", _last_axis(config[f"{name}_shape"], ids))
    outputs = call.produce("_output_dense.kernel", -1)
    call.per_channel("_output_dense.bias", -1, outputs)
    call.resize("output_shape", _last_axis((None,), outputs))
    queries = _size(call.shape(query)[:-1])
    call.macs("_output_dense.kernel", queries)
    attended = _size(call.shape(inputs["key"])[call.axis(axis)] for axis in config["attention_axes"])
    call.macs(None, queries * attended * config["num_heads"] * (config["key_dim"] + config["value_dim"]))
    return call.place(outputs)


def _last_axis(shape, ids):
    return lambda kept: (*shape[:-1], int(kept[ids].sum()))


def einsum_dense(call):
    """Any product with any weight: only its work is known."""
    inputs, weight = call.layer.equation.partition("->")[0].split(",")
    read = [size for letter, size in zip(weight.strip(), call.layer.kernel.shape, strict=True) if letter in inputs]
    call.macs("kernel", _size(call.shape()) // _size(read))
    return unknown(call)


def recurrent(call, cell="cell"):
    """LSTM, GRU, SimpleRNN: reads the channels at each step; its own units feed all of its gates and stay."""
    for ids in call.inputs[1:]:  # initial states
        call.protect(ids, f"{call.described()} starts from it")
    call.consume(f"{cell}.kernel", 0, call.channels())
    for weight in ("kernel", "recurrent_kernel"):
        call.macs(f"{cell}.{weight}", _size(call.shape()[:-1]))
    return call.opaque()


def bidirectional(call):
    """Two recurrent layers on the same input."""
    layers = call.layer.forward_layer, call.layer.backward_layer
    if any(rule_for(layer) is not recurrent for layer in layers):
        return unknown(call)
    for name in ("forward_layer", "backward_layer"):
        outputs = recurrent(call, f"{name}.cell")
    return outputs


def move_in_space(call):
    """Pooling, padding, cropping, upsampling: every channel stays where it is."""
    axis = call.channel_axis()
    return call.place(call.channels(axis=axis), axis)


def global_pool(call):
    """One number a channel."""
    ids = call.channels(axis=call.channel_axis())
    return call.place(ids, call.channel_axis()) if call.layer.keepdims else ids


def flatten(call):
    """Every channel goes to as many places as its map has."""
    ids = call.full()
    if ids is None:
        return unknown(call)
    # Keras flattens in channels_last order whatever the input's order.
    return np.moveaxis(np.atleast_1d(ids), call.channel_axis(), -1).reshape(-1)


def reshape(call, key="target_shape", batch=()):
    """Moves ids as it moves numbers; where that spreads channels over several axes, the last one is cut as a whole."""
    ids, shape = call.full(), call.output_shapes[0]
    if ids is None or None in shape or ids.size != _size(shape):
        return unknown(call)
    ids = ids.reshape(shape)
    varying = [axis for axis in range(ids.ndim) if (ids != ids.take([0], axis=axis)).any()]
    if not varying:
        return ids[(slice(1),) * ids.ndim]
    columns = np.moveaxis(ids, varying[-1], -1).reshape(-1, shape[varying[-1]])
    call.tie(np.broadcast_to(columns[:1], columns.shape), columns)
    row = columns[0]

    def target_shape(kept):
        return *batch, *(int(kept[row].sum()) if axis == varying[-1] else size for axis, size in enumerate(shape))

    call.resize(key, target_shape)
    return call.place(row, varying[-1])


def reshape_op(call):
    """The bare op of Keras 3; TensorFlow's takes its shape as an argument, which cannot be made smaller."""
    shape = call.argument("newshape")
    return unknown(call) if shape is None or shape[0] != -1 else reshape(call, "newshape", (-1,))


def permute(call):
    """Transposes the ids."""
    return np.transpose(call.inputs[0], [dim - 1 for dim in call.layer.dims])


def transpose(call):
    """The bare op, which can move the batch as well."""
    order = call.argument("axes") or call.argument("perm")
    if order is None or order[0] != 0:
        return unknown(call)
    return np.transpose(call.inputs[0], [call.axis(axis) for axis in order[1:]])


def repeat_vector(call):
    """[channels] -> [n, channels]."""
    return call.inputs[0].reshape(1, -1)


def concatenate(call):
    """Puts ids side by side; along an axis where they do not vary, what is at the same place shares its id."""
    axis = getattr(call.layer, "axis", call.argument("axis")) % (len(call.shape()) + 1)
    if axis == 0:  # one batch after the other
        return merge(call)
    axis = call.axis(axis)
    sizes = [call.shape(i)[axis] for i in range(len(call.inputs))]
    rest = np.broadcast_shapes(*(np.delete(ids.shape, axis) for ids in call.inputs))
    if any(ids.shape[axis] > 1 for ids in call.inputs) or all(size == 1 for size in sizes):
        return np.concatenate(
            [
                np.broadcast_to(ids, (*rest[:axis], size, *rest[axis:]))
                for ids, size in zip(call.inputs, sizes, strict=True)
            ],
            axis=axis,
        )
    met = [np.broadcast_to(ids, (*rest[:axis], 1, *rest[axis:])) for ids in call.inputs]
    for other in met[1:]:
        call.tie(met[0], other)
    return met[0]


def _size(shape) -> int:
    """Numbers in a tensor of that shape, an axis whose size is not known counted as one."""
    return int(np.prod([size or 1 for size in shape], dtype=np.int64))


def _dimensions(*names, dimensions=(1, 2, 3)):
    return [f"{name}{n}D" for name in names for n in dimensions]


LAYERS: dict[str, Callable] = {
    **dict.fromkeys(["Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Identity"], elementwise),
    **dict.fromkeys(["Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"], elementwise),
    **dict.fromkeys(["ActivityRegularization", *_dimensions("SpatialDropout")], elementwise),
    **dict.fromkeys(["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"], merge),
    **dict.fromkeys(_dimensions("Conv"), conv),
    **{f"Conv{n}DTranspose": conv_transpose for n in (1, 2, 3)},
    **dict.fromkeys(_dimensions("DepthwiseConv", dimensions=(1, 2)), depthwise),
    **dict.fromkeys(_dimensions("SeparableConv", dimensions=(1, 2)), separable),
    **dict.fromkeys(
        _dimensions("MaxPooling", "AveragePooling", "ZeroPadding", "Cropping", "UpSampling"), move_in_space
    ),
    **dict.fromkeys(_dimensions("GlobalAveragePooling", "GlobalMaxPooling"), global_pool),
    **dict.fromkeys(["LayerNormalization", "UnitNormalization", "RMSNormalization"], normalise_over_channels),
    **dict.fromkeys(["LSTM", "GRU", "SimpleRNN"], recurrent),
    "BatchNormalization": batch_normalization,
    "Bidirectional": bidirectional,
    "CustomScaleLayer": merge,  # this one and the next two are what keras.applications defines for itself
    "LayerScale": layer_scale,
    "StochasticDepth": elementwise,
    "Concatenate": concatenate,
    "Dense": dense,
    "EinsumDense": einsum_dense,
    "Embedding": embedding,
    "Flatten": flatten,
    "GroupNormalization": group_normalization,
    "MultiHeadAttention": attention,
    "PReLU": prelu,
    "Permute": permute,
    "RepeatVector": repeat_vector,
    "Rescaling": rescaling,
    "Reshape": reshape,
    "Softmax": softmax,
}

OPS: dict[str, Callable] = {  # by names without underscores: Keras 3 has LeakyRelu, TensorFlow leaky_relu
    **dict.fromkeys((name.replace("_", "") for name in ELEMENTWISE), merge),
    **dict.fromkeys(["add", "subtract", "multiply", "maximum", "minimum"], merge),
    **dict.fromkeys(["abs", "absolute", "negative", "square", "exp", "clip", "clipbyvalue"], merge),
    **dict.fromkeys(["cast", "identity", "stopgradient"], merge),
    **dict.fromkeys(["divide", "truedivide", "truediv", "realdiv"], divide),
    **dict.fromkeys(["mean", "sum", "max", "min"], reduce),
    **dict.fromkeys(["reducemean", "reducesum", "reducemax", "reducemin"], reduce),
    **dict.fromkeys(["concatenate", "concat"], concatenate),
    "reshape": reshape_op,
    "transpose": transpose,
}
