"""A Python client of saved_model.cc, which runs a SavedModel on the C library in TensorFlow's wheel."""

import math
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

_SOURCE = pathlib.Path(__file__).with_name("saved_model.cc")


def build(folder: str) -> str:
    """Compile saved_model.cc into a folder and return the path of the program.

    Raises:
        FileNotFoundError: there is no g++, or no C library in TensorFlow's wheel.
        subprocess.CalledProcessError: the compilation failed.
    """
    compiler, lib = shutil.which("g++"), pathlib.Path(tf.sysconfig.get_lib())
    libraries = [lib / f"libtensorflow_{part}.so.2" for part in ("cc", "framework")]
    if not compiler or not all(library.exists() for library in libraries):
        raise FileNotFoundError(f"Expected g++ and {' and '.join(map(str, libraries))}. Received: g++ at {compiler}")
    program = os.path.join(folder, "saved_model")
    options = ["-std=c++17", "-O2", "-Wall", "-Werror", f"-I{tf.sysconfig.get_include()}", f"-Wl,-rpath,{lib}"]
    subprocess.run([compiler, *options, str(_SOURCE), *map(str, libraries), "-o", program], check=True)
    return program


class CModel:
    """A SavedModel with one input and one output, run by a process of saved_model.cc.

    Args:
        program: path returned by `build`.
        folder: folder of the SavedModel, `<export>/<version>`.
        x: inputs, float32 `[batch, ...]`.

    Attributes:
        output: outputs for `x`, float32 `[batch, ...]`.

    Raises:
        ValueError: the program ended without an output; contains its error message.
    """

    def __init__(self, program: str, folder: str, x: np.ndarray):
        saved = saved_model_pb2.SavedModel.FromString(pathlib.Path(folder, "saved_model.pb").read_bytes())
        found = saved.meta_graphs[0].signature_def["serving_default"]
        (source,), (target,) = found.inputs.values(), found.outputs.values()
        name, index = target.name.split(":")
        shape = [len(x), *(dim.size for dim in target.tensor_shape.dim[1:])]
        with tempfile.NamedTemporaryFile() as file:
            x.astype("float32").tofile(file)
            file.flush()
            command = [program, folder, source.name.split(":")[0], name, index, file.name, *map(str, x.shape)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            answer = [self._process.stdout.readline() for _ in range(math.prod(shape))]
        if not answer[-1]:
            raise ValueError(f"{program} ended without an output: {self._process.communicate()[1][-3000:]}")
        self.output = np.array(answer, "float32").reshape(shape)

    def seconds(self, runs: int) -> float:
        """Return the mean time of a prediction over a number of runs, in seconds."""
        print(runs, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
