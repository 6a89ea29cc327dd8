"""SplinePruning: the callback that prunes gradually inside `fit`."""

import collections
import os
from collections.abc import Callable
from typing import Any

from absl import logging

from tfspline import _keras
from tfspline._utils.checks import count, instance, several
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.schedules import Progress, Schedule
from tfspline.callbacks.state import SavedCallback
from tfspline.callbacks.unit_switch import UnitSwitch
from tfspline.pruning import criteria
from tfspline.pruning.allocation import Budget
from tfspline.pruning.masks import Masks


class SplinePruning(SavedCallback):
    """Switches units off while a model trains, at the steps and in the number that a schedule gives.

    At each step that the schedule names, the units are scored as by `tfspline.plan`, and the given share of those that
    may be removed is switched off. They stay exactly zero; `tfspline.slim(model)` removes them after the training. The
    logs of each epoch contain the share as "pruning_sparsity". docs/gradual_pruning.md explains the details: order of
    callbacks, resuming, tfmot's wrappers, several workers.

    Args:
        schedule: step -> `(should_prune, sparsity)`, such as a `tfmot.sparsity.keras.PruningSchedule`.
        criterion, scope, min_units, protect, allow_inexact, data, seed: see `tfspline.plan`.
        start: the `EarlyBird(stop_training=False)` in the same `fit` at which the schedule begins; None begins at once.
        regrow: whether units that are off are scored too, with the values that they had, and may come back.
        backup_dir: folder for the state that an interrupted training needs to resume; not that of `BackupAndRestore`.

    Raises:
        TypeError, ValueError: an argument is out of range; in `fit`: a model, schedule or backup that does not fit.

    Example:

    >>> pruning = tfspline.SplinePruning(lambda step: (step % 2 == 0, min(0.5, step / 4)))
    >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[pruning])
    >>> small = tfspline.slim(model)
    """

    _PARTS = ("_progress", "_units")

    def __init__(
        self,
        schedule: Callable[[int], tuple[bool, float]],
        criterion: str | None = None,
        scope: str | None = None,
        *,
        start: EarlyBird | None = None,
        regrow: bool = False,
        min_units: int = 1,
        protect: tuple = (),
        allow_inexact: bool = False,
        data: Any = None,
        seed: int = 0,
        backup_dir: str | os.PathLike | None = None,
    ):
        super().__init__(backup_dir, "iterations")
        criterion, scope = criteria.or_defaults(criterion, scope, data)
        self.schedule, self.start = schedule, start
        self._progress = Progress(Schedule(schedule), begin=0 if start is None else None)
        self._units = UnitSwitch(
            criterion=criterion,
            budget=Budget(ratio=0.5, scope=scope, min_units=min_units),
            protect=several("protect", protect),
            allow_inexact=allow_inexact,
            data=data,
            seed=count("seed", seed, least=0),
            regrow=regrow,
        )
        self._epoch_starts = collections.deque([0, 0], 2)  # optimizer iterations at which the last two epochs began
        if start is not None and instance("start", start, EarlyBird).stop_training:
            raise ValueError("start= must not stop the training. Create it as EarlyBird(stop_training=False).")
        if start is not None and start.backup_dir is None and self._backup:
            raise ValueError("backup_dir= is given, but the EarlyBird in start= has none. Give it a backup_dir, too.")

    @property
    def masks(self) -> Masks | None:
        """The masks of the model; None before the first `fit`."""
        return self._units.masks

    @property
    def sparsity(self) -> float:
        """The share of the removable units that is off."""
        return self.masks.sparsity if self.masks else 0.0

    @property
    def step(self) -> int:
        """The number of trained steps."""
        return self._progress.step

    def on_train_begin(self, logs=None):
        """Raises an error if the model cannot be pruned, or the early bird is not in this `fit`."""
        if self.start is not None and self.start.params is not self.params:  # Keras gives all callbacks the same
            raise ValueError("The EarlyBird in start= is not in this fit. Add it to callbacks=.")
        if self._backup:
            self._backup.claim()
        self._units.begin(self.model, self._recognise())
        self._begun = False
        self._epoch_starts = collections.deque([0, 0], 2)

    def on_epoch_begin(self, epoch, logs=None):
        """In the first epoch, resumes an interrupted training; starts the schedule once the early bird is found."""
        super().on_epoch_begin(epoch)
        if not self._begun:
            # Not in on_train_begin: BackupAndRestore restores the model there, and may come later in the list.
            self._resume()
            self.masks.apply(self.model)
        starts = self._progress.begin is None and self._found(epoch)
        if starts:
            self._progress.begin = self.step
        if starts or not self._begun:
            self._check_schedule(epoch)
        self._begun = True
        self._prune()
        if self._backup:
            iterations = _keras.iterations(self.model)
            self._backup.put(iterations, oldest=self._epoch_starts[0])
            self._epoch_starts.append(iterations)

    def on_train_batch_end(self, batch, logs=None):
        """Counts the steps, and prunes if the schedule says so."""
        self._progress.step += self.steps_of(batch)
        self._prune()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the sparsity to the logs."""
        if logs is not None:
            logs["pruning_sparsity"] = self.sparsity

    def on_train_end(self, logs=None):
        """Takes the constraints off; the zeros stay."""
        if not self._begun and self._resume():  # the training was interrupted after its last epoch
            self.masks.apply(self.model)
            self._prune()
        Masks.release(self.model)
        self._units.end()
        if self._backup:
            self._backup.clear()
        if self._progress.begin is None:
            logging.warning(
                "SplinePruning: the early bird was not found, so nothing was pruned. Train longer, or raise "
                "its threshold."
            )

    def _found(self, epoch):
        self.start.on_epoch_begin(epoch)  # it may come later in the list, with a state to restore
        return self.start.found

    def _check_schedule(self, epoch):
        steps, epochs = ((self.params or {}).get(name) for name in ("steps", "epochs"))
        if not steps or not epochs:
            return  # the length of the data is unknown
        misfit = self._progress.misfit((epochs - epoch) * steps)
        if misfit is None:
            return
        if not self._progress.prunes((epochs - epoch) * steps) and self.start is None:
            Masks.release(self.model)
            raise ValueError(misfit)
        begin = "" if self.start is None else f", started at the early bird in step {self.step}"
        logging.warning("SplinePruning%s: %s", begin, misfit)

    def _prune(self):
        sparsity = self._progress.due()
        if sparsity is not None:
            self._units.switch(self.model, sparsity, self.step)
            if self._backup:
                self._backup.put(_keras.iterations(self.model))

    def _resume(self) -> bool:
        """Restores the state of an interrupted training; returns whether there was one."""
        if self._backup is None:
            return False
        iterations = _keras.iterations(self.model)
        place = self._backup.take(iterations)
        if place is None:
            return False
        self._units.resume(self.model, self.step if place == iterations else None, self._recognise())
        self._progress.step += iterations - place
        return True

    def _settings(self):
        units, start = self._units, "beginning" if self.start is None else "early bird"
        budget = f"scope={units.budget.scope!r}, min_units={units.budget.min_units}"
        options = f"start at the {start}, regrow={units.regrow}, seed={units.seed}"
        return f"SplinePruning(criterion={units.criterion!r}, {budget}, {options})"
