"""Region codes compared with numpy and with bits computed by hand."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.codes import POSITIVE, Z, codes_of

from tfspline._utils.files import write_npz
from tfspline.spline.codes import Codes, RegionEncoder, pack_bits, region_codes


@pytest.mark.parametrize("m", [1, 7, 8, 9, 64, 100])
def test_pack_bits_equals_numpy_packbits(rng, m):
    bits = rng.random((5, m)) > 0.5
    np.testing.assert_array_equal(pack_bits(tf.constant(bits)), np.packbits(bits, axis=1, bitorder="little"))


def test_bits_follow_the_order_of_the_flattened_output(keras, rng):
    x = rng.normal(size=(3, 4, 5, 2)).astype("float32")
    codes = codes_of(keras, keras.layers.ReLU(name="relu"), keras.layers.Flatten(), x=x)
    assert codes.bits == {"relu": 40}
    np.testing.assert_array_equal(codes.unpack("relu"), x.reshape(3, -1) > 0)


def test_nested_models_and_repeated_calls_have_distinct_names(keras, rng):
    x = rng.normal(size=(9, 4)).astype("float32")
    relu = keras.layers.ReLU(name="relu")
    inner_inputs = keras.Input((4,))
    negate = keras.layers.Rescaling(-1.0)
    inner = keras.Model(inner_inputs, negate(relu(negate(inner_inputs))), name="inner")
    inputs = keras.Input((4,))
    y = relu(inner(inputs, training=False))
    model = keras.Model(inputs, keras.layers.Dense(1)(inner(keras.layers.Rescaling(2.0, -1.0)(y))))
    codes = region_codes(model, x)
    assert codes.layers == ["inner/relu", "relu", "inner/relu#2"]
    np.testing.assert_array_equal(codes.unpack("inner/relu"), -x > 0)
    np.testing.assert_array_equal(codes.unpack("relu"), np.minimum(x, 0) > 0)
    np.testing.assert_array_equal(codes.unpack("inner/relu#2"), np.ones((9, 4)))


def test_codes_are_computed_in_inference_mode(keras):
    norm = keras.layers.BatchNormalization(moving_mean_initializer="ones", epsilon=1e-6)
    stack = [norm, keras.layers.Dropout(0.9), keras.layers.ReLU(name="relu")]
    codes = codes_of(keras, *stack, x=np.array([[0.5], [0.9], [1.1]], "float32"))
    assert codes.unpack("relu").tolist() == [[0], [0], [1]]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_codes_in_half_precision(keras, policy):
    layer = keras.layers.Dense(6, "relu", use_bias=False, kernel_initializer="identity", name="unit", dtype=policy)
    assert codes_of(keras, layer).unpack("unit").tolist() == [POSITIVE]


def test_batched_codes_equal_unbatched_ones_and_trace_once_per_shape(keras, rng):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(11, "relu"), keras.layers.Dense(1)])
    x = rng.normal(size=(23, 5))
    encoder = RegionEncoder(model)
    assert encoder(x, batch_size=8) == region_codes(model, tf.constant(x)) == encoder(x, batch_size=8)
    assert encoder._encode.experimental_get_tracing_count() == 2  # batches of 8 samples, and the last one of 7
    assert len(encoder(x)) == 23


def test_models_with_several_inputs(keras, rng):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    outputs = keras.layers.Dense(1)(keras.layers.ReLU(name="relu")(keras.layers.Concatenate()([a, b])))
    x = {"a": rng.normal(size=(4, 2)), "b": rng.normal(size=(4, 3))}
    expected = np.concatenate([x["a"], x["b"]], 1) > 0
    for model in [keras.Model([a, b], outputs), keras.Model({"a": a, "b": b}, outputs)]:
        for inputs in [x, [x["a"], x["b"]]]:
            np.testing.assert_array_equal(region_codes(model, inputs).unpack("relu"), expected)
        with pytest.raises(ValueError, match=r"Expected a dict with the inputs \['a', 'b'\].*Received: \['a'\]"):
            region_codes(model, {"a": x["a"]})
        with pytest.raises(ValueError, match=r"Expected 2 input.*Received: 1"):
            region_codes(model, x["a"])
        with pytest.raises(ValueError, match=r"as many for every input. Received: \[4, 3\]"):
            region_codes(model, {"a": x["a"], "b": x["b"][:3]})


def test_region_codes_do_not_change_the_model(keras, rng):
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(3, "relu"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before, config, calls = model.get_weights(), model.get_config(), len(norm._inbound_nodes)
    region_codes(model, rng.normal(size=(6, 4)))
    assert [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)] == [True] * 8
    assert model.get_config() == config
    assert len(norm._inbound_nodes) == calls
    assert model.optimizer.iterations.numpy() == 0


def test_inputs_that_do_not_fit_are_rejected(keras):
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.ReLU(), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"Expected inputs of shape \(samples, 4, 3\).*Received: \(2, 3, 4\)"):
        region_codes(model, np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"Received: \(4, 3\)"):
        region_codes(model, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"Expected at least one sample.*Received: \[0\]"):
        region_codes(model, np.zeros((0, 4, 3)))
    with pytest.raises(ValueError, match="Expected `batch_size` to be an integer of at least 1. Received: 0"):
        region_codes(model, np.zeros((1, 4, 3)), batch_size=0)


def test_models_without_a_code_are_rejected(keras):
    with pytest.raises(ValueError, match="at least one piecewise-affine unit"):
        codes_of(keras, keras.layers.Dense(3))
    with pytest.raises(ValueError, match="model that is built"):
        region_codes(keras.Sequential([keras.layers.Dense(3, "relu")]), Z)
    with pytest.raises(TypeError, match="Expected a Keras 3 or tf_keras model. Received: str"):
        region_codes("model", Z)


@pytest.fixture
def codes(rng):
    arrays = {
        "file": rng.integers(0, 255, (3, 2), "uint8") & np.array([255, 31], "uint8"),
        "inner/relu#2": rng.integers(0, 255, (3, 1), "uint8"),
    }
    return Codes(arrays, {"file": 13, "inner/relu#2": 8})


def test_codes_are_saved_and_loaded(codes, tmp_path):
    path = tmp_path / "codes"
    codes.save(path)
    assert Codes.load(path) == codes
    assert Codes.load(path).layers == codes.layers
    assert [file.name for file in tmp_path.iterdir()] == ["codes"]


def test_failed_save_keeps_the_old_file(codes, tmp_path, monkeypatch):
    codes.save(tmp_path / "codes.npz")
    monkeypatch.setattr(np, "savez", lambda file, **arrays: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        codes.save(tmp_path / "codes.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["codes.npz"]
    assert Codes.load(tmp_path / "codes.npz") == codes


def test_damaged_file_is_rejected(codes, tmp_path):
    path = tmp_path / "codes.npz"
    codes.save(path)
    whole = path.read_bytes()
    for damaged in [b"", b"no zip at all", whole[:-40], whole[:150] + b"\xff" * 40 + whole[190:]]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="codes.npz"):
            Codes.load(path)
    arrays = codes.to_arrays()
    for other in (
        {"something": np.zeros(3)},
        arrays | {"layers": np.array(["file", "file"]), "1": arrays["0"], "bits": np.array([13, 13])},
        arrays | {"layers": np.array([0, 1])},
        arrays | {"layers": arrays["layers"][:1]},
        arrays | {"layers": np.array("file"), "bits": np.array(13)},
        arrays | {"bits": np.array([13.0, np.nan])},
        arrays | {"bits": np.array([13, -8])},
        arrays | {"bits": np.array([13, 2**62])},
        arrays | {"1": arrays["1"].astype("uint16")},
    ):
        write_npz(path, other)
        with pytest.raises(ValueError, match="codes.npz"):
            Codes.load(path)
    np.savez(path, **arrays | {"layers": np.array(["file", None])})  # can only be read with pickle
    with pytest.raises(ValueError, match="codes.npz.*allow_pickle"):
        Codes.load(path)
    with pytest.raises(FileNotFoundError):
        Codes.load(tmp_path / "nowhere.npz")


def test_codes_are_equal_if_all_bits_are(codes):
    assert codes == Codes({name: codes[name].copy() for name in codes.layers}, codes.bits)
    flipped = {**{name: codes[name] for name in codes.layers}, "inner/relu#2": codes["inner/relu#2"] ^ 1}
    assert codes != Codes(flipped, codes.bits)
    assert codes != Codes({name: codes[name] for name in codes.layers}, {**codes.bits, "file": 14})
    assert codes != "codes"


def test_codes_reject_arrays_that_do_not_match_their_bits():
    with pytest.raises(ValueError, match=r"uint8 codes of shape \(2, 2\).*Received: uint8 of shape \(2, 1\)"):
        Codes({"relu": np.zeros((2, 1), "uint8")}, {"relu": 9})
    with pytest.raises(ValueError, match="Received: int64 of shape"):
        Codes({"relu": np.zeros((2, 1), "int64")}, {"relu": 8})
    with pytest.raises(ValueError, match=r"`arrays` and `bits`.*\['a'\] and \['b'\]"):
        Codes({"a": np.zeros((2, 1), "uint8")}, {"b": 8})
    with pytest.raises(ValueError, match="at least one"):
        Codes({}, {})
    with pytest.raises(TypeError, match="codes.layers"):
        list(Codes({"a": np.zeros((2, 1), "uint8")}, {"a": 8}))
