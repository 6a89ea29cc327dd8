"""Masks: units that are off stay exactly zero during training, and release leaves no trace."""

import json

import numpy as np
import pytest
import tensorflow as tf
from helpers.masking import compiled, data_for, half, is_off, off_values
from helpers.zoo import FAMILIES, chain, difference, residual, scramble, shared_and_nested

import tfspline
from tfspline._utils.files import write_json
from tfspline.pruning.masks import entries

OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "RMSprop": {"momentum": 0.9, "centered": True, "weight_decay": 0.01},
    "Adam": {"amsgrad": True, "weight_decay": 0.01},
    "AdamW": {},
    "Adadelta": {"learning_rate": 1.0, "weight_decay": 0.01},
    "Adagrad": {"weight_decay": 0.01},
    "Adamax": {"weight_decay": 0.01},
    "Adafactor": {"weight_decay": 0.01},
    "Nadam": {"weight_decay": 0.01},
    "Ftrl": {"l1_regularization_strength": 0.01, "weight_decay": 0.01},
    "Lion": {"weight_decay": 0.01},
    "Lamb": {"weight_decay": 0.01},
    "Muon": {},
    "ScheduleFreeAdamW": {"weight_decay": 0.01},
    "averaged": {},
    "clipped": {},
    "scaled": {},
    "accumulated": {},
    "several": {},
    "legacy": {},
}


def optimizer_of(keras, name):
    """An optimizer by its name; None if this Keras version does not have it."""
    optimizers = keras.optimizers
    if name == "averaged":
        return optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    if name == "clipped":
        return optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5)
    if name == "scaled":
        scaled = getattr(optimizers, "LossScaleOptimizer", None) or keras.mixed_precision.LossScaleOptimizer
        return scaled(optimizers.Adam(0.01, weight_decay=0.01))
    if name == "accumulated":
        return None if keras.__name__ == "tf_keras" else optimizers.SGD(0.1, 0.9, gradient_accumulation_steps=2)
    if name == "legacy":
        return optimizers.legacy.Adam(0.01) if keras.__name__ == "tf_keras" else None
    if name == "several":
        if not hasattr(optimizers, "MultiOptimizer"):
            return None
        return optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(0.1, 0.9)))
    optimizer = getattr(optimizers, name, None)
    return optimizer and optimizer(**{"learning_rate": 0.01, **OPTIMIZERS[name]})


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_are_exact_after_every_step_of_every_optimizer(keras, rng, name):
    optimizer = optimizer_of(keras, name)
    if optimizer is None:
        pytest.skip(f"{keras.__name__} has no {name}")
    model = scramble(chain(keras), rng)
    x, y = data_for(model, rng)
    scaled = name == "scaled"

    @tf.function(jit_compile=False)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
            if scaled:
                loss = (optimizer.scale_loss if keras.__name__ == "keras" else optimizer.get_scaled_loss)(loss)
        gradients = tape.gradient(loss, model.trainable_variables)
        if hasattr(optimizer, "get_unscaled_gradients"):
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    if name != "legacy":
        optimizer.build(model.trainable_variables)
    tfspline.Masks.of(model, {}).apply(model)
    for _ in range(2):  # the units that will be off then have momentum
        step(x, y)
    traces = step.experimental_get_tracing_count()
    masks = half(model, rng)
    masks.apply(model)
    before = model.get_weights()
    for _ in range(4):
        step(x, y)
        assert is_off(model, masks)
    assert step.experimental_get_tracing_count() == traces
    on = entries(masks.graph, masks.off)[("a", 0)]
    assert (model.get_layer("a").get_weights()[0] != before[0])[on].any()  # units that are on are trained


def test_zeros_do_not_survive_training_after_release(keras, rng):
    model = compiled(keras, rng)
    x, y = data_for(model, rng)
    model.fit(x, y, verbose=0)  # a unit that is off has no gradient, but momentum moves it
    masks = half(model, rng)
    masks.apply(model)
    tfspline.Masks.release(model)
    assert is_off(model, masks)
    model.fit(x, y, verbose=0)
    assert off_values(model, masks).any()


