"""EarlyBird in the fit of both Keras versions: what it finds, and what it refuses."""

import logging
import math

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers.early_birds import fit, small_model

import tfspline
from tfspline import _keras
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.early_bird_tests import pruning_mask
from tfspline.spline.codes import Codes


def test_finds_the_early_bird_of_a_small_model(keras, data):
    bird = EarlyBird()
    history = fit(small_model(keras), data, bird, epochs=20)
    assert bird.epoch == 4  # the first epoch with three earlier ones, as the partition hardly moves
    assert len(history.epoch) == 4
    np.testing.assert_array_equal(history.history["partition_distance"], bird.distances)
    assert math.isnan(bird.distances[0])
    assert all(0 <= distance < 0.16 for distance in bird.distances[1:])


def test_finds_none_while_the_partition_moves(keras, data):
    bird = EarlyBird(threshold=0.001)
    fit(small_model(keras, learning_rate=0.05), data, bird)
    assert not bird.found
    assert bird.epoch is None
    assert len(bird.distances) == 6
    assert bird.distances[-1] >= 0.001


@pytest.mark.sweep(2)
@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("what", ["statistics", "loss"])
def test_warns_of_a_failed_training_and_never_calls_it_settled(keras, data, caplog, what, every):
    model = small_model(keras, 1e-4 if what == "statistics" else 1e25)

    class Break(keras.callbacks.Callback):
        """Breaks statistics that training does not use: the loss stays finite and the codes stay the same."""

        def on_epoch_end(self, epoch, logs=None):
            if what == "statistics" and epoch == 1:
                self.model.layers[2].moving_variance.assign([np.nan] * 8)

    bird = EarlyBird(lookback=2, every=every, probe=data[0])
    with caplog.at_level(logging.WARNING, "absl"):
        history = fit(model, data, Break(), bird)
    assert not bird.found and len(history.epoch) == 6
    assert all(map(math.isnan, bird.distances[1 if every is None else 5 :]))  # five steps an epoch
    assert np.isfinite(history.history["loss"]).all() == (what == "statistics")
    (message,) = (record.getMessage() for record in caplog.records if record.name == "absl")
    first = {"statistics": {None: "2", 2: "3, step 12"}, "loss": {None: "1", 2: "1, step 2"}}[what][every]
    place = f"layer {model.layers[2].name!r}" if what == "statistics" else "the loss"
    assert message == f"EarlyBird: epoch {first}: NaN or Inf in {place}"


def test_warns_of_dead_layers_once(keras, data, caplog):
    x = inputs = keras.Input((4,))
    for activation, name in (("relu", "alive"), ("relu", "dead"), ("relu6", "gone"), ("leaky_relu", "linear")):
        layer = keras.layers.LeakyReLU() if activation == "leaky_relu" else activation
        x = keras.layers.Dense(8, layer, name=name, bias_initializer="zeros" if name == "alive" else "ones")(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    for name in ("dead", "gone", "linear"):
        layer = model.get_layer(name)
        layer.set_weights([layer.get_weights()[0], np.full(8, -100.0)])
    model.compile(keras.optimizers.SGD(1e-6), "mse", jit_compile=False)
    bird = EarlyBird()
    with caplog.at_level(logging.WARNING, "absl"):
        fit(model, data, bird)
    assert bird.epoch == 4
    (message,) = (record.getMessage() for record in caplog.records if record.name == "absl")
    assert message == "EarlyBird: dead layers, in which no input of the probe activates any unit: dead, gone"


def test_verbose_prints_one_line(keras, data, capsys):
    fit(small_model(keras), data, EarlyBird(verbose=1))
    assert capsys.readouterr().out.count("epoch 4: early bird found, partition distance 0.0") == 1


@pytest.mark.parametrize("executed", [1, 4])
def test_stops_inside_an_epoch(keras, data, executed, capsys):
    model = small_model(keras, steps_per_execution=executed)
    bird, seen = EarlyBird(lookback=1, every=2, probe_size=16, verbose=1), []
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["partition_distance"]))
    history = model.fit(data[0][:64], data[1][:64], 8, 20, 0, [bird, count])  # 8 steps an epoch
    assert bird.step == {1: 10, 4: 12}[executed]
    assert _keras.iterations(model) == bird.step and bird.epoch == 2
    assert history.history["partition_distance"][1] == seen[1] == bird.distances[-1]
    assert math.isnan(seen[0])
    assert f"epoch 2, step {bird.step}: early bird found" in capsys.readouterr().out


