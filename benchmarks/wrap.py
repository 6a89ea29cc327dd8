"""What `tfspline.wrap` buys: images a second in training and in predict, both Kerases, as they are and wrapped.

python benchmarks/wrap.py [--networks=resnet20,resnet56] [--batch_size=128] [--side=28] [--steps=10] [--rounds=5]
"""

import os
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras, models  # noqa: E402

flags.DEFINE_list("networks", ["resnet20"], "Networks of tfspline.models.")
flags.DEFINE_integer("batch_size", 128, "Images a step.")
flags.DEFINE_integer("side", 28, "Height and width of the images.")
flags.DEFINE_integer("channels", 1, "Channels of the images.")
flags.DEFINE_integer("steps", 10, "Steps a measurement.")
flags.DEFINE_integer("rounds", 5, "Measurements of each model, in turn; medians count.")

# Which is to be how many times as fast as which.
RATIOS = (("keras wrapped", "keras"), ("keras wrapped", "tf_keras"), ("tf_keras wrapped", "tf_keras"))


def contestants(network, shape):
    """A model of each Keras and its wrapped copy, compiled, by name."""
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
    """Prints images a second of each of `runs`, name -> function, called in turn, and the ratios of interest."""
    speeds = {name: [] for name in runs}
    for run in runs.values():  # traces
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            speeds[name].append(images / (time.perf_counter() - start))
    print(title + ", images/s: " + ", ".join(f"{name} {statistics.median(of):.0f}" for name, of in speeds.items()))
    for fast, slow in RATIOS:
        ratios = [a / b for a, b in zip(speeds[fast], speeds[slow], strict=True)]
        print(f"    {fast:16} / {slow:8} {statistics.median(ratios):5.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


def main(argv):
    """Measures every network, in training and in predict."""
    del argv
    given = flags.FLAGS
    devices = ", ".join(device.name for device in tf.config.list_logical_devices())
    versions = ", ".join(f"{name} {_keras.keras_named(name).__version__}" for name in ("keras", "tf_keras"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {devices}; ", end="")
    print(f"TensorFlow {tf.__version__}, {versions}; batches of {given.batch_size}", flush=True)
    rng, images = np.random.default_rng(0), given.batch_size * given.steps
    shape = (given.side, given.side, given.channels)
    x, y = rng.normal(size=(images, *shape)).astype("float32"), rng.integers(0, 10, images)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(given.batch_size).cache().prefetch(2)
    for network in given.networks:
        found = contestants(network, shape)
        training = {name: lambda model=model: model.fit(data, verbose=0) for name, model in found.items()}
        measure(f"{network}, training", training, images, given.rounds)
        predicting = {name: lambda model=model: model.predict(data, verbose=0) for name, model in found.items()}
        measure(f"{network}, predict", predicting, images, given.rounds)


if __name__ == "__main__":
    app.run(main)
