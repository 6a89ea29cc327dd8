"""Two workers, each a process on this machine, train like one device."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from tfspline._utils import workers
from tfspline.callbacks import state
from tfspline.recipe import Recipe, run

ROOT = pathlib.Path(__file__).parents[2]


def start(command, logs, count=2):
    """Start workers, each of which prints to a file `logs/<index>.txt`."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    started = []
    for index in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(config), "PYTHONPATH": str(ROOT)}
        with open(logs / f"{index}.txt", "w") as file:
            started.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    return started


@pytest.fixture
def pair(tmp_path):
    """A function that starts two workers with a command. They are killed at the end of the test."""
    started = []

    def begin(command):
        started.extend(start(command, tmp_path))
        return started[-2:]

    yield begin
    for worker in started:
        worker.kill()
        worker.wait()


def printed(tmp_path, index):
    return (tmp_path / f"{index}.txt").read_text()


# Python reports every file that it opens, moves or removes to the audit hook.
ONLY_THE_CHIEF_WRITES = """
import json, os, sys
index = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
folder = sys.argv[1]

def watch(event, args):
    writes = event in ("os.mkdir", "os.rename", "os.remove") or event == "open" and set(args[1] or "") & set("wax+")
    if index and writes and str(args[0]).startswith(folder):
        raise AssertionError(f"{event}{args}")

sys.addaudithook(watch)
"""
CALLBACKS = """
import numpy as np, tensorflow as tf, tf_keras as keras
import tfspline
from tfspline.recipe import Recipe
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.training import Training

several, cuts = len(sys.argv) > 2, [4]
strategy = tf.distribute.MultiWorkerMirroredStrategy() if several else tf.distribute.get_strategy()


def train(normalized, seed, **options):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        dense, norm = keras.layers.Dense, [keras.layers.BatchNormalization(name="norm")] * normalized
        layers = [dense(12, name="a"), *norm, keras.layers.ReLU(name="relu"), dense(8, "relu", name="b")]
        model = keras.Sequential([keras.Input((6,)), *layers, dense(3, name="c")])
        model.compile(keras.optimizers.SGD(0.02), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 6)).astype("float32"), rng.normal(size=(96, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    states = f"{folder}/tfspline"
    bird = tfspline.EarlyBird(0.06, 2, probe_size=48, stop_training=False, backup_dir=states, **options)
    schedule = lambda step: (step % 3 == 0, min(0.5, step / 20))
    pruning = tfspline.SplinePruning(schedule, "random", "global", start=bird, seed=seed, backup_dir=states)
    restore = keras.callbacks.BackupAndRestore(f"{folder}/keras")

    def cut(epoch, logs):
        if epoch in cuts:
            cuts.remove(epoch)
            raise InterruptedError

    callbacks = [bird, pruning, restore, keras.callbacks.LambdaCallback(on_epoch_begin=cut)]
    try:
        model.fit(data, epochs=6, verbose=0, callbacks=callbacks)
    except InterruptedError:
        return train(normalized, seed, **options)
    weights = [weight.tolist() for weight in model.get_weights()]
    return [bird.epoch, bird.step, bird.distances, pruning.masks.off.tolist(), weights]


# In the second training, each worker would use another probe and another seed by itself.
probe = np.random.default_rng(index).normal(size=(32, 6))
print(json.dumps([train(False, 0, every=2), train(True, index, probe=probe)]))
if several:
    recipe = Recipe(keras="tf_keras", strategy="multi_worker", network="mlp", ratio=0.5, batch_size=255)
    try:
        Training(recipe, RunDir(f"{folder}/run", {}), strategy=strategy).check()
    except ValueError as error:
        print(error)
"""


