"""Which units a model has, what ties them and what protects them."""

import numpy as np
import pytest
from helpers.zoo import (
    chain,
    difference,
    flattened,
    grouped,
    inputs_for,
    inverted,
    preactivated,
    residual,
    scramble,
    shared_and_nested,
)

import tfspline
from tfspline.graph import reader as graph
from tfspline.graph.layer_specs import registry


def groups_of(model, **options):
    return {group.name: group for group in graph.read(model, **options).groups}


def test_residual_stream_is_one_group(keras):
    groups = groups_of(residual(keras))
    assert [len(group.units) for group in groups.values()] == [8, 6, 12, 12, 3]
    assert groups["stem"].layers[0] == "stem" and len(groups["stem"].layers) == 2
    assert groups["head"].protected == "it feeds an output of the model"
    assert groups["inner"].protected is None and groups["stem"].protected is None


def test_gate_is_tied_to_the_gated_channels(keras):
    groups = groups_of(inverted(keras))
    # 8 channels, each two after the depthwise multiplier, each two gated by the excite convolution
    assert groups["expand"].layers == ("expand", "excite") and len(groups["expand"].units) == 8


def test_groups_of_a_convolution_lose_the_same_positions(keras):
    groups = groups_of(grouped(keras))
    assert len(groups["wide"].units) == 4  # 3 groups of 4 channels
    assert len(groups["shuffled"].units) == 4


def test_layers_of_a_nested_model_are_named_by_their_path(keras):
    groups = groups_of(shared_and_nested(keras))
    assert len(groups["inner/hidden"].units) == 12
    assert "inner/hidden" in tfspline.flops(shared_and_nested(keras)).layers


def test_batch_norm_is_folded_where_it_directly_follows(keras):
    layers = keras.layers
    inputs = keras.Input((4,))
    a, b, c = (layers.Dense(4, name=name) for name in "abc")
    x = layers.BatchNormalization(name="after_a")(a(inputs))
    y = layers.BatchNormalization(name="after_relu")(layers.ReLU()(b(x)))
    z = c(y)
    model = keras.Model(inputs, [layers.Dense(2)(layers.BatchNormalization(name="one_of_two")(z)), layers.Dense(2)(z)])
    assert graph.read(model).folded == {"a": ("after_a",)}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", ["custom", "softmax", "layer_norm", "lambda", "subclass", "constant"])
def test_unknown_layer_protects_with_a_reason(keras, rng, what):
    layers = keras.layers

    class Halves(layers.Layer):
        def call(self, x, training=None):
            return x - x[..., ::-1] if training else x + x[..., ::-1]  # so that it is not unrolled

    def reverse(x, training=None):
        return x[:, ::-1] if training else x[:, ::-1]  # as above

    class OddDense(layers.Dense):
        def call(self, x):
            return super().call(x)[..., ::-1]

    def between(x):
        return {
            "custom": lambda: Halves(name="culprit")(x),
            "softmax": lambda: layers.Softmax(name="culprit")(x),
            "layer_norm": lambda: layers.LayerNormalization(name="culprit")(x),
            "lambda": lambda: layers.Lambda(reverse, name="culprit")(x),
            "subclass": lambda: OddDense(8, name="culprit")(x),
            "constant": lambda: x + np.ones(8, "float32"),
        }[what]()

    inputs = keras.Input((4,))
    x = layers.Dense(8, "relu", name="before")(inputs)
    x = layers.Dense(8, "relu", name="after")(between(x))
    model = scramble(keras.Model(inputs, layers.Dense(2)(x)), rng)
    plan = tfspline.plan(model, 0.5)
    groups = {group.name: group for group in plan.graph.groups}
    assert groups["after"].protected is None
    if what == "constant":  # it is cut with the channels
        assert groups["before"].protected is None
    else:
        assert "culprit" in groups["before"].protected in str(plan)
    x = inputs_for(model, rng)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5


def test_protect_takes_paths_and_predicates(keras):
    model = chain(keras)
    assert groups_of(model, protect=("a",))["a"].protected == "it is listed in `protect`"
    by_width = groups_of(model, protect=(lambda layer: layer.units == 8,))
    assert by_width["b"].protected and not by_width["a"].protected
    with pytest.raises(ValueError, match=r"Expected names of layers in `protect`.*Received: \['nowhere'\]"):
        graph.read(model, protect=("nowhere",))


def test_registered_rule_prunes_through_a_custom_layer(keras, rng, monkeypatch):
    monkeypatch.setattr(registry, "_custom", {})

    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

        def call(self, x):
            return x * self.scale

    def rule(call):
        call.per_channel("scale", 0, call.channels())
        return call.inputs[0]

    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu", name="a"), Scale(), layers.Dense(2)])
    assert "not a layer that tfspline knows" in groups_of(model)["a"].protected
    tfspline.register_channel_rule(Scale, rule)
    plan = tfspline.plan(scramble(model, rng), 0.5)
    assert plan.apply(model).layers[-2].scale.shape == (4,)
    x = inputs_for(model, rng)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5
    with pytest.raises(TypeError, match="Expected a layer class and a callable"):
        tfspline.register_channel_rule("Scale", rule)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("build", ["subclassed", "not built", "no model"])
