"""Channel rules of custom layers are checked while they run, and the error names the layer."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference, inputs_for, scramble

import tfspline


def model_with(keras, rule, outputs=1):
    """Dense -> a custom layer with a matrix and a vector as weights and the given rule -> Dense."""

    class Mix(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")
            self.table = self.add_weight(name="table", shape=(shape[-1], 3), initializer="ones")

        def call(self, x):
            y = x * self.scale + 0 * self.table[:, 0]
            return y if outputs == 1 else (y, x)

    tfspline.register_channel_rule(Mix, rule)
    inputs = keras.Input((4,))
    x = Mix(name="mix")(keras.layers.Dense(8, "relu", name="hidden")(inputs))
    x = x if outputs == 1 else keras.layers.Add()(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def right(call):
    ids = call.channels()
    call.per_channel("scale", 0, ids)
    call.per_channel("table", 0, ids)
    return call.inputs[0]


def then(declare):
    """The right rule with one more declaration."""
    return lambda call: declare(call, call.channels()) and None or right(call)


WRONG = {
    "produces a missing weight": then(lambda call, ids: call.produce("kernel", 1)),
    "reads a missing weight": then(lambda call, ids: call.consume("kernel", 0, ids)),
    "declares a missing weight": then(lambda call, ids: call.per_channel("scales", 0, ids)),
    "counts a missing weight": then(lambda call, ids: call.macs("zz", 1)),
    "positions that are no number": then(lambda call, ids: call.macs("scale", "2")),
    "axis 1 of a vector": then(lambda call, ids: call.per_channel("scale", 1, ids)),
    "too few ids": then(lambda call, ids: call.per_channel("scale", 0, ids[:3])),
    "ids of another rank": then(lambda call, ids: call.per_channel("scale", 0, ids[None])),
    "no ids": then(lambda call, ids: call.per_channel("scale", 0, None)),
    "float ids": then(lambda call, ids: call.per_channel("scale", 0, ids.astype(float))),
    "ids out of range": then(lambda call, ids: call.per_channel("scale", 0, ids + 10**6)),
    "negative ids": then(lambda call, ids: call.protect(ids - 10**6, "negative")),
    "ties to nothing": then(lambda call, ids: call.tie(ids, None)),
    "ties of two shapes": then(lambda call, ids: call.tie(ids, ids[:1])),
    "places None": then(lambda call, ids: call.place(None)),
    "returns nothing": lambda call: None,
    "returns two outputs": lambda call: [*[right(call)] * 2],
    "returns floats": lambda call: right(call) * 1.0,
    "returns text": lambda call: "ids",
    "returns ids of another rank": lambda call: right(call)[None],
    "returns too few ids": lambda call: right(call)[:3],
    "fails": lambda call: call.inputs[7],
    "has a typing error": lambda call: call.chanels(),
    "forgets a weight": lambda call: call.per_channel("scale", 0, call.channels()) or call.inputs[0],
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("rule", WRONG.values(), ids=WRONG)
def test_wrong_rule_is_refused_when_the_plan_is_made(keras, rule):
    with pytest.raises(ValueError, match=r"mix.*\(Mix\)"):
        tfspline.plan(model_with(keras, rule), 0.5)


def test_wrong_rule_of_a_layer_with_an_activation_is_refused(keras):
    model = model_with(keras, WRONG["returns too few ids"])
    model.get_layer("mix").activation = keras.activations.relu
    with pytest.raises(ValueError, match=r"mix.*\(Mix\) must return ids that fit"):
        tfspline.plan(model, 0.5)


def test_right_rule_prunes(keras):
    assert tfspline.prune(model_with(keras, right), 0.5).get_layer("mix").scale.shape == (4,)


class Own:
    """What a layer of a user has: a matrix as weight, its size in the config, and a call that is not unrolled."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, shape):
        self.matrix = self.add_weight(name="matrix", shape=(shape[-1], self.units))

    def call(self, x, training=None):
        return tf.matmul(2.0 * x if training else x, tf.convert_to_tensor(self.matrix))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return super().get_config() | {"units": self.units}


def rule_of_own(call):
    call.consume("matrix", 0, call.channels())
    outputs = call.produce("matrix", 1)
    call.resize("units", lambda kept: int(kept[outputs].sum()))
    return call.place(outputs)


def distributed(keras, rule, times):
    """A layer with a channel rule in TimeDistributed, as often as `times`."""
    own = type("Own", (Own, keras.layers.Layer), {})
    tfspline.register_channel_rule(own, rule)
    layer = own(6, name="own")
    for _ in range(times):
        layer = keras.layers.TimeDistributed(layer, name="wrapped")
    inputs = keras.Input((3, 2, 4))
    return keras.Model(inputs, keras.layers.Dense(2)(layer(keras.layers.Dense(8, "relu", name="first")(inputs))))


@pytest.mark.parametrize("times", [1, 2])
def test_a_rule_holds_in_time_distributed(keras, rng, times):
    model = scramble(distributed(keras, rule_of_own, times), rng)
    plan, x = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    slim = plan.apply(model)
    assert [row["units_after"] for row in plan.rows()] == [4, 3, 2]
    assert difference(plan.mask(model)(x), slim(x)) <= 1e-5
    assert slim.get_layer("wrapped").get_weights()[0].shape == (4, 3)


@pytest.mark.parametrize("rule", [lambda call: None, lambda call: call.produce("kernel", 1)])
def test_the_error_of_a_wrong_rule_in_time_distributed_names_its_layer(keras, rule):
    with pytest.raises(ValueError, match=r"The channel rule of 'wrapped' \(Own\) must"):
        tfspline.plan(distributed(keras, rule, 1), 0.5)


def test_rule_gives_ids_for_each_output(keras):
    with pytest.raises(ValueError, match=r"\(Mix\) must return .* each output: 2. Received: 1"):
        tfspline.plan(model_with(keras, right, outputs=2), 0.5)
    plan = tfspline.plan(model_with(keras, lambda call: [right(call)] * 2, outputs=2), 0.5)
    assert plan.cost()["units"] == (10, 6)


def test_size_in_the_config_that_no_rule_resizes_is_refused(keras):
    class Square(keras.layers.Layer):
        def __init__(self, width, **options):
            super().__init__(**options)
            self.width = width

        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.width))

        def call(self, x):
            return keras.ops.matmul(x, self.kernel) if hasattr(keras, "ops") else x @ self.kernel

        def get_config(self):
            return super().get_config() | {"width": self.width}

    def rule(call, resize):
        call.consume("kernel", 0, call.channels())
        ids = call.produce("kernel", 1)
        if resize:
            call.resize("width", lambda kept: int(kept[ids].sum()))
        return call.place(ids)

    inputs = keras.Input((4,))
    x = Square(6, name="square")(keras.layers.Dense(8, name="hidden")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    tfspline.register_channel_rule(Square, lambda call: rule(call, False))
    with pytest.raises(ValueError, match=r"'square' \(Square\).*call.resize"):
        tfspline.plan(model, 0.5)
    tfspline.register_channel_rule(Square, lambda call: rule(call, True))
    assert tfspline.prune(model, 0.5).get_layer("square").width == 3


@pytest.mark.parametrize("kind", [int, np.ndarray, "Dense", None])
def test_only_classes_of_layers_have_rules(kind):
    with pytest.raises(TypeError, match="layer class"):
        tfspline.register_channel_rule(kind, right)
