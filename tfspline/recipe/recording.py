"""A callback that records a training in the folder of its run."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfspline import _keras
from tfspline._keras.constraints import not_finite
from tfspline._utils.files import write_npz

if TYPE_CHECKING:
    from tfspline.recipe.training import Training

METRICS = ".metrics.npz"  # extension of the state of the metrics in a checkpoint within an epoch


@dataclasses.dataclass
class Start:
    """Where a call of `fit` starts. Steps and epochs are counted since the start of the run."""

    step: int
    epochs: int  # after which the phase ends
    metrics: dict = dataclasses.field(default_factory=dict)  # their state if `step` is within an epoch
    seconds: float = 0.0  # that the steps of this epoch have already taken


class Recorder(_keras.StepCallback):
    """Adds a row to the history, with a checkpoint, after each epoch of a phase.

    If a signal stops the run within an epoch, it records the steps so far and the state of the metrics. The state of
    `callback`, an EarlyBird or SplinePruning, is saved with each checkpoint. `watch` is called with the number of each
    finished epoch.
    """

    def __init__(
        self, training: "Training", phase: str, start: Start, callback: Any, watch: Callable[[int], None] | None
    ):
        super().__init__()
        self.training, self.phase, self.start = training, phase, start
        self.callback, self.watch = callback, watch

    def set_params(self, params):
        """Tell all callbacks how long the epoch is."""
        super().set_params(params)
        # Within an epoch, Keras knows only about the remaining steps. All callbacks share this dictionary.
        params |= {"steps": self.training.steps, "epochs": self.start.epochs}

    def on_train_begin(self, logs=None):
        """Start the clock."""
        # The optimizer of the slim network counts its steps from 0.
        self.earlier_steps = self.start.step - _keras.iterations(self.model)
        self.began = time.perf_counter() - self.start.seconds

    def on_epoch_begin(self, epoch, logs=None):
        """Restore the state of the metrics if the epoch was interrupted."""
        self.epoch = epoch
        if self.start.metrics:
            for variable, value in zip(_metric_variables(self.model), self.start.metrics.values(), strict=True):
                variable.assign(value)
            self.start.metrics = {}

    def on_train_batch_end(self, batch, logs=None):
        """Check the loss, and record the steps so far if a signal was received."""
        if not math.isfinite(logs["loss"]):
            self._fail(f"The loss is {float(logs['loss'])}")
        stopper = self.training.stopper
        if stopper.received is None or self.model.stop_training or not self.trained % self.training.steps:
            return  # at the end of an epoch, on_epoch_end records it
        state = {str(i): variable.numpy() for i, variable in enumerate(_metric_variables(self.model))}
        self._record({}, {METRICS: lambda path: write_npz(path, state)})
        stopper.check()

    def on_epoch_end(self, epoch, logs=None):
        """Record the epoch."""
        facts = {name: float(value) for name, value in logs.items()}
        facts.pop("lr", None)  # tf_keras' name for the learning rate
        facts["learning_rate"] = self.training.recipe.learning_rate_at(epoch)
        if self.watch:
            self.watch(epoch + 1)
        self._record(facts, {})
        if self.phase == "search" and self.callback.found:
            self.model.stop_training = True  # with a gradual schedule, the early bird itself does not stop
        self.began = time.perf_counter()
        self.training.stopper.check()

    @property
    def trained(self) -> int:
        """The number of steps since the start of the run."""
        return self.earlier_steps + _keras.iterations(self.model)

    def _record(self, facts, files):
        if layer := not_finite(self.model):
            self._fail(f"Layer {layer!r} has NaN or infinite weights")
        row = {"phase": self.phase, "epoch": self.epoch + 1, "steps": self.trained, **facts}
        files = {".keras": self.model.save, **files}
        if self.callback is not None:
            files[".npz"] = self.callback.save
        self.training.folder.record(row | {"seconds": time.perf_counter() - self.began}, files)
        self.training.wait()

    def _fail(self, what):
        raise ValueError(
            f"{what} after step {self.trained} ({self.phase}, epoch {self.epoch + 1}). Try a lower learning_rate in a "
            "new run_dir."
        )


def _metric_variables(model):
    return [variable for metric in model.metrics for variable in metric.variables]
