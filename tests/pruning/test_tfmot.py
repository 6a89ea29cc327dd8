"""Models wrapped by tfmot: spline masks in its wrappers, and units that tfmot's own pruning empties."""

import logging

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.masking import data_for, half, is_off
from helpers.schedules import Every, fit
from helpers.zoo import FAMILIES, chain, difference, residual, scramble, shared_and_nested

import tfspline
from tfspline import Masks, SplinePruning, _keras
from tfspline.pruning.masks import entries

EXACT = 1e-5
# What is wrapped, and how a step is run.
WAYS = {
    "all": {},
    "some": {},
    "2:4": {},
    "many steps": {"steps_per_execution": 3},
    "compiled": {"jit_compile": True},
    "eager": {"run_eagerly": True},
}


def prune_all(tfmot, model, **options):
    options = options or {"pruning_schedule": tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)}
    return tfmot.sparsity.keras.prune_low_magnitude(model, **options)


def prune_some(tfmot, model, names, **options):
    """Wraps some layers only, as in tfmot's guide."""
    return keras.models.clone_model(
        model, clone_function=lambda layer: prune_all(tfmot, layer, **options) if layer.name in names else layer
    )


def compiled(model, **options):
    options.setdefault("optimizer", keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01))
    model.compile(loss="mse", **options)
    return model


def mask_values(wrapped):
    """The masks in tfmot's wrappers, by the path of the wrapped layer."""
    return {path: [m.numpy() for _, m, _ in w.pruning_vars] for path, w in _keras.pruning_wrappers(wrapped).items()}


class Watch(keras.callbacks.Callback):
    """Records after every batch whether all weights and tfmot's masks match the masks of a pruning."""

    def __init__(self, pruning):
        super().__init__()
        self.pruning, self.exact, self.written, self.sparsity = pruning, [], [], []

    def on_train_batch_end(self, batch, logs=None):
        masks = self.pruning.masks
        self.sparsity.append(masks.sparsity)
        self.exact.append(is_off(self.model, masks) or not masks.off.any())
        on = entries(masks.graph, masks.off)
        self.written.append(
            all(
                np.array_equal(mask, on.get((path, 0), np.ones_like(mask)))
                for path, values in mask_values(self.model).items()
                for mask in values
            )
        )


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family is not shared_and_nested], ids=lambda family: family.__name__
)
def test_to_tfmot_and_from_tfmot_round_trip(tfmot, rng, family):
    model = scramble(family(keras), rng)
    plan = tfspline.plan(model, 0.5, criterion="random")
    wrapped = prune_all(tfmot, model)
    assert not Masks.from_tfmot(wrapped).off.any()
    plan.masks.to_tfmot(wrapped)
    assert Masks.from_tfmot(wrapped) == plan.masks
    step = tfmot.sparsity.keras.UpdatePruningStep()
    step.set_model(wrapped)
    step.on_train_begin()
    step.on_epoch_end(0)  # tfmot multiplies the weights with its masks
    stripped = tfmot.sparsity.keras.strip_pruning(wrapped)
    # Biases, gammas and betas are unchanged, but nothing reads them.
    report = tfspline.slim_report(stripped)
    small, error, masks = report.model, report.difference, report.masks
    assert error <= EXACT and (masks.off >= plan.masks.off).all()
    assert small.count_params() <= plan.cost()["params"][1]


def test_wrapped_model_has_the_graph_of_the_inner_model(tfmot, rng):
    model = scramble(residual(keras), rng)
    wrapped, x = prune_all(tfmot, model), rng.normal(size=(5, 8, 8, 3)).astype("float32")
    stripped = tfmot.sparsity.keras.strip_pruning(wrapped)
    assert tfspline.region_codes(wrapped, x) == tfspline.region_codes(stripped, x)
    assert str(tfspline.flops(wrapped)) == str(tfspline.flops(stripped))
    assert str(tfspline.plan(wrapped, 0.5)) == str(tfspline.plan(stripped, 0.5))
    small = tfspline.prune(wrapped, 0.5)
    assert difference(small(x), tfspline.prune(stripped, 0.5)(x)) == 0
    assert not _keras.pruning_wrappers(small) and len(small.layers) == len(wrapped.layers)
    wrapped.layers[1].trainable = False
    assert not tfspline.prune(wrapped, 0.5).get_layer("stem").trainable


