"""Gradient criteria: scores by hand, finite differences, no side effects, and errors."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import FAMILIES, chain, grouped, inputs_for, residual, scramble

import tfspline
from tfspline._keras.inputs import probe
from tfspline.graph import reader as graph
from tfspline.pruning import criteria, gradients
from tfspline.pruning.units import units_of

CRITERIA = ("taylor", "snip", "synflow")


def groups_of(model):
    read = graph.read(model)
    return read, [group for group in read.groups if not group.protected]


def scores_of(model, criterion, data=None):
    """The scores of all prunable units, by the name of their group."""
    read, groups = groups_of(model)
    seen = None if data is None else probe(model, data)
    every = units_of(model, read, groups, np.random.default_rng(0), seen)
    return {units.name: criteria.named(criterion)(units) for units in every}


def assert_close(scores, expected, **options):
    assert scores.keys() == expected.keys()
    for name, values in scores.items():
        np.testing.assert_allclose(values, expected[name], err_msg=name, **options)


def linear(keras):
    """f = 3 (x + 1/2) + (2 x - 1) and two samples at which f - y = 1/2, so that the squared error's slope is 1."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((1,)), layers.Dense(2, name="a"), layers.Dense(1, use_bias=False)])
    model.set_weights([np.float32([[1, 2]]), np.float32([0.5, -1]), np.float32([[3], [1]])])
    model.compile("sgd", "mse")
    return model, (np.float32([[1], [2]]), np.float32([[5], [10]]))


def labelled(model, rng, samples=20):
    """Inputs and labels for a model compiled here with the squared error."""
    x = inputs_for(model, rng, samples)
    shapes = [(samples, *tensor.shape[1:]) for tensor in model.outputs]
    y = [rng.normal(size=shape).astype("float32") for shape in shapes]
    model.compile("sgd", "mse")
    return x, y if len(y) > 1 else y[0]


def test_l2_by_hand(keras):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(1)])
    model.layers[0].set_weights([np.float32([[3, 0], [-4, 1]]), np.float32([7, 7])])
    assert_close(scores_of(model, "l2"), {"a": [5 / 3, 1 / 3]}, rtol=1e-6)


def test_taylor_by_hand(keras, monkeypatch):
    model, data = linear(keras)
    # Units at x = 1 are (1.5, 1), at 2 (2.5, 3), read by 3 and 1: so the derivatives of the loss by a factor
    # on the units are (4.5, 1) and (7.5, 3). Both samples form one batch with mean (6, 2).
    assert_close(scores_of(model, "taylor", data), {"a": [36, 4]}, rtol=1e-6)
    monkeypatch.setattr(gradients, "BATCH", 1)
    assert_close(scores_of(model, "taylor", data), {"a": [(4.5**2 + 7.5**2) / 2, (1 + 9) / 2]}, rtol=1e-6)


def test_snip_by_hand(keras, monkeypatch):
    model, data = linear(keras)
    # The gradient by the kernel is the mean over x = 1, 2 of (3, 1) x = (4.5, 1.5); the kernel is (1, 2).
    for batch in (64, 1):
        monkeypatch.setattr(gradients, "BATCH", batch)
        assert_close(scores_of(model, "snip", data), {"a": [4.5, 3]}, rtol=1e-6)


def test_snip_sums_absolute_values_of_weights(keras):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a"), keras.layers.Dense(1)])
    model.set_weights([np.float32([[2], [-1]]), np.float32([0]), np.float32([[1]]), np.float32([0])])
    model.compile("sgd", "mse")
    # f = 2 * 1 - 1 * 2 = 0, f - y = 1: |2 * 1 * 2| + |2 * 2 * -1|; for the whole unit the two terms cancel
    data = np.float32([[1, 2]]), np.float32([[-1]])
    assert_close(scores_of(model, "snip", data), {"a": [8]}, rtol=1e-6)
    assert_close(scores_of(model, "taylor", data), {"a": [0]}, atol=1e-6)


