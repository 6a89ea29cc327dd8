"""The whole recipe from the command line: dense search, early bird, pruning, retraining, report.

python train.py --flagfile=configs/quickstart.cfg
"""

import dataclasses
import os
import pathlib
import shlex
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from tfspline.datasets.augment import AUGMENTATIONS  # noqa: E402
from tfspline.recipe.recipe import Recipe  # noqa: E402
from tfspline.recipe.recipe_checks import RETRAIN_FROM, SCHEDULES, STRATEGIES  # noqa: E402
from tfspline.recipe.report import table  # noqa: E402
from tfspline.recipe.runner import run  # noqa: E402
from tfspline.recipe.stopping import Stopped  # noqa: E402

flags.DEFINE_string(
    "network",
    Recipe.network,
    "mlp; vgg8, vgg11, vgg13, vgg16, vgg19, resnet{6n+2} such as resnet20 or resnet56, preresnet{9n+2} such as"
    " preresnet101, for small images; resnet18, resnet50, mobilenetv2, with the stems of ImageNet.",
)
flags.DEFINE_float("width", Recipe.width, "Multiplies the channels of every hidden layer.")
flags.DEFINE_enum("keras", Recipe.keras, ["keras", "tf_keras"], "Train with Keras 3, or with tf_keras.")
flags.DEFINE_enum(
    "strategy",
    Recipe.strategy,
    STRATEGIES,
    "mirrored: train on all GPUs, or on all logical CPUs where there is none; each takes a share of --batch_size."
    " multi_worker: train on the GPUs, or CPUs, of all workers that the environment variable TF_CONFIG names, with"
    " --keras=tf_keras.",
)
flags.DEFINE_integer("seed", Recipe.seed, "Seed of weights, order and augmentation.")
flags.DEFINE_bool(
    "deterministic",
    Recipe.deterministic,
    "The same weights bit for bit whenever it is run on this machine, interrupted or not; slower on a GPU.",
)

flags.DEFINE_string("dataset", Recipe.dataset, "digits, fashion_mnist, cifar10, cifar100, toy2d or image_folder.")
flags.DEFINE_string("data_dir", Recipe.data_dir, "Its files; image_folder: has train/ and test/.")
flags.DEFINE_list("image_size", Recipe.image_size, "HEIGHT,WIDTH that images are resized to.")
flags.DEFINE_float("validation_split", Recipe.validation_split, "Share of training images to validate on.")
flags.DEFINE_integer("train_images", Recipe.train_images, "How many of the others to train on. Default: all.")
flags.DEFINE_enum(
    "evaluate",
    Recipe.evaluate,
    ["test", "validation"],
    "The images that accuracies in the end are of. Choices are to be made on validation images.",
)
flags.DEFINE_enum("augment", Recipe.augment, [*AUGMENTATIONS], "Random shifts or crops, mirroring.")

flags.DEFINE_integer("epochs", Recipe.epochs, "Epochs in all, the search included.")
flags.DEFINE_integer("batch_size", Recipe.batch_size, "Images a step.")
flags.DEFINE_integer("steps_per_epoch", Recipe.steps_per_epoch, "Cuts epochs short. Default: all images once.")
flags.DEFINE_float("learning_rate", Recipe.learning_rate, "Learning rate of the first epoch (SGD).")
flags.DEFINE_float("momentum", Recipe.momentum, "Momentum of SGD.")
flags.DEFINE_float(
    "weight_decay",
    Recipe.weight_decay,
    "Of the kernels; as in papers, where momentum acts on the decay, too.",
)
flags.DEFINE_enum("lr_schedule", Recipe.lr_schedule, ["cosine", "step"], "Cosine to 0, or --lr_drops.")
flags.DEFINE_list("lr_drops", Recipe.lr_drops, "Epochs after which the learning rate drops, such as 80,120.")
flags.DEFINE_float("lr_drop_factor", Recipe.lr_drop_factor, "What a drop multiplies the learning rate by.")

