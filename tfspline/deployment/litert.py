"""A model as a file for LiteRT, which TensorFlow Lite is called now: the runtime of phones and small devices."""

import os
import tempfile
from typing import Any

import tensorflow as tf

from tfspline._keras import check_model
from tfspline._keras.inputs import probe_inputs
from tfspline._utils.checks import among, count
from tfspline._utils.files import replacing
from tfspline.deployment import signatures

QUANTIZATIONS = (None, "dynamic", "int8")


def export_litert(
    model: Any,
    path: str | os.PathLike,
    quantize: str | None = None,
    data: Any = None,
    batch_size: int | None = None,
) -> str:
    """Writes `model` to a `.tflite` file that runs in LiteRT, without TensorFlow, Keras and tfspline.

    Its signature `serving_default` is that of `export`: inputs and outputs by name, of the model's own dtypes even
    where the file is quantised. Batch normalisation is folded into the kernels before it.

    Args:
        model: a functional or built Sequential model, of Keras 3 or tf_keras.
        path: the file; its folder is made if it is not there. A file that is there is replaced by the whole new one
            or, if anything fails, not at all.
        quantize: None keeps the numbers of the model. "dynamic" stores large kernels as 8-bit integers, a quarter of
            the size, and quantises what they are applied to as it comes. "int8" computes in 8-bit integers wherever
            LiteRT can, on ranges that are measured on `data`.
        data: for "int8", some hundreds of inputs like those that the model will see: what the model takes, several of
            them in a list, or a batched tf.data.Dataset of that, of which the first 1,024 samples are read; labels are
            left aside.
        batch_size: a number fixes the size of a batch, with which XNNPACK runs some models faster: where a layer
            flattens or reshapes, a free batch interrupts it. None leaves the batch free; an interpreter then begins
            with batches of one, and takes others by a signature runner or `resize_tensor_input`.

    Returns:
        `path`.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model is subclassed or not built; an unknown `quantize`; "int8" without `data`, or `data` with
            anything else; `data` that does not fit the model or is less than a batch; a `batch_size` that is no
            positive integer.
        IsADirectoryError: `path` is a folder.
        OSError: the file cannot be written.

    An op of the model that LiteRT does not have is refused by TensorFlow's converter, in its own words.

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
    among("quantize", quantize, QUANTIZATIONS)
    if quantize == "int8" and data is None:
        raise ValueError(
            "Expected `data`, inputs on which quantize='int8' measures the ranges of values. Received: none"
        )
    if quantize != "int8" and data is not None:
        raise ValueError(f"Expected `data` with quantize='int8' only. Received: `data` and quantize={quantize!r}")
    if batch_size is not None:
        count("batch_size", batch_size)
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"Expected a file to write. Received: {path!r}, which is a folder")
    samples = None if data is None else probe_inputs(model, data)
    if samples is not None and len(samples[0]) < (batch_size or 1):
        raise ValueError(f"Expected at least a batch, {batch_size}, of samples in `data`. Received: {len(samples[0])}")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with replacing(path, "wb") as file:
        file.write(convert(model, quantize, samples, batch_size))
    return path


def convert(
    model: Any,
    quantize: str | None = None,
    samples: list[tf.Tensor] | None = None,
    batch_size: int | None = None,
) -> bytes:
    """What `export_litert` writes; `samples` is a tensor for each of `model.inputs`."""
    endpoints = signatures.traced(model)
    # The converter does not find the variables of a Keras 3 model, but does those of a SavedModel.
    with tempfile.TemporaryDirectory() as folder:
        signatures.write(model, endpoints, folder)
        loaded = tf.saved_model.load(folder)
    serve, inputs = loaded.signatures["serving_default"], endpoints["serving_default"].input_signature
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


def interpreter(content: bytes) -> Any:
    """An interpreter of what `convert` made, on all cores, with XNNPACK, which it takes wherever it can.

    That of the package ai-edge-litert, where LiteRT lives on, if it is installed; otherwise the one inside TensorFlow,
    which announces that it is going to be removed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = tf.lite.Interpreter  # noqa: N806
    return Interpreter(model_content=content, num_threads=os.cpu_count())
