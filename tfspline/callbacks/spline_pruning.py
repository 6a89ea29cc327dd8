"""Gradual pruning inside `fit`: a schedule says when and how much, a plan says which units."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from tfspline import _keras
from tfspline._keras.constraints import weights
from tfspline._keras.inputs import probe
from tfspline._utils.checks import count, several
from tfspline._utils.files import read_npz, with_prefix, write_npz
from tfspline._utils.workers import from_chief
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.state import Backup
from tfspline.graph import reader as graphs
from tfspline.pruning import criteria
from tfspline.pruning.allocation import Budget
from tfspline.pruning.masks import Masks, entries
from tfspline.pruning.planning import choose


class SplinePruning(_keras.StepCallback):
    """Switches units off while a model trains, as many and at those steps as a schedule of tfmot says.

    At each step that the schedule names, the units are scored anew as by `tfspline.plan`, the share that it gives of
    those that may go is switched off, and stays exactly zero (see `Masks.apply`). After the training nothing is left in
    the model but the zeros: `tfspline.slim(model)` makes it small.

    Steps are batches, counted from 0: a step that is named is acted on before it is trained, the one after the last
    at the end. With `steps_per_execution` it is acted on as soon as the execution that it falls into has ended. A
    further `fit` goes on where the one before ended.

    The share that is off stands in the logs of every epoch as "pruning_sparsity"; put callbacks that read it behind
    this one in the list. `EarlyStopping(restore_best_weights=True)` may bring back weights from before units went: put
    it in front, and they are switched off again.

    In a model that tfmot has wrapped, the wrappers have the masks as well, and tfmot chooses none of its own meanwhile;
    put its `UpdatePruningStep` in the same list.

    Where several workers train (`MultiWorkerMirroredStrategy`, with tf_keras), all switch off what the chief chooses,
    and only the chief writes to `backup_dir`, which all have to see.

    If the training fails or is interrupted, Keras tells no callback: `Masks.release(model)` takes the constraints off.

    With a `backup_dir` a training that is cut goes on as if it had not been: the same call of `fit`, made again, brings
    masks and step back to those of the weights, which it knows by the `iterations` of their optimizer. These come back
    with `BackupAndRestore`, anywhere in the list, and with whole models of `ModelCheckpoint` (then give
    `initial_epoch`). The folder holds the states of the last two epochs and the present one, and is emptied when `fit`
    ends. Older ones: `save` what you want to `load`. (`BackupAndRestore` with a number as `save_freq` brings back
    weights from inside an epoch, but not the place in the data: masks and step are right, the batches are others.)

    Attributes:
        masks: the `Masks` of the model; None before the first `fit`.
        sparsity: the share of the units that may go which is off.
        step: how many steps have been trained.

    Args:
        schedule: any `tfmot.sparsity.keras.PruningSchedule`, or a callable of the same kind: of a step, an int, it
            makes `(should_prune, sparsity)`, the latter in [0, 1).
        criterion: as for `tfspline.plan`.
        scope: as for `tfspline.plan`, "layer" or "global".
        start: None counts the schedule's steps from the first one trained; "early_bird" from the end of the epoch in
            which an `EarlyBird(stop_training=False)` in the same list of callbacks has found its bird.
        regrow: units that were off are scored with the values that they had, and may come back with them. By default
            they stay off. Takes memory for a copy of the weights.
        min_units: as for `tfspline.plan`.
        protect: as for `tfspline.plan`.
        allow_inexact: as for `tfspline.plan`.
        data: as for `tfspline.plan`: inputs, for criteria that look at the units at work, or `(x, y)`.
        seed: of the criterion "random".
        backup_dir: a folder for what a training that is cut needs to go on, other than that of `BackupAndRestore`, the
            same as the `EarlyBird`'s if you like; None keeps nothing. With `regrow` a state is as large as the weights.

    Raises:
        TypeError, ValueError: an argument out of range, at once; when `fit` begins: another model than in the `fit`
            before, one without units that may go, no `EarlyBird` to start at, a schedule that never prunes within the
            fit, or that would go on beyond its end (where the number of steps is known); a backup that is damaged, of
            another model or of other arguments, or that begins later than the model's weights.

    Example:

    >>> import keras, numpy as np, tfspline
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> schedule = lambda step: (step % 2 == 0, min(0.5, step / 8))  # or tfmot's PolynomialDecay
    >>> pruning = tfspline.SplinePruning(schedule)
    >>> history = model.fit(np.ones((16, 4)), np.ones((16, 2)), 4, 2, verbose=0, callbacks=[pruning])
    >>> history.history["pruning_sparsity"], tfspline.slim(model).get_layer("a").units
    ([0.5, 0.5], 4)
    """

    def __init__(
        self,
        schedule: Callable[[int], tuple[bool, float]],
        criterion: str = "spline",
        scope: str = "layer",
        *,
        start: str | None = None,
        regrow: bool = False,
        min_units: int = 1,
        protect: tuple = (),
        allow_inexact: bool = False,
        data: Any = None,
        seed: int = 0,
        backup_dir: str | os.PathLike | None = None,
    ):
        super().__init__()
        if not callable(schedule) or isinstance(schedule, type):
            raise TypeError(f"Expected a schedule, step -> (should_prune, sparsity). Received: {schedule!r}")
        if start not in (None, "early_bird"):
            raise ValueError(f"Expected `start` to be None or 'early_bird'. Received: {start!r}")
        criteria.named(criterion)
        _named(schedule, 0)
        self.schedule, self.criterion, self.start, self.regrow = schedule, criterion, start, regrow
        self._budget = Budget(ratio=0.5, scope=scope, min_units=min_units)  # refuses what is out of range
        self._protect, self._allow_inexact = several("protect", protect), allow_inexact
        self.data, self.seed = data, count("seed", seed, least=0)
        self.masks = None
        self.step = 0
        self._begin = 0 if start is None else None  # the step at which the schedule's step is 0
        self._next = 0  # the schedule's first step that has not been looked at
        self._dense = {}  # with `regrow`, what the weights were before units of theirs were switched off
        self._dense_step = -1  # when that was
        self._probe = None  # what `data` holds, while `fit` runs
        self._loaded = None  # which units were off, in a state that was loaded
        self._checked = False
        self._backup = None if backup_dir is None else Backup(backup_dir, self, "iterations")

    @property
    def sparsity(self) -> float:
        """The share of the units that may go which is off."""
        return self.masks.sparsity if self.masks else 0.0

    def on_train_begin(self, logs=None):
        """Refuses what cannot be pruned, and puts the masks on."""
        graph = graphs.read(self.model, self._protect, self._allow_inexact)
        if self.start == "early_bird" and self._bird is None:
            raise ValueError("Expected an EarlyBird in the same list of callbacks to start at. Received: none")
        if self.start == "early_bird" and self._bird.stop_training:
            raise ValueError(
                "Expected an EarlyBird that lets the training go on, EarlyBird(stop_training=False). "
                "Received: one with stop_training=True"
            )
        if self.start == "early_bird" and self._backup and self._bird.backup_dir is None:
            raise ValueError("Expected an EarlyBird with a backup_dir as well. Received: one without")
        self._probe = None if self.data is None else probe(self.model, self.data)
        if self._loaded:
            self._take_loaded(graph)
        elif self.masks is None:
            self._choice(graph, 0.5)  # so that a criterion that does not fit the model is refused now
            self.masks = Masks(graph, np.zeros(graph.units, bool))
        self._checked = False
        self._begins = collections.deque([0, 0], 2)  # the iterations at which the last epochs began

    def on_epoch_begin(self, epoch, logs=None):
        """Puts the masks on, refuses a schedule that does not fit into the training, and begins it."""
        super().on_epoch_begin(epoch)
        if not self._checked:
            # Not when `fit` begins: BackupAndRestore may stand behind this callback.
            self._resume()
            self.masks.apply(self.model)
        if self._begin is None:
            self._bird.on_epoch_begin(epoch)  # it may stand behind this callback too
        begins = self._begin is None and self._bird.found
        if begins:
            self._begin = self.step
        if begins or not self._checked:
            self._check(epoch, late=self.start is not None and self._begin is not None)
        self._checked = True
        self._act()
        if self._backup:
            iterations = _keras.iterations(self.model)
            self._backup.put(iterations, oldest=self._begins[0])
            self._begins.append(iterations)

    def on_train_batch_end(self, batch, logs=None):
        """Counts the steps, and prunes if the schedule says so."""
        self.step += self.steps_of(batch)
        self._act()

    def on_epoch_end(self, epoch, logs=None):
        """Logs the sparsity."""
        if logs is not None:
            logs["pruning_sparsity"] = self.sparsity

    def on_train_end(self, logs=None):
        """Takes the constraints off; the zeros stay."""
        if not self._checked and self._resume():  # it was cut after the last epoch
            self.masks.apply(self.model)
            self._act()
        Masks.release(self.model)
        self._probe = None
        if self._backup:
            self._backup.clear()
        if self._begin is None:
            logging.warning("SplinePruning: the early bird was not found, so nothing was pruned.")

    @property
    def _bird(self):
        return (self.params or {}).get(EarlyBird.KEY)

    def _check(self, epoch, late=False):
        steps, epochs = ((self.params or {}).get(name) for name in ("steps", "epochs"))
        if not steps or not epochs:
            return  # a generator: nobody knows how long it is
        last = self.step - (self._begin or 0) + (epochs - epoch) * steps
        named = dict(_named_within(self.schedule, 0, last + 1))
        if not any(named.values()):
            self._refuse(f"that prunes within the {last} steps of the fit", "one that never does", late)
            return
        final = named[max(named)]
        end = getattr(self.schedule, "end_step", None)  # tfmot's have one, -1 for never
        beyond = [end] if end is not None else range(last + 1, 2 * last + 1)
        later = [step for step in beyond if step > last and _named(self.schedule, step) not in (None, final)]
        if later:
            self._refuse(
                f"that ends within the {last} steps of the fit",
                f"one that reaches {final:.4g} there, and {_named(self.schedule, later[-1]):.4g} at step {later[-1]}",
                late,
            )

    def _refuse(self, expected, received, late):
        message = f"Expected a schedule {expected}. Received: {received}"
        if late:  # the dense training up to the bird is done: better to go on than to throw it away
            logging.warning("SplinePruning, begun at the early bird at step %d: %s", self.step, message)
        else:
            Masks.release(self.model)
            raise ValueError(message)

    def _act(self):
        if self._begin is None:
            return
        stop = self.step - self._begin + 1
        named = list(_named_within(self.schedule, self._next, stop))
        self._next = max(self._next, stop)
        if named:
            self._prune(named[-1][1])
            if self._backup:
                self._backup.put(_keras.iterations(self.model))

    def _prune(self, sparsity):
        graph, before = self.masks.graph, self.masks.off
        if self.regrow:
            self._bring_back()
            off = self._choice(graph, sparsity) if sparsity else np.zeros_like(before)
        else:
            off = before | self._choice(graph, sparsity, before) if sparsity else before
        self.masks = Masks(graph, off)
        self.masks.apply(self.model)

    def _choice(self, graph, sparsity, off=None):
        budget = dataclasses.replace(self._budget, ratio=sparsity)
        rng = np.random.default_rng([self.seed, self.step])
        off = choose(self.model, graph, budget, self.criterion, rng, self._probe, off)
        return np.array(from_chief(self.model.distribute_strategy, off), bool)

    def _resume(self) -> bool:
        """Goes on where a training was cut, if it was."""
        if self._backup is None:
            return False
        graph, iterations = self.masks.graph, _keras.iterations(self.model)
        found = self._backup.take(iterations)
        if found is None:
            return False
        self._take_loaded(graph)
        if found == iterations and self._dense_step == self.step:
            # The weights may have been saved just before units went and others came back.
            for place, weight in weights(self.model):
                if place in self._dense:
                    weight.assign(self._dense[place])
        self.step += iterations - found
        return True

    def _take_loaded(self, graph):
        if set(self._loaded) != set(graph.producers):
            raise ValueError(
                f"Expected the state of a SplinePruning of a model with the layers {sorted(graph.producers)}. "
                f"Received: {sorted(self._loaded)}"
            )
        self.masks, self._loaded = Masks.of_layers(graph, self._loaded), None

    def _bring_back(self):
        """Gives the units that are off the values back that they had."""
        on, self._dense_step = entries(self.masks.graph, self.masks.off), self.step
        for place, weight in weights(self.model):
            if place in on:
                value = weight.numpy()
                self._dense[place] = np.where(on[place], value, self._dense.get(place, value))
                weight.assign(self._dense[place])

    def save(self, path: str | os.PathLike) -> None:
        """Writes where the callback is, masks included, to an .npz file, for `load` in a later process."""
        arrays = {
            "settings": np.array(self._settings()),
            "steps": np.array([self.step, -1 if self._begin is None else self._begin, self._next, self._dense_step]),
        }
        arrays.update({f"on/{layer}": on for layer, on in (self.masks or {}).items()})
        arrays.update({f"dense/{layer}/{index}": value for (layer, index), value in self._dense.items()})
        write_npz(path, arrays)

    def load(self, path: str | os.PathLike) -> None:
        """Goes on where the callback that wrote this file with `save` was, one made with the same arguments; the model
        must have its weights of then when `fit` begins.

        Raises:
            ValueError: the file is damaged, or was written by a callback with other arguments; when `fit` begins: it
                was written for another model.
        """
        settings, (step, begin, following, dense_step), on, dense = read_npz(path, _state)
        if settings != self._settings():
            raise ValueError(f"Expected the state of a SplinePruning with {self._settings()}. Received: {settings}")
        self.step, self._begin, self._next = step, None if begin < 0 else begin, following
        self.masks, self._loaded, self._dense, self._dense_step = None, on, dense, dense_step
        self._trained_model = None

    def _settings(self):
        budget = f"scope={self._budget.scope} min_units={self._budget.min_units}"
        return f"criterion={self.criterion} {budget} start={self.start} regrow={self.regrow} seed={self.seed}"


def _named_within(schedule, first: int, stop: int) -> Iterator[tuple[int, float]]:
    """The steps in [first, stop) at which a schedule prunes, each with the sparsity that it gives."""
    steps = range(first, stop)
    if type(schedule).__module__.startswith("tensorflow_model_optimization."):
        # tfmot's own take turns, and a call to one costs a millisecond: as much as a small step of training.
        turns = max(0, -((schedule.begin_step - first) // schedule.frequency))
        steps = range(schedule.begin_step + turns * schedule.frequency, stop, schedule.frequency)
    for step in steps:
        sparsity = _named(schedule, step)
        if sparsity is not None:
            yield step, sparsity


def _named(schedule, step: int) -> float | None:
    """The sparsity that a schedule gives for a step if it prunes at it, otherwise None."""
    answer = schedule(step)
    try:
        prune, sparsity = answer
        prune, sparsity = bool(prune), round(float(sparsity), 6)  # tfmot's are float32: 0.3 is not to be 0.29999998
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Expected a schedule that makes (should_prune, sparsity) of a step. Received: {answer!r}"
        ) from error
    if not prune:
        return None
    if not 0 <= sparsity < 1:
        raise ValueError(f"Expected a schedule with sparsities in [0, 1). Received: {sparsity} at step {step}")
    return sparsity


def _state(arrays: dict) -> tuple:
    """What `SplinePruning.save` has written: settings, steps, which units are on, values kept aside."""
    dense = {}
    for key, value in with_prefix(arrays, "dense/").items():
        layer, _, index = key.rpartition("/")
        dense[layer, int(index)] = value
    step, begin, following, dense_step = arrays["steps"].tolist()
    return str(arrays["settings"]), (step, begin, following, dense_step), with_prefix(arrays, "on/"), dense