def test_unit_is_off_if_all_its_columns_are_masked(tfmot, rng):
    wrapped = prune_all(tfmot, scramble(residual(keras), rng))
    masks = {path: vars_[0][1] for path, w in _keras.pruning_wrappers(wrapped).items() if (vars_ := w.pruning_vars)}

    def mask(path, units):
        value = masks[path].numpy()
        value[..., units] = 0
        masks[path].assign(value)

    mask("inner", [1, 4])
    mask("stem", [0, 2, 7])  # tied by the residual add to a convolution that still produces them
    mask("head", [0])  # protected
    read = Masks.from_tfmot(wrapped)
    assert read["inner"].tolist() == [True, False, True, True, False, True]
    assert read.off.sum() == 2
    other = next(layer for layer in read.graph.groups[0].layers if layer != "stem")
    mask(other, [2, 7, 3])
    read = Masks.from_tfmot(wrapped)
    assert np.flatnonzero(~read["stem"]).tolist() == np.flatnonzero(~read[other]).tolist() == [2, 7]
    masks["inner"].assign(masks["inner"] + tf.one_hot(1, 6) * tf.one_hot(0, 8)[:, None])  # one entry of it
    assert np.flatnonzero(~Masks.from_tfmot(wrapped)["inner"]).tolist() == [4]


