"""MACs worked out by hand."""

import pytest

import tfspline


def macs(keras, shape, *layers):
    return tfspline.flops(keras.Sequential([keras.Input(shape), *layers])).macs


def test_macs_by_hand(keras):
    layers = keras.layers
    assert macs(keras, (5,), layers.Dense(7)) == 5 * 7
    assert macs(keras, (3, 5), layers.Dense(7)) == 3 * 5 * 7
    assert macs(keras, (8, 8, 3), layers.Conv2D(4, 3)) == 6 * 6 * 9 * 3 * 4
    assert macs(keras, (8, 8, 3), layers.Conv2D(4, 3, 2, "same")) == 4 * 4 * 9 * 3 * 4
    assert macs(keras, (8, 8, 6), layers.Conv2D(4, 1, groups=2)) == 64 * 3 * 4
    assert macs(keras, (8, 8, 3), layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)) == 64 * 9 * 3 * 2
    assert macs(keras, (8, 8, 3), layers.SeparableConv2D(4, 3, padding="same")) == 64 * (9 * 3 + 3 * 4)
    assert macs(keras, (4, 4, 3), layers.Conv2DTranspose(5, 3, 2)) == 16 * 9 * 3 * 5
    assert macs(keras, (9, 2), layers.Conv1D(5, 3)) == 7 * 3 * 2 * 5


def test_report(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.ReLU(), layers.Dense(2, name="b")])
    cost = tfspline.flops(model)
    assert cost.layers == {"a": (12, 15), "b": (6, 8)}
    assert (cost.macs, cost.flops, cost.params) == (18, 36, 23)
    assert "FLOPs = 2 x MACs" in str(cost) and "36" in str(cost)
    assert tfspline.training_flops(model, 10) == 3 * 36 * 10


def test_a_shared_layer_costs_each_time(keras):
    inputs, dense = keras.Input((4,)), keras.layers.Dense(4)
    cost = tfspline.flops(keras.Model(inputs, dense(dense(inputs))))
    assert (cost.macs, cost.params) == (32, 20)


def test_no_model_is_refused():
    with pytest.raises(TypeError, match="Expected a Keras 3 or tf_keras model. Received: int"):
        tfspline.flops(3)
