"""SplinePruning in the fit of both Keras versions: from dense to ready to be slimmed."""

import logging as python_logging

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from helpers.masking import compiled, data_for, is_off, off_values
from helpers.schedules import Every, fit
from helpers.zoo import chain, difference, residual, scramble

import tfspline
from tfspline import Masks, SplinePruning


class Watch:
    """Records the sparsity after every batch, and whether all that is off was zero."""

    def __init__(self, keras, pruning):
        self.sparsity, self.zero = [], []

        def note(batch, logs=None):
            self.sparsity.append(round(pruning.sparsity, 3))
            values = off_values(pruning.model, pruning.masks)
            self.zero.append(not values.any())

        self.callback = keras.callbacks.LambdaCallback(on_batch_end=note)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("family", [chain, residual], ids=lambda family: family.__name__)
def test_prunes_from_dense_to_ready_to_slim(keras, rng, family, regrow):
    model = compiled(keras, rng, family)
    data = data_for(model, rng)
    pruning = SplinePruning(Every(), regrow=regrow)
    watch = Watch(keras, pruning)
    history = fit(model, data, pruning, watch.callback)
    assert all(watch.zero) and len(watch.zero) == 12 == pruning.step
    assert watch.sparsity == sorted(watch.sparsity) and watch.sparsity[0] == 0 < watch.sparsity[1]
    sparsity = history.history["pruning_sparsity"]
    assert sparsity[0] < sparsity[1] <= sparsity[2] == pruning.sparsity and 0.4 < pruning.sparsity <= 0.5
    assert all(weight.constraint is None for weight in model.weights)
    assert is_off(model, pruning.masks) and Masks.from_model(model) == pruning.masks
    slim = tfspline.slim(model)
    x = data[0]
    assert difference(model(x), slim(x)) <= 1e-5
    assert slim.count_params() == sum(pruning.masks.graph.params(~pruning.masks.off).values()) < model.count_params()


def test_prunes_before_the_step_that_the_schedule_names(keras, rng):
    model = compiled(keras, rng)
    pruning = SplinePruning(Every(0.5, 0, 12, 4), scope="global")
    watch = Watch(keras, pruning)
    after = [round(int(0.5 * step / 12 * 20 + 1e-9) / 20, 3) for step in (0, 4, 8, 12)]
    # A callback that comes later in the list sees what is off for the next step.
    fit(model, data_for(model, rng), pruning, watch.callback)
    expected = [after[0]] * 3 + [after[1]] * 4 + [after[2]] * 4 + [after[3]]
    assert watch.sparsity == expected and pruning.sparsity == 0.5


@pytest.mark.sweep(2)
@pytest.mark.parametrize("options", [{"steps_per_execution": 3}, {"jit_compile": True}, {"run_eagerly": True}])
def test_zeros_stay_in_every_mode_of_execution(keras, rng, options):
    model = compiled(keras, rng, **options)
    data = data_for(model, rng)
    pruning = SplinePruning(Every())
    watch = Watch(keras, pruning)
    fit(model, data, pruning, watch.callback)
    assert all(watch.zero) and pruning.step == 12 and pruning.sparsity == 0.5
    assert len(watch.zero) == (6 if "steps_per_execution" in options else 12)  # 3 + 1 steps an epoch


def test_removes_the_units_of_a_plan(keras, rng):
    model, other = (compiled(keras, np.random.default_rng(3)) for _ in range(2))
    other.set_weights(model.get_weights())
    data = data_for(model, rng)
    pruning = SplinePruning(lambda step: (step == 12, 0.4))
    fit(model, data, pruning)
    fit(other, data)
    assert pruning.masks.off.tolist() == tfspline.plan(other, 0.4).removed.tolist()
    pruning = SplinePruning(lambda step: (step == 0, 0.4), "l1", "global", min_units=6, protect=("a",))
    masks = tfspline.plan(other, 0.4, criterion="l1", scope="global", min_units=6, protect=("a",)).masks
    fit(other, data, pruning)
    assert pruning.masks == masks and masks["a"].all() and masks["b"].sum() == 6


def test_scores_units_only_at_the_steps_that_the_schedule_names(keras, rng):
    scored = []

    def criterion(units):
        scored.append(units.name)
        return np.arange(len(units.kernel))

    tfspline.register_criterion("test_pruning.counted", criterion)
    model = compiled(keras, rng)
    fit(model, data_for(model, rng), SplinePruning(Every(0.5, 0, 12, 3), "test_pruning.counted"))
    assert scored.count("a") == 1 + 4  # once more before the first step, to check the model


