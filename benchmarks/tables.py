"""The paper's tables and more: accuracy and training FLOPs by network, dataset, method, ratio and seed.

python benchmarks/tables.py --scale=cpu --cifar_dir=<folder with train/ and test/>

What is compared stands in `grid.py`. Cells run beside each other, each in a process of its own; each leaves a line in
`results.jsonl`, and what is there is not done again. Stop it whenever you like: the same command goes on, inside the
training that was cut (tfmot_magnitude's begins anew). `table.md` and `accuracy_flops.png` are made of the lines.
`--scale=paper` is the full thing, on all GPUs. Choices are made with `--validation`, on images held out of the training
set, where the test images are never looked at; `--grid=ablation` compares choices, always so.
"""

import functools
import os
import shutil
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import grid  # noqa: E402
import grid_report  # noqa: E402
import magnitude  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from common import Results, setting  # noqa: E402
from tqdm import tqdm  # noqa: E402
from workers import Workers  # noqa: E402

from tfspline._keras import keras_named  # noqa: E402
from tfspline._utils.files import replacing  # noqa: E402
from tfspline.recipe.recipe import Recipe  # noqa: E402
from tfspline.recipe.runner import run  # noqa: E402

HELD_OUT = 0.1  # share of the training images, for --validation
_OF_DATASET = ("dataset", "data_dir", "image_size", "validation_split", "train_images", "seed")
# What does not make results others, or stands in a line by itself.
_NOT_OPTIONS = ("dataset", "data_dir", "network", "ratio", "seed", "baseline")

flags.DEFINE_enum("scale", "cpu", list(grid.SCALES), "How large the trainings are.")
flags.DEFINE_enum("grid", "methods", list(grid.GRIDS), "What is compared: methods, or choices inside of ours.")
flags.DEFINE_list("datasets", None, "Only these.")
flags.DEFINE_list("networks", None, "Only these.")
flags.DEFINE_list("methods", None, "Only these.")
flags.DEFINE_list("ratios", None, "Only these, of methods that have a ratio.")
flags.DEFINE_list("seeds", None, "Seeds. Default: those of the scale.")
flags.DEFINE_string("folder", None, "Where runs and results go. Default: runs/tables-<grid>-<scale>[-validation].")
flags.DEFINE_string("cifar_dir", None, "CIFAR-10 as an image folder. Default: keras.datasets downloads it.")
flags.DEFINE_string("imagenet_dir", None, "ImageNet as an image folder, for --scale=paper.")
flags.DEFINE_bool("validation", False, "Train without a share of the images, and report accuracies of these only.")
flags.DEFINE_integer("jobs", None, "Processes beside each other, which share the cores. Default: the scale's.", 1)
flags.DEFINE_bool("draw_only", False, "Make table and picture of the lines that are there.")


