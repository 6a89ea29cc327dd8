"""`wrap` and `unwrap`, and tfspline on wrapped models."""

import importlib
import subprocess
import sys

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers import zoo

import tfspline
from tfspline.callbacks.early_bird_tests import pruning_mask


def fit(keras, model, rng, **options):
    x = zoo.inputs_for(model, np.random.default_rng(0), 16)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    model.fit(x, np.ones((16, 3)), batch_size=8, epochs=4, shuffle=False, verbose=0, **options)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("family", [zoo.residual, zoo.inverted])
def test_training_a_wrapped_model_equals_training_the_model(keras, rng, family):
    model = zoo.scramble(family(keras), rng)
    x = zoo.inputs_for(model, rng, 4)
    config, weights = model.get_config(), model.get_weights()
    wrapped = tfspline.wrap(model)
    names = [type(layer).__name__ for layer in wrapped.layers]
    assert "BatchNormalization" not in names and names.count("SplineUnit") == sum(
        type(layer).__name__ == "BatchNormalization" for layer in model.layers
    )
    zoo.assert_close(model(x), wrapped(x))
    for a, b in zip(weights, tfspline.unwrap(wrapped).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(keras, model, rng)
    fit(keras, wrapped, rng)
    ordinary = tfspline.unwrap(wrapped)
    assert ordinary.get_config() == model.get_config() == config
    assert all(type(layer).__module__.startswith(keras.__name__) for layer in ordinary.layers)
    for a, b in zip(model.get_weights(), ordinary.get_weights(), strict=True):
        zoo.assert_close(a, b)
    zoo.assert_close(model(x), ordinary(x))
    assert not ordinary.compiled if keras is keras3 else ordinary.optimizer is None


def kinds(model):
    return {name: type(layer).__name__ for name, layer in tfspline._keras.layer_paths(model).items()}


def assert_wrapped(model, rng, expected):
    """Check a wrapped model's classes of layers by path and its function, and that `unwrap` reverses `wrap`."""
    zoo.scramble(model, rng)
    wrapped = tfspline.wrap(model)
    assert {name: kind for name, kind in kinds(wrapped).items() if name in expected} == expected
    x = zoo.inputs_for(model, rng)
    tf.nest.map_structure(zoo.assert_close, model(x), wrapped(x))
    ordinary = tfspline.unwrap(wrapped)
    assert kinds(ordinary) == kinds(model)
    for a, b in zip(tf.nest.flatten(model(x)), tf.nest.flatten(ordinary(x)), strict=True):
        np.testing.assert_array_equal(a, b)
    return wrapped


def test_wrap_handles_nested_models_and_frozen_layers(keras, rng):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="bn"), layers.ReLU(name="relu")])
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="first")(inputs)
    x = inner(inner(layers.ReLU(name="relu")(x)))
    model = keras.Model(inputs, layers.Dense(2)(x))
    inner.layers[0].trainable = False
    path = inner.name
    wrapped = assert_wrapped(model, rng, {"first": "SplineUnit", f"{path}/bn": "SplineUnit"})
    assert "relu" not in kinds(wrapped) and f"{path}/relu" not in kinds(wrapped)
    assert wrapped.get_layer("first").trainable and not wrapped.get_layer(path).layers[0].trainable
    assert not tfspline.unwrap(wrapped).get_layer(path).layers[0].trainable


def test_activation_that_is_not_the_only_reader_is_kept(keras, rng):
    layers = keras.layers
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="bn")(inputs)
    model = keras.Model(inputs, layers.Add()([x, layers.ReLU(name="relu")(x)]))
    assert_wrapped(model, rng, {"bn": "SplineUnit", "relu": "ReLU"})
    x = layers.BatchNormalization(name="bn")(inputs)
    model = keras.Model(inputs, [x, layers.ReLU(name="relu")(x)])
    assert_wrapped(model, rng, {"bn": "SplineUnit", "relu": "ReLU"})


def test_shared_layers_are_not_merged(keras, rng):
    layers = keras.layers
    inputs = keras.Input((4,))
    bn, relu = layers.BatchNormalization(name="bn"), layers.ReLU(name="relu")
    model = keras.Model(inputs, relu(bn(relu(bn(inputs)))))
    assert_wrapped(model, rng, {"bn": "SplineUnit", "relu": "ReLU"})


