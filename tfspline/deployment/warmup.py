"""Warm-up requests, which TensorFlow Serving runs on a version before it serves clients."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfspline._keras.types import KerasModel
from tfspline._utils.checks import count, several


def requests(name: str, signatures: Mapping[str, Any], model: KerasModel, batches: Sequence[int]) -> list[bytes]:
    """Serialized requests with zeros, or with black images, for each signature and batch size.

    `name` is that of the model on the server; the sizes of the inputs are those of `model`.
    """
    try:
        from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ImportError("`warmup` needs tensorflow-serving-api: pip install 'tfspline[serving]'") from error
    batches = [count("a batch of warmup", batch) for batch in several("warmup", batches)]
    logs = []
    for signature, function in signatures.items():
        for batch in batches:
            inputs = {
                spec.name: tf.make_tensor_proto(_zeros(spec, tuple(tensor.shape[1:]), batch))
                for spec, tensor in zip(function.input_signature, model.inputs, strict=True)
            }
            model_spec = model_pb2.ModelSpec(name=name, signature_name=signature)
            request = predict_pb2.PredictRequest(model_spec=model_spec, inputs=inputs)
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            logs.append(log.SerializeToString())
    return logs


def _zeros(spec, shape, batch):
    if None in shape:
        raise ValueError(f"`warmup` needs inputs of a known size. Received: {spec.name!r} with shape {(None, *shape)}")
    if spec.dtype == tf.string and spec.shape.rank == 1 and len(shape) == 3:
        return [tf.io.encode_png(tf.zeros(shape, tf.uint8)).numpy()] * batch
    return tf.zeros([batch, *shape], spec.dtype).numpy()
