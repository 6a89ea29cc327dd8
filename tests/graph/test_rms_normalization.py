"""RMSNormalization (Keras 3) and layers that compute the same: channels that they run over are removed exactly."""

import keras
import numpy as np
import pytest
from helpers import slimming
from helpers.cutting import check_cut, group_of
from helpers.zoo import difference, inputs_for, scramble

import tfspline

layers = keras.layers


def norm(**options):
    return layers.RMSNormalization(**({"epsilon": 0.1} | options))


def model_of(middle, shape=(6, 8)):
    """Dense "before" -> `middle` -> Dense "after" -> Dense."""
    inputs = keras.Input((*shape[:-1], 3))
    x = layers.Dense(5, "tanh", name="after")(middle(layers.Dense(shape[-1], name="before")(inputs)))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def residual(x):
    """A pre-norm transformer block and a last norm."""
    y = norm()(x)
    x = x + layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    x = layers.Add()([x, layers.Dense(8, name="narrow")(layers.Dense(12, "gelu", name="wide")(norm()(x)))])
    return norm(epsilon=1e-6)(x)


def concatenated(x):
    return norm()(layers.Concatenate()([x, layers.Dense(4, name="beside")(x), x]))


def shared(x):
    twice = norm()
    return layers.Concatenate()([twice(x), twice(layers.Dense(8, name="beside")(x))])


def of_each_step(x):
    return layers.TimeDistributed(norm())(x)


CASES = {
    "residual": residual,
    "concatenated": concatenated,
    "shared": shared,
    "of each step": of_each_step,
    "a grid": lambda x: layers.Reshape((6, 8))(norm()(layers.Reshape((6, 2, 4))(x))),
    "over all": lambda x: norm(axis=[1, 2])(x),
}


def random_model(case, rng):
    model = scramble(model_of(CASES[case]), rng)
    for weight in model.weights:
        if weight.path.endswith("scale"):
            weight.assign(rng.normal(size=weight.shape))
    return model


@pytest.mark.parametrize("case", CASES)
def test_masked_equals_slim(case, rng):
    model = random_model(case, rng)
    plan = tfspline.plan(model, 0.5, criterion="l1")
    before, after, protected = group_of(plan, "before")
    assert (before, after) == ((4, 2) if case == "a grid" else (8, 4)) and protected is None
    slim = check_cut(model, plan, rng)
    assert slimming.check(plan.mask(model), rng).count_params() == slim.count_params()
    check_cut(slim, tfspline.plan(slim, 0.5, criterion="l1"), rng)
    plan.masks.apply(model)
    assert difference(model(x := inputs_for(model, rng)), tfspline.slim(model)(x)) <= 1e-5


def test_numbers_by_hand():
    """x = (3, 0, 4, 0): the mean square is 25 / 4 over four channels and 25 / 2 over the two that are kept."""
    inputs = keras.Input((4,))
    x = norm(epsilon=1.0)(layers.Dense(4, use_bias=False, name="before")(inputs))
    model = keras.Model(inputs, layers.Dense(1, use_bias=False, name="after")(x))
    model.layers[1].set_weights([np.diag([1.0, 1, 1, 1])])
    model.layers[2].set_weights([np.array([1.0, 1, 2, 1])])
    model.layers[3].set_weights([np.ones((4, 1))])
    plan = tfspline.plan(model, 0.5)
    plan.keep("before", [0, 2]).remove("before", [1, 3])
    small = plan.apply(model)
    assert small.layers[2].epsilon == 2.0
    np.testing.assert_allclose(small.layers[2].scale, [2**0.5, 2 * 2**0.5], rtol=1e-6)
    x = np.array([[3.0, 0, 4, 0]])
    np.testing.assert_allclose(small(x), [[11 / (25 / 4 + 1) ** 0.5]], rtol=1e-6)
    np.testing.assert_allclose(plan.mask(model)(np.array([[3.0, 7, 4, 7]])), small(x), rtol=1e-6)


def test_units_that_are_not_zero_when_they_are_off_stay(rng):
    model = scramble(model_of(lambda x: norm(name="culprit")(layers.Activation("sigmoid")(x))), rng)
    plan = tfspline.plan(model, 0.5)
    assert "'culprit' (RMSNormalization) normalizes over channels that may" in group_of(plan, "before")[2]
    assert group_of(tfspline.plan(model, 0.5, allow_inexact=True), "before") == (8, 4, None)