flags.DEFINE_float(
    "gamma_l1",
    Recipe.gamma_l1,
    "Weight of the L1 norm of BatchNormalization's gammas in the loss of the search, as in network slimming; 0: none.",
)
flags.DEFINE_integer(
    "search_epochs",
    Recipe.search_epochs,
    "Prune after this many epochs if no early bird was found before. Default: a fifth of --epochs, but enough"
    " for the early bird to compare, which takes one more than --eb_lookback. 0: prune the network as it is"
    " initialised; its gammas are all equal then, and"
    " bn_scale has nothing to go by.",
)
flags.DEFINE_enum("eb_metric", Recipe.eb_metric, ["partition", "mask"], "What has to settle.")
flags.DEFINE_float("eb_threshold", Recipe.eb_threshold, "Distance below which it has; default: the metric's.")
flags.DEFINE_integer("eb_lookback", Recipe.eb_lookback, "Epochs to compare with; default: the metric's.")
flags.DEFINE_integer("eb_every", Recipe.eb_every, "Look for the early bird every so many steps, not once an epoch.")

flags.DEFINE_enum(
    "schedule",
    Recipe.schedule,
    SCHEDULES,
    "When units go: all at once, at the early bird; a few at a time, from the first step on or from the early bird on.",
)
flags.DEFINE_integer(
    "pruning_epochs",
    Recipe.pruning_epochs,
    "Epochs in which a gradual schedule gets to --ratio. Default: a fifth of --epochs.",
)
flags.DEFINE_string(
    "criterion",
    Recipe.criterion,
    "Which units go first: spline, spline_data, spline_affine, bn_scale, l1, l2, fpgm, taylor, snip, synflow, random.",
)
flags.DEFINE_enum("scope", Recipe.scope, ["layer", "global"], "Rank units within a layer, or across layers.")
flags.DEFINE_float("ratio", Recipe.ratio, "Budget: the share of units that go.")
flags.DEFINE_float("max_flops", Recipe.max_flops, "Budget: the largest share of the forward FLOPs that stays.")
flags.DEFINE_float(
    "training_flops_reduction",
    Recipe.training_flops_reduction,
    "Budget: how many times fewer FLOPs than the dense training the search and the retraining take together.",
)
flags.DEFINE_integer("min_units", Recipe.min_units, "Units that every layer keeps.")
flags.DEFINE_enum(
    "compensate",
    Recipe.compensate,
    ["none", "merge", "refit"],
    "What is left takes over what went, on training images, before it is trained on.",
)
flags.DEFINE_enum(
    "retrain_from",
    Recipe.retrain_from,
    RETRAIN_FROM,
    "Weights that the slim network is trained on with: those it was left with; those that its units had before the"
    " search, as a lottery ticket; fresh ones. With the latter two it is trained for all --epochs, from epoch 0 of the"
    " learning rate on.",
)

flags.DEFINE_bool("baseline", Recipe.baseline, "Train the dense network to the end as well, to compare with.")
flags.DEFINE_bool(
    "weight_pruning",
    Recipe.weight_pruning,
    "Train a network to the end as well, to compare with, that lost its smallest single weights where the slim one lost"
    " units, and has as many parameters.",
)
flags.DEFINE_string("run_dir", None, "Where the run is kept. Default: runs/<config>-<seed>.")
flags.DEFINE_string(
    "search_dir",
    None,
    "A run of other choices after the same search, which is taken over from there in place of one of its own.",
)
flags.DEFINE_integer("verbose", 1, "0: silent, 1: progress bars, 2: one line an epoch.", 0, 2)


def main(argv):
    """Runs the recipe that the flags describe, and prints its table."""
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {' '.join(argv[1:])}")
    try:
        values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Recipe)}
        lists = {name: _integers(name, values[name]) for name in ("image_size", "lr_drops")}
        recipe = Recipe(**values | lists)
        run_dir = flags.FLAGS.run_dir or os.path.join("runs", f"{_config(recipe)}-{recipe.seed}")
        summary = run(recipe, run_dir, flags.FLAGS.verbose, flags.FLAGS.search_dir)
    except (ValueError, TypeError, OSError, tf.errors.ResourceExhaustedError) as error:
        logging.debug("Where it was raised (shown with --verbosity=1):", exc_info=True)
        sys.exit(f"train.py: {error}")
    except Stopped as stopped:
        print(f"\ntrain.py: {stopped}; to go on:\n{shlex.join(['python', *sys.argv])}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    print(f"{table(summary)}\n\nAll of it is in {run_dir}")


def _integers(name, texts):
    try:
        return None if texts is None else tuple(int(text) for text in texts)
    except ValueError:
        raise ValueError(f"Expected {name} to be integers. Received: {','.join(texts)}") from None


def _config(recipe):
    # absl takes --flagfile out of the arguments without keeping its value.
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, _, path = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "flagfile":
            return pathlib.Path(path or following).stem
    return f"{recipe.network}-{recipe.dataset}"


if __name__ == "__main__":
    app.run(main)
