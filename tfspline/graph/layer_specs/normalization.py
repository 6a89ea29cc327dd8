"""Normalization layers."""

import math

import numpy as np

from tfspline import _keras
from tfspline.graph.call import Call
from tfspline.graph.layer_specs.activations import activated
from tfspline.graph.layer_specs.dependence import scaled_by_gamma, zero_stays_zero
from tfspline.graph.layer_specs.spec import LayerSpec, unknown


def _batch_normalization(call: Call) -> np.ndarray:
    """One scale, offset and statistics for each position along `axis`; a SplineUnit also has an activation."""
    ids, axes = call.inputs[0], [call.axis(axis) for axis in np.atleast_1d(call.layer.axis)]
    varying = [i for i, n in enumerate(ids.shape) if n > 1] or [i for i in axes if call.shape()[i] == 1]
    for axis in varying if len(varying) == 1 else sorted({*axes}.intersection(varying))[-1:]:
        row = call.channels(axis=axis)
        if axis in axes:
            place = axis + 1 if len(axes) > 1 else 0  # tf_keras: with several axes, a weight has the input's rank
            for weight in ("gamma", "beta"):
                call.per_channel(weight, place, row)
            for weight in ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev"):
                if hasattr(call.layer, weight):
                    call.per_channel(weight, place, row, statistic=True)
    return activated(call, ids)


def _over_channels(call: Call) -> np.ndarray:
    """LayerNormalization and similar: protects channels, since removing one changes how the others are normalized."""
    is_layer_norm = _keras.of_class(call.layer, "LayerNormalization")
    has_rms_norm = hasattr(_keras.keras_of(call.layer).layers, "RMSNormalization")
    way = (
        "; in a pre-LN network tfspline.with_rms_norm(model) makes that exact" if is_layer_norm and has_rms_norm else ""
    )
    for i, axis in enumerate(np.atleast_1d(call.layer.axis)):
        if call.inputs[0].shape[call.axis(axis)] > 1:
            ids = call.channels(axis=call.axis(axis))
            for weight in ("gamma", "beta"):
                if hasattr(getattr(call.layer, weight, None), "shape"):  # in tf_keras, scale=True is a flag
                    call.per_channel(weight, i, ids)
            call.protect(ids, f"{call.described()} normalizes over channels{way}", inexact=True)
    return call.inputs[0]


def _rms_normalization(call: Call) -> np.ndarray | list[np.ndarray]:
    """RMSNormalization over D channels, of which all but K are zero, is one over these K with other numbers.

    With m the mean square over D channels, that over K is m D / K, so

        x / sqrt(m + epsilon) = sqrt(D / K) x / sqrt(m D / K + epsilon D / K).
    """
    axes, rows = sorted(call.axis(axis) for axis in np.atleast_1d(call.layer.axis)), []
    if axes != list(range(call.inputs[0].ndim))[-len(axes) :]:
        return unknown(call, "normalizes over other axes than the last ones, along which its scale is broadcast")
    for i, axis in enumerate(axes):
        if call.inputs[0].shape[axis] > 1:
            rows.append(call.channels(axis=axis))
            call.per_channel("scale", i, rows[-1], power=0.5)
    if rows:
        epsilon = call.layer.epsilon
        call.resize("epsilon", lambda kept: epsilon / math.prod(float(kept[row].mean()) for row in rows))
        call.absorb(0)
        if not call.is_zero_when_off(0):
            why = f"{call.described()} normalizes over channels that may not be zero when switched off"
            call.protect(call.inputs[0], why, inexact=True)
    return call.inputs[0]


def _group_normalization(call: Call) -> np.ndarray:
    """Normalizes over the channels of each group, which must stay equally wide; exact if each group is one channel."""
    groups, axis = call.layer.groups, call.axis(call.layer.axis)
    if call.inputs[0].shape[axis] < call.inputs[0].size:  # units along another axis are normalized together
        call.protect(call.inputs[0], f"{call.described()} normalizes over channels", inexact=True)
    if call.inputs[0].shape[axis] == 1 != call.shape()[axis]:
        return call.inputs[0]
    ids = call.channels(axis=axis)
    for weight in ("gamma", "beta"):
        call.per_channel(weight, 0, ids)
    if groups == ids.size:
        call.resize("groups", lambda kept: int(kept[ids].sum()))
    else:
        call.tie_groups(ids, groups)
        call.protect(ids, f"{call.described()} normalizes over channels", inexact=True)
    return call.inputs[0]


LAYERS: dict[str, LayerSpec] = {
    "BatchNormalization": LayerSpec(_batch_normalization, affine=True, dependence=scaled_by_gamma),
    **dict.fromkeys(["LayerNormalization", "UnitNormalization"], LayerSpec(_over_channels)),
    "RMSNormalization": LayerSpec(_rms_normalization, dependence=zero_stays_zero),
    "GroupNormalization": LayerSpec(_group_normalization),
}
