"""Serves the newest version in a folder over gRPC and REST, as TensorFlow Serving does, to try clients.

python serving/server.py --path=models/resnet [--port=8500] [--rest_port=8501]

It answers Predict and nothing else, does not batch, and is written in Python: what is to be fast is TensorFlow Serving.
Needs `pip install tfspline[serving]`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import base64  # noqa: E402
import contextlib  # noqa: E402
import http.server  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import threading  # noqa: E402
from concurrent import futures  # noqa: E402

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_service_pb2_grpc  # noqa: E402

FLAGS = flags.FLAGS


class Newest:
    """The newest version of a model in a folder; one that is loaded stays until a newer one is.

    Args:
        path: the folder of versions, of which there is one at least.
    """

    def __init__(self, path):
        self.path, self.name = path, os.path.basename(os.path.abspath(path))
        self.version = 0
        self.refresh()

    def refresh(self):
        """Loads a version that is newer than the one that is served."""
        newest = max(int(name) for name in os.listdir(self.path) if name.isdecimal())
        if newest > self.version:
            # Both at once, since other threads are answering.
            self.loaded = newest, tf.saved_model.load(os.path.join(self.path, str(newest)))
            self.version = newest

    def refresh_until(self, stop, seconds):
        """Looks for a newer version every so many seconds until the event `stop`."""
        while not stop.wait(seconds):
            try:
                self.refresh()
            except (OSError, ValueError, tf.errors.OpError):
                logging.exception("What cannot be loaded is not served")

    def predict(self, signature, inputs):
        """The version that answers, and its outputs by name.

        Args:
            signature: the name of one; "" for "serving_default".
            inputs: values by name, of anything that makes tensors of the signature's dtypes.

        Raises:
            LookupError: there is no such signature.
            ValueError: the inputs are not those of the signature.
        """
        version, model = self.loaded
        signature = signature or "serving_default"
        if signature not in model.signatures:
            raise LookupError(f"Expected a signature among {list(model.signatures)}. Received: {signature!r}")
        function = model.signatures[signature]
        specs = function.structured_input_signature[1]
        if not isinstance(inputs, dict) or set(inputs) != set(specs):
            raise ValueError(f"Expected values of the inputs {sorted(specs)} by name. Received: {inputs!r:.100}")
        try:
            tensors = {name: tf.constant(inputs[name], spec.dtype) for name, spec in specs.items()}
            return version, {name: value.numpy() for name, value in function(**tensors).items()}
        except (TypeError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(str(error)) from error


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    """gRPC's side: Predict."""

    def __init__(self, model):
        self.model = model

    def Predict(self, request, context):  # noqa: N802
        """Answers a PredictRequest."""
        if request.model_spec.name != self.model.name:
            received = request.model_spec.name
            context.abort(grpc.StatusCode.NOT_FOUND, f"Expected {self.model.name!r}. Received: {received!r}")
        signature = request.model_spec.signature_name
        try:
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            version, outputs = self.model.predict(signature, inputs)
        except (LookupError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = predict_pb2.PredictResponse(
            model_spec=model_pb2.ModelSpec(name=self.model.name, signature_name=signature),
            outputs={name: tf.make_tensor_proto(value) for name, value in outputs.items()},
        )
        answer.model_spec.version.value = version
        return answer


def rest_handler(model):
    """REST's side: POST /v1/models/<name>:predict with `{"inputs": {name: values}}`, values in columns."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open
        disable_nagle_algorithm = True

        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not re.fullmatch(f"/v1/models/{re.escape(model.name)}:predict", self.path):
                return self.answer(404, {"error": f"Expected /v1/models/{model.name}:predict. Received: {self.path}"})
            try:
                request = json.loads(body, object_hook=_decoded)
                _, outputs = model.predict(request.get("signature_name"), request.get("inputs"))
            except (LookupError, ValueError) as error:
                return self.answer(400, {"error": str(error)})
            outputs = {name: _listed(value) for name, value in outputs.items()}
            # The name of a single output is left out, as TensorFlow Serving does.
            self.answer(200, {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))})

        def answer(self, status, document):
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    return Handler


def _decoded(document):
    return base64.b64decode(document["b64"]) if set(document) == {"b64"} else document


def _listed(value):
    return np.char.decode(value.astype(bytes), "utf-8").tolist() if value.dtype == object else value.tolist()


@contextlib.contextmanager
def serving(path, port=0, rest_port=0, poll_seconds=1.0):
    """Serves the newest version in a folder; gives the ports of gRPC and REST, free ones in place of 0."""
    model = Newest(path)
    server = grpc.server(
        futures.ThreadPoolExecutor(os.cpu_count()),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(model), server)
    port = server.add_insecure_port(f"localhost:{port}")
    rest = http.server.ThreadingHTTPServer(("localhost", rest_port), rest_handler(model))
    stop = threading.Event()
    threads = [
        threading.Thread(target=model.refresh_until, args=(stop, poll_seconds)),
        threading.Thread(target=rest.serve_forever),
    ]
    server.start()
    for thread in threads:
        thread.start()
    try:
        yield port, rest.server_port
    finally:
        stop.set()
        rest.shutdown()
        server.stop(None).wait()
        for thread in threads:
            thread.join()
        rest.server_close()


def main(_):
    """Serves until Ctrl-C."""
    with serving(FLAGS.path, FLAGS.port, FLAGS.rest_port, FLAGS.poll_seconds) as ports:
        print("gRPC on port {}, REST on port {}; stop with Ctrl-C".format(*ports), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    flags.DEFINE_string("path", None, "Folder of versions, whose name is the model's.", required=True)
    flags.DEFINE_integer("port", 8500, "Port of gRPC.")
    flags.DEFINE_integer("rest_port", 8501, "Port of REST.")
    flags.DEFINE_float("poll_seconds", 1.0, "How often to look for a newer version.")
    app.run(main)
