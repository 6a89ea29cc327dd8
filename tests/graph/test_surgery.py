"""Cutting units: the masked model and the slimmed model are the same function."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import check_cut
from helpers.zoo import FAMILIES, chain, difference, inputs_for, residual, scramble

import tfspline
from tfspline.graph import surgery


@pytest.mark.sweep(3)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_masked_equals_slimmed(keras, rng, family, scope):
    model = scramble(family(keras), rng)
    check_cut(model, tfspline.plan(model, 0.5, scope=scope), rng)


def test_slim_model_is_an_ordinary_model(keras, rng, tmp_path):
    model = scramble(residual(keras), rng)
    slim = check_cut(model, tfspline.plan(model, 0.5), rng)
    assert all(type(layer).__module__.partition(".")[0] == keras.__name__ for layer in slim.layers)
    slim.save(tmp_path / "slim.keras")
    loaded = keras.models.load_model(tmp_path / "slim.keras")
    x = inputs_for(model, rng)
    assert difference(slim(x), loaded(x)) <= 1e-6
    loaded.compile("sgd", "mse")
    loaded.fit(x, np.zeros((len(x), 3)), verbose=0)


def test_slim_model_can_be_pruned_again(keras, rng):
    model = scramble(residual(keras), rng)
    slim = check_cut(model, tfspline.plan(model, 0.4), rng)
    check_cut(slim, tfspline.plan(slim, 0.4), rng)


def test_sequential_model_stays_sequential_and_frozen_layers_stay_frozen(keras, rng):
    model = scramble(chain(keras), rng)
    model.get_layer("a").trainable = False
    slim = tfspline.prune(model, 0.5)
    assert isinstance(slim, keras.Sequential)
    assert [layer.name for layer in slim.layers] == [layer.name for layer in model.layers]
    assert not slim.get_layer("a").trainable and slim.get_layer("b").trainable


def test_plan_of_another_model_is_refused(keras, rng):
    plan = tfspline.plan(chain(keras), 0.5)
    with pytest.raises(ValueError, match="Expected the model that the plan was made for"):
        plan.apply(residual(keras))
    with pytest.raises(ValueError, match="Expected the model that the plan was made for"):
        plan.mask(tfspline.prune(chain(keras), 0.5))


def test_difference_is_the_largest_over_the_outputs_relative_to_their_values(keras):
    inputs = keras.Input((1,))
    model, other = (
        keras.Model(inputs, [keras.layers.Dense(1, use_bias=False)(inputs) for _ in range(2)]) for _ in range(2)
    )
    model.set_weights([np.float32([[2]]), np.float32([[-4]])])
    other.set_weights([np.float32([[2.5]]), np.float32([[-6]])])
    x = [tf.constant([[1.0], [-3.0]])]
    assert surgery.difference(model, other, x) == pytest.approx((18 - 12) / 12)  # the first output changes by 1.5 / 6
    assert surgery.difference(model, model, x) == 0


def test_op_with_an_array_as_argument_is_copied(keras, rng):
    inputs, low = keras.Input((6,)), np.arange(-6, 0, dtype="float32")
    x = keras.layers.Dense(6)(inputs)
    x = tf.clip_by_value(x, low, 6.0) if keras.__name__ == "tf_keras" else keras.ops.clip(x, low, 6.0)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(4, "relu", name="hidden")(x)))
    slim = check_cut(scramble(model, rng), tfspline.plan(model, {"hidden": 0.5}), rng)
    assert slim.get_layer("hidden").units == 2


def test_custom_layer_whose_config_lacks_its_name_keeps_it(keras, rng):
    class Scaled(keras.layers.Layer):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, x, training=None):
            return x * (self.factor if training else self.factor)  # so that it is not unrolled

        def get_config(self):
            return {"factor": self.factor}

    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, "relu")(keras.layers.Dense(8, "relu", name="first")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(Scaled(2.0, name="mine")(x)))
    plan = tfspline.plan(model, 0.5)
    check_cut(model, plan, rng)
    assert plan.apply(model).get_layer("mine").factor == 2.0


def test_allow_inexact_is_a_bool(keras, rng):
    with pytest.raises(TypeError, match="`allow_inexact`"):
        tfspline.plan(chain(keras), 0.5, allow_inexact=1)
