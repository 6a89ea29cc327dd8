"""Initialisation of small networks: pruning a large network compared with training a small one.

python benchmarks/initialisation.py --folder=runs/initialisation

Trains a large network on toy2d and on Fashion-MNIST, and compares small networks with 1/2, 1/4 and 1/8 of its units in
every hidden layer. Three of them are trained until the large network's last epoch: from random weights; from the
initial weights of the units kept at the early bird (Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019,
with units instead of single weights); and from their weights at the early bird, starting in its epoch. Two are pruned
from the trained large network and not trained further, one as it is, one refitted on unlabelled images.

The test set is read once per network and selects nothing. Writes one line per network to `results.jsonl`, then a table,
`accuracy.png` and `partitions.png`. Run the same command again to continue after an interruption.
"""

import dataclasses
import os
import re
import time
from fractions import Fraction

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from common import Results, accuracy, compiled, markdown, network, setting, spread, train  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import tfspline  # noqa: E402
from tfspline import datasets  # noqa: E402
from tfspline._keras import keras_named  # noqa: E402
from tfspline.recipe.recipe import Recipe  # noqa: E402

# toy2d as in configs/toy2d.cfg with twice the units: an eighth of 16 units cannot represent the X.
RECIPES = {
    "toy2d": Recipe(
        dataset="toy2d", network="mlp", width=0.25, epochs=40, eb_threshold=0.05, batch_size=32,
        learning_rate=0.05, weight_decay=0, keras="tf_keras", ratio=0.5,
    ),
    "fashion_mnist": Recipe(
        dataset="fashion_mnist", network="vgg8", width=0.25, epochs=12, steps_per_epoch=156, eb_lookback=1,
        learning_rate=0.03, weight_decay=5e-4, keras="tf_keras", ratio=0.5,
    ),
}  # fmt: skip
SEEDS = {"toy2d": 5, "fashion_mnist": 3}
RANDOM, LOTTERY, EARLY_BIRD = "random weights", "initial weights of the kept units", "early bird, pruned"
PRUNED, REFITTED = "trained, pruned", "trained, pruned, refitted"
METHODS = (RANDOM, LOTTERY, EARLY_BIRD, PRUNED, REFITTED)
IMAGES = 512  # unlabelled images for the early bird, criteria and refitting

flags.DEFINE_string("folder", "runs/initialisation", "Folder for networks, results and pictures.")
flags.DEFINE_string("data_dir", None, "Folder of the files of Fashion-MNIST, if not the usual one.")
flags.DEFINE_list("datasets", list(RECIPES), "toy2d, fashion_mnist or both.")
flags.DEFINE_list("shares", ["1/2", "1/4", "1/8"], "Shares of the units to keep.")
flags.DEFINE_string("criterion", "spline", "Criterion that selects the units to keep.")
flags.DEFINE_integer("seeds", None, "Number of seeds; by default, 5 for toy2d and 3 for fashion_mnist.")
flags.DEFINE_integer("epochs", None, "Epochs of every training; by default, 40 for toy2d and 12 for fashion_mnist.")


