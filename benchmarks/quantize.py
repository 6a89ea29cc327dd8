"""Cost of quantization: test accuracy, size and latency of the LiteRT files of a network trained by train.py.

python benchmarks/quantize.py --run_dir=runs/<name>
"""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from common import columns, setting  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras  # noqa: E402
from tfspline.deployment import litert  # noqa: E402
from tfspline.deployment.timing import clock, in_turns  # noqa: E402
from tfspline.recipe.recipe import Recipe  # noqa: E402
from tfspline.recipe.run_dir import RunDir  # noqa: E402

flags.DEFINE_string("run_dir", None, "A finished run of train.py.", required=True)
flags.DEFINE_integer("batch_size", 100, "Test images per batch.")
flags.DEFINE_integer("samples", 512, "Training images on which int8 ranges are calibrated.")
row = columns("{:7} {:9} {:>10} {:>8} {:>20} {:>8}")


def predictor(path):
    """Return a function from images `[batch, ...]` to logits, and one that repeats the last call."""
    with open(path, "rb") as file:
        interpreter = litert.interpreter(file.read())
    (entry,) = interpreter.get_input_details()

    def predict(images):
        if interpreter.get_input_details()[0]["shape"][0] != len(images):
            interpreter.resize_tensor_input(entry["index"], images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return predict, interpreter.invoke


def main(argv):
    """Measure the dense and the slim network with every quantization."""
    del argv
    logging.set_verbosity(logging.WARNING)  # hide TensorFlow's messages about written files
    given = flags.FLAGS
    folder = RunDir.of(given.run_dir)
    recipe = Recipe.from_flags(folder.flags)
    keras, dataset = _keras.keras_named(recipe.keras), recipe.load_dataset()
    samples, _ = dataset.sample(given.samples)
    batches = [[np.asarray(part) for part in batch] for batch in dataset.evaluation_batches(given.batch_size, "test")]
    labels = np.concatenate([label for _, label in batches])
    print(setting(recipe.keras))
    print(f"{recipe.network}, {recipe.dataset}: {len(dataset.test)} test images")
    row("network", "quantize", "accuracy", "KB", "differs from float32", "batch 1")
    runs, lines = [], []
    for name in ("dense", "slim"):
        model = keras.models.load_model(folder.file(f"{name}.keras"))
        expected = None
        for quantize in litert.QUANTIZATIONS:
            with tempfile.TemporaryDirectory() as scratch:
                data = samples if quantize == "int8" else None
                path = tfspline.export_litert(model, os.path.join(scratch, "model.tflite"), quantize, data)
                size = os.path.getsize(path)
                predict, again = predictor(path)
            answers = np.concatenate([predict(images).argmax(axis=1) for images, _ in batches])
            expected = answers if expected is None else expected
            accuracy, differs = (f"{100 * np.mean(same):.2f} %" for same in (answers == labels, answers != expected))
            predict(batches[0][0][:1])
            runs.append(clock(again))
            lines.append((name, str(quantize), accuracy, f"{size / 1024:.0f}", differs))
    for line, time in zip(lines, np.median(in_turns(runs), axis=0), strict=True):
        row(*line, f"{1e3 * time:.2f} ms")


if __name__ == "__main__":
    app.run(main)
