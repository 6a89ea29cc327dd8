"""A training that can be interrupted and resumed."""

import numpy as np

from helpers.masking import compiled
from tfspline import EarlyBird, SplinePruning, _keras

EPOCHS, STEPS = 4, 3


def schedule(step):
    return step % 2 == 1, min(0.6, 0.1 + step / 10)


class Training:
    """A training with the same model, data and callbacks each time, as in a new process.

    Args:
        keras: the Keras version.
        folder: the folder for backups.
        order: the order of the callbacks, one letter each: b for EarlyBird, p for SplinePruning, k for
            BackupAndRestore of Keras, c for the callbacks given to `run`.
        after_bird: whether pruning starts when the early bird is found.
        regrow: see `SplinePruning`.
        given: whether the early bird is given a probe; otherwise it records one.
        save_freq: see `BackupAndRestore`.
        every: see `EarlyBird`.
    """

    def __init__(
        self, keras, folder, order="bpk", after_bird=False, regrow=False, given=False, save_freq="epoch", every=None
    ):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        rng = np.random.default_rng(0)
        self.keras, self.order, self.save_freq, self.folder = keras, order, save_freq, folder
        self.model = compiled(keras, rng, optimizer=keras.optimizers.SGD(0.05, momentum=0.9), run_eagerly=True)
        self.x, self.y = (rng.normal(size=(6 * STEPS, n)).astype("float32") for n in (6, 3))
        probe = self.x[:10] if given else None
        options = {"probe": probe, "probe_size": 10, "stop_training": False, "every": every}
        self.bird = EarlyBird(0.2, 1, **options, backup_dir=folder / "ours")
        start = self.bird if after_bird else None
        options = {"start": start, "regrow": regrow, "backup_dir": folder / "ours"}
        self.pruning = SplinePruning(schedule, "random", "global", **options)

    def run(self, *others, epochs=EPOCHS, **options):
        restore = self.keras.callbacks.BackupAndRestore(self.folder / "keras", save_freq=self.save_freq)
        named = {"b": [self.bird], "p": [self.pruning], "k": [restore], "c": list(others)}
        callbacks = [callback for name in self.order for callback in named[name]]
        options = {"batch_size": 6, "shuffle": False, "verbose": 0, **options}
        self.model.fit(self.x, self.y, epochs=epochs, callbacks=callbacks, **options)
        return self

    def iterations(self):
        return _keras.iterations(self.model)

    def outcome(self):
        state = [
            self.bird.epoch,
            self.bird.step,
            self.pruning.step,
            self.pruning._progress.begin,
            self.pruning.masks.off.tolist(),
        ]
        return state, np.array(self.bird.distances), self.model.get_weights()
