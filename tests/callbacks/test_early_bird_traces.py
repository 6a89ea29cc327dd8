"""EarlyBird records inputs in fit, and leaves no trace in the model and its training."""

import csv
import gc
import weakref

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers.early_birds import fit, small_model

from tfspline._keras.recording import Recorder
from tfspline.callbacks.early_bird import EarlyBird


def variants(data):
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(16)
    weighted = {"validation_data": data, "sample_weight": np.ones(70)}
    return {
        "compiled": ({"jit_compile": True}, lambda model, bird: fit(model, data, bird, shuffle=False)),
        "validated": ({}, lambda model, bird: fit(model, data, bird, shuffle=False, **weighted)),
        "many steps": ({"steps_per_execution": 4}, lambda model, bird: fit(model, data, bird, shuffle=False)),
        "eager": ({"run_eagerly": True}, lambda model, bird: fit(model, data, bird, shuffle=False)),
        "dataset": ({}, lambda model, bird: model.fit(dataset, epochs=6, callbacks=[bird], verbose=0)),
    }


@pytest.mark.sweep(2)
@pytest.mark.parametrize("variant", ["validated", "many steps", "eager", "dataset"])
def test_records_the_first_inputs_and_leaves_no_trace(keras, data, variant):
    compile_arguments, train = variants(data)[variant]
    model = small_model(keras, **compile_arguments)
    attributes = set(vars(model))
    bird = EarlyBird(probe_size=20)
    train(model, bird)
    np.testing.assert_array_equal(bird._inputs.recorded[0], data[0][:20])
    assert bird.epoch == 4
    assert "train_step" not in vars(model)
    assert set(vars(model)) - attributes <= {"history", "stop_evaluating", "_eval_epoch_iterator"}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("variant", ["validated", "many steps", "eager", "dataset"])
def test_model_keeps_no_reference_to_the_callback(keras, data, variant):
    compile_arguments, train = variants(data)[variant]
    model = small_model(keras, **compile_arguments)
    bird = EarlyBird(probe_size=20)
    train(model, bird)
    assert bird.found
    bird = weakref.ref(bird)
    gc.collect()
    assert bird() is None
    assert not any(type(thing) is Recorder for thing in gc.get_objects())


def test_model_gets_its_own_train_function_back(keras, data):
    model = small_model(keras)
    fit(model, data, epochs=1)
    own = model.train_function
    fit(model, data, EarlyBird())
    assert model.train_function is own
    other = small_model(keras)
    fit(other, data, EarlyBird())
    assert not is_recording(other)


def is_recording(model):
    return isinstance(getattr(model.train_function, "__self__", None), Recorder)


@pytest.mark.parametrize(
    ("keras", "variant"),
    [(keras3, "compiled"), (keras3, "many steps"), (tf_keras, "many steps")],  # Keras 3 compiles by default
    indirect=["keras"],
)
def test_training_is_the_same_bit_for_bit(keras, data, variant):
    weights = []
    for callback in [keras.callbacks.Callback(), EarlyBird(stop_training=False)]:
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        compile_arguments, train = variants(data)[variant]
        model = small_model(keras, 0.01, **compile_arguments)
        train(model, callback)
        weights.append(model.get_weights() + [np.array(v) for v in _variables(model.optimizer)])
    np.testing.assert_array_equal(callback._inputs.recorded[0], data[0])  # it did record
    for without, with_bird in zip(*weights, strict=True):
        np.testing.assert_array_equal(without, with_bird)


def _variables(optimizer):
    return optimizer.variables() if callable(optimizer.variables) else optimizer.variables


def test_keeps_a_custom_train_step(keras, data):
    class Model(keras.Model):
        calls = 0

        def train_step(self, data):
            type(self).calls += 1
            return {"loss": super().train_step(data)["loss"], "mine": 1.0}

    inputs = keras.Input((4,))
    model = Model(inputs, keras.layers.Dense(1)(keras.layers.ReLU()(inputs)))
    model.compile("sgd", "mse", jit_compile=False)
    bird = EarlyBird()
    history = fit(model, data, bird)
    assert Model.calls
    assert history.history["mine"][0] == 1.0
    assert model.train_step.__func__ is Model.train_step
    assert len(bird._inputs.recorded[0]) == 70  # all of them

    model = small_model(keras)
    own = model.train_step
    vars(model)["train_step"] = lambda data: own(data)
    patched = model.train_step
    fit(model, data, EarlyBird())
    assert model.train_step is patched


@pytest.mark.parametrize(("keras", "error"), [(keras3, KeyboardInterrupt), (tf_keras, ValueError)], indirect=["keras"])
def test_leaves_no_trace_after_an_interrupted_training(keras, data, error):
    model = small_model(keras, run_eagerly=True)
    fit(model, data, epochs=1)
    own = model.train_function
    original = type(model).train_step

    def failing(self, data):
        raise error

    bird = EarlyBird()
    type(model).train_step = failing
    try:
        with pytest.raises(error):
            fit(model, data, bird)
    finally:
        type(model).train_step = original
    assert "train_step" not in vars(model)
    assert model.train_function is own
    fit(model, data, bird)
    assert bird.epoch == 4


def test_an_error_between_steps_does_not_affect_the_next_fit(keras, data):
    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError

    model = small_model(keras)
    bird = EarlyBird()
    with pytest.raises(RuntimeError):
        fit(model, data, bird, Fails())
    assert "train_step" not in vars(model)
    fit(model, data, bird)
    assert not is_recording(model)


def test_takes_codes_on_a_given_probe(keras, data, rng):
    model = small_model(keras)
    bird = EarlyBird(probe=rng.normal(size=(5, 4)))
    own = fit(model, data, epochs=1) and model.train_function
    fit(model, data, bird)
    assert len(bird._settling.codes[0]) == 5
    assert model.train_function is own
    assert bird._inputs.recorded is None


@pytest.mark.parametrize("as_dict", [False, True])
def test_records_each_of_several_inputs(keras, rng, as_dict):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b", dtype="int32")
    both = keras.layers.Concatenate()([a, keras.layers.Rescaling(0.5)(b)])
    model = keras.Model([a, b], keras.layers.Dense(1)(keras.layers.Dense(6, "relu")(both)))
    model.compile("sgd", "mse", jit_compile=False)
    x = {"a": rng.normal(size=(30, 2)).astype("float32"), "b": rng.integers(0, 9, (30, 3)).astype("int32")}
    bird = EarlyBird(probe_size=25, stop_training=False)
    fit(model, (x if as_dict else list(x.values()), np.zeros(30)), bird, epochs=2, shuffle=False)
    for recorded, trained_on in zip(bird._inputs.recorded, x.values(), strict=True):
        np.testing.assert_array_equal(recorded, trained_on[:25])


def test_later_loggers_see_the_distance(keras, data, tmp_path):
    bird = EarlyBird()
    loggers = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TensorBoard(tmp_path / "board"),
    ]
    fit(small_model(keras), data, bird, *loggers)
    with open(tmp_path / "log.csv", newline="") as file:
        column = [float(row["partition_distance"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(column, bird.distances)
    events = [
        value
        for path in (tmp_path / "board" / "train").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag.endswith("partition_distance")
    ]
    np.testing.assert_allclose([tf.make_ndarray(value.tensor) for value in events], bird.distances, rtol=1e-6)
