"""Runs that are killed, stopped, or lose a file: each ends as one that nobody has disturbed, bit for bit."""

import contextlib
import json
import os
import pathlib
import random
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time

import keras as keras3
import pytest
import tensorflow as tf
import tf_keras
from absl import logging as absl_logging

from tfspline.recipe.checkpoints import Checkpoints
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.runner import run
from tfspline.recipe.stopping import Stopped, Stopper
from tfspline.recipe.training import Training, _Record

TRAIN = pathlib.Path(__file__).parents[2] / "train.py"
# 5 steps an epoch.
SMALL = {
    **{"network": "mlp", "width": 0.25, "batch_size": 256, "augment": "crop", "validation_split": 0.1},
    **{"epochs": 3, "search_epochs": 2, "eb_threshold": 0.9, "eb_lookback": 1, "learning_rate": 0.02, "ratio": 0.5},
}
RECIPES = {
    "one_shot": {},
    "gradual": {"schedule": "early_bird", "eb_every": 2, "epochs": 4, "pruning_epochs": 1},
    "compared": {"search_epochs": 1, "baseline": True, "weight_pruning": True},
    "restarted": {"eb_every": 3, "retrain_from": "random"},
}


@pytest.fixture(autouse=True)
def interruptible():
    """What a shell has started in its background ignores SIGINT, and so would all that the tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def untimed(summary):
    if not isinstance(summary, dict):
        return summary
    return {name: untimed(value) for name, value in summary.items() if name != "seconds"}


def end_of(folder, keras):
    """All that a run has come to, without times: files, history, summary, plan, and each weight."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    weights = {
        path.name: [weight.tobytes() for weight in keras.models.load_model(path).get_weights()]
        for path in sorted(folder.glob("*.keras"))
    }
    texts = {name: json.loads((folder / name).read_text()) for name in ("summary.json", "plan.json")}
    return {
        "files": sorted(name for name in files if not name.startswith("logs")),
        "history": rows_of(folder),
        "summary": untimed(texts["summary.json"]),
        "plan": texts["plan.json"],
        "weights": weights,
    }


class Killed(BaseException):
    """Stands for the end of a process."""


def each(*ordinary):
    """Both Kerases with several recipes, of which all but the `ordinary` ones are slow."""
    cases = [(keras, name) for keras in (keras3, tf_keras) for name in RECIPES]
    return [
        pytest.param(keras, RECIPES[name], id=f"{keras.__name__}-{name}", marks=() if given else pytest.mark.slow)
        for keras, name in cases
        for given in [(keras, name) in ordinary]
    ]


@pytest.mark.parametrize(("keras", "fields"), each((keras3, "one_shot"), (tf_keras, "gradual")), indirect=["keras"])
def test_killed_before_each_file_that_it_writes(request, keras, tmp_path, monkeypatch, fields):
    recipe = Recipe(keras=keras.__name__, **SMALL | fields)
    run(recipe, tmp_path / "smooth", verbose=0, publish=False)
    replace, killed_at = os.replace, set()
    # Before all but the last of its files is there a checkpoint is none.
    passed = () if "slow" in request.keywords else (".npz", ".jsonl")

    def kill_once(source, target):
        name = os.path.relpath(target, tmp_path / "rough")
        if not name.startswith("..") and not name.endswith(passed) and name not in killed_at:
            killed_at.add(name)
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill_once)
    for _ in range(100):
        before = len(killed_at)
        try:
            run(recipe, tmp_path / "rough", verbose=0, publish=False)
            break
        except Killed:
            assert len(killed_at) == before + 1
    assert end_of(tmp_path / "rough", keras) == end_of(tmp_path / "smooth", keras)
    named = {"flags.cfg", "plan.json", "slim.keras", "dense.keras", "summary.json", "SHA256SUMS"}
    assert named < killed_at and len(killed_at) >= len(named) + 2 * len(rows_of(tmp_path / "smooth"))


@pytest.mark.parametrize(("keras", "fields"), each((keras3, "gradual"), (tf_keras, "compared")), indirect=["keras"])
def test_stopped_after_every_fourth_step(keras, tmp_path, monkeypatch, fields):
    recipe, trained = Recipe(keras=keras.__name__, **SMALL | fields), []
    run(recipe, tmp_path / "smooth", verbose=0, publish=False)
    begin = _Record.on_train_batch_begin

    def stop(record, batch, logs=None):
        begin(record, batch, logs)
        trained.append((record.phase, record.trained))
        if len(trained) % 4 == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(_Record, "on_train_batch_begin", stop)
    before, stops = signal.getsignal(signal.SIGTERM), 0
    while not (tmp_path / "rough" / "SHA256SUMS").exists():
        try:
            run(recipe, tmp_path / "rough", verbose=0, publish=False)
        except Stopped as stopped:
            assert stopped.number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
            stops += 1
    assert len(trained) == len(set(trained)) and stops == len(trained) // 4  # no step is trained twice
    assert end_of(tmp_path / "rough", keras) == end_of(tmp_path / "smooth", keras)


