"""A model as a SavedModel in a folder of versions, the way TensorFlow Serving wants it."""

import contextlib
import io
import os
import tempfile
from typing import Any

import tensorflow as tf

from tfspline._keras import check_model, keras_of, nodes


def export(model: Any, path: str | os.PathLike, version: int | None = None) -> str:
    """Writes `model` to `path/<version>/` as a SavedModel that runs without Keras and without tfspline.

    Its signature `serving_default` names the inputs after the model's inputs and the outputs after the layers
    that make them; the batch dimension is free. Who watches `path` sees the version whole or not at all.

    Args:
        model: a functional or built Sequential model, of Keras 3 or tf_keras.
        path: the folder of versions; made if it is not there.
        version: a positive integer that is not in `path` yet; default: one more than the highest one there.

    Returns:
        The version's folder, `path/<version>`.

    Raises:
        TypeError: `model` is not a Keras model, or `version` not an integer.
        ValueError: the model is subclassed or not built, or `version` is not positive.
        FileExistsError: `path` holds that version already.
        NotADirectoryError: `path` is a file.
        PermissionError: `path` cannot be written to.

    Example:
        >>> import tempfile
        >>> import keras, tensorflow as tf, tfspline
        >>> model = keras.Sequential([keras.Input((4,), name="image"), keras.layers.Dense(3, name="logits")])
        >>> folder = tfspline.export(model, tempfile.mkdtemp())
        >>> served = tf.saved_model.load(folder).signatures["serving_default"]
        >>> served(image=tf.zeros((2, 4)))["logits"].shape
        TensorShape([2, 3])
    """
    check_model(model)
    target = _target(os.fspath(path), version)
    os.makedirs(path, exist_ok=True)
    # Servers ignore folders whose name is no integer. The SavedModel is written one level below: only its
    # owner may read the temporary folder itself.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path) as aside:
        written = os.path.join(aside, "model")
        _write(model, written)
        os.replace(written, target)
    return target


def _target(path: str, version: int | None) -> str:
    if os.path.exists(path) and not os.path.isdir(path):
        raise NotADirectoryError(f"Expected a folder of versions. Received: {path!r}, which is a file")
    if version is None:
        there = os.listdir(path) if os.path.isdir(path) else []
        version = 1 + max((int(name) for name in there if name.isdecimal()), default=0)
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"Expected version to be an integer. Received: {version!r}")
    if version < 1:
        raise ValueError(f"Expected version to be positive. Received: {version}")
    target = os.path.join(path, str(version))
    if os.path.exists(target):
        raise FileExistsError(f"Expected a version that is not there yet. Received: {version}, which is {target}")
    return target


def _write(model, folder):
    made_by = {tensor: node.layer.name for node in nodes(model) for tensor in node.outputs}
    names = _unique(made_by.get(id(tensor), tensor.name) for tensor in model.outputs)

    def serve(*inputs):
        outputs = model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
        return dict(zip(names, tf.nest.flatten(outputs), strict=True))

    signature = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=name)
        for tensor, name in zip(model.inputs, _unique(tensor.name for tensor in model.inputs), strict=True)
    ]
    archive = keras_of(model).export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, signature)
    # tf_keras has no way to say that write_out shall not print.
    with contextlib.redirect_stdout(io.StringIO()):
        archive.write_out(folder)


def _unique(names):
    # Two outputs of one layer share its name, and a signature cannot hold a name twice.
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}_{count}" if count else name)
    return unique
