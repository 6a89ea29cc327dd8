"""Error and cost of affine maps on common networks.

python benchmarks/affine.py [--keras=keras] [--networks=resnet20,resnet56,vgg16,mobilenet_v2]
"""

import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from common import seconds, setting  # noqa: E402

import tfspline  # noqa: E402
import tfspline.models  # noqa: E402
from tfspline import _keras  # noqa: E402

flags.DEFINE_enum("keras", "keras", ["keras", "tf_keras"], "The Keras version.")
flags.DEFINE_list(
    "networks", ["resnet20", "resnet56", "vgg16", "mobilenet_v2"], "Networks, for 32x32 images and ten classes."
)
flags.DEFINE_integer("samples", 8, "Number of images.")
flags.DEFINE_integer("repeats", 3, "Measurements of each time; the median is reported.")

CLASSES = 10
STEP = 1e-6  # distance of neighbours, relative to the pixels: small enough for some to have the same code


def network(keras_name, name, rng):
    """Build a network with random batch-norm statistics."""
    if name == "mobilenet_v2":
        keras = _keras.keras_named(keras_name)
        model = keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=CLASSES)
    else:
        model = tfspline.models.build(name, (32, 32, 3), CLASSES, keras=keras_name)
    for layer in model.layers:
        if _keras.of_class(layer, "BatchNormalization"):
            for weight in (layer.gamma, layer.moving_variance):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            for weight in (layer.beta, layer.moving_mean):
                weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


def logits(model, x):
    """Compute the inputs of the softmax at the output in float32."""
    head = model.layers[-1]
    if not _keras.of_class(head, "Dense"):
        raise ValueError(f"Expected a Dense head. Received: {type(head).__name__}")
    inputs = []

    def visit(node, args, kwargs):
        inputs.append(args)
        return node.layer(*args, **kwargs)

    _keras.run(model, [tf.constant(x)], visit)
    return np.asarray(tf.matmul(inputs[-1][0], head.kernel) + head.bias, np.float64)


def error(A, b, f, x):
    """Largest |f(x) - (A x + b)|, relative to the largest |f(x)|."""
    return np.abs(np.einsum("nmd,nd->nm", A, x.reshape(len(x), -1).astype(np.float64)) + b - f).max() / np.abs(f).max()


def measure(keras_name, name, samples, repeats):
    """Measure a network and print its row of the table."""
    rng = np.random.default_rng(0)
    model = network(keras_name, name, rng)
    x = rng.normal(size=(samples, 32, 32, 3)).astype(np.float32)
    near = x + (STEP * rng.normal(size=x.shape)).astype(np.float32)
    A, b = tfspline.affine_map(model, x, logits=True)
    here, there = (tfspline.region_codes(model, inputs, max_pooling=True) for inputs in (x, near))
    same = np.all([(here[layer] == there[layer]).all(axis=1) for layer in here.layers], axis=0)
    at_neighbours = error(A[same], b[same], logits(model, near[same]), near[same]) if same.any() else np.nan
    model.predict(x, verbose=0)
    maps, predictions, one = [], [], []
    for _ in range(repeats):
        predictions.append(seconds(model.predict, x, verbose=0))
        maps.append(seconds(tfspline.affine_map, model, x, logits=True))
        one.append(seconds(tfspline.affine_map, model, x, logits=True, outputs=0))
    ratio = statistics.median(a / p for a, p in zip(maps, predictions, strict=True))
    ratio_one = statistics.median(a / p for a, p in zip(one, predictions, strict=True))
    print(
        f"{name:14} {sum(here.bits.values()):9,} {error(A, b, logits(model, x), x):9.1e} "
        f"{at_neighbours:9.1e} ({same.sum()} of {samples}) {1e3 * statistics.median(maps) / samples:9.1f} "
        f"{ratio:8.1f}x {ratio_one:8.1f}x",
        flush=True,
    )


def main(argv):
    """Measure all networks."""
    del argv
    given = flags.FLAGS
    print(setting(given.keras))
    print(
        f"{given.samples} images, {CLASSES} outputs; errors relative to the largest output, times relative to predict"
    )
    print(f"{'network':14} {'bits':>9} {'error':>9} {'same code':>18} {'ms/image':>9} {'all':>9} {'one':>9}")
    for name in given.networks:
        measure(given.keras, name, given.samples, given.repeats)


if __name__ == "__main__":
    app.run(main)
