"""Compares the answers of a model server with those of the Keras model, and measures its latency, over gRPC.

python serving/grpc_client.py --model=slim.keras --name=resnet [--server=localhost:8500] [--batch_sizes=1,8]

Needs `pip install 'tfspline[serving]'`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import grpc  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from measure import FLAGS, measure  # noqa: E402
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_service_pb2_grpc  # noqa: E402

flags.DEFINE_string("server", "localhost:8500", "Host and port of the server.")


def main(_):
    """Connects, compares and measures."""
    # Batches of images exceed gRPC's default limit of 4 MB.
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(FLAGS.server, options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def predict(inputs):
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=FLAGS.name, signature_name="serving_default"),
                inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()},
            )
            answer = stub.Predict(request, timeout=FLAGS.timeout)
            return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}

        measure(predict)


if __name__ == "__main__":
    app.run(main)