@dataclasses.dataclass
class Study:
    """The networks of one dataset and one seed.

    Attributes:
        recipe: recipe of all trainings.
        dataset: dataset of the recipe.
        criterion: criterion that selects the units to keep.
        folder: folder for the networks.
        results: results of the benchmark.
    """

    recipe: Recipe
    dataset: datasets.Dataset
    criterion: str
    folder: str
    results: Results

    def run(self, shares):
        """Compute the missing results."""
        if not self.row("dense", 1):
            self.train_dense()
        for share in shares:
            for method in METHODS:
                if not self.row(method, share):
                    self.train_small(method, share)

    def cell(self, method, share):
        recipe = self.recipe
        return {
            "dataset": recipe.dataset, "epochs": recipe.epochs, "criterion": self.criterion, "seed": recipe.seed,
            "share": float(share), "method": method,
        }  # fmt: skip

    def row(self, method, share):
        return self.results.find(**self.cell(method, share))

    def train_dense(self):
        """Train the large network and save it before training, at the early bird and at the end."""
        recipe, start = self.recipe, time.perf_counter()
        model = compiled(network(recipe, self.dataset), recipe)
        self.save(model, "dense", "initial")
        early_bird = recipe.early_bird(probe=self.images)
        train(model, recipe, self.dataset, 0, recipe.search_limit, early_bird)
        searched = early_bird.epoch or recipe.search_limit
        self.save(model, "dense", "early_bird")
        train(model, recipe, self.dataset, searched, recipe.epochs)
        self.save(model, "dense", "trained")
        flops = tfspline.training_flops(model, recipe.epochs * self.epoch)
        self.record("dense", 1, model, flops, start, early_bird_found=early_bird.found, searched=searched)

    def train_small(self, method, share):
        start = time.perf_counter()
        model, recipe, dense = self.beginning(method, share), self.recipe, self.row("dense", 1)
        epochs = recipe.epochs
        searched = {RANDOM: 0, LOTTERY: dense["searched"], EARLY_BIRD: dense["searched"]}.get(method, epochs)
        done = 0 if method == LOTTERY else searched
        if done < epochs:
            train(compiled(model, recipe), recipe, self.dataset, done, epochs)
        self.save(model, method, share)
        flops = dense["training_flops"] * searched // epochs
        flops += tfspline.training_flops(model, (epochs - done) * self.epoch)
        self.record(method, share, model, flops, start)

    def beginning(self, method, share):
        """Return a small network before its training."""
        moment = "trained" if method in (PRUNED, REFITTED) else "early_bird"
        of = self.load("dense", moment)
        options = {"criterion": self.criterion, "seed": self.recipe.seed, "data": self.images}
        plan = tfspline.plan(of, 1 - float(share), **options)
        if method == REFITTED:
            return plan.apply(of, self.images, "refit")
        if method == LOTTERY:
            return plan.apply(self.load("dense", "initial"))
        small = plan.apply(of)
        if method == RANDOM:
            keras = keras_named(self.recipe.keras)
            keras.utils.set_random_seed(self.recipe.seed)
            return keras.models.clone_model(small)  # with new random weights
        return small

    @property
    def images(self):
        return self.dataset.sample(IMAGES)[0]

    @property
    def epoch(self):
        """Number of images per epoch."""
        recipe = self.recipe
        return recipe.batch_size * self.dataset.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)

    def record(self, method, share, model, flops, start, **more):
        macs, params = (getattr(tfspline.flops(model), name) for name in ("macs", "params"))
        row = self.cell(method, share) | {"accuracy": accuracy(model, self.dataset), "params": params, "macs": macs}
        row |= {"training_flops": flops, "seconds": time.perf_counter() - start} | more
        print(self.results.add(row), flush=True)

    def path(self, method, moment):
        recipe = self.recipe
        name = f"{recipe.dataset} {recipe.epochs} {self.criterion} {recipe.seed} {method} {moment}"
        return os.path.join(self.folder, re.sub(r"\W+", "-", name) + ".keras")

    def save(self, model, method, moment):
        model.save(self.path(method, moment))

    def load(self, method, moment):
        return keras_named(self.recipe.keras).models.load_model(self.path(method, moment), compile=False)


def table(rows, dataset, shares):
    """Format mean and standard deviation of the test accuracy in percent, and training FLOPs, as Markdown."""
    rows = [row for row in rows if row["dataset"] == dataset]
    (dense,) = {row["training_flops"] for row in rows if row["method"] == "dense"}
    lines = [["", "all units", *shares, "training FLOPs relative to the large network"]]
    for method in ("dense", *METHODS):
        line, costs = [method], []
        for share in (1, *map(Fraction, shares)):
            found = [row for row in rows if (row["method"], row["share"]) == (method, float(share))]
            line.append(spread([100 * row["accuracy"] for row in found]) if found else "")
            if found:
                costs.append(f"{np.mean([row['training_flops'] for row in found]) / dense:.2f}")
        lines.append([*line, ", ".join(costs)])
    return f"{dataset}, {len({row['seed'] for row in rows})} seeds, test accuracy in %\n\n{markdown(lines)}\n"


