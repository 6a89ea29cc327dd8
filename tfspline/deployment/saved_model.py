"""A model as a SavedModel in a folder of versions, the way TensorFlow Serving wants it."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfspline._keras import check_model
from tfspline._utils.checks import instance
from tfspline._utils.files import write_json
from tfspline.deployment import signatures
from tfspline.deployment.versions import next_version, publish
from tfspline.deployment.warmup import requests, write_requests
from tfspline.graph import reader as graphs
from tfspline.pruning.planning import Plan

_FORMAT = "tfspline.export.1"


def export(
    model: Any,
    path: str | os.PathLike,
    *,
    version: int | None = None,
    input: str | None = None,
    preprocessing: Callable | None = None,
    class_names: Sequence[str] | None = None,
    top_k: int = 5,
    warmup: Sequence[int] = (),
    plan: Plan | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Writes `model` to `path/<version>/` as a SavedModel that runs without Keras and without tfspline.

    Its signature `serving_default` names the inputs after the model's inputs and the outputs after the layers
    that make them; the batch dimension is free. Who watches `path` sees the version whole or not at all, also if
    this process is killed.

    Args:
        model: a functional or built Sequential model, of Keras 3 or tf_keras; with or without `SplineUnit`s, which are
            written as TensorFlow's fused operation.
        path: the folder of versions; made if it is not there. TensorFlow takes `*`, `?` and `[` in a path for a
            pattern, and cannot load the version before it is somewhere else.
        version: a positive integer, higher than all in `path`; default: one more than the highest one there.
        input: what is served takes; None for what the model takes. "image" for uint8 images `[batch, height, width,
            channels]` of any one size, as input `image`; "image_bytes" for files, string `[batch]`, each a JPEG, PNG,
            GIF or BMP image of any size, as input `image_bytes`.
        preprocessing: what is done before the model, in TensorFlow: a function of a batch of inputs, of images as
            float32 `[batch, height, width, channels]` on the scale 0..255. Images are resized afterwards, bilinearly,
            if it has not done so, to the size that the model takes. `data.normalize` of a `Dataset`, a
            `preprocess_input` of `keras.applications`, a preprocessing layer, or your own, which may crop, too.
        class_names: a name for each of the model's outputs, `[batch, classes]`. There is a second signature then,
            `classify`, with the outputs `classes`, string `[batch, k]`, and `scores`, float32 `[batch, k]`: the
            model's highest outputs, the best one first.
        top_k: how many `classify` gives; all, if there are fewer.
        warmup: sizes of the batches that TensorFlow Serving is to try when it has loaded the version, of each
            signature, before the first client comes; (1, 8) for instance. Needs `pip install tfspline[serving]`.
        plan: the plan that `model` was cut by, to be written to `assets.extra/plan.json`; its costs go to the metadata.
        metadata: what else is to be known of this version, `{"accuracy": 0.93}` for instance, as JSON takes it. It is
            written to `assets.extra/tfspline.json`, beside parameters and MACs (None where sizes are not known).

    Returns:
        The version's folder, `path/<version>`.

    Raises:
        TypeError: `model` is not a Keras model, `version` or `top_k` not an integer, `metadata` is not as JSON.
        ValueError: the model is subclassed or not built, or calls Python or ops that TensorFlow does not have;
            `version` is not positive, or lower than one that is there; inputs, names, batches or plan are not ones
            of the model.
        FileExistsError: `path` holds that version already.
        NotADirectoryError: `path` is a file.
        PermissionError: `path` cannot be written to.
        ImportError: `warmup` without the package.

    Example:
        >>> import tempfile
        >>> import keras, tensorflow as tf, tfspline
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> names = ["cat", "dog"]
        >>> folder = tfspline.export(model, tempfile.mkdtemp(), input="image_bytes", class_names=names)
        >>> served = tf.saved_model.load(folder).signatures["classify"]
        >>> photo = tf.io.encode_jpeg(tf.zeros((20, 30, 1), tf.uint8))
        >>> sorted(served(image_bytes=photo[tf.newaxis])["classes"].numpy()[0].tolist())
        [b'cat', b'dog']
    """
    check_model(model)
    path = os.fspath(path)
    next_version(path, version)
    endpoints = signatures.traced(model, input, preprocessing, class_names, top_k)
    logs = requests(os.path.basename(os.path.abspath(path)), endpoints, model, warmup) if warmup else None
    known = _known(model, plan) | {"metadata": _checked(metadata or {})}

    def write(folder):
        signatures.write(model, endpoints, folder)
        extra = os.path.join(folder, "assets.extra")
        os.mkdir(extra)
        write_json(os.path.join(extra, "tfspline.json"), _FORMAT, **known)
        if plan is not None:
            plan.save(os.path.join(extra, "plan.json"))
        if logs is not None:
            write_requests(os.path.join(extra, "tf_serving_warmup_requests"), logs)

    return publish(path, version, write)


def _known(model, plan):
    graph = graphs.read(model)
    sizes = [size for tensor in model.inputs for size in tensor.shape[1:]]
    known = {
        "model": model.name,
        "params": sum(graph.params().values()),
        "macs": None if None in sizes else sum(graph.macs().values()),
    }
    if plan is None:
        return known
    cost = instance("plan", plan, Plan).cost()
    if cost["params"][1] != known["params"]:
        raise ValueError(
            f"Expected the plan that {model.name!r}, with {known['params']:,} parameters, was cut by. "
            f"Received: one that leaves {cost['params'][1]:,}"
        )
    return known | {"ratio": plan.ratio, "dense": {what: before for what, (before, _) in cost.items()}}


def _checked(metadata):
    try:
        return json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected metadata as JSON takes it. Received: {metadata!r} ({error})") from error
