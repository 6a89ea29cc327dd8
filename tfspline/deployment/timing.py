"""How long a prediction takes on this device: of whole models, and of their layers one by one."""

import math
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfspline import _keras
from tfspline._utils.checks import count
from tfspline.deployment import litert
from tfspline.graph.cost import check_static
from tfspline.graph.structure import Graph
from tfspline.graph.surgery import cut

ROUNDS = 25  # in each of which everything that is compared is measured once
_SAMPLE = 0.005  # seconds that one measurement takes at least: a call may be too short for the clock

Sample = Callable[[], float]
Runtime = Callable[[Any, int], Sample]


def latency(*models: Any, runtime: str | Runtime = "tensorflow", batch_size: int = 1) -> tuple[float, ...]:
    """Measures how long one prediction takes on this device.

    Args:
        *models: built functional or Sequential models of either Keras, with static input shapes. They are measured in
            turns, so that what else the machine does meets all of them alike: the ratio of two that were measured
            together can be trusted further than the seconds.
        runtime: "tensorflow" is a `tf.function`, compiled as that of a SavedModel; "litert" is LiteRT with XNNPACK, of
            which inputs and outputs are not copied. Both use all cores. Or what measures elsewhere, on a phone for
            instance: a function of a model and a batch size that gives a function which, called without arguments,
            gives the seconds of one prediction.
        batch_size: inputs in a prediction.

    Returns:
        The median seconds of a prediction of the whole batch, for each of the models.

    Raises:
        TypeError, ValueError: a model whose graph or input shape is not known; an unknown `runtime`; a `batch_size`
            that is no positive integer.

    Example:

    >>> import keras, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    >>> dense, slim = tfspline.latency(model, tfspline.prune(model, 0.5), batch_size=8)
    >>> dense > 0
    True
    """
    if not models:
        raise TypeError("Expected at least one model. Received: none")
    samples = [sample_of(model, runtime, batch_size) for model in models]
    return tuple(np.median(in_turns(samples), axis=0).tolist())


def in_turns(samples: list[Sample], rounds: int = ROUNDS) -> np.ndarray:
    """What each of the functions measures, seconds [rounds, functions]."""
    return np.array([[sample() for sample in samples] for _ in range(rounds)])


def sample_of(model: Any, runtime: str | Runtime, batch_size: int) -> Sample:
    """A function that measures one prediction of a model, ready to run; errors as for `latency`."""
    check_static(_keras.check_model(model))
    if not callable(runtime) and runtime not in tuple(RUNTIMES):
        raise ValueError(f"Expected `runtime` among {tuple(RUNTIMES)}, or a function. Received: {runtime!r}")
    count("batch_size", batch_size)
    sample = (runtime if callable(runtime) else RUNTIMES[runtime])(model, batch_size)
    if not callable(sample):
        raise TypeError(f"Expected a `runtime` that gives a function of no arguments. Received: one giving {sample!r}")
    return sample


def clock(predict: Callable[[], Any]) -> Sample:
    """A function that gives the seconds of a call of `predict`, the mean of as many as can be measured."""
    predict()  # traces, allocates
    timer = timeit.Timer(predict)
    calls = math.ceil(_SAMPLE / min(timer.repeat(3, 1)))
    return lambda: timer.timeit(calls) / calls


