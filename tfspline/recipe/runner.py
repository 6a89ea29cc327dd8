"""Run a recipe in a folder. A run can be interrupted at any moment and continued."""

import contextlib
import os

import tensorflow as tf

from tfspline._utils.workers import is_chief, wait
from tfspline.datasets import Dataset
from tfspline.datasets.image_files import naming_files
from tfspline.recipe.phases import Phases
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.stopping import Stopper
from tfspline.recipe.training import Training, strategy_of


def run(
    recipe: Recipe,
    run_dir: str | os.PathLike,
    verbose: int = 1,
    search_dir: str | os.PathLike | None = None,
    publish: bool = True,
    dataset: Dataset | None = None,
) -> dict:
    """Run a recipe, or continue it where it was interrupted, with the same result.

    A killed run continues after its last recorded epoch. Ctrl-C and SIGTERM end it after the current step, from which
    it continues. A finished run is not changed. With `strategy="multi_worker"`, every worker calls this with its own
    TF_CONFIG and the same shared `run_dir`; only the chief writes. docs/recipe.md lists the files in `run_dir`.

    Args:
        recipe: the settings.
        run_dir: a new folder, or that of an interrupted or finished run of the same recipe.
        verbose: as in Keras' `fit`: 0 is silent, 1 shows progress bars, 2 prints one line per epoch.
        search_dir: the folder of another run with equal `search_fields`, whose dense search is copied. Ignored if
            `run_dir` already contains epochs of a search.
        publish: False leaves out `serving/`, the pictures, `distances.npz` and `report.html`.
        dataset: what `recipe.load_dataset()` returns, if several runs share it.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError, OSError: the data, `run_dir` or `search_dir` does not fit the recipe; nothing was written.
        BlockingIOError: another process is using `run_dir`.
        OSError: a file could not be written; earlier files are unchanged.
        ValueError: the loss or a weight is not finite, or pruning cannot meet the budget.
        Stopped: a KeyboardInterrupt, on Ctrl-C or SIGTERM.
        ConnectionError: another worker has ended.

    Example:
        >>> import tempfile
        >>> recipe = Recipe(network="mlp", epochs=10, ratio=0.5, learning_rate=0.02)
        >>> summary = run(recipe, tempfile.mkdtemp(), verbose=0)
        >>> summary["training_flops_reduction"] > 1
        True
    """
    strategy = strategy_of(recipe)
    folder = RunDir(os.fspath(run_dir), recipe.as_flags(), is_chief(strategy))
    with contextlib.closing(folder), naming_files(), _naming_lost_workers(), Stopper() as stopper:
        if os.path.isdir(folder.path):
            folder.lock()  # a new folder is locked when it is created, after all checks
        finished = folder.is_finished
        wait(strategy)  # until all workers have seen the folder in the same state
        if not finished:
            training = Training(recipe, folder, verbose, publish, dataset, stopper, strategy)
            source = None
            if search_dir is not None and not folder.last_epoch("search"):
                source = _search_source(os.fspath(search_dir), recipe)
            Phases(training).run(source)
            wait(strategy)  # a worker that ends terminates the others
        folder.tidy()
    return folder.summary()


@contextlib.contextmanager
def _naming_lost_workers():
    try:
        yield
    except tf.errors.UnavailableError as error:
        raise ConnectionError(
            "Another worker has ended; see its output. Start all workers again with the same flags to continue after "
            "the last recorded epoch."
        ) from error


def _search_source(path, recipe):
    """The run in a folder, after checking that its search is finished and equal to that of the recipe."""
    source = RunDir.of(path)
    theirs, ours = (of.search_fields() for of in (Recipe.from_flags(source.flags), recipe))
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        expected, received = (", ".join(f"{name}={of.get(name)!r}" for name in names) for of in (theirs, ours))
        raise ValueError(
            f"Expected a recipe with the search of search_dir={path!r}: {expected}. Received: {received}. "
            "Use the same flags as that run, or leave out search_dir."
        )
    epochs, phases = source.last_epoch("search"), [row["phase"] for row in source.history]
    if not epochs or phases[-1] == "search":
        state = f"only {epochs} epochs of it" if epochs else "no epoch of it"
        raise ValueError(
            f"Expected search_dir={path!r} to contain a finished search. It contains {state}. Finish "
            "that run first: start it again with its flags."
        )
    if not source.is_whole("search"):
        raise ValueError(
            f"The checkpoint of the search in search_dir={path!r} is missing or damaged. Leave out "
            "search_dir to search again."
        )
    return source
