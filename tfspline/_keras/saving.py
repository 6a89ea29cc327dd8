"""Loading models from files."""

import os
import zipfile
from types import ModuleType
from typing import Any


def load_model(keras: ModuleType, path: str | os.PathLike) -> Any:
    """Loads a `.keras` file in Keras' safe mode, which rejects models that contain code.

    Raises:
        ValueError: the file contains code, is damaged, or is not a `.keras` file. The message names it.
    """
    with open(path, "rb") as file:
        zipped = zipfile.is_zipfile(file)
    try:
        if not zipped:  # tf_keras would read it as HDF5, from which it loads code even in safe mode
            raise ValueError("it is not a zip archive")
        return keras.models.load_model(path, safe_mode=True)
    except Exception as error:  # damaged files raise errors of many kinds
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Expected an undamaged .keras file without code in it. Received: {os.fspath(path)!r} ({reason})"
        ) from error
