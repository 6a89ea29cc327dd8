"""Prunes models of other packages by half and checks the results.

python benchmarks/packages.py docs/packages [NAME ...]

Each model runs in a process of its own. A run that was cut short goes on; rows are in `results.jsonl`, the table is in
README.md of the folder. MACs are counted from the ops of a TensorFlow graph, without tfspline. The slim model is loaded
in a process where the package cannot be imported. The packages are installed by

    pip install --no-deps keras-hub==0.32 kagglehub kagglesdk kimm segmentation-models efficientnet image-classifiers \
        keras-applications tf-models-official gin-config tensorflow-datasets etils immutabledict pycocotools \
        opencv-python-headless spliceai mtcnn lz4 joblib fer
"""

import collections
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf
from common import Results, markdown, setting
from package_models import MODELS, TOKENS

PACKAGES = (
    "keras_hub", "kimm", "segmentation_models", "classification_models", "efficientnet", "official", "mtcnn",
)  # fmt: skip
RELOAD = """
import sys
sys.modules.update(dict.fromkeys({packages}))  # importing one of them raises
import {keras} as keras, numpy as np, tfspline
given = np.load({folder!r} + "/arrays.npz")
model = keras.models.load_model({folder!r} + "/slim.keras")
inputs = [given[f"x{{i}}"] for i in range(len(model.inputs))]
named = dict(zip(sorted(model.input), inputs)) if isinstance(model.input, dict) else inputs
outputs = [np.asarray(y) for y in __import__("tensorflow").nest.flatten(model(named, training=False))]
scale = max(abs(given[f"y{{i}}"]).max() for i in range(len(outputs)))
assert all(abs(y - given[f"y{{i}}"]).max() <= 1e-5 * scale for i, y in enumerate(outputs)), "other outputs"
"""


def macs(model, inputs):
    """Multiply-accumulates of one prediction, counted from the ops of its graph."""

    @tf.function
    def predict(*inputs):
        return model(tf.nest.pack_sequence_as(model.input, inputs), training=False)

    graph = predict.get_concrete_function(*[tf.TensorSpec((1, *x.shape[1:]), x.dtype) for x in inputs]).graph
    functions = [graph, *[function.graph for function in graph._functions.values() if hasattr(function, "graph")]]
    return int(sum(products(op) for one in functions for op in one.get_operations()))


def products(op):
    """Multiply-accumulates of an op."""
    shapes = [tensor.shape for tensor in op.inputs]
    if op.type in ("Conv2D", "DepthwiseConv2dNative", "Conv3D"):
        taps = np.prod(shapes[1][:-1]) if op.type != "DepthwiseConv2dNative" else np.prod(shapes[1][:2])
        return np.prod(op.outputs[0].shape) * taps
    if op.type == "Conv2DBackpropInput":
        return np.prod(shapes[2]) * np.prod(shapes[1][:-2]) * shapes[1][-2]
    if op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        return np.prod(op.outputs[0].shape) * shapes[0][-2 if transposed else -1]
    if op.type == "Einsum":
        terms = op.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {
            n: size for term, shape in zip(terms, shapes, strict=True) for n, size in zip(term, shape, strict=True)
        }
        return np.prod(list(sizes.values())) if len(terms) > 1 else 0
    return 0


def random_inputs(model, rng):
    """Two random samples; tokens are below 100, and masks let everything pass."""
    inputs = []
    for tensor in model.inputs:
        shape = [2, *[TOKENS if size is None else size for size in tensor.shape[1:]]]
        name = tensor._keras_history[0].name if hasattr(tensor, "_keras_history") else ""
        if "mask" in name:
            value = np.ones(shape)
        else:
            value = (
                rng.integers(0, 2 if "segment" in name else 100, shape) if len(shape) == 2 else rng.normal(size=shape)
            )
        inputs.append(tf.cast(value, tensor.dtype))
    return inputs


def difference(a, b):
    """max |a - b| / max |a| over all outputs."""
    pairs = list(zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True))
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)


