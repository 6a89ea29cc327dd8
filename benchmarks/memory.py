"""Memory of tfspline: peaks of region codes, planning and slimming compared with simple alternatives, and growth per
epoch of a training with an EarlyBird. Linux only.

python benchmarks/memory.py [--keras=keras] [--networks=ResNet50,EfficientNetB7] [--inputs=8,16] [--epochs=50]
"""

import concurrent.futures
import functools
import multiprocessing
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from common import setting, status, taken, trim  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras, datasets, models  # noqa: E402

flags.DEFINE_enum("keras", "keras", ["keras", "tf_keras"], "The Keras version.")
flags.DEFINE_list(
    "networks", ["ResNet50", "EfficientNetB7"], "Networks of keras.applications, for 224x224 images; may be empty."
)
flags.DEFINE_list("inputs", [8, 16], "Numbers of images for region codes; refitting uses half of them.")
flags.DEFINE_integer("epochs", 50, "Epochs of the trainings with and without an EarlyBird; 0 to skip them.")

SHAPE = (224, 224, 3)
BATCH = 4
MB = 1e6
SETTLED = 10  # epochs after which a training has allocated its memory


def images(count):
    """Return random images of ImageNet's size."""
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")


def codes(keras, model, plan, count):
    """Measure region codes."""
    x = images(count)
    used, found = taken(lambda: tfspline.region_codes(model, x, batch_size=BATCH, approximate=True))
    packed = sum(found[layer].nbytes for layer in found.layers)
    return used, f"codes of {count} images take {packed / MB:.0f} MB, as float32 {32 * packed / MB:,.0f} MB"


def activations(keras, model, plan, count):
    """Measure a model that returns all activations, stored as float32."""
    names = tfspline.region_codes(model, images(1), approximate=True).layers
    outputs = [_keras.layer_paths(model)[name.partition("#")[0]].output for name in names]
    watched, x = keras.Model(model.inputs, outputs), images(count)

    def keep():
        kept = [np.empty((count, *output.shape[1:]), "float32") for output in outputs]
        for start in range(0, count, BATCH):
            for array, made in zip(kept, watched(x[start : start + BATCH], training=False), strict=True):
                array[start : start + BATCH] = made
        return kept

    return taken(keep)[0], ""


def planned(keras, model, plan, count):
    """Measure a plan with the default criterion."""
    used, made = taken(lambda: tfspline.plan(model, 0.5))
    made.save(plan)
    return used, ""


def slimmed(keras, model, plan, count):
    """Measure applying the plan, including the small model."""
    plan = tfspline.Plan.load(plan, model)
    used, small = taken(lambda: plan.apply(model))
    return used, f"of which {4 * small.count_params() / MB:,.0f} MB are weights"


def masked(keras, model, plan, count):
    """Measure applying the plan's masks to the model."""
    masks = tfspline.Plan.load(plan, model).masks
    return taken(lambda: masks.apply(model))[0], ""


def refitted(keras, model, plan, count):
    """Measure applying the plan and refitting on half of the images."""
    plan, x = tfspline.Plan.load(plan, model), images(count // 2)
    return taken(lambda: plan.apply(model, x))[0], f"{len(x)} images"


def copied(keras, model, plan, count):
    """Measure a copy of the model made by Keras."""

    def copy():
        other = keras.models.clone_model(model)
        other.set_weights(model.get_weights())
        return other

    return taken(copy)[0], ""


ALTERNATIVES = {codes: activations, planned: copied, slimmed: copied, masked: copied}


def measured(keras_name, name, function, plan, count):
    """Return the memory of a function of this module on a network, a note, and the size of the weights in bytes."""
    keras = _keras.keras_named(keras_name)
    model = getattr(keras.applications, name)(weights=None, input_shape=SHAPE)
    return *function(keras, model, plan, count), 4 * model.count_params()


def trained(keras_name, epochs, watched):
    """Return the memory in use at the end of each epoch of a small training, in bytes."""
    keras = _keras.keras_named(keras_name)
    digits = datasets.load("digits")
    model = models.build("resnet8", digits.input_shape, digits.classes, keras=keras_name)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    used = []

    def note(epoch, logs):
        trim()
        used.append(status("VmRSS"))

    early_bird = tfspline.EarlyBird(stop_training=False, backup_dir=tempfile.mkdtemp())
    callbacks = [*([early_bird] if watched else []), keras.callbacks.LambdaCallback(on_epoch_end=note)]
    batches = digits.train_batches(64, steps=4)
    model.fit(batches, steps_per_epoch=4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return used


def alone(function, *arguments):
    """Run a function in a new process, so that its peak is its own, and return the result."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def peaks(keras_name, name, counts, folder):
    """Print the memory of each function on a network, and of its simple alternative."""
    plan = os.path.join(folder, f"{name}.json")
    take = functools.cache(lambda function, count: alone(measured, keras_name, name, function, plan, count))
    print(f"\n{name}, weights {take(planned, counts[0])[2] / MB:,.0f} MB")
    for function in (planned, slimmed, masked, codes, refitted):
        for count in counts if function in (codes, refitted) else counts[:1]:
            used, note, weights = take(function, count)
            row = f"{function.__name__:9} {used / MB:8,.0f} MB, {used / weights:5.2f}x the weights"
            if function in ALTERNATIVES:
                other = take(ALTERNATIVES[function], count)[0]
                row += f", {used / other:5.2f}x the {other / MB:,.0f} MB of {ALTERNATIVES[function].__name__}"
            print(f"{row}; {note}".rstrip("; "), flush=True)


def growth(keras_name, epochs):
    """Print how much the memory in use grows per epoch, with and without an EarlyBird."""
    print(f"\nResNet-8, digits, epochs {SETTLED} to {epochs}:")
    for watched in (False, True, False, True):
        used = alone(trained, keras_name, epochs, watched)[SETTLED:]
        slope = np.polyfit(np.arange(len(used)), used, 1)[0]
        what = "with an EarlyBird" if watched else "without"
        print(f"{what:18} {used[-1] / MB:7,.0f} MB at the end, {slope / MB:+.4f} MB per epoch", flush=True)


def main(argv):
    """Measure peaks and growth."""
    del argv
    given = flags.FLAGS
    print(setting(given.keras))
    with tempfile.TemporaryDirectory() as folder:
        for name in given.networks:
            peaks(given.keras, name, [int(count) for count in given.inputs], folder)
    if given.epochs:
        growth(given.keras, given.epochs)


if __name__ == "__main__":
    app.run(main)
