"""Looking for the early bird inside of epochs: what it costs, when it finds, and why its lags are whole epochs.

python benchmarks/early_bird.py [--dataset=fashion_mnist --network=resnet8 --width=0.25 --steps_per_epoch=100]

One training, watched by an EarlyBird once an epoch and by others more often. Then, from codes taken all along: how far
the partition moves within an epoch. Distances grow as steps**alpha; were alpha the same throughout, 1/2 say as for
diffusion, looks could be compared with those just before, to a threshold of theta * (n / S)**alpha, n steps between two
looks and S an epoch. The last table says when such a test would find its bird: with alpha = 0 (no scaling), with 1/2,
and with the alpha of the looks compared, fitted anew at each.
"""

import dataclasses
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from common import compiled, network, setting, train  # noqa: E402

from tfspline import EarlyBird, _keras, partition_distances  # noqa: E402
from tfspline import datasets as data  # noqa: E402
from tfspline.recipe.recipe import Recipe  # noqa: E402
from tfspline.spline.codes import RegionEncoder  # noqa: E402

flags.DEFINE_string("dataset", "digits", "A dataset of tfspline.datasets.load.")
flags.DEFINE_string("data_dir", None, "Its files, if not in their usual place.")
flags.DEFINE_string("network", "vgg8", "A network of tfspline.models.build.")
flags.DEFINE_float("width", 0.25, "Its width.")
flags.DEFINE_integer("epochs", 10, "Epochs, with a cosine schedule.")
flags.DEFINE_integer("steps_per_epoch", None, "Steps of 128 images; by default all images once.")
flags.DEFINE_float("learning_rate", 0.05, "Learning rate of the first epoch.")
flags.DEFINE_integer(
    "codes", 20, "How many times an epoch codes are taken for the tables; an EarlyBird looks as often."
)
flags.DEFINE_integer("probe_size", 128, "Images that they are taken on.")
flags.DEFINE_integer("seed", 0, "Seed.")


def watch(recipe, dataset, every, birds, seconds):
    """The codes of the training, one each `every` steps; `seconds` takes how long they and the epochs took."""
    keras = _keras.keras_named(recipe.keras)
    model = compiled(network(recipe, dataset), recipe)
    encode, probe = RegionEncoder(model), birds[0].probe
    encode(probe)  # traced before the clock runs
    codes = []

    def take(batch, logs):
        if _keras.iterations(model) % every == 0:
            start = time.perf_counter()
            codes.append(encode(probe))
            seconds["look"].append(time.perf_counter() - start)

    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=take,
        on_epoch_begin=lambda epoch, logs: seconds["epoch"].append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: seconds["epoch"].append(time.perf_counter() - seconds["epoch"].pop()),
    )
    train(model, recipe, dataset, 0, recipe.epochs, clock, *birds)
    return codes


def exponent(lags, distances):
    """The slope of log distance against log lag."""
    return np.polyfit(np.log(lags), np.log(np.maximum(distances, 1e-9)), 1)[0]


def growth(distances, epoch):
    """Rows of a window of two epochs each: its first epoch, mean distances at the lags, exponents up to an epoch and
    from there to two."""
    lags = sorted({max(1, round(epoch * share)) for share in (1 / 20, 1 / 8, 1 / 4, 1 / 2, 1, 2)})
    for begin in range(0, len(distances) - 2 * epoch, 2 * epoch):
        window = distances[begin : begin + 3 * epoch, begin : begin + 3 * epoch]
        means = [np.diagonal(window, lag).mean() for lag in lags]
        within = [lag <= epoch for lag in lags]
        alpha = exponent(np.array(lags)[within], np.array(means)[within])
        yield begin // epoch + 1, lags, means, alpha, exponent(lags[-2:], means[-2:])


def scaled_bird(distances, epoch, step, alpha, bird):
    """The epoch at which the bird would be found among looks `step` codes apart, each compared with the `lookback` just
    before it, to a threshold scaled by `alpha`; None fits it to the distances between these looks, four at least."""
    looks = np.arange(step - 1, len(distances), step)
    compared = bird.lookback if alpha is not None else max(bird.lookback, 3)
    for last in range(compared, len(looks)):
        among = looks[last - compared : last + 1]
        first, second = np.triu_indices(len(among), 1)
        fitted = alpha
        if alpha is None:
            pairs = distances[among[first], among[second]]
            fitted = float(np.clip(exponent(among[second] - among[first], pairs), 0, 1))
        largest = distances[looks[last], looks[last - bird.lookback : last]].max()
        if largest < bird.threshold * (step / epoch) ** fitted:
            return (looks[last] + 1) / epoch
    return None


def main(argv):
    """Prints the tables."""
    del argv
    given = flags.FLAGS
    dataset = data.load(given.dataset, given.data_dir)
    recipe = Recipe(
        network=given.network, width=given.width, dataset=given.dataset, epochs=given.epochs,
        learning_rate=given.learning_rate, seed=given.seed, ratio=0.5,
    )  # fmt: skip
    steps = dataset.steps_per_epoch(recipe.batch_size, given.steps_per_epoch)
    every = max(1, steps // given.codes)
    steps -= steps % every  # so that looks fall on ends of epochs
    recipe = dataclasses.replace(recipe, steps_per_epoch=steps)
    epoch = steps // every
    shares = sorted({part for part in (1, epoch // 8, epoch // 4, epoch // 2) if part})
    probe, _ = dataset.sample(given.probe_size)
    options = {"probe": probe, "stop_training": False}
    birds = [
        EarlyBird(lookback=lookback, every=n, **options)
        for lookback in (1, 3)
        for n in (None, *(part * every for part in shares))
    ]
    print(setting(recipe.keras))
    print(f"{given.network}, width {given.width:g}, {given.dataset}, {given.epochs} epochs of {steps} steps of 128")
    seconds = {"look": [], "epoch": []}
    codes = watch(recipe, dataset, every, birds, seconds)
    look = statistics.median(seconds["look"])
    looks = (len(codes) + sum(len(bird.distances) for bird in birds)) / given.epochs
    step = (statistics.median(seconds["epoch"]) - looks * look) / steps
    print(
        f"a look at {len(probe)} images takes {look / step:.2f} steps: "
        + ", ".join(f"{look / step / part / every:.1%} of the training every {part * every}" for part in shares)
    )
    distances = partition_distances(codes)

    print("\nHow far the partition moves, by epoch of the training; the lags in steps")
    for begin, lags, means, alpha, beyond in growth(distances, epoch):
        moved = ", ".join(f"{lag * every}: {mean:.4f}" for lag, mean in zip(lags, means, strict=True))
        print(f"  from {begin:2}: alpha {alpha:.2f} within an epoch, {beyond:.2f} from one to two; {moved}")

    print("\nThe epoch of the bird")
    print("  lookback  every  EarlyBird(every)  scaled: alpha=0   1/2  fitted")
    for bird in birds:
        found = None if not bird.found else bird.epoch if bird.every is None else bird.step / steps
        part = (bird.every or steps) // every
        scaled = [] if part == epoch else [scaled_bird(distances, epoch, part, alpha, bird) for alpha in (0, 0.5, None)]
        columns = "".join("     -" if value is None else f"{value:6.2f}" for value in scaled)
        found = "-" if found is None else f"{found:.2f}"
        print(f"  {bird.lookback:8} {bird.every or 'epoch':>6} {found:>17} {'':10}{columns}")


if __name__ == "__main__":
    app.run(main)