def test_an_axis_along_which_the_scale_does_not_lie(rng):
    model = scramble(model_of(lambda x: norm(axis=1, name="culprit")(x), (8, 8)), rng)
    assert "'culprit' (RMSNormalization) normalizes over other axes" in group_of(tfspline.plan(model, 0.5), "before")[2]


def test_slim_removes_only_units_that_are_zero_where_they_are_normalized(rng):
    model = scramble(model_of(lambda x: norm()(x)), rng)
    before, after = model.get_layer("before"), model.get_layer("after")
    slimming.zero(model, "before", [0, 1, 2])
    before.bias.assign(np.where(np.arange(8) == 0, 0, before.bias))  # 1 and 2 are constant, but not zero
    after.kernel.assign(after.kernel * np.reshape(np.arange(8) != 3, (8, 1)))  # 3 is not read, but normalized
    assert slimming.check(model, rng).get_layer("before").units == 7


def test_half_precision(rng):
    keras.config.set_dtype_policy("float16")
    try:
        model = scramble(model_of(lambda x: norm(epsilon=1e-6)(x)), rng)
    finally:
        keras.config.set_dtype_policy("float32")
    plan, x = tfspline.plan(model, 0.75), inputs_for(model, rng)
    slim = plan.apply(model)
    assert slim.layers[2].epsilon == pytest.approx(4e-6) and slim.layers[2].scale.dtype == "float16"
    assert difference(plan.mask(model)(x), slim(x)) < 5e-3


class Norm(layers.Layer):
    """A user's own RMSNormalization; `wrong` are faults that make it another function."""

    def __init__(self, eps=0.1, wrong="", **kwargs):
        super().__init__(**kwargs)
        self.eps, self.wrong = eps, wrong

    def build(self, shape):
        self.g = self.add_weight(name="g", shape=shape[-1:], initializer="ones")

    def call(self, hidden):
        x = hidden - keras.ops.mean(hidden, -1, keepdims=True) if "mean" in self.wrong else hidden
        square = keras.ops.mean(keras.ops.square(x), 1 if "axis" in self.wrong else -1, keepdims=True)
        if "inside" in self.wrong:
            return x * self.g / (keras.ops.sqrt(square) + self.eps)
        return x * keras.ops.rsqrt(square + self.eps) * (1 + self.g if "1 +" in self.wrong else self.g)

    def get_config(self):
        return super().get_config() | {"eps": self.eps, "wrong": self.wrong}


def test_a_layer_of_a_user_that_computes_the_same(rng):
    model = scramble(model_of(lambda x: Norm(name="norm")(hidden=Norm(name="first")(x)) + x), rng)
    flat, x = tfspline.functional(model), inputs_for(model, rng)
    twin = flat.get_layer("norm")
    assert type(twin) is layers.RMSNormalization and twin.epsilon == 0.1
    assert twin.scale is model.get_layer("norm").g and difference(model(x), flat(x)) <= 1e-6
    plan = tfspline.plan(model, 0.5)
    assert group_of(plan, "before") == (8, 4, None)
    slim = check_cut(model, plan, rng)
    assert keras.Model.from_config(slim.get_config()).count_params() == slim.count_params()
    plan.masks.apply(model)
    assert difference(model(x), tfspline.slim(model)(x)) <= 1e-5 and not model.get_layer("norm").g.numpy().all()


@pytest.mark.parametrize("wrong", ["mean", "axis", "inside", "1 +"])
def test_layers_of_a_user_that_compute_something_else(wrong):
    flat = tfspline.functional(model_of(lambda x: Norm(wrong=wrong, name="norm")(x)))
    assert not any(isinstance(layer, layers.RMSNormalization) for layer in flat.layers)


def test_a_channel_rule_of_the_user_comes_first():
    class Known(Norm):
        pass

    tfspline.register_channel_rule(Known, lambda call: call.inputs[0])
    model = model_of(lambda x: Known()(x))
    assert tfspline.functional(model) is model
