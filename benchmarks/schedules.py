"""Pruning at once or gradually: accuracy and training FLOPs of ResNet-20 on Fashion-MNIST, beside tfmot's magnitudes.

python benchmarks/schedules.py --folder=runs/schedules

Dense training; 70 % of the units of every layer at once at the early bird, without and with refitting; the same in the
course of some epochs from the early bird on, with tfmot's PolynomialDecay; and tfmot's own magnitude pruning, from the
same epoch to the same epoch, to as many parameters that are not zero. All train for as many images. Each training is
resumable, and what is done is not done again; results go to `results.jsonl`, a line a cell.
"""

import json
import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402
from absl import app, flags  # noqa: E402
from common import setting  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras, data, models  # noqa: E402
from tfspline.recipe import Recipe  # noqa: E402
from tfspline.runner import run  # noqa: E402

OURS = {
    "spline at once": {},
    "spline_affine at once, refitted": {"criterion": "spline_affine", "compensate": "refit"},
    "spline, polynomial": {"schedule": "early_bird"},
}

flags.DEFINE_string("folder", "runs/schedules", "Where runs and results go.")
flags.DEFINE_string("data_dir", None, "Where the files of Fashion-MNIST are, if not in their usual place.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
flags.DEFINE_integer("epochs", 12, "Epochs of every training.")
flags.DEFINE_integer("pruning_epochs", 3, "Epochs of the gradual schedules.")
flags.DEFINE_integer("steps_per_epoch", 234, "Steps of 128 images; 468 are all images once.")
flags.DEFINE_float("ratio", 0.7, "Share of the units that go.")


def recipe_of(given, seed, **options):
    """The recipe of a cell; the early bird as in configs/fashion_resnet20.cfg."""
    if options.get("schedule") == "early_bird":
        options["pruning_epochs"] = given.pruning_epochs
    return Recipe(
        dataset="fashion_mnist",
        data_dir=given.data_dir,
        network="resnet20",
        keras="tf_keras",
        augment="crop",
        epochs=given.epochs,
        steps_per_epoch=given.steps_per_epoch,
        learning_rate=0.03,
        weight_decay=5e-4,
        eb_lookback=1,
        ratio=given.ratio,
        seed=seed,
        **options,
    )


def cells(summary, method):
    """The lines that a run of ours makes."""
    for phase, name in (("dense", "dense"), ("slim", method)):
        found = summary[phase]
        if "accuracy" in found:
            keys = ("accuracy", "params", "macs", "training_flops", "seconds")
            yield {"method": name, "seed": summary["seed"], **{key: found[key] for key in keys}} | {
                "training_flops_reduction": summary["dense"]["training_flops"] / found["training_flops"],
                "early_bird_epoch": summary["early_bird_epoch"],
            }


def magnitude(given, seed, params, begin_epoch):
    """tfmot's magnitude pruning to `params` parameters that are not zero, from the end of an epoch on; a line."""
    pruning, recipe = _keras.tfmot().sparsity.keras, recipe_of(given, seed)
    dataset = data.load(recipe.dataset, recipe.data_dir, seed=seed)
    steps = dataset.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)
    tf_keras.utils.set_random_seed(seed)
    model = models.build(recipe.network, dataset.input_shape, dataset.classes, keras="tf_keras")
    kernels = sum(weight.shape.num_elements() for weight in model.weights if "kernel" in weight.name)
    sparsity = 1 - (params - (model.count_params() - kernels)) / kernels
    schedule = pruning.PolynomialDecay(
        *(0.0, sparsity, begin_epoch * steps),
        *((begin_epoch + given.pruning_epochs) * steps,),
        frequency=given.pruning_epochs * steps // 20,
    )
    training = tfspline.training_flops(model, recipe.epochs * steps * recipe.batch_size)
    wrapped = pruning.prune_low_magnitude(model, schedule)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapped.compile(recipe.optimizer(), loss, metrics=["accuracy"])
    seconds = tf.timestamp()
    wrapped.fit(
        dataset.train_batches(recipe.batch_size, 0, recipe.augment, steps),
        steps_per_epoch=steps,
        epochs=recipe.epochs,
        shuffle=False,
        verbose=2,
        callbacks=[tf_keras.callbacks.LearningRateScheduler(recipe.learning_rate_at), pruning.UpdatePruningStep()],
    )
    seconds = float(tf.timestamp() - seconds)
    model = pruning.strip_pruning(wrapped)
    model.compile(loss=loss, metrics=["accuracy"])
    small = tfspline.slim(model)
    return {
        "method": "tfmot magnitude, polynomial",
        "seed": seed,
        "accuracy": model.evaluate(dataset.evaluation_batches(1000), verbose=0, return_dict=True)["accuracy"],
        "params": sum(int(np.count_nonzero(weight.numpy())) for weight in model.weights),
        "macs": tfspline.flops(small).macs,
        "training_flops": training,
        "seconds": seconds,
        "training_flops_reduction": 1.0,
        "early_bird_epoch": begin_epoch,
    }


def table(lines):
    """Mean and standard deviation over the seeds, as Markdown."""
    rows = [
        "| method | test accuracy, % | parameters that are not zero | MACs an image | training FLOPs, fewer |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for method in dict.fromkeys(line["method"] for line in lines):
        of = [line for line in lines if line["method"] == method]
        accuracies = [100 * line["accuracy"] for line in of]
        spread = statistics.stdev(accuracies) if len(of) > 1 else float("nan")
        params, macs = (statistics.mean(line[key] for line in of) for key in ("params", "macs"))
        reduction = statistics.mean(line["training_flops_reduction"] for line in of)
        rows.append(
            f"| {method} ({len(of)} seeds) | {statistics.mean(accuracies):.2f} ± {spread:.2f} | {params:,.0f} "
            f"| {macs:,.0f} | {reduction:.2f}x |"
        )
    return "\n".join(rows)


def main(argv):
    """Fills in what is missing in results.jsonl, and prints the table of all."""
    del argv
    given = flags.FLAGS
    print(setting("tf_keras"))
    os.makedirs(given.folder, exist_ok=True)
    path, lines = os.path.join(given.folder, "results.jsonl"), []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]

    def add(line):
        lines.append(line)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)

    for seed in map(int, given.seeds):
        done = {line["method"]: line for line in lines if line["seed"] == seed}
        for i, (method, options) in enumerate(OURS.items()):
            if method not in done:
                recipe = recipe_of(given, seed, baseline=i == 0, **options)
                summary = run(
                    recipe, os.path.join(given.folder, f"{method.replace(', ', '-').replace(' ', '_')}-{seed}"), 2
                )
                done |= {line["method"]: line for line in cells(summary, method)}
                for line in cells(summary, method):
                    add(line)
        if "tfmot magnitude, polynomial" not in done:
            slim = done["spline, polynomial"]
            begin = slim["early_bird_epoch"] or recipe_of(given, seed, schedule="early_bird").search_limit
            add(magnitude(given, seed, slim["params"], begin))
    print(table(lines))


if __name__ == "__main__":
    app.run(main)
