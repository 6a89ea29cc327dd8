"""Accuracy lost by pruning a trained ResNet-20 without retraining, by criterion and compensation.

python benchmarks/compensation.py --folder=runs/compensation

Trains a dense network per seed (Fashion-MNIST, all 60,000 images), then prunes the inner channels of every block, with
`--streams` also the residual streams. Writes one line per cell to `results.jsonl` in the folder, then a table and
`compensation.png`. Run the same command again to continue after an interruption.
"""

import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from common import Results, accuracy, dense_resnet20, is_stream, setting  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import tfspline  # noqa: E402
from tfspline import datasets  # noqa: E402

CRITERIA = ("spline_affine", "spline_data", "spline", "bn_scale", "l1", "fpgm", "random")
WAYS = {
    "plain": {"compensate": "none", "recalibrate": False},
    "recalibrated": {"compensate": "none"},
    "merged": {"compensate": "merge"},
    "refitted": {"compensate": "refit"},
}
WITHOUT_DATA = {"paired": {"compensate": "merge"}}

flags.DEFINE_string("folder", "runs/compensation", "Folder for networks, results and the picture.")
flags.DEFINE_string("data_dir", None, "Folder of the files of Fashion-MNIST, if not the usual one.")
flags.DEFINE_integer("epochs", 10, "Epochs of the dense training.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, each with its own dense network.")
flags.DEFINE_list("ratios", ["0.1", "0.3", "0.5", "0.7", "0.8"], "Shares of the units to remove.")
flags.DEFINE_list("criteria", list(CRITERIA), "Criteria.")
flags.DEFINE_list("ways", list(WAYS), "Compensations; also 'paired', which needs no data.")
flags.DEFINE_enum("scope", "layer", ["layer", "global"], "Scope of the plan.")
flags.DEFINE_bool("streams", False, "Prune the residual streams as well as the inner channels.")
flags.DEFINE_integer("images", 512, "Unlabelled training images for scores and compensations.")


def cell_of(given, seed, ratio, criterion, way):
    """Return the cell of a pruned network; dense networks have no ratio, criterion or way."""
    options = {"epochs": given.epochs, "streams": given.streams, "scope": given.scope, "images": given.images}
    return {"seed": seed, **options, "ratio": ratio, "criterion": criterion, "way": way}


def sweep(given, folder):
    """Compute the missing results and return all of them."""
    results = Results(folder, *cell_of(given, None, None, None, None))
    for seed in map(int, given.seeds):
        dataset = datasets.load("fashion_mnist", given.data_dir, seed=seed)
        dense = dense_resnet20(folder, dataset, seed, given.epochs)
        cell = cell_of(given, seed, None, None, None)
        if not results.find(**cell):
            print(results.add(cell | {"accuracy": 100 * accuracy(dense, dataset)}), flush=True)
        probe, _ = dataset.sample(given.images)
        for ratio in map(float, given.ratios):
            for criterion in given.criteria:
                ways = [way for way in given.ways if not results.find(**cell_of(given, seed, ratio, criterion, way))]
                if not ways:
                    continue
                plan = tfspline.plan(
                    dense, ratio, criterion=criterion, scope=given.scope, seed=seed, data=probe,
                    protect=() if given.streams else (is_stream,),
                )  # fmt: skip
                before, after = plan.cost()["macs"]
                for way in ways:
                    options = WITHOUT_DATA.get(way) or {"data": probe, **WAYS[way]}
                    pruned = accuracy(plan.apply(dense, **options), dataset)
                    found = {"accuracy": 100 * pruned, "macs_reduction": before / after}
                    print(results.add(cell_of(given, seed, ratio, criterion, way) | found), flush=True)
    return results


def losses(results, given, criterion, way):
    """Compute the percentage points of accuracy lost per ratio, over the seeds: [(ratio, mean, least, most)]."""
    rows = []
    for ratio in map(float, given.ratios):
        pairs = [
            [results.find(**cell_of(given, seed, *of)) for of in ((None, None, None), (ratio, criterion, way))]
            for seed in map(int, given.seeds)
        ]
        lost = [dense["accuracy"] - pruned["accuracy"] for dense, pruned in pairs]
        rows.append((ratio, statistics.mean(lost), min(lost), max(lost)))
    return rows


def draw(results, given):
    """Plot the accuracy lost over the ratio: a panel per compensation, a line per criterion, a band over the seeds."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, way in zip(figure.subplots(1, len(given.ways), sharey=True, squeeze=False)[0], given.ways, strict=True):
        for criterion in given.criteria:
            ratio, mean, least, most = np.array(losses(results, given, criterion, way)).T
            axes.plot(100 * ratio, mean, marker="o", markersize=3, label=criterion)
            axes.fill_between(100 * ratio, least, most, alpha=0.15)
        axes.set(title=way, yscale="symlog", ylim=(-0.5, 100))
        axes.grid(alpha=0.3)
    figure.supxlabel("channels removed (%)", fontsize=10)
    figure.axes[0].set_ylabel("test accuracy lost (points)")
    figure.axes[-1].legend(fontsize=8)
    return figure


def main(argv):
    """Train, prune, print the table and draw the picture."""
    del argv
    given = flags.FLAGS
    os.makedirs(given.folder, exist_ok=True)
    print(setting("tf_keras"))
    results = sweep(given, given.folder)
    seeds = ", ".join(given.seeds)
    print(f"\npercentage points of test accuracy lost, mean over seeds {seeds}; {given.images} unlabelled images")
    print(f"{'criterion':<14} {'way':<13}" + "".join(f"{float(ratio):>8.0%}" for ratio in given.ratios))
    for criterion in given.criteria:
        for way in given.ways:
            rows = losses(results, given, criterion, way)
            print(f"{criterion:<14} {way:<13}" + "".join(f"{mean:>8.2f}" for _, mean, _, _ in rows))
    draw(results, given).savefig(os.path.join(given.folder, "compensation.png"), dpi=150)


if __name__ == "__main__":
    app.run(main)