def test_synflow_by_hand(keras):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, name="a"),
            layers.BatchNormalization(epsilon=0.0),
            layers.Activation("tanh"),
            layers.Dense(3, "softmax"),
        ]
    )
    model.layers[0].set_weights([np.float32([[1, -2], [-1, 0]]), np.float32([9, 9])])
    gamma, beta, mean, variance = np.float32([[-6, 1], [8, 8], [7, 7], [4, 4]])
    model.layers[1].set_weights([gamma, beta, mean, variance])
    model.layers[3].set_weights([np.float32([[1, 0, 0], [-1, 2, 0]]), np.float32([5, 5, 5])])
    # Units of ones: (2, 2); times |gamma| / sigma = (3, 1/2): (6, 1); read by 1 and 3: 6 and 3 of R = 9
    assert_close(scores_of(model, "synflow"), {"a": [6 / 9, 3 / 9]}, rtol=1e-6)


def test_synflow_scores_of_each_layer_of_a_chain_sum_to_one(keras, rng):
    layers = keras.layers
    convolutions = [layers.Conv2D(5, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()]
    dense = [layers.MaxPooling2D(), layers.Flatten(), layers.Dense(7, "relu"), layers.Dense(3)]
    model = scramble(keras.Sequential([keras.Input((8, 8, 2)), *convolutions, layers.Conv2D(4, 3), *dense]), rng)
    scores = scores_of(model, "synflow")
    assert [len(part) for part in scores.values()] == [5, 4, 7]
    for part in scores.values():
        assert part.min() > 0 and part.sum() == pytest.approx(1, rel=1e-5)


def test_synflow_of_a_network_that_overflows_float32(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((8,)), *(layers.Dense(8, "relu") for _ in range(30))])
    model.set_weights([np.full(weight.shape, 10, np.float32) for weight in model.weights])  # R = 8 * 80 ** 30
    for part in scores_of(model, "synflow").values():
        np.testing.assert_allclose(part, np.full(8, 1 / 8), rtol=1e-5)


def test_synflow_rounds_prune_the_intended_share(keras, rng):
    model = scramble(chain(keras), rng)
    for _ in range(4):
        model = tfspline.prune(model, 1 - 0.5 ** (1 / 4), criterion="synflow", scope="global")
    assert 10 <= sum(model.get_layer(name).units for name in "ab") <= 12  # of 20; each round rounds down


@pytest.mark.parametrize("family", [chain, residual])
def test_taylor_equals_squared_finite_difference(keras, rng, family):
    # In float32, rounding errors exceed differences over a step small enough to avoid kinks.
    keras.mixed_precision.set_global_policy("float64")
    try:
        model = scramble(family(keras), rng)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x, y = labelled(model, rng)
    scores = scores_of(model, "taylor", (x, y))
    read, groups = groups_of(model)

    def loss_at(factor, group, unit):
        """The loss if the weights that produce a unit, in all layers, are multiplied by a factor."""
        before = model.get_weights()
        for name in group.layers:
            (channel,) = np.flatnonzero(read.producers[name].units == group.units[unit])
            layer = model.get_layer(read.folded.get(name, (name,))[0])
            moving = [] if layer.name == name else [layer.moving_mean, layer.moving_variance]
            for weight in layer.weights:
                if not any(weight is one for one in moving):
                    value = weight.numpy()
                    value[..., channel] *= factor
                    weight.assign(value)
        loss = np.square(model(x, training=False) - y).mean()
        model.set_weights(before)
        return loss

    for group in groups:
        for unit in (0, len(group.units) - 1):
            slope = (loss_at(1 + 1e-6, group, unit) - loss_at(1 - 1e-6, group, unit)) / 2e-6
            assert np.sqrt(scores[group.name][unit]) == pytest.approx(abs(slope), rel=1e-3, abs=1e-6)


