"""A small model server with the protocols of TensorFlow Serving (gRPC and REST Predict), for tests only."""

import base64
import contextlib
import http.server
import json
import os
import re
import threading
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_service_pb2_grpc


class NewestVersion:
    """The newest version in a folder of versions, which must not be empty."""

    def __init__(self, path):
        self.path, self.name = path, os.path.basename(os.path.abspath(path))
        self.loaded = 0, None
        self.refresh()

    def refresh(self):
        """Loads a version that is newer than the loaded one."""
        newest = max(int(name) for name in os.listdir(self.path) if name.isdecimal())
        if newest > self.loaded[0]:
            # One assignment, since other threads read the pair.
            self.loaded = newest, tf.saved_model.load(os.path.join(self.path, str(newest)))

    def refresh_until(self, stop, seconds):
        """Looks for a newer version every so many seconds until the event `stop`."""
        while not stop.wait(seconds):
            try:
                self.refresh()
            except (OSError, ValueError, tf.errors.OpError):
                logging.exception("A version that cannot be loaded is not served")

    def predict(self, signature, inputs):
        """Returns the number of the version and its outputs by name.

        Raises:
            LookupError: an unknown signature.
            ValueError: inputs that do not fit the signature.
        """
        version, model = self.loaded
        signature = signature or "serving_default"
        if signature not in model.signatures:
            raise LookupError(f"Unknown signature {signature!r}; the model has {list(model.signatures)}")
        function = model.signatures[signature]
        specs = function.structured_input_signature[1]
        if not isinstance(inputs, dict) or set(inputs) != set(specs):
            raise ValueError(f"Expected values of the inputs {sorted(specs)} by name. Received: {inputs!r:.100}")
        try:
            tensors = {name: tf.constant(inputs[name], spec.dtype) for name, spec in specs.items()}
            return version, {name: value.numpy() for name, value in function(**tensors).items()}
        except (TypeError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(str(error)) from error


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict over gRPC."""

    def __init__(self, model):
        self.model = model

    def Predict(self, request, context):  # noqa: N802
        """Answers a PredictRequest."""
        if request.model_spec.name != self.model.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Unknown model {request.model_spec.name!r}")
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
    """Predict over REST: POST /v1/models/<name>:predict with `{"inputs": {name: values}}`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open
        disable_nagle_algorithm = True

        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not re.fullmatch(f"/v1/models/{re.escape(model.name)}:predict", self.path):
                return self.answer(404, {"error": f"Unknown path {self.path}"})
            try:
                request = json.loads(body, object_hook=_decoded)
                _, outputs = model.predict(request.get("signature_name"), request.get("inputs"))
            except (LookupError, ValueError) as error:
                return self.answer(400, {"error": str(error)})
            outputs = {name: _listed(value) for name, value in outputs.items()}
            # TensorFlow Serving leaves out the name of a single output, too.
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
def serving(path, poll_seconds=1.0):
    """Serves the newest version in a folder on free ports; gives the ports of gRPC and REST."""
    model = NewestVersion(path)
    server = grpc.server(
        futures.ThreadPoolExecutor(os.cpu_count()),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(model), server)
    port = server.add_insecure_port("localhost:0")
    rest = http.server.ThreadingHTTPServer(("localhost", 0), rest_handler(model))
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
