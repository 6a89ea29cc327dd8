"""What a call computes if all units that it makes and reads are switched off."""

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline.graph.flow import Flow
from tfspline.graph.layer_specs.dependence import moved, product, zero_stays_zero
from tfspline.graph.layer_specs.registry import spec_of


def off_values(node: _keras.Node, args: tuple, kwargs: dict, has_units: bool) -> list[np.ndarray]:
    """The outputs of a call, for a batch of one, if all units are switched off; NaN where that is not known.

    `has_units` says whether the layer produces units or scales them, with weights that are zero then.
    """
    spec, layer = spec_of(node.layer), _keras.innermost(node.layer)
    flows = [value for value in tf.nest.flatten((args, kwargs)) if isinstance(value, Flow)]
    value = np.nan
    if has_units or spec.kernel is not None:
        activation = _keras.own_activation(layer)
        value = 0.0 if activation is None else float(np.ravel(activation(tf.zeros([1, 1])))[0])
    elif spec.elementwise or spec.dependence in (moved, zero_stays_zero):
        values = {id(flow): flow.off() for flow in flows}
        if spec.dependence is product and not all(map(np.any, values.values())):
            value = 0.0
        else:
            try:
                outputs = _keras.call(node.layer, args, kwargs, Flow, lambda flow: _full(values[id(flow)], flow.spec))
                return [np.asarray(output) for output in outputs]
            except Exception:  # whatever an op raises, such as for a size that is not known
                pass
    return [np.full([1] * len(shape), value) for shape in node.output_shapes]


def _full(value, spec):
    return tf.cast(tf.broadcast_to(value, spec.shape), spec.dtype)
