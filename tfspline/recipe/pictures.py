"""The pictures in the folder of a run."""

import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from tfspline import plots
from tfspline._keras.types import KerasModel
from tfspline._utils.files import write_npz
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.datasets import Dataset
from tfspline.graph.cost import flops
from tfspline.recipe.run_dir import RunDir
from tfspline.spline.codes import Codes, region_codes
from tfspline.spline.distance import partition_distances

_TITLES = {"dense": "dense", "slim": "units pruned", "weights_pruned": "weights pruned"}
_EXACT = 128  # units; the exact partition of a larger network takes minutes
_WORK = 10**13  # MACs for a sampled partition: a few minutes on two cores


def draw(
    folder: RunDir, dataset: Dataset, early_bird: EarlyBird, summary: Mapping, trained: Mapping[str, KerasModel]
) -> None:
    """Draw `training.png`, `units.png`, `accuracy.png` and `partition.png`.

    If region codes of at least two dense epochs were saved, also draw `distances.png` and `layer_distances.png`, and
    write their numbers to `distances.npz`.
    """
    figures: dict[str, Any] = {
        "training": plots.training(folder.history, early_bird),
        "units": plots.units_kept(summary["layers"]),
        "accuracy": plots.accuracy_flops([summary]),
    }
    codes = _codes(folder)
    if len(codes) > 1:
        epochs = list(codes)
        distances = partition_distances(list(codes.values()), per_layer=True)
        arrays = {name: matrix.astype(np.float32) for name, matrix in distances.items()}
        folder.put("distances.npz", lambda path: write_npz(path, arrays))
        mean = np.mean(list(distances.values()), axis=0)
        figures["distances"] = plots.distance_matrix(mean, epochs, early_bird.epoch)
        figures["layer_distances"] = plots.layer_distances(distances, epochs, early_bird.epoch)
    models = {_title(name, summary[name]): model for name, model in trained.items()}
    figures["partition"] = _partition(models, dataset)
    for name, figure in figures.items():
        folder.put(f"{name}.png", functools.partial(figure.savefig, dpi=150, format="png"))


def _codes(folder):
    """The saved region codes of the dense training, by epoch."""
    epochs = [row["epoch"] for row in folder.history if row["phase"] in ("search", "baseline")]
    # A search copied from a run with publish=False has no codes.
    wanted = epochs if any(os.path.exists(folder.codes(epoch)) for epoch in epochs) else []
    codes = {}
    for epoch in wanted:
        try:
            codes[epoch] = Codes.load(folder.codes(epoch))
        except (ValueError, FileNotFoundError) as error:
            logging.warning("The pictures of distances leave out epoch %d: %s", epoch, error)
    return codes


def _title(name, of):
    accuracy = f", {of['accuracy']:.1%} correct" if "accuracy" in of else ""
    return f"{_TITLES[name]}\n{of['params']:,} parameters{accuracy}"


def _partition(models, dataset):
    """The partition of the plane of the input points, or of a plane through two images of different classes."""
    dense = next(iter(models.values()))
    if not dataset.of_images:
        points = dataset.train.images
        box = np.stack([points.min(axis=0), points.max(axis=0)], axis=1)
        if sum(region_codes(dense, points[:1]).bits.values()) <= _EXACT:
            return plots.partitions(models, box)
        return plots.sampled_partitions(models, box, samples=400)
    images = [dataset.test.images[np.flatnonzero(dataset.test.labels == label)[0]] for label in (0, 1)]
    first, second = dataset.class_names[:2]
    passes = 2 * sum(flops(model).macs for model in models.values())
    return plots.sampled_partitions(
        models,
        2 * ((-0.25, 1.25),),
        dataset.normalize(np.stack(images)).numpy(),
        samples=min(100, max(20, math.isqrt(_WORK // passes))),
        marks={first: (1, 0), second: (0, 1)},
    )
