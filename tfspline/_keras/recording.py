"""Recorder: the first inputs that a model trains on."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfspline._keras.inputs import input_values


class Recorder:
    """Records the first inputs that a model trains on, from inside its train step.

    There alone can a callback see data. The step computes what it did: random ops of a tf.function take their
    seeds from the number of ops before them, so the recording comes after it.

    Under a `tf.distribute` strategy each replica records as many as any other, and all workers get to see all of them.

    Args:
        model: a compiled model with known inputs, in `fit`.
        size: how many inputs to record.

    Raises:
        ValueError: inputs of no fixed size.
    """

    def __init__(self, model, size: int):
        for tensor in model.inputs:
            if None in tensor.shape[1:]:
                raise ValueError(
                    "Expected inputs of one size, to be recorded as the probe. Received: "
                    f"{tensor.name!r} of shape {tuple(tensor.shape)}; give inputs of one size as probe="
                )
        self._model, self._strategy = model, model.distribute_strategy
        self._size = size
        self._share = -(-size // self._strategy.num_replicas_in_sync)
        local = {"trainable": False, "synchronization": tf.VariableSynchronization.ON_READ}
        with self._strategy.scope():
            self._count = tf.Variable(0, dtype=tf.int64, aggregation=tf.VariableAggregation.SUM, **local)
            # What comes after the probe is full goes to one more row, the last; this spares the step a branch.
            self._buffers = [
                tf.Variable(tf.zeros([self._share + 1, *tensor.shape[1:]], tensor.dtype), **local)
                for tensor in model.inputs
            ]

    def start(self):
        """Gives the model a train function that records, in place of the one that `fit` has made."""
        self._own_function, self._own_step = self._model.train_function, self._model.train_step
        other = getattr(self._own_function, "__self__", None)
        if isinstance(other, Recorder):  # that of another EarlyBird in the same fit, which goes on recording
            self._own_function, self._own_step = other._own_function, other._train_step
        self._make()

    def _make(self):
        with self._recording_step():
            self._model.make_train_function(force=True)
        self._recording_function = self._model.train_function
        self._model.train_function = self._train_function

    def restart(self):
        """Makes both train functions anew, the model's own and the recording one."""
        self._model.make_train_function(force=True)
        self._own_function = self._model.train_function
        self._make()

    def stop(self):
        """Gives the model its own train function back."""
        if self._model.train_function == self._train_function:
            self._model.train_function = self._own_function

    @property
    def full(self) -> bool:
        """Whether as many inputs were recorded as were asked for."""
        return bool(self._count.numpy() >= self._size)

    def inputs(self) -> list[np.ndarray]:
        """What was recorded so far, an array for each of the model's inputs."""
        shares = self._strategy.run(lambda: [buffer[: self._count.read_value()] for buffer in self._buffers])
        return [self._strategy.gather(share, axis=0)[: self._size].numpy() for share in shares]

    def _train_function(self, iterator):
        try:
            with self._recording_step():
                return self._recording_function(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise  # the end of the epoch
        except BaseException:
            # Keras tells no callback that the training has failed or was interrupted.
            self.stop()
            raise

    @contextlib.contextmanager
    def _recording_step(self):
        # Keras 3 looks the train step up when it makes the train function, tf_keras whenever it traces it.
        # The wrapper goes past the models' __setattr__, which would track it, and is never left on the model
        # between two steps.
        attributes = vars(self._model)
        absent = object()
        own = attributes.get("train_step", absent)
        attributes["train_step"] = self._train_step
        try:
            yield
        finally:
            attributes.pop("train_step")
            if own is not absent:
                attributes["train_step"] = own

    def _train_step(self, data):
        logs = self._own_step(data)
        self._record(data)
        return logs

    @tf.autograph.experimental.do_not_convert
    def _record(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        values = input_values(self._model, x)
        count = tf.shape(values[0], tf.int64)[0]
        rows = tf.minimum(self._count + tf.range(count), self._share)
        for buffer, value in zip(self._buffers, values, strict=True):
            value = tf.reshape(tf.cast(value, buffer.dtype), [count, *buffer.shape[1:]])
            # The handle is that of the replica's own copy, whose scatter_update TensorFlow has forgotten.
            tf.raw_ops.ResourceScatterUpdate(resource=buffer.handle, indices=rows, updates=value)
        self._count.assign(tf.minimum(self._count + count, self._share))


def retrace(model) -> None:
    """Makes a model's train function anew if it has one, since what has been traced of it is out of date."""
    recorder = getattr(model.train_function, "__self__", None)
    if isinstance(recorder, Recorder):
        recorder.restart()
    elif model.train_function is not None:
        model.make_train_function(force=True)