@pytest.mark.parametrize(("keras", "metric"), [(keras3, "partition"), (tf_keras, "mask")], indirect=["keras"])
def test_looks_at_the_ends_of_epochs_agree_with_one_look_per_epoch(keras, data, metric):
    options = {"metric": metric, "stop_training": False, "probe": None if metric == "mask" else data[0]}
    often, seldom = EarlyBird(every=1, **options), EarlyBird(**options)
    fit(small_model(keras, 0.05), data, often, seldom, epochs=7)
    first = often.lookback
    assert len(often.distances) == 7 * 5
    np.testing.assert_array_equal(often.distances[4::5][first:], seldom.distances[first:])
    assert len(often._settling.codes) == first * 5


def test_learns_the_length_of_epochs_from_the_first_one(keras, data):
    def batches():
        for start in range(0, 70, 16):
            yield data[0][start : start + 16], data[1][start : start + 16]

    signature = tuple(tf.TensorSpec([None, array.shape[1]], tf.float32) for array in data)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    bird = EarlyBird(lookback=1, every=1)
    small_model(keras).fit(dataset, epochs=6, verbose=0, callbacks=[bird])
    # The first epoch does not fill the probe, so there is no look in it. The first comparison is with the first look of
    # the second epoch.
    assert bird.step == 11 and len(bird._inputs.recorded[0]) == 70
    with pytest.raises(ValueError, match="every=6 .* 5 steps"):
        small_model(keras).fit(dataset, epochs=6, verbose=0, callbacks=[EarlyBird(every=6)])


def masked_model(keras, gammas):
    inputs = keras.Input((3,))
    x = inputs
    for gamma in gammas:
        x = keras.layers.Dense(len(gamma))(x)
        norm = keras.layers.BatchNormalization()
        x = norm(x)
        norm.gamma.assign(gamma)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def test_mask_ranks_all_scales_of_the_model_together(keras):
    model = masked_model(keras, [[0.1, -3.0], [0.2, 0.3, -0.25]])
    assert pruning_mask(model, 0.4).unpack("mask").tolist() == [[0, 1, 0, 1, 1]]
    assert pruning_mask(model, 0.6).unpack("mask").tolist() == [[0, 1, 0, 1, 0]]


def test_mask_without_batch_norm_ranks_the_norms_of_kernels(keras):
    inputs = keras.Input((2,))
    hidden, head = keras.layers.Dense(3), keras.layers.Dense(1)
    model = keras.Model(inputs, head(keras.layers.ReLU()(hidden(inputs))))
    hidden.set_weights([np.array([[1.0, -2.0, 0.5], [1.0, -2.0, -0.1]]), np.zeros(3)])  # l1 norms 2, 4, 0.6
    assert pruning_mask(model, 0.5).unpack("mask").tolist() == [[0, 1, 0]]
    assert pruning_mask(model, 0.3).unpack("mask").tolist() == [[1, 1, 0]]


