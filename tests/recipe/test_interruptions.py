"""Runs that are killed or stopped, or whose files are damaged, end exactly like an undisturbed run."""

import os
import resource
import shutil
import signal
import time

import keras as keras3
import pytest
import tf_keras
from helpers.interruptions import SMALL, recipes
from helpers.runs import end_of, rows_of

from tfspline.recipe import Recipe, pictures, run
from tfspline.recipe.checkpoints import Checkpoints
from tfspline.recipe.recording import Recorder
from tfspline.recipe.stopping import Stopped, Stopper


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(autouse=True)
def interruptible():
    """Restore SIGINT, which processes that a shell starts in its background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("keras", "fields"), recipes((keras3, "one_shot")), indirect=["keras"])
def test_run_killed_before_each_file_that_it_writes(keras, tmp_path, monkeypatch, fields):
    recipe = Recipe(keras=keras.__name__, **SMALL | fields)
    run(recipe, tmp_path / "smooth", verbose=0, publish=False)
    replace, killed_at = os.replace, set()

    def kill_once(source, target):
        name = os.path.relpath(target, tmp_path / "rough")
        if not name.startswith("..") and name not in killed_at:
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
    named = {"flags.cfg", "history.jsonl", "plan.json", "slim.keras", "dense.keras", "summary.json"}
    assert named < killed_at and len(killed_at) >= len(named) + len(rows_of(tmp_path / "smooth"))


@pytest.mark.slow
@pytest.mark.parametrize(("keras", "fields"), recipes((tf_keras, "gradual")), indirect=["keras"])
def test_run_stopped_after_every_fourth_step(keras, tmp_path, monkeypatch, fields):
    recipe, trained = Recipe(keras=keras.__name__, **SMALL | fields), []
    run(recipe, tmp_path / "smooth", verbose=0, publish=False)
    begin = Recorder.on_train_batch_begin

    def stop(recorder, batch, logs=None):
        begin(recorder, batch, logs)
        trained.append((recorder.phase, recorder.trained))
        if len(trained) % 4 == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "on_train_batch_begin", stop)
    before, stops = signal.getsignal(signal.SIGTERM), 0
    while not (tmp_path / "rough" / "summary.json").exists():
        try:
            run(recipe, tmp_path / "rough", verbose=0, publish=False)
        except Stopped as stopped:
            assert stopped.number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
            stops += 1
    assert len(trained) == len(set(trained)) and stops == len(trained) // 4  # no step is trained twice
    assert end_of(tmp_path / "rough", keras) == end_of(tmp_path / "smooth", keras)


def test_signal_outside_of_steps_and_second_signal_act_at_once():
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
            pytest.fail("the second signal did not act at once")


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopper() as stopper:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopper.received is None and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was killed in its retraining, its recipe, and its end if nothing else happens."""
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
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return sorted(str(path.relative_to(folder)) for path in paths if "logs" not in path.parts)


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("checkpoints/retrain-0000015.zip", flip),
        ("checkpoints/search-0000010.zip", cut),
        ("history.jsonl", remove),
        *(
            pytest.param(name, harm, marks=pytest.mark.slow)
            for name in ("checkpoints/prune-0000010.zip", "checkpoints/search-0000005.zip")
            for harm in (remove, cut, flip)
        ),
    ],
)
def test_run_continues_from_undamaged_checkpoints(interrupted, tmp_path, monkeypatch, name, harm):
    folder, recipe, expected = interrupted
    checkpoints = ("search-0000005", "search-0000010", "prune-0000010", "retrain-0000015")
    assert files_of(folder) == sorted(
        ["flags.cfg", "history.jsonl", *(f"checkpoints/{name}.zip" for name in checkpoints)]
    )
    shutil.copytree(folder, tmp_path / "run")
    harm(tmp_path / "run" / name)
    warned = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *values: warned.append(text % values))
    run(recipe, tmp_path / "run", verbose=0, publish=False)
    assert end_of(tmp_path / "run", keras3) == expected
    assert harm is remove or any(name in text for text in warned) or name == "checkpoints/search-0000005.zip"


def test_full_disk_is_reported_and_changes_nothing(interrupted, tmp_path, monkeypatch):
    folder, recipe, expected = interrupted
    shutil.copytree(folder, tmp_path / "run")
    before = {name: (folder / name).read_bytes() for name in files_of(folder)}
    put, (soft, hard) = Checkpoints.put, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # bytes per file; a checkpoint is larger
        try:
            put(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"too large: '.*/retrain-0000020\.zip'"):
        patch.setattr(Checkpoints, "put", limited)
        run(recipe, tmp_path / "run", verbose=0, publish=False)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in files_of(tmp_path / "run")} == before
    run(recipe, tmp_path / "run", verbose=0, publish=False)
    assert end_of(tmp_path / "run", keras3) == expected


def test_run_killed_before_its_summary_publishes_again(tmp_path, monkeypatch):
    folder, recipe = tmp_path / "run", Recipe(**SMALL)

    def killed(*arguments):
        raise Killed

    monkeypatch.setattr(pictures, "draw", lambda folder, *others: folder.write("units.png", "picture"))
    with monkeypatch.context() as patch:
        patch.setattr("tfspline.recipe.run_dir.RunDir.finish", killed)
        with pytest.raises(Killed):
            run(recipe, folder, verbose=0)
    (folder / "serving" / "1" / "saved_model.pb").write_bytes(b"old")
    (folder / "units.png").unlink()
    run(recipe, folder, verbose=0)
    assert (folder / "serving" / "1" / "saved_model.pb").stat().st_size > 3
    assert (folder / "units.png").exists()
    assert [path.name for path in (folder / "checkpoints").iterdir() if "codes" not in path.name] == [
        "search-0000010.zip"
    ]
