"""Scores worked out by hand."""

import numpy as np
import pytest
from helpers.zoo import scramble

import tfspline
from tfspline.graph.reader import read
from tfspline.pruning import criteria, elimination
from tfspline.pruning.readers import Reader
from tfspline.pruning.units import Measurements, Units, units_of


def units(weight, offset=None, scale=None):
    weight = np.asarray(weight, np.float32)
    offset = np.zeros(len(weight), np.float32) if offset is None else np.asarray(offset, np.float32)
    slope, without_data = np.ones((len(weight), 1, 1), np.float32), Measurements(None, None, [], None)
    return Units("layer", weight, slope, offset, scale, np.random.default_rng(0), without_data, None)


def test_hyperplane_distance_by_hand():
    weight = np.float32([[3, 4], [-6, -8], [4, -3]])
    offset = np.float32([5, -30, 0])
    # unit normals (.6, .8), (-.6, -.8), (.8, -.6); offsets over norms 1, -3, 0; signs of the cosines -1, 0 -> +1
    distance = elimination.hyperplane_distances(weight, offset, rho=0.1)
    expected = [[0, 0 + 0.1 * abs(1 - 3), 1 + 0.1 * 1], [0.2, 0, 1 + 0.1 * 3], [1.1, 1.3, 0]]
    np.testing.assert_allclose(distance, expected, atol=1e-6)


def test_greedy_elimination_by_hand():
    distance = np.float32([[0, 1, 5, 6], [1, 0, 2, 7], [5, 2, 0, 3], [6, 7, 3, 0]])
    # 0-1 at 1: 0 is smaller and eliminated; 1-2 at 2: 2 is smaller; 1-3 at 7: 1 is smaller; 3 is the last one
    scores = elimination.greedy_elimination(distance, np.float32([1, 5, 4, 6]))
    np.testing.assert_array_equal(scores, [1, 7, 2, np.inf])


def test_greedy_elimination_equals_naive_implementation(rng):
    for n in (1, 2, 5, 40):
        points, norm = rng.normal(size=(n, 3)), rng.random(n)
        distance = np.linalg.norm(points[:, None] - points, axis=2)
        scores, left = np.full(n, np.inf, np.float32), list(range(n))
        while len(left) > 1:
            closest, pair = min((distance[i, j], (i, j)) for i in left for j in left if i < j)
            gone = min(pair, key=lambda unit: norm[unit])
            scores[gone] = closest
            left.remove(gone)
        np.testing.assert_allclose(elimination.greedy_elimination(distance, norm), scores, rtol=1e-6)


def test_spline_scores_copies_and_zero_units_lowest():
    scores = criteria.spline(units([[1, 0], [0.5, 0], [0, 1], [0, 0]], [0, 0, 0, 1]))
    assert scores[3] == 0 and scores[1] == pytest.approx(
        0, abs=1e-6
    )  # zero weights; the hyperplane of 0 with a smaller norm
    assert min(scores[0], scores[2]) == pytest.approx(1)


def test_l1_and_bn_scale_by_hand():
    np.testing.assert_allclose(criteria.l1(units([[1, -2], [3, 6]])), [0.5, 1.5])
    np.testing.assert_array_equal(
        criteria.bn_scale(units([[1], [1]], scale=np.float32([0.3, 2]))), np.float32([0.3, 2])
    )
    with pytest.raises(ValueError, match="'bn_scale' needs a BatchNormalization .*'layer'"):
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


def test_unit_of_several_layers_is_the_sum_of_their_outputs(keras, monkeypatch):
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


def test_unknown_criterion_and_non_callable_raise():
    with pytest.raises(ValueError, match="`criterion`.*'spline'.*'best'"):
        criteria.named("best")
    with pytest.raises(TypeError, match="name.*callable.*'mine'"):
        tfspline.register_criterion("mine", 3)


def seen(covariance, outgoing=None, coactivity=None):
    n = len(covariance)
    covariance = np.asarray(covariance, np.float32)
    outgoing = np.ones((n, 1)) if outgoing is None else outgoing
    coactivity = np.zeros((n, n)) if coactivity is None else coactivity
    return Reader(covariance, np.asarray(coactivity, np.float32), np.asarray(outgoing, np.float32))


def test_spline_data_by_hand():
    # Codes over four samples: 0 is 1100, 1 its opposite 0011, 2 is 1010 and 3 never switches.
    codes = np.float32([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]])
    some = units([[2.0], [1.0], [3.0], [9.0]])
    some.readers = [seen(np.eye(4), coactivity=codes @ codes.T / 4)]
    # 0-1 at min(1, 1 - 1) = 0: the smaller, 1, is eliminated; 0-2 at 1/2: 0; 2 is the last one; 3 never switches
    np.testing.assert_array_equal(criteria.spline_data(some), [0.5, 0, np.inf, 0])


def test_spline_affine_of_independent_units_by_hand():
    some = units([[1.0], [1.0]])
    some.readers = [seen(np.diag([1, 4]), [[2], [3]])]
    # removing a unit costs |V|^2 times its variance: 4 x 1 and 9 x 4 of 40
    np.testing.assert_allclose(criteria.spline_affine(some), [4 / 40, 36 / 40], rtol=1e-3)


