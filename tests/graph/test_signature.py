"""Models are recognised by their structure: automatic names count for nothing, everything else counts."""

import copy

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import FAMILIES, difference, inputs_for, scramble

import tfspline
from tfspline.graph.signature import renamed, signature


def words(model):
    return [call for _, call in signature(model)]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_model_built_again_in_one_process_has_the_same_signature(keras, rng, tmp_path, family):
    model, again = scramble(family(keras), rng), scramble(family(keras), rng)
    assert words(model) == words(again) == words(keras.models.clone_model(model))
    model.save(tmp_path / "model.keras")
    assert words(keras.models.load_model(tmp_path / "model.keras")) == words(model)
    plan = tfspline.plan(model, 0.5, protect=[model.layers[-1].name])
    plan.save(tmp_path / "plan.json")
    plan.masks.save(tmp_path / "masks.json")
    loaded = tfspline.Plan.load(tmp_path / "plan.json", again)
    assert np.array_equal(loaded.removed, plan.removed) and loaded.cost() == plan.cost()
    assert np.array_equal(tfspline.Masks.load(tmp_path / "masks.json", again).off, plan.removed)
    x = inputs_for(again, rng)
    assert difference(loaded.mask(again)(x), plan.apply(again)(x)) <= 1e-5
    plan.masks.apply(again)
    assert difference(again(x), plan.apply(again)(x)) <= 1e-5


def network(keras, activation="relu", merge="Add", wiring="xy", slope=6.0, names=("a", "b"), dims=(2, 1)):
    """A network with layers of several kinds."""
    layers, inputs = keras.layers, keras.Input((8, 8))
    x = layers.Dense(8, activation, name=names[0])(inputs)
    y = layers.ReLU(max_value=slope)(layers.Conv1D(8, 1, name=names[1])(x))
    if merge:
        y = getattr(layers, merge)()([{"x": x, "y": y}[name] for name in wiring])
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Permute(dims)(y))))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "change",
    [
        {"activation": "tanh"},
        {"activation": None},
        {"merge": "Subtract"},
        {"merge": None},
        {"slope": None},
        {"wiring": "yx"},
        {"dims": (1, 2)},
        {"names": ("a", "c")},
        {"names": ("a", None)},
    ],
    ids=str,
)
def test_another_network_with_the_same_weights_is_refused(keras, tmp_path, change):
    model, other = network(keras), network(keras, **change)
    assert [w.shape for w in model.weights] == [w.shape for w in other.weights]
    plan = tfspline.plan(model, 0.5)
    plan.save(tmp_path / "plan")
    plan.masks.save(tmp_path / "masks")
    message = "model that the (plan|masks) .* made for, with .*Received"
    for use in (plan.apply, plan.mask, plan.masks.apply):
        with pytest.raises(ValueError, match=message):
            use(other)
    for kind, name in ((tfspline.Plan, "plan"), (tfspline.Masks, "masks")):
        with pytest.raises(ValueError, match=f"{name} from .*{message}"):
            kind.load(tmp_path / name, other)


def test_what_does_not_change_channels_may_differ(keras):
    def build(rate, policy):
        layers, inputs = keras.layers, keras.Input((6,))
        x = layers.Dropout(rate)(layers.Dense(8, "relu", kernel_regularizer="l2", dtype=policy)(inputs))
        return keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization(momentum=rate)(x)))

    assert words(build(0.1, "float32")) == words(build(0.5, "mixed_float16"))


def test_chosen_names_differ_and_automatic_ones_do_not():
    def named(*names):
        inputs = keras3.Input((4,))
        x = inputs
        for name in names:
            x = keras3.layers.Dense(4, name=name)(x)
        return keras3.Model(inputs, x)

    assert words(named("dense", "dense_7")) == words(named("dense_1", "dense"))
    paths = renamed(signature(named("dense_4", "head")), signature(named("dense", "head")), "Expected")
    assert paths == {"dense_4": "dense", "head": "head", "": ""}
    for other in (("dense", "head_1"), ("head", "dense"), ("dense",)):
        with pytest.raises(ValueError, match="Expected a model, with"):
            renamed(signature(named("dense", "head")), signature(named(*other)), "Expected a model")


def test_layer_that_is_shared_differs_from_two_layers(keras):
    def build(shared):
        inputs = keras.Input((4,))
        first, second = keras.layers.Dense(4), keras.layers.Dense(4)
        return keras.Model(inputs, (first if shared else second)(first(inputs)))

    assert words(build(True)) == words(build(True)) != words(build(False))


