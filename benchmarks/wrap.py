"""Throughput of models with and without `tfspline.wrap`, in training and prediction, in both Keras versions.

python benchmarks/wrap.py [--networks=resnet20,resnet56] [--batch_size=128] [--side=28] [--steps=4] [--rounds=15]

Also reports CPU time, which other programs affect less than the wall clock. It does not show idle cores, of which Keras
3's own BatchNormalization leaves more.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from common import setting  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras, models  # noqa: E402

flags.DEFINE_list("networks", ["resnet20"], "Networks of tfspline.models.")
flags.DEFINE_integer("batch_size", 128, "Images per step.")
flags.DEFINE_integer("side", 28, "Height and width of the images.")
flags.DEFINE_integer("channels", 1, "Channels of the images.")
flags.DEFINE_integer("steps", 4, "Steps per measurement.")
flags.DEFINE_integer("rounds", 15, "Measurements of each model; the median is reported.")

# Pairs of contestants whose speeds are compared.
RATIOS = (("keras wrapped", "keras"), ("keras wrapped", "tf_keras"), ("tf_keras wrapped", "tf_keras"))


def contestants(network, shape):
    """Return a compiled model of each Keras version and its wrapped copy, by name."""
    found = {}
    for name in ("keras", "tf_keras"):
        keras = _keras.keras_named(name)
        keras.utils.set_random_seed(0)
        model = models.build(network, shape, 10, keras=name)
        found[name], found[f"{name} wrapped"] = model, tfspline.wrap(model)
    for model in found.values():
        keras = _keras.keras_of(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return found


def measure(title, runs, images, rounds):
    """Measure functions (by name) alternately, and print images per second and their ratios."""
    for run in runs.values():  # traces
        run()
    clocks = {"wall": time.perf_counter, "CPU": time.process_time}
    speeds = {clock: {name: [] for name in runs} for clock in clocks}
    for _ in range(rounds):
        for name, run in runs.items():
            start = {clock: now() for clock, now in clocks.items()}
            run()
            for clock, now in clocks.items():
                speeds[clock][name].append(images / (now() - start[clock]))
    for clock, of in speeds.items():
        medians = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in of.items())
        print(f"{title}, images/s ({clock}): {medians}")
        for fast, slow in RATIOS:
            ratios = [a / b for a, b in zip(of[fast], of[slow], strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"    {fast:16} / {slow:8} {statistics.median(ratios):5.2f}x ({spread})", flush=True)


def main(argv):
    """Measure every network in training and prediction."""
    del argv
    given = flags.FLAGS
    print(f"{setting('keras', 'tf_keras')}; batches of {given.batch_size}", flush=True)
    rng, images = np.random.default_rng(0), given.batch_size * given.steps
    shape = (given.side, given.side, given.channels)
    x, y = rng.normal(size=(images, *shape)).astype("float32"), rng.integers(0, 10, images)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(given.batch_size).cache().prefetch(2)
    for network in given.networks:
        found = contestants(network, shape)
        training = {name: lambda model=model: model.fit(data, verbose=0) for name, model in found.items()}
        measure(f"{network}, training", training, images, given.rounds)
        predicting = {name: lambda model=model: model.predict(data, verbose=0) for name, model in found.items()}
        measure(f"{network}, prediction", predicting, images, given.rounds)


if __name__ == "__main__":
    app.run(main)
