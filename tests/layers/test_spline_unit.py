"""SplineUnit compared with the layers that it replaces, `wrap` and `unwrap`, and tfspline on wrapped models."""

import importlib
import subprocess
import sys

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers import zoo

import tfspline
from tfspline.callbacks.pruning_mask import pruning_mask


def unit_of(keras):
    return importlib.import_module(f"tfspline.layers.{keras.__name__}").SplineUnit


def close(a, b, tolerance=1e-4):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())


def outputs_and_gradients(layers, weights, x, **call):
    """The output of a stack of layers, and its gradients with respect to x and the weights."""
    weights = [weight.value if isinstance(weight, keras3.Variable) else weight for weight in weights]
    with tf.GradientTape() as tape:
        tape.watch(x)
        first, *rest = layers
        y = first(x, **call)
        for layer in rest:
            y = layer(y)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 3)
    return [y, *tape.gradient(loss, [x, *weights])]


def assert_same(stack, unit, x, tolerance=1e-4, trainings=(True, True, False), **call):
    """Check that a unit and a BatchNormalization with its activation have the same weights, outputs, gradients and
    moving statistics, in training and then in inference."""
    bn, x = stack[0], tf.convert_to_tensor(x)
    for layer in (bn, unit):
        layer(x, **call)  # builds
    assert [weight.name.split("/")[-1] for weight in bn.weights] == [w.name.split("/")[-1] for w in unit.weights]
    rng = np.random.default_rng(0)
    for weight, other in zip(bn.weights, unit.weights, strict=True):
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        other.assign(weight.numpy())
    for training in trainings:
        a = outputs_and_gradients(stack, bn.trainable_weights, x, training=training, **call)
        b = outputs_and_gradients([unit], unit.trainable_weights, x, training=training, **call)
        assert a[0].dtype == b[0].dtype
        for one, other in zip([*a, *bn.weights], [*b, *unit.weights], strict=True):
            close(
                tf.cast(tf.convert_to_tensor(one), tf.float32),
                tf.cast(tf.convert_to_tensor(other), tf.float32),
                tolerance,
            )


SHAPES = {
    "dense": ((16, 5), {}),
    "sequence": ((4, 6, 5), {}),
    "image": ((4, 6, 6, 5), {"momentum": 0.7, "epsilon": 1e-5}),
    "last axis by its number": ((4, 6, 6, 5), {"axis": 3}),
    "volume": ((3, 4, 4, 4, 5), {}),
    "channels first": ((4, 5, 6, 6), {"axis": 1}),
    "no scale": ((4, 6, 6, 5), {"scale": False}),
    "no center": ((4, 6, 6, 5), {"center": False}),
    "neither": ((4, 6, 5), {"scale": False, "center": False}),
    "renorm": ((4, 6, 6, 5), {"renorm": True, "renorm_clipping": {"rmax": 3.0, "rmin": 0.3, "dmax": 5.0}}),
    "one value per channel": ((1, 1, 1, 5), {}),
}


def test_unit_equals_the_layers_it_replaces(keras, rng):
    for shape, options in SHAPES.values():
        x = rng.normal(1.0, 2.0, size=shape).astype("float32")
        stack = [keras.layers.BatchNormalization(**options), keras.layers.ReLU()]
        assert_same(stack, unit_of(keras)(**options), x)


def test_activation_by_name(keras, rng):
    for activation in ("relu", "relu6", "leaky_relu", None, "linear"):
        x = rng.normal(1.0, 4.0, size=(4, 6, 6, 5)).astype("float32")
        stack = [keras.layers.BatchNormalization(), keras.layers.Activation(activation)]
        assert_same(stack, unit_of(keras)(activation), x)


def test_activation_as_a_layer_or_function(keras):
    z = np.array([[-2.0, 3.0, 9.0]], "float32")
    leaky = {"negative_slope" if keras is keras3 else "alpha": 0.5}
    for activation, expected in [
        (keras.layers.ReLU(max_value=4.0), [0, 3, 4]),
        (keras.layers.LeakyReLU(**leaky), [-1, 3, 9]),
        (keras.activations.relu, [0, 3, 9]),
        (keras.layers.Activation("relu6"), [0, 3, 6]),
    ]:
        np.testing.assert_allclose(unit_of(keras)(activation, epsilon=0.0)(z), [expected], rtol=1e-6)


def test_moving_variance_computed_by_hand(keras):
    x = np.array([0.0, 2.0], "float32").reshape(2, 1, 1, 1)  # variance 1, or 2 with Bessel's correction
    unit = unit_of(keras)(momentum=0.9)
    unit(x, training=True)
    # For images, tf_keras averages the corrected variance. Keras 3 never does.
    np.testing.assert_allclose(unit.moving_variance.numpy(), [0.9 + 0.1 * (1 if keras is keras3 else 2)], rtol=1e-6)
    np.testing.assert_allclose(unit.moving_mean.numpy(), [0.1], rtol=1e-6)