def test_callbacks_make_the_same_decisions_on_both_workers(pair, tmp_path, monkeypatch, capsys):
    folders = [tmp_path / name for name in ("alone", "shared")]
    for folder in folders:
        folder.mkdir()
    together = pair([sys.executable, "-c", ONLY_THE_CHIEF_WRITES + CALLBACKS, str(folders[1]), "several"])
    assert [worker.wait(timeout=300) for worker in together] == [0, 0], printed(tmp_path, 0) + printed(tmp_path, 1)
    monkeypatch.setattr(sys, "argv", ["-c", str(folders[0])])
    exec(CALLBACKS, {name: sys.modules[name] for name in ("json", "sys")} | {"index": 0, "folder": sys.argv[1]})
    one, _ = json.loads(capsys.readouterr().out.splitlines()[-1])
    *results, refused = zip(*(printed(tmp_path, index).splitlines()[-2:] for index in (0, 1)), strict=True)
    (two, normalized), others = map(json.loads, results[0])
    assert [two, normalized] == others  # to the last bit
    assert one[:2] == two[:2] and one[1] == 16
    assert one[3] == two[3] and sum(two[3]) == 10
    np.testing.assert_allclose(one[2], two[2], rtol=1e-6)
    for a, b in zip(one[4], two[4], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert all("2 devices" in text and "batch_size=255" in text for text in refused)
    assert sorted(os.listdir(folders[1])) == ["keras"]  # an empty folder of tf_keras


FIELDS = {
    **{"keras": "tf_keras", "network": "mlp", "width": 0.25, "ratio": 0.5, "epochs": 5, "search_epochs": 3},
    **{"eb_threshold": 0.05, "eb_lookback": 1, "batch_size": 256, "validation_split": 0.1, "learning_rate": 0.02},
    **{"augment": "crop_flip"},
}


def train(strategy, run_dir):
    flags = Recipe(**FIELDS, strategy=strategy).as_flags()
    options = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, str(ROOT / "train.py"), *options, f"--run_dir={run_dir}", "--verbose=2"]


def history(folder):
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(rows):
    """The numbers in each row of a history except times, by phase and name."""
    return [
        {
            (row["phase"], name): value
            for name, value in row.items()
            if type(value) in (int, float) and name != "seconds"
        }
        for row in rows
    ]


GO_ON = """
from tfspline.recipe import Recipe, run
run(Recipe(**json.loads(sys.argv[2]), strategy="multi_worker"), folder, verbose=0, publish=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_worker_ends_the_others_and_all_continue_after_a_restart(victim, pair, tmp_path):
    folder = tmp_path / "a run"
    begun = pair(train("multi_worker", folder))
    while not history(folder):
        assert all(worker.poll() is None for worker in begun), printed(tmp_path, 0) + printed(tmp_path, 1)
        time.sleep(0.01)
    begun[victim].send_signal(signal.SIGKILL)
    assert begun[1 - victim].wait(timeout=60) == 1
    lines = printed(tmp_path, 1 - victim).splitlines()  # Keras may print a warning about an incomplete file after it
    assert sum(line.startswith("train.py: Another worker has ended") for line in lines) == 1
    done = len(history(folder))
    assert not (folder / "summary.json").exists()

    again = pair([sys.executable, "-c", ONLY_THE_CHIEF_WRITES + GO_ON, str(folder), json.dumps(FIELDS)])
    assert [worker.wait(timeout=300) for worker in again] == [0, 0], printed(tmp_path, 0) + printed(tmp_path, 1)
    alone = run(Recipe(**FIELDS), tmp_path / "alone", verbose=0, publish=False)
    summary = json.loads((folder / "summary.json").read_text())
    names = ("early_bird_epoch", "search_epochs", "pruned_epoch", "ratio", "layers")
    assert {name: summary[name] for name in names} == {name: alone[name] for name in names}
    one, two = (numbers(rows) for rows in (history(tmp_path / "alone"), history(folder)))
    assert [row.keys() for row in one] == [row.keys() for row in two] and len(two) > done
    assert one == [pytest.approx(row, rel=1e-4) for row in two]
    plans = [json.loads((path / "plan.json").read_text()) for path in (tmp_path / "alone", folder)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(("config", "message"), [(None, "TF_CONFIG"), ("{", "Expecting")])
def test_missing_or_invalid_tf_config_is_refused(config, message, monkeypatch, tmp_path):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=message):
        run(Recipe(**FIELDS, strategy="multi_worker"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_backup_that_workers_do_not_share_is_refused(tmp_path, monkeypatch):
    callback = types.SimpleNamespace(model=types.SimpleNamespace(distribute_strategy=tf.distribute.get_strategy()))
    monkeypatch.setattr(state, "from_chief", lambda strategy, found: 7.0)
    with pytest.raises(ValueError, match="share.* 7 epochs"):
        state.Backup(tmp_path / "states", callback, "epochs").take(9)


def test_single_process_is_the_chief_and_waits_for_nobody():
    strategy = tf.distribute.get_strategy()
    assert workers.is_chief(strategy) and workers.from_chief(strategy, [1, 2]) == [1, 2]
