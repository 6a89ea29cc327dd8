"""LiteRT files give the answers of the Keras model, and are written atomically."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import FAMILIES, flattened, inputs_for, inverted, residual, scramble, shared_and_nested
from sklearn.datasets import load_digits

from tfspline import export_litert
from tfspline.deployment.litert import interpreter

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


def answers(path, model, inputs):
    """The outputs of a LiteRT file, in the order of the outputs of its model."""
    with open(path, "rb") as file:
        run = interpreter(file.read()).get_signature_runner("serving_default")
    outputs = run(**{tensor.name: x for tensor, x in zip(model.inputs, tf.nest.flatten(inputs), strict=True)})
    return [outputs[name] for name in model.output_names]


def check(keras, family, path, rng, batch_size):
    model = scramble(family(keras), rng)
    export_litert(model, path, batch_size=batch_size)
    for size in [batch_size] if batch_size else [1, 5]:
        x = inputs_for(model, rng, size)
        for expected, answer in zip(tf.nest.flatten(model(x)), answers(path, model, x), strict=True):
            np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("family", "batch_size"), [(residual, None), (shared_and_nested, None), (inverted, 3)])
def test_file_gives_the_answers_of_keras(keras, family, batch_size, tmp_path, rng):
    check(keras, family, tmp_path / "model.tflite", rng, batch_size)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_file_of_every_family_gives_the_answers_of_keras(keras, family, batch_size, tmp_path, rng):
    check(keras, family, tmp_path / "model.tflite", rng, batch_size)


def ops(path):
    with open(path, "rb") as file:
        one = interpreter(file.read())
    one.allocate_tensors()
    # Private, but the only way to see what was delegated to XNNPACK ("DELEGATE").
    return [op["op_name"] for op in one._get_ops_details()]


def test_fixed_batch_runs_in_xnnpack_from_end_to_end(tmp_path):
    import keras

    free, fixed = (export_litert(flattened(keras), tmp_path / f"{n}.tflite", batch_size=n) for n in (None, 1))
    assert ops(fixed).count("DELEGATE") == 1 < ops(free).count("DELEGATE")
    assert "SHAPE" in ops(free) and "SHAPE" not in ops(fixed)
    assert ops(fixed)[-1] == "DELEGATE"


def trained_on_digits(keras, x, y):
    layers = keras.layers
    h = inputs = keras.Input((8, 8, 1), name="image")
    h = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(h)))
    h = layers.Flatten()(layers.Conv2D(48, 3, 2, activation="relu")(h))
    model = keras.Model(inputs, layers.Dense(10, name="logits")(layers.Dense(64, "relu")(h)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    model.fit(x, y, 64, epochs=4, verbose=0)
    return model


@pytest.mark.sweep(2)
def test_quantized_files_are_small_and_nearly_as_accurate(keras, tmp_path):
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
    model = trained_on_digits(keras, x[:1200], y[:1200])
    typical = tf.data.Dataset.from_tensor_slices((x[:200], y[:200])).batch(50)
    paths = {
        quantize: export_litert(model, tmp_path / f"{quantize}.tflite", quantize, data)
        for quantize, data in ((None, None), ("dynamic", None), ("int8", typical))
    }
    logits = {quantize: answers(path, model, x[1200:])[0] for quantize, path in paths.items()}
    accuracy = {quantize: np.mean(values.argmax(1) == y[1200:]) for quantize, values in logits.items()}
    assert accuracy[None] > 0.8
    for quantize in ("dynamic", "int8"):
        assert os.path.getsize(paths[quantize]) < 0.4 * os.path.getsize(paths[None])
        assert logits[quantize].dtype == np.float32
        assert (logits[quantize] != logits[None]).any()
        assert accuracy[quantize] >= accuracy[None] - 0.02
        assert ("QUANTIZE" in ops(paths[quantize])) == (quantize == "int8")  # the image is converted to integers


def test_several_inputs_are_quantized_on_their_own_data(keras, tmp_path, rng):
    model = scramble(shared_and_nested(keras), rng)
    data = inputs_for(model, rng, 50)
    data[1] *= 100  # if the inputs were mixed up, their ranges would be wrong
    path = export_litert(model, tmp_path / "model.tflite", "int8", data, batch_size=10)
    x = [array[:10] for array in data]
    for expected, answer in zip(model(x), answers(path, model, x), strict=True):
        assert np.abs(answer - expected).max() < 0.05 * np.abs(expected).max()


def test_process_with_litert_only(tmp_path, rng):
    import keras

    pytest.importorskip("ai_edge_litert")
    model = scramble(residual(keras), rng)
    x = inputs_for(model, rng)
    np.save(tmp_path / "x.npy", x)
    path = export_litert(model, str(tmp_path / "model.tflite"))
    program = (
        "import sys\n"
        "for name in ('tensorflow', 'keras', 'tf_keras', 'tfspline'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from ai_edge_litert.interpreter import Interpreter\n"
        f"run = Interpreter({path!r}).get_signature_runner()\n"
        f"np.save('y.npy', run(**{{{model.inputs[0].name!r}: np.load('x.npy')}})['head'])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(x), rtol=1e-5, atol=1e-5)


def dense(keras):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def test_missing_folder_is_created_and_existing_file_replaced(keras, tmp_path):
    path = tmp_path / "new" / "model.tflite"
    assert export_litert(dense(keras), path) == str(path)
    first = path.read_bytes()
    export_litert(dense(keras), path, batch_size=2)
    assert path.read_bytes() != first
    assert os.listdir(path.parent) == ["model.tflite"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_low_precision_is_exported_as_a_float32_copy(keras, policy, tmp_path, rng, caplog):
    keras.mixed_precision.set_global_policy(policy)
    try:
        h = image = keras.Input((6, 6, 4), name="image", dtype="float32")
        h = keras.layers.LeakyReLU(0.3)(keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(h)))
        y = keras.Input((4, 4, 4))
        h = keras.Model(y, keras.layers.TimeDistributed(keras.layers.Conv1D(4, 3))(y) * 0.5, name="inner")(h)
        model = keras.Model(image, keras.layers.Dense(3, name="out")(keras.layers.GlobalAveragePooling2D()(h)))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    before = [tf.convert_to_tensor(weight).numpy() for weight in model.weights]
    x = rng.normal(size=(5, 6, 6, 4)).astype("float32")
    with caplog.at_level("WARNING", "absl"):
        path = export_litert(model, tmp_path / "model.tflite")
    assert caplog.text.count(f"{model.name!r} is exported as a float32 copy") == 1
    (answer,) = answers(path, model, x)
    expected = tf.cast(model(x), tf.float32).numpy()
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected, atol=0.05 * np.abs(expected).max())
    assert model.layers[1].compute_dtype != "float32"
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, tf.convert_to_tensor(weight).numpy())


def test_layers_that_keras_cannot_serialize_are_exported_as_a_float32_copy(keras, tmp_path, rng):
    layers, leaky = keras.layers, functools.partial(tf.nn.leaky_relu, alpha=0.3)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        x = image = keras.Input((4,), name="image")
        x = layers.Dense(4, leaky, kernel_regularizer=lambda w: 0.1 * tf.reduce_sum(w))(x)
        x = layers.Reshape((2, 2))(layers.Lambda(lambda x: 2 * x)(x))
        x = layers.TimeDistributed(layers.Dense(3, leaky))(x)
        x = layers.RNN([layers.SimpleRNNCell(3, activation=leaky), layers.SimpleRNNCell(2)], unroll=True)(x)
        model = keras.Model(image, x)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    scramble(model, rng)
    x = rng.normal(size=(5, 4)).astype("float32")
    (answer,) = answers(export_litert(model, tmp_path / "model.tflite"), model, x)
    np.testing.assert_allclose(answer, model(x), atol=0.02 * np.abs(model(x)).max())


def test_recurrent_layers_are_exported(keras, tmp_path, rng):
    layers = keras.layers
    inputs, sequence = keras.Input((2, 3), name="x"), keras.Input((2, 6))
    x = layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True))(inputs)
    x = keras.Model(sequence, layers.GRU(5, go_backwards=True)(sequence))(x)
    model = scramble(keras.Model(inputs, layers.Dense(2, name="out")(x)), rng)
    x = rng.normal(size=(3, 2, 3)).astype("float32")
    (answer,) = answers(export_litert(model, tmp_path / "model.tflite"), model, x)
    np.testing.assert_allclose(answer, model(x), rtol=1e-5, atol=1e-5)
    assert not model.layers[1].forward_layer.unroll


def test_loops_over_an_open_number_of_steps_are_refused_and_the_advice_works(keras, tmp_path, rng):
    def build(steps):
        inputs = keras.Input((steps, 3), name="x")
        return keras.Model(inputs, keras.layers.Dense(2, name="out")(keras.layers.GRU(4, name="gru")(inputs)))

    model = scramble(build(None), rng)
    with pytest.raises(ValueError, match=r"loop over time of the recurrent layers \['gru'\].*keras.Input\(\(steps, "):
        export_litert(model, tmp_path / "model.tflite")
    new = build(4)
    new.set_weights(model.get_weights())
    x = rng.normal(size=(3, 4, 3)).astype("float32")
    (answer,) = answers(export_litert(new, tmp_path / "model.tflite"), new, x)
    np.testing.assert_allclose(answer, model(x), rtol=1e-5, atol=1e-5)


def kept_whole(keras, dtype):
    class Kept(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(3, name="inner", dtype=dtype)

        def build(self, shape):
            self.inner.build(shape)
            super().build(shape)

        def call(self, x, training=None):
            return self.inner(x) * 2 if training else self.inner(x)

        def compute_output_shape(self, shape):
            return (*shape[:-1], 3)

    return Kept()


def casting(keras, dtype):
    def product(x):
        return tf.cast(tf.matmul(tf.cast(x, dtype[-7:]), tf.ones((4, 3), dtype[-7:])), "float32")

    return keras.layers.Lambda(product, output_shape=(3,))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("layer", "dtype", "where"),
    [
        (kept_whole, "mixed_float16", r"float16, which layers \['inner'\]"),
        (casting, "float16", "float16, which a function or layer of yours"),
        (lambda k, dtype: k.layers.Dense(3, name="odd", dtype=dtype), "float64", r"float64, which layers \['odd'\]"),
    ],
    ids=["kept whole", "Lambda", "float64"],
)
def test_other_dtypes_that_no_copy_covers_are_named_and_the_advice_works(keras, tmp_path, rng, layer, dtype, where):
    def build(dtype):
        inputs = keras.Input((4,), name="x")
        return keras.Model(inputs, keras.layers.Dense(2, name="out")(layer(keras, dtype)(inputs)))

    model = scramble(build(dtype), rng)
    with pytest.raises(ValueError, match=f"LiteRT computes in float32. It has no .*MatMul.* in {where} .*set_weights"):
        export_litert(model, tmp_path / "model.tflite")
    new = build("float32")
    new.set_weights(model.get_weights())
    x = rng.normal(size=(3, 4)).astype("float32")
    (answer,) = answers(export_litert(new, tmp_path / "model.tflite"), new, x)
    np.testing.assert_allclose(answer, model(x), atol=0.02 * np.abs(model(x)).max())


def test_low_precision_inside_wrappers_only_is_exported_as_a_float32_copy(keras, tmp_path, rng):
    inputs = keras.Input((5, 4), name="x")
    x = keras.layers.TimeDistributed(keras.layers.Dense(3, dtype="mixed_float16"))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    x = rng.normal(size=(3, 5, 4)).astype("float32")
    (answer,) = answers(export_litert(model, tmp_path / "model.tflite"), model, x)
    np.testing.assert_allclose(answer, model(x), atol=0.02 * np.abs(model(x)).max())


def test_text_vectorization_is_refused_and_the_rest_can_be_exported(keras, tmp_path):
    layers = keras.layers
    vectorize = layers.TextVectorization(10, output_sequence_length=4)
    vectorize.adapt(["a b c", "b c d"])
    text, tokens = keras.Input((1,), dtype="string"), keras.Input((4,), name="tokens")
    rest = keras.Model(tokens, layers.Dense(2, name="out")(layers.Flatten()(layers.Embedding(10, 3)(tokens))))
    with pytest.raises(ValueError, match="LiteRT has no .*StringLower.*'whole'.*TextVectorization can run before"):
        export_litert(keras.Model(text, rest(vectorize(text)), name="whole"), tmp_path / "model.tflite")
    ids = np.asarray(vectorize(np.array([["a c"]])))
    (answer,) = answers(export_litert(rest, tmp_path / "model.tflite"), rest, ids.astype("float32"))
    np.testing.assert_allclose(answer, rest(ids), rtol=1e-5, atol=1e-6)


def test_op_that_litert_lacks_raises_and_keeps_the_old_file(keras, tmp_path):
    inputs = keras.Input((2, 2))
    model = keras.Model(inputs, keras.layers.Lambda(tf.linalg.inv, output_shape=(2, 2))(inputs))
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="LiteRT has no MatrixInverse"):
        export_litert(model, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.tflite"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, r"Expected `quantize` among .*'int8'\). Received: 'int4'"),
        ({"quantize": "int8"}, "quantize='int8' needs `data`"),
        ({"data": np.zeros((2, 4))}, "`data` is used with quantize='int8' only. Received: quantize=None"),
        ({"quantize": "dynamic", "data": np.zeros((2, 4))}, "`data` .* Received: quantize='dynamic'"),
        ({"quantize": "int8", "data": np.zeros((2, 5))}, r"Expected inputs of shape \(samples, 4\)"),
        ({"quantize": "int8", "data": np.zeros((2, 4)), "batch_size": 3}, "at least a batch, 3, .* Received: 2"),
        ({"batch_size": 0}, "Expected `batch_size` to be an integer of at least 1. Received: 0"),
    ],
)
def test_bad_options_raise_and_write_nothing(keras, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_litert(dense(keras), tmp_path / "new" / "model.tflite", **options)
    assert os.listdir(tmp_path) == []


def test_folder_in_place_of_the_file_raises(keras, tmp_path):
    with pytest.raises(IsADirectoryError, match="Expected a file to write"):
        export_litert(dense(keras), tmp_path)


def test_argument_that_is_not_a_built_model_raises(keras, tmp_path):
    with pytest.raises(ValueError, match="model that is built"):
        export_litert(keras.Sequential([keras.layers.Dense(3)]), tmp_path / "model.tflite")
    with pytest.raises(TypeError, match="Received: dict"):
        export_litert({}, tmp_path / "model.tflite")
