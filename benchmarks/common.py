"""Helpers shared by the benchmarks: hardware, timing, training, tables, and results that survive an interruption."""

import ctypes
import gc
import importlib
import json
import os
import platform
import re
import resource
import statistics
import time

import tensorflow as tf

from tfspline import models
from tfspline._keras import keras_named
from tfspline.recipe.recipe import Recipe


def setting(*keras_names):
    """Describe the machine, its load, and the versions of TensorFlow and of the given Keras versions."""
    packages = [importlib.import_module(name) for name in ("tensorflow", *keras_names)]
    devices = ", ".join(device.name for device in packages[0].config.list_logical_devices())
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in packages)
    return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {devices}; {versions}"


def seconds(function, *args, **options):
    """Measure the time of a call in seconds, after a garbage collection."""
    gc.collect()
    start = time.perf_counter()
    function(*args, **options)
    return time.perf_counter() - start


def clocks(function, *args, **options):
    """Measure wall-clock and CPU time of a call in seconds.

    CPU time depends less on other programs, but does not show idle cores.
    """
    start = time.process_time()
    wall = seconds(function, *args, **options)
    return {"wall": wall, "CPU": time.process_time() - start}


def columns(form):
    """Return a function that prints its arguments as a line of a table."""
    return lambda *cells: print(form.format(*cells), flush=True)


def peak():
    """Return the peak memory of this process in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def status(field):
    """Read the memory of this process in bytes: "VmRSS" is the current value, "VmHWM" the peak since its last reset."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", file.read())[1])


def trim():
    """Return unused memory to the system, so that it does not count as used."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def taken(function):
    """Return the peak memory of a function above the process's current memory, in bytes, and its result. Linux only."""
    trim()
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # resets VmHWM
    result = function()
    return status("VmHWM") - before, result


class Results:
    """The results of a benchmark, one row per cell, in the file `results.jsonl`, which the next run continues.

    Args:
        folder: folder of the file; created if needed.
        keys: fields that identify a cell: adding a row replaces an earlier one with the same values.

    Raises:
        ValueError: a line of the file is not JSON, except for an incomplete last line; or a row or cell lacks a key.
    """

    def __init__(self, folder, *keys):
        os.makedirs(folder, exist_ok=True)
        self.path, self.keys, self._rows = os.path.join(folder, "results.jsonl"), keys, {}
        if not os.path.exists(self.path):
            return
        with open(self.path, "rb") as file:
            *lines, incomplete = file.read().split(b"\n")
        if incomplete:  # by a process that was killed
            os.truncate(self.path, os.path.getsize(self.path) - len(incomplete))
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"Line {number} of {self.path!r} is not JSON: {line!r}") from error
            self._rows[self._key(row)] = row

    @property
    def rows(self):
        """All rows, in the order in which their cells were first added."""
        return list(self._rows.values())

    def find(self, **cell):
        """Return the row of a cell, None if there is none."""
        return self._rows.get(self._key(cell))

    def of(self, **fields):
        """Return the rows with the given values."""
        return [row for row in self.rows if all(row[name] == value for name, value in fields.items())]

    def add(self, row):
        """Add a row, write it to the disk, and return it."""
        self._rows[self._key(row)] = row
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return row

    def _key(self, row):
        if not set(self.keys) <= set(row):
            raise ValueError(f"Expected a row with the keys {', '.join(self.keys)}. Received: {row}")
        return json.dumps([row[name] for name in self.keys])  # values may be lists


def spread(values, digits=2):
    """Format mean and standard deviation for a table, a single value without the latter."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def markdown(rows):
    """Format rows of cells as a Markdown table. The first row is the header; all columns but the first align right."""
    head, *body = ([str(cell) for cell in row] for row in rows)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def network(recipe, dataset):
    """Build the network of a recipe, initialised with its seed."""
    keras_named(recipe.keras).utils.set_random_seed(recipe.seed)
    return models.build(recipe.network, dataset.input_shape, dataset.classes, recipe.width, recipe.keras)


def compiled(model, recipe):
    """Compile a model with a new optimizer of a recipe, and return it."""
    loss = keras_named(recipe.keras).losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(recipe.optimizer(), loss, metrics=["accuracy"])
    return model


def train(model, recipe, dataset, done, until, *callbacks, verbose=2):
    """Train a compiled model by a recipe, from epoch `done` (exclusive) to epoch `until` (inclusive)."""
    steps = dataset.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)
    model.fit(
        dataset.train_batches(recipe.batch_size, done, recipe.augment, steps),
        steps_per_epoch=steps,
        initial_epoch=done,
        epochs=until,
        shuffle=False,  # the batches are shuffled already; Keras 3 would warn
        verbose=verbose,
        callbacks=[keras_named(recipe.keras).callbacks.LearningRateScheduler(recipe.learning_rate_at), *callbacks],
    )


def trained(path, build, recipe, dataset):
    """Load the network in a file, after building it and training it by a recipe if there is no such file."""
    keras = keras_named(recipe.keras)
    if not os.path.exists(path):
        keras.utils.set_random_seed(recipe.seed)
        model = compiled(build(), recipe)
        train(model, recipe, dataset, 0, recipe.epochs)
        model.save(f"{path}.part.keras")
        os.replace(f"{path}.part.keras", path)
    return keras.models.load_model(path)


def dense_resnet20(folder, dataset, seed, epochs):
    """Load the ResNet-20 of a seed, after training it on Fashion-MNIST if there is no file."""
    recipe = Recipe(
        network="resnet20", keras="tf_keras", augment="crop", learning_rate=0.1, weight_decay=5e-4, epochs=epochs,
        seed=seed, ratio=0.5,
    )  # fmt: skip
    path = os.path.join(folder, f"dense-{epochs}-{seed}.keras")
    return trained(path, lambda: network(recipe, dataset), recipe, dataset)


def is_stream(layer):
    """Whether a layer of a ResNet of the package produces the channels of a residual stream."""
    return layer.name == "stem" or layer.name.endswith(("conv2", "shortcut"))


def accuracy(model, dataset, split="test"):
    """Compute the accuracy of a model on a split, in [0, 1]."""
    correct = [
        tf.argmax(model(x, training=False), 1) == tf.cast(y, tf.int64)
        for x, y in dataset.evaluation_batches(256, split)
    ]
    return float(tf.reduce_mean(tf.cast(tf.concat(correct, 0), tf.float64)))
