"""Trainings that are interrupted and resumed end like undisturbed ones, whatever Keras' own backup restores."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.trainings import EPOCHS, STEPS, Training, schedule
from helpers.zoo import scramble
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tfspline import EarlyBird, SplinePruning


class Interruption(BaseException):
    """Whatever ends a process."""


def cutter(keras, at, last):
    """A callback that raises when it is called for the `at`th time.

    If it is the `last` one it does not count the end of the training, where Keras has deleted its own backup.
    """

    class Cutter(keras.callbacks.Callback):
        calls = 0

        def _call(self, *_, **__):
            self.calls += 1
            if self.calls == at:
                raise Interruption

        on_epoch_begin = on_epoch_end = on_train_batch_begin = on_train_batch_end = _call

        def on_train_begin(self, logs=None):
            self._call()

        def on_train_end(self, logs=None):
            if not last:
                self._call()

    return Cutter()


def assert_same(one, other):
    assert one[0] == other[0]
    np.testing.assert_array_equal(one[1], other[1])
    for a, b in zip(one[2], other[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Outcomes of undisturbed trainings by their arguments."""
    found = {}

    def whole(keras, **options):
        key = (keras.__name__, *options.items())
        if key not in found:
            found[key] = Training(keras, tmp_path_factory.mktemp("whole"), **options).run().outcome()
        return found[key]

    return whole


CASES = st.fixed_dictionaries(
    {
        "after_bird": st.booleans(),
        "regrow": st.booleans(),
        "given": st.booleans(),
        "every": st.sampled_from([None, 2]),
    }
)