def test_invalid_models_raise(tfmot, rng):
    import keras as keras3

    model = scramble(chain(keras), rng)
    masks = half(model, rng)
    for other, name in ((model, "tf_keras"), (chain(keras3), "keras")):
        for use in (masks.to_tfmot, Masks.from_tfmot):
            with pytest.raises(ValueError, match=rf"wrapped by tfmot.*Received: the {name} model 'sequential"):
                use(other)
    with pytest.raises(TypeError, match="Keras.*int"):
        masks.to_tfmot(3)
    with pytest.raises(ValueError, match="masks were made for, with"):
        masks.to_tfmot(prune_all(tfmot, residual(keras)))
    with pytest.raises(ValueError, match="masks were made for, with"):
        masks.to_tfmot(prune_all(tfmot, tfspline.prune(model, 0.5)))
    some = prune_some(tfmot, model, ["a"])
    before = mask_values(some)["a"][0]
    with pytest.raises(ValueError, match=r"Layers \['b'\] .* tfmot has not wrapped"):
        masks.to_tfmot(some)
    assert np.array_equal(mask_values(some)["a"][0], before)
    masks.to_tfmot(prune_all(tfmot, model))  # what the message advises
    masks.apply(model)
    relu = keras.Sequential([keras.Input((4,)), prune_all(tfmot, keras.layers.ReLU()), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="without such a wrapper"):
        Masks.from_tfmot(relu)  # a wrapper that masks nothing


@pytest.mark.sweep(3)
@pytest.mark.parametrize("way", WAYS)
def test_spline_pruning_in_the_fit_of_a_wrapped_model(tfmot, rng, tmp_path, way):
    prune = tfmot.sparsity.keras
    model = scramble((residual if way == "some" else chain)(keras), rng)
    if way == "some":
        wrapped = prune_some(tfmot, model, ["inner", "projection"])
    else:
        wrapped = prune_all(tfmot, model, **({"sparsity_m_by_n": (2, 4)} if way == "2:4" else {}))
    data = data_for(model, rng)
    compiled(wrapped, **WAYS[way])
    pruning = SplinePruning(Every(), regrow=way == "all")
    watch = Watch(pruning)
    callbacks = [pruning, prune.UpdatePruningStep(), prune.PruningSummaries(str(tmp_path)), watch]
    if way in ("eager", "many steps"):
        callbacks.reverse()  # Watch now runs before the next units are switched off
    config = wrapped.get_config()
    fit(wrapped, data, *callbacks)
    assert all(watch.exact) and all(watch.written) and len(watch.exact) == (6 if way == "many steps" else 12)
    assert watch.sparsity[0] < watch.sparsity[-1] <= 0.5 and pruning.sparsity > 0.4
    assert wrapped.get_config() == config
    assert Masks.from_model(wrapped) == pruning.masks
    assert way == "some" or Masks.from_tfmot(wrapped) == pruning.masks

    stripped = prune.strip_pruning(wrapped)
    report = tfspline.slim_report(stripped)
    small, masks = report.model, report.masks
    x = data[0]
    assert masks == pruning.masks and difference(stripped(x), small(x)) <= EXACT
    assert small.count_params() < stripped.count_params()
    assert not _keras.pruning_wrappers(small)
    assert difference(tfspline.slim(wrapped)(x), small(x)) == 0


def test_tfmot_resumes_its_schedule_after_release(tfmot, rng):
    model = scramble(chain(keras), rng)
    prune = tfmot.sparsity.keras
    wrapped = compiled(prune_all(tfmot, model, pruning_schedule=prune.ConstantSparsity(0.75, 0, frequency=1)))
    data = data_for(model, rng)
    share = lambda: float(np.mean(mask_values(wrapped)["a"][0] == 0))  # noqa: E731
    fit(wrapped, data, prune.UpdatePruningStep(), epochs=1)
    assert share() == 0.75
    pruning = SplinePruning(lambda step: (True, 0.5), "random", "layer")
    fit(wrapped, data, pruning, prune.UpdatePruningStep(), epochs=1)
    assert share() == 0.5 and (wrapped.layers[0].layer.kernel.numpy() == 0).mean() == 0.5
    assert [float(w.pruning_vars[0][2]) for w in wrapped.layers if getattr(w, "pruning_vars", ())] == [0, 0, 0]
    fit(wrapped, data, prune.UpdatePruningStep(), epochs=1)
    assert share() == 0.75


def test_release_cleans_up_after_a_failed_fit(tfmot, rng):
    model = scramble(chain(keras), rng)
    wrapped, data = compiled(prune_all(tfmot, model)), data_for(model, rng)
    step = tfmot.sparsity.keras.UpdatePruningStep()

    def fail(batch, logs=None):
        raise RuntimeError("the power is gone")

    failing = keras.callbacks.LambdaCallback(on_batch_end=fail)
    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(wrapped, data, SplinePruning(Every()), step, failing)
    Masks.release(wrapped)
    assert all(weight.constraint is None for weight in wrapped.trainable_weights)
    fit(wrapped, data, step, epochs=1)
    assert (mask_values(wrapped)["a"][0] == 0).mean() == 0.5  # tfmot's own masks
    with pytest.raises(tf.errors.InvalidArgumentError, match="requires the UpdatePruningStep callback"):
        fresh = compiled(prune_all(tfmot, scramble(chain(keras), rng)))
        fit(fresh, data, SplinePruning(Every()))  # tfmot's own check is back


@pytest.mark.parametrize("swap", [False, True])
def test_pruning_starts_at_the_early_bird(tfmot, rng, swap):
    model = scramble(chain(keras), rng)
    wrapped = compiled(prune_all(tfmot, model), optimizer=keras.optimizers.SGD(1e-6, momentum=0.9))
    bird = tfspline.EarlyBird(lookback=1, stop_training=False)
    pruning = SplinePruning(Every(0.5, 1, 5, 4), start=bird)
    watch, data = Watch(pruning), data_for(model, rng)
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep(), bird, pruning]
    fit(wrapped, data, *callbacks[:: -1 if swap else 1], watch, epochs=4)
    assert bird.epoch == 2 and all(watch.exact) and all(watch.written)
    assert watch.sparsity == [0.0] * 12 + [0.5] * 4
    np.testing.assert_array_equal(bird._inputs.recorded[0], data[0])


def test_custom_training_loop(tfmot, rng):
    model = scramble(chain(keras), rng)
    wrapped, (x, y) = prune_all(tfmot, model), data_for(model, rng)
    wrapped.optimizer = optimizer = keras.optimizers.Adam(0.01)
    masks = half(wrapped, rng)
    masks.apply(wrapped)
    update = tfmot.sparsity.keras.UpdatePruningStep()
    update.set_model(wrapped)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(wrapped(x, training=True) - y))
        gradients = tape.gradient(loss, wrapped.trainable_variables)
        optimizer.apply_gradients(zip(gradients, wrapped.trainable_variables, strict=True))

    update.on_train_begin()
    for _ in range(3):
        update.on_train_batch_begin(0)
        step()
        assert is_off(wrapped, masks) and Masks.from_tfmot(wrapped) == masks
    update.on_epoch_end(0)
    Masks.release(wrapped)
    assert tfspline.slim_report(tfmot.sparsity.keras.strip_pruning(wrapped)).masks == masks


