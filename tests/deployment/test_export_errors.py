"""Models and options that `tfspline.export` does not accept."""

import pytest
import tensorflow as tf
from helpers.heads import two_headed

import tfspline
from tfspline import export


def mlp(keras):
    return keras.Sequential([keras.Input((4,), name="image"), keras.layers.Dense(3, name="logits")])


REFUSED = {
    "unknown input": (mlp, {"input": "jpeg"}, ValueError, "`input` among .*Received: 'jpeg'"),
    "image for a model of vectors": (
        mlp,
        {"input": "image"},
        ValueError,
        r"images of a known size.*\(None, 4\)",
    ),
    "image files for two inputs": (two_headed, {"input": "image_bytes"}, ValueError, "one input.*image.*side"),
    "preprocessing of two inputs": (two_headed, {"preprocessing": tf.identity}, ValueError, "one input"),
    "preprocessing returns a wrong shape": (
        mlp,
        {"preprocessing": lambda x: x[:, :2]},
        ValueError,
        r"Received: \(None, 2\)",
    ),
    "too few names": (mlp, {"class_names": ["a", "b"]}, ValueError, "3 class_names.*Received: 2"),
    "names in one string": (mlp, {"class_names": "abc"}, TypeError, "a list or tuple. Received: 'abc'"),
    "names that are numbers": (mlp, {"class_names": [0, 1, 2]}, TypeError, "strings"),
    "names for two outputs": (two_headed, {"class_names": ["a", "b"]}, ValueError, "one output"),
    "top_k of 0": (mlp, {"class_names": ["a", "b", "c"], "top_k": 0}, ValueError, "`top_k`.* Received: 0"),
    "top_k of 1.5": (mlp, {"class_names": ["a", "b", "c"], "top_k": 1.5}, ValueError, "`top_k`.* integer.* 1.5"),
    "warm-up batch of 0": (
        mlp,
        {"warmup": [0]},
        ValueError,
        "of warmup. to be an integer of at least 1. Received: 0",
    ),
    "metadata that is not JSON": (mlp, {"metadata": {"accuracy": {1}}}, TypeError, "of JSON values"),
    "metadata with NaN": (mlp, {"metadata": {"accuracy": float("nan")}}, TypeError, "of JSON values"),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("build", "options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_options_raise_before_anything_is_written(keras, tmp_path, build, options, error, message):
    if "warmup" in options:
        pytest.importorskip("tensorflow_serving")
    with pytest.raises(error, match=message):
        export(build(keras), tmp_path / "serving", **options)
    assert not (tmp_path / "serving").exists()


def test_warmup_of_inputs_of_unknown_size_raises(keras, tmp_path):
    pytest.importorskip("tensorflow_serving")
    image = keras.Input((None, None, 3), name="image")
    with pytest.raises(ValueError, match="`warmup` needs inputs of a known size. Received: 'image'"):
        export(keras.Model(image, keras.layers.Conv2D(2, 3)(image)), tmp_path / "serving", warmup=[1])
    assert not (tmp_path / "serving").exists()


def test_plan_of_another_model_raises(keras, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="58 parameters, the plan leaves 30"):
        export(model, tmp_path / "serving", plan=tfspline.plan(model, 0.5))
    assert not (tmp_path / "serving").exists()


def test_layer_that_calls_python_raises(keras, tmp_path):
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return doubled(x)

        def compute_output_shape(self, shape):
            return shape

    inputs = keras.Input((4,))
    doubled = lambda x: tf.ensure_shape(tf.numpy_function(lambda x: 2 * x, [x], tf.float32), x.shape)  # noqa: E731
    model = keras.Model(inputs, Doubled(name="doubled")(inputs))
    with pytest.raises(ValueError, match=r"'.*doubled.*' calls a Python function \(PyFunc\).*Use TensorFlow ops"):
        export(model, tmp_path / "serving")
    assert not (tmp_path / "serving").exists()
    doubled = lambda x: 2 * x  # noqa: E731
    export(keras.Model(inputs, Doubled(name="doubled")(inputs)), tmp_path / "serving")


def test_model_that_is_not_built_raises(keras, tmp_path):
    with pytest.raises(ValueError, match="model that is built"):
        export(keras.Sequential([keras.layers.Dense(3)]), tmp_path)


def test_subclassed_model_raises(keras, tmp_path):
    class Net(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="functional or Sequential model"):
        export(Net(), tmp_path)


def test_argument_that_is_not_a_model_raises(tmp_path):
    with pytest.raises(TypeError, match="Received: dict"):
        export({}, tmp_path)