@pytest.mark.sweep(2)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(CASES, st.permutations("bpkc"), st.lists(st.integers(1, 3 + EPOCHS * (2 + 2 * STEPS)), min_size=1, max_size=2))
def test_interrupted_anywhere_and_resumed(keras, wholes, tmp_path_factory, case, order, cuts):
    order = "".join(order)
    if not case["given"]:  # an early bird that records must come before Keras' backup
        order = "b" + order.replace("b", "")
    whole = wholes(keras, **case)
    folder, last = tmp_path_factory.mktemp("cut"), order[0] != "c"
    for cut in cuts:
        training = Training(keras, folder, order, **case)
        try:
            training.run(cutter(keras, cut, last))
            break
        except Interruption:
            pass
    else:
        training = Training(keras, folder, order, **case).run()
    assert_same(training.outcome(), whole)
    assert not (folder / "ours").exists()


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("order", "regrow"), [("pkc", True), ("kpc", True), ("kcp", True), ("kcp", False)])
def test_backups_inside_an_epoch(keras, tmp_path, order, regrow):
    # Keras 3 restarts such an epoch, tf_keras only its data, so all batches are the same here. Units are switched off
    # before the backup in this step, after it, or not at all if the interruption comes in between.
    def run(folder, *callbacks):
        training = Training(keras, folder, order, regrow=regrow, save_freq=5)
        training.x[:], training.y[:] = np.tile(training.x[:6], (STEPS, 1)), np.tile(training.y[:6], (STEPS, 1))
        seen = {}

        def note(*_, **__):
            seen[training.iterations()] = [
                training.pruning.step,
                training.pruning.masks.off,
                *training.model.get_weights(),
            ]

        watch = keras.callbacks.LambdaCallback(on_train_batch_begin=note)
        with contextlib.suppress(Interruption):
            training.run(*callbacks, watch)
        return seen

    whole, cut = run(tmp_path / "whole"), run(tmp_path / "cut", cutter(keras, 14, last=True))
    resumed = run(tmp_path / "cut")
    assert list(cut) == list(range(5)) and min(resumed) == 5 and max(resumed) >= max(whole) == EPOCHS * STEPS - 1
    for iterations in range(5, EPOCHS * STEPS):
        assert resumed[iterations][0] == iterations
        for a, b in zip(resumed[iterations], whole[iterations], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_resumes_after_the_early_bird_has_stopped_the_training(keras, tmp_path):
    def run(folder, *callbacks):
        training = Training(keras, folder, "bkc", given=True)
        training.bird = EarlyBird(0.4, 1, probe=training.x, backup_dir=folder / "ours")
        with contextlib.suppress(Interruption):
            training.run(*callbacks)
        assert training.model.train_function is not None
        return training.bird.epoch, training.bird.distances[1:], training.model.get_weights()

    whole = run(tmp_path / "whole")
    assert 2 <= whole[0] < EPOCHS
    end = 1 + whole[0] * (2 + 2 * STEPS)  # Keras has made its backup, but the training has not ended
    run(tmp_path / "cut", cutter(keras, end, last=True))
    assert sorted(os.listdir(tmp_path / "cut")) == ["keras", "ours"]
    assert_same(run(tmp_path / "cut"), whole)


@pytest.mark.sweep(2)
def test_resumes_from_a_model_checkpoint(keras, wholes, tmp_path):
    training = Training(keras, tmp_path, "bpc", after_bird=True, regrow=True)
    path = str(tmp_path / "{epoch}.keras")
    with pytest.raises(Interruption):
        training.run(keras.callbacks.ModelCheckpoint(path), cutter(keras, 2 + 3 * (2 + 2 * STEPS), last=True))
    for epoch in (3, 2):  # the last one, then the one before
        kept = {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
        resumed = Training(keras, tmp_path, "bpc", after_bird=True, regrow=True)
        resumed.model = keras.models.load_model(path.format(epoch=epoch))
        resumed.model.run_eagerly = True
        resumed.run(initial_epoch=epoch)
        assert_same(resumed.outcome(), wholes(keras, after_bird=True, regrow=True, given=False))
        assert not (tmp_path / "ours").exists()
        (tmp_path / "ours").mkdir()
        for file, content in kept.items():
            file.write_bytes(content)
    for name, epoch in (("EarlyBird", 0), ("SplinePruning", 2)):
        fresh = Training(keras, tmp_path, "bp", after_bird=True, regrow=True)
        with pytest.raises(ValueError, match=f"{name} has states .* restored to 0"):
            fresh.run(initial_epoch=epoch)


def left(keras, folder, **options):
    """The state files of a training interrupted in its third epoch."""
    with pytest.raises(Interruption):
        Training(keras, folder, **options, order="bpkc").run(cutter(keras, 2 * (2 + 2 * STEPS) + 4, last=True))
    return sorted((folder / "ours").iterdir())


@pytest.mark.sweep(2)
def test_refuses_states_that_do_not_fit(keras, tmp_path):
    states = left(keras, tmp_path)
    names = {path.name for path in states}
    assert {"EarlyBird-0.npz", "EarlyBird-2.npz", f"SplinePruning-{2 * STEPS}.npz"} <= names
    other = Training(keras, tmp_path)
    other.pruning = SplinePruning(schedule, "l1", backup_dir=tmp_path / "ours")
    with pytest.raises(ValueError, match="this is SplinePruning.criterion='l1'"):
        other.run()
    other = Training(keras, tmp_path)
    other.bird = EarlyBird(0.3, backup_dir=tmp_path / "ours")
    with pytest.raises(ValueError, match="this is EarlyBird.*threshold=0.3"):
        other.run()
    for name, message in (("p", "state of this SplinePruning .*Received"), ("b", "state of this EarlyBird .*Received")):
        other = Training(keras, tmp_path, order=name)
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(9, "relu", name="a")(inputs)
        other.model = keras.Model(inputs, keras.layers.Dense(3, name="z")(hidden))
        other.model.compile("sgd", "mse", run_eagerly=True)
        other.model.optimizer.iterations.assign(2 * STEPS)
        with pytest.raises(ValueError, match=message):
            other.run(initial_epoch=2)
    assert {path.name for path in (tmp_path / "ours").iterdir()} == names
    for name in ("EarlyBird-2.npz", f"SplinePruning-{2 * STEPS}.npz"):
        whole = (tmp_path / "ours" / name).read_bytes()
        (tmp_path / "ours" / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=name):
            Training(keras, tmp_path).run()
        (tmp_path / "ours" / name).write_bytes(whole)
    Training(keras, tmp_path).run()
    assert not (tmp_path / "ours").exists()


def test_refuses_an_early_bird_after_keras_backup_without_its_probe(keras, tmp_path):
    with pytest.raises(Interruption):  # Keras has finished the epoch, but the early bird has not
        Training(keras, tmp_path, order="kcb").run(cutter(keras, 3 + 2 * STEPS, last=True))
    with pytest.raises(ValueError, match="EarlyBird has states .* after 0 epochs, .* restored to 1"):
        Training(keras, tmp_path, order="kb").run()


@pytest.mark.sweep(2)
def test_resumes_a_schedule_that_started_at_a_late_early_bird(keras, tmp_path):
    def late():
        training = Training(keras, tmp_path, order="bpkc", after_bird=True)
        options = {"backup_dir": tmp_path / "ours"}
        training.bird = EarlyBird(0.9, 1, stop_training=False, **options)
        endless = lambda step: (True, min(0.9, step / 100))  # noqa: E731  # ends long after the fit
        training.pruning = SplinePruning(endless, "random", "global", start=training.bird, **options)
        return training

    first = late()
    first.pruning._check_schedule = lambda epoch: None
    with pytest.raises(Interruption):
        first.run(cutter(keras, 3 * (2 + 2 * STEPS) + 4, last=True))
    assert first.bird.epoch == 2
    resumed = late().run()
    assert resumed.pruning.step == EPOCHS * STEPS and resumed.pruning.sparsity > 0


KILLED = """
import importlib, os, pathlib, signal, sys
sys.path[:0] = [sys.argv[2]]
import numpy as np
from helpers.trainings import Training

keras, folder, step = importlib.import_module(sys.argv[1]), pathlib.Path(sys.argv[3]), int(sys.argv[4])
training = Training(keras, folder, "bpkc", after_bird=True, regrow=True)

def kill(batch, logs=None):
    if training.iterations() == step:
        os.kill(os.getpid(), signal.SIGKILL)

training.run(keras.callbacks.LambdaCallback(on_train_batch_end=kill))
"""


@pytest.mark.sweep(2)
def test_killed_and_restarted(keras, wholes, tmp_path):
    whole = wholes(keras, after_bird=True, regrow=True, given=False)
    begin, step = whole[0][3], 2 * STEPS + 2
    assert 0 < begin < step  # units are off already
    command = [
        sys.executable,
        "-c",
        KILLED,
        keras.__name__,
        str(pathlib.Path(__file__).parents[1]),
        str(tmp_path),
        str(step),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    resumed = Training(keras, tmp_path, after_bird=True, regrow=True).run()
    assert len(resumed.model.history.epoch) == EPOCHS - 2
    assert_same(resumed.outcome(), whole)


def unnamed(keras, folder, **options):
    """A training of a model whose layers have automatic names, different ones each time."""
    training = Training(keras, folder, **options)
    for _ in range(len(list(folder.iterdir())) + 1):
        layers = [
            keras.Input((6,)),
            keras.layers.Dense(12, "relu"),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(3),
        ]
        training.model = keras.Sequential(layers)
    scramble(training.model, np.random.default_rng(1))
    training.model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", run_eagerly=True)
    return training


@pytest.mark.sweep(2)
@pytest.mark.parametrize("options", [{}, {"regrow": True, "every": 2}])
def test_resumes_with_a_model_that_is_built_again_in_the_same_process(keras, tmp_path, options):
    first = unnamed(keras, tmp_path, order="bpkc", **options)
    with pytest.raises(Interruption):
        first.run(cutter(keras, 2 * (2 + 2 * STEPS) + 4, last=True))
    again = unnamed(keras, tmp_path, **options)
    assert [layer.name for layer in again.model.layers] != [layer.name for layer in first.model.layers]
    again.run()
    (tmp_path / "whole").mkdir()
    whole = unnamed(keras, tmp_path / "whole", **options).run()
    np.testing.assert_allclose(again.bird.distances, whole.bird.distances)
    np.testing.assert_array_equal(again.pruning.masks.off, whole.pruning.masks.off)


@pytest.mark.sweep(2)
def test_two_callbacks_of_one_class_do_not_share_a_folder(keras, tmp_path):
    training = Training(keras, tmp_path, order="bc")
    second = EarlyBird(metric="mask", stop_training=False, backup_dir=tmp_path / "keras" / ".." / "ours")
    with pytest.raises(ValueError, match="EarlyBird.*backup_dir.*of its own"):
        training.run(second)
    second = EarlyBird(metric="mask", stop_training=False, backup_dir=tmp_path / "second")
    Training(keras, tmp_path, order="bc").run(second)
    assert second.distances
