"""Compares the answers of a model server with those of the Keras model, and measures its latency, over REST.

python serving/rest_client.py --model=slim.keras --name=resnet [--server=localhost:8501] [--batch_sizes=1,8]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import contextlib  # noqa: E402
import http.client  # noqa: E402
import json  # noqa: E402

from absl import app, flags  # noqa: E402
from measure import FLAGS, measure  # noqa: E402

flags.DEFINE_string("server", "localhost:8501", "Host and port of the server.")


def main(_):
    """Connects, compares and measures."""
    with contextlib.closing(http.client.HTTPConnection(FLAGS.server, timeout=FLAGS.timeout)) as connection:

        def predict(inputs):
            columns = {name: value.tolist() for name, value in inputs.items()}
            body = json.dumps({"signature_name": "serving_default", "inputs": columns})
            connection.request("POST", f"/v1/models/{FLAGS.name}:predict", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                raise SystemExit(f"The server answered {response.status} for model {FLAGS.name!r}: {answer}")
            return answer["outputs"]

        measure(predict)


if __name__ == "__main__":
    app.run(main)