def test_units_come_back_only_with_regrow(keras, rng):
    name = "test_pruning.opposite"
    norms = lambda units: np.abs(units.kernel).sum(axis=1)  # noqa: E731
    flip = []
    tfspline.register_criterion(name, lambda units: -norms(units) if flip else norms(units))
    for regrow in (False, True):
        flip.clear()
        model = compiled(keras, rng)
        first = model.get_layer("a").get_weights()[0]
        pruning = SplinePruning(lambda step: (step in (0, 4), 0.25), name, "layer", regrow=regrow)
        masks = []

        def note(epoch, logs=None, masks=masks, pruning=pruning):
            masks.append(pruning.masks)
            flip.append(True)

        watch = keras.callbacks.LambdaCallback(on_epoch_begin=note)
        fit(model, data_for(model, rng), pruning, watch, epochs=3)
        flip.clear()
        assert (masks[0].off != pruning.masks.off).any() == regrow
        assert masks[0].sparsity == pruning.sparsity == 0.25
    back = ~masks[0]["a"] & pruning.masks["a"]
    assert back.sum() == 3
    # They come back with their former values and are trained from there.
    kernel = model.get_layer("a").get_weights()[0]
    assert kernel[:, back].all() and not np.array_equal(kernel[:, back], first[:, back])


def test_units_regrow_with_their_former_values(keras, rng):
    model = compiled(keras, rng, optimizer=keras.optimizers.SGD(0.0))
    before = model.get_weights()
    sparsity = {0: 0.5, 2: 0.3, 5: 0.6, 6: 0.0, 8: 0.4, 12: 0.0}
    pruning = SplinePruning(lambda step: (step in sparsity, sparsity.get(step, 0)), scope="global", regrow=True)
    watch = Watch(keras, pruning)
    fit(model, data_for(model, rng), pruning, watch.callback)
    assert watch.sparsity == [0.5, 0.3, 0.3, 0.3, 0.6, 0.0, 0.0, 0.4, 0.4, 0.4, 0.4, 0.0] and all(watch.zero)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_starts_at_the_early_bird(keras, rng):
    model = compiled(keras, rng, optimizer=keras.optimizers.SGD(1e-6, momentum=0.9))
    bird = tfspline.EarlyBird(lookback=1, stop_training=False)
    pruning = SplinePruning(Every(0.5, 1, 5, 4), start=bird)
    watch = Watch(keras, pruning)
    fit(model, data_for(model, rng), bird, pruning, watch.callback, epochs=4)
    assert bird.epoch == 2  # after 8 steps, so step 5 of the schedule is step 13 of the training
    assert watch.sparsity == [0.0] * 12 + [0.5] * 4 and all(watch.zero)
    assert len(bird._inputs.recorded[0]) == 24 and pruning.masks == Masks.from_model(model)


@pytest.mark.sweep(2)
def test_order_of_early_bird_and_pruning_does_not_matter(keras, rng):
    found = []
    for swap in (False, True):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        model = compiled(keras, np.random.default_rng(0), optimizer=keras.optimizers.SGD(1e-6, momentum=0.9))
        data = data_for(model, np.random.default_rng(1))
        fit(model, data, epochs=1)  # traces its train function
        bird = tfspline.EarlyBird(lookback=1, stop_training=False)
        pruning = SplinePruning(Every(0.5, 0, 4), start=bird)
        watch = Watch(keras, pruning)
        fit(model, data, *([pruning, bird] if swap else [bird, pruning]), watch.callback, epochs=4)
        assert bird.epoch == 2 and all(watch.zero) and pruning.sparsity == 0.5
        np.testing.assert_array_equal(bird._inputs.recorded[0], data[0])
        assert "Recorder" not in str(getattr(model.train_function, "__self__", None))
        masks = pruning.masks
        fit(model, data, epochs=1)
        assert off_values(model, masks).any()  # the train function no longer enforces zeros
        found.append(masks.off)
    assert np.array_equal(*found)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("regrow", [False, True])
