"""Models in files."""

import os
import zipfile
from types import ModuleType
from typing import Any


def load_model(keras: ModuleType, path: str | os.PathLike) -> Any:
    """A model out of a `.keras` file, in Keras' safe mode: one that holds code of its author's is not loaded.

    Raises:
        ValueError: there is code in it, or it is damaged or something else; the message names the file.
    """
    with open(path, "rb") as file:
        zipped = zipfile.is_zipfile(file)
    try:
        if not zipped:  # tf_keras would take it for HDF5, of which it loads all code, safe mode or not
            raise ValueError("it is no zip archive")
        return keras.models.load_model(path, safe_mode=True)
    except Exception as error:  # a damaged file fails in a dozen ways
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Expected a model saved by Keras, whole and with no code in it. Received: {os.fspath(path)!r} ({reason})"
        ) from error
