"""`export_litert`: a model as a file for LiteRT, formerly TensorFlow Lite, the runtime of phones and small devices."""

import os
import re
import tempfile
from typing import Any

import tensorflow as tf
from absl import logging

from tfspline import _keras
from tfspline._keras import check_model
from tfspline._keras.inputs import probe
from tfspline._keras.types import Data, KerasLayer, KerasModel
from tfspline._utils.checks import among, count
from tfspline._utils.files import replacing
from tfspline.deployment import signatures

QUANTIZATIONS = (None, "dynamic", "int8")


def export_litert(
    model: KerasModel,
    path: str | os.PathLike,
    quantize: str | None = None,
    data: Data = None,
    batch_size: int | None = None,
) -> str:
    """Writes a model to a `.tflite` file that runs in LiteRT, without TensorFlow, Keras and tfspline.

    The file has the signature `serving_default` of `tfspline.export`; inputs and outputs keep the dtypes of the model,
    even if it is quantized. A model in mixed or low precision is exported as a float32 copy, with float32 outputs.
    Batch normalization is folded into the kernels before it.

    Args:
        model: a functional or built Sequential model of either Keras version.
        path: the file, replaced atomically if it exists. Missing folders are created.
        quantize: None: no quantisation. "dynamic": large kernels are stored as 8-bit integers, a quarter of the size.
            "int8": the model also computes in 8-bit integers where LiteRT can.
        data: for "int8" only: a few hundred typical inputs, on which the ranges of values are measured. Of a batched
            tf.data.Dataset, the first 1,024 samples are used. Labels are ignored.
        batch_size: a fixed batch size, which makes models faster that flatten or reshape. By default any size works;
            an interpreter then starts with 1.

    Returns:
        `path`.

    Raises:
        TypeError, ValueError: an argument is invalid or does not fit the model.
        OSError: `path` is a folder (IsADirectoryError), or cannot be written.
        ValueError: LiteRT lacks an operation of the model, as it does for TextVectorization.

    Example:
        >>> import tempfile
        >>> import keras, numpy as np, tensorflow as tf, tfspline
        >>> model = keras.Sequential([keras.Input((4,), name="image"), keras.layers.Dense(3, name="logits")])
        >>> path = tfspline.export_litert(model, tempfile.mkdtemp() + "/model.tflite")
        >>> run = tf.lite.Interpreter(path).get_signature_runner()  # or that of the package ai-edge-litert
        >>> run(image=np.zeros((2, 4), "float32"))["logits"].shape
        (2, 3)
    """
    check_model(model)
    samples = _checked_samples(model, quantize, data, batch_size)
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"Expected a file to write. Received: {path!r}, which is a folder")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if _has_low_precision(model):
        logging.warning("LiteRT computes in float32, so %r is exported as a float32 copy.", model.name)
    with replacing(path, "wb") as file:
        file.write(convert(model, quantize, samples, batch_size))
    return path


def _checked_samples(model, quantize, data, batch_size) -> list[tf.Tensor] | None:
    among("quantize", quantize, QUANTIZATIONS)
    if quantize == "int8" and data is None:
        raise ValueError("quantize='int8' needs `data`, typical inputs on which the ranges of values are measured.")
    if quantize != "int8" and data is not None:
        raise ValueError(f"`data` is used with quantize='int8' only. Received: quantize={quantize!r}")
    if batch_size is not None:
        count("batch_size", batch_size)
    samples = None if data is None else probe(model, data).inputs
    if samples is not None and len(samples[0]) < (batch_size or 1):
        raise ValueError(f"Expected at least a batch, {batch_size}, of samples in `data`. Received: {len(samples[0])}")
    return samples


def convert(
    model: KerasModel,
    quantize: str | None = None,
    samples: list[tf.Tensor] | None = None,
    batch_size: int | None = None,
) -> bytes:
    """The content of a file as `export_litert` writes it; `samples` has a tensor for each of `model.inputs`."""
    if _has_low_precision(model):
        model = _float32_copy(model)
    traced = signatures.traced(model)
    # The converter does not find the variables of a Keras 3 model, but it finds those of a SavedModel.
    with tempfile.TemporaryDirectory() as folder:
        signatures.write(model, traced, folder)
        loaded = tf.saved_model.load(folder)
    serve, inputs = loaded.signatures["serving_default"], traced["serving_default"].input_signature
    shaped = {spec.name: tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype, spec.name) for spec in inputs}
    function = tf.function(lambda **values: serve(**values)).get_concrete_function(**shaped)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], loaded)
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if samples is not None:
        size = batch_size or 1
        converter.representative_dataset = lambda: (
            {spec.name: value[i : i + size] for spec, value in zip(inputs, samples, strict=True)}
            for i in range(0, len(samples[0]) - size + 1, size)
        )
    try:
        return converter.convert()
    except Exception as error:  # of a private class
        missing = re.search("(?:TF Select|Custom) ops: (.*)", str(error))
        if missing is None:
            raise
        raise ValueError(
            f"LiteRT has no {missing[1]}, which model {model.name!r} needs. Export a model without the layers that use "
            "these operations; preprocessing such as TextVectorization can run before the model."
        ) from error


def _has_low_precision(model):
    return any("float16" in str(getattr(layer, "compute_dtype", "")) for layer in _keras.layer_paths(model).values())


def _float32_copy(model: KerasModel) -> KerasModel:
    layers = {path: layer for path, layer in _keras.layer_paths(model).items() if not _keras.is_model(layer)}
    changes = {path: _changes_to_float32(layer) for path, layer in layers.items()}
    copy = _keras.rebuild(model, {path: change for path, change in changes.items() if change})
    layers = _keras.layer_paths(copy)
    for path, layer in _keras.layer_paths(model).items():
        for new, weight in zip(_keras.weights(layers[path]), _keras.weights(layer), strict=True):
            new.assign(tf.cast(tf.convert_to_tensor(weight), new.dtype))
        _keras.finalize(layers[path])
    return copy


def _changes_to_float32(layer: KerasLayer) -> dict[str, Any]:
    """The config entries of a layer that name mixed or low precision, or hold layers that do, in float32."""
    if _keras.op_name(layer) is not None:
        return {}
    config = _keras.object_config(layer).items()
    return {key: new for key, value in config if (new := _in_float32(value, key)) is not value and new != value}


def _in_float32(value: Any, key: Any = None) -> Any:
    if key == "dtype" and "float16" in str(value):
        return "float32"
    if isinstance(value, list):
        return [_in_float32(part) for part in value]
    if isinstance(value, dict):
        return {name: _in_float32(part, name) for name, part in value.items()}
    return _keras.copy_of(value, _changes_to_float32) if _keras.is_layer(value) else value


def interpreter(content: bytes) -> Any:
    """An interpreter of what `convert` returns, on all cores and with XNNPACK."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # that of TensorFlow is deprecated
        Interpreter = tf.lite.Interpreter  # noqa: N806
    return Interpreter(model_content=content, num_threads=os.cpu_count())
