"""Does the data pipeline hold the training back? Images a second of the pipeline alone against the train step alone.

python benchmarks/data_pipeline.py [--network=resnet20] [--dataset=fashion_mnist] [--augment=crop_flip]
"""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

from absl import app, flags  # noqa: E402
from common import setting  # noqa: E402

from tfspline import _keras, data, models  # noqa: E402

flags.DEFINE_string("network", "resnet20", "The network to train.")
flags.DEFINE_string("dataset", "fashion_mnist", "What to train it on.")
flags.DEFINE_string("data_dir", None, "Its files.")
flags.DEFINE_string("augment", "crop_flip", "Augmentation.")
flags.DEFINE_string("keras", "tf_keras", "keras or tf_keras.")
flags.DEFINE_integer("batch_size", 128, "Images a batch.")
flags.DEFINE_integer("steps", 30, "Batches a measurement.")
flags.DEFINE_integer("repeats", 5, "Measurements, of which the median counts.")


def images_per_second(step, batches):
    """Images a second of `step` over some batches, the first of which is not counted."""
    iterator = iter(batches)
    step(next(iterator))
    start, images = time.perf_counter(), 0
    for batch in iterator:
        step(batch)
        images += len(batch[0])
    return images / (time.perf_counter() - start)


def main(argv):
    """Measures both in turn and prints the medians and the median of the ratios."""
    del argv
    given = flags.FLAGS
    dataset = data.load(given.dataset, given.data_dir)
    model = models.build(given.network, dataset.input_shape, dataset.classes, keras=given.keras)
    keras = _keras.keras_named(given.keras)
    model.compile(keras.optimizers.SGD(0.1, 0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = dataset.train_batches(given.batch_size, augment=given.augment).take(given.steps + 1)
    one_batch = next(iter(batches))
    ready = [one_batch] * (given.steps + 1)

    pairs = []
    for _ in range(given.repeats):
        pipeline = images_per_second(lambda batch: None, batches)
        training = images_per_second(lambda batch: model.train_on_batch(*batch), ready)
        pairs.append((pipeline, training))
    pipeline, training = map(statistics.median, zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(setting(given.keras))
    print(f"{given.network} on {given.dataset}, batch {given.batch_size}, augment={given.augment}")
    print(
        f"pipeline {pipeline:,.0f} images/s, train step {training:,.0f} images/s: the pipeline is {ratio:.1f}x faster"
    )


if __name__ == "__main__":
    app.run(main)
