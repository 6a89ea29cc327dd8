"""`export`: a model as a SavedModel for TensorFlow Serving."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import tensorflow as tf

from tfspline._keras import check_model
from tfspline._keras.types import KerasModel
from tfspline._utils.checks import instance
from tfspline._utils.files import write_json
from tfspline.deployment import onednn, signatures
from tfspline.deployment.versions import next_version, publish
from tfspline.deployment.warmup import requests
from tfspline.graph import reader as graphs

_FORMAT = "tfspline.export.1"


@runtime_checkable
class PruningPlan(Protocol):
    """What `export` uses of a `tfspline.Plan`."""

    @property
    def ratio(self) -> float:
        """The share of units that were removed."""

    def cost(self) -> Mapping[str, tuple[int, int]]:
        """Units, parameters and MACs before and after pruning."""

    def save(self, path: str) -> None:
        """Writes the plan to a file."""


def export(
    model: KerasModel,
    path: str | os.PathLike,
    *,
    version: int | None = None,
    input: str | None = None,
    preprocessing: Callable | None = None,
    class_names: Sequence[str] | None = None,
    top_k: int = 5,
    warmup: Sequence[int] = (),
    plan: PruningPlan | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Writes a model to `path/<version>/` as a SavedModel that runs without Keras and without tfspline.

    The signature `serving_default` has the names of the model's inputs and output layers, and a free batch dimension.
    Exports are atomic: a server that watches `path` never sees a part of a version.

    Args:
        model: a functional or built Sequential model of either Keras version.
        path: folder of versions, created if missing. TensorFlow cannot load from paths with `*`, `?` or `[`.
        version: a positive integer higher than all in `path`. Default: the next one.
        input: None: what the model takes. "image": uint8 images `[batch, height, width, channels]` of any size.
            "image_bytes": JPEG, PNG, GIF or BMP files of any sizes, strings `[batch]`.
        preprocessing: a function of a batch, in TensorFlow, that runs before the model. It gets images as float32 in
            0..255; they are resized bilinearly to the model's input size afterwards. Default: none.
        class_names: names of the outputs `[batch, classes]`. Adds a signature `classify` with the outputs `classes`,
            strings `[batch, top_k]`, and `scores`, float32 `[batch, top_k]`, highest first.
        top_k: number of classes that `classify` returns.
        warmup: batch sizes that TensorFlow Serving tries after loading; needs `tfspline[serving]`. Default: none.
        plan: the plan that the model was pruned with, written to `assets.extra/plan.json`.
        metadata: JSON values about this version, written with parameters and MACs to `assets.extra/tfspline.json`.

    Returns:
        The folder of the version.

    Raises:
        TypeError, ValueError: an argument is invalid or does not fit the model, or the model needs Python.
        OSError: the version exists (FileExistsError), or the folder cannot be written.
        ImportError: `warmup` is given, but tensorflow-serving-api is not installed.

    Example:
        >>> import tempfile, keras, tfspline
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> folder = tfspline.export(model, tempfile.mkdtemp(), class_names=["cat", "dog"])
    """
    check_model(model)
    path = os.fspath(path)
    next_version(path, version)  # checked before the model is traced, which takes seconds
    traced = signatures.traced(model, input, preprocessing, class_names, top_k)
    onednn.warn(model, traced["serving_default"].get_concrete_function().graph)
    logs = requests(os.path.basename(os.path.abspath(path)), traced, model, warmup) if warmup else []
    known = _description(model, plan) | {"metadata": _checked(metadata or {})}

    def write(folder):
        signatures.write(model, traced, folder)
        extra = os.path.join(folder, "assets.extra")
        os.mkdir(extra)
        write_json(os.path.join(extra, "tfspline.json"), _FORMAT, **known)
        if plan is not None:
            plan.save(os.path.join(extra, "plan.json"))
        if logs:
            with tf.io.TFRecordWriter(os.path.join(extra, "tf_serving_warmup_requests")) as writer:
                for log in logs:
                    writer.write(log)

    return publish(path, version, write)


def _description(model, plan) -> dict[str, Any]:
    """Name and costs of the model, and of the dense one if the plan is known."""
    graph = graphs.read(model)
    known = {
        "model": model.name,
        "params": sum(graph.params().values()),
        "macs": None if graph.unknown else sum(graph.macs().values()),
    }
    if plan is None:
        return known
    cost = instance("plan", plan, PruningPlan).cost()
    if cost["params"][1] != known["params"]:
        raise ValueError(
            f"The plan does not belong to model {model.name!r}: the model has {known['params']:,} parameters, the plan "
            f"leaves {cost['params'][1]:,}. Export the model that plan.apply returned, or leave out `plan`."
        )
    return known | {"ratio": plan.ratio, "dense": {what: before for what, (before, _) in cost.items()}}


def _checked(metadata) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected metadata of JSON values. Received: {metadata!r} ({error})") from error
