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
        ValueError: when a cell is looked for without all keys, or a row added.
    """

    def __init__(self, folder, *keys):
        os.makedirs(folder, exist_ok=True)
        self.path, self.keys, self.rows = os.path.join(folder, "results.jsonl"), keys, []
        if os.path.exists(self.path):
            with open(self.path, "r+b") as file:
                lines = file.readlines()
                if lines and not lines[-1].endswith(b"\n"):  # cut by an interruption
                    lines.pop()
                    file.truncate(sum(map(len, lines)))
            self.rows = [json.loads(line) for line in lines]

    def find(self, **cell):
        """The row of a cell; None if it is not done yet."""
        self._check(cell)
        return next(iter(self.of(**cell)), None)

    def of(self, **fields):
        """The rows with these values."""
        return [row for row in self.rows if all(row[name] == value for name, value in fields.items())]

    def add(self, row):
        """Adds a row, on the disk when this returns; prints it."""
        self._check(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        print(row, flush=True)

    def _check(self, row):
        if not set(self.keys) <= set(row):
            raise ValueError(f"Expected values of {', '.join(self.keys)}. Received: {row}")


def spread(values, digits=2):
    """Mean and standard deviation (of one value: none) as they stand in a table."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def markdown(rows):
    """A Markdown table of rows of cells, the first of which is its head; all columns but the first to the right."""
    head, *body = ([str(cell) for cell in row] for row in rows)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def compiled(model, recipe):
    """The model, ready to be trained as a recipe says, from a fresh optimizer on."""
    loss = keras_named(recipe.keras).losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(recipe.optimizer(), loss, metrics=["accuracy"])
    return model


def train(model, recipe, dataset, done, until, *callbacks):
    """Trains a compiled model from the end of epoch `done` of a recipe to that of epoch `until`."""
    steps = dataset.steps_per_epoch(recipe.batch_size, recipe.steps_per_epoch)
    model.fit(
        dataset.train_batches(recipe.batch_size, done, recipe.augment, steps),
        steps_per_epoch=steps,
        initial_epoch=done,
        epochs=until,
        shuffle=False,  # the batches are; Keras 3 warns otherwise
        verbose=2,
        callbacks=[keras_named(recipe.keras).callbacks.LearningRateScheduler(recipe.learning_rate_at), *callbacks],
    )


def accuracy(model, dataset):
    """The share of the test images that a model, compiled or not, gets right."""
    right = [
        tf.argmax(model(x, training=False), 1) == tf.cast(y, tf.int64) for x, y in dataset.evaluation_batches(1000)
    ]
    return float(tf.reduce_mean(tf.cast(tf.concat(right, 0), tf.float64)))
