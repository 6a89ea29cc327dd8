"""Which units a model has, what ties them and what protects them."""

import numpy as np
import pytest
from zoo import chain, difference, grouped, inputs_for, inverted, residual, scramble, shared_and_nested

import tfspline
from tfspline import graph, rules


def groups_of(model, **options):
    return {group.name: group for group in graph.read(model, **options).groups}


def test_a_residual_stream_is_one_group(keras):
    groups = groups_of(residual(keras))
    assert [len(group.units) for group in groups.values()] == [8, 6, 12, 12, 3]
    assert groups["stem"].layers[0] == "stem" and len(groups["stem"].layers) == 2
    assert groups["head"].protected == "it feeds an output of the model"
    assert groups["inner"].protected is None and groups["stem"].protected is None


def test_a_gate_is_tied_to_what_it_gates(keras):
    groups = groups_of(inverted(keras))
    # 8 channels, each two after the depthwise multiplier, each two gated by the excite convolution
    assert groups["expand"].layers == ("expand", "excite") and len(groups["expand"].units) == 8


def test_groups_of_a_convolution_lose_the_same_columns(keras):
    groups = groups_of(grouped(keras))
    assert len(groups["wide"].units) == 4  # 3 groups of 4 channels
    assert len(groups["shuffled"].units) == 4


def test_layers_of_a_nested_model_go_by_their_path(keras):
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
    assert graph.read(model).folded == {"a": "after_a"}


@pytest.mark.parametrize("what", ["custom", "softmax", "layer_norm", "lambda", "recurrent", "subclass", "constant"])
def test_what_is_not_known_protects_and_says_so(keras, rng, what):
    layers = keras.layers

    class Halves(layers.Layer):
        def call(self, x):
            return x - x[..., ::-1]

    class OddDense(layers.Dense):
        def call(self, x):
            return super().call(x)[..., ::-1]

    def between(x):
        return {
            "custom": lambda: Halves(name="culprit")(x),
            "softmax": lambda: layers.Softmax(name="culprit")(x),
            "layer_norm": lambda: layers.LayerNormalization(name="culprit")(x),
            "lambda": lambda: layers.Lambda(lambda y: y[:, ::-1], name="culprit")(x),
            "recurrent": lambda: layers.LSTM(8, name="culprit")(layers.RepeatVector(2)(x)),
            "subclass": lambda: OddDense(8, name="culprit")(x),
            "constant": lambda: x + np.ones(8, "float32"),
        }[what]()

    inputs = keras.Input((4,))
    x = layers.Dense(8, "relu", name="before")(inputs)
    x = layers.Dense(8, "relu", name="after")(between(x))
    model = scramble(keras.Model(inputs, layers.Dense(2)(x)), rng)
    groups = groups_of(model)
    assert "culprit" in groups["before"].protected or what == "constant"
    assert groups["before"].protected and groups["after"].protected is None
    plan = tfspline.plan(model, 0.5)
    assert groups["before"].protected in str(plan)
    x = inputs_for(model, rng)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5


def test_protect_names_layers_and_takes_predicates(keras):
    model = chain(keras)
    assert groups_of(model, protect=("a",))["a"].protected == "it was asked for in `protect`"
    by_width = groups_of(model, protect=(lambda layer: layer.units == 8,))
    assert by_width["b"].protected and not by_width["a"].protected
    with pytest.raises(ValueError, match=r"Expected names of layers in `protect`.*Received: \['nowhere'\]"):
        graph.read(model, protect=("nowhere",))


def test_a_registered_rule_lets_units_be_pruned_through_a_custom_layer(keras, rng, monkeypatch):
    monkeypatch.setattr(rules, "_custom", {})

    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

        def call(self, x):
            return x * self.scale

    def rule(call):
        call.carry("scale", 0, call.channels())
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


@pytest.mark.parametrize("build", ["subclassed", "not built", "no model"])
def test_what_has_no_graph_is_refused(keras, build):
    class Own(keras.Model):
        def call(self, x):
            return x

    model = {
        "subclassed": lambda: Own(),
        "not built": lambda: keras.Sequential([keras.layers.Dense(3)]),
        "no model": lambda: keras.layers.Dense(3),
    }[build]()
    message = {
        "subclassed": "subclassed model Own",
        "not built": "is not known yet",
        "no model": "Received: Dense",
    }
    with pytest.raises((TypeError, ValueError), match=message[build]):
        tfspline.plan(model, 0.5)
