"""`latency` of whole models, and the measured time of their layers for latency budgets."""

import math
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._keras.inputs import shapes_of_inputs
from tfspline._keras.types import InputShape, KerasModel
from tfspline._utils.checks import count
from tfspline.deployment import litert, onednn
from tfspline.graph.cost import check_static
from tfspline.graph.structure import Graph
from tfspline.graph.surgery import cut
from tfspline.graph.unrolling import functional

ROUNDS = 25  # in each round, every sample is measured once
_SAMPLE = 0.005  # seconds that one measurement takes at least, since a single call may be too short for the clock

Sample = Callable[[], float]  # measures the seconds of one prediction
Runtime = Callable[[KerasModel, int], Sample]


def latency(
    *models: KerasModel,
    runtime: str | Runtime = "tensorflow",
    batch_size: int = 1,
    input_shape: InputShape = None,
) -> tuple[float, ...]:
    """Measures how long one prediction takes on this device.

    Models are measured in turns, so that other load on the machine affects them alike. Ratios of latencies from one
    call are therefore more reliable than the seconds.

    Args:
        *models: built functional or Sequential models of either Keras version.
        runtime: "tensorflow" for a `tf.function` as in a SavedModel; "litert" for LiteRT with XNNPACK, without copying
            inputs and outputs. Both use all cores. Or a function of a model and a batch size, for other devices; it
            returns a function without arguments that returns the seconds of one prediction.
        batch_size: inputs in a prediction.
        input_shape: the shape of one input, as for `tfspline.flops`, of models that leave sizes open.

    Returns:
        The median seconds of a prediction of a batch, for each model.

    Raises:
        TypeError, ValueError: a model whose graph or input shape is unknown, an unknown `runtime`, or a `batch_size`
            that is not a positive integer.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> dense, slim = tfspline.latency(model, tfspline.prune(model, 0.5), batch_size=8)
    >>> dense > 0
    True
    """
    if not models:
        raise TypeError("Expected at least one model. Received: none")
    samples = [sample_of(model, runtime, batch_size, input_shape) for model in models]
    return tuple(np.median(in_turns(samples), axis=0).tolist())


def in_turns(samples: list[Sample], rounds: int = ROUNDS) -> np.ndarray:
    """Takes all samples once in each round; returns seconds `[rounds, samples]`."""
    return np.array([[sample() for sample in samples] for _ in range(rounds)])


def sample_of(model: KerasModel, runtime: str | Runtime, batch_size: int, input_shape: InputShape = None) -> Sample:
    """Prepares a function that measures one prediction of a model; for arguments and errors see `latency`."""
    model = _fixed(functional(model), input_shape)
    if not callable(runtime) and runtime not in tuple(RUNTIMES):
        raise ValueError(f"Expected `runtime` among {tuple(RUNTIMES)}, or a function. Received: {runtime!r}")
    count("batch_size", batch_size)
    sample = (runtime if callable(runtime) else RUNTIMES[runtime])(model, batch_size)
    if not callable(sample):
        raise TypeError(f"Expected `runtime` to return a function of no arguments. Received: {sample!r}")
    return sample


def _fixed(model, input_shape):
    """The model itself if its input sizes are known; otherwise a model that calls it with those of `input_shape`."""
    shapes = shapes_of_inputs(model, input_shape)
    check_static(model, shapes)
    if all(tuple(tensor.shape)[1:] == shape for tensor, shape in zip(model.inputs, shapes, strict=True)):
        return model
    keras = _keras.keras_of(model)
    inputs = [keras.Input(shape, dtype=tensor.dtype) for tensor, shape in zip(model.inputs, shapes, strict=True)]
    return keras.Model(inputs, _keras.run(model, inputs, lambda node, args, kwargs: node.layer(*args, **kwargs)))


def clock(predict: Callable[[], Any]) -> Sample:
    """A function that returns the seconds of a call of `predict`, averaged over enough calls for the clock."""
    predict()  # traces and allocates
    timer = timeit.Timer(predict)
    calls = math.ceil(_SAMPLE / min(timer.repeat(3, 1)))
    return lambda: timer.timeit(calls) / calls


