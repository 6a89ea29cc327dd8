"""The sizes and the work of a call: from its layer spec if there is one, otherwise from the TensorFlow graph."""

import functools

import tensorflow as tf

from tfspline import _keras
from tfspline.graph import tracing
from tfspline.graph.call import Call, Flow
from tfspline.graph.layer_specs.activations import is_known_activation
from tfspline.graph.layer_specs.functions import label
from tfspline.graph.layer_specs.registry import UNKNOWN, is_custom, spec_of


class CallWork:
    """The sizes and the work of one call, in a prediction of one input.

    Attributes:
        outputs: shapes, batch included, and dtypes of the call's outputs.
    """

    def __init__(self, node: _keras.Node, args: tuple, kwargs: dict):
        self._node, self._arguments = node, (args, kwargs)
        self._inputs = [flow.spec for flow in tf.nest.flatten((args, kwargs)) if isinstance(flow, Flow)]
        self._spec = spec_of(node.layer)
        recorded = self._shaped(node.output_shapes)
        if self._keeps_batch() and self._called_as_recorded():
            self.outputs = recorded
        else:
            self.outputs = self._computed() or self._trace.outputs or recorded

    @functools.cached_property
    def _trace(self):
        return tracing.trace(self._node, *self._arguments, Flow, self._inputs)

    def _keeps_batch(self) -> bool:
        """Whether the batch of the outputs, which the model's graph does not know, is that of the inputs."""
        layer = self._node.layer
        if self._spec is UNKNOWN or is_custom(layer) or _keras.of_class(layer, "Lambda"):
            return False
        return self._spec.elementwise or (_keras.op_name(layer) is None and getattr(layer, "axis", None) != 0)

    def _called_as_recorded(self) -> bool:
        """Whether the inputs have the shapes in the model's graph: a nested model can be called with others."""
        return [tuple(spec.shape)[1:] for spec in self._inputs] == [shape[1:] for shape in self._node.input_shapes]

    def _computed(self):
        """The outputs by Keras, which is faster than a trace; None if it has no answer for them."""
        first = _keras.first_argument(*self._arguments)
        several = len(tf.nest.flatten(first)) < len(self._inputs) or len(self._node.output_shapes) > 1
        if several or not self._keeps_batch():
            return None
        shapes = [tuple(spec.shape) for spec in self._inputs]
        shape = _keras.output_shape(self._node.layer, shapes if isinstance(first, list) else shapes[0])
        return shape and self._shaped([shape])

    def _shaped(self, shapes):
        """Outputs of these shapes, with the batch of the inputs in place of theirs."""
        batches = [spec.shape[0] for spec in self._inputs if spec.shape.rank]
        batch = None if None in batches else max(batches, default=1)
        shapes = ((batch, *shape[1:]) if shape else () for shape in shapes)
        return [tf.TensorSpec(*spec) for spec in zip(shapes, self._node.output_dtypes, strict=True)]

    def count(self, call: Call) -> None:
        """Counts the work of a call that its channel rule, which has run, has not declared."""
        layer = self._node.layer
        opaque = self._spec is UNKNOWN or (call.is_opaque and not (_keras.op_name(layer) and self._spec.affine is True))
        if call.declares_macs or not (opaque or is_custom(layer)):
            self._count_activations(call)
            return
        macs, why = self._trace.macs, self._trace.unknown
        if is_custom(layer) and macs:  # these can change with the units that are kept
            why = "its channel rule declares no MACs; call `call.macs` in it"
        _declare(call, macs, why)

    def _count_activations(self, call):
        """Counts what the activations of a layer compute that are not known as activation functions."""
        layer = self._node.layer
        if is_custom(layer) or _keras.op_name(layer) is not None or _keras.builtin_class_name(layer) is None:
            return
        is_plain = _keras.own_activation(layer) is not None and not hasattr(layer, "cell")
        for owner in [layer] if is_plain else [layer, *_keras.sublayers(layer)]:
            for name in ("activation", "recurrent_activation"):
                activation = _keras.own_activation(owner, name)
                if activation is None or is_known_activation(activation):
                    continue
                work = tracing.trace_function(activation, self._before_activation())
                if is_plain:
                    _declare(call, work.macs, work.unknown)
                elif work.macs or work.unknown:  # it runs in each step, in a recurrent layer for each gate
                    call.unknown(f"the MACs of its {name} {label(activation)!r} are not known")

    def _before_activation(self):
        """The shape and dtype of what the activation of the layer is called on."""
        return (self._computed() or self.outputs)[0]


def _declare(call, macs, unknown):
    if macs:
        call.macs(None, macs // call.batch)
    if unknown:
        call.unknown(unknown)