def test_model_without_known_graph_is_refused(keras, build):
    class Own(keras.Model):
        def call(self, x):
            return x

    model = {
        "subclassed": lambda: Own(),
        "not built": lambda: keras.Sequential([keras.layers.Dense(3)]),
        "no model": lambda: keras.layers.Dense(3),
    }[build]()
    message = {
        "subclassed": "input shape of the subclassed model Own",
        "not built": "is not known yet",
        "no model": "Received: Dense",
    }
    with pytest.raises((TypeError, ValueError), match=message[build]):
        tfspline.plan(model, 0.5)


def check(model, rng, tolerance=1e-5, **options):
    """Prunes random half of the units, checks that masked equals slimmed, and returns the slim model."""
    plan = tfspline.plan(model, 0.5, criterion="random", **options)
    slim, masked = plan.apply(model), plan.mask(model)
    x = inputs_for(model, rng)
    assert difference(masked(x), slim(x)) <= tolerance
    assert slim.count_params() == plan.cost()["params"][1] < plan.cost()["params"][0]
    return slim


@pytest.mark.sweep(2)
@pytest.mark.parametrize("how", ["functional", pytest.param("sequential", marks=pytest.mark.slow)])
def test_nested_application(keras, rng, how):
    layers = keras.layers
    base = keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3), include_top=False, alpha=0.35)
    base.trainable = False
    head = [layers.GlobalAveragePooling2D(), layers.Dense(16, "relu", name="hidden"), layers.Dense(3)]
    if how == "sequential":
        model = keras.Sequential([keras.Input((96, 96, 3)), base, *head])
    else:
        x = inputs = keras.Input((96, 96, 3))
        for layer in (layers.Rescaling(1 / 127.5, -1), base, *head):
            x = layer(x)
        model = keras.Model(inputs, x)
    slim = check(scramble(model, rng), rng)
    inner = slim.get_layer(base.name)
    assert type(slim) is type(model)
    assert inner.get_layer("expanded_conv_project").filters == 4 and slim.get_layer("hidden").units == 8
    assert not inner.trainable and len(slim.trainable_weights) == 4


@pytest.mark.sweep(2)
@pytest.mark.parametrize("part", ["a layer", "BatchNormalization", "a nested layer", "all"])
def test_frozen_layers_stay_frozen(keras, rng, part):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(6, name="deep"), layers.BatchNormalization()], name="in")
    x = inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="bn")(layers.Dense(8, name="first")(x))
    model = scramble(keras.Model(inputs, layers.Dense(2)(inner(x))), rng)
    frozen = {"a layer": model.get_layer("first"), "BatchNormalization": model.get_layer("bn")}
    frozen |= {"a nested layer": inner.get_layer("deep"), "all": model}
    frozen[part].trainable = False
    slim = check(model, rng)

    def trainable(one):
        return [(layer.name, layer.trainable) for layer in (*one.layers, *one.get_layer("in").layers)]

    assert trainable(slim) == trainable(model)
    assert len(slim.trainable_weights) == len(model.trainable_weights)


def test_several_inputs_and_outputs_by_name(keras, rng):
    layers = keras.layers
    inputs = {"right": keras.Input((6,), name="right"), "left": keras.Input((4,), name="left")}
    a, b = (layers.Dense(8, "relu", name=f"from_{side}")(inputs[side]) for side in ("left", "right"))
    inner_inputs = {"q": keras.Input((8,), name="q"), "p": keras.Input((8,), name="p")}
    inner = layers.Dense(6, "tanh", name="mixed")(layers.Concatenate()([inner_inputs["p"], inner_inputs["q"]]))
    inner = keras.Model(inner_inputs, {"mixed": inner, "sum": inner_inputs["p"] + inner_inputs["q"]}, name="inner")
    y = inner({"p": a, "q": b})
    model = keras.Model(inputs, {"z": layers.Dense(2)(y["sum"]), "y": layers.Dense(3)(y["mixed"]), "a": a * 2})
    slim = check(scramble(model, rng), rng)
    assert slim.get_layer("from_left").units == slim.get_layer("from_right").units == 8  # tied, and one is an output
    assert slim.get_layer("inner").get_layer("mixed").units == 3


def test_feature_map_that_is_an_output_is_protected(keras, rng):
    layers = keras.layers
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="inner")(x)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="last")(x)))
    slim = check(scramble(keras.Model(inputs, x), rng), rng)
    assert slim.get_layer("inner").filters == 4 and slim.get_layer("last").filters == 8