CELL = """
import functools
import tensorflow as tf

def relu(x):
    def inner(x):
        return inner(x[0]) if isinstance(x, list) else x
    return tf.minimum(tf.nn.relu(inner(x)), 0.1)

def scaled(factor):
    return lambda x: factor * tf.nn.relu(x)

class Capped:
    def __init__(self, cap):
        self.cap = cap

    def __call__(self, x):
        return tf.minimum(tf.nn.relu(x), self.cap)

    def method(self, x):
        return x + self.cap

class Derived(Capped):
    pass

FUNCTIONS = {
    "own relu": relu,
    "relu": tf.nn.relu,
    "lambda": lambda x: x + 2.0,
    "other operation": lambda x: x * 2.0,
    "other constant": lambda x: x + 3.0,
    "other function": lambda x: tf.nn.elu(x) + 2.0,
    "inside": lambda x: (lambda y: y + 2.0)(x),
    "closure": scaled(1.0),
    "other closure": scaled(2.0),
    "default": lambda x, a=1.0: a * x,
    "other default": lambda x, a=2.0: a * x,
    "partial": functools.partial(tf.nn.leaky_relu, alpha=0.1),
    "other partial": functools.partial(tf.nn.leaky_relu, alpha=0.2),
    "object": Capped(1.0),
    "other object": Capped(2.0),
    "derived": Derived(1.0),
    "other derived": Derived(2.0),
    "method": Capped(1.0).method,
    "tf.function": tf.function(lambda x: x + 4.0),
    "other tf.function": tf.function(lambda x: x + 5.0),
    "set": lambda x: x * 2.0 if x.dtype.name in {"float32", "float16", "half"} else x,
}
"""


def functions_of(cell):
    """The functions of a notebook cell that is run."""
    names = {}
    exec(cell, names)
    return names["FUNCTIONS"]


@pytest.mark.parametrize("kind", ["activation", "Activation", "Lambda"])
def test_functions_are_told_apart_by_what_they_compute(keras, kind):
    layers = keras.layers

    def of(function):
        x = inputs = keras.Input((4,))
        if kind == "activation":
            return words(keras.Model(inputs, layers.Dense(4, activation=function)(x)))
        layer = layers.Activation(function) if kind == "Activation" else layers.Lambda(function, output_shape=(4,))
        return words(keras.Model(inputs, layer(layers.Dense(4)(x))))

    first, again = functions_of(CELL), functions_of("# a line more\n" + CELL)
    found = {name: of(function) for name, function in first.items()}
    assert found == {name: of(function) for name, function in again.items()}
    assert len({*map(str, found.values())}) == len(found)


def test_layers_as_activations_and_gates_are_told_apart(keras):
    layers = keras.layers

    def of(build):
        inputs = keras.Input((5, 4))
        return words(keras.Model(inputs, build()(inputs)))

    class Dense(layers.Dense):
        def call(self, x):
            return 2.0 * super().call(x)

    builds = [
        lambda: layers.Dense(4, activation=layers.LeakyReLU(0.1)),
        lambda: layers.Dense(4, activation=layers.LeakyReLU(0.2)),
        lambda: layers.Dense(4, activation=layers.PReLU()),
        lambda: layers.Dense(4),
        lambda: Dense(4),
        lambda: layers.GRU(4),
        lambda: layers.GRU(4, recurrent_activation="hard_sigmoid"),
    ]
    assert [of(build) for build in builds] == [of(build) for build in builds]
    assert len({str(of(build)) for build in builds}) == len(builds)


def test_activation_that_keras_builds_late(keras):
    """Keras 3 builds a PReLU in `activation` when the model is first run: a plan made before is a plan for it."""
    layers = keras.layers
    slopes = layers.Dense(6, layers.PReLU())
    model = keras.Sequential([keras.Input((4,)), slopes, layers.Dense(5, "relu"), layers.Dense(2)])
    plan = tfspline.plan(model, 0.5)
    model(np.zeros((1, 4), "float32"))
    assert plan.apply(model).count_params() == plan.cost()["params"][1]


def test_constants_count_by_their_numbers_whatever_holds_them(keras, tmp_path):
    """Keras turns arrays, slices and dtypes into lists, dicts and names when it saves or copies a model."""
    layers, ops = keras.layers, keras3.ops if keras is keras3 else tf
    array, wide = np.linspace(1, 2, 8).astype("float32"), np.arange(32, dtype="float32").reshape(4, 8)

    def build(scale=1, last=1.0, stop=6, closure=3, argument=1):
        factor = np.float32(closure)
        inputs = keras.Input((4, 8))
        x = layers.Dense(8, "relu")(inputs) * (array * scale)
        x = ops.cast(x + np.where(wide == 31, last, wide), tf.float32 if ops is tf else "float32")
        x = layers.Lambda(lambda z: z * factor, output_shape=(4, 8))(x)
        x = layers.Lambda(lambda z, by: z * by, output_shape=(4, 8), arguments={"by": argument})(x)
        return keras.Model(inputs, layers.Dense(2)(x[:, :, :stop][:, :, :4]))

    model = build()
    plan = tfspline.plan(model, 0.5)
    plan.save(tmp_path / "plan")
    model.save(tmp_path / "model.keras")
    for again in (build(), keras.models.load_model(tmp_path / "model.keras", safe_mode=False), copy.deepcopy(model)):
        assert words(again) == words(model)
        assert np.array_equal(tfspline.Plan.load(tmp_path / "plan", again).removed, plan.removed)
    for change in ({"scale": 2}, {"last": 2.0}, {"stop": 7}, {"closure": 4}, {"argument": 2}):
        assert words(build(**change)) != words(model), change