def test_frozen_unit_runs_in_inference_mode(keras, rng):
    x = rng.normal(3.0, 2.0, size=(4, 6, 6, 5)).astype("float32")
    unit = unit_of(keras)()
    expected = unit(x, training=False)
    unit.trainable = False
    np.testing.assert_array_equal(unit(x, training=True), expected)
    np.testing.assert_array_equal(unit.moving_mean.numpy(), np.zeros(5))


def test_unit_in_other_dtypes(keras, rng):
    for policy, tolerance in {"mixed_float16": 2e-2, "mixed_bfloat16": 5e-2, "float64": 1e-6}.items():
        x = rng.normal(1.0, 2.0, size=(4, 6, 6, 5)).astype("float64" if policy == "float64" else "float32")
        stack = [keras.layers.BatchNormalization(dtype=policy), keras.layers.ReLU(dtype=policy)]
        unit = unit_of(keras)(dtype=policy)
        assert_same(stack, unit, x, tolerance)
        assert unit.activation.compute_dtype == unit.compute_dtype


def test_masked_steps_are_ignored(keras, rng):
    x = rng.normal(1.0, 2.0, size=(4, 6, 5)).astype("float32")
    mask = tf.constant(rng.random((4, 6)) > 0.5)
    stack = [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    assert_same(stack, unit_of(keras)(), x, mask=mask)


def test_unit_compiled_by_xla(keras, rng):
    x = rng.normal(1.0, 2.0, size=(4, 6, 6, 5)).astype("float32")
    eager, compiled = unit_of(keras)(), unit_of(keras)()
    compiled.build(x.shape)
    step = tf.function(
        lambda x: outputs_and_gradients([compiled], compiled.trainable_weights, x, training=True), jit_compile=True
    )
    results = step(tf.constant(x))
    expected = outputs_and_gradients([eager], [], tf.constant(x), training=True)[:1]  # builds
    expected = outputs_and_gradients([eager], eager.trainable_weights, tf.constant(x), training=True)
    step(tf.constant(x))
    for a, b in zip([*expected, *eager.weights], [*results, *compiled.weights], strict=True):
        close(tf.convert_to_tensor(a), tf.convert_to_tensor(b))


def test_region_code_computed_by_hand(keras):
    unit = unit_of(keras)("relu6", epsilon=0.0)
    z = np.array([[-1.0, 3.0, 6.0], [0.0, 7.0, 0.1]], "float32")
    # The bits z > 0 of the three units, then their bits z >= 6, lowest bit first.
    assert unit.region_code(z).numpy().tolist() == [[0b100110], [0b010110]]
    assert unit.region_code(z).dtype == tf.uint8
    with pytest.raises(ValueError, match="'bare'.*`activation`"):
        unit_of(keras)(None, name="bare").region_code(z)


def test_region_code_equals_the_layer_in_region_codes(keras, rng):
    inputs = keras.Input((5, 5, 3))
    units = [unit_of(keras)(activation, name="unit") for activation in ("relu", "relu6", "leaky_relu")]
    for unit, bits in zip(units, (75, 150, 75), strict=True):
        model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(unit(inputs))))
        zoo.scramble(model, rng)
        x = rng.normal(0, 4, size=(6, 5, 5, 3)).astype("float32")
        codes = tfspline.region_codes(model, x)
        assert codes.bits == {unit.activation.name: bits}
        np.testing.assert_array_equal(unit.region_code(x), codes[unit.activation.name])


def test_unsupported_activations_are_rejected(keras):
    for activation in ("gelu", "sigmoid", "hard_sigmoid"):
        with pytest.raises(ValueError, match=r"`activation`.*\('relu', 'leaky_relu', 'relu6'\)"):
            unit_of(keras)(activation)
    with pytest.raises(ValueError, match="`activation`.*threshold.*<.*ReLU"):
        unit_of(keras)(keras.layers.ReLU(threshold=1.0))
    if keras is not keras3:  # Keras 3 itself rejects a negative slope
        with pytest.raises(ValueError, match="`activation`"):
            unit_of(keras)(keras.layers.LeakyReLU(alpha=-0.1))


def test_unit_is_restored_from_its_config(keras):
    unit = unit_of(keras)("relu6", momentum=0.7, scale=False, gamma_regularizer="l2", name="unit")
    copy = type(unit).from_config(unit.get_config())
    assert type(copy) is type(unit) and copy.get_config() == unit.get_config()
    assert (copy.name, copy.momentum, copy.scale, copy.activation.name) == ("unit", 0.7, False, "unit_relu6")
    bare = unit_of(keras)(None)
    assert type(bare).from_config(bare.get_config()).activation is None