def test_mask_metric_finds_five_masks_that_agree(keras, data):
    class Swap(keras.callbacks.Callback):
        """Swaps the tenth and eleventh of 20 scales from the third epoch on: 2 mask bits change."""

        def on_epoch_end(self, epoch, logs=None):
            gamma = np.arange(1.0, 21.0)
            if epoch >= 2:
                gamma[[9, 10]] = gamma[[10, 9]]
            self.model.layers[2].gamma.assign(gamma)

    inputs = keras.Input((4,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(20)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.SGD(1e-9), "mse", jit_compile=False)
    bird = EarlyBird(metric="mask", ratio=0.5)
    history = fit(model, data, Swap(), bird, epochs=12)
    assert (bird.threshold, bird.lookback) == (0.1, 4)
    assert bird.epoch == 5
    assert bird.distances[1:] == [0.0, 0.1, 0.1, 0.1]  # 0.1 is just small enough
    np.testing.assert_array_equal(history.history["mask_distance"], bird.distances)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("keras", "metric", "every"),
    [(tf_keras, "partition", None), (keras3, "partition", 3), (tf_keras, "mask", None)],
    indirect=["keras"],
)
def test_continues_from_a_saved_state(keras, data, tmp_path, metric, every):
    def birds():
        return EarlyBird(metric=metric, threshold=0.2, lookback=3, probe_size=20, stop_training=False, every=every)

    whole, first, second = birds(), birds(), birds()
    model = small_model(keras, 0.02)
    fit(model, data, whole, first, epochs=2, shuffle=False)
    first.save(tmp_path / "bird.npz")
    second.load(tmp_path / "bird.npz")
    assert second._settling.codes == whole._settling.codes
    fit(model, data, whole, second, epochs=8, initial_epoch=2, shuffle=False)
    np.testing.assert_array_equal(second.distances, whole.distances)
    assert second.epoch == whole.epoch
    assert len(second.distances) == (8 if every is None else 8 * 5 // 3)
    second.save(tmp_path / "bird.npz")
    third = birds()
    third.load(tmp_path / "bird.npz")
    assert (third.epoch, third.step, third.found) == (whole.epoch, whole.step, whole.found)


def test_refuses_a_state_of_other_arguments(tmp_path):
    path = tmp_path / "bird.npz"
    EarlyBird(lookback=2).save(path)
    for other in [EarlyBird(), EarlyBird(lookback=2, threshold=0.2), EarlyBird(lookback=2, probe_size=3)]:
        with pytest.raises(ValueError, match="the state of EarlyBird.*lookback=2"):
            other.load(path)
    Codes({"relu": np.zeros((1, 1), "uint8")}, {"relu": 8}).save(path)
    with pytest.raises(ValueError, match="bird.npz"):
        EarlyBird().load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0}, "threshold.*0"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": "low"}, "threshold.*'low'"),
        ({"threshold": math.nan}, "threshold"),
        ({"lookback": 0}, "lookback.*0"),
        ({"lookback": 2.0}, "lookback"),
        ({"every": 0}, "every.*0"),
        ({"metric": "weights"}, "metric.*'partition', 'mask'.*'weights'"),
        ({"probe_size": 0}, "probe_size.*0"),
        ({"ratio": 1}, "ratio"),
        ({"metric": "mask", "probe": np.zeros((2, 4))}, "metric='mask' .* no probe"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        EarlyBird(**arguments)


def test_refuses_unsuitable_models_before_the_first_step(keras, data):
    def refused(model, bird, message):
        before = model.get_weights()
        with pytest.raises(ValueError, match=message):
            fit(model, data, bird)
        assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))

    refused(small_model(keras), EarlyBird(probe=np.zeros((2, 5))), r"\(samples, 4\).*Received: \(2, 5\)")
    refused(small_model(keras), EarlyBird(every=6), "every=6 .* 5 steps")
    linear = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    linear.compile("sgd", "mse")
    refused(linear, EarlyBird(), "piecewise-affine")
    refused(linear, EarlyBird(metric="mask"), "mask")
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, keras.layers.Dense(1, "relu")(inputs))
    model.compile("sgd", "mse", jit_compile=False)
    refused(model, EarlyBird(), r"no fixed shape.*\(None, None, 4\)")


def residual_with_gelu(keras, activation):
    layers = keras.layers
    x = keras.Input((6,))
    h = layers.BatchNormalization(name="first")(layers.Dense(6)(x))
    h = layers.BatchNormalization(name="last", beta_initializer="ones")(
        layers.Dense(6)(layers.Activation(activation)(h))
    )
    model = keras.Model(x, layers.Dense(1)(layers.ReLU(name="relu")(layers.Add()([h, x]))))
    model.compile("sgd", "mse")
    return model


def test_smooth_activation_is_left_out_and_named(keras, rng, caplog):
    model, x, y = residual_with_gelu(keras, "gelu"), rng.normal(size=(32, 6)).astype("float32"), np.zeros((32, 1))
    for options in ({}, {"approximate": True}, {"metric": "mask"}, {"units": "batch_norm"}):
        caplog.clear()
        early_bird = EarlyBird(lookback=1, threshold=0.99, **options)
        model.fit(x, y, epochs=2, verbose=0, callbacks=[early_bird])
        assert early_bird.found and ("'gelu'" in caplog.text) == (not options)


def test_units_of_batch_norm_have_the_signs_of_their_outputs(keras, rng):
    model, x = residual_with_gelu(keras, "relu"), rng.normal(size=(32, 6)).astype("float32")
    codes = tfspline.region_codes(model, x, units="batch_norm")
    assert codes.layers == ["first", "last"]
    assert tfspline.region_codes(model, x).layers[-1] == "relu"
    for name in codes.layers:
        output = keras.Model(model.inputs, model.get_layer(name).output)(x)
        np.testing.assert_array_equal(codes.unpack(name), output > 0)
    wrapped = tfspline.region_codes(tfspline.wrap(model), x, units="batch_norm")
    for name, other in zip(codes.layers, wrapped.layers, strict=True):
        np.testing.assert_array_equal(codes[name], wrapped[other])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "relu"}, "Expected `units` among .*'batch_norm'.*Received: 'relu'"),
        ({"metric": "mask", "units": "batch_norm"}, "takes no units. Remove units="),
        ({"metric": "mask", "approximate": True}, "takes no approximate. Remove approximate="),
    ],
)
def test_options_of_codes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyBird(**options)
