"""Trainings that are cut and go on: as if they had never been, whatever Keras' own backup brings back."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_masks import compiled
from zoo import chain, residual

import tfspline
from tfspline import EarlyBird, Masks, SplinePruning
from tfspline.backup import Backup

EPOCHS, STEPS = 5, 4


class Cut(BaseException):
    """Stands for whatever ends a process."""


def cutter(keras, at, last):
    """A callback that raises at the `at`th time that it is called; at the end of the training only if it is not the
    last, since Keras throws its own backup away there."""

    class Cutter(keras.callbacks.Callback):
        calls = 0

        def _call(self, *_, **__):
            self.calls += 1
            if self.calls == at:
                raise Cut

        on_epoch_begin = on_epoch_end = on_train_batch_begin = on_train_batch_end = _call

        def on_train_begin(self, logs=None):
            self._call()

        def on_train_end(self, logs=None):
            if not last:
                self._call()

    return Cutter()


def schedule(step):
    return step % 3 == 1, min(0.6, 0.1 + step / 15)


class Training:
    """The same training each time that it is made: model, data and callbacks as those of a new process."""

    def __init__(self, keras, folder, order="bpk", start=None, regrow=False, given=False, save_freq="epoch"):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        rng = np.random.default_rng(0)
        self.keras, self.order, self.save_freq, self.folder = keras, order, save_freq, folder
        self.model = compiled(keras, rng, optimizer=keras.optimizers.Adam(0.02), run_eagerly=True)
        self.x, self.y = (rng.normal(size=(6 * STEPS, n)).astype("float32") for n in (6, 3))
        probe = self.x[:10] if given else None
        self.bird = EarlyBird(0.2, 1, probe=probe, probe_size=10, stop_training=False, backup_dir=folder / "ours")
        self.pruning = SplinePruning(
            schedule, "random", start=start, regrow=regrow, backup_dir=folder / "ours"
        )

    def run(self, *cutters, epochs=EPOCHS, **options):
        restore = self.keras.callbacks.BackupAndRestore(self.folder / "keras", save_freq=self.save_freq)
        named = {"b": [self.bird], "p": [self.pruning], "k": [restore], "c": list(cutters)}
        callbacks = [callback for name in self.order for callback in named[name]]
        options = {"batch_size": 6, "shuffle": False, "verbose": 0, **options}
        self.model.fit(self.x, self.y, epochs=epochs, callbacks=callbacks, **options)
        return self

    def outcome(self):
        state = [self.bird.epoch, self.pruning.step, self.pruning._begin, self.pruning.masks.off.tolist()]
        return state, np.array(self.bird.distances), self.model.get_weights()


def assert_same(one, other):
    assert one[0] == other[0]
    np.testing.assert_array_equal(one[1], other[1])
    for a, b in zip(one[2], other[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """What trainings that were never cut came to, by their arguments."""
    found = {}

    def whole(keras, **options):
        key = (keras.__name__, *options.items())
        if key not in found:
            found[key] = Training(keras, tmp_path_factory.mktemp("whole"), **options).run().outcome()
        return found[key]

    return whole


CASES = st.fixed_dictionaries(
    {"start": st.sampled_from([None, "early_bird"]), "regrow": st.booleans(), "given": st.booleans()}
)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(CASES, st.permutations("bpkc"), st.lists(st.integers(1, 3 + EPOCHS * (2 + 2 * STEPS)), min_size=1, max_size=2))
def test_cut_anywhere_and_resumed(keras, wholes, tmp_path_factory, case, order, cuts):
    order = "".join(order)
    if not case["given"]:  # with a recorded probe the bird has to be there before Keras' backup
        order = "b" + order.replace("b", "")
    whole = wholes(keras, **case)
    folder, last = tmp_path_factory.mktemp("cut"), order[0] != "c"
    for cut in cuts:
        training = Training(keras, folder, order, **case)
        try:
            training.run(cutter(keras, cut, last))
            break
        except Cut:
            pass
    else:
        training = Training(keras, folder, order, **case).run()
    assert_same(training.outcome(), whole)
    assert not (folder / "ours").exists()
