"""Samples that join a run where memory has room for them."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import FAMILIES, inputs_for, scramble

from tfspline import _keras
from tfspline.pruning import streaming
from tfspline.pruning.streaming import Pair, Stream


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_samples_that_join_have_the_values_of_the_model(keras, rng, monkeypatch, family):
    model = scramble(family(keras), rng)
    x = inputs_for(model, rng, 30)
    inputs = [tf.convert_to_tensor(value) for value in (x if isinstance(x, list) else [x])]
    seen = []

    def outputs(node, args, kwargs):
        whole = _keras.call(node.layer, args, kwargs, Pair, lambda pair: pair.whole)
        return [Pair(y, y) for y in whole]

    def before(node, args, kwargs):
        seen.append(len(next(value for value in tf.nest.flatten((args, kwargs)) if isinstance(value, Pair)).whole))

    shapes = [shape for node in _keras.nodes(model, nested=True) for shape in node.output_shapes]
    monkeypatch.setattr(streaming, "_NUMBERS", 2 * 30 * sum(int(np.prod(shape[1:])) for shape in shapes) // 8)
    results = Stream(model, inputs, outputs).run(before)
    for pair, expected in zip(results, tf.nest.flatten(model(x)), strict=True):
        assert len(pair.whole) == len(pair.cut)
        np.testing.assert_allclose(pair.whole, expected[: len(pair.whole)], atol=1e-5)
    assert seen == sorted(seen) and seen[0] < seen[-1] <= 30
