"""EarlyBird: the callback that stops a training once the partition has settled."""

import math
import operator
import os
from typing import Any

import numpy as np
from absl import logging

from tfspline import _keras
from tfspline._keras.inputs import check_inputs
from tfspline._keras.recording import Recorder
from tfspline._keras.trouble import not_finite
from tfspline._utils.checks import among, count, share
from tfspline._utils.files import read_npz, with_prefix, write_npz
from tfspline._utils.workers import from_chief
from tfspline.callbacks.code_history import Looks
from tfspline.callbacks.pruning_mask import pruning_mask
from tfspline.callbacks.state import Backup
from tfspline.spline.codes import Codes, RegionEncoder
from tfspline.spline.distance import partition_distance

# metric -> threshold, lookback and how the distance compares with the threshold, as in the authors' released
# code. The mask test keeps a queue of five masks, so the newest is compared with four.
_METRICS = {"partition": (0.16, 3, operator.lt), "mask": (0.1, 4, operator.le)}


class EarlyBird(_keras.StepCallback):
    """Stops the training once the model's partition of its input space has settled: the early-bird ticket.

    After each epoch the region codes of a fixed set of inputs, the probe, are compared with those of the
    epochs before. The bird is found at the first epoch t at which

        max over 1 <= k <= lookback of distance(t, t - k) < threshold

    (You et al., "Max-Affine Spline Insights Into Deep Network Pruning", TMLR 2022). With `metric="mask"` it
    is the older test of You et al., "Drawing Early-Bird Tickets" (ICLR 2020): the same with <=, where the
    distance is that of two pruning masks, the share of units on which they disagree. The mask leaves out the
    `ratio` of all units with the smallest |gamma| of their BatchNormalization; in a model without one, of
    those with the smallest l1 norm of their Dense or Conv kernel, the last such layer (the head) not counted.

    The model is not changed in any way. Where `probe` is not given, the inputs of the first training batches
    are recorded from inside the train step, which is rebuilt for this at the beginning of `fit`, and the
    model's own one put back at its end.

    The distance stands in the logs of every epoch as "partition_distance" ("mask_distance" with that metric):
    the max above, over as many earlier epochs as there are yet, NaN where there are none; with `every`, that of the
    last look. Put callbacks that read it (`CSVLogger`, `TensorBoard`) behind this one in the list.

    A partition that has settled and a training that has failed can look alike. An epoch (a look) at which the loss, a
    weight or a statistic of batch normalization is not finite gives NaN, and the comparison starts anew after it;
    `keras.callbacks.TerminateOnNaN` ends such a training at the step. A dead layer, of which no input of the probe
    switches any unit on, moves no longer: its distance of 0 counts. Of both it warns once, by name, in absl's log;
    with `metric="mask"`, which sees no inputs, of the first only.

    Where the partition does not settle, `fit` trains all its epochs: then `found` is False, `epoch` None, and the last
    of `distances` says how far it was from it. Prune all the same, or train on with a higher `threshold`.

    With `every=n` the test is made every n training steps, so that the bird can be found, and the training ends,
    inside an epoch. The codes are compared with those of 1, 2, ... lookback epochs before, in steps: the looks nearest
    to that. So a distance means the same at any n, and needs no other threshold: looks at the ends of epochs find what
    the test once an epoch finds, those in between find it up to an epoch before, after `lookback` epochs and a look at
    the earliest. (For epochs shorter than those of the data set, tell `fit` with `steps_per_epoch`.)

    A look costs a forward pass of the probe: about probe_size / (3 n batch_size) of the training, 4 % with 512 inputs,
    batches of 128 and n=32. The codes of all looks of `lookback` epochs are kept, in memory and in `backup_dir`. Where
    several steps are executed at a time (`steps_per_execution`), a look waits for the end of an execution. Where Keras
    does not know how long an epoch is, the first one tells.

    Under a `tf.distribute` strategy each replica records its share of the probe, and all look at the whole of it. Where
    several workers train (`MultiWorkerMirroredStrategy`, with tf_keras), the chief's distances count for all, and only
    it writes to `backup_dir`, which all have to see.

    One object watches one training of one model: a further `fit` goes on where the one before ended. A bird is found
    only once.

    With a `backup_dir` the distances and the codes that the next epochs need survive a training that is cut: the same
    call of `fit`, made again, brings them back to the epoch that Keras begins at, by `BackupAndRestore` (put it behind
    this one in the list) or by `initial_epoch` and a model from a `ModelCheckpoint`. The folder holds the ends of
    the last three epochs, and is emptied when `fit` ends. Older ones: `save` what you want to `load`. With `every`, let
    Keras make its backups at ends of epochs too, as it does by default.

    Attributes:
        found: whether the bird has been found.
        epoch: the epoch in which it was found, counted from 1 as `fit` shows them, a further `fit` with its
            `initial_epoch`; None before.
        step: how many steps were trained when it was found, with `every`; None before, and without.
        distances: the distance of each epoch (each look), as in the logs.

    Args:
        threshold: the distance below which the partition has settled, in (0, 1); 0.16 by default, 0.1 for
            masks.
        lookback: with how many epochs before it an epoch is compared; 3 by default, 4 for masks.
        metric: "partition" or "mask".
        probe: inputs to take the codes on, as the model takes them, such as `tfspline.plane`; by default the
            first ones trained on. Only for `metric="partition"`.
        probe_size: how many inputs are recorded where `probe` is not given.
        ratio: the share of units that the mask leaves out, in (0, 1). Only for `metric="mask"`.
        stop_training: stop when the bird is found.
        verbose: 1 to print a line when it is found.
        backup_dir: a folder for what a training that is cut needs to go on, other than that of `BackupAndRestore`;
            None keeps nothing.
        every: how many training steps lie between two looks, at most an epoch's; None looks at the end of each epoch.

    Raises:
        ValueError: an argument out of range, at once; when `fit` begins: another model than in the `fit` before (for
            the same one out of a file, `save` and `load` the callback), looks more than an epoch apart, a probe that
            does not fit the model, a model whose codes cannot be taken (see `tfspline.region_codes`) or without units
            to mask; a backup that is damaged, of another model or of other arguments, or that holds no state for the
            epoch.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(1e-6), "mse")
    >>> early_bird = tfspline.EarlyBird()
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> history = model.fit(x, y, epochs=20, verbose=0, callbacks=[early_bird])
    >>> early_bird.epoch, early_bird.distances
    (4, [nan, 0.0, 0.0, 0.0])
    """

    KEY = "early_bird"  # of the bird in the parameters of a fit

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
    ):
        super().__init__()
        default_threshold, default_lookback, self._below = _METRICS[among("metric", metric, _METRICS)]
        self.metric = metric
        self.threshold = share("threshold", default_threshold if threshold is None else threshold)
        self.lookback = count("lookback", default_lookback if lookback is None else lookback)
        if metric == "mask" and probe is not None:
            raise ValueError("Expected no probe with metric='mask', which looks at weights only. Received: a probe")
        self.probe = probe
        self.probe_size = count("probe_size", probe_size)
        self.ratio = share("ratio", ratio)
        self.stop_training = stop_training
        self.verbose = verbose
        self.backup_dir = backup_dir
        self.every = None if every is None else count("every", every)
        self.async_safe = every is None  # Keras 3 need not wait for a step that is not looked at
        self.epoch = self.step = None
        self.distances = []
        self._looks = Looks(self.lookback)  # the codes or masks before, each with its `_trained`
        self._trained = 0  # how many steps were trained; without `every`, how many epochs
        self._epoch_steps = None  # how many of them an epoch has, where Keras does not know it
        self._epoch_began = 0  # and when the present one began
        self._recorded = None  # the probe, if it was recorded
        self._encoder = None
        self._told = set()  # the troubles that were warned of
        self._recorder = None
        self._begun = False
        self._idle = None  # the model's train function, while nothing is to be trained
        self._backup = None if backup_dir is None else Backup(backup_dir, self, "epochs")

    @property
    def found(self) -> bool:
        """Whether the bird has been found."""
        return self.epoch is not None

    def set_params(self, params):
        """Takes the parameters of the fit, and makes the bird known to the callbacks beside it: they get the same."""
        super().set_params(params)
        params[self.KEY] = self

    def _implements_train_batch_hooks(self):
        return self.every is not None

    def on_train_begin(self, logs=None):
        """Refuses what cannot be watched."""
        self._begun = False
        self._check_period()
        if self.metric == "mask":
            pruning_mask(self.model, self.ratio)
            return
        self._encoder = RegionEncoder(self.model)
        given = self.probe if self.probe is not None else self._recorded
        if given is not None:
            check_inputs(self.model, given)

    def on_epoch_begin(self, epoch, logs=None):
        """In the first epoch, goes on where a training was cut, and begins to record the probe if there is none yet."""
        super().on_epoch_begin(epoch)
        if not self._begun:
            self._begun = True
            # Not when `fit` begins: BackupAndRestore may stand behind this callback.
            if self._backup:
                self._resume(epoch)
            if not self._probed:
                self._recorder = Recorder(self.model, self.probe_size)
                self._recorder.start()
        self._epoch, self._epoch_began = epoch, self._trained

    @property
    def _period(self):
        """How many steps lie between two looks, and how many an epoch has, None where nobody knows."""
        if self.every is None:
            return 1, 1
        return self.every, (self.params or {}).get("steps") or self._epoch_steps

    def _check_period(self):
        every, epoch = self._period
        if epoch and every > epoch:
            raise ValueError(f"Expected `every` to be at most the {epoch} steps of an epoch. Received: {every}")

    def _resume(self, epoch):
        found = self._backup.take(epoch)
        if found is None:
            self._backup.put(epoch)
            return
        if self._looks.codes:
            partition_distance(self._code(), self._looks.codes[-1])  # refuses what another model has left
        if found == epoch:
            self._backup.put(epoch)
        elif found == epoch - 1 and self._probed and self.every is None:
            # An epoch can be over for Keras before this callback has seen its end; the weights are still those.
            self.on_epoch_end(epoch - 1)
        else:
            self._backup.refuse(epoch)
        if self.found and self.stop_training:
            # It was cut when nothing was left to do, but Keras trains a batch before it looks whether to stop.
            self.model.stop_training = True
            self._idle, self.model.train_function = self.model.train_function, lambda iterator: {}

    def on_train_batch_end(self, batch, logs=None):
        """With `every`, counts the steps, and looks if it is time."""
        if self.every is None or self._idle:
            return
        before = self._trained
        self._trained += self.steps_of(batch)
        if self._trained // self.every > before // self.every and (self._probed or self._recorder.full):
            self._look(self._epoch, logs)
        # Not only at the end of the epoch: Keras may have made its own backup when this callback gets to see that.
        if self._backup and (self.model.stop_training or self.last_step(batch) + 1 == self.params.get("steps")):
            self._put(self._epoch)

    def on_epoch_end(self, epoch, logs=None):
        """Compares the epoch with those before it."""
        if self._idle:
            return
        logs = {} if logs is None else logs
        if self.every is None:
            self._trained += 1
            self._look(epoch, logs)
        else:
            if not self.model.stop_training:
                self._epoch_steps = self._trained - self._epoch_began
                self._check_period()
            self._inputs()  # of fewer inputs than asked for there will not be more
        logs[f"{self.metric}_distance"] = self.distances[-1] if self.distances else math.nan
        if self._backup:
            self._put(epoch)

    def _look(self, epoch, logs):
        """Takes the codes, compares them with those before, and stops the training if they have settled."""
        distances, when = [], f"Epoch {epoch + 1}" + (f", step {self._trained}" if self.every else "")
        finite = np.all(np.isfinite((logs or {}).get("loss", 0.0)))
        if broken := not_finite(self.model) if finite else "the loss":
            self._looks.clear()  # the units of a network of NaNs are all off: its partition would look settled
            self._tell(f"{when}: not finite any more", [broken])
        else:
            distances = self._looks.add(self._code(), self._trained, *self._period)
        strategy = self.model.distribute_strategy  # whose workers may round differently, and have to stop together
        self.distances.append(float(from_chief(strategy, max(distances, default=math.nan))))
        settled = len(distances) == self.lookback and self._below(self.distances[-1], self.threshold)
        if settled and not self.found:
            self.epoch, self.step = epoch + 1, self.every and self._trained
            self.model.stop_training = self.model.stop_training or self.stop_training
            if self.verbose:
                print(f"\n{when}: early bird found, {self.metric} distance {self.distances[-1]:.4f}", flush=True)

    def _put(self, epoch):
        self._backup.put(epoch + 1, oldest=epoch - 1)

    def on_train_end(self, logs=None):
        """Puts the model's own train function back."""
        if self._backup:
            if not self._begun:  # it was cut after the last epoch
                self._resume(self.params["epochs"])
            self._backup.clear()
        if self._idle:
            self.model.train_function, self._idle = self._idle, None
        if self._recorder is not None:
            self._recorder.stop()
        self._recorder = self._encoder = None

    def save(self, path: str | os.PathLike) -> None:
        """Writes what the callback remembers to an .npz file, for `load` in a later process.

        The probe is in it if it was recorded; one that was given has to be given again.
        """
        arrays = {
            "settings": np.array(self._settings()),
            "found": np.array([self.epoch or 0, self.step or 0]),
            "steps": np.array([self._trained, self._epoch_steps or 0, *self._looks.times]),
            "distances": np.array(self.distances, np.float64),
        }
        arrays.update({f"probe/{i}": value for i, value in enumerate(self._recorded or [])})
        for i, codes in enumerate(self._looks.codes):
            arrays.update({f"codes/{i}/{key}": array for key, array in codes.to_arrays().items()})
        write_npz(path, arrays)

    def load(self, path: str | os.PathLike) -> None:
        """Goes on where the callback that wrote this file with `save` was, one made with the same arguments.

        Raises:
            ValueError: the file is damaged, or was written by a callback with other arguments.
        """
        settings, (epoch, step), (trained, epoch_steps, *times), distances, recorded, codes = read_npz(path, _state)
        if settings != self._settings():
            raise ValueError(f"Expected the state of an EarlyBird with {self._settings()}. Received: {settings}")
        self.epoch, self.step = epoch or None, step or None
        self._trained, self._epoch_steps = trained, epoch_steps or None
        self.distances = distances
        self._recorded = recorded or None
        self._looks = Looks(self.lookback, codes, times)
        self._trained_model = None

    def _settings(self):
        probe = f"the first {self.probe_size} inputs" if self.probe is None else "given"
        what = f"ratio={self.ratio}" if self.metric == "mask" else f"probe={probe}"
        return f"metric={self.metric} threshold={self.threshold} lookback={self.lookback} every={self.every} {what}"

    @property
    def _probed(self):
        """Whether all that the codes are taken on is there."""
        return self.metric == "mask" or self.probe is not None or self._recorded is not None

    def _code(self):
        if self.metric == "mask":
            return pruning_mask(self.model, self.ratio)
        codes = self._encoder(self._inputs())
        self._tell("dead layers, of which no input of the probe switches any unit on", self._encoder.dead(codes))
        return codes

    def _tell(self, trouble, names):
        """Warns of what was not warned of before."""
        if new := [name for name in names if name not in self._told]:
            self._told.update(new)
            logging.warning("EarlyBird: %s: %s", trouble, ", ".join(new))

    def _inputs(self):
        if self.probe is not None:
            return self.probe
        if not self._probed:
            self._recorded = self._recorder.inputs()
        return self._recorded


def _state(arrays: dict) -> tuple:
    """What `EarlyBird.save` has written: settings, when it was found, steps, distances, recorded probe, codes."""
    probe, codes = (with_prefix(arrays, prefix) for prefix in ("probe/", "codes/"))
    recorded = [probe[str(i)] for i in range(len(probe))]
    history = []
    while kept := with_prefix(codes, f"{len(history)}/"):
        history.append(Codes.from_arrays(kept))
    numbers_of = [arrays[name].tolist() for name in ("found", "steps", "distances")]
    return str(arrays["settings"]), *numbers_of, recorded, history