def test_continues_from_a_saved_state(keras, rng, tmp_path, regrow):
    def pruning():
        return SplinePruning(Every(0.6, 1, 11, 3), "random", regrow=regrow)

    def fresh():
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        return compiled(keras, np.random.default_rng(0), optimizer=keras.optimizers.Adam(0.05))

    data = data_for(fresh(), rng)
    whole, first, second = pruning(), pruning(), pruning()
    model = fresh()
    fit(model, data, whole)

    class Cut(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                first.save(tmp_path / "state.npz")
                self.model.save(tmp_path / "cut.keras")
                self.model.stop_training = True

    fit(fresh(), data, first, Cut())
    resumed = keras.models.load_model(tmp_path / "cut.keras")
    second.load(tmp_path / "state.npz")
    fit(resumed, data, second, initial_epoch=2)
    assert second.masks == whole.masks and second.step == whole.step == 12
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    other = compiled(keras, rng, residual)
    second.load(tmp_path / "state.npz")
    with pytest.raises(ValueError, match="state of this SplinePruning .* layers"):
        fit(other, data_for(other, rng), second)


def test_refuses_a_state_of_other_arguments_or_another_class(tmp_path):
    path = tmp_path / "state.npz"
    SplinePruning(Every()).save(path)
    with pytest.raises(ValueError, match="state of SplinePruning.criterion='spline'.* this is .*'l1'"):
        SplinePruning(Every(), "l1").load(path)
    SplinePruning(Every(0.3)).load(path)
    tfspline.EarlyBird().save(path)
    with pytest.raises(ValueError, match="state of EarlyBird"):
        SplinePruning(Every()).load(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schedule": 0.5}, TypeError, "schedule must be a function"),
        ({"start": "early_bird"}, TypeError, "`start` .* EarlyBird"),
        ({"start": tfspline.EarlyBird()}, ValueError, "start=.*stop_training=False"),
        (
            {"start": tfspline.EarlyBird(stop_training=False), "backup_dir": "backup"},
            ValueError,
            "backup_dir= .* EarlyBird",
        ),
        ({"criterion": "best"}, ValueError, "`criterion`.*'best'"),
        ({"scope": "world"}, ValueError, "`scope`.*'world'"),
        ({"min_units": 0}, ValueError, "`min_units`.* 0"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, error, message):
    with pytest.raises(error, match=message):
        SplinePruning(**{"schedule": Every(), **arguments})


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": lambda step: (False, 0.5)}, "never prunes within the 12 steps"),
        (
            {"schedule": Every(), "start": tfspline.EarlyBird(stop_training=False)},
            "start= is not in this fit",
        ),
        ({"schedule": Every(), "criterion": "spline_data"}, "`data`"),
        ({"schedule": Every(), "criterion": "bn_scale"}, "BatchNormalization"),
        ({"schedule": Every(), "protect": ("a", "b")}, "'a'.*'b'"),
        ({"schedule": Every(), "protect": ("c",)}, "`protect`.*'c'"),
    ],
)
def test_refuses_what_does_not_fit_before_the_first_step(keras, rng, arguments, message):
    model = compiled(keras, rng)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, data_for(model, rng), SplinePruning(**arguments))
    assert all(weight.constraint is None for weight in model.weights)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_prunes_on_a_dataset_of_unknown_length(keras, rng):
    model = compiled(keras, rng)
    x, y = data_for(model, rng)

    def batches():
        for _ in range(4):
            yield x[:6], y[:6]

    specs = (tf.TensorSpec((6, 6)), tf.TensorSpec((6, 3)))
    pruning = SplinePruning(Every(0.9, 0, 100), scope="global")
    model.fit(tf.data.Dataset.from_generator(batches, output_signature=specs), epochs=2, verbose=0, callbacks=[pruning])
    assert pruning.step == 8 and 0 < pruning.sparsity < 0.1


def test_warns_of_an_early_bird_found_too_late_or_not_at_all(keras, rng, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    model = compiled(keras, rng, optimizer=keras.optimizers.SGD(1e-6))
    bird = tfspline.EarlyBird(lookback=1, stop_training=False)
    with caplog.at_level(python_logging.WARNING, "absl"):
        fit(model, data_for(model, rng), bird, SplinePruning(Every(0.5, 0, 10), start=bird))
    assert "started at the early bird in step 8: schedule does not end within the 4 steps" in caplog.text
    caplog.clear()
    bird = tfspline.EarlyBird(lookback=3, stop_training=False)
    with caplog.at_level(python_logging.WARNING, "absl"):
        fit(model, data_for(model, rng), bird, SplinePruning(Every(), start=bird))
    assert "the early bird was not found, so nothing was pruned" in caplog.text


def test_accepts_schedules_of_tfmot(keras, rng, tfmot):
    schedules = tfmot.sparsity.keras
    model = compiled(keras, rng)
    pruning = SplinePruning(schedules.PolynomialDecay(0.1, 0.5, 2, 10, frequency=4), scope="global")
    watch = Watch(keras, pruning)
    fit(model, data_for(model, rng), pruning, watch.callback)
    assert watch.sparsity == [0.0] + [0.1] * 4 + [0.45] * 4 + [0.5] * 3  # 0.5 - 0.4 * (1 / 2) ** 3 = 0.45
    model = scramble(chain(keras), rng)
    model.compile("sgd", "mse", jit_compile=False)
    fit(model, data_for(model, rng), SplinePruning(schedules.ConstantSparsity(0.5, 3, frequency=5)))
    assert Masks.from_model(model).sparsity == 0.5


@pytest.mark.sweep(2)
@pytest.mark.parametrize("regrow", [False, True])
def test_schedule_continues_in_a_further_fit(keras, rng, regrow):
    model = compiled(keras, rng)
    data = data_for(model, rng)
    pruning = SplinePruning(Every(0.5, 0, 22), scope="global", regrow=regrow)
    fit(model, data, pruning)
    assert pruning.step == 12 and 0.2 < pruning.sparsity < 0.3
    fit(model, data, pruning)
    assert pruning.step == 24 and pruning.sparsity == 0.5
    assert tfspline.Masks.from_model(model) == pruning.masks


@pytest.mark.sweep(2)
@pytest.mark.parametrize("schedule", [Every(0.0), lambda step: (True, 0), Every(0.5, 13, 20)])
def test_schedule_may_prune_nothing_in_a_fit(keras, rng, schedule):
    model = compiled(keras, rng)
    pruning = SplinePruning(schedule)
    fit(model, data_for(model, rng), pruning)
    assert pruning.sparsity == 0 and tfspline.slim(model).count_params() == model.count_params()
