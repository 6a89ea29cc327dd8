"""Where units are removed: costs that are comparable across layers, what units save, and the least widths."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline._keras.inputs import sample
from tfspline.graph.reader import read
from tfspline.pruning import criteria, elimination
from tfspline.pruning.allocation import Budget
from tfspline.pruning.output_error import random_combination
from tfspline.pruning.readers import Reader, readers_of


def widths(plan):
    return {row["layer"]: row["units_after"] for row in plan.rows() if not row["protected"]}


def two_layers():
    """A chain of 8 and 8 units, of which one of the first saves 16 + 8 MACs and one of the second 8 + 2."""
    layers = keras3.layers
    return keras3.Sequential(
        [keras3.Input((16,)), layers.Dense(8, "relu", name="a"), layers.Dense(8, "relu", name="b"), layers.Dense(2)]
    )


def removed(scores, **budget):
    graph = read(two_layers())
    groups = [group for group in graph.groups if not group.protected]
    off = Budget(scope="global", **budget).removed(graph, groups, scores)
    return [int(off[group.units].sum()) for group in groups]


def test_units_go_where_they_save_most():
    same = [np.arange(8.0), np.arange(8.0) + 0.5]
    assert removed(same, ratio=0.25) == [2, 2]
    assert removed(same, max_flops=0.8) == [2, 0]  # 2 x 24 of the 208 MACs
    dear = [np.arange(8.0) * 9, np.arange(8.0) + 0.5]
    assert removed(dear, max_flops=0.8) == [1, 2]  # 24 + 2 x 9: the first unit of `a` costs nothing


def test_units_are_ranked_by_cost_for_what_they_save():
    scores = [2 * np.arange(8.0) + 1, np.arange(8.0) + 0.5]
    # Of 208 MACs 42 must go. In `a` 24 for 1, 3, ..., in `b` 10 for 0.5, 1.5, ...: two of `a` suffice.
    assert removed(scores, max_flops=0.8) == [2, 0]
    assert removed(scores, ratio=3 / 16) == [1, 2]  # of the units: 0.5, 1, 1.5


def test_groups_keep_a_quarter_while_the_budget_allows():
    cheap = [np.zeros(8), np.arange(8.0) + 1]
    assert removed(cheap, ratio=0.5) == [6, 2]
    assert removed(cheap, max_params=0.4)[0] == 6
    assert removed(cheap, ratio=0.8) == [6, 6]
    assert removed(cheap, ratio=0.875) == [7, 7]
    assert removed(cheap, ratio=0.5, min_units=4) == [4, 4]


def test_spline_output_by_hand():
    some = type("Units", (), {})()
    covariance, gradients = np.diag([1.0, 4]), np.float32([[4, 0], [0, 9]])
    one = np.ones((2, 1), np.float32)
    some.readers_with_gradients = [
        Reader(covariance, covariance, one, np.inf, gradients),
        Reader(covariance, covariance, one),  # reads the same values, so the first has its gradients
    ]
    np.testing.assert_allclose(criteria.spline_output(some), [4, 36], rtol=1e-3)


def test_covariance_is_shrunk_by_hand():
    # trace 4, squares 10, n 2: most = 0 + 16; spread = samples x (10 - 8)
    covariance = np.float32([[3, 0], [0, 1]])
    np.testing.assert_allclose(elimination.shrunk(covariance, 16), [[2.5, 0], [0, 1.5]])
    np.testing.assert_allclose(elimination.shrunk(covariance, 8), [[2, 0], [0, 2]])
    np.testing.assert_allclose(elimination.shrunk(covariance, np.inf), covariance, rtol=1e-3)


def test_gradients_of_readers_are_the_error_of_the_outputs(keras, rng):
    layers = keras.layers
    inputs = keras.Input((3,))
    x = layers.Dense(4, "relu", name="a")(inputs)
    model = scramble(keras.Model(inputs, [layers.Dense(2, name="b")(x), layers.Dense(1, name="c")(x)]), rng)
    data = inputs_for(model, rng, 4000)
    graph = read(model)
    groups = [group for group in graph.groups if not group.protected]
    (first, second) = readers_of(model, graph, groups, [tf.constant(data)], gradients=True)["a"]
    assert second.gradients is None and first.samples == 4000
    expected = 0
    for output, name in zip(model(data), "bc", strict=True):
        kernel = model.get_layer(name).get_weights()[0]
        expected += kernel @ kernel.T / np.var(output)  # of the whole output, as for each batch of 64
    np.testing.assert_allclose(first.gradients, expected, rtol=0.2, atol=0.1 * np.abs(expected).max())


def test_probabilities_count_as_logits(keras, rng):
    logits = tf.constant(rng.normal(size=(2000, 3)).astype("float32"))
    inputs = keras.Input((3,))
    of = {
        "softmax": keras.Model(inputs, keras.layers.Softmax()(inputs)),
        "sigmoid": keras.Model(inputs, keras.layers.Activation("sigmoid")(inputs)),
        "linear": keras.Model(inputs, keras.layers.Activation("linear")(inputs)),
    }
    squares = {}
    for name, model in of.items():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            combination = random_combination(model, [tf.convert_to_tensor(model(logits))], seed=0)
        squares[name] = tf.reduce_mean(tf.square(tape.gradient(combination, logits))).numpy()
    assert squares["sigmoid"] == pytest.approx(squares["linear"], rel=1e-2)
    assert squares["softmax"] == pytest.approx(squares["linear"], rel=0.1)  # two of three directions, deviation less


def test_branches_lose_units_by_what_the_output_loses(keras, rng):
    layers = keras.layers
    inputs = keras.Input((8,))
    strong, weak = (layers.Dense(16, "relu", name=name)(inputs) for name in ("strong", "weak"))
    outputs = layers.Add()([layers.Dense(3, name="s")(strong), layers.Dense(3, name="w")(weak)])
    model = scramble(keras.Model(inputs, outputs), rng)
    kernel, bias = model.get_layer("w").get_weights()
    model.get_layer("w").set_weights([0.01 * kernel, bias])
    data = inputs_for(model, rng, 200)
    plan = tfspline.plan(model, 0.25, data=data)
    assert widths(plan) == {"strong": 16, "weak": 8}
    assert plan.options["criterion"] == "spline_output" and plan.options["scope"] == "global"
    equal = tfspline.plan(model, 0.25, data=data, criterion="spline_affine")
    assert difference(plan.apply(model)(data), model(data)) < difference(equal.apply(model)(data), model(data))


def test_default_without_data_is_the_papers_criterion_and_warns(keras, rng, caplog):
    model = scramble(keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]), rng)
    assert tfspline.plan(model, 0.5).options["criterion"] == "spline"
    assert not caplog.records
    tfspline.prune(model, 0.5)
    assert "until it is trained" in caplog.text
    caplog.clear()
    tfspline.prune(model, 0.5, data=inputs_for(model, rng, 32))
    assert not caplog.records


def test_large_arrays_are_sampled_evenly(keras, rng):
    model = scramble(keras.Sequential([keras.Input((3,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(2)]), rng)
    x, y = inputs_for(model, rng, 4000), np.arange(4000) // 2000  # sorted by class
    model.compile("sgd", "mse")
    seen = sample(model, (x, y))
    assert len(seen.inputs[0]) == 1024 and np.mean(seen.labels) == 0.5
    assert len(sample(model, x[:1024]).inputs[0]) == 1024


def test_units_that_only_a_product_reads_stay_by_default(keras, rng):
    layers = keras.layers
    inputs = keras.Input((8,))
    query, key = (layers.Dense(6, name=name)(inputs) for name in ("query", "key"))
    x = layers.Concatenate()([layers.Dot(1)([query, key]), layers.Dense(12, "relu", name="hidden")(inputs)])
    model = scramble(keras.Model(inputs, layers.Dense(3)(x)), rng)
    data = inputs_for(model, rng, 64)
    assert widths(tfspline.plan(model, 0.25, data=data)) == {"query": 6, "hidden": 8}
    only = scramble(keras.Model(inputs, layers.Dense(3)(layers.Dot(1)([query, key]))), rng)
    with pytest.raises(ValueError, match="'spline_output' cannot observe what reads the units of 'query'"):
        tfspline.plan(only, 0.5, data=data)


def test_shares_of_heads_are_weighted_in_every_batch(keras, rng):
    inputs = keras.Input((3, 8))
    x = keras.layers.MultiHeadAttention(2, 4, name="heads")(inputs, inputs)
    model = scramble(keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x))), rng)
    graph, data = read(model), tf.constant(inputs_for(model, rng, 600))
    groups = [group for group in graph.groups if group.name == "heads"]
    readers = [readers_of(model, graph, groups, [part], gradients=True)["heads"] for part in (data, data[:256])]
    (many,), (few,) = readers
    assert many.samples < 600 and few.samples == 256
    np.testing.assert_allclose(many.covariance, few.covariance, rtol=0.5, atol=0.3 * few.covariance.max())
