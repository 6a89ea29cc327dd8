"""Cost of slimming: planning and slimming compared with cloning the model, and scoring a layer of many units.

python benchmarks/slimming.py [--keras=keras] [--networks=DenseNet121,DenseNet169,DenseNet201] [--criteria=l1,spline]
"""

import concurrent.futures
import inspect
import multiprocessing
import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from common import peak, seconds, setting  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras  # noqa: E402

flags.DEFINE_enum("keras", "keras", ["keras", "tf_keras"], "The Keras version.")
flags.DEFINE_list("networks", None, "Networks of keras.applications; all by default, may be empty.")
flags.DEFINE_integer("repeats", 3, "Measurements of each time; the median is reported.")
flags.DEFINE_list(
    "criteria",
    ["random", "l1", "bn_scale", "fpgm", "spline", "spline_data", "spline_affine"],
    "Criteria to measure; may be empty.",
)
flags.DEFINE_integer("units", 4096, "Units of the layer to score.")

SAMPLES = 512  # inputs for data-driven criteria


def slimmed(model):
    """Remove half of the units of every layer."""
    return tfspline.prune(model, 0.5, criterion="l1")


def slimming(keras, names, repeats):
    """Print a row per network with the times of cloning and of planning and slimming, then medians and growth.

    The first slimming is also shown separately: it is slower because its weights have new shapes, for which TensorFlow
    makes kernels, while those of the clone are known from building the model.
    """
    print(f"{'network':20} {'layers':>6} {'params':>12} {'clone':>8} {'slim':>8} {'ratio':>6} {'first':>6} ms/layer")
    layers, slims, ratios, firsts = {}, {}, [], []
    for name in names:
        keras.backend.clear_session()
        model = getattr(keras.applications, name)(weights=None)
        pairs = [(seconds(keras.models.clone_model, model), seconds(slimmed, model)) for _ in range(repeats)]
        clone, slims[name] = map(statistics.median, zip(*pairs, strict=True))
        of_pairs = [slim / clone for clone, slim in pairs]
        ratios.append(statistics.median(of_pairs))
        firsts.append(of_pairs[0])
        layers[name] = len(model.layers)
        print(
            f"{name:20} {layers[name]:6} {model.count_params():12,} {clone:7.2f}s {slims[name]:7.2f}s "
            f"{ratios[-1]:5.2f}x {firsts[-1]:5.2f}x {1000 * slims[name] / layers[name]:10.2f}",
            flush=True,
        )
        del model
    print(
        f"{len(names)} networks: planning and slimming takes {statistics.median(ratios):.2f}x the time of clone_model "
        f"({min(ratios):.2f} to {max(ratios):.2f}), the first time {statistics.median(firsts):.2f}x "
        f"({min(firsts):.2f} to {max(firsts):.2f})"
    )
    family = [name for name in names if name.startswith("DenseNet")]
    if len(family) > 1:
        depth, time_taken = (np.log([of[name] for name in family]) for of in (layers, slims))
        print(f"DenseNets: the time is proportional to layers^{np.polyfit(depth, time_taken, 1)[0]:.2f}")


def score(keras_name, layer, criterion, units):
    """Return the time to plan a model with one large layer in seconds, and the peak memory before and after."""
    keras = _keras.keras_named(keras_name)
    layers, rng = keras.layers, np.random.default_rng(0)
    if layer == "dense":
        head = [keras.Input((units,)), layers.Dense(units)]
    else:
        head = [keras.Input((4, 4, units // 8)), layers.Conv2D(units, 3)]
    pooled = [] if layer == "dense" else [layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*head, layers.BatchNormalization(), layers.ReLU(), *pooled, layers.Dense(10)])
    x = rng.normal(size=(SAMPLES, *model.input_shape[1:])).astype("float32")
    data = x if criterion in ("spline_data", "spline_affine") else None
    before = peak()
    took = seconds(tfspline.plan, model, 0.5, criterion=criterion, data=data)
    return took, before, peak()


def scoring(keras_name, names, units):
    """Print a row per criterion, each measured in a new process."""
    print(f"\nscoring a layer of {units:,} units{'':4} {'seconds':>8} {'peak memory':>12} {'peak before':>13}")
    context = multiprocessing.get_context("spawn")
    for layer in ("dense", "conv"):
        for name in names:
            with concurrent.futures.ProcessPoolExecutor(1, context) as process:
                took, before, after = process.submit(score, keras_name, layer, name, units).result()
            print(f"{layer:6} {name:24} {took:8.2f}s {after / 1e9:9.2f} GB {before / 1e9:10.2f} GB", flush=True)


def main(argv):
    """Measure slimming and scoring."""
    del argv
    given = flags.FLAGS
    keras = _keras.keras_named(given.keras)
    print(setting(given.keras))
    everything = [name for name, value in vars(keras.applications).items() if inspect.isfunction(value)]
    slimmed(keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)]))  # warm-up
    names = everything if given.networks is None else given.networks
    if names:
        slimming(keras, names, given.repeats)
    if given.criteria:
        scoring(given.keras, given.criteria, given.units)


if __name__ == "__main__":
    app.run(main)
