"""EarlyBird: the callback that stops a training once the partition has settled."""

import functools
import os
from typing import Any

import numpy as np
from absl import logging

from tfspline._keras.constraints import not_finite
from tfspline._keras.inputs import check_inputs
from tfspline._keras.recording import ProbeInputs, SkippedTraining
from tfspline._utils.checks import among, count, share
from tfspline._utils.workers import from_chief
from tfspline.callbacks.early_bird_tests import TESTS, Observer
from tfspline.callbacks.settling import LookClock, SettlingTest
from tfspline.callbacks.state import SavedCallback
from tfspline.graph.unrolling import functional
from tfspline.spline.calls import UNITS
from tfspline.spline.distance import partition_distance


class EarlyBird(SavedCallback):
    """Stops a training once the model's partition of its input space has settled (the early-bird ticket).

    After each epoch the region codes of fixed inputs, the probe, are compared with those of earlier epochs. The early
    bird is found at the first epoch t with max over 1 <= k <= lookback of distance(t, t - k) < threshold. The logs of
    each epoch contain this maximum as "partition_distance" ("mask_distance" with that metric). The model does not
    change. See docs/early_bird.md for metrics, looks inside an epoch, backups and failed trainings.

    Args:
        threshold: in (0, 1); 0.16 by default, 0.1 for masks.
        lookback: number of earlier epochs to compare with; 3 by default, 4 for masks.
        metric: "partition" compares region codes; "mask" pruning masks (You et al., ICLR 2020).
        probe: inputs to take the codes on; by default the first `probe_size` inputs trained on.
        probe_size: number of inputs to record if `probe` is None.
        ratio: for masks, the share of units removed, in (0, 1).
        stop_training: whether to stop when the early bird is found.
        verbose: 1 prints a line when it is found.
        backup_dir: folder for the state that an interrupted training needs to resume; not that of `BackupAndRestore`.
        every: steps between two looks, at most an epoch; by default one look at the end of each epoch.
        approximate: for codes of smooth activations, such as GELU; as for `tfspline.region_codes`.
        units: "activations", or "batch_norm" as in the authors' code; as for `tfspline.region_codes`.

    Raises:
        ValueError: an argument is out of range; in `fit`: a model, probe or backup that does not fit.

    Example:
    >>> early_bird = tfspline.EarlyBird()
    >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[early_bird])
    """

    _PARTS = ("_clock", "_settling", "_inputs")

    def __init__(
        self,
        threshold: float | None = None,
        lookback: int | None = None,
        metric: str = "partition",
        probe: Any = None,
        probe_size: int = 512,
        ratio: float = 0.5,
        stop_training: bool = True,
        verbose: int = 0,
        backup_dir: str | os.PathLike | None = None,
        every: int | None = None,
        approximate: bool = False,
        units: str = "activations",
    ):
        super().__init__(backup_dir, "epochs")
        self._test = TESTS[among("metric", metric, TESTS)]
        self.metric = metric
        self.threshold = share("threshold", self._test.threshold if threshold is None else threshold)
        self.lookback = count("lookback", self._test.lookback if lookback is None else lookback)
        given = {"probe": probe is not None, "approximate": approximate, "units": units != "activations"}
        if not self._test.uses_inputs and any(given.values()):
            name = next(name for name in given if given[name])
            raise ValueError(f"metric={metric!r} compares weights and takes no {name}. Remove {name}=.")
        self.approximate, self.units = approximate, among("units", units, UNITS)
        self.probe_size = count("probe_size", probe_size)
        self.ratio = share("ratio", ratio)
        self.stop_training = stop_training
        self.verbose = verbose
        self.every = None if every is None else count("every", every)
        self.async_safe = every is None  # otherwise Keras 3 has to wait for each step
        self._clock = LookClock(self.every)
        self._settling = SettlingTest(self.threshold, self.lookback, self._test.passes)
        self._inputs = ProbeInputs(probe if self._test.uses_inputs else (), self.probe_size)
        self._observer: Observer | None = None  # of the model, during `fit`
        self._skipped: SkippedTraining | None = None  # of a `fit` that has nothing left to train
        self._warned: set[str] = set()  # what was warned about

    @property
    def found(self) -> bool:
        """Whether the early bird has been found."""
        return self.epoch is not None

    @property
    def epoch(self) -> int | None:
        """The epoch in which the early bird was found, counted from 1; None before."""
        return self._settling.epoch

    @property
    def step(self) -> int | None:
        """With `every`, the number of steps trained when the early bird was found; None before, and without."""
        return self._settling.step

    @property
    def distances(self) -> list[float]:
        """The distance of each look; NaN where there was nothing to compare with."""
        return self._settling.distances

    def _implements_train_batch_hooks(self):
        return self.every is not None

    def on_train_begin(self, logs=None):
        """Raises an error if the model, the probe or `every` do not fit."""
        self._begun = False
        if self._backup:
            self._backup.claim()
        self._settling.rename(self._recognise())
        self._clock.set_epoch_steps(self._epoch_steps)
        self._observer = self._test.observer(self.model, self.ratio, self.approximate, self.units)
        if self._test.uses_inputs and self._inputs.values is not None:
            check_inputs(functional(self.model), self._inputs.values)

    def on_epoch_begin(self, epoch, logs=None):
        """In the first epoch, resumes an interrupted training, and starts to record the probe if necessary."""
        super().on_epoch_begin(epoch)
        if not self._begun:
            # Not in on_train_begin: BackupAndRestore restores the model there, and may come later in the list.
            self._begun = True
            self._resume(epoch)
            self._inputs.start(self.model, functional(self.model))
        self._clock.begin_epoch(epoch + 1, self._epoch_steps)

    def on_train_batch_end(self, batch, logs=None):
        """With `every`, counts the steps and looks if it is time."""
        if self.every is None or self._skipped:
            return
        if self._clock.advance(self.steps_of(batch)) and self._inputs.complete:
            self._look(logs)
        # Not only in on_epoch_end: Keras may make its own backup before this callback gets there.
        if self._backup and (self.model.stop_training or self.last_step(batch) + 1 == self._epoch_steps):
            self._put()

    def on_epoch_end(self, epoch, logs=None):
        """Compares the codes with those of earlier epochs and writes the distance to the logs."""
        if self._skipped:
            return
        logs = {} if logs is None else logs
        self._clock.epoch = epoch + 1
        if self.every is None:
            self._clock.advance()
            self._look(logs)
        else:
            if not self.model.stop_training:
                self._clock.end_epoch(self._epoch_steps)
            self._inputs.take()  # no more can be recorded than one epoch has
        logs[f"{self.metric}_distance"] = self.distances[-1] if self.distances else np.nan
        if self._backup:
            self._put()

    def on_train_end(self, logs=None):
        """Puts the model's own train function back and deletes the backups."""
        if self._backup:
            if not self._begun:  # the training was interrupted after its last epoch
                self._resume(self.params["epochs"])
            self._backup.clear()
        if self._skipped:
            self._skipped.end()
        self._inputs.stop()
        self._skipped, self._observer = None, None

    @property
    def _epoch_steps(self):
        """The number of steps of an epoch, None if Keras does not know it."""
        return (self.params or {}).get("steps")

    def _look(self, logs):
        """Takes the codes, and stops the training if they have settled."""
        broken = self._not_finite(logs)
        if broken:  # all units of a network of NaNs are off, so its partition would seem settled
            self._warn(f"{self._clock}: NaN or Inf in", [broken])
        agree = functools.partial(from_chief, self.model.distribute_strategy)  # workers must stop together
        if self._settling.look(None if broken else self._codes(), self._clock, agree):
            self.model.stop_training = self.model.stop_training or self.stop_training
            if self.verbose:
                print(f"\n{self._clock}: early bird found, {self.metric} distance {self.distances[-1]:.4f}", flush=True)

    def _not_finite(self, logs):
        """Returns what is NaN or infinite, the loss or a layer; None if the training is sound."""
        if not np.all(np.isfinite((logs or {}).get("loss", 0.0))):
            return "the loss"
        layer = not_finite(functional(self.model))
        return layer and f"layer {layer!r}"

    def _codes(self):
        codes = self._observer(self._inputs.take())
        self._warn("dead layers, in which no input of the probe activates any unit:", self._observer.dead(codes))
        return codes

    def _warn(self, problem, places):
        """Logs a warning about places that were not warned about before."""
        new = [place for place in places if place not in self._warned]
        if new:
            self._warned.update(new)
            logging.warning("EarlyBird: %s %s", problem, ", ".join(new))

    def _put(self):
        self._backup.put(self._clock.epoch, oldest=self._clock.epoch - 2)

    def _resume(self, epoch):
        """Restores the state of an interrupted training before `epoch` (counted from 0), if there is one."""
        if self._backup is None:
            return
        place = self._backup.take(epoch)
        if place is None:
            self._backup.put(epoch)
            return
        self._settling.rename(self._recognise())
        if self._settling.codes and not self._not_finite(None):
            partition_distance(self._codes(), self._settling.codes[-1])  # raises for another model's state
        if place == epoch:
            self._backup.put(epoch)
        elif place == epoch - 1 and self.every is None and self._inputs.values is not None:
            # Keras had finished the epoch before this callback saw its end; the weights are still those.
            self.on_epoch_end(epoch - 1)
        else:
            self._backup.refuse(epoch)
        if self.found and self.stop_training:
            self._skipped = SkippedTraining(self.model)

    def _settings(self):
        probe = f"probe_size={self.probe_size}" if self._inputs.given is None else "a given probe"
        options = f"threshold={self.threshold}, lookback={self.lookback}, every={self.every}"
        codes = f"{probe}, approximate={self.approximate}, units={self.units!r}"
        own = codes if self._test.uses_inputs else f"ratio={self.ratio}"
        return f"EarlyBird(metric={self.metric!r}, {options}, {own})"