def test_taylor_uses_moving_and_snip_uses_batch_statistics(keras, rng):
    model = scramble(residual(keras), rng)
    data = labelled(model, rng)
    before = {criterion: scores_of(model, criterion, data) for criterion in ("taylor", "snip")}
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean + 1)
    assert_close(scores_of(model, "snip", data), before["snip"], rtol=1e-3, atol=1e-5)
    assert not np.allclose(scores_of(model, "taylor", data)["stem"], before["taylor"]["stem"], rtol=0.05)


# XLA compiles the gradients of grouped convolutions, which takes as long as all other families together.
@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=[pytest.mark.slow] * (one is grouped), id=one.__name__) for one in FAMILIES],
)
def test_scoring_works_on_every_family_and_changes_no_weight(keras, rng, family):
    model = scramble(family(keras), rng)
    data, before = labelled(model, rng, 4), model.get_weights()
    for criterion in CRITERIA:
        scores = scores_of(model, criterion, data)
        assert all(np.isfinite(part).all() and (part >= 0).all() for part in scores.values())
        assert any(part.max() > 0 for part in scores.values())
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))


@pytest.mark.sweep(2)
def test_wrapped_and_frozen_models_get_the_same_scores(keras, tfmot, rng):
    model = scramble(residual(keras), rng)
    data = labelled(model, rng)
    expected = {criterion: scores_of(model, criterion, data) for criterion in CRITERIA}
    wrapped = [tfspline.wrap(model)]
    if keras.__name__ == "tf_keras":
        wrapped.append(tfmot.sparsity.keras.prune_low_magnitude(model))
    for other in wrapped:
        other.compile("sgd", "mse")
        for criterion in CRITERIA:
            assert_close(scores_of(other, criterion, data), expected[criterion], rtol=1e-3, atol=1e-6)
    model.trainable = False
    model.compile("sgd", "mse")
    for criterion in ("taylor", "synflow"):  # a frozen BatchNormalization is in inference mode for snip, too
        assert_close(scores_of(model, criterion, data), expected[criterion], rtol=1e-4, atol=1e-7)


@pytest.mark.sweep(2)
def test_mixed_precision(keras, rng):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = residual(keras)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    data = labelled(model, rng)
    for criterion in CRITERIA:
        scores = scores_of(model, criterion, data)
        assert all(np.isfinite(part).all() and part.max() > 0 for part in scores.values())


@pytest.mark.sweep(2)
@pytest.mark.parametrize("criterion", ["taylor", "spline_data", "l1"])
def test_labels_may_come_from_a_tuple_or_a_dataset(keras, rng, criterion):
    model = scramble(chain(keras), rng)
    x, y = labelled(model, rng)
    expected = scores_of(model, criterion, (x, y))
    assert_close(scores_of(model, criterion, tf.data.Dataset.from_tensor_slices((x, y)).batch(7)), expected, rtol=1e-5)
    if criterion != "taylor":
        assert_close(scores_of(model, criterion, x), expected)


def test_compensation_ignores_labels(keras, rng):
    model = scramble(chain(keras), rng)
    x, y = labelled(model, rng, 40)
    one, other = (tfspline.prune(model, 0.5, criterion="l1", data=data) for data in (x, (x, y)))
    np.testing.assert_array_equal(one(x), other(x))


def test_several_outputs(keras, rng):
    layers = keras.layers
    inputs = keras.Input((1,))
    hidden = layers.Dense(2, use_bias=False, name="a")(inputs)
    heads = {name: layers.Dense(1, use_bias=False, name=name)(hidden) for name in ("up", "down")}
    model = keras.Model(inputs, heads)
    model.get_layer("a").set_weights([np.float32([[1, 1]])])
    model.get_layer("up").set_weights([np.float32([[1], [0]])])
    model.get_layer("down").set_weights([np.float32([[0], [1]])])
    model.compile("sgd", {"up": "mse", "down": "mse"}, loss_weights={"up": 1.0, "down": 3.0})
    data = np.float32([[1]]), {"up": np.float32([[0]]), "down": np.float32([[0]])}
    assert_close(scores_of(model, "snip", data), {"a": [2, 6]}, rtol=1e-6)