def test_channel_mask_stays_in_training(keras, rng):
    x = rng.normal(size=(16, 6, 6, 2)).astype("float32")
    model = tfspline.wrap(small_cnn(keras))
    unit = model.get_layer("bn")
    assert unit.channel_mask.all()
    on = np.arange(8) % 3 > 0
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.train_on_batch(x[:8], x[:8, 0, 0, :1] * np.ones(3))  # gives the weights momentum
    model.compile(model.optimizer, "mse")  # makes a new train function, which includes the mask
    unit.channel_mask = on
    model.fit(x, x[:, 0, 0, :1] * np.ones(3), epochs=2, batch_size=8, verbose=0)
    np.testing.assert_array_equal(unit.channel_mask, on)
    assert not unit(rng.normal(size=(4, 6, 6, 8)).astype("float32")).numpy()[..., ~on].any()
    assert tfspline.slim(model).get_layer("conv").filters == on.sum()
    assert tfspline.unwrap(model).get_layer("bn").gamma.numpy()[~on].tolist() == [0.0] * 3
    unit.channel_mask = np.ones(8, bool)  # all channels may train again
    unit.gamma.assign(np.ones(8))
    assert unit.channel_mask.all()


def test_invalid_channel_masks_are_rejected(keras):
    unit = unit_of(keras)(name="unit")
    with pytest.raises(ValueError, match="'unit'.*not built"):
        unit.channel_mask = [True]
    unit.build((None, 3))
    for wrong, received in (([True], r"bool of shape \(1,\)"), ([1, 0, 1], r"int64 of shape \(3,\)")):
        with pytest.raises(ValueError, match=rf"`channel_mask`.*\(3,\).*{received}"):
            unit.channel_mask = wrong
    unit = unit_of(keras)(scale=False, name="unit")
    unit.build((None, 3))
    with pytest.raises(ValueError, match="'unit'.*scale=False"):
        _ = unit.channel_mask


def small_cnn(keras):
    """Two convolutions, each with batch norm and a ReLU."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(6, 3, padding="same", name="conv2")(x)
    x = layers.Activation("relu", name="relu2")(layers.BatchNormalization(name="bn2")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)))


def fit(keras, model, rng, **options):
    x = zoo.inputs_for(model, np.random.default_rng(0), 16)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    model.fit(x, np.ones((16, 3)), batch_size=8, epochs=4, shuffle=False, verbose=0, **options)


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
    close(model(x), wrapped(x))
    for a, b in zip(weights, tfspline.unwrap(wrapped).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(keras, model, rng)
    fit(keras, wrapped, rng)
    ordinary = tfspline.unwrap(wrapped)
    assert ordinary.get_config() == model.get_config() == config
    assert all(type(layer).__module__.startswith(keras.__name__) for layer in ordinary.layers)
    for a, b in zip(model.get_weights(), ordinary.get_weights(), strict=True):
        close(a, b)
    close(model(x), ordinary(x))
    assert not ordinary.compiled if keras is keras3 else ordinary.optimizer is None


def kinds(model):
    return {name: type(layer).__name__ for name, layer in tfspline._keras.layer_paths(model).items()}


def assert_wrapped(model, rng, expected):
    """Check a wrapped model's classes of layers by path and its function, and that `unwrap` reverses `wrap`."""
    zoo.scramble(model, rng)
    wrapped = tfspline.wrap(model)
    assert {name: kind for name, kind in kinds(wrapped).items() if name in expected} == expected
    x = zoo.inputs_for(model, rng)
    tf.nest.map_structure(close, model(x), wrapped(x))
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
        with pytest.raises(ValueError, match="functional or Sequential"):
            function(Subclassed())
        with pytest.raises(TypeError, match="int"):
            function(1)


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
    close(small(x), small_wrapped(x), 1e-3)


def test_slimming_and_masks_of_a_wrapped_model(keras, rng):
    model = zoo.scramble(small_cnn(keras), rng)
    model.get_layer("bn").gamma.assign([0, 0, 0, 1, 1, 1, 1, 1])
    slims = [tfspline.slim(one, allow_inexact=True) for one in (model, tfspline.wrap(model))]
    assert [slim.get_layer("conv").filters for slim in slims] == [5, 5]
    x = zoo.inputs_for(model, rng)
    close(slims[0](x), slims[1](x))
    wrapped = tfspline.wrap(model)
    masks = tfspline.Masks.of(wrapped, {"conv": np.arange(8) % 2 == 0})
    masks.apply(wrapped)
    fit(keras, wrapped, rng)
    assert wrapped.get_layer("bn").channel_mask[masks["conv"]][2:].all()
    assert not wrapped.get_layer("bn").channel_mask[~masks["conv"]].any()


def test_early_bird_on_a_wrapped_model(keras, rng):
    model = zoo.scramble(small_cnn(keras), rng)
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
        model = tfspline.wrap(zoo.scramble(small_cnn(importlib.import_module(name)), rng))
        model.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", model.predict(x, verbose=0))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_unwrapped_model_contains_no_tfspline_classes(keras, rng, tmp_path):
    model = tfspline.unwrap(tfspline.wrap(small_cnn(keras)))
    assert "tfspline" not in model.to_json()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={})
    x = zoo.inputs_for(model, rng)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_wrapped_model_is_exported(keras, rng, tmp_path):
    model = tfspline.wrap(zoo.scramble(small_cnn(keras), rng))
    x = zoo.inputs_for(model, rng)
    served = tf.saved_model.load(tfspline.export(model, tmp_path)).signatures["serving_default"]
    close(served(tf.constant(x))["head"], model(x))
