"""Accuracy lost by removing half of the heads and of the hidden units of a trained vision transformer, untrained after.

python benchmarks/vit.py --folder=runs/vit

Trains a vision transformer of 12 composite blocks per seed (Fashion-MNIST, patches of 7 x 7, width 64, 4 heads), prunes
it with each criterion, and measures on 5,000 held-out images; the criterion that loses least there is measured once on
the test images. Results are in `results.jsonl`. Run the same command again to continue after an interruption.
"""

import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import keras  # noqa: E402
from absl import app, flags  # noqa: E402
from common import Results, accuracy, markdown, setting, spread  # noqa: E402

import tfspline  # noqa: E402
from tfspline import datasets  # noqa: E402

WIDTH, HEADS, BLOCKS, PATCH = 64, 4, 12, 7
CRITERIA = ("l1", "spline", "spline_affine", "taylor", "random")
WAYS = ("none", "merge", "refit")

flags.DEFINE_string("folder", "runs/vit", "Folder for networks and results.")
flags.DEFINE_integer("epochs", 10, "Epochs of the training.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, each with its own network.")
flags.DEFINE_list("units", [".attention", ".wide"], "Ends of the names of the layers that are pruned.")
flags.DEFINE_integer("images", 512, "Training images for scores and compensations.")


@keras.saving.register_keras_serializable("benchmarks")
class Block(keras.layers.Layer):
    """A block of a vision transformer, with the normalization before attention and hidden layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = (keras.layers.LayerNormalization(name=name) for name in ("first", "second"))
        self.attention = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name="attention")
        self.wide = keras.layers.Dense(4 * WIDTH, "gelu", name="wide")
        self.narrow = keras.layers.Dense(WIDTH, name="narrow")

    def build(self, shape):
        """Build the layers inside."""
        self.attention.build(shape, shape)
        for layer, size in ((self.first, WIDTH), (self.second, WIDTH), (self.wide, WIDTH), (self.narrow, 4 * WIDTH)):
            layer.build((*shape[:-1], size))
        self.built = True

    def call(self, x):
        """Add attention, then the hidden layer."""
        y = self.first(x)
        x = x + self.attention(y, y)
        return x + self.narrow(self.wide(self.second(x)))


@keras.saving.register_keras_serializable("benchmarks")
class Positions(keras.layers.Layer):
    """Adds a vector for each position."""

    def build(self, shape):
        """Add the weight."""
        self.positions = self.add_weight(name="positions", shape=(1, *shape[1:]), initializer="random_normal")

    def call(self, x):
        """Add the weight to the inputs."""
        return x + self.positions


def transformer(shape, classes):
    """Build the network."""
    x = inputs = keras.Input(shape)
    x = keras.layers.Conv2D(WIDTH, PATCH, PATCH, name="patches")(x)
    x = Positions()(keras.layers.Reshape((-1, WIDTH))(x))
    for i in range(BLOCKS):
        x = Block(name=f"block{i}")(x)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(classes, name="classifier")(x))


def compiled(model, steps):
    """Compile a model for so many steps."""
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=1e-3, warmup_steps=steps // 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=0.05), loss, metrics=["accuracy"])
    return model


def trained(given, dataset, seed):
    """Load the network of a seed, after training it if there is no file."""
    path = os.path.join(given.folder, f"vit-{given.epochs}-{seed}.keras")
    if not os.path.exists(path):
        keras.utils.set_random_seed(seed)
        steps = dataset.steps_per_epoch(128)
        model = compiled(transformer(dataset.input_shape, dataset.classes), given.epochs * steps)
        batches = dataset.train_batches(128, 0, "none", steps)
        model.fit(batches, steps_per_epoch=steps, epochs=given.epochs, verbose=2)
        model.save(f"{path}.part.keras")
        os.replace(f"{path}.part.keras", path)
    return keras.models.load_model(path)


def pruned(given, dense, criterion, way, probe):
    """Remove half of the units of a network; the network itself without a criterion."""
    if criterion is None:
        return dense
    data = probe if criterion == "taylor" else probe[0]
    others = (lambda layer: not layer.name.endswith(tuple(given.units)),)
    plan = tfspline.plan(dense, 0.5, criterion=criterion, data=data, protect=others)
    return plan.apply(dense, data=None if way == "none" else probe[0], compensate=way)


class Measurements:
    """The accuracies of all networks of a seed, measured where they are not known yet."""

    def __init__(self, given, results, seed):
        self.given, self.results, self.seed = given, results, seed
        self.dataset = datasets.load("fashion_mnist", seed=seed, validation_split=1 / 12)
        self.dense, self.probe = trained(given, self.dataset, seed), self.dataset.sample(given.images)

    def of(self, split, criterion=None, way=None):
        """Return the accuracy on a split in percent."""
        of_plan = {"criterion": criterion, "way": way, "units": self.given.units, "images": self.given.images}
        cell = {"seed": self.seed, "epochs": self.given.epochs, "split": split}
        cell |= of_plan if criterion else dict.fromkeys(of_plan)
        found = self.results.find(**cell)
        if found is None:
            model = pruned(self.given, self.dense, criterion, way, self.probe)
            values = {"accuracy": 100 * accuracy(model, self.dataset, split), "parameters": model.count_params()}
            print(found := self.results.add(cell | values), flush=True)
        return found["accuracy"]


def main(argv):
    """Train, prune, print the table."""
    del argv
    given = flags.FLAGS
    results = Results(given.folder, "seed", "epochs", "split", "criterion", "way", "units", "images")
    print(setting("keras"))
    networks = [Measurements(given, results, int(seed)) for seed in given.seeds]

    def accuracies(*cell):
        return [network.of(*cell) for network in networks]

    pairs = [(criterion, way) for criterion in CRITERIA for way in WAYS]
    best = max(pairs, key=lambda pair: statistics.mean(accuracies("validation", *pair)))
    cells = {pair: spread(accuracies("validation", *pair)) for pair in pairs}
    table = [("criterion", *WAYS), *((name, *(cells[name, way] for way in WAYS)) for name in CRITERIA)]
    print(f"\nheld-out images, dense {spread(accuracies('validation'))}\n{markdown(table)}")
    dense, small = (spread(accuracies("test", *pair)) for pair in ((None, None), best))
    print(f"\ntest images: dense {dense}, {' and '.join(best)} {small}")


if __name__ == "__main__":
    app.run(main)