def test_layer_called_on_tensors_of_different_shapes(keras, rng):
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    shared = layers.Conv2D(6, 3, padding="same", activation="relu", name="shared")
    stem = layers.Conv2D(5, 1, name="stem")(inputs)
    a, b = shared(stem), shared(layers.MaxPooling2D(2)(stem))
    x = layers.Concatenate()([layers.Flatten()(a), layers.GlobalAveragePooling2D()(b)])
    model = scramble(keras.Model(inputs, layers.Dense(2)(x)), rng)
    assert tfspline.flops(model).layers["shared"][0] == (64 + 16) * 9 * 5 * 6
    assert check(model, rng).get_layer("shared").filters == 3


# The CPU kernels of TensorFlow run few operations on channels_first; what they cannot run is compared by its shapes.
def channels_first(keras, order):
    """A network in either order of axes: all kinds of convolutions, batch norm, pooling, a gate and flatten."""
    layers = keras.layers
    options, axis = {"data_format": order}, 1 if order == "channels_first" else -1
    inputs = keras.Input((3, 8, 10) if axis == 1 else (8, 10, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem", **options)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(axis=axis, name="bn")(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise", **options)(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True, **options)(x)
    x = layers.Multiply()([x, layers.Conv2D(16, 1, activation="sigmoid", name="gate", **options)(gate)])
    y = layers.MaxPooling2D(2, **options)(layers.SeparableConv2D(6, 3, padding="same", name="separable", **options)(x))
    z = layers.Conv2D(6, 3, strides=2, padding="same", groups=2, name="grouped", **options)(x)
    x = layers.ZeroPadding2D(1, **options)(layers.Concatenate(axis=axis, name="concatenate")([y, z]))
    x = layers.Conv2DTranspose(5, 3, name="up", **options)(layers.PReLU(shared_axes=[2, 3] if axis == 1 else [1, 2])(x))
    x = layers.Dense(6, "relu", name="fc")(layers.Flatten(**options)(layers.Cropping2D(2, **options)(x)))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def test_channels_first_is_cut_like_channels_last(keras, rng):
    first, last = (scramble(channels_first(keras, order), rng) for order in ("channels_first", "channels_last"))
    for a, b in zip(first.layers, last.layers, strict=True):
        if "p_re_lu" not in a.name:
            a.set_weights(b.get_weights())
    plans = [tfspline.plan(model, 0.5, criterion="l1") for model in (first, last)]
    assert plans[0].rows() == plans[1].rows()
    # The groups tie the channels of the stem.
    after = {"stem": 2, "separable": 3, "grouped": 2, "up": 3, "fc": 3, "head": 2}
    assert {row["layer"]: row["units_after"] for row in plans[0].rows()} == after
    cut = [plan.apply(model) for plan, model in zip(plans, (first, last), strict=True)]
    assert cut[0].get_layer("stem").data_format == "channels_first"
    for a, b in zip(cut[0].layers, cut[1].layers, strict=True):
        assert [w.shape for w in a.get_weights()] == [w.shape for w in b.get_weights()] or "p_re_lu" in a.name
        if "p_re_lu" not in a.name:
            assert all(np.array_equal(v, w) for v, w in zip(a.get_weights(), b.get_weights(), strict=True))


@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_channels_first_layers_that_run_on_a_cpu(keras, rng, order):
    layers = keras.layers
    options, axis = {"data_format": order}, 1 if order == "channels_first" else -1
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.Permute((3, 1, 2))(x) if axis == 1 else x
    x = layers.BatchNormalization(axis=axis)(layers.ZeroPadding2D(1, **options)(x))
    x = layers.PReLU(shared_axes=[2, 3] if axis == 1 else [1, 2])(x)
    x = layers.Concatenate()([layers.Flatten(**options)(x), layers.GlobalAveragePooling2D(**options)(x)])
    model = scramble(keras.Model(inputs, layers.Dense(2)(x)), rng)
    assert check(model, rng).get_layer("conv").filters == 4


@pytest.mark.sweep(4)
@pytest.mark.parametrize("family", [residual, preactivated, inverted, flattened], ids=lambda family: family.__name__)
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float16", "float64"])
def test_other_precisions(keras, rng, family, dtype):
    keras.mixed_precision.set_global_policy(dtype)
    try:
        model = scramble(family(keras), rng)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    tolerance = {"float16": 0.01, "bfloat16": 0.08, "float64": 1e-5}[dtype.removeprefix("mixed_")]
    slim = check(model, rng, tolerance)
    assert [weight.dtype for weight in slim.weights] == [weight.dtype for weight in model.weights]
    assert [layer.compute_dtype for layer in slim.layers[1:]] == [layer.compute_dtype for layer in model.layers[1:]]
    for criterion in ("spline", "l1"):
        tfspline.prune(model, 0.5, criterion=criterion)
