"""What benchmarks have in common: what they run on, how long a call takes, trainings, and results that outlast an
interruption."""

import gc
import importlib
import json
import os
import platform
import resource
import statistics
import time

import tensorflow as tf

from tfspline import models
from tfspline._keras import keras_named


def setting(*kerases):
    """The machine, how busy it is, and the versions of TensorFlow and of the Kerases named."""
    packages = [importlib.import_module(name) for name in ("tensorflow", *kerases)]
    devices = ", ".join(device.name for device in packages[0].config.list_logical_devices())
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in packages)
    return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {devices}; {versions}"


def seconds(function, *args, **options):
    """How long a call takes; garbage of earlier ones is not charged to it."""
    gc.collect()
    start = time.perf_counter()
    function(*args, **options)
    return time.perf_counter() - start


def clocks(function, *args, **options):
    """How long a call takes by the wall clock, and how long this process had a core for it: other programs that run
    beside it matter less for that, but it knows nothing of cores that stand idle."""
    start = time.process_time()
    wall = seconds(function, *args, **options)
    return {"wall": wall, "CPU": time.process_time() - start}


def columns(form):
    """A function that prints its arguments as a line of a table, at once."""
    return lambda *cells: print(form.format(*cells), flush=True)


def peak():
    """The most memory that this process has ever had, in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Results:
    """The results of a benchmark, a row a cell: `results.jsonl` in its folder, which the next run goes on with.

    Args:
        folder: where the file is, or is to be; made if it is not there.
        keys: the fields of a row, of which two rows that are of the same cell have the same values.

    Raises:
        ValueError: a line of the file that is no JSON, other than a last one that was cut short; when a cell is looked
            for without all keys, or a row added.
    """

    def __init__(self, folder, *keys):
        os.makedirs(folder, exist_ok=True)
        self.path, self.keys, self._rows = os.path.join(folder, "results.jsonl"), keys, {}
        if not os.path.exists(self.path):
            return
        with open(self.path, "rb") as file:
            *lines, torn = file.read().split(b"\n")
        if torn:  # a process that was killed wrote this far
            os.truncate(self.path, os.path.getsize(self.path) - len(torn))
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"Expected JSON in line {number} of {self.path!r}. Received: {line!r}") from error
            self._rows[self._key(row)] = row

    @property
    def rows(self):
        """All rows, in the order in which their cells were done first."""
        return list(self._rows.values())

    def find(self, **cell):
        """The row of a cell; None if it is not done yet."""
        return self._rows.get(self._key(cell))

    def of(self, **fields):
        """The rows with these values."""
        return [row for row in self.rows if all(row[name] == value for name, value in fields.items())]

    def add(self, row):
        """Keeps the row of a cell, on the disk when this returns; returns it."""
        self._rows[self._key(row)] = row
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return row

    def _key(self, row):
        if not set(self.keys) <= set(row):
            raise ValueError(f"Expected values of {', '.join(self.keys)}. Received: {row}")
        return json.dumps([row[name] for name in self.keys])  # values may be lists


def spread(values, digits=2):
    """Mean and standard deviation (of one value: none) as they stand in a table."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def markdown(rows):
    """A Markdown table of rows of cells, the first of which is its head; all columns but the first to the right."""
    head, *body = ([str(cell) for cell in row] for row in rows)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def network(recipe, dataset):
    """The network of a recipe as its seed makes it."""
    keras_named(recipe.keras).utils.set_random_seed(recipe.seed)
    return models.build(recipe.network, dataset.input_shape, dataset.classes, recipe.width, recipe.keras)


def compiled(model, recipe):
    """The model, ready to be trained as a recipe says, from a fresh optimizer on."""
    loss = keras_named(recipe.keras).losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(recipe.optimizer(), loss, metrics=["accuracy"])
    return model


def train(model, recipe, dataset, done, until, *callbacks, verbose=2):
    """Trains a compiled model from the end of epoch `done` of a recipe to that of epoch `until`."""
    steps = dataset.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)
    model.fit(
        dataset.train_batches(recipe.batch_size, done, recipe.augment, steps),
        steps_per_epoch=steps,
        initial_epoch=done,
        epochs=until,
        shuffle=False,  # the batches are; Keras 3 warns otherwise
        verbose=verbose,
        callbacks=[keras_named(recipe.keras).callbacks.LearningRateScheduler(recipe.learning_rate_at), *callbacks],
    )


def accuracy(model, dataset, split="test"):
    """The share of the images of a split that a model, compiled or not, gets right."""
    right = [
        tf.argmax(model(x, training=False), 1) == tf.cast(y, tf.int64)
        for x, y in dataset.evaluation_batches(256, split)
    ]
    return float(tf.reduce_mean(tf.cast(tf.concat(right, 0), tf.float64)))
