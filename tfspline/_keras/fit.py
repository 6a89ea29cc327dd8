"""Training: penalties, the steps of the optimizer, the loss, and base classes for callbacks."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfspline._keras.layers import weight
from tfspline._keras.types import KerasLayer, KerasModel, KerasVariable


def add_penalty(layer: KerasLayer, path: str, penalty: Callable) -> None:
    """Adds a penalty on a weight to the loss of models with that layer, from their next `compile` on, unsaved."""
    if isinstance(weight(layer, path), keras.Variable):
        weight(layer, path).regularizer = penalty
    else:
        layer.add_loss(lambda: penalty(weight(layer, path)))


def iterations(model: KerasModel) -> int:
    """The number of steps that a model's optimizer has made, which is part of the optimizer's checkpoints."""
    if getattr(model, "optimizer", None) is None:  # Keras 3 has no such attribute before the model is compiled
        raise ValueError(
            f"Expected a model compiled with an optimizer. Received: {model.name!r}, which has none; call "
            "model.compile(optimizer=...)."
        )
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        # The public `iterations` of Keras 3 does not count steps that only accumulate gradients.
        return int(optimizer._iterations.numpy())
    return int(optimizer.iterations.numpy())


def tf_variable(variable: KerasVariable) -> Any:
    """The TensorFlow variable of a weight, for a GradientTape; the first replica's under a strategy."""
    variable = variable.value if isinstance(variable, keras.Variable) else variable
    return getattr(variable, "values", [variable])[0]


def check_loss(model: KerasModel) -> None:
    """Raises a ValueError if `loss` cannot be computed for a model."""
    if getattr(model, "loss", None) is None:
        raise ValueError(
            f"Expected a model that is compiled with a loss, for its gradient. Received: {model.name!r}, which has "
            "none; call model.compile(loss=...)."
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1 and not isinstance(model, keras.Model):  # its loss updates a metric, which works only in replicas
        raise ValueError(
            f"Expected a tf_keras model on one device, for the gradient of its loss. Received: {model.name!r}, on "
            f"{replicas} replicas; choose a criterion other than taylor and snip."
        )


def share_loss(model: KerasModel, other: KerasModel) -> None:
    """Compiles another model with the loss of a model, if that has one."""
    if getattr(model, "loss", None) not in (None, getattr(other, "loss", None)):
        weights = (model.get_compile_config() or {}).get("loss_weights")
        with model.distribute_strategy.scope():
            other.compile(loss=model.loss, loss_weights=weights)


def loss(model: KerasModel, labels: Any, outputs: list) -> tf.Tensor:
    """The loss that a model was compiled with, a scalar. `outputs` has one tensor for each of `model.outputs`."""
    # A Sequential of Keras 3 may have no `output`.
    outputs = tf.nest.pack_sequence_as(getattr(model, "output", model.outputs[0]), outputs)
    # The model may be in `fit`, whose metrics must not include this loss.
    before = {id(metric): [variable.numpy() for variable in metric.variables] for metric in model.metrics}
    value = model.compute_loss(y=labels, y_pred=outputs)
    for metric in model.metrics:
        if not before.get(id(metric)):  # tf_keras creates them when they are first needed
            metric.reset_state()
            continue
        for variable, old in zip(metric.variables, before[id(metric)], strict=True):
            variable.assign(old)
    return value


class Callback(keras.callbacks.Callback):
    """A callback for the `fit` of both Keras versions that acts between epochs, not between batches."""

    # tf_keras calls these methods to find out whether it must fetch the logs of each batch.
    def _implements_train_batch_hooks(self):
        return False

    def _implements_test_batch_hooks(self):
        return False

    def _implements_predict_batch_hooks(self):
        return False


class StepCallback(Callback):
    """A callback that acts between batches too. With `steps_per_execution`, a batch here is several train steps."""

    # Without this, tf_keras fetches the logs of each batch for a callback that acts between batches.
    _supports_tf_logs = True
    _trained_model = None  # the model whose training its state is about

    def set_model(self, model):
        """Sets the model; raises a ValueError if an earlier fit trained another one."""
        if self._trained_model not in (None, model):
            raise ValueError(
                f"Expected the model that this {type(self).__name__} was trained with, {self._trained_model.name!r}. "
                f"Received: {model.name!r}; create a new callback for another model."
            )
        super().set_model(model)

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers which model is trained."""
        self._trained_model = self.model

    def _implements_train_batch_hooks(self):
        return True

    def on_train_batch_begin(self, batch, logs=None):
        """Remembers the first step of this batch."""
        self._first_step = batch

    def last_step(self, batch: int) -> int:
        """In `on_train_batch_end(batch)`: the number, within the epoch, of the last trained step."""
        # Keras 3 passes the last step of a whole execution, even if the epoch ends within it.
        steps = (self.params or {}).get("steps")
        return min(batch, steps - 1) if steps else batch

    def steps_of(self, batch: int) -> int:
        """In `on_train_batch_end(batch)`: how many steps the batch had."""
        return self.last_step(batch) - self._first_step + 1