def test_nested_models_and_mixed_precision(tfmot, rng):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        layers = keras.layers
        inner = keras.Sequential(
            [keras.Input((10,)), layers.Dense(12, "relu", name="hidden"), layers.Dense(8)], name="inner"
        )
        inputs = keras.Input((6,))
        model = keras.Model(inputs, layers.Dense(3)(inner(layers.Dense(10, "relu", name="a")(inputs))))
        wrapped = compiled(prune_all(tfmot, scramble(model, rng)))
        pruning = SplinePruning(Every())
        watch = Watch(pruning)
        fit(wrapped, data_for(model, rng), pruning, tfmot.sparsity.keras.UpdatePruningStep(), watch)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert all(watch.exact) and all(watch.written) and pruning.sparsity == 0.5
    assert Masks.from_tfmot(wrapped) == pruning.masks and not pruning.masks["inner/hidden"].all()
    report = tfspline.slim_report(tfmot.sparsity.keras.strip_pruning(wrapped))
    small, masks = report.model, report.masks
    assert masks == pruning.masks and small.get_layer("inner").get_layer("hidden").units == masks["inner/hidden"].sum()


KINDS = {
    "constant": lambda prune: {"pruning_schedule": prune.ConstantSparsity(0.6, 0, frequency=1)},
    "polynomial": lambda prune: {"pruning_schedule": prune.PolynomialDecay(0.2, 0.7, 0, 8, frequency=2)},
    "block": lambda prune: {
        "pruning_schedule": prune.ConstantSparsity(0.7, 0, frequency=1),
        "block_size": (1, 4),
        "block_pooling_type": "MAX",
    },
    "2:4": lambda prune: {"sparsity_m_by_n": (2, 4)},
}


def needless(kind, rng):
    """A network as after training with weight decay: the weights of unneeded units are small."""
    layers = keras.layers
    if kind in ("polynomial", "block"):  # tfmot supports blocks in matrices only
        model = keras.Sequential(
            [keras.Input((6,)), layers.Dense(16, "relu", name="a"), layers.Dense(12, "relu", name="b"), layers.Dense(8)]
        )
        needless = {"a": [4, 5, 6, 7], "b": [0, 1, 2, 3, 8, 9, 10, 11]}
    else:
        model = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(8, 3, padding="same", use_bias=False, name="a"),
                layers.BatchNormalization(name="norm"),
                layers.ReLU(),
                layers.Conv2D(12, 3, activation="relu", name="b"),
                layers.Flatten(),
                layers.Dense(8, "relu", name="c"),
                layers.Dense(3),
            ]
        )
        needless = {"a": [0, 3], "b": [1, 2, 6, 11], "c": [5, 6]}
    scramble(model, rng)
    graph = Masks.of(model, {}).graph
    off = np.isin(np.arange(graph.units), np.concatenate([graph.channels(name)[at] for name, at in needless.items()]))
    for (path, index), on in entries(graph, off).items():
        weight = model.get_layer(path).weights[index]
        if path != "norm" and len(weight.shape) > 1:
            weight.assign(np.where(on, weight + 0.05 * np.sign(weight), weight * 1e-3))
    return model, needless


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", KINDS)
def test_slim_removes_units_emptied_by_tfmot(tfmot, rng, caplog, kind):
    prune = tfmot.sparsity.keras
    model, expected = needless(kind, rng)
    wrapped = compiled(prune_all(tfmot, model, **KINDS[kind](prune)), optimizer=keras.optimizers.Adam(1e-5))
    data = data_for(model, rng)
    fit(wrapped, data, prune.UpdatePruningStep())
    stripped = prune.strip_pruning(wrapped)
    logging.getLogger("absl").propagate = True
    with caplog.at_level(logging.INFO, "absl"):
        report = tfspline.slim_report(stripped)
    small, masks = report.model, report.masks
    removed = {name: np.flatnonzero(~on).tolist() for name, on in masks.items() if not on.all()}
    assert removed == expected
    assert f"removes {sum(map(len, expected.values()))} unit(s): a ({len(expected['a'])} of" in caplog.text
    assert difference(stripped(data[0]), small(data[0])) <= EXACT
    assert small.count_params() == sum(masks.graph.params(~masks.off).values()) < stripped.count_params()
