"""Requests that TensorFlow Serving tries on a version that it has loaded, before it lets clients come to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfspline._utils.checks import count, several


def requests(name: str, endpoints: Mapping[str, Any], model: Any, batches: Sequence[int]) -> list:
    """A PredictionLog with a PredictRequest for each signature and size of batch: inputs of zeros, black images.

    Args:
        name: what the model is called on the server.
        endpoints: the traced signatures by their names.
        model: the model, for the size of images.
        batches: sizes of batches.

    Raises:
        ImportError: tensorflow-serving-api is not installed.
        ValueError: a size of a batch is not positive, or that of an input is not known.
    """
    try:
        from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "Expected tensorflow-serving-api, for warm-up requests: pip install tfspline[serving]. Received: none"
        ) from error
    batches = [count("a batch of warmup", batch) for batch in several("warmup", batches)]
    logs = []
    for signature, function in endpoints.items():
        for batch in batches:
            inputs = {
                spec.name: tf.make_tensor_proto(_nothing(spec, tuple(tensor.shape[1:]), batch))
                for spec, tensor in zip(function.input_signature, model.inputs, strict=True)
            }
            model_spec = model_pb2.ModelSpec(name=name, signature_name=signature)
            request = predict_pb2.PredictRequest(model_spec=model_spec, inputs=inputs)
            logs.append(prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request)))
    return logs


def _nothing(spec, shape, batch):
    if None in shape:
        raise ValueError(f"Expected inputs of a known size for warmup. Received: {spec.name!r}, of {shape} a sample")
    if spec.dtype == tf.string and spec.shape.rank == 1 and len(shape) == 3:
        return [tf.io.encode_png(tf.zeros(shape, tf.uint8)).numpy()] * batch
    return tf.zeros([batch, *shape], spec.dtype).numpy()


def write_requests(path: str, logs: Sequence[Any]) -> None:
    """Writes warm-up requests as TensorFlow Serving reads them, from `assets.extra/tf_serving_warmup_requests`."""
    with tf.io.TFRecordWriter(path) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