def _tensorflow(model, batch_size):
    @tf.function
    def function(*inputs):
        return _keras.run(model, list(inputs), lambda node, args, kwargs: node.layer(*args, **kwargs))

    inputs = [_batch((batch_size, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    # A GPU has not done yet what a function has returned.
    return clock(lambda: [output.numpy() for output in function(*inputs)])


def _litert(model, batch_size):
    interpreter = litert.interpreter(litert.convert(model, batch_size=batch_size))
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], _batch(entry["shape"], entry["dtype"]).numpy())
    return clock(interpreter.invoke)


RUNTIMES = {"tensorflow": _tensorflow, "litert": _litert}


def _batch(shape, dtype):
    """Numbers between 0 and 1, where these are no integers: 0 is the one that every embedding has."""
    return tf.cast(tf.random.stateless_uniform(shape, (0, 0)), dtype)


class Stopwatch:
    """The latency of a model and of what is left of it after cuts.

    Args:
        model: a built model with a static input shape.
        graph: what `graph.read` found of it.
        runtime: as for `latency`.
        batch_size: as for `latency`.

    Raises:
        ValueError: as `latency`.
    """

    def __init__(self, model: Any, graph: Graph, runtime: str | Runtime = "tensorflow", batch_size: int = 1):
        self.model, self.graph, self.runtime, self.batch_size = model, graph, runtime, batch_size
        self._dense = sample_of(model, runtime, batch_size)
        self._known: dict[tuple, float] = {}  # what layer on what shapes -> seconds

    def share(self, kept: np.ndarray) -> float:
        """The latency of the model with only the units `kept` (bool [units]) over that of the whole one, measured: the
        median of the ratios in each round."""
        slim = sample_of(cut(self.model, self.graph, kept), self.runtime, self.batch_size)
        seconds = in_turns([self._dense, slim])
        return float(np.median(seconds[:, 1] / seconds[:, 0]))

    def layers(self, kept: np.ndarray) -> dict[str, float]:
        """The measured seconds of each layer that multiplies, run by itself, with only the units `kept`.

        Each includes what it takes to start anything in the runtime; the calls of a layer that is shared are added.
        """
        model = cut(self.model, self.graph, kept)
        working = {path for path, macs in self.graph.macs().items() if macs}
        calls, new = [], {}

        def visit(node, args, kwargs):
            if node.path in working:
                key = _key(node.layer, args, kwargs)
                calls.append((node.path, key))
                if key not in self._known and key not in new:
                    new[key] = sample_of(_alone(model, node.layer, args, kwargs), self.runtime, self.batch_size)
            return node.layer(*args, **kwargs)

        _keras.run(model, model.inputs, visit, nested=True)
        self._known.update(
            zip(new, np.median(in_turns(list(new.values())), axis=0).tolist() if new else (), strict=True)
        )
        seconds = dict.fromkeys(working, 0.0)
        for path, key in calls:
            seconds[path] += self._known[key]
        return seconds

    def table(self, cuts: list[np.ndarray]) -> Callable[[np.ndarray], float]:
        """A function of the units that are kept that gives the seconds which all `layers` together are to take.

        Each layer is measured in each of the `cuts` (bool [units]) and taken to be a function of its MACs, linear
        between those measured, which never falls.
        """
        measured = [(self.graph.macs(kept), self.layers(kept)) for kept in cuts]
        curves = {
            path: np.sort([(macs[path], seconds[path]) for macs, seconds in measured], axis=0).T
            for path in measured[0][1]
        }

        def seconds(kept):
            macs = self.graph.macs(kept)
            return float(sum(np.interp(macs[path], *curve) for path, curve in curves.items()))

        return seconds


def _key(layer, args, kwargs):
    """What two calls of layers have in common that take equally long."""
    arguments = tf.nest.map_structure(lambda x: (tuple(x.shape), x.dtype) if _symbolic(x) else x, (args, kwargs))
    return type(layer), repr(layer.get_config() | {"name": None}), repr(arguments)


def _alone(model, layer, args, kwargs):
    """A model of nothing but one call of a layer of `model`."""
    keras, inputs = _keras.keras_of(model), []

    def fresh(x):
        if not _symbolic(x):
            return x
        inputs.append(keras.Input(batch_shape=x.shape, dtype=x.dtype))
        return inputs[-1]

    args, kwargs = tf.nest.map_structure(fresh, (args, kwargs))
    return keras.Model(inputs, layer(*args, **kwargs))


def _symbolic(x):
    return hasattr(x, "_keras_history")
