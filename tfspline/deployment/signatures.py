"""The signatures of a SavedModel: TensorFlow functions with named and typed inputs and outputs."""

import collections
import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence

import tensorflow as tf

from tfspline._keras import keras_of, nodes
from tfspline._keras.types import KerasModel
from tfspline._utils.checks import among, count, several

# TensorFlow operations that call back into Python.
_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


def traced(
    model: KerasModel,
    input: str | None = None,
    preprocessing: Callable | None = None,
    class_names: Sequence[str] | None = None,
    top_k: int = 5,
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """Traces the signatures `serving_default` and, with class names, `classify`; see `tfspline.export`."""
    specs, prepare = _inputs(model, input, preprocessing)
    signatures = {"serving_default": functools.partial(_named, _output_names(model))}
    if class_names is not None:
        _check_classifier(model, class_names, top_k)
        signatures["classify"] = functools.partial(_classified, list(class_names), min(top_k, len(class_names)))
    return {name: _trace(model, specs, prepare, finish) for name, finish in signatures.items()}


def write(model: KerasModel, signatures: Mapping[str, Callable], folder: str) -> None:
    """Writes a SavedModel with these signatures of a model."""
    archive = keras_of(model).export.ExportArchive()
    archive.track(model)
    for name, function in signatures.items():
        archive.add_endpoint(name, function)
    # write_out prints a summary, which cannot be switched off in tf_keras.
    with contextlib.redirect_stdout(io.StringIO()):
        archive.write_out(folder)


def _trace(model, specs, prepare, finish):
    def serve(*inputs):
        # A Sequential model of Keras 3 has no `input` unless it was called as a layer.
        structure = getattr(model, "input", model.inputs[0])
        prepared = tf.nest.pack_sequence_as(structure, prepare(inputs))
        return finish(tf.nest.flatten(model(prepared, training=False)))

    function = tf.function(serve, input_signature=specs, autograph=False)
    _check_ops(model, function.get_concrete_function().graph.as_graph_def())
    return function


def _check_ops(model, graph):
    for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
        if node.op in _PYTHON or not hasattr(tf.raw_ops, node.op):
            what = "a Python function" if node.op in _PYTHON else "an op that is not part of TensorFlow"
            raise ValueError(
                f"Model {model.name!r} cannot be exported: {node.name!r} calls {what} ({node.op}), which a server "
                "cannot run. Use TensorFlow ops instead."
            )


# ---- outputs


def _output_names(model) -> list[str]:
    made_by = {tensor: node.layer.name for node in nodes(model) for tensor in node.outputs}
    return _unique(made_by.get(id(tensor), tensor.name) for tensor in model.outputs)


def _named(names: list[str], outputs: list) -> dict[str, tf.Tensor]:
    return dict(zip(names, outputs, strict=True))


def _classified(class_names: list[str], k: int, outputs: list) -> dict[str, tf.Tensor]:
    best = tf.math.top_k(tf.cast(outputs[0], tf.float32), k)
    return {"classes": tf.gather(tf.constant(class_names), best.indices), "scores": best.values}


def _check_classifier(model, class_names, top_k) -> None:
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
    count("top_k", top_k)


# ---- inputs


def _inputs(model, input, preprocessing) -> tuple[list[tf.TensorSpec], Callable]:
    """The inputs of a signature, and a function that turns them into the inputs of the model."""
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
            f"Expected a model with one input for `input` or `preprocessing`. Received: {model.name!r} with {names}"
        )
    if preprocessing is not None and not callable(preprocessing):
        raise TypeError(f"Expected preprocessing to be a function of a batch. Received: {preprocessing!r}")
    (wanted,) = specs
    shape = wanted.shape.as_list()
    if input is not None and (len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3, 4)):
        raise ValueError(
            f"Expected a model that takes images of a known size, [batch, height, width, 1, 3 or 4], for input="
            f"{input!r}. Received: {model.name!r}, which takes {tuple(shape)}"
        )
    spec, prepare = INPUTS[input]
    return [spec(wanted)], functools.partial(prepare, wanted, preprocessing or tf.identity)


def _prepare_tensor(wanted, preprocessing, inputs):
    return [_fitting(preprocessing(inputs[0]), wanted)]


def _prepare_image(wanted, preprocessing, inputs):
    images = preprocessing(tf.cast(inputs[0], tf.float32))
    if images.shape[1:3] != wanted.shape[1:3]:
        images = tf.image.resize(images, wanted.shape[1:3])
    return [_fitting(images, wanted)]


def _prepare_image_bytes(wanted, preprocessing, inputs):
    def decode(content):
        image = tf.io.decode_image(content, wanted.shape[3], expand_animations=False)
        image.set_shape([None, None, wanted.shape[3]])
        return _prepare_image(wanted, preprocessing, [image[tf.newaxis]])[0][0]

    # One by one, since the images of a batch may differ in size.
    decoded = tf.TensorSpec(wanted.shape[1:], wanted.dtype)
    return [tf.map_fn(decode, inputs[0], fn_output_signature=decoded)]


# For each `input` of `tfspline.export`: the spec of the signature's input, a function of the spec of the model's input;
# and how the model's input is made, a function of that spec, the preprocessing and the signature's inputs.
INPUTS: dict[str | None, tuple[Callable, Callable]] = {
    None: (lambda wanted: wanted, _prepare_tensor),
    "image": (lambda wanted: tf.TensorSpec([None] * 3 + [wanted.shape[3]], tf.uint8, "image"), _prepare_image),
    "image_bytes": (lambda wanted: tf.TensorSpec([None], tf.string, "image_bytes"), _prepare_image_bytes),
}


def _fitting(values, wanted):
    values = tf.cast(values, wanted.dtype)
    if not wanted.shape.is_compatible_with(values.shape):
        raise ValueError(
            f"Expected preprocessing to return the model's input, {tuple(wanted.shape)}. "
            f"Received: {tuple(values.shape)}"
        )
    return values


def _unique(names: Iterable[str]) -> list[str]:
    """Numbers repeated names: two outputs of one layer have the same name, but a signature needs different ones."""
    seen: collections.Counter = collections.Counter()
    unique = []
    for name in names:
        unique.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return unique