def test_scoring_does_not_change_metrics(keras, rng):
    model = scramble(chain(keras), rng)
    x, y = labelled(model, rng)
    model.fit(x, y, verbose=0)
    before = [float(metric.result()) for metric in model.metrics]
    scores_of(model, "taylor", (x, y + 9))
    assert [float(metric.result()) for metric in model.metrics] == before != []


def test_spline_pruning_with_taylor_inside_fit(keras, rng):
    model = scramble(chain(keras), rng)
    x, y = labelled(model, rng)
    pruning = tfspline.SplinePruning(lambda step: (step == 2, 0.5), "taylor", data=(x, y))
    model.fit(x, y, 5, 3, verbose=0, callbacks=[pruning])
    assert pruning.sparsity == 0.5


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: None, r"'taylor' needs `data=\(x, y\)`.* no labels"),
        (lambda x, y: x, "'taylor' needs .* no labels"),
        (lambda x, y: (x,), "'taylor' needs .* no labels"),
        (lambda x, y: (x, y[1:]), r"labels.*20.*\(19,\)"),
        (lambda x, y: (x, y.tolist()), "labels.*20"),
        (lambda x, y: (x, y, y, y), r"or a tuple \(inputs, labels\). Received: a tuple of 4"),
        (
            lambda x, y: (x, y[:, None] + [[0, 1]]),
            r"labels in `data`.*\(20, 3\).* Received: \(20, 2\)",
        ),
        (lambda x, y: (x, y + 3), r"labels in `data`.* Received: \(20,\)"),
    ],
)
def test_invalid_labels_raise(keras, rng, data, message):
    model = scramble(chain(keras), rng)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = inputs_for(model, rng, 20), rng.integers(0, 3, 20)
    with pytest.raises(ValueError, match=message):
        tfspline.plan(model, 0.5, criterion="taylor", data=data(x, y))


@pytest.mark.parametrize("criterion", ["taylor", "snip"])
def test_model_without_loss_raises(keras, rng, criterion):
    model = chain(keras)
    with pytest.raises(ValueError, match="compiled with a loss"):
        tfspline.plan(model, 0.5, criterion=criterion, data=(inputs_for(model, rng), np.zeros((3, 3))))


def test_synflow_raises_without_static_shape_or_flow(keras):
    layers = keras.layers
    anything = keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(4, 1), layers.Conv2D(2, 1)])
    with pytest.raises(ValueError, match="static input shape"):
        tfspline.plan(anything, 0.5, criterion="synflow")
    zero = keras.Sequential([keras.Input((2,)), layers.Dense(3, kernel_initializer="zeros"), layers.Dense(2)])
    with pytest.raises(ValueError, match="synaptic flow of .* is 0.0; criterion 'synflow'"):
        tfspline.plan(zero, 0.5, criterion="synflow")


@pytest.mark.parametrize("criterion", ["taylor", "snip"])
def test_units_of_a_nested_model_have_the_scores_of_the_flat_one(keras, rng, criterion):
    layers = [keras.layers.Dense(5, name="a"), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    inner = keras.Sequential([keras.Input((3,)), *layers], name="inner")
    inputs, head = keras.Input((3,)), keras.layers.Dense(2)
    nested = scramble(keras.Model(inputs, head(inner(inputs))), rng)
    flat = keras.Sequential([keras.Input((3,)), *layers, head])
    data = labelled(nested, rng)
    flat.compile("sgd", "mse")
    scores = {f"inner/{name}": values for name, values in scores_of(flat, criterion, data).items()}
    assert all(values.any() for values in scores.values())
    assert_close(scores_of(nested, criterion, data), scores, rtol=1e-4)