def variants(keras):
    return {
        "plain": {},
        "compiled": {"jit_compile": True},
        "many steps": {"steps_per_execution": 3},
        "eager": {"run_eagerly": True},
        "averaged": {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True)},
    }


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    ("family", "variant"),
    [(chain, "plain"), *((residual, variant) for variant in variants(pytest.importorskip("keras")))],
)
def test_masks_hold_in_fit_of_a_trained_model(keras, rng, variant, family):
    model = compiled(keras, rng, family, **variants(keras)[variant])
    x, y = data_for(model, rng)
    model.fit(x, y, batch_size=4, verbose=0)
    masks = half(model, rng)
    masks.apply(model)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: seen.append(is_off(model, masks)))
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[watch])
    assert len(seen) == (4 if variant == "many steps" else 12) and all(seen)
    tfspline.Masks.release(model)
    assert is_off(model, masks)  # the moving averages that the optimizer assigns at the end were not zero
    slim = tfspline.slim(model)
    assert slim.count_params() < model.count_params()
    assert difference(model(x), slim(x)) <= 1e-5
    model.fit(x, y, batch_size=4, verbose=0)
    assert off_values(model, masks).any()


@pytest.mark.sweep(2)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_masks_hold_in_mixed_precision(keras, rng, policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = compiled(keras, rng, residual)
        masks = half(model, rng)
        masks.apply(model)
        before = model.get_weights()
        model.fit(*data_for(model, rng), batch_size=4, epochs=2, verbose=0)
        assert is_off(model, masks)
        assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
        tfspline.Masks.release(model)
        assert all(weight.constraint is None for weight in model.weights)
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.sweep(3)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_apply_equals_plan_mask_and_from_model_reads_it_back(keras, rng, family):
    model = scramble(family(keras), rng)
    plan = tfspline.plan(model, 0.5, criterion="random")
    masks = plan.masks
    assert tfspline.Masks.from_model(model).sparsity == 0
    assert tfspline.Masks.from_model(plan.mask(model)) == masks
    expected = plan.mask(model).get_weights()
    masks.apply(model)
    for weight, other in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, other)
    assert tfspline.Masks.from_model(model) == masks
    assert tfspline.Masks.of(model, masks) == masks
    tfspline.Masks.release(model)
    assert tfspline.slim(model).count_params() <= plan.cost()["params"][1]


def test_masks_change_without_retracing_and_units_can_come_back(keras, rng):
    model = scramble(chain(keras), rng)
    masks = [tfspline.Masks.of(model, {"a": np.arange(12) < n}) for n in (12, 3, 7)]
    traces = []

    class Counted(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    inputs = keras.Input((6,))
    counted = keras.Model(inputs, Counted()(model(inputs)))
    counted.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
    x, y = data_for(model, rng)
    masks[0].apply(model)
    counted.fit(x, y, batch_size=4, verbose=0)
    first, before = len(traces), model.get_weights()
    for mask in masks[1:]:
        model.set_weights(before)
        mask.apply(model)
        counted.fit(x, y, batch_size=4, verbose=0)
        assert is_off(model, mask)
        assert tfspline.Masks.from_model(model).sparsity == mask.sparsity
    assert len(traces) == first


def test_sparsity_counts_prunable_units(keras):
    model = chain(keras)
    masks = tfspline.Masks.of(model, {"a": np.arange(12) < 9, "b": np.arange(8) < 6})
    assert masks.sparsity == 5 / 20  # the head's three units are protected
    assert len(masks) == 3 and list(masks)[:2] == ["a", "b"]
    assert masks["b"].tolist() == [True] * 6 + [False] * 2
    assert masks != tfspline.Masks.of(model, {"a": np.arange(12) < 9})
    assert repr(masks) == "<Masks of 3 layers: 5 of 20 prunable units off>"


def test_tied_layers_share_their_masks(keras):
    model = residual(keras)
    masks = tfspline.Masks.of(model, {"stem": np.arange(8) < 5})
    tied = [layer for layer, on in masks.items() if not on.all()]
    assert len(tied) == 2 and "stem" in tied
    with pytest.raises(ValueError, match="same masks for tied channels"):
        tfspline.Masks.of(model, {"stem": np.arange(8) < 5, (set(tied) - {"stem"}).pop(): np.ones(8, bool)})


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", ["max_norm", "unit_norm", "non_neg"])
def test_user_constraints_keep_working(keras, rng, kind):
    own = {
        "max_norm": lambda: keras.constraints.MaxNorm(0.5),
        "unit_norm": lambda: keras.constraints.UnitNorm(axis=0),
        "non_neg": lambda: keras.constraints.NonNeg(),
    }[kind]()
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "relu", kernel_constraint=own, name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, kernel_constraint=own)(hidden))
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=False)
    masks = tfspline.Masks.of(model, {"a": np.arange(8) % 2 == 0})
    masks.apply(model)
    model.fit(*data_for(model, rng), batch_size=4, verbose=0)
    assert is_off(model, masks)
    kernels = [model.layers[1].get_weights()[0][:, ::2], model.layers[2].get_weights()[0]]
    for kernel in kernels:
        norms = np.linalg.norm(kernel, axis=0)
        assert {"max_norm": norms.max() < 0.5 + 1e-5, "unit_norm": np.allclose(norms, 1), "non_neg": True}[kind]
        assert kind != "non_neg" or kernel.min() >= 0
    tfspline.Masks.release(model)
    assert model.layers[1].kernel.constraint is own and model.layers[2].kernel.constraint is own
    assert model.layers[1].bias.constraint is None


