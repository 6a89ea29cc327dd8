"""Results for people and for serving: SavedModel, pictures and report."""

import importlib.util
import shutil
from collections.abc import Mapping
from typing import Any

from absl import logging

from tfspline._keras.types import KerasModel
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.deployment.saved_model import export
from tfspline.pruning.planning import Plan
from tfspline.recipe import report
from tfspline.recipe.training import Training


def publish(
    training: Training,
    bird: EarlyBird,
    plan: Plan,
    summary: Mapping[str, Any],
    trained: Mapping[str, KerasModel],
) -> None:
    """Write `serving/1/`, the pictures with `distances.npz`, and `report.html`. Replaces what an earlier attempt wrote.

    Args:
        training: what trained the networks.
        bird: the early bird of the search.
        plan: the plan by which units were removed.
        summary: what `tfspline.recipe.summary.summarize` returns.
        trained: the networks at the end: "dense", "slim" and, if there is one, "weights_pruned".
    """
    folder = training.folder
    shutil.rmtree(folder.file("serving"), ignore_errors=True)
    export(
        trained["slim"],
        folder.file("serving"),
        version=1,
        class_names=training.data.class_names,
        plan=plan,
        metadata={
            "accuracy": {name: summary[name].get("accuracy") for name in ("dense", "slim")},
            "evaluated_on": summary["evaluate"],
        },
    )
    if importlib.util.find_spec("matplotlib") is None:
        logging.warning("matplotlib is not installed, so no pictures are drawn: pip install 'tfspline[plots]'")
    else:
        from tfspline.recipe import pictures  # imports matplotlib, which is slow

        pictures.draw(folder, training.data, bird, summary, trained)
    report.write(folder.path, summary)
