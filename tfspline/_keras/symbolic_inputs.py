"""Symbolic inputs for the recording of a model, of the shapes that the model tells or that are given."""

from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfspline._keras.graph import is_graph, way_out
from tfspline._keras.inputs import shapes_of_inputs
from tfspline._keras.layers import sublayers
from tfspline._keras.modules import keras_of, of_class
from tfspline._keras.rebuilding import symbolic_input
from tfspline._keras.types import InputShape, KerasModel


def symbolic_inputs(model: KerasModel, input_shape: InputShape) -> Any:
    """Symbolic inputs for a model, in the structure that it takes."""
    module = keras_of(model)
    if is_graph(model):
        sizes = shapes_of_inputs(model, input_shape)
        if sizes != shapes_of_inputs(model):
            logging.warning("The flat copy of %r takes inputs of the shapes %s only.", model.name, sizes)
        pairs = zip(model.inputs, sizes, strict=True)
        inputs = [symbolic_input(module, tensor, (tensor.shape[0], *shape)) for tensor, shape in pairs]
        return tf.nest.pack_sequence_as(getattr(model, "input", model.inputs[0]), inputs)
    given = _known_shapes(model) if input_shape is None else input_shape
    tokens = any(of_class(layer, "Embedding") for layer in sublayers(model))

    def of(shape, name=None):
        if hasattr(shape, "dtype"):
            return module.Input(batch_shape=(None, *shape.shape[1:]), dtype=shape.dtype, name=name)
        return module.Input(tuple(shape), dtype="int32" if tokens and len(shape) < 2 else None, name=name)

    parts = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else []
    if tokens and len(parts) > 1 and not all(hasattr(part, "dtype") for part in parts):
        raise ValueError(
            f"The dtypes of the inputs of {model.name!r} are not known. Give tfspline.functional an `input_shape` with "
            "a keras.Input(shape, dtype=...) for each of them."
        )
    if isinstance(given, dict):
        return {name: of(shape, name) for name, shape in given.items()}
    several = isinstance(given, list) or isinstance(given, tuple) and any(isinstance(x, tuple | list) for x in given)
    return [of(shape) for shape in given] if several else of(given)


def _known_shapes(model) -> Any:
    """The inputs with which a subclassed model was built or called, by its own account."""
    if not isinstance(model, keras.Model) and model.save_spec() is not None:
        (first, *_), _ = model.save_spec()
        return first
    config = (model.get_build_config() or {}) if model.built else {}
    found = config.get("input_shape") or (config.get("shapes_dict") or {}).get("input_shape")
    if found is None:
        raise ValueError(
            f"The input shape of the subclassed model {type(model).__name__} ({model.name!r}) is not known. "
            f"{way_out(model)}"
        )
    without_batch = lambda shape: tuple(shape)[1:]  # noqa: E731
    if isinstance(found, dict):
        return {name: without_batch(shape) for name, shape in found.items()}
    if isinstance(found[0], list | tuple):
        return [without_batch(shape) for shape in found]
    return without_batch(found)
