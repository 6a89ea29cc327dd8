"""What acts on a training of either Keras: constraints and penalties, the optimizer's steps, the loss, callbacks."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfspline._keras.layers import weight


def set_constraint(variable: Any, constraint: Callable | None) -> None:
    """Gives a weight another constraint, or none."""
    if isinstance(variable, keras.Variable):
        variable.constraint = constraint
        return
    # In tf_keras a weight gets its constraint when it is made, and there is no public way to give one to a model that
    # is there already. `constraint` of a tf.Variable reads `_constraint`; mixed precision wraps the variable, and a
    # strategy has one for each replica.
    variable = getattr(variable, "_variable", variable)
    for copy in getattr(variable, "values", [variable]):
        copy._constraint = constraint


def add_penalty(layer: Any, path: str, penalty: Callable) -> None:
    """Adds a penalty of a weight to what a model with the layer in it minimises from its next `compile` on; it is
    saved with no model."""
    if isinstance(weight(layer, path), keras.Variable):
        weight(layer, path).regularizer = penalty
    else:
        layer.add_loss(lambda: penalty(weight(layer, path)))


def iterations(model: Any) -> int:
    """How many steps a model's optimizer has counted; any checkpoint that holds the optimizer brings them back."""
    if model.optimizer is None:
        raise ValueError(f"Expected a model compiled with an optimizer. Received: {model.name!r}, which has none")
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        # Private, but Keras 3 leaves the steps that only accumulate gradients out of `iterations`.
        return int(optimizer._iterations.numpy())
    return int(optimizer.iterations.numpy())


def tf_variable(variable: Any) -> Any:
    """The TensorFlow variable of a weight, as a GradientTape takes it, the first of a strategy's several."""
    variable = variable.value if isinstance(variable, keras.Variable) else variable
    return getattr(variable, "values", [variable])[0]


def check_loss(model: Any) -> None:
    """Raises a ValueError for a model of which `loss` cannot be taken."""
    if getattr(model, "loss", None) is None:
        raise ValueError(
            "Expected a model that is compiled with a loss, to take the gradient of: model.compile(loss=...). "
            f"Received: {model.name!r}, which has none"
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1 and not isinstance(model, keras.Model):  # it counts the loss in a metric, which only replicas can
        raise ValueError(
            "Expected a tf_keras model on one device, to take the gradient of its loss; other criteria than taylor and "
            f"snip need none. Received: {model.name!r}, on {replicas} replicas"
        )


def loss(model: Any, labels: Any, outputs: list) -> tf.Tensor:
    """The loss that a model is compiled with, a scalar, of a tensor for each of `model.outputs`."""
    # A Sequential of Keras 3 may have no `output`.
    outputs = tf.nest.pack_sequence_as(getattr(model, "output", model.outputs[0]), outputs)
    # The model may be in the middle of `fit`, whose metrics are not to count this.
    before = {id(metric): [variable.numpy() for variable in metric.variables] for metric in model.metrics}
    value = model.compute_loss(y=labels, y_pred=outputs)
    for metric in model.metrics:
        if not before.get(id(metric)):  # tf_keras makes them when they are first needed
            metric.reset_state()
            continue
        for variable, old in zip(metric.variables, before[id(metric)], strict=True):
            variable.assign(old)
    return value


class Callback(keras.callbacks.Callback):
    """A callback that runs in the `fit` of either Keras; it acts between epochs, not between batches."""

    # tf_keras asks every callback for these, to know whether it has to fetch the logs of each batch.
    def _implements_train_batch_hooks(self):
        return False

    def _implements_test_batch_hooks(self):
        return False

    def _implements_predict_batch_hooks(self):
        return False


class StepCallback(Callback):
    """One that acts between batches too, where a batch can be an execution of several steps."""

    # tf_keras fetches the logs of each batch for a callback that acts between batches, unless it says this.
    _supports_tf_logs = True
    _trained_model = None  # whose training what it remembers is of

    def set_model(self, model):
        """Takes the model of the fit; refuses one that is not the model of the fit before."""
        if self._trained_model not in (None, model):
            raise ValueError(
                f"Expected the model that this {type(self).__name__} was trained with, {self._trained_model.name!r}; "
                f"another one takes a new callback. Received: {model.name!r}"
            )
        super().set_model(model)

    def on_epoch_begin(self, epoch, logs=None):
        """Notes that it is this model that is trained."""
        self._trained_model = self.model

    def _implements_train_batch_hooks(self):
        return True

    def on_train_batch_begin(self, batch, logs=None):
        """Notes where the steps of this batch begin."""
        self._first_step = batch

    def last_step(self, batch: int) -> int:
        """The number within its epoch of the last step that was trained, in `on_train_batch_end(batch)`."""
        # Keras 3 names the last step of a whole execution also where the epoch ends within it.
        steps = (self.params or {}).get("steps")
        return min(batch, steps - 1) if steps else batch

    def steps_of(self, batch: int) -> int:
        """How many steps were trained in a batch, in `on_train_batch_end(batch)`."""
        return self.last_step(batch) - self._first_step + 1
