"""Cost of masks: time of a training step with half of the units masked, relative to a step without masks.

python benchmarks/masks.py [--keras=keras,tf_keras] [--network=resnet20] [--pairs=9]

Trains two models of the same network alternately on the same batches, and reports the median ratio of their times. Also
counts the traces of the train step, which changing masks must not increase, and measures how long `SplinePruning` takes
to choose units.
"""

import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from common import clocks, seconds, setting  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras, models  # noqa: E402

flags.DEFINE_list("keras", ["keras", "tf_keras"], "Keras versions to measure.")
flags.DEFINE_string("network", "resnet20", "The network.")
flags.DEFINE_integer("size", 32, "Height and width of the images.")
flags.DEFINE_integer("batch_size", 128, "Images per step.")
flags.DEFINE_integer("steps", 30, "Steps per measurement.")
flags.DEFINE_integer("pairs", 9, "Pairs of measurements; the median ratio is reported.")


def trained(keras, given, traces):
    """Return a compiled network whose train step adds an element to `traces` whenever it is traced."""
    model = models.build(given.network, (given.size, given.size, 3), 10, keras=keras.__name__)
    of_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(labels, logits):
        traces.append(model.name)  # runs once per trace
        return of_logits(labels, logits)

    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=False)
    return model


def measure(keras, given):
    """Measure one Keras version and print the results."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(given.steps * given.batch_size, given.size, given.size, 3)).astype("float32")
    labels = rng.integers(0, 10, len(images))
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(given.batch_size).cache()
    traces, ratios, times = [], {"wall": [], "CPU": []}, []
    plain, masked = trained(keras, given, []), trained(keras, given, traces)
    tfspline.plan(masked, 0.5, criterion="random").masks.apply(masked)
    for model in (plain, masked, plain, masked):  # warm-up
        model.fit(batches, verbose=0)
    before = len(traces)
    for i in range(given.pairs):
        turns = (plain, masked) if i % 2 else (masked, plain)
        took = {model: clocks(model.fit, batches, verbose=0) for model in turns}
        for clock, of in ratios.items():
            of.append(took[masked][clock] / took[plain][clock])
        times.append(1000 * took[plain]["wall"] / given.steps)
    print(f"  a step without masks: {statistics.median(times):.1f} ms")
    for clock, of in ratios.items():
        low, median, high = statistics.quantiles(of)
        print(
            f"  half of the units masked: {median:.3f}x ({clock}; middle half of {given.pairs} {low:.3f} to {high:.3f})"
        )

    def choose(ratio):
        tfspline.plan(masked, ratio).masks.apply(masked)

    choosing = []
    for ratio in (0.5, 0.45, 0.4, 0.35, 0.3):
        choosing.append(seconds(choose, ratio))
        masked.fit(batches.take(1), verbose=0)
    print(f"  to score all units and mask some: {1000 * statistics.median(choosing):.0f} ms")
    print(f"  new traces after five other masks: {len(traces) - before}", flush=True)


def main(argv):
    """Measure each Keras version."""
    del argv
    given = flags.FLAGS
    print(setting(*given.keras))
    print(
        f"{given.network}, {given.size}x{given.size} pixels, batches of {given.batch_size}, SGD with momentum, float32"
    )
    for name in given.keras:
        keras = _keras.keras_named(name)
        print(name)
        measure(keras, given)


if __name__ == "__main__":
    app.run(main)