def share_cores(jobs: int) -> None:
    """Leaves TensorFlow the threads of a process that is one of so many."""
    tf.get_logger().setLevel("ERROR")  # its warnings would tear the bar
    threads = max(1, os.cpu_count() // jobs)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def work(cell: grid.Cell, folder: str, like: dict | None) -> list[dict]:
    """Carries a cell out, or goes on with it; returns its lines. `like` is the line of `cell.like`."""
    keras_named(cell.recipe.keras).backend.clear_session()
    dataset = _dataset(**{name: getattr(cell.recipe, name) for name in _OF_DATASET})
    if cell.like:
        found = magnitude.run(cell.recipe, dataset, like["params"], like["pruned_epoch"])
        return [_line(cell.key, cell.recipe, like | found | {"prune_seconds": 0.0})]
    search_dir = cell.search and os.path.join(folder, cell.search.name)
    if search_dir and not os.path.exists(os.path.join(search_dir, "summary.json")):
        search_dir = None  # it was not among the cells that were asked for
    summary = run(cell.recipe, os.path.join(folder, cell.name), 0, search_dir, publish=False, dataset=dataset)
    both = {
        **{name: summary[name] for name in ("early_bird_epoch", "search_epochs", "pruned_epoch")},
        "prune_seconds": summary["seconds"]["prune"],
        "training_flops_reduction": summary["training_flops_reduction"],
    }
    phases = ("dense", "slim") if cell.recipe.baseline else ("slim",)
    lines = [_line(key, cell.recipe, both | summary[of]) for key, of in zip(cell.keys, phases, strict=True)]
    if cell.recipe.baseline:
        lines[0] |= {"training_flops_reduction": 1.0, "prune_seconds": 0.0}
    return lines


# Cells come by seed and dataset, and an image folder takes longer to read than to train on.
@functools.lru_cache(maxsize=1)
def _dataset(**fields):
    return Recipe(ratio=0.5, **fields).load_dataset()


def _line(key, recipe, found):
    line = key._asdict() | {"width": recipe.width, "epochs": recipe.epochs}
    line["accuracy" if recipe.evaluate == "test" else "validation_accuracy"] = found["accuracy"]
    numbers = ("params", "macs", "training_flops", "training_flops_reduction", "early_bird_epoch", "search_epochs")
    line |= {name: found[name] for name in (*numbers, "pruned_epoch", "seconds", "prune_seconds")}
    line["threads"] = tf.config.threading.get_intra_op_parallelism_threads()
    return line | {"options": options_of(recipe)}


def options_of(recipe: Recipe) -> dict[str, str]:
    """What a recipe sets other than by default, as flags, except for what tells cells apart."""
    defaults = Recipe(ratio=0.5).as_flags()
    given = recipe.as_flags().items()
    return {name: text for name, text in given if name not in _NOT_OPTIONS and defaults.get(name) != text}


def run_grid(cells: list[grid.Cell], folder: str, jobs: int = 1) -> dict[str, str]:
    """Carries out the cells that have no line yet; returns what failed, name of the cell -> why.

    Raises:
        ValueError: a line that is there was made with other options.
    """
    done = results_in(folder)
    _check_options(cells, done)
    waiting = [cell for cell in cells if not done.find(**cell.key._asdict())]
    covered = {key for cell in waiting for key in cell.keys[1:]}
    waiting = [cell for cell in waiting if cell.key not in covered]
    unfinished, failed = {key for cell in waiting for key in cell.keys}, {}
    shares = {cell: round(1000 * cell.cost) for cell in waiting}  # of a float sum, the end would be missed
    bar = tqdm(total=sum(shares.values()), smoothing=0, bar_format="{l_bar}{bar}| {elapsed} gone, {remaining} left")
    with bar, Workers(jobs, work, functools.partial(share_cores, jobs)) as workers:
        while waiting or workers.busy:
            ready = next((cell for cell in waiting if not any(need.key in unfinished for need in cell.needs)), None)
            if ready and workers.free:
                waiting.remove(ready)
                lost = next((need.name for need in ready.needs if need.name in failed), None)
                like = ready.like and done.find(**ready.like.key._asdict())
                if ready.like and not like:
                    lost = ready.like.name
                if lost is None:
                    workers.start(ready, ready, folder, like)
                    continue
                cell, error = ready, f"needs {lost}, which is not done"
            else:
                cell, lines, error = workers.wait()
            unfinished -= set(cell.keys)
            bar.update(shares[cell])
            if error:
                failed[cell.name] = error
                bar.write(f"{cell.name}: {error}")
                continue
            for line in lines:
                done.add(line)
            _clear(os.path.join(folder, cell.name), keep_search=cell.search is None and cell.recipe.search_limit > 0)
    return failed


def results_in(folder: str) -> Results:
    """The lines in a folder."""
    return Results(folder, *grid.Key._fields)


def _check_options(cells, done):
    for cell in cells:
        line, expected = done.find(**cell.key._asdict()), options_of(cell.recipe)
        if line and line["options"] != expected:
            raise ValueError(
                f"Expected the options that {cell.name} in {done.path!r} was made with: {line['options']}. Received: "
                f"{expected}. Take another folder, or remove the line."
            )


def _clear(run_dir, keep_search):
    """Removes a run that is over, but for the search that others take over."""
    if not keep_search:
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    for entry in os.scandir(run_dir) if os.path.isdir(run_dir) else ():
        if entry.name not in ("flags.cfg", "history.jsonl", "summary.json", "checkpoints"):
            shutil.rmtree(entry.path) if entry.is_dir() else os.remove(entry.path)


def chosen(given) -> list[grid.Cell]:
    """The cells that the flags ask for."""
    scale, methods = grid.SCALES[given.scale](given.cifar_dir, given.imagenet_dir), grid.GRIDS[given.grid]
    held_out = {"validation_split": HELD_OUT, "evaluate": "validation"} if given.validation else {}
    cells = grid.cells(scale, methods, [int(seed) for seed in given.seeds or ()], **held_out)
    for flag, field in (("datasets", "dataset"), ("networks", "network"), ("methods", "method"), ("ratios", "ratio")):
        if given[flag].value is not None:
            known = dict.fromkeys(str(getattr(cell.key, field)) for cell in cells)
            if unknown := [name for name in given[flag].value if name not in known]:
                raise app.UsageError(f"Expected {flag} out of: {', '.join(known)}. Received: {', '.join(unknown)}")
            of_all = ("None",) if flag == "ratios" else ()
            cells = [cell for cell in cells if str(getattr(cell.key, field)) in (*given[flag].value, *of_all)]
    return cells


def publish(folder: str, methods: list[str]) -> None:
    """Makes `table.md` and `accuracy_flops.png` of the lines in a folder."""
    if lines := results_in(folder).rows:
        text = grid_report.table(lines, methods)
        with replacing(os.path.join(folder, "table.md")) as file:
            file.write(text)
        grid_report.draw(lines, methods).savefig(os.path.join(folder, "accuracy_flops.png"), dpi=150)
        print(text)


def main(argv):
    """Carries out what is missing, then draws all that is there."""
    del argv
    given = flags.FLAGS
    given.validation = given.validation or given.grid == "ablation"
    folder = given.folder or f"runs/tables-{given.grid}-{given.scale}{'-validation' * given.validation}"
    failed = {}
    if not given.draw_only:
        print(setting("keras", "tf_keras"))
        jobs = given.jobs or grid.JOBS[given.scale]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        try:
            failed = run_grid(chosen(given), folder, jobs)
        except KeyboardInterrupt:
            sys.exit(f"\nstopped; what is done is in {folder}, and the same command goes on")
    publish(folder, list(grid.GRIDS[given.grid]))
    if failed:
        sys.exit("\n".join(["not done:", *(f"  {name}: {error}" for name, error in failed.items())]))


if __name__ == "__main__":
    app.run(main)
