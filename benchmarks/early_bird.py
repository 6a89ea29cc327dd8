"""Early-bird tests within epochs: their cost, when they find the early bird, and why their lags are whole epochs.

python benchmarks/early_bird.py [--dataset=fashion_mnist --network=resnet8 --width=0.25 --steps_per_epoch=100]

Trains a network with one EarlyBird that tests once per epoch and others that test more often, and records region codes
throughout. The codes show how far the partition moves within an epoch. Distances grow as steps**alpha. If alpha were
constant (1/2 for diffusion), codes could be compared with those just before, with a threshold theta * (n / S)**alpha,
for n steps between two codes and S steps per epoch. The last table shows when such a test would find the early bird:
for alpha = 0 (no scaling), for 1/2, and for an alpha fitted to the codes compared.
"""

import dataclasses
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from common import compiled, network, setting, train  # noqa: E402

from tfspline import EarlyBird, _keras, datasets, partition_distances  # noqa: E402
from tfspline.recipe.recipe import Recipe  # noqa: E402
from tfspline.spline.codes import RegionEncoder  # noqa: E402

flags.DEFINE_string("dataset", "digits", "Dataset, see tfspline.datasets.load.")
flags.DEFINE_string("data_dir", None, "Folder of its files, if not the usual one.")
flags.DEFINE_string("network", "vgg8", "Network, see tfspline.models.build.")
flags.DEFINE_float("width", 0.25, "Width of the network.")
flags.DEFINE_integer("epochs", 10, "Epochs, with a cosine schedule.")
flags.DEFINE_integer("steps_per_epoch", None, "Steps of 128 images; by default, all images once.")
flags.DEFINE_float("learning_rate", 0.05, "Learning rate of the first epoch.")
flags.DEFINE_integer("codes", 20, "Codes recorded per epoch; one EarlyBird tests as often.")
flags.DEFINE_integer("probe_size", 128, "Number of images in the probe.")
flags.DEFINE_integer("seed", 0, "Seed.")


def watch(recipe, dataset, every, callbacks, seconds):
    """Train and return the codes of every `every` steps; adds the times of codes and epochs to `seconds`."""
    keras = _keras.keras_named(recipe.keras)
    model = compiled(network(recipe, dataset), recipe)
    encode, probe = RegionEncoder(model), callbacks[0].probe
    encode(probe)  # traces the model before times are measured
    codes = []

    def take(batch, logs):
        if _keras.iterations(model) % every == 0:
            start = time.perf_counter()
            codes.append(encode(probe))
            seconds["codes"].append(time.perf_counter() - start)

    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=take,
        on_epoch_begin=lambda epoch, logs: seconds["epoch"].append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: seconds["epoch"].append(time.perf_counter() - seconds["epoch"].pop()),
    )
    train(model, recipe, dataset, 0, recipe.epochs, clock, *callbacks)
    return codes


def exponent(lags, distances):
    """Fit the slope of log distance over log lag."""
    return np.polyfit(np.log(lags), np.log(np.maximum(distances, 1e-9)), 1)[0]


def growth(distances, epoch):
    """Yield a row per two epochs: first epoch, lags, mean distances at the lags, and the exponents for lags up to one
    epoch and from one to two epochs."""
    lags = sorted({max(1, round(epoch * share)) for share in (1 / 20, 1 / 8, 1 / 4, 1 / 2, 1, 2)})
    for begin in range(0, len(distances) - 2 * epoch, 2 * epoch):
        window = distances[begin : begin + 3 * epoch, begin : begin + 3 * epoch]
        means = [np.diagonal(window, lag).mean() for lag in lags]
        within = [lag <= epoch for lag in lags]
        alpha = exponent(np.array(lags)[within], np.array(means)[within])
        yield begin // epoch + 1, lags, means, alpha, exponent(lags[-2:], means[-2:])


