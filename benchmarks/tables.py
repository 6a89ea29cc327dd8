"""Tables of accuracy and training FLOPs by network, dataset, method, ratio and seed, among them the paper's.

python benchmarks/tables.py --scale=cpu --cifar_dir=<folder with train/ and test/>

`grid.py` defines what is compared. Cells run in parallel processes; each writes a line to `results.jsonl`, from which
`table.md` and `accuracy_flops.png` are made. You can stop the command at any time: run again, it skips finished cells
and continues the others where they stopped (except tfmot_magnitude, which starts again).

`--scale=paper` reproduces the paper's tables on all GPUs. `--validation` reports accuracies on images held out of the
training set and never reads the test images; `--grid=ablation`, which compares design choices, always does so.
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
# Fields that do not change results, or that have their own field in a line.
_NOT_OPTIONS = ("dataset", "data_dir", "network", "ratio", "seed", "baseline")

flags.DEFINE_enum("scale", "cpu", list(grid.SCALES), "Size of the trainings.")
flags.DEFINE_enum("grid", "methods", list(grid.GRIDS), "What to compare: methods, or design choices of tfspline.")
flags.DEFINE_list("datasets", None, "Only these datasets.")
flags.DEFINE_list("networks", None, "Only these networks.")
flags.DEFINE_list("methods", None, "Only these methods.")
flags.DEFINE_list("ratios", None, "Only these, for methods with a ratio.")
flags.DEFINE_list("seeds", None, "Seeds; by default, those of the scale.")
flags.DEFINE_string("folder", None, "Folder for runs and results; by default, runs/tables-<grid>-<scale>[-validation].")
flags.DEFINE_string("cifar_dir", None, "CIFAR-10 as an image folder; by default, keras.datasets downloads it.")
flags.DEFINE_string("imagenet_dir", None, "ImageNet as an image folder, for --scale=paper.")
flags.DEFINE_bool("validation", False, "Report accuracies on images held out of the training set.")
flags.DEFINE_integer("jobs", None, "Parallel processes, which share the cores; by default, those of the scale.", 1)
flags.DEFINE_bool("draw_only", False, "Only make the table and the picture, from existing lines.")


def share_cores(jobs: int) -> None:
    """Limit TensorFlow to one process's share of the cores."""
    tf.get_logger().setLevel("ERROR")  # warnings would break the progress bar
    threads = max(1, os.cpu_count() // jobs)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def work(cell: grid.Cell, folder: str, like: dict | None) -> list[dict]:
    """Run or continue a cell and return its lines. `like` is the line of `cell.like`."""
    keras_named(cell.recipe.keras).backend.clear_session()
    dataset = _dataset(**{name: getattr(cell.recipe, name) for name in _OF_DATASET})
    if cell.like:
        found = magnitude.run(cell.recipe, dataset, like["params"], like["pruned_epoch"])
        return [_line(cell.key, cell.recipe, like | found | {"prune_seconds": 0.0})]
    search_dir = cell.search and os.path.join(folder, cell.search.name)
    if search_dir and not os.path.exists(os.path.join(search_dir, "summary.json")):
        search_dir = None  # the cell was not selected
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


# Cells are ordered by seed and dataset, and an image folder takes longer to read than to train on.
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
    """Return the options of a recipe that differ from the defaults, as flags, without those that identify cells."""
    defaults = Recipe(ratio=0.5).as_flags()
    given = recipe.as_flags().items()
    return {name: text for name, text in given if name not in _NOT_OPTIONS and defaults.get(name) != text}


def run_grid(cells: list[grid.Cell], folder: str, jobs: int = 1) -> dict[str, str]:
    """Run the cells that have no line yet and return the failures, name of the cell -> error message.

    Raises:
        ValueError: an existing line was made with other options.
    """
    done = results_in(folder)
    _check_options(cells, done)
    waiting = [cell for cell in cells if not done.find(**cell.key._asdict())]
    covered = {key for cell in waiting for key in cell.keys[1:]}
    waiting = [cell for cell in waiting if cell.key not in covered]
    unfinished, failed = {key for cell in waiting for key in cell.keys}, {}
    shares = {cell: round(1000 * cell.cost) for cell in waiting}  # integers, since a sum of floats may miss the total
    bar = tqdm(total=sum(shares.values()), smoothing=0, bar_format="{l_bar}{bar}| {elapsed} elapsed, {remaining} left")
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
                cell, error = ready, f"needs {lost}, which has no result"
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
    """Return the lines in a folder."""
    return Results(folder, *grid.Key._fields)


def _check_options(cells, done):
    for cell in cells:
        line, expected = done.find(**cell.key._asdict()), options_of(cell.recipe)
        if line and line["options"] != expected:
            raise ValueError(
                f"The line of {cell.name} in {done.path!r} was made with the options {line['options']}, which differ "
                f"from {expected}. Choose another --folder or remove the line."
            )


def _clear(run_dir, keep_search):
    """Delete a finished run, except for the search that other cells reuse."""
    if not keep_search:
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    for entry in os.scandir(run_dir) if os.path.isdir(run_dir) else ():
        if entry.name not in ("flags.cfg", "history.jsonl", "summary.json", "checkpoints"):
            shutil.rmtree(entry.path) if entry.is_dir() else os.remove(entry.path)


def chosen(given) -> list[grid.Cell]:
    """Return the cells selected by the flags."""
    scale, methods = grid.SCALES[given.scale](given.cifar_dir, given.imagenet_dir), grid.GRIDS[given.grid]
    held_out = {"validation_split": HELD_OUT, "evaluate": "validation"} if given.validation else {}
    cells = grid.cells(scale, methods, [int(seed) for seed in given.seeds or ()], **held_out)
    for flag, field in (("datasets", "dataset"), ("networks", "network"), ("methods", "method"), ("ratios", "ratio")):
        if given[flag].value is not None:
            known = dict.fromkeys(str(getattr(cell.key, field)) for cell in cells)
            if unknown := [name for name in given[flag].value if name not in known]:
                raise app.UsageError(f"Expected --{flag} among: {', '.join(known)}. Received: {', '.join(unknown)}")
            of_all = ("None",) if flag == "ratios" else ()
            cells = [cell for cell in cells if str(getattr(cell.key, field)) in (*given[flag].value, *of_all)]
    return cells


def publish(folder: str, methods: list[str]) -> None:
    """Write `table.md` and `accuracy_flops.png` from the lines in a folder."""
    if lines := results_in(folder).rows:
        text = grid_report.table(lines, methods)
        with replacing(os.path.join(folder, "table.md")) as file:
            file.write(text)
        grid_report.draw(lines, methods).savefig(os.path.join(folder, "accuracy_flops.png"), dpi=150)
        print(text)


def main(argv):
    """Run the missing cells, then write the table and the picture."""
    del argv
    given = flags.FLAGS
    given.validation = given.validation or given.grid == "ablation"
    folder = given.folder or f"runs/tables-{given.grid}-{given.scale}{'-validation' * given.validation}"
    failed = {}
    if not given.draw_only:
        print(setting("keras", "tf_keras"))
        jobs = given.jobs or grid.JOBS[given.scale]
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # handled like Ctrl-C
        try:
            failed = run_grid(chosen(given), folder, jobs)
        except KeyboardInterrupt:
            sys.exit(f"\nstopped; run the same command to continue from the results in {folder}")
    publish(folder, list(grid.GRIDS[given.grid]))
    if failed:
        sys.exit("\n".join(["failed:", *(f"  {name}: {error}" for name, error in failed.items())]))


if __name__ == "__main__":
    app.run(main)
