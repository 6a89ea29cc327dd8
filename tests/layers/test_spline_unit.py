"""SplineUnit compared with the layers that it replaces."""

import importlib

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers import zoo

import tfspline


def unit_of(keras):
    return importlib.import_module(f"tfspline.layers.{keras.__name__}").SplineUnit


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
            zoo.assert_close(
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


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("policy", "shape"),
    [("float16", (6, 6, 3)), ("bfloat16", (6, 6, 3)), ("mixed_float16", (4,)), ("mixed_bfloat16", (6, 6, 3))],
)
def test_model_of_low_precision_is_trained_pruned_and_saved(keras, rng, tmp_path, policy, shape):
    keras.mixed_precision.set_global_policy(policy)
    try:
        layers = keras.layers
        image = [layers.Conv2D(8, 3), unit_of(keras)(name="unit"), layers.GlobalAveragePooling2D()]
        stack = image if len(shape) > 1 else [layers.Dense(8), unit_of(keras)("leaky_relu", name="unit")]
        model = keras.Sequential([keras.Input(shape), *stack, layers.Dense(8), unit_of(keras)(), layers.Dense(2)])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x, y = rng.normal(size=(16, *shape)), rng.normal(size=(16, 2))
    bird, pruning = tfspline.EarlyBird(probe_size=8), tfspline.SplinePruning(lambda step: (True, 0.5))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    losses = model.fit(x, y, epochs=2, verbose=0, callbacks=[bird, pruning]).history["loss"]
    assert np.isfinite(losses).all() and pruning.sparsity == 0.5 and np.isfinite(bird.distances[1])
    assert np.abs(model.get_layer("unit").moving_mean.numpy().astype("float32")).max() > 0
    small = tfspline.slim(model)
    zoo.assert_close(tf.cast(small(x), tf.float32), tf.cast(model(x), tf.float32), 0.05)
    for options in ({"criterion": "spline_affine", "data": x}, {"criterion": "taylor", "data": (x, y)}):
        plan = tfspline.plan(model, 0.25, **options)
    for compensate in ("merge", "refit"):
        assert np.isfinite(np.asarray(plan.apply(model, x, compensate)(x), "float32")).all()
    unwrapped = tfspline.unwrap(model)
    zoo.assert_close(tf.cast(tfspline.wrap(unwrapped)(x), tf.float32), tf.cast(model(x), tf.float32), 0.05)
    if (keras.__name__, policy) != ("tf_keras", "bfloat16"):  # tf_keras itself cannot load bfloat16 weights
        small.save(tmp_path / "small.keras")
        loaded = keras.models.load_model(tmp_path / "small.keras")
        np.testing.assert_array_equal(np.asarray(loaded(x), "float32"), np.asarray(small(x), "float32"))


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
        zoo.assert_close(tf.convert_to_tensor(a), tf.convert_to_tensor(b))


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
    model = tfspline.wrap(zoo.small_cnn(keras))
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
