"""What a small network should start with: pruning a large network against training a small one that starts well.

python benchmarks/initialisation.py --folder=runs/initialisation

A large network is trained, on the points of toy2d and on Fashion-MNIST. Small ones of a half, a quarter and an eighth
of its units in every hidden layer start with random weights; with those that the units of the early bird had before any
training (Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, of units instead of single weights); or with
those that they have at the early bird. These are trained to the end of the large one's epochs: the first two from the
beginning, the third from the early bird on. The last two are cut out of the large network when it is trained, and not
trained any more: as they are, and refitted on unlabelled images.

Nothing is chosen by the results; the test set is read once a network. What is done is not done again; results go to
`results.jsonl`, a line a network; a table, `accuracy.png` and `partitions.png` are made of what is there.
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
from tfspline import datasets as data  # noqa: E402
from tfspline._keras import keras_named  # noqa: E402
from tfspline.plots import partitions as partition_plots  # noqa: E402
from tfspline.recipe.recipe import Recipe  # noqa: E402

# The toy as in configs/toy2d.cfg, with twice the units: an eighth of 16 could not tell an X from what is around it.
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
RANDOM, LOTTERY, BIRD = "random weights", "initial weights of the kept units", "early bird, pruned"
CUT, REFITTED = "trained, pruned", "trained, pruned, refitted"
METHODS = (RANDOM, LOTTERY, BIRD, CUT, REFITTED)
IMAGES = 512  # unlabelled, for the early bird, criteria and refitting

flags.DEFINE_string("folder", "runs/initialisation", "Where networks, results and pictures go.")
flags.DEFINE_string("data_dir", None, "Where the files of Fashion-MNIST are, if not in their usual place.")
flags.DEFINE_list("datasets", list(RECIPES), "Out of: toy2d, fashion_mnist.")
flags.DEFINE_list("shares", ["1/2", "1/4", "1/8"], "Shares of the units that the small networks have.")
flags.DEFINE_string("criterion", "spline", "Which units are kept.")
flags.DEFINE_integer("seeds", None, "How many seeds; by default 5 of toy2d, 3 of fashion_mnist.")
flags.DEFINE_integer("epochs", None, "Epochs of every training; by default 40 of toy2d, 12 of fashion_mnist.")


@dataclasses.dataclass
class Study:
    """The networks of one data set and one seed.

    Attributes:
        recipe: how all are trained.
        dataset: on what.
        criterion: which units are kept.
        folder: for the networks.
        results: of the benchmark.
    """

    recipe: Recipe
    dataset: data.Dataset
    criterion: str
    folder: str
    results: Results

    def run(self, shares):
        """Fills in what is missing in the results."""
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
        """Trains the large network, and keeps what it was at first, at the early bird and in the end."""
        recipe, start = self.recipe, time.perf_counter()
        model = compiled(network(recipe, self.dataset), recipe)
        self.save(model, "dense", "initial")
        bird = recipe.early_bird(probe=self.images)
        train(model, recipe, self.dataset, 0, recipe.search_limit, bird)
        searched = bird.epoch or recipe.search_limit
        self.save(model, "dense", "early_bird")
        train(model, recipe, self.dataset, searched, recipe.epochs)
        self.save(model, "dense", "trained")
        flops = tfspline.training_flops(model, recipe.epochs * self.epoch)
        self.record("dense", 1, model, flops, start, early_bird_found=bird.found, searched=searched)

    def train_small(self, method, share):
        start = time.perf_counter()
        model, recipe, dense = self.beginning(method, share), self.recipe, self.row("dense", 1)
        epochs = recipe.epochs
        searched = {RANDOM: 0, LOTTERY: dense["searched"], BIRD: dense["searched"]}.get(method, epochs)
        done = 0 if method == LOTTERY else searched
        if done < epochs:
            train(compiled(model, recipe), recipe, self.dataset, done, epochs)
        self.save(model, method, share)
        flops = dense["training_flops"] * searched // epochs
        flops += tfspline.training_flops(model, (epochs - done) * self.epoch)
        self.record(method, share, model, flops, start)

    def beginning(self, method, share):
        """A small network before it is trained."""
        moment = "trained" if method in (CUT, REFITTED) else "early_bird"
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
            return keras.models.clone_model(small)  # with weights of its own
        return small

    @property
    def images(self):
        return self.dataset.sample(IMAGES)[0]

    @property
    def epoch(self):
        """Images of an epoch."""
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
    """Test accuracy in percent, mean and standard deviation over the seeds, and training FLOPs, as Markdown."""
    rows = [row for row in rows if row["dataset"] == dataset]
    (dense,) = {row["training_flops"] for row in rows if row["method"] == "dense"}
    lines = [["", "all units", *shares, "training FLOPs of the large one's"]]
    for method in ("dense", *METHODS):
        line, costs = [method], []
        for share in (1, *map(Fraction, shares)):
            found = [row for row in rows if (row["method"], row["share"]) == (method, float(share))]
            line.append(spread([100 * row["accuracy"] for row in found]) if found else "")
            if found:
                costs.append(f"{np.mean([row['training_flops'] for row in found]) / dense:.2f}")
        lines.append([*line, ", ".join(costs)])
    return f"{dataset}, {len({row['seed'] for row in rows})} seeds, test accuracy in %\n\n{markdown(lines)}\n"


def draw_accuracy(rows, datasets, shares):
    """Test accuracy by width: mean and standard deviation over the seeds; the large network's as a band."""
    figure = Figure(figsize=(6 * len(datasets), 4.4), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):

        def of(method, share, dataset=dataset):
            cell = (dataset, method, float(share))
            found = [100 * row["accuracy"] for row in rows if (row["dataset"], row["method"], row["share"]) == cell]
            return np.mean(found), np.std(found, ddof=1) if len(found) > 1 else 0.0

        mean, deviation = of("dense", 1)
        axes.axhline(mean, color="black", linewidth=1)
        axes.axhspan(mean - deviation, mean + deviation, color="black", alpha=0.15, label="dense")
        for i, method in enumerate(METHODS):
            means, deviations = np.transpose([of(method, Fraction(share)) for share in shares])
            places = np.arange(len(shares)) + 0.06 * (i - 2)  # beside each other, or the bars would hide each other
            axes.errorbar(places, means, deviations, marker="o", markersize=4, capsize=3, label=method)
        axes.set_xticks(range(len(shares)), shares)
        axes.set(title=dataset, xlabel="share of the units of every hidden layer", ylabel="test accuracy (%)")
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(datasets))
    return figure


def draw_partitions(study, share):
    """The exact partitions of the networks of a study: above as they begin, below as they end."""

    def right(method, share):
        return f"{study.row(method, share)['accuracy']:.1%} right"

    begun, ended = (RANDOM, LOTTERY, BIRD), (RANDOM, LOTTERY, BIRD, REFITTED)
    models = {"dense\nuntrained": study.load("dense", "initial")}
    models |= {f"{method}\nuntrained": study.beginning(method, share) for method in begun}
    models[f"{CUT}\n{right(CUT, share)}"] = study.load(CUT, share)
    models[f"dense\ntrained, {right('dense', 1)}"] = study.load("dense", "trained")
    models |= {f"{method}\nin the end, {right(method, share)}": study.load(method, share) for method in ended}
    box = np.stack([getattr(study.dataset.train.images, extreme)(axis=0) for extreme in ("min", "max")], axis=1)
    return partition_plots.partitions(models, box, columns=1 + len(ended))


def main(argv):
    """Trains what is missing, prints the tables, draws the pictures."""
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
            dataset = data.load(name, given.data_dir if name == "fashion_mnist" else None, seed=seed)
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