@pytest.mark.sweep(2)
def test_constraints_are_not_saved(keras, rng, tmp_path):
    model = compiled(keras, rng, residual)
    config = model.get_config()
    masks = half(model, rng)
    masks.apply(model)
    model.fit(*data_for(model, rng), verbose=0)
    assert model.get_config() == config
    for state in ("applied", "released"):
        model.save(tmp_path / f"{state}.keras")
        loaded = keras.models.load_model(tmp_path / f"{state}.keras")
        assert tfspline.Masks.from_model(loaded) == masks
        assert all(weight.constraint is None for weight in loaded.weights)
        tfspline.Masks.release(model)
    assert all(weight.constraint is None for weight in model.weights)
    tfspline.export(model, tmp_path / "serving")


def test_nan_weights_are_masked_to_zero(keras, rng):
    model = scramble(chain(keras), rng)
    masks = tfspline.Masks.of(model, {"a": np.arange(12) < 5})
    masks.apply(model)
    kernel = model.get_layer("a").kernel
    value = kernel.constraint(tf.fill([6, 12], np.nan)).numpy()
    assert not value[:, 5:].any() and np.isnan(value[:, :5]).all()
    assert not np.signbit(kernel.constraint(tf.fill([6, 12], -1.0)).numpy()[:, 5:]).any()


def test_save_and_load_round_trip(keras, rng, tmp_path):
    model = shared_and_nested(keras)
    masks = half(model, rng)
    masks.save(tmp_path / "masks.json")
    assert tfspline.Masks.load(tmp_path / "masks.json", model) == masks
    with pytest.raises(ValueError, match="masks from .*made for"):
        tfspline.Masks.load(tmp_path / "masks.json", chain(keras))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("damage", ["truncated", "a plan", "a list", "place", "protected", "contradiction", "missing"])
def test_damaged_file_raises(keras, tmp_path, damage):
    model, path = residual(keras), tmp_path / "masks.json"
    tfspline.Masks.of(model, {"stem": np.arange(8) < 5}).save(path)
    document = json.loads(path.read_text())
    if damage == "truncated":
        path.write_text(path.read_text()[:50])
    elif damage == "a plan":
        tfspline.plan(model, 0.5).save(path)
    elif damage == "a list":
        path.write_text("[]")
    else:
        if damage == "place":
            document["off"]["stem"] = [8]
        elif damage == "protected":
            document["off"]["head"] = [0]
        elif damage == "missing":
            del document["off"]["inner"]
        else:
            document["off"]["stem"] = [0]
        write_json(path, **document)
    with pytest.raises(ValueError, match="masks|channels|cannot be switched off"):
        tfspline.Masks.load(path, model)


def test_invalid_arguments_raise(keras, rng):
    model = chain(keras)
    masks = half(model, rng)
    with pytest.raises(ValueError, match="masks were made for, with .*Received"):
        masks.apply(residual(keras))
    with pytest.raises(ValueError, match="masks were made for, with .*weights=.*Received"):
        masks.apply(tfspline.prune(model, 0.5))  # another shape
    with pytest.raises(KeyError, match="'c'"):
        tfspline.Masks.of(model, {"c": [True]})
    with pytest.raises(ValueError, match=r"bool \[12\].*'a'.*bool \[1\]"):
        tfspline.Masks.of(model, {"a": [True]})
    with pytest.raises(ValueError, match=r"bool \[12\].*'a'.*int64 \[12\]"):
        tfspline.Masks.of(model, {"a": np.ones(12, "int64")})
    with pytest.raises(ValueError, match="Units of .* cannot be switched off: it feeds an output"):
        tfspline.Masks.of(model, {model.layers[-1].name: np.zeros(3, bool)})
    with pytest.raises(ValueError, match="one bool for each of"):
        tfspline.Masks(masks.graph, masks.off[1:])
