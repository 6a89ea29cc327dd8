"""The bits of each activation, maximum and pooling layer, compared with bits computed by hand."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from helpers.codes import AT_SIX, POSITIVE, Z, codes_of, dense

from tfspline import _keras
from tfspline.spline.affine import affine_map
from tfspline.spline.calls import calls_with_activations
from tfspline.spline.codes import region_codes
from tfspline.spline.comparison import partition_report


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("ReLU", {}, POSITIVE),
        ("ReLU", {"negative_slope": 0.1}, POSITIVE),
        ("ReLU", {"threshold": 0.5}, [0, 0, 0, 0, 1, 1]),
        ("ReLU", {"max_value": 6.0}, POSITIVE + AT_SIX),
        ("LeakyReLU", {}, POSITIVE),
        ("PReLU", {"alpha_initializer": "zeros"}, POSITIVE),
        ("PReLU", {"alpha_initializer": {"class_name": "Constant", "config": {"value": -1.0}}}, POSITIVE),
        ("Activation", {"activation": "relu"}, POSITIVE),
        ("Activation", {"activation": tf.nn.leaky_relu}, POSITIVE),
        ("Activation", {"activation": tf.nn.relu6}, POSITIVE + AT_SIX),
        ("Activation", {"activation": "hard_sigmoid"}, [0, 1, 1, 1, 1, 1] + AT_SIX),
        ("Activation", {"activation": tf.abs}, POSITIVE),
        ("Activation", {"activation": "linear"}, None),
    ],
)
def test_bits_of_activation_layers(keras, name, arguments, expected):
    layer = getattr(keras.layers, name)(name="unit", **arguments)
    codes = codes_of(keras, layer, keras.layers.ReLU(name="other"))
    assert codes.layers == (["unit", "other"] if expected else ["other"])
    if expected:
        assert codes.unpack("unit").tolist() == [expected]


def test_bits_of_fused_activations(keras):
    for activation, expected in [
        ("relu", POSITIVE),
        (tf.nn.leaky_relu, POSITIVE),
        (tf.nn.relu6, POSITIVE + AT_SIX),
        (keras.layers.LeakyReLU(), POSITIVE),
        (keras.layers.Activation("relu"), POSITIVE),
        (keras.layers.ReLU(6.0), POSITIVE + AT_SIX),
    ]:
        assert codes_of(keras, dense(keras, activation)).unpack("unit").tolist() == [expected]


def test_hard_sigmoid_has_two_bits_per_unit(keras):
    codes = codes_of(keras, dense(keras, "hard_sigmoid"), x=np.array([[-9, -1, 0, 1, 9, 8]], "float32"))
    assert codes.unpack("unit").tolist() == [[0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]]


def test_activations_with_three_pieces_have_two_bits_per_unit():
    import keras

    below, above = [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]
    for name, lower, upper in [
        ("hard_tanh", [0, 0, 1, 1, 1, 1], above),
        ("hard_silu", below, above),
        ("soft_shrink", [0, 0, 1, 1, 1, 1], above),
        ("hard_shrink", [0, 0, 1, 1, 1, 1], above),
        ("sparse_sigmoid", [0, 0, 1, 1, 1, 1], above),
    ]:
        for layer in [keras.layers.Activation(name, name="unit"), dense(keras, name)]:
            x = np.array([[-7, -1, 0.125, 0.25, 6, 6.5]], "float32")
            assert codes_of(keras, layer, x=x).unpack("unit").tolist() == [lower + upper], name


def left_out(caplog, codes, named, kept):
    """Checks that codes have the `kept` layers only, and that a warning names what is left out."""
    assert codes().layers == kept
    (warning,) = [record.getMessage() for record in caplog.records if "leave out" in record.getMessage()]
    assert named in warning and "approximate=True takes the sign" in warning
    caplog.clear()


def test_fused_activation_whose_output_is_ambiguous(keras):
    """The layer is called without its activation."""
    assert codes_of(keras, dense(keras, tf.abs)).unpack("unit").tolist() == [POSITIVE]
    prelu = keras.layers.PReLU(alpha_initializer="ones")
    layer = dense(keras, prelu)
    assert codes_of(keras, layer).unpack("unit").tolist() == [POSITIVE]
    prelu.alpha.assign(-prelu.alpha)
    assert codes_of(keras, layer).unpack("unit").tolist() == [POSITIVE] and layer.activation is prelu


def test_bits_of_maximum_and_minimum_are_the_index_of_the_chosen_tensor(keras):
    a, b, c = (keras.Input((2,), name=name) for name in "abc")
    x = [np.array([row], "float32") for row in ([1, 5], [2, 3], [0, 9])]
    maximum = tf.maximum if keras.__name__ == "tf_keras" else keras.ops.maximum
    for inputs, output, expected in [
        (
            [a, b, c],
            keras.layers.Maximum(name="unit")([a, b, c]),
            [1, 0, 0, 1],
        ),  # lower bits of both units, then upper bits
        ([a, b, c], keras.layers.Minimum(name="unit")([a, b, c]), [0, 1, 1, 0]),
        ([a, b], keras.layers.Maximum(name="unit")([a, b]), [1, 0]),
        ([a, b], maximum(a, b), [1, 0]),
        ([a], maximum(a, 2.0), [1, 0]),
    ]:
        codes = region_codes(keras.Model(inputs, keras.layers.Dense(1)(output)), x[: len(inputs)])
        assert [codes.unpack(name).tolist() for name in codes.layers] == [[expected]]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_bits_of_max_pooling_are_the_index_of_the_maximum(keras, rng, dimensions, padding):
    x = rng.normal(size=(2, *[5, 4, 3][:dimensions], 2)).astype("float32")
    layer = getattr(keras.layers, f"MaxPooling{dimensions}D")(2, padding=padding, name="unit")
    stack = [layer, keras.layers.Flatten()]
    with pytest.raises(ValueError, match="at least one piecewise-affine unit"):
        codes_of(keras, *stack, x=x)
    bits = codes_of(keras, *stack, x=x, max_pooling=True).unpack("unit")
    best = bits.reshape(2, dimensions, -1).transpose(0, 2, 1) @ (1 << np.arange(dimensions))
    x = np.pad(x, [(0, 0), *([(0, n % 2 * (padding == "same")) for n in x.shape[1:-1]]), (0, 0)], constant_values=-9)
    places = itertools.product(*[range(n // 2) for n in x.shape[1:-1]], range(2))
    for place, index in enumerate(places):
        *corner, channel = index
        window = x[(slice(None), *(slice(2 * i, 2 * i + 2) for i in corner), channel)].reshape(2, -1)
        assert best[:, place].tolist() == window.argmax(axis=1).tolist()


def test_bits_of_global_max_pooling_and_of_maximum_over_an_axis(keras):
    x = np.array(
        [[[3, 1], [5, 0], [4, 9]]], "float32"
    )  # three places, two channels; the maxima are at the second and third place
    inputs = keras.Input((3, 2))
    maximum = tf.reduce_max if keras.__name__ == "tf_keras" else keras.ops.max
    for output in [keras.layers.GlobalMaxPooling1D()(inputs), maximum(inputs, axis=1), maximum(inputs, axis=-2)]:
        codes = region_codes(keras.Model(inputs, keras.layers.Dense(1)(output)), x, max_pooling=True)
        assert [codes.unpack(name).tolist() for name in codes.layers] == [[[1, 0, 0, 1]]]


def test_max_pooling_inside_time_distributed(keras, rng):
    x = rng.normal(size=(2, 3, 4, 1)).astype("float32")
    wrapped = keras.layers.TimeDistributed(keras.layers.MaxPooling1D(4), name="unit")
    bits = codes_of(keras, wrapped, keras.layers.Flatten(), x=x, max_pooling=True).unpack("unit")
    best = (bits.reshape(2, 2, 3) * [[1], [2]]).sum(axis=1)
    assert best.tolist() == x[..., 0].argmax(axis=2).tolist()


def test_bits_of_bare_ops(keras):
    if keras.__name__ == "tf_keras":
        ops = [tf.nn.relu, tf.nn.relu6, tf.nn.leaky_relu, tf.abs, lambda x: tf.clip_by_value(x, 0.0, 6.0)]
    else:
        ops = [keras.ops.relu, keras.ops.relu6, keras.ops.leaky_relu, keras.ops.abs, lambda x: keras.ops.clip(x, 0, 6)]
    for op, expected in zip(ops, [POSITIVE, POSITIVE + AT_SIX, POSITIVE, POSITIVE, POSITIVE + AT_SIX], strict=True):
        inputs = keras.Input((6,))
        codes = region_codes(keras.Model(inputs, keras.layers.Dense(1)(op(inputs) + 1.0)), Z)
        assert [codes.unpack(name).tolist() for name in codes.layers] == [[expected]]


def test_bits_of_a_bare_keras_3_relu_with_max_value():
    import keras

    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(1)(keras.activations.relu(inputs, max_value=6.0))
    codes = region_codes(keras.Model(inputs, outputs), Z)
    assert codes.unpack(codes.layers[0]).tolist() == [POSITIVE + AT_SIX]


def test_activation_inside_time_distributed_has_bits(keras, rng):
    x = rng.normal(size=(3, 2, 6)).astype("float32")
    wrapped = keras.layers.TimeDistributed(dense(keras, "relu"), name="unit")
    codes = codes_of(keras, wrapped, keras.layers.Flatten(), x=x)
    np.testing.assert_array_equal(codes.unpack("unit"), x.reshape(3, -1) > 0)


def test_smooth_activation_is_left_out_by_name(keras, caplog):
    for make in [
        lambda: dense(keras, "gelu"),
        lambda: keras.layers.Activation("tanh", name="unit"),
        lambda: keras.layers.ELU(name="unit"),
        lambda: keras.layers.Softmax(name="unit"),
        lambda: keras.layers.Dense(6, lambda z: z, name="unit"),
    ]:
        with pytest.raises(ValueError, match="Received: layer 'unit' with activation"):
            codes_of(keras, make())
        relu = keras.layers.ReLU(name="relu")
        left_out(caplog, lambda r=relu, m=make: codes_of(keras, r, m()), "layer 'unit' with activation", ["relu"])


def test_smooth_gate_in_a_network_of_relus_is_left_out(keras, caplog):
    inputs = keras.Input((6,))
    gate = tf.nn.sigmoid(inputs) if keras.__name__ == "tf_keras" else keras.ops.sigmoid(inputs)
    relu = keras.layers.ReLU(name="relu")
    model = keras.Model(inputs, keras.layers.Dense(1)(relu(keras.layers.Multiply()([gate, inputs]))))
    left_out(caplog, lambda: region_codes(model, Z), "activation 'sigmoid', which is smooth", ["relu"])
    report = partition_report(model, model, np.repeat(Z, 3, 0), maps=0)
    assert [layer.name for layer in report.layers] == ["relu"]
    with pytest.raises(ValueError, match="activation 'sigmoid', which is smooth"):  # this map is not affine
        affine_map(model, Z)


def test_clip_with_bounds_that_differ_between_units_is_left_out(keras, caplog):
    inputs, low = keras.Input((6,)), np.arange(-6, 0, dtype="float32")
    clipped = tf.clip_by_value(inputs, low, 6.0) if keras.__name__ == "tf_keras" else keras.ops.clip(inputs, low, 6.0)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.ReLU(name="relu")(clipped)))
    left_out(caplog, lambda: region_codes(model, Z), "bounds", ["relu"])
    assert "relu" in region_codes(model, Z, approximate=True).layers


def test_activation_inside_another_layer_is_left_out(keras, caplog):
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.relu = keras.layers.ReLU(name="hidden")

        def call(self, x):
            return self.relu(x)

    def model_with(layer, *arguments):
        inputs = keras.Input((2, 6))
        y = layer(*[inputs] * len(arguments or [1]))
        return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.ReLU(name="seen")(y)))

    attention = model_with(keras.layers.MultiHeadAttention(2, 3), "query", "value")
    left_out(caplog, lambda: region_codes(attention, np.zeros((1, 2, 6))), "inside it", ["seen"])
    assert region_codes(attention, np.zeros((1, 2, 6)), approximate=True).layers == ["seen"]
    # A composite layer is unrolled, so that its activation is seen.
    assert region_codes(model_with(Block()), np.zeros((1, 2, 6))).layers == ["block.hidden", "seen"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("activation", ["gelu", "swish", "sigmoid", "tanh", "softplus", "elu"])
def test_approximate_uses_the_sign_of_the_pre_activation(keras, activation):
    for layer in [dense(keras, activation), keras.layers.Activation(activation, name="unit")]:
        assert codes_of(keras, layer, approximate=True).unpack("unit").tolist() == [POSITIVE]


def test_smooth_activation_at_the_output_is_ignored(keras, caplog):
    inputs = keras.Input((6,))
    hidden = keras.layers.ReLU(name="relu")(inputs)
    for head in [keras.layers.Dense(2, "softmax"), keras.layers.Activation("sigmoid")]:
        assert region_codes(keras.Model(inputs, head(hidden)), Z).layers == ["relu"]
    nested = keras.Model(inputs, keras.layers.Dense(2, "softmax")(hidden), name="nested")
    outer = keras.Input((6,))
    assert region_codes(keras.Model(outer, nested(outer)), Z).layers == ["nested/relu"]
    assert "leave out" not in caplog.text
    outer = keras.Model(outer, keras.layers.Dense(1)(nested(outer)))
    left_out(caplog, lambda: region_codes(outer, Z), "'softmax'", ["nested/relu"])


def test_smooth_output_that_another_layer_reads_is_left_out(keras, caplog):
    inputs = keras.Input((6,))
    gate = keras.layers.Dense(3, "sigmoid", name="gate")(keras.layers.ReLU(name="relu")(inputs))
    model = keras.Model(inputs, [gate, keras.layers.Dense(1)(gate)])
    left_out(caplog, lambda: region_codes(model, Z), "'gate'", ["relu"])


def test_relu_at_the_output_has_bits(keras):
    inputs = keras.Input((6,))
    assert region_codes(keras.Model(inputs, keras.layers.ReLU(name="relu")(inputs)), Z).layers == ["relu"]


def test_calls_are_identified_in_a_nested_model_that_is_called_twice(keras):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "relu", name="dense")], name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inner(inputs)))
    calls, visited = list(calls_with_activations(model)), []
    _keras.run(model, [None], lambda node, args, kwargs: visited.append(node.key) or [None], nested=True)
    assert [call.node.key for call in calls] == visited and len(set(visited)) == 2
    assert [(call.path, call.last) for call in calls] == [("inner/dense", False), ("inner/dense", True)]
