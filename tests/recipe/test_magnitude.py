"""Magnitude pruning: which weights become zero, and that they stay zero."""

import numpy as np
import pytest

from tfspline.recipe.networks import count_zeros, hold_zeros, prune_weights


def network(keras):
    inputs = keras.Input((2,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(3, name="a")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="b")(keras.layers.ReLU()(x)))
    model.get_layer("a").set_weights([np.array([[1.0, -0.1, 3], [0.2, 4, -5]]), np.zeros(3)])
    model.get_layer("b").set_weights([np.array([[0.3, -6.0], [7, 0.05], [8, 9]]), np.zeros(2)])
    return model


def test_smallest_weights_are_pruned_across_layers(keras):
    model = network(keras)
    others = [weight for weight in model.get_weights() if weight.ndim == 1]
    prune_weights(model, 4)
    np.testing.assert_array_equal(model.get_layer("a").get_weights()[0], np.float32([[1, 0, 3], [0, 4, -5]]))
    np.testing.assert_array_equal(model.get_layer("b").get_weights()[0], [[0, -6], [7, 0], [8, 9]])
    for after, before in zip([weight for weight in model.get_weights() if weight.ndim == 1], others, strict=True):
        np.testing.assert_array_equal(after, before)
    assert count_zeros(model) == 4


def test_zeros_stay_zero_in_training_and_other_weights_are_trained(keras, rng):
    model = network(keras)
    prune_weights(model, 5)
    hold_zeros(model)
    before = [model.get_layer(name).get_weights()[0] for name in "ab"]
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.fit(rng.normal(size=(32, 2)), rng.normal(size=(32, 2)), batch_size=8, epochs=2, verbose=0)
    for name, kernel in zip("ab", before, strict=True):
        trained = model.get_layer(name).get_weights()[0]
        np.testing.assert_array_equal(trained == 0, kernel == 0)
        assert (trained != kernel).any()


@pytest.mark.parametrize("count", [-1, 13])
def test_invalid_count_is_refused(keras, count):
    with pytest.raises(ValueError, match=f"count to be from 0 to 12.* Received: {count}"):
        prune_weights(network(keras), count)
