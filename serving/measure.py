"""Shared by the clients: compares answers with those of a Keras model and measures latencies."""

import statistics
import time

import numpy as np
import tensorflow as tf
from absl import flags

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "File of the Keras model that was exported.", required=True)
flags.DEFINE_enum("keras", "keras", ["keras", "tf_keras"], "The Keras version of the model.")
flags.DEFINE_string("name", "resnet", "Name of the model on the server.")
flags.DEFINE_list("batch_sizes", ["1", "8"], "Inputs in a request.")
flags.DEFINE_integer("requests", 100, "Timed requests for each batch size, one after the other.", lower_bound=1)
flags.DEFINE_float("tolerance", 1e-5, "Largest allowed difference, relative to the largest answer or 1.")
flags.DEFINE_float("timeout", 10.0, "Timeout of a request in seconds.")


def measure(predict):
    """Compares the answers of a server with those of the Keras model and prints latencies.

    Args:
        predict: a function of inputs by name, arrays `[batch, ...]`. It returns outputs by name, or, as REST does, a
            single output without a name.

    Raises:
        SystemExit: answers differ by more than `--tolerance`.
    """
    if FLAGS.keras == "tf_keras":
        import tf_keras as keras
    else:
        import keras
    model = keras.models.load_model(FLAGS.model, compile=False)
    rng = np.random.default_rng(0)
    for batch_size in map(int, FLAGS.batch_sizes):
        arrays = [_random(tensor, batch_size, rng) for tensor in model.inputs]
        inputs = {tensor.name: array for tensor, array in zip(model.inputs, arrays, strict=True)}
        expected = model.predict_on_batch(arrays if len(arrays) > 1 else arrays[0])
        expected = dict(zip(model.output_names, tf.nest.flatten(expected), strict=True))
        difference = _difference(predict(inputs), expected)
        milliseconds = sorted(_milliseconds(predict, inputs) for _ in range(FLAGS.requests))
        median = statistics.median(milliseconds)
        print(
            f"batch {batch_size}: largest difference {difference:.1e}; median {median:.2f} ms, "
            f"90th percentile {milliseconds[int(0.9 * len(milliseconds))]:.2f} ms, "
            f"{1000 * batch_size / median:.0f} inputs a second ({FLAGS.requests} requests)"
        )
        if not difference <= FLAGS.tolerance:
            raise SystemExit(f"Answers differ by {difference}, more than --tolerance={FLAGS.tolerance}.")


def _random(tensor, batch_size, rng):
    shape, dtype = (batch_size, *tensor.shape[1:]), tf.as_dtype(tensor.dtype)
    return rng.normal(size=shape).astype(dtype.as_numpy_dtype) if dtype.is_floating else np.zeros(shape, dtype.name)


def _difference(answers, expected):
    if not isinstance(answers, dict):
        answers = dict.fromkeys(expected, answers)
    if set(answers) != set(expected):
        raise SystemExit(f"Expected the outputs {sorted(expected)}. Received: {sorted(answers)}")
    scale = max(1.0, *(np.abs(value).max() for value in expected.values()))
    return max(np.abs(np.asarray(answers[name]) - value).max() for name, value in expected.items()) / scale


def _milliseconds(predict, inputs):
    start = time.perf_counter()
    predict(inputs)
    return 1000 * (time.perf_counter() - start)