def draw_accuracy(rows, names, shares):
    """Plot mean and standard deviation of the test accuracy by width, with a band for the large network."""
    figure = Figure(figsize=(6 * len(names), 4.4), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):

        def of(method, share, dataset=dataset):
            cell = (dataset, method, float(share))
            found = [100 * row["accuracy"] for row in rows if (row["dataset"], row["method"], row["share"]) == cell]
            return np.mean(found), np.std(found, ddof=1) if len(found) > 1 else 0.0

        mean, deviation = of("dense", 1)
        axes.axhline(mean, color="black", linewidth=1)
        axes.axhspan(mean - deviation, mean + deviation, color="black", alpha=0.15, label="dense")
        for i, method in enumerate(METHODS):
            means, deviations = np.transpose([of(method, Fraction(share)) for share in shares])
            places = np.arange(len(shares)) + 0.06 * (i - 2)  # shifted, so that the bars do not overlap
            axes.errorbar(places, means, deviations, marker="o", markersize=4, capsize=3, label=method)
        axes.set_xticks(range(len(shares)), shares)
        axes.set(title=dataset, xlabel="share of the units of every hidden layer", ylabel="test accuracy (%)")
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(names))
    return figure


def draw_partitions(study, share):
    """Draw the exact partitions of the networks of a study: initial ones above, final ones below."""

    def accuracy_of(method, share):
        return f"{study.row(method, share)['accuracy']:.1%} correct"

    initial, final = (RANDOM, LOTTERY, EARLY_BIRD), (RANDOM, LOTTERY, EARLY_BIRD, REFITTED)
    models = {"dense\nuntrained": study.load("dense", "initial")}
    models |= {f"{method}\nuntrained": study.beginning(method, share) for method in initial}
    models[f"{PRUNED}\n{accuracy_of(PRUNED, share)}"] = study.load(PRUNED, share)
    models[f"dense\ntrained, {accuracy_of('dense', 1)}"] = study.load("dense", "trained")
    models |= {f"{method}\nfinal, {accuracy_of(method, share)}": study.load(method, share) for method in final}
    box = np.stack([getattr(study.dataset.train.images, extreme)(axis=0) for extreme in ("min", "max")], axis=1)
    return tfspline.plots.partitions(models, box, columns=1 + len(final))


def main(argv):
    """Train what is missing, print the tables and draw the pictures."""
    del argv
    given = flags.FLAGS
    print(setting("tf_keras"))
    keys = ("dataset", "epochs", "criterion", "seed", "share", "method")
    results, shares, drawn = Results(given.folder, *keys), given.shares, None
    recipes = {
        name: dataclasses.replace(RECIPES[name], **({} if given.epochs is None else {"epochs": given.epochs}))
        for name in given.datasets
    }
    for name, recipe in recipes.items():
        for seed in range(given.seeds or SEEDS[name]):
            dataset = datasets.load(name, given.data_dir if name == "fashion_mnist" else None, seed=seed)
            study = Study(dataclasses.replace(recipe, seed=seed), dataset, given.criterion, given.folder, results)
            study.run(list(map(Fraction, shares)))
            drawn = drawn or (study if name == "toy2d" else None)
    rows = [
        row
        for row in results.of(criterion=given.criterion)
        if row["dataset"] in recipes and row["epochs"] == recipes[row["dataset"]].epochs
    ]
    for name in recipes:
        print(f"\n{table(rows, name, shares)}")
    draw_accuracy(rows, list(recipes), shares).savefig(os.path.join(given.folder, "accuracy.png"), dpi=150)
    if drawn:
        share = Fraction(shares[len(shares) // 2])
        draw_partitions(drawn, share).savefig(os.path.join(given.folder, "partitions.png"), dpi=100)


if __name__ == "__main__":
    app.run(main)