def test_a_stop_outside_of_steps_and_a_second_one_do_not_wait():
    with Stopper() as stopper:
        with pytest.raises(Stopped, match="stopped by SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        stopper.received = None
        with pytest.raises(Stopped), stopper.steps():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
            assert stopper.received == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
            pytest.fail("it waited")


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopper() as stopper:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopper.received is None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def warned(monkeypatch):
    """What absl warns of, as text."""
    texts = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *values: texts.append(text % values))
    return texts


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was interrupted in its retraining, its recipe, and its end if nothing more happens."""
    folder = tmp_path_factory.mktemp("interrupted")
    recipe = Recipe(**SMALL | {"epochs": 4})
    with pytest.MonkeyPatch.context() as patch:
        put = Checkpoints.put

        def interrupt(checkpoints, rows, files):
            if rows[-1]["phase"] == "retrain" and rows[-1]["epoch"] == 4:
                raise Killed
            put(checkpoints, rows, files)

        patch.setattr(Checkpoints, "put", interrupt)
        with pytest.raises(Killed):
            run(recipe, folder / "run", verbose=0, publish=False)
    shutil.copytree(folder / "run", folder / "smooth")
    run(recipe, folder / "smooth", verbose=0, publish=False)
    return folder / "run", recipe, end_of(folder / "smooth", keras3)


def files_of(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harms", [None, pytest.param([remove, cut, flip], marks=pytest.mark.slow)], ids=["one_way", "each_way"]
)
def test_an_interrupted_run_goes_on_from_what_is_whole(interrupted, tmp_path, warned, harms):
    folder, recipe, expected = interrupted
    names = [name for name in files_of(folder) if not name.startswith("logs")]
    # 4 files of each epoch of the search, 4 of the pruning, 3 of the retraining's first epoch, none of its second.
    assert len(names) == 2 + 2 * 4 + 4 + 3
    if harms is None:
        needed = ("retrain-0000015.", "search-0000010.npz", "prune-0000010.plan.json", "history", "flags")
        names = [name for name in names if name.removeprefix("checkpoints/").startswith(needed)]
    for i, name in enumerate(names):
        for harm in harms or [(remove, cut, flip)[i % 3]]:
            rough = tmp_path / f"{i}-{harm.__name__}"
            shutil.copytree(folder, rough)
            harm(rough / name)
            warned.clear()
            if name == "flags.cfg":
                with pytest.raises((ValueError, FileNotFoundError), match="Expected (the flags|flags.cfg)"):
                    run(recipe, rough, verbose=0, publish=False)
                continue
            run(recipe, rough, verbose=0, publish=False)
            assert end_of(rough, keras3) == expected
            last = name.startswith(("checkpoints/retrain", "checkpoints/search-0000010"))
            assert any(os.path.basename(name).split(".")[0] in text for text in warned) or not last


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A published run, and its recipe."""
    folder, recipe = tmp_path_factory.mktemp("finished") / "run", Recipe(**SMALL)
    run(recipe, folder, verbose=0)
    return folder, recipe


def test_a_run_that_is_over_tells_or_makes_again_what_is_lost(finished, tmp_path, warned):
    folder, recipe = finished
    summary, names = json.loads((folder / "summary.json").read_text()), files_of(folder)
    results = {"history.jsonl", "plan.json", "dense.keras", "slim.keras"}
    drawn = [name for name in names if name.endswith((".png", ".npz")) and "/" not in name]
    served = [name for name in names if name.startswith("serving/")]
    assert len(drawn) == 7 and len(served) >= 5
    made_again = {"report.html", "distances.npz", "serving/1/saved_model.pb", "SHA256SUMS"}  # one of each kind
    for name in sorted({*names} - {"flags.cfg", "summary.json", *drawn, *served} | made_again):
        rough = tmp_path / "rough"
        shutil.copytree(folder, rough)
        (rough / name).unlink()
        warned.clear()
        if name in results:
            with pytest.raises(FileNotFoundError, match=f"missing or changed: {name}. Put them back, or remove"):
                run(recipe, rough, verbose=0)
        else:
            assert run(recipe, rough, verbose=0) == summary
            assert files_of(rough) == [other for other in names if other != name or name in made_again]
            assert (name in made_again) == (not any(name in text for text in warned)), name
        shutil.rmtree(rough)


def test_a_run_that_lost_its_summary_is_trained_again(finished, tmp_path):
    folder, recipe = finished
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "units.1.tmp.png").touch()  # of a process that was killed
    (tmp_path / "run" / "serving" / "1" / "saved_model.pb").write_bytes(b"old")
    run(recipe, tmp_path / "run", verbose=0)
    assert end_of(tmp_path / "run", keras3) == end_of(folder, keras3)
    assert (tmp_path / "run" / "serving" / "1" / "saved_model.pb").stat().st_size > 3