def _tensorflow(model, batch_size):
    @tf.function
    def function(*inputs):
        return _keras.run(model, list(inputs), lambda node, args, kwargs: node.layer(*args, **kwargs))

    inputs = [_batch((batch_size, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    onednn.warn(model, function.get_concrete_function(*inputs).graph)
    # A function may return before a GPU has finished; `numpy` waits.
    return clock(lambda: [output.numpy() for output in function(*inputs)])


def _litert(model, batch_size):
    interpreter = litert.interpreter(litert.convert(model, batch_size=batch_size))
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], _batch(entry["shape"], entry["dtype"]).numpy())
    return clock(interpreter.invoke)


RUNTIMES = {"tensorflow": _tensorflow, "litert": _litert}


def _batch(shape, dtype):
    """Random numbers in [0, 1); zeros for integers, which are a valid index of every embedding."""
    return tf.cast(tf.random.stateless_uniform(shape, (0, 0)), dtype)


class Stopwatch:
    """Measures the latency of a model, and of its layers, with only some of its units; see `latency`."""

    def __init__(self, model: KerasModel, graph: Graph, runtime: str | Runtime = "tensorflow", batch_size: int = 1):
        self.model, self.graph, self.runtime, self.batch_size = model, graph, runtime, batch_size
        self._dense = self._sample(model)
        self._seconds: dict[tuple, float] = {}  # by layer and input shapes: see `_key`

    def _sample(self, model):
        return sample_of(model, self.runtime, self.batch_size, self.graph.input_shapes)

    def share(self, kept: np.ndarray) -> float:
        """Measures the latency with only the units `kept` (bool `[units]`), relative to that of the whole model."""
        slim = self._sample(cut(self.model, self.graph, kept))
        seconds = in_turns([self._dense, slim])
        return float(np.median(seconds[:, 1] / seconds[:, 0]))

    def layers(self, kept: np.ndarray) -> dict[str, float]:
        """Measures each layer that has MACs by itself, with only the units `kept` (bool `[units]`).

        Returns seconds by the path of the layer, including the overhead of a prediction. The calls of a shared layer
        are added up.
        """
        model = _fixed(cut(self.model, self.graph, kept), self.graph.input_shapes)
        seconds = {path: 0.0 for path, macs in self.graph.macs().items() if macs}
        calls = [(path, _key(*call), call) for path, *call in _calls(model) if path in seconds]
        new: dict[tuple, list] = {}
        for _, key, call in calls:
            if key not in self._seconds:
                new.setdefault(key, call)
        if new:
            samples = [sample_of(_single_call(model, *call), self.runtime, self.batch_size) for call in new.values()]
            self._seconds.update(zip(new, np.median(in_turns(samples), axis=0).tolist(), strict=True))
        for path, key, _ in calls:
            seconds[path] += self._seconds[key]
        return seconds

    def table(self, choices: list[np.ndarray]) -> Callable[[np.ndarray], float]:
        """Measures the layers for some choices of kept units, bool `[units]` each, to estimate the time for others.

        Returns a function of kept units that estimates the seconds of all layers together. The time of a layer is
        interpolated linearly in its MACs, and never decreases with them.
        """
        measured = [(self.graph.macs(kept), self.layers(kept)) for kept in choices]
        curves = {
            path: np.sort([(macs[path], seconds[path]) for macs, seconds in measured], axis=0).T
            for path in measured[0][1]
        }

        def seconds(kept):
            macs = self.graph.macs(kept)
            return float(sum(np.interp(macs[path], *curve) for path, curve in curves.items()))

        return seconds


def _calls(model) -> list[tuple]:
    """(path, layer, args, kwargs) of each call of a layer, with symbolic tensors; nested models are entered."""
    calls = []

    def visit(node, args, kwargs):
        calls.append((node.path, node.layer, args, kwargs))
        return node.layer(*args, **kwargs)

    _keras.run(model, model.inputs, visit, nested=True)
    return calls


def _key(layer, args, kwargs) -> tuple:
    """Identifies calls that take the same time: same class, configuration, and shapes and dtypes of the arguments."""
    arguments = tf.nest.map_structure(
        lambda x: (tuple(x.shape), x.dtype) if _keras.is_symbolic(x) else x, (args, kwargs)
    )
    return type(layer), repr(layer.get_config() | {"name": None}), repr(arguments)


def _single_call(model, layer, args, kwargs):
    """A model that consists of one call of a layer of `model`."""
    keras = _keras.keras_of(model)
    arguments = tf.nest.flatten((args, kwargs))
    fresh = {id(x): keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in arguments if _keras.is_symbolic(x)}
    args, kwargs = tf.nest.map_structure(lambda x: fresh.get(id(x), x), (args, kwargs))
    return keras.Model(list(fresh.values()), layer(*args, **kwargs))
