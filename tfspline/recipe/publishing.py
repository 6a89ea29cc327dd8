"""What a run that is over leaves to be looked at and to be served, made again where it is missing."""

import contextlib
import importlib.util
import os
import shutil

from absl import logging

from tfspline._keras import load_model
from tfspline.deployment.saved_model import export
from tfspline.deployment.versions import remove_leftovers
from tfspline.pruning.planning import Plan
from tfspline.recipe import report
from tfspline.recipe.run_dir import SEAL, RunDir
from tfspline.recipe.training import Training

_NETWORKS = ("dense", "slim", "weights_pruned")
_RESULTS = ("history.jsonl", "summary.json", "plan.json", *(f"{name}.keras" for name in _NETWORKS))
_SERVED = os.path.join("serving", "1")


def complete(folder: RunDir, publish: bool) -> bool:
    """Whether nothing is left to do for a run. What is lost of it and cannot be made again is logged.

    Args:
        folder: of the run.
        publish: whether it is to be published.

    Raises:
        FileNotFoundError: the run is over, and one of its results is lost.
    """
    lost = folder.lost()
    if folder.summary() is None or lost is None:
        return False
    if results := [name for name in lost if name in _RESULTS]:
        raise FileNotFoundError(
            f"Expected all results of the run that is over in {folder.path!r}. Received: missing or changed: "
            f"{', '.join(results)}. Put them back, or remove summary.json to train anew from the end of the search"
        )
    if forgone := [name for name in lost if not _served(name) and not _drawn(name)]:
        logging.warning("Missing or changed in %s, and not made again: %s", folder.path, ", ".join(forgone))
    return not publish or (len(forgone) == len(lost) and os.path.exists(folder.file("report.html")))


def publish(training: Training) -> None:
    """Makes `serving/`, and the pictures with `distances.npz` and `report.html`, of a run that is over, unless they are
    all there.

    Raises:
        OSError, ValueError: what they are made of is missing or damaged.
    """
    folder, lost = training.folder, training.folder.lost() or []
    remove_leftovers(folder.file("serving"), age=0)  # nobody else writes here
    if any(map(_served, lost)):
        _withdraw_export(folder)
    export_missing = not os.path.exists(folder.file(_SERVED))
    pictures_missing = any(map(_drawn, lost)) or not os.path.exists(folder.file("report.html"))
    if not (export_missing or pictures_missing):
        return
    paths = {name: folder.file(f"{name}.keras") for name in _NETWORKS}
    there = {name: path for name, path in paths.items() if os.path.exists(path)}
    trained = {name: load_model(training.keras, path) for name, path in there.items()}
    summary = folder.summary()
    if export_missing:
        _export(training, summary, trained)
    if pictures_missing:
        if importlib.util.find_spec("matplotlib") is None:
            logging.warning("matplotlib is not installed, so no pictures are drawn: pip install 'tfspline[plots]'")
        else:
            from tfspline.recipe import pictures  # matplotlib is slow to import, and only needed here

            pictures.draw(folder, training.data, training.early_bird(), summary, trained)
        report.write(folder.path)


def withdraw(folder: RunDir) -> None:
    """Removes what was published of an earlier end of a run that is trained again."""
    _withdraw_export(folder)
    with contextlib.suppress(FileNotFoundError):
        os.remove(folder.file("report.html"))  # without which pictures are made again, too


def _withdraw_export(folder):
    if os.path.exists(folder.file(_SERVED)):
        shutil.rmtree(folder.file(_SERVED))


def _export(training, summary, trained):
    """Writes the slim network for TensorFlow Serving, with what is known of it."""
    folder = training.folder
    export(
        trained["slim"],
        folder.file("serving"),
        version=1,
        class_names=training.data.class_names,
        plan=Plan.load(folder.file("plan.json"), trained["dense"]),
        metadata={
            "accuracy": {name: summary[name].get("accuracy") for name in ("dense", "slim")},
            "evaluated_on": summary["evaluate"],
        },
    )


def _served(name):
    return name.startswith(_SERVED + os.sep)


def _drawn(name):
    return name in ("report.html", "distances.npz", SEAL) or (name.endswith(".png") and os.sep not in name)
