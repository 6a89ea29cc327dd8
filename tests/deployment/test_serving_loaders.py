"""Exports loaded without Keras give the answers of the Keras model."""

import base64
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from helpers.heads import two_headed
from helpers.zoo import scramble

import tfspline

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import c_api  # noqa: E402

SERVING = ROOT / "serving"


def convnet(keras):
    x = image = keras.Input((8, 8, 3), name="pixels")
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, use_bias=False, name="conv")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(image, keras.layers.Dense(3, name="logits")(x))


@pytest.fixture
def slim(keras, rng):
    """A pruned network with random weights and statistics."""
    return scramble(tfspline.prune(convnet(keras), 0.5), rng)


def close(answer, expected):
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


def test_process_with_tensorflow_only(tmp_path, rng):
    import keras
    import tf_keras

    inputs = {"image": rng.normal(size=(5, 8, 8, 1)), "side": rng.normal(size=(5, 3))}
    inputs = {name: value.astype("float32") for name, value in inputs.items()}
    np.savez(tmp_path / "inputs.npz", **inputs)
    models = [scramble(two_headed(module), rng) for module in (keras, tf_keras)]
    models += [tfspline.wrap(model) for model in models]
    folders = [tfspline.export(model, tmp_path / f"net{index}") for index, model in enumerate(models)]
    program = f"""
import sys
for name in ("keras", "tf_keras", "tfspline"):
    sys.modules[name] = None  # importing it raises
import numpy as np, tensorflow as tf
inputs = np.load("inputs.npz")
for index, folder in enumerate({folders}):
    model = tf.saved_model.load(folder)
    outputs = model.signatures["serving_default"](**{{name: tf.constant(inputs[name]) for name in inputs}})
    np.savez(f"outputs{{index}}.npz", **outputs)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    for index, model in enumerate(models):
        outputs = np.load(tmp_path / f"outputs{index}.npz")
        for name, expected in zip(("logits", "score"), model(list(inputs.values()), training=False), strict=True):
            close(outputs[name], expected)


def test_saved_model_cli(tmp_path, rng):
    import keras

    model = scramble(convnet(keras), rng)
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    cli = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run", "--tag_set=serve"]
    cli += [f"--dir={tfspline.export(model, tmp_path / 'serving')}", "--signature_def=serving_default"]
    cli += [f"--inputs=pixels={tmp_path / 'x.npy'}", f"--outdir={tmp_path}"]
    subprocess.run(cli, check=True, capture_output=True)
    close(np.load(tmp_path / "logits.npy"), model(x))


@pytest.fixture(scope="module")
def c_program(tmp_path_factory):
    try:
        return c_api.build(tmp_path_factory.mktemp("c"))
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.mark.sweep(2)
def test_c_program_on_the_loader_of_tensorflow_serving(keras, slim, c_program, tmp_path, rng):
    folder = tfspline.export(slim, tmp_path / "serving", preprocessing=lambda x: x / 2)
    x = rng.normal(size=(3, 8, 8, 3)).astype("float32")
    with c_api.CModel(c_program, folder, x) as served:
        close(served.output, slim(x / 2))
        assert served.seconds(2) > 0
    with pytest.raises(ValueError, match="(?s)ended without an output: .*run: "):
        c_api.CModel(c_program, folder, x[..., :1])


@pytest.fixture
def serving():
    """The context manager `helpers.model_server.serving`."""
    pytest.importorskip("tensorflow_serving", reason="needs tensorflow-serving-api")
    from helpers import model_server

    return model_server.serving


@contextlib.contextmanager
def grpc_predict(port, name):
    """A function that sends Predict requests over gRPC, as a client of TensorFlow Serving does."""
    import grpc
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_service_pb2_grpc

    def predict(signature, inputs, name=name):
        request = predict_pb2.PredictRequest(
            model_spec=model_pb2.ModelSpec(name=name, signature_name=signature),
            inputs={key: tf.make_tensor_proto(value) for key, value in inputs.items()},
        )
        answer = stub.Predict(request, timeout=60)
        outputs = {key: tf.make_ndarray(value) for key, value in answer.outputs.items()}
        return answer.model_spec.version.value, outputs

    with grpc.insecure_channel(f"localhost:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        yield predict


def rest_predict(port, name, document):
    body = json.dumps(document).encode()
    with urllib.request.urlopen(f"http://localhost:{port}/v1/models/{name}:predict", body, timeout=60) as response:
        return json.load(response)["outputs"]


def test_grpc_and_rest_give_the_answers_of_keras(keras, tmp_path, rng, serving):
    model = scramble(two_headed(keras), rng)
    inputs = {"image": rng.normal(size=(5, 8, 8, 1)), "side": rng.normal(size=(5, 3))}
    inputs = {name: value.astype("float32") for name, value in inputs.items()}
    tfspline.export(model, tmp_path / "net", version=3)
    with serving(tmp_path / "net") as (port, rest_port), grpc_predict(port, "net") as predict:
        version, outputs = predict("serving_default", inputs)
        columns = {"inputs": {name: value.tolist() for name, value in inputs.items()}}
        rest = rest_predict(rest_port, "net", columns)
    assert version == 3
    for name, expected in zip(("logits", "score"), model(list(inputs.values()), training=False), strict=True):
        close(outputs[name], expected)
        close(rest[name], expected)


def test_image_files_are_classified_over_grpc_and_rest(keras, slim, tmp_path, rng, serving):
    images = rng.integers(0, 256, (2, 12, 10, 3), np.uint8)
    files = [tf.io.encode_png(image).numpy() for image in images]
    options = {"input": "image_bytes", "preprocessing": lambda x: x / 255, "class_names": ["ant", "bee", "cät"]}
    tfspline.export(slim, tmp_path / "net", top_k=2, **options)
    scores = slim(tf.image.resize(images / np.float32(255), (8, 8))).numpy()
    best = np.argsort(-scores)[:, :2]
    names = np.array(options["class_names"])[best].tolist()
    with serving(tmp_path / "net") as (port, rest_port), grpc_predict(port, "net") as predict:
        _, outputs = predict("classify", {"image_bytes": files})
        coded = [{"b64": base64.b64encode(file).decode()} for file in files]
        rest = rest_predict(rest_port, "net", {"signature_name": "classify", "inputs": {"image_bytes": coded}})
    assert rest["classes"] == [[name.decode() for name in row] for row in outputs["classes"]] == names
    close(outputs["scores"], np.take_along_axis(scores, best, 1))
    close(rest["scores"], outputs["scores"])


def test_server_loads_a_newer_version_and_refuses_bad_requests(tmp_path, serving):
    import grpc
    import keras

    def constant(value):
        dense = keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer=lambda *_, **__: value, name="y")
        return keras.Sequential([keras.Input((2,), name="x"), dense])

    x = {"x": np.zeros((1, 2), "float32")}
    tfspline.export(constant([1.0]), tmp_path / "net")
    with serving(tmp_path / "net", poll_seconds=0.05) as (port, rest_port), grpc_predict(port, "net") as predict:
        assert predict("serving_default", x) == (1, {"y": [[1.0]]})
        (tmp_path / "net" / "2").mkdir()  # an incomplete version, which tfspline never writes
        tfspline.export(constant([3.0]), tmp_path / "net", version=3)
        answers, deadline = [predict("serving_default", x)], time.monotonic() + 60
        while answers[-1][0] != 3 and time.monotonic() < deadline:
            answers.append(predict("serving_default", x))
        assert {(version, float(outputs["y"].item())) for version, outputs in answers} <= {(1, 1.0), (3, 3.0)}
        assert answers[-1][0] == 3
        for arguments, code in (
            (("serving_default", x, "other"), grpc.StatusCode.NOT_FOUND),
            (("classify", x), grpc.StatusCode.INVALID_ARGUMENT),
            (("serving_default", {"z": x["x"]}), grpc.StatusCode.INVALID_ARGUMENT),
            (("serving_default", {"x": np.zeros((1, 5), "float32")}), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                predict(*arguments)
            assert refused.value.code() is code
        for name, document, status in (
            ("other", {"inputs": {"x": [[0, 0]]}}, 404),
            ("net", {"inputs": {"z": [[0, 0]]}}, 400),
            ("net", {"instances": []}, 400),
            ("net", {"inputs": {"x": [[0, 0], [0]]}}, 400),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                rest_predict(rest_port, name, document)
            assert refused.value.code == status and "error" in json.load(refused.value)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_clients_compare_and_measure(tmp_path, rng, serving, protocol):
    import keras
    import tf_keras

    module = {"grpc": keras, "rest": tf_keras}[protocol]
    model = scramble(convnet(module), rng)
    model.save(tmp_path / "net.keras")
    tfspline.export(model, tmp_path / "net")
    client = [sys.executable, str(SERVING / f"{protocol}_client.py"), f"--model={tmp_path / 'net.keras'}", "--name=net"]
    client += [f"--keras={module.__name__}", "--requests=3", "--batch_sizes=1,4"]
    with serving(tmp_path / "net") as ports:
        client += [f"--server=localhost:{dict(zip(('grpc', 'rest'), ports, strict=True))[protocol]}"]
        done = subprocess.run(client, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr[-3000:]
        assert re.findall(r"batch (\d+): largest difference .*ms.*inputs a second", done.stdout) == ["1", "4"]
        if protocol == "rest":
            return
        model.layers[-1].bias.assign(model.layers[-1].bias + 1)
        model.save(tmp_path / "net.keras")
        done = subprocess.run(client, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 1 and "more than --tolerance=1e-05" in done.stderr, done.stderr[-3000:]


def test_configuration_parses_as_tensorflow_serving_protos():
    pytest.importorskip("tensorflow_serving", reason="needs tensorflow-serving-api")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    text = (SERVING / "config" / "models.config").read_text()
    (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert (model.name, model.base_path, model.model_version_policy.latest.num_versions) == (
        "resnet",
        "/models/resnet",
        1,
    )
    # No package has the proto of the batching parameters. Sizes must increase and end with the largest.
    batching = (SERVING / "config" / "batching.config").read_text()
    sizes = json.loads(re.search(r"allowed_batch_sizes: (\[.*\])", batching).group(1))
    assert sizes == sorted(sizes) and sizes[-1] == int(re.search(r"max_batch_size { value: (\d+) }", batching).group(1))
    mounted = re.findall(r"/config/(\S+)", (SERVING / "docker-compose.yml").read_text())
    assert set(mounted) == set(os.listdir(SERVING / "config"))
