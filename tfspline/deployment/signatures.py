"""What a SavedModel takes and gives: its signatures, as TensorFlow functions of named and typed tensors."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfspline._keras import keras_of, nodes
from tfspline._utils.checks import among, several

INPUTS = (None, "image", "image_bytes")
_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


def traced(
    model: Any,
    input: str | None = None,
    preprocessing: Callable | None = None,
    class_names: Sequence[str] | None = None,
    top_k: int = 5,
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """The signatures of a model by their names, `serving_default` and with class names `classify`, each traced once.

    Raises:
        TypeError, ValueError: as `tfspline.export`.
    """
    specs, prepare = _taken(model, input, preprocessing)
    give = {"serving_default": _outputs(model)}
    if class_names is not None:
        give["classify"] = _classifier(model, class_names, top_k)
    return {name: _trace(model, specs, prepare, outputs) for name, outputs in give.items()}


def write(model: Any, endpoints: Mapping[str, Callable], folder: str) -> None:
    """Writes the SavedModel with these signatures of a model."""
    archive = keras_of(model).export.ExportArchive()
    archive.track(model)
    for name, function in endpoints.items():
        archive.add_endpoint(name, function)
    # tf_keras has no way to say that write_out shall not print.
    with contextlib.redirect_stdout(io.StringIO()):
        archive.write_out(folder)


def _trace(model, specs, prepare, outputs):
    def serve(*inputs):
        # A Sequential of Keras 3 has no `input` unless it was called as a layer.
        structure = getattr(model, "input", model.inputs[0])
        given = tf.nest.pack_sequence_as(structure, prepare(inputs))
        return outputs(tf.nest.flatten(model(given, training=False)))

    function = tf.function(serve, input_signature=specs, autograph=False)
    _check_ops(model, function.get_concrete_function().graph.as_graph_def())
    return function


def _check_ops(model, graph):
    for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
        if node.op in _PYTHON or not hasattr(tf.raw_ops, node.op):
            what = "a Python function" if node.op in _PYTHON else "an op that TensorFlow itself does not have"
            raise ValueError(
                f"Expected a model of TensorFlow's ops only, which load where there is no Python. Received: "
                f"{model.name!r}, which calls {what} ({node.op}) in {node.name!r}"
            )


def _outputs(model):
    made_by = {tensor: node.layer.name for node in nodes(model) for tensor in node.outputs}
    names = _unique(made_by.get(id(tensor), tensor.name) for tensor in model.outputs)
    return lambda outputs: dict(zip(names, outputs, strict=True))


def _classifier(model, class_names, top_k):
    shapes = [tuple(tensor.shape[1:]) for tensor in model.outputs]
    if len(shapes) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"Expected a model with one output [batch, classes] for class_names. Received: {model.name!r} "
            f"with outputs of shapes {[(None, *shape) for shape in shapes]}"
        )
    ((classes,),) = shapes
    if not all(isinstance(name, str) for name in several("class_names", class_names)):
        raise TypeError(f"Expected class_names to be strings. Received: {class_names!r}")
    if len(class_names) != classes:
        raise ValueError(f"Expected {classes} class_names, the outputs of {model.name!r}. Received: {len(class_names)}")
    if not isinstance(top_k, int) or isinstance(top_k, bool):
        raise TypeError(f"Expected top_k to be an integer. Received: {top_k!r}")
    if top_k < 1:
        raise ValueError(f"Expected top_k to be positive. Received: {top_k}")

    def classify(outputs):
        best = tf.math.top_k(tf.cast(outputs[0], tf.float32), min(top_k, classes))
        return {"classes": tf.gather(tf.constant(list(class_names)), best.indices), "scores": best.values}

    return classify


def _taken(model, input, preprocessing):
    """The specs of what is served takes, and the function that makes the model's inputs of it."""
    among("input", input, INPUTS)
    names = _unique(tensor.name for tensor in model.inputs)
    specs = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=name)
        for tensor, name in zip(model.inputs, names, strict=True)
    ]
    if input is None and preprocessing is None:
        return specs, list
    if len(specs) > 1:
        raise ValueError(
            f"Expected a model with one input for `input` or `preprocessing`. Received: {model.name!r} with "
            f"{[spec.name for spec in specs]}"
        )
    preprocessing = preprocessing or tf.identity
    if not callable(preprocessing):
        raise TypeError(f"Expected preprocessing to be a function of a batch. Received: {preprocessing!r}")
    (wanted,) = specs
    if input is None:
        return specs, lambda inputs: [_fitting(preprocessing(inputs[0]), wanted)]
    if wanted.shape.rank != 4 or None in wanted.shape[1:].as_list() or wanted.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"Expected a model that takes images of a known size, [batch, height, width, 1, 3 or 4], for input="
            f"{input!r}. Received: {model.name!r}, which takes {tuple(wanted.shape)}"
        )

    def prepare(images):
        images = preprocessing(tf.cast(images, tf.float32))
        if images.shape[1:3] != wanted.shape[1:3]:
            images = tf.image.resize(images, wanted.shape[1:3])
        return _fitting(images, wanted)

    def decoded(content):
        image = tf.io.decode_image(content, wanted.shape[3], expand_animations=False)
        image.set_shape([None, None, wanted.shape[3]])
        return prepare(image[tf.newaxis])[0]

    if input == "image":
        return [tf.TensorSpec((None, None, None, wanted.shape[3]), tf.uint8, name=input)], lambda x: [prepare(x[0])]
    spec = tf.TensorSpec((None,), tf.string, name=input)
    each = tf.TensorSpec(wanted.shape[1:], wanted.dtype)
    return [spec], lambda x: [tf.map_fn(decoded, x[0], fn_output_signature=each)]


def _fitting(values, wanted):
    values = tf.cast(values, wanted.dtype)
    if not wanted.shape.is_compatible_with(values.shape):
        raise ValueError(
            f"Expected preprocessing to give what the model takes, {tuple(wanted.shape)}. "
            f"Received: {tuple(values.shape)}"
        )
    return values


def _unique(names):
    # Two outputs of one layer share its name, and a signature cannot hold a name twice.
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}_{count}" if count else name)
    return unique
