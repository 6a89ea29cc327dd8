"""A server that watches the folder of exports never sees an incomplete version, even if exports are killed."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

# The parent imports the packages once and forks a writer for each line that it reads; TensorFlow starts threads in the
# writers only.
WRITERS = """
import os, sys
import keras, tfspline

for _ in sys.stdin:
    child = os.fork()
    if not child:
        dense = keras.layers.Dense(3, name="sum", kernel_initializer="ones")
        model = keras.Sequential([keras.Input((4,), name="x"), dense])
        for _ in range(100):  # ends by itself if nobody kills it
            tfspline.export(model, sys.argv[1], metadata={"writer": os.getpid()})
        os._exit(1)
    print(child, flush=True)
    os.waitpid(child, 0)
"""
KILLED = 2


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def watch(folder, seen, enough, seconds=120):
    """Records the content of each version when it is first seen, until `enough()`."""
    deadline = time.monotonic() + seconds
    while not enough():
        assert time.monotonic() < deadline, f"no new version appeared: {sorted(os.listdir(folder))}"
        for name in os.listdir(folder):
            if name.isdecimal() and name not in seen:
                seen[name] = contents(folder / name)


def test_every_version_is_complete_when_first_seen_even_if_writers_are_killed(tmp_path):
    chance, seen, killed = random.Random(0), {}, 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writers:
        while killed < KILLED:
            print(file=writers.stdin, flush=True)
            writer, before, start = int(writers.stdout.readline()), len(seen), time.monotonic()
            try:
                watch(tmp_path, seen, lambda before=before: len(seen) >= before + 2)
                end = time.monotonic() + chance.uniform(0, (time.monotonic() - start) / 2)
                watch(tmp_path, seen, lambda end=end: time.monotonic() > end)
            finally:
                os.kill(writer, signal.SIGKILL)
            # A writer that was killed between two exports leaves nothing behind.
            killed = len(list(tmp_path.glob(".export-*")))
        writers.stdin.close()
    watch(tmp_path, seen, lambda: seen.keys() == {name for name in os.listdir(tmp_path) if name.isdecimal()})
    assert sorted(map(int, seen)) == list(range(1, len(seen) + 1))
    for name, first in seen.items():
        assert first == contents(tmp_path / name), f"version {name} was not complete when first seen"
        assert first.keys() >= {"saved_model.pb", "variables/variables.index", "assets.extra/tfspline.json"}
    for name in (min(seen, key=int), max(seen, key=int)):
        model = tf.saved_model.load(str(tmp_path / name))
        np.testing.assert_array_equal(model.signatures["serving_default"](x=tf.ones((1, 4)))["sum"], [[4, 4, 4]])
