"""Recurrent text classifiers at half of the units: exact, and at least three times smaller and cheaper."""

import numpy as np
import pytest
from helpers.cutting import check_cut
from helpers.zoo import difference, scramble

import tfspline


def classifier(keras, kind):
    layers = keras.layers
    words = keras.Input((4,), dtype="int32")
    x = layers.Embedding(20, 16, mask_zero=True)(words)
    x = layers.Bidirectional(getattr(layers, kind)(16, return_sequences=True, unroll=True), name="both")(x)
    x = getattr(layers, kind)(16, unroll=True, name="last")(x)
    return keras.Model(words, layers.Dense(3, "softmax")(x))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_half_of_the_units(keras, rng, kind):
    model = scramble(classifier(keras, kind), rng)
    plan = tfspline.plan(model, 0.5)
    slim = check_cut(model, plan, rng)
    before, after = plan.cost()["macs"]
    assert before >= 3 * after
    for name in ("both", "last"):
        assert model.get_layer(name).count_params() >= 3 * slim.get_layer(name).count_params()
    x = rng.integers(0, 20, (40, 4))
    fitted = tfspline.prune(model, 0.5, data=x)
    assert np.isfinite(difference(model(x), fitted(x)))
    assert difference(model(x), fitted(x)) <= difference(model(x), slim(x))