def scaled_test(distances, epoch, step, alpha, early_bird):
    """Return the epoch at which a test with a scaled threshold finds the early bird, None if it does not.

    Tests every `step` codes, comparing them with the `lookback` ones before. Scales the threshold by `alpha`, or, if it
    is None, by the exponent fitted to the distances between the codes compared (at least four).
    """
    tested = np.arange(step - 1, len(distances), step)
    compared = early_bird.lookback if alpha is not None else max(early_bird.lookback, 3)
    for last in range(compared, len(tested)):
        among = tested[last - compared : last + 1]
        first, second = np.triu_indices(len(among), 1)
        fitted = alpha
        if alpha is None:
            pairs = distances[among[first], among[second]]
            fitted = float(np.clip(exponent(among[second] - among[first], pairs), 0, 1))
        largest = distances[tested[last], tested[last - early_bird.lookback : last]].max()
        if largest < early_bird.threshold * (step / epoch) ** fitted:
            return (tested[last] + 1) / epoch
    return None


def report_cost(codes, callbacks, seconds, shares, every, steps, given):
    """Print the time of the codes of a probe, relative to a training step."""
    one = statistics.median(seconds["codes"])
    per_epoch = (len(codes) + sum(len(callback.distances) for callback in callbacks)) / given.epochs
    step = (statistics.median(seconds["epoch"]) - per_epoch * one) / steps
    print(
        f"codes of {len(callbacks[0].probe)} images take as long as {one / step:.2f} steps: "
        + ", ".join(f"{one / step / part / every:.1%} of the training every {part * every}" for part in shares)
    )


def report_growth(distances, epoch, every):
    """Print how far the partition moves."""
    print("\nDistance between partitions by lag (in steps), over the training")
    for begin, lags, means, alpha, beyond in growth(distances, epoch):
        moved = ", ".join(f"{lag * every}: {mean:.4f}" for lag, mean in zip(lags, means, strict=True))
        print(f"  from epoch {begin:2}: alpha {alpha:.2f} up to one epoch, {beyond:.2f} from one to two; {moved}")


def report_tests(distances, callbacks, epoch, every, steps):
    """Print when each test finds the early bird."""
    print("\nEpoch of the early bird")
    print("  lookback  every  EarlyBird(every)  scaled: alpha=0   1/2  fitted")
    for callback in callbacks:
        found = None if not callback.found else callback.epoch if callback.every is None else callback.step / steps
        part = (callback.every or steps) // every
        alphas = [] if part == epoch else [0, 0.5, None]
        scaled = [scaled_test(distances, epoch, part, alpha, callback) for alpha in alphas]
        columns = "".join("     -" if value is None else f"{value:6.2f}" for value in scaled)
        found = "-" if found is None else f"{found:.2f}"
        print(f"  {callback.lookback:8} {callback.every or 'epoch':>6} {found:>17} {'':10}{columns}")


def main(argv):
    """Train and print the tables."""
    del argv
    given = flags.FLAGS
    dataset = datasets.load(given.dataset, given.data_dir)
    recipe = Recipe(
        network=given.network, width=given.width, dataset=given.dataset, epochs=given.epochs,
        learning_rate=given.learning_rate, seed=given.seed, ratio=0.5,
    )  # fmt: skip
    steps = dataset.steps_per_epoch(recipe.batch_size, given.steps_per_epoch)
    every = max(1, steps // given.codes)
    steps -= steps % every  # so that every epoch ends with codes
    recipe = dataclasses.replace(recipe, steps_per_epoch=steps)
    epoch = steps // every
    shares = sorted({part for part in (1, epoch // 8, epoch // 4, epoch // 2) if part})
    probe, _ = dataset.sample(given.probe_size)
    callbacks = [
        EarlyBird(lookback=lookback, every=n, probe=probe, stop_training=False)
        for lookback in (1, 3)
        for n in (None, *(part * every for part in shares))
    ]
    print(setting(recipe.keras))
    print(f"{given.network}, width {given.width:g}, {given.dataset}, {given.epochs} epochs of {steps} steps of 128")
    seconds = {"codes": [], "epoch": []}
    codes = watch(recipe, dataset, every, callbacks, seconds)
    distances = partition_distances(codes)
    report_cost(codes, callbacks, seconds, shares, every, steps, given)
    report_growth(distances, epoch, every)
    report_tests(distances, callbacks, epoch, every, steps)


if __name__ == "__main__":
    app.run(main)
