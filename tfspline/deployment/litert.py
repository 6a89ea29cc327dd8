"""`export_litert`: a model as a file for LiteRT, formerly TensorFlow Lite, the runtime of phones and small devices."""

import os
import re
import tempfile
from collections.abc import Callable
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
    Batch normalization is folded into the kernels before it. Recurrent layers are unrolled, step by step, if LiteRT
    cannot run their loop over time.

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
        ValueError: LiteRT lacks an operation of the model, as it does for TextVectorization, or cannot run a loop.

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
        model = _copy(model, _in_float32)
    try:
        return _converted(model, quantize, samples, batch_size)
    except Exception as error:  # of a private class
        _explain(model, error)
        if _LOOP not in str(error):
            raise
    try:
        return _converted(_copy(model, _unrolled), quantize, samples, batch_size)
    except Exception as error:  # Keras cannot unroll it, or a loop is left
        _explain(model, error)
        raise _left_loop(model) from error


def _converted(model, quantize, samples, batch_size):
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
    return converter.convert()


_LOOP = "TensorListReserve"  # collects what a loop over time returns; LiteRT needs a fixed batch for it, or lacks it


def _explain(model, error) -> None:
    """Raises a ValueError that says what to do, for an error about operations that LiteRT lacks."""
    missing = re.search("(?:TF Select|Custom) ops: (.*)", str(error))
    if missing is None:
        return
    dtypes = {_DTYPES[name] for name in re.findall(r"[x<](b?f16|f64)>", str(error))}
    if not dtypes:
        raise ValueError(
            f"LiteRT has no {missing[1]}, which model {model.name!r} needs. Export a model without the layers that use "
            "these operations; preprocessing such as TextVectorization can run before the model."
        ) from error
    layers = [part.name for part in _parts(model) if getattr(part, "compute_dtype", None) in dtypes]
    where = f"layers {layers}" if layers else "a function or layer of yours"
    raise ValueError(
        f"LiteRT computes in float32. It has no {missing[1]} in {' and '.join(sorted(dtypes))}, which {where} in "
        f"model {model.name!r} needs. Build the model with dtype='float32' there, without casts to other dtypes, and "
        "copy the weights: new.set_weights(model.get_weights())."
    ) from error


_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f64": "float64"}


def _left_loop(model) -> ValueError:
    """Says what to do about loops over time that are left, which LiteRT cannot run."""
    layers = [part for part in _parts(model) if isinstance(getattr(part, "unroll", None), bool)]
    names = f"the recurrent layers {[part.name for part in layers]}" if layers else "a layer or function"
    return ValueError(
        f"LiteRT cannot run the loop over time of {names} in model {model.name!r}, and it cannot be unrolled. That "
        "needs a fixed number of time steps: build the model on keras.Input((steps, ...)) and copy the weights, "
        "new.set_weights(model.get_weights()). ConvLSTM layers of tf_keras, recurrent layers inside layers of yours "
        "and loops of yours are not unrolled: export the model without them."
    )


def _parts(model):
    """The layers of a model, and those inside them."""
    layers = [layer for layer in _keras.layer_paths(model).values() if _keras.op_name(layer) is None]
    return {id(part): part for layer in layers for part in (layer, *_keras.sublayers(layer))}.values()


def _has_low_precision(model):
    return any("float16" in str(getattr(part, "compute_dtype", "")) for part in _parts(model))


_Change = Callable[[Any, Any], Any]  # the new value of an entry of a config, by its key and value


def _in_float32(key: Any, value: Any) -> Any:
    return "float32" if key == "dtype" and "float16" in str(value) else value


def _unrolled(key: Any, value: Any) -> Any:
    return True if key == "unroll" else value


def _copy(model: KerasModel, change: _Change) -> KerasModel:
    """A copy of a model with changes in the configs of its layers and of layers that these hold."""
    layers = {path: layer for path, layer in _keras.layer_paths(model).items() if not _keras.is_model(layer)}
    changes = {path: _changes(layer, change) for path, layer in layers.items()}
    copy = _keras.rebuild(model, {path: new for path, new in changes.items() if new})
    layers = _keras.layer_paths(copy)
    for path, layer in _keras.layer_paths(model).items():
        for new, weight in zip(_keras.weights(layers[path]), _keras.weights(layer), strict=True):
            new.assign(tf.cast(tf.convert_to_tensor(weight), new.dtype))
        _keras.finalize(layers[path])
    return copy


def _changes(layer: KerasLayer, change: _Change) -> dict[str, Any]:
    """The config entries of a layer that change, or that hold layers of which entries change."""
    if _keras.op_name(layer) is not None:
        return {}
    config = _keras.object_config(layer).items()
    return {key: new for key, value in config if (new := _changed(key, value, change)) is not value and new != value}


def _changed(key: Any, value: Any, change: _Change) -> Any:
    new = change(key, value)
    if new is not value:
        return new
    if isinstance(value, list):
        return [_changed(None, part, change) for part in value]
    if isinstance(value, dict):
        return {name: _changed(name, part, change) for name, part in value.items()}
    return _keras.copy_of(value, lambda inner: _changes(inner, change)) if _keras.is_layer(value) else value


def interpreter(content: bytes) -> Any:
    """An interpreter of what `convert` returns, on all cores and with XNNPACK."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # that of TensorFlow is deprecated
        Interpreter = tf.lite.Interpreter  # noqa: N806
    return Interpreter(model_content=content, num_threads=os.cpu_count())