def measure(name):
    """The row of a model: builds and prunes it in this process."""
    model = MODELS[name]()
    import tfspline

    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "float" in str(weight.dtype) and len(weight.shape) < 2:  # biases are not 0, gammas not 1
            weight.assign(weight + rng.uniform(0, 0.1, weight.shape))
    inputs = random_inputs(model, rng)
    sizes = [tuple(x.shape[1:]) for x in inputs]
    flat = tfspline.functional(model, tf.nest.pack_sequence_as(model.input, sizes))
    try:
        flat, is_rms = tfspline.with_rms_norm(flat), True
    except ValueError:  # no LayerNormalization can become RMSNormalization
        is_rms = False
    plan = tfspline.plan(flat, 0.5)
    slim, masked = plan.apply(flat), plan.mask(flat)
    x = tf.nest.pack_sequence_as(flat.input, inputs)
    expected = slim(x, training=False)  # a Resizing in a model makes Keras train what follows it, unless told otherwise
    row = {
        "model": name,
        "with_rms_norm": is_rms,
        "units": sum(len(group.units) for group in plan.graph.groups),
        "free": int(plan.graph.free.sum()),
        "parameters": model.count_params() / slim.count_params(),
        "MACs": macs(model if all(None not in i.shape[1:] for i in model.inputs) else flat, inputs)
        / macs(slim, inputs),
        "unrolled": difference(
            model(tf.nest.pack_sequence_as(model.input, inputs), training=False), flat(x, training=False)
        ),
        "slim": difference(masked(x, training=False), expected),
        "changed": difference(flat(x, training=False), expected),
    }
    reasons = collections.Counter()
    for line in plan.rows():
        if line["protected"]:
            reasons[line["protected"]] += line["units_before"]
    row["reason"] = max(reasons, key=reasons.get, default="")
    row["reload"] = reloaded(slim, tf.nest.flatten(x), tf.nest.flatten(expected))
    return row


def reloaded(slim, inputs, outputs):
    """ "yes" if the slim model is saved, and computes the same in a process without the package; otherwise why not."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            slim.save(f"{folder}/slim.keras")
        except Exception as error:  # from the code of any package
            return f"not saved: {type(error).__name__}"
        arrays = {f"x{i}": np.asarray(x) for i, x in enumerate(inputs)}
        arrays |= {f"y{i}": np.asarray(y) for i, y in enumerate(outputs)}
        np.savez(f"{folder}/arrays.npz", **arrays)
        keras = "tf_keras" if type(slim).__module__.startswith("tf_keras") else "keras"
        code = RELOAD.format(packages=PACKAGES, keras=keras, folder=folder)
        environment = os.environ | {"TF_USE_LEGACY_KERAS": "0"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        return "yes" if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:150]


def measure_apart(name):
    """The row of a model, from a process of its own; with the error if it fails."""
    command = [sys.executable, __file__, "--row", name]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    return {"model": name, "error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]}


def table(rows):
    """The rows as Markdown."""
    cells = [("model", "free units", "parameters", "MACs", "masked - slim", "loads alone", "most others are kept, as")]
    for row in rows:
        if "error" in row:
            cells.append((row["model"], *[""] * 5, row["error"].replace("|", "\\|")))
            continue
        name, reason = row["model"] + " *" * row["with_rms_norm"], row["reason"].replace("|", "\\|")
        smaller = [f"{row[key]:.2f}x" for key in ("parameters", "MACs")]
        cells.append((name, f"{row['free']} of {row['units']}", *smaller, f"{row['slim']:.0e}", row["reload"], reason))
    return markdown(cells) + "\n"


def main(folder, names):
    """Measures the models that are named, all by default, and writes the table."""
    results = Results(folder, "model")
    for name in names or MODELS:
        if names or results.find(model=name) is None:
            row = measure_apart(name)
            results.add(row)
            print(json.dumps(row), flush=True)
    rows = [row for name in MODELS if (row := results.find(model=name))]
    with open(os.path.join(folder, "README.md"), "w") as file:
        file.write(
            f"# Models of other packages, pruned by half\n\n{__doc__.strip()}\n\n{setting('keras', 'tf_keras')}\n\n"
        )
        file.write(table(rows))
        file.write("\n\\* after `tfspline.with_rms_norm`.\n")


if __name__ == "__main__":
    if sys.argv[1] == "--row":
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(sys.argv[1], sys.argv[2:])