def test_spline_affine_scores_add_up_to_the_error_after_merging(rng):
    n = 12
    for count in (1, 2):  # number of layers that read the units
        some = units(np.ones((n, 1)))
        some.readers = []
        for _ in range(count):
            mixed = rng.normal(size=(n, n))
            some.readers.append(seen(mixed @ mixed.T, rng.normal(size=(n, 3))))
        scores = criteria.spline_affine(some)
        order = np.argsort(scores, kind="stable")
        spent = 0.0
        for k in range(1, n):
            if scores[order[k - 1]] == scores[order[k]]:
                continue  # equal scores do not tell which was eliminated first
            gone, left = order[:k], order[k:]
            error = 0.0  # of predicting the removed units from the rest, as a share of the whole variance
            for reader in some.readers:
                g, v = reader.covariance.astype(float), reader.outgoing[gone].astype(float)
                schur = g[np.ix_(gone, gone)] - g[np.ix_(gone, left)] @ np.linalg.solve(
                    g[np.ix_(left, left)], g[np.ix_(left, gone)]
                )
                error += np.trace(v.T @ schur @ v) / np.trace(reader.outgoing.T @ g @ reader.outgoing)
            # A score is the largest cost so far, so the costs add up to at most the scores.
            assert error <= scores[gone].sum() * 1.01
            assert error > spent
            spent = error


def test_spline_affine_eliminates_copies_first_in_large_groups(rng):
    n = 1100  # more than 512: two at a time
    values = rng.normal(size=(2000, n)).astype("float32")
    values[:, 600:] = values[:, :500] + 1e-3 * values[:, 600:]
    some = units(np.ones((n, 1)))
    some.readers = [seen(np.cov(values.T), np.ones((n, 1)))]
    scores = criteria.spline_affine(some)
    gone = set(np.argsort(scores)[:500].tolist())
    assert all(len(gone & {k, k + 600}) == 1 for k in range(500))
    assert np.isfinite(scores).all()


def test_fpgm_by_hand():
    # points 0, 1 and 3: sums of distances 4, 3 and 5, of mean 4
    np.testing.assert_allclose(criteria.fpgm(units([[0.0], [1.0], [3.0]])), [1, 0.75, 1.25], rtol=1e-5)


@pytest.mark.parametrize("criterion", ["spline_data", "spline_affine"])
def test_data_driven_criteria_without_data_raise(criterion):
    with pytest.raises(ValueError, match=f"'{criterion}' needs `data`"):
        getattr(criteria, criterion)(units([[1.0]]))


def test_readers_by_hand(keras, monkeypatch):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((2, 1)), layers.Conv1D(2, 1, activation="relu", name="a"), layers.Flatten(), layers.Dense(1)]
    )
    model.layers[0].set_weights([np.float32([[[1, -1]]]), np.float32([0, 1])])
    model.layers[2].set_weights([np.float32([[1], [2], [3], [4]]), np.float32([0])])
    groups = []
    monkeypatch.setattr(criteria, "_criteria", {"spy": lambda units: groups.append(units) or np.arange(2)})
    tfspline.plan(model, 0.5, criterion="spy", data=np.float32([[[1], [2]], [[-1], [0]]]))
    # At inputs 1, -1, 2, 0 the units are relu(x) = 1, 0, 2, 0 and relu(1 - x) = 0, 2, 0, 1
    (reader,) = groups[0].readers
    values = np.float32([[1, 0], [0, 2], [2, 0], [0, 1]])
    np.testing.assert_allclose(reader.covariance, np.cov(values.T, bias=True), atol=1e-6)
    np.testing.assert_allclose(reader.coactivity, [[0.5, 0], [0, 0.5]])
    np.testing.assert_array_equal(reader.outgoing, [[1, 3], [2, 4]])  # a unit is read at both positions


def test_outgoing_weights_include_the_following_batch_norm(keras, monkeypatch):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(3, "relu", name="a"),
            layers.Dense(2, use_bias=False),
            layers.BatchNormalization(epsilon=0.0),
            layers.Dense(1),
        ]
    )
    model.layers[1].set_weights([np.float32([[1, 2], [3, 4], [5, 6]])])
    model.layers[2].set_weights([np.float32(row) for row in ([3, 1], [0, 0], [0, 0], [9, 4])])
    groups = {}
    spy = {"spy": lambda units: groups.update({units.name: units}) or np.arange(len(units.kernel))}
    monkeypatch.setattr(criteria, "_criteria", spy)
    tfspline.plan(model, 0.5, criterion="spy", data=np.ones((4, 2)))
    # gamma / sigma = (3 / 3, 1 / 2)
    np.testing.assert_allclose(groups["a"].readers[0].outgoing, [[1, 1], [3, 2], [5, 3]])


def test_unit_of_several_channels_of_a_layer_has_the_folded_kernels_of_all(keras, rng):
    inputs = keras.Input((3,))
    norm = keras.layers.BatchNormalization(name="norm")
    x = keras.layers.Reshape((2, 4))(norm(keras.layers.Dense(8, name="pairs")(inputs)))  # unit i: channels i, i + 4
    model = scramble(keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x))), rng)
    graph = read(model)
    (pairs,) = units_of(model, graph, [group for group in graph.groups if not group.protected], rng)
    gamma, beta, mean, variance = (weight.numpy().reshape(2, 4) for weight in norm.weights)
    slope = gamma / np.sqrt(variance + norm.epsilon)
    kernel, bias = (weight.numpy().reshape(-1, 2, 4) for weight in model.get_layer("pairs").weights)
    np.testing.assert_allclose(np.abs(pairs.weight).sum(axis=1), np.abs(kernel * slope).sum(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(pairs.offset, (beta + (bias[0] - mean) * slope).mean(axis=0), rtol=1e-5, atol=1e-6)
