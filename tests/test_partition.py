"""Distances of partitions and the plane they are looked at on, with numbers worked by hand."""

import numpy as np
import pytest

from tfspline.codes import Codes, region_codes
from tfspline.partition import partition_distance, plane


def codes(**layers):
    """Codes from lists of 0 and 1, one list a sample."""
    arrays = {name: np.packbits(np.array(bits, "uint8"), axis=1, bitorder="little") for name, bits in layers.items()}
    return Codes(arrays, {name: len(bits[0]) for name, bits in layers.items()})


A = codes(small=[[1], [0]], large=[[1, 0, 0, 0, 0, 0, 0, 0, 0, 1], [1] * 10])
B = codes(small=[[1], [1]], large=[[1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [1] * 10])


def test_the_distance_is_the_unweighted_mean_of_the_layers():
    # small: 1 of 2 bits differs; large: 2 of 20. Weighted by bits it would be 3 / 22.
    assert partition_distance(A, B, per_layer=True) == {"small": 0.5, "large": 0.1}
    assert partition_distance(A, B) == pytest.approx(0.3)


def test_the_distance_is_0_to_itself_and_1_to_the_opposite():
    opposite = codes(small=[[0], [1]], large=[[0, 1, 1, 1, 1, 1, 1, 1, 1, 0], [0] * 10])
    assert partition_distance(A, A) == 0
    assert partition_distance(A, opposite) == partition_distance(opposite, A) == 1


def test_the_distance_of_two_moments_of_a_model(keras):
    x = np.arange(10, dtype="float32").reshape(-1, 1)
    inputs = keras.Input((1,))
    bias = keras.layers.BatchNormalization(epsilon=0.0, name="shift")
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.ReLU()(bias(inputs))))
    before = region_codes(model, x)
    bias.beta.assign([-3.0])
    # The cut moves from 0 to 3: the inputs 1, 2 and 3 change sides.
    assert partition_distance(before, region_codes(model, x)) == pytest.approx(0.3)


def test_refuses_codes_that_cannot_be_compared():
    with pytest.raises(ValueError, match="Expected codes of the same inputs. Received: 2 and 1 samples"):
        partition_distance(codes(relu=[[1], [0]]), codes(relu=[[1]]))
    with pytest.raises(ValueError, match=r"Expected codes of the same layers.*'a': 1.*'b': 1"):
        partition_distance(codes(a=[[1]]), codes(b=[[1]]))
    with pytest.raises(ValueError, match=r"with as many bits. Received: .*'a': 1.*'a': 2"):
        partition_distance(codes(a=[[1]]), codes(a=[[1, 0]]))
    with pytest.raises(TypeError, match="Expected the codes that region_codes gives. Received: ndarray"):
        partition_distance(codes(a=[[1]]), np.zeros(3))


def test_the_plane_runs_from_zero_over_both_inputs_to_their_sum():
    x0, x1 = np.array([[8.0, 0.0]]), np.array([[0.0, 2.0]])
    grid = plane(x0, x1, 3)
    assert grid.shape == (9, 1, 2)
    assert grid.dtype == np.float32
    assert grid[:, 0].tolist() == [[8 * a, 2 * b] for b in (0, 0.5, 1) for a in (0, 0.5, 1)]


def test_the_plane_refuses_what_it_cannot_span():
    with pytest.raises(ValueError, match=r"of the same shape. Received: \(2,\) and \(3,\)"):
        plane(np.zeros(2), np.zeros(3), 3)
    with pytest.raises(ValueError, match="Expected at least 2 steps. Received: 1"):
        plane(np.zeros(2), np.zeros(2), 1)
