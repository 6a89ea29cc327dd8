"""Throughput of the data pipeline compared with the train step: does the pipeline slow down training?

python benchmarks/data_pipeline.py [--network=resnet20] [--dataset=fashion_mnist] [--augment=crop_flip]
python benchmarks/data_pipeline.py --photos=512 --network=resnet18 --augment=random_resized_crop --batch_size=32

With --photos, the dataset consists of generated JPEGs of 300 x 400 pixels, decoded to 224 x 224 pixels when needed, as
for an image folder larger than memory. Also measures Keras' image_dataset_from_directory, which does not augment.
"""

import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from common import setting  # noqa: E402

from tfspline import _keras, datasets, models  # noqa: E402
from tfspline.datasets.image_files import ImageFiles  # noqa: E402

SIZE = (224, 224)

flags.DEFINE_string("network", "resnet20", "Network to train.")
flags.DEFINE_string("dataset", "fashion_mnist", "Dataset to train on.")
flags.DEFINE_string("data_dir", None, "Folder of the dataset.")
flags.DEFINE_integer("photos", 0, "Number of JPEGs to generate and use instead of a dataset.")
flags.DEFINE_string("augment", "crop_flip", "Augmentation.")
flags.DEFINE_enum("keras", "tf_keras", ["keras", "tf_keras"], "The Keras version.")
flags.DEFINE_integer("batch_size", 128, "Images per batch.")
flags.DEFINE_integer("steps", 30, "Batches per measurement.")
flags.DEFINE_integer("repeats", 5, "Measurements; the median is reported.")


def images_per_second(step, batches):
    """Measure the images per second of `step` over some batches, not counting the first one."""
    iterator = iter(batches)
    step(next(iterator))
    start, images = time.perf_counter(), 0
    for batch in iterator:
        step(batch)
        images += len(batch[0])
    return images / (time.perf_counter() - start)


def write_photos(folder, photos):
    """Write JPEGs of 300 x 400 pixels and about 40 KB, in a sub-folder for each of two classes."""
    rng = np.random.default_rng(0)
    for index in range(photos):
        shapes = tf.image.resize(rng.uniform(0, 255, (12, 16, 3)), (300, 400), "bicubic")
        pixels = np.clip(shapes + rng.normal(0, 8, shapes.shape), 0, 255).astype(np.uint8)
        path = pathlib.Path(folder, str(index % 2), f"{index:06}.jpg")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(pixels, quality=90).numpy())


def dataset_of_files(folder):
    """Return a folder of JPEGs as the dataset that `datasets.load` makes of an image folder larger than memory."""
    paths = sorted(pathlib.Path(folder).glob("*/*.jpg"))
    files = ImageFiles(np.array([str(path) for path in paths], object), (*SIZE, 3))
    split = datasets.Split(files, np.array([int(path.parent.name) for path in paths], np.int32))
    return datasets.Dataset("photos", ("0", "1"), split, None, split)


def main(argv):
    """Measure, with generated photos if asked for."""
    del argv
    given = flags.FLAGS
    with tempfile.TemporaryDirectory() as folder:
        if given.photos:
            write_photos(folder, given.photos)
        measure(folder)


def measure(folder):
    """Measure pipeline and train step (and Keras' pipeline for photos) alternately, and print medians."""
    given = flags.FLAGS
    dataset = dataset_of_files(folder) if given.photos else datasets.load(given.dataset, given.data_dir)
    model = models.build(given.network, dataset.input_shape, dataset.classes, keras=given.keras)
    keras = _keras.keras_named(given.keras)
    model.compile(keras.optimizers.SGD(0.1, 0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = dataset.train_batches(given.batch_size, augment=given.augment).take(given.steps + 1)
    ready = [next(iter(batches))] * (given.steps + 1)
    measured = {
        "pipeline": lambda: images_per_second(lambda batch: None, batches),
        "train step": lambda: images_per_second(lambda batch: model.train_on_batch(*batch), ready),
    }
    if given.photos:
        options = {"image_size": SIZE, "batch_size": given.batch_size, "seed": 0, "verbose": False}
        of_keras = _keras.keras_named("keras").utils.image_dataset_from_directory(folder, **options)
        of_keras = of_keras.repeat().take(given.steps + 1)
        measured["Keras' pipeline"] = lambda: images_per_second(lambda batch: None, of_keras)

    rounds = [{name: rate() for name, rate in measured.items()} for _ in range(given.repeats)]
    print(setting(given.keras))
    print(f"{given.network} on {dataset.name}, batch {given.batch_size}, augment={given.augment}")
    for name in measured:
        rate = statistics.median(row[name] for row in rounds)
        ratio = statistics.median(row["pipeline"] / row[name] for row in rounds)
        print(f"{name}: {rate:,.0f} images/s; the pipeline is {ratio:.1f} times as fast")


if __name__ == "__main__":
    app.run(main)
