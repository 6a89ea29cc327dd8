"""Region codes compared with inference: throughput, memory, and the cost of an EarlyBird.

python benchmarks/codes.py [--keras=keras] [--networks=resnet56,vgg16,mobilenetv2] [--plane=preresnet101]

Measures `model.predict` and region codes alternately, with the same inputs and batch size, after a first call of each
(which traces the model), and reports the median ratio. The cost of an EarlyBird is the time of the codes of 512 inputs
and of three distances, relative to an epoch of 50,000 images, extrapolated from a few steps. Then measures the codes of
the plane of 10,000 inputs that You et al. use.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from common import peak, seconds, setting  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras, models  # noqa: E402
from tfspline.spline.codes import RegionEncoder  # noqa: E402

flags.DEFINE_enum("keras", "keras", ["keras", "tf_keras"], "The Keras version.")
flags.DEFINE_list("networks", ["resnet56", "vgg16", "mobilenetv2"], "Networks of tfspline.models.")
flags.DEFINE_string("plane", "preresnet101", "Network for the codes of a plane; empty to skip them.")
flags.DEFINE_integer("batch_size", 128, "Inputs per batch.")
flags.DEFINE_integer("batches", 4, "Batches per measurement.")
flags.DEFINE_integer("pairs", 7, "Pairs of measurements; the median ratio is reported.")
flags.DEFINE_integer("steps", 10, "Training steps from which an epoch is extrapolated.")

PROBE, EPOCH = 512, 50_000


def throughput(model, x, given):
    """Print the throughput of codes relative to predict, and the size of codes relative to activations."""
    encode = RegionEncoder(model)

    def predict():
        return model.predict(x, given.batch_size, verbose=0)

    first, first_predict = seconds(encode, x, given.batch_size), seconds(predict)
    codes = encode(x, given.batch_size)
    ratios, speeds = [], []
    for i in range(given.pairs):
        turns = {name: seconds(*call) for name, call in _turns(i, encode, predict, x, given.batch_size)}
        ratios.append(turns["predict"] / turns["codes"])
        speeds.append(len(x) / turns["codes"])
    low, median, high = statistics.quantiles(ratios)
    print(
        f"  codes of {statistics.median(speeds):.0f} inputs/s: {median:.2f}x the throughput of predict (middle half "
        f"{low:.2f} to {high:.2f}); the first call takes {first:.1f} s, that of predict {first_predict:.1f} s"
    )
    packed = sum(codes[layer].nbytes for layer in codes.layers)
    activations = 4 * len(codes) * sum(codes.bits.values())
    print(f"  {packed / len(codes):,.0f} bytes per input: 1/{activations / packed:.1f} of the activations in float32")


def _turns(i, encode, predict, x, batch_size):
    turns = [("codes", (encode, x, batch_size)), ("predict", (predict,))]
    return turns if i % 2 else turns[::-1]


def early_bird(keras, model, x, given):
    """Print the time of the codes of a probe and of three distances, relative to an epoch."""
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), jit_compile=False)
    y = np.zeros(len(x), "int32")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(given.batch_size).repeat()
    model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)
    steps = seconds(model.fit, batches, steps_per_epoch=given.steps, shuffle=False, verbose=0)
    epoch = steps / given.steps * EPOCH / given.batch_size
    encode, probe = RegionEncoder(model), x[:PROBE]
    codes = encode(probe)

    def watch():
        new = encode(probe)
        return max(tfspline.partition_distance(new, codes) for _ in range(3))

    watching = statistics.median(seconds(watch) for _ in range(given.pairs))
    print(f"  EarlyBird: {watching:.2f} s of an epoch of {epoch:.0f} s, {watching / epoch:.2%}", flush=True)


def plane(x, given):
    """Print time and memory of the codes of 100 x 100 inputs on a plane."""
    model = models.build(given.plane, (32, 32, 3), 10, keras=given.keras)
    inputs = tfspline.plane(x[0], x[1], 100)
    before, start = peak(), time.perf_counter()
    codes = tfspline.region_codes(model, inputs, given.batch_size)
    took, bits = time.perf_counter() - start, sum(codes.bits.values())
    packed = sum(codes[layer].nbytes for layer in codes.layers)
    print(
        f"{given.plane}, {len(codes):,} inputs of {bits:,} bits: {packed / 1e9:.2f} GB in {took:.0f} s, peak memory "
        f"{before / 1e9:.1f} -> {peak() / 1e9:.1f} GB; as float32 {4 * bits * len(codes) / 1e9:.0f} GB"
    )


def main(argv):
    """Measure all networks."""
    del argv
    given = flags.FLAGS
    keras = _keras.keras_named(given.keras)
    print(f"{setting(given.keras)}; 32x32x3, batches of {given.batch_size}")
    x = np.random.default_rng(0).normal(size=(given.batch_size * given.batches, 32, 32, 3)).astype("float32")
    for name in given.networks:
        model = models.build(name, (32, 32, 3), 10, keras=given.keras)
        print(name, flush=True)
        throughput(model, x, given)
        early_bird(keras, model, x, given)
    if given.plane:
        plane(x, given)


if __name__ == "__main__":
    app.run(main)
