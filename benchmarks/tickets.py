"""How early tickets settle: the partition, and the units that each criterion keeps, after every epoch of a training.

python benchmarks/tickets.py --folder=runs/tickets

Trains dense networks on Fashion-MNIST. Before the training and after every epoch, computes the region codes of some
training images and each criterion's ticket, the units of every layer that it would keep. Plots the distances between
the partitions of all epochs, with the epoch of the early bird, and the share of the units of the last ticket that each
criterion keeps at each epoch. For random tickets, the expected share is that of the units kept.

The test set is not read. Writes one line per seed to `results.jsonl`, then a table and `tickets.png`. Run the same
command again to continue after an interruption.
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from common import Results, compiled, markdown, network, setting, spread, train  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import tfspline  # noqa: E402
from tfspline import datasets  # noqa: E402
from tfspline._keras import keras_named  # noqa: E402
from tfspline.recipe.recipe import Recipe  # noqa: E402

CRITERIA = (
    "spline", "spline_data", "spline_affine", "bn_scale", "l1", "l2", "fpgm", "taylor", "snip", "synflow", "random",
)  # fmt: skip
IMAGES = 512  # training images for the early bird and the criteria

flags.DEFINE_string("folder", "runs/tickets", "Folder for results and the picture.")
flags.DEFINE_string("data_dir", None, "Folder of the files of Fashion-MNIST, if not the usual one.")
flags.DEFINE_string("network", "vgg8", "Network, see tfspline.models.build.")
flags.DEFINE_float("width", 0.25, "Width of the network.")
flags.DEFINE_integer("epochs", 12, "Epochs.")
flags.DEFINE_integer("steps_per_epoch", 156, "Steps of 128 images; 468 steps use all images once.")
flags.DEFINE_float("ratio", 0.7, "Share of the units that a ticket removes.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
flags.DEFINE_list("criteria", list(CRITERIA), "Criteria.")


def recipe_of(given, seed):
    return Recipe(
        dataset="fashion_mnist",
        data_dir=given.data_dir,
        network=given.network,
        width=given.width,
        keras="tf_keras",
        epochs=given.epochs,
        steps_per_epoch=given.steps_per_epoch,
        learning_rate=0.03,
        weight_decay=5e-4,
        eb_lookback=1,
        ratio=given.ratio,
        seed=seed,
    )


def ticket(model, recipe, criterion, epoch, probe):
    """Return which of the removable units a criterion keeps, bool `[units]`."""
    seed = (recipe.epochs + 1) * recipe.seed + epoch  # different random tickets at every epoch
    plan = tfspline.plan(model, recipe.ratio, criterion=criterion, seed=seed, data=probe)
    return np.concatenate([~plan.removed[group.units] for group in plan.graph.groups if not group.protected])


def watch(recipe, criteria):
    """Train, and return the distances between partitions and the overlaps of tickets, as fields of a row."""
    keras = keras_named(recipe.keras)
    dataset = datasets.load(recipe.dataset, recipe.data_dir, seed=recipe.seed)
    model = compiled(network(recipe, dataset), recipe)
    inputs, _ = probe = dataset.sample(IMAGES)
    codes, tickets = [], {criterion: [] for criterion in criteria}

    def record(epoch, logs=None):
        codes.append(tfspline.region_codes(model, inputs))
        for criterion, drawn in tickets.items():
            drawn.append(ticket(model, recipe, criterion, len(drawn), probe))

    record(0)
    early_bird = recipe.early_bird(probe=inputs, stop_training=False)
    train(model, recipe, dataset, 0, recipe.epochs, early_bird, keras.callbacks.LambdaCallback(on_epoch_end=record))
    return {
        "early_bird_epoch": early_bird.epoch,
        "kept": float(np.mean([drawn[-1].mean() for drawn in tickets.values()])),
        "distances": tfspline.partition_distances(codes).round(5).tolist(),
        "overlap": {
            criterion: [float((one & drawn[-1]).sum() / drawn[-1].sum()) for one in drawn]
            for criterion, drawn in tickets.items()
        },
    }


def table(rows, criteria):
    """Format the shares of the last ticket's units in percent, mean and standard deviation, as Markdown."""
    last = len(rows[0]["distances"]) - 1
    moments = {
        "before training": lambda row: 0,
        "at the early bird": lambda row: row["early_bird_epoch"],
        "halfway": lambda row: last // 2,
        "one epoch before the end": lambda row: last - 1,
    }

    def cell(criterion, moment):
        found = [(row["overlap"][criterion], moment(row)) for row in rows]
        shares = [100 * overlap[epoch] for overlap, epoch in found if epoch is not None]
        return spread(shares, 1) if shares else "none"

    lines = [[criterion, *(cell(criterion, moment) for moment in moments.values())] for criterion in criteria]
    return markdown([["criterion", *moments], *lines])


def draw(rows, criteria):
    """Plot the distances of the first seed, and mean and extremes of the overlaps of all seeds."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 6))
    first, last = rows[0], len(rows[0]["distances"]) - 1
    # Without the first epoch, whose distance would hide the differences between the others.
    distances = np.array(first["distances"])[1:, 1:]
    tfspline.plots.distance_matrix(distances, range(1, last + 1), first["early_bird_epoch"], left)
    axes = right.subplots()
    for criterion in criteria:
        # The last ticket overlaps completely with itself.
        shares = 100 * np.array([row["overlap"][criterion][:-1] for row in rows])
        style = {"color": "black"} if criterion == "random" else {}  # the other ten use all colours
        (line,) = axes.plot(range(last), shares.mean(axis=0), marker="o", markersize=3, label=criterion, **style)
        axes.fill_between(range(last), shares.min(axis=0), shares.max(axis=0), color=line.get_color(), alpha=0.15)
    kept = 100 * statistics.mean(row["kept"] for row in rows)
    axes.axhline(kept, color="black", linestyle="--", linewidth=1, label="expected at random")
    for i, epoch in enumerate(sorted({row["early_bird_epoch"] for row in rows} - {None})):
        axes.axvline(epoch, color="black", linestyle=":", linewidth=1, label=None if i else "early bird")
    axes.set(xlabel="epoch", ylabel="units of the last ticket kept (%)", ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    right.legend(loc="outside right upper", fontsize="small")
    return figure


def main(argv):
    """Train what is missing, print the table and draw the picture."""
    del argv
    given = flags.FLAGS
    print(setting("tf_keras"))
    keys = ("network", "width", "epochs", "steps_per_epoch", "ratio", "criteria", "seed")
    results, rows = Results(given.folder, *keys), []
    for seed in map(int, given.seeds):
        cell = {name: seed if name == "seed" else getattr(given, name) for name in keys}
        if not results.find(**cell):
            start = time.perf_counter()
            found = watch(recipe_of(given, seed), given.criteria)
            print(results.add(cell | found | {"seconds": time.perf_counter() - start}), flush=True)
        rows.append(results.find(**cell))
    expected = 100 * statistics.mean(row["kept"] for row in rows)
    print(f"\n{len(rows)} seeds, share of the last ticket's units in %; {expected:.1f} are expected at random")
    print(f"epochs of the early bird: {[row['early_bird_epoch'] for row in rows]} of {given.epochs}\n")
    print(table(rows, given.criteria))
    draw(rows, given.criteria).savefig(os.path.join(given.folder, "tickets.png"), dpi=150)


if __name__ == "__main__":
    app.run(main)
