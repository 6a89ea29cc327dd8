"""Processes of train.py that are stopped and killed."""

import contextlib
import os
import pathlib
import random
import select
import shlex
import signal
import subprocess
import sys
import time

import keras as keras3
import pytest
import tf_keras
from helpers.interruptions import SMALL, recipes
from helpers.runs import end_of

from tfspline.recipe import Recipe, run

TRAIN = pathlib.Path(__file__).parents[2] / "train.py"

# Packages are imported once; TensorFlow starts its threads only in the children, one of which is forked for each line.
SERVER = """
import os, shlex, signal, sys
from tfspline.recipe import command_line, pictures

signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        command_line.main(shlex.split(line))
        sys.exit()
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
        """The exit code, or None if the process is still running after so many seconds."""
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
    """Start a process and wait until it has locked the folder, or has ended; return its exit code then."""
    flags, code = folder / "flags.cfg", None
    before = flags.stat().st_ino if flags.exists() else None
    processes.start([f"--run_dir={folder}", *(f"--{name}={value}" for name, value in recipe.as_flags().items())])
    # A process replaces flags.cfg after it has locked the folder.
    while code is None and not (flags.exists() and flags.stat().st_ino != before):
        code = processes.ended(0.01)
    return code


def undisturbed(processes, recipe, folder):
    assert begin(processes, recipe, folder) is None, processes.said()
    start = time.monotonic()
    assert processes.ended(300) == 0, processes.said()
    return time.monotonic() - start


def kill_and_compare(processes, recipe, smooth, rough, seconds, chance, most=1000):
    """Kill a run at random moments, at most so many times, until it reaches its end; return how often."""
    killed = 0
    while True:
        code = begin(processes, recipe, rough)
        if code is None:
            code = processes.ended(chance.uniform(0, seconds) if killed < most else 300)
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
        with pytest.raises(BlockingIOError, match="Another process is using this run_dir"):
            run(recipe, rough, verbose=0)
        os.kill(processes.pid, number)
        assert processes.ended(60) == 128 + number
        said = processes.said()
        assert (
            f"train.py: stopped by {number.name}; to continue:\npython train.py '--run_dir={rough}' --network" in said
        )
        assert "Traceback" not in said
    assert kill_and_compare(processes, recipe, tmp_path / "smooth", rough, seconds / 2, random.Random(0), most=1) == 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [Forked, Real], indirect=True)
@pytest.mark.parametrize(("keras", "fields"), recipes(), indirect=["keras"])
def test_processes_that_are_killed_at_random_moments(processes, keras, tmp_path, fields):
    recipe = Recipe(keras=keras.__name__, deterministic=True, **SMALL | fields)
    seconds = undisturbed(processes, recipe, tmp_path / "smooth")
    killed, chance = [], random.Random(0)
    while sum(killed) < 4:
        rough = tmp_path / f"rough{len(killed)}"
        killed.append(kill_and_compare(processes, recipe, tmp_path / "smooth", rough, seconds, chance))
    print(f"{sum(killed)} kills in {len(killed)} runs")
