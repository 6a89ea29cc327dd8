"""Scores worked out by hand."""

import numpy as np
import pytest

import tfspline
from tfspline import criteria


def units(weight, offset=None, scale=None):
    weight = np.asarray(weight, np.float32)
    offset = np.zeros(len(weight), np.float32) if offset is None else np.asarray(offset, np.float32)
    return criteria.Units(
        "layer", weight, np.ones((len(weight), 1), np.float32), offset, scale, np.random.default_rng(0)
    )


def test_hyperplane_distance_by_hand():
    weight = np.float32([[3, 4], [-6, -8], [4, -3]])
    offset = np.float32([5, -30, 0])
    # unit normals (.6, .8), (-.6, -.8), (.8, -.6); offsets over norms 1, -3, 0; signs of the cosines -1, 0 -> +1
    distance = criteria.hyperplane_distances(weight, offset, rho=0.1)
    expected = [[0, 0 + 0.1 * abs(1 - 3), 1 + 0.1 * 1], [0.2, 0, 1 + 0.1 * 3], [1.1, 1.3, 0]]
    np.testing.assert_allclose(distance, expected, atol=1e-6)


def test_the_closest_pair_loses_its_smaller_unit():
    distance = np.float32([[0, 1, 5, 6], [1, 0, 2, 7], [5, 2, 0, 3], [6, 7, 3, 0]])
    # 0-1 at 1: 0 is smaller and goes; 1-2 at 2: 2 is smaller and goes; 1-3 at 7: 1 goes; 3 is the last one
    scores = criteria.greedy_elimination(distance, np.float32([1, 5, 4, 6]))
    np.testing.assert_array_equal(scores, [1, 7, 2, np.inf])


def test_greedy_elimination_is_what_the_naive_way_does(rng):
    for n in (1, 2, 5, 40):
        points, norm = rng.normal(size=(n, 3)), rng.random(n)
        distance = np.linalg.norm(points[:, None] - points, axis=2)
        scores, left = np.full(n, np.inf, np.float32), list(range(n))
        while len(left) > 1:
            closest, pair = min((distance[i, j], (i, j)) for i in left for j in left if i < j)
            gone = min(pair, key=lambda unit: norm[unit])
            scores[gone] = closest
            left.remove(gone)
        np.testing.assert_allclose(criteria.greedy_elimination(distance, norm), scores, rtol=1e-6)


def test_spline_drops_the_copy_and_the_unit_that_cuts_nothing():
    scores = criteria.spline(units([[1, 0], [0.5, 0], [0, 1], [0, 0]], [0, 0, 0, 1]))
    assert scores[3] == 0 and scores[1] == pytest.approx(0, abs=1e-6)  # no cut; the same cut as 0, and smaller
    assert min(scores[0], scores[2]) == pytest.approx(1)


def test_l1_and_bn_scale_by_hand():
    np.testing.assert_allclose(criteria.l1(units([[1, -2], [3, 6]])), [0.5, 1.5])
    np.testing.assert_array_equal(
        criteria.bn_scale(units([[1], [1]], scale=np.float32([0.3, 2]))), np.float32([0.3, 2])
    )
    with pytest.raises(ValueError, match="Expected a BatchNormalization .* Received: 'layer' without one"):
        criteria.bn_scale(units([[1], [1]]))


def test_batch_norm_is_folded_into_the_unit(keras, monkeypatch):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, name="a"),
            layers.BatchNormalization(epsilon=0.0),
            layers.ReLU(),
            layers.Dense(1),
        ]
    )
    model.layers[0].set_weights([np.float32([[1, 2], [3, 4]]), np.float32([5, 6])])
    gamma, beta, mean, variance = np.float32([[2, -3], [1, 7], [4, 8], [4, 9]])
    model.layers[1].set_weights([gamma, beta, mean, variance])
    seen = {}

    def spy(units):
        seen[units.name] = units
        return np.arange(len(units.kernel))

    monkeypatch.setattr(criteria, "_criteria", {})
    tfspline.register_criterion("spy", spy)
    plan = tfspline.plan(model, 0.5, criterion="spy")
    # w = W gamma / sigma with gamma / sigma = (1, -1); b = beta + (bias - mu) gamma / sigma = (1 + 1, 7 + 2)
    np.testing.assert_allclose(seen["a"].kernel, [[1, 3], [2, 4]])
    np.testing.assert_allclose(seen["a"].weight, [[1, 3], [-2, -4]])
    np.testing.assert_allclose(seen["a"].offset, [2, 9])
    np.testing.assert_allclose(seen["a"].scale, [2, 3])
    assert plan.removed[plan.graph.channels("a")].tolist() == [True, False]


def test_a_unit_of_several_layers_is_the_sum_of_what_they_make(keras, monkeypatch):
    layers = keras.layers
    inputs = keras.Input((2,))
    a, b = layers.Dense(3, name="a")(inputs), layers.Dense(3, name="b")(inputs)
    model = keras.Model(inputs, layers.Dense(1)(layers.ReLU()(layers.Add()([a, b]))))
    for layer, start in (("a", 0), ("b", 10)):
        kernel = np.arange(start, start + 6, dtype="float32").reshape(2, 3)
        model.get_layer(layer).set_weights([kernel, np.float32([start, 1, 2])])
    seen = []
    monkeypatch.setattr(criteria, "_criteria", {"spy": lambda units: seen.append(units) or np.zeros(3)})
    tfspline.plan(model, 0.5, criterion="spy")
    np.testing.assert_array_equal(seen[0].weight, [[0, 3, 10, 13], [1, 4, 11, 14], [2, 5, 12, 15]])
    np.testing.assert_array_equal(seen[0].offset, [10, 2, 4])


def test_refusals():
    with pytest.raises(ValueError, match="Expected a criterion among .*'spline'.* Received: 'best'"):
        criteria.named("best")
    with pytest.raises(TypeError, match="Expected a name and a callable"):
        tfspline.register_criterion("mine", 3)
