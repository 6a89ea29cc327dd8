"""What the clients have in common: random inputs, the answers of the Keras model, latencies."""

import statistics
import time

import numpy as np
import tensorflow as tf
from absl import flags

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "File of the Keras model that was exported.", required=True)
flags.DEFINE_enum("keras", "keras", ["keras", "tf_keras"], "The Keras that the model is of.")
flags.DEFINE_string("name", "resnet", "What the model is called on the server.")
flags.DEFINE_list("batch_sizes", ["1", "8"], "Inputs a request.")
flags.DEFINE_integer("requests", 100, "Requests of each batch size that are timed, one after the other.", lower_bound=1)
flags.DEFINE_float("tolerance", 1e-5, "The largest difference of answers, relative to the largest answer or 1.")
flags.DEFINE_float("timeout", 10.0, "Seconds that an answer may take.")


def measure(predict):
    """Compares the answers of a server with the Keras model's, and prints how long they take.

    Args:
        predict: a function of inputs by name, arrays `[batch, ...]`, that gives the outputs by name; or the output,
            where there is only one, as REST does.

    Raises:
        SystemExit: answers differ by more than the tolerance.
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
            raise SystemExit(f"Expected answers that differ by {FLAGS.tolerance} at most. Received: {difference}")


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