def test_a_full_disk_is_named_and_harms_nothing(interrupted, tmp_path):
    folder, recipe, expected = interrupted
    shutil.copytree(folder, tmp_path / "run")
    before = {name: (folder / name).read_bytes() for name in files_of(folder) if not name.startswith("logs")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # bytes of a file; a checkpoint has more
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/checkpoints/retrain-0000020\.keras'"):
            run(recipe, tmp_path / "run", verbose=0, publish=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = {name: (tmp_path / "run" / name).read_bytes() for name in before}
    assert after == before
    run(recipe, tmp_path / "run", verbose=0, publish=False)
    assert end_of(tmp_path / "run", keras3) == expected


def test_deterministic_is_told_to_tensorflow(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: told.append(True))
    for deterministic in (True, False):
        Training(Recipe(**SMALL | {"deterministic": deterministic}), RunDir(str(tmp_path), {}))
    assert told == [True]


# Packages are imported once; TensorFlow starts its threads in the children only, one for each line that comes.
SERVER = """
import os, shlex, sys
from absl import app
import train
from tfspline.recipe import pictures

for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        sys.argv = ["train.py", *shlex.split(line)]
        app.run(train.main)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forked:
    """Processes of train.py, one after the other, that need not import anything."""

    def __init__(self, folder):
        self.folder, self.errors = folder, (folder / "stderr").open("wb")
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors, "bufsize": 0},
            env=os.environ | {"PYTHONPATH": f"{TRAIN.parent}:{os.environ.get('PYTHONPATH', '')}"},
        )

    def start(self, arguments):
        self.server.stdin.write(shlex.join(arguments).encode() + b"\n")
        self.pid = int(self.server.stdout.readline())

    def ended(self, seconds):
        """The exit code, or None if there is none so many seconds later."""
        there, _, _ = select.select([self.server.stdout], [], [], seconds)
        return int(self.server.stdout.readline()) if there else None

    def said(self):
        return (self.folder / "stderr").read_text()

    def close(self):
        self.server.kill()
        self.server.communicate()
        self.errors.close()


class Real(Forked):
    """Processes `python train.py`."""

    def __init__(self, folder):
        self.folder, self.errors = folder, (folder / "stderr").open("wb")

    def start(self, arguments):
        self.server = subprocess.Popen([sys.executable, TRAIN, *arguments], stdout=self.errors, stderr=self.errors)
        self.pid = self.server.pid

    def ended(self, seconds):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.server.wait(seconds)


@pytest.fixture
def processes(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


def begin(processes, recipe, folder):
    """Starts a process, and waits until it has the folder for itself, or finds nothing to do; its exit code then."""
    processes.start([f"--run_dir={folder}", *(f"--{name}={value}" for name, value in recipe.as_flags().items())])
    lock, code = folder / ".lock", None
    while code is None and not (lock.exists() and f"process {processes.pid} " in lock.read_text()):
        code = processes.ended(0.01)
    return code


def undisturbed(processes, recipe, folder):
    assert begin(processes, recipe, folder) is None, processes.said()
    start = time.monotonic()
    assert processes.ended(300) == 0, processes.said()
    return time.monotonic() - start


def kill_and_compare(processes, recipe, smooth, rough, seconds, chance):
    """Kills a run at random moments until it comes to its end; returns how often."""
    killed = 0
    while True:
        code = begin(processes, recipe, rough)
        if code is None:
            code = processes.ended(chance.uniform(0, seconds))
        if code is None:
            os.kill(processes.pid, signal.SIGKILL)
            code = processes.ended(60)
        if code == 0:
            break
        assert code == -signal.SIGKILL, processes.said()
        killed += 1
    keras = {"keras": keras3, "tf_keras": tf_keras}[recipe.keras]
    assert end_of(rough, keras) == end_of(smooth, keras)
    return killed


@pytest.mark.parametrize("processes", [Forked], indirect=True)
def test_processes_that_are_stopped_and_killed(processes, tmp_path):
    recipe, rough = Recipe(**SMALL | {"deterministic": True}), tmp_path / "a b" / "rough"
    seconds = undisturbed(processes, recipe, tmp_path / "smooth")
    for number in (signal.SIGTERM, signal.SIGINT):
        assert begin(processes, recipe, rough) is None
        with pytest.raises(BlockingIOError, match=f"other process works in. Received one of process {processes.pid} "):
            run(recipe, rough, verbose=0)
        os.kill(processes.pid, number)
        assert processes.ended(60) == 128 + number
        said = processes.said()
        assert f"train.py: stopped by {number.name}; to go on:\npython train.py '--run_dir={rough}' --network" in said
        assert "Traceback" not in said
    assert kill_and_compare(processes, recipe, tmp_path / "smooth", rough, seconds / 2, random.Random(0)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [Forked, Real], indirect=True)
@pytest.mark.parametrize(("keras", "fields"), each(), indirect=["keras"])
def test_processes_that_are_killed_at_random_moments(processes, keras, tmp_path, fields):
    recipe = Recipe(keras=keras.__name__, deterministic=True, **SMALL | fields)
    seconds = undisturbed(processes, recipe, tmp_path / "smooth")
    killed, chance = [], random.Random(0)
    while sum(killed) < 4:
        rough = tmp_path / f"rough{len(killed)}"
        killed.append(kill_and_compare(processes, recipe, tmp_path / "smooth", rough, seconds, chance))
    print(f"{sum(killed)} kills in {len(killed)} runs")