def test_activations_that_a_unit_cannot_absorb_are_kept(keras, rng):
    layers = keras.layers
    op = keras.ops.relu if keras is keras3 else tf.nn.relu
    x = inputs = keras.Input((6,))
    activations = {
        "op": op,
        "threshold": layers.ReLU(threshold=0.5),
        "smooth": layers.Activation("tanh"),
        "wide": layers.ReLU(dtype="float64"),
        "prelu": layers.PReLU(),
        "penalised": layers.ReLU(activity_regularizer="l2"),
    }
    for name, activation in activations.items():
        x = activation(layers.BatchNormalization(name=name)(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    wrapped = assert_wrapped(model, rng, dict.fromkeys(activations, "SplineUnit"))
    assert all(wrapped.get_layer(name).activation is None for name in activations)


def test_subclass_of_batch_normalization_is_kept(keras, rng):
    class Own(keras.layers.BatchNormalization):
        pass

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.ReLU(name="relu")(Own(name="own")(inputs)))
    assert_wrapped(model, rng, {"own": "Own", "relu": "ReLU"})


def test_models_without_a_graph_are_rejected(keras):
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    for function in (tfspline.wrap, tfspline.unwrap):
        with pytest.raises(ValueError, match="input shape of the subclassed model Subclassed"):
            function(Subclassed())
        with pytest.raises(TypeError, match="int"):
            function(1)


@pytest.mark.sweep(2)
def test_tfspline_treats_a_wrapped_model_like_the_model(keras, rng):
    model = zoo.scramble(zoo.residual(keras), rng)
    wrapped = tfspline.wrap(model)
    x = zoo.inputs_for(model, rng, 12)
    assert tfspline.partition_distance(tfspline.region_codes(model, x), tfspline.region_codes(wrapped, x)) < 1e-3
    assert tfspline.flops(model) == tfspline.flops(wrapped)
    assert pruning_mask(model, 0.5) == pruning_mask(wrapped, 0.5)
    assert str(tfspline.plan(model, 0.5)) == str(tfspline.plan(wrapped, 0.5))
    small, small_wrapped = (tfspline.prune(one, 0.5, data=x, compensate="refit") for one in (model, wrapped))
    assert "SplineUnit" in kinds(small_wrapped).values()
    assert kinds(tfspline.unwrap(small_wrapped)) == kinds(small)
    zoo.assert_close(small(x), small_wrapped(x), 1e-3)


def test_slimming_and_masks_of_a_wrapped_model(keras, rng):
    model = zoo.scramble(zoo.small_cnn(keras), rng)
    model.get_layer("bn").gamma.assign([0, 0, 0, 1, 1, 1, 1, 1])
    slims = [tfspline.slim(one, allow_inexact=True) for one in (model, tfspline.wrap(model))]
    assert [slim.get_layer("conv").filters for slim in slims] == [5, 5]
    x = zoo.inputs_for(model, rng)
    zoo.assert_close(slims[0](x), slims[1](x))
    wrapped = tfspline.wrap(model)
    masks = tfspline.Masks.of(wrapped, {"conv": np.arange(8) % 2 == 0})
    masks.apply(wrapped)
    fit(keras, wrapped, rng)
    assert wrapped.get_layer("bn").channel_mask[masks["conv"]][2:].all()
    assert not wrapped.get_layer("bn").channel_mask[~masks["conv"]].any()


def test_early_bird_on_a_wrapped_model(keras, rng):
    model = zoo.scramble(zoo.small_cnn(keras), rng)
    early_birds = []
    for one in (model, tfspline.wrap(model)):
        early_birds.append(tfspline.EarlyBird(stop_training=False))
        fit(keras, one, rng, callbacks=[early_birds[-1]])
    np.testing.assert_allclose(*[one.distances for one in early_birds], atol=1e-3)
    assert early_birds[1].distances[-1] > 0


SCRIPT = """
import sys
import numpy as np, tensorflow as tf
cpu, half = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
import keras, tf_keras, tfspline
x = np.load(sys.argv[1] + "/x.npy")
for one in (keras, tf_keras):
    path = f"{sys.argv[1]}/{one.__name__}"
    model = one.models.load_model(path + ".keras")
    np.testing.assert_array_equal(model.predict(x, verbose=0), np.load(path + ".npy"))
weights = []
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for layers in ([keras.layers.BatchNormalization(), keras.layers.ReLU()], [tfspline.layers.SplineUnit()]):
    with strategy.scope():
        head = [keras.layers.Flatten(), keras.layers.Dense(1, kernel_initializer="ones")]
        trained = keras.Sequential([keras.Input((6, 6, 2)), *layers, *head])
        trained.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    trained.fit(tf.data.Dataset.from_tensor_slices((x, x[:, 0, 0, :1])).batch(8), epochs=2, verbose=0)
    weights.append(trained.get_weights())
assert trained.layers[0].gamma.value.__class__.__name__ == "MirroredVariable"
for a, b in zip(*weights, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())
assert np.abs(weights[1][0] - 1).max() > 1e-3
"""


def test_wrapped_model_is_loaded_and_trained_on_two_replicas_in_a_new_process(rng, tmp_path):
    x = rng.normal(size=(16, 6, 6, 2)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    for name in ("keras", "tf_keras"):
        model = tfspline.wrap(zoo.scramble(zoo.small_cnn(importlib.import_module(name)), rng))
        model.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", model.predict(x, verbose=0))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_unwrapped_model_contains_no_tfspline_classes(keras, rng, tmp_path):
    model = tfspline.unwrap(tfspline.wrap(zoo.small_cnn(keras)))
    assert "tfspline" not in model.to_json()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={})
    x = zoo.inputs_for(model, rng)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_wrapped_model_is_exported(keras, rng, tmp_path):
    model = tfspline.wrap(zoo.scramble(zoo.small_cnn(keras), rng))
    x = zoo.inputs_for(model, rng)
    served = tf.saved_model.load(tfspline.export(model, tmp_path)).signatures["serving_default"]
    zoo.assert_close(served(tf.constant(x))["head"], model(x))


def test_custom_layer_whose_config_lacks_its_name_keeps_it(keras):
    class Plain(keras.layers.Dense):
        def get_config(self):
            return {"units": self.units}

    layers = [keras.layers.BatchNormalization(), Plain(3, name="mine")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    wrapped = tfspline.wrap(model)
    np.testing.assert_array_equal(wrapped.get_layer("mine").kernel.numpy(), model.get_layer("mine").kernel.numpy())
