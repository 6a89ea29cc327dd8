"""Everything that replaces a model's train function for a while: recording the first inputs, skipping the training."""

import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspline._keras.inputs import input_values
from tfspline._keras.types import KerasModel


class Recorder:
    """Records the first inputs that a model trains on, from inside its train step.

    Keras exposes batch data only inside the train step. The step still computes the same: the seeds of random ops in a
    tf.function depend on the number of ops before them, so the recording comes last.

    Under a `tf.distribute` strategy each replica records an equal share, and every worker sees all of them.
    """

    def __init__(self, model: KerasModel, flat: KerasModel, size: int):
        for tensor in flat.inputs:
            if None in tensor.shape[1:]:
                raise ValueError(
                    f"Cannot record a probe: input {tensor.name!r} has no fixed shape, {tuple(tensor.shape)}. "
                    "Give inputs of one shape as probe=."
                )
        self._model, self._flat, self._strategy = model, flat, model.distribute_strategy
        self._size = size
        self._share = -(-size // self._strategy.num_replicas_in_sync)
        local = {"trainable": False, "synchronization": tf.VariableSynchronization.ON_READ}
        with self._strategy.scope():
            self._count = tf.Variable(0, dtype=tf.int64, aggregation=tf.VariableAggregation.SUM, **local)
            # Inputs beyond the requested size are written to one extra row, the last, which saves a branch.
            self._buffers = [
                tf.Variable(tf.zeros([self._share + 1, *tensor.shape[1:]], tensor.dtype), **local)
                for tensor in flat.inputs
            ]

    def start(self) -> None:
        """Replaces the model's train function by one that records."""
        self._own_function, self._own_step = self._model.train_function, self._model.train_step
        other = getattr(self._own_function, "__self__", None)
        if isinstance(other, Recorder):  # that of another EarlyBird in the same fit, which continues to record
            self._own_function, self._own_step = other._own_function, other._train_step
        self._make()

    def _make(self):
        with self._recording_step():
            self._model.make_train_function(force=True)
        self._recording_function = self._model.train_function
        self._model.train_function = self._train_function

    def restart(self) -> None:
        """Rebuilds both train functions, the model's own and the recording one."""
        self._model.make_train_function(force=True)
        self._own_function = self._model.train_function
        self._make()

    def stop(self) -> None:
        """Puts the model's own train function back."""
        if self._model.train_function == self._train_function:
            self._model.train_function = self._own_function

    @property
    def full(self) -> bool:
        """Whether all requested inputs have been recorded."""
        return bool(self._count.numpy() >= self._size)

    def inputs(self) -> list[np.ndarray]:
        """Returns the inputs recorded so far, an array for each of the model's inputs."""
        shares = self._strategy.run(lambda: [buffer[: self._count.read_value()] for buffer in self._buffers])
        return [self._strategy.gather(share, axis=0)[: self._size].numpy() for share in shares]

    def _train_function(self, iterator):
        try:
            with self._recording_step():
                return self._recording_function(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise  # the end of the epoch
        except BaseException:
            # Keras calls no callback when the training fails or is interrupted.
            self.stop()
            raise

    @contextlib.contextmanager
    def _recording_step(self):
        # Keras 3 reads model.train_step when it builds the train function, tf_keras whenever it traces it. Writing to
        # vars(model) bypasses the model's __setattr__, which would track the function. It is removed again after each
        # step.
        attributes = vars(self._model)
        absent = object()
        own = attributes.get("train_step", absent)
        attributes["train_step"] = self._train_step
        try:
            yield
        finally:
            del attributes["train_step"]
            if own is not absent:
                attributes["train_step"] = own

    def _train_step(self, data):
        logs = self._own_step(data)
        self._record(data)
        return logs

    @tf.autograph.experimental.do_not_convert
    def _record(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        values = input_values(self._flat, x)
        count = tf.shape(values[0], tf.int64)[0]
        rows = tf.minimum(self._count + tf.range(count), self._share)
        for buffer, value in zip(self._buffers, values, strict=True):
            value = tf.reshape(tf.cast(value, buffer.dtype), [count, *buffer.shape[1:]])
            # The handle is that of the replica's own copy, which has no scatter_update method.
            tf.raw_ops.ResourceScatterUpdate(resource=buffer.handle, indices=rows, updates=value)
        self._count.assign(tf.minimum(self._count + count, self._share))


class ProbeInputs:
    """The inputs that codes are taken on: given by the user, or the first `size` ones that a model trains on."""

    def __init__(self, given: Any, size: int):
        self.given, self._size = given, size
        self.recorded: list[np.ndarray] | None = None  # an array for each of the model's inputs
        self._recorder: Recorder | None = None

    @property
    def values(self) -> Any:
        """The inputs, as the model takes them; None before any are known."""
        return self.recorded if self.given is None else self.given

    @property
    def complete(self) -> bool:
        """Whether the inputs are known, or enough have been recorded."""
        return self.values is not None or (self._recorder is not None and self._recorder.full)

    def start(self, model: KerasModel, flat: KerasModel) -> None:
        """Starts to record, if no inputs are known; `flat` is a functional model with the inputs of `model`."""
        if self.values is None:
            self._recorder = Recorder(model, flat, self._size)
            self._recorder.start()

    def take(self) -> Any:
        """Returns the inputs: if none were known, those recorded so far, however few, from now on."""
        if self.values is None and self._recorder is not None:
            self.recorded = self._recorder.inputs()
        return self.values

    def stop(self) -> None:
        """Ends the recording and puts the model's own train function back."""
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the recorded inputs as named arrays; given ones are not included."""
        recorded: list[np.ndarray] = self.recorded or []
        return {str(i): value for i, value in enumerate(recorded)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores what `to_arrays` returned."""
        self.recorded = [arrays[str(i)] for i in range(len(arrays))] or None


class SkippedTraining:
    """Makes a model's training steps do nothing, until `end` is called.

    Keras trains one batch before it checks `model.stop_training`; a training that is already over must not change.
    """

    def __init__(self, model: KerasModel):
        self._model, self._own_function = model, model.train_function
        model.train_function = lambda iterator: {}
        model.stop_training = True

    def end(self) -> None:
        """Puts the model's own train function back."""
        self._model.train_function = self._own_function


def retrace(model: KerasModel) -> None:
    """Rebuilds a model's train function if it has one, because the traced one is out of date."""
    recorder = getattr(model.train_function, "__self__", None)
    if isinstance(recorder, Recorder):
        recorder.restart()
    elif model.train_function is not None:
        model.make_train_function(force=True)
