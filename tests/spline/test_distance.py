"""Distances between partitions, and planes of inputs, compared with numbers computed by hand."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfspline.spline import distance
from tfspline.spline.codes import Codes, pack_bits, region_codes
from tfspline.spline.distance import partition_distance, partition_distances, plane


def codes(**layers):
    """Codes from lists of zeros and ones, one list per sample."""
    arrays = {name: np.packbits(np.array(bits, "uint8"), axis=1, bitorder="little") for name, bits in layers.items()}
    return Codes(arrays, {name: len(bits[0]) for name, bits in layers.items()})


A = codes(small=[[1], [0]], large=[[1, 0, 0, 0, 0, 0, 0, 0, 0, 1], [1] * 10])
B = codes(small=[[1], [1]], large=[[1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [1] * 10])


def test_distance_is_the_unweighted_mean_over_layers():
    # small: 1 of 2 bits differs; large: 2 of 20. Weighted by bits it would be 3 / 22.
    assert partition_distance(A, B, per_layer=True) == {"small": 0.5, "large": 0.1}
    assert partition_distance(A, B) == pytest.approx(0.3)


def test_distance_is_0_to_itself_and_1_to_the_opposite():
    opposite = codes(small=[[0], [1]], large=[[0, 1, 1, 1, 1, 1, 1, 1, 1, 0], [0] * 10])
    assert partition_distance(A, A) == 0
    assert partition_distance(A, opposite) == partition_distance(opposite, A) == 1


def test_distance_between_two_states_of_a_model(keras):
    x = np.arange(10, dtype="float32").reshape(-1, 1)
    inputs = keras.Input((1,))
    bias = keras.layers.BatchNormalization(epsilon=0.0, name="shift")
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.ReLU()(bias(inputs))))
    before = region_codes(model, x)
    bias.beta.assign([-3.0])
    # The boundary moves from 0 to 3: the inputs 1, 2 and 3 change sides.
    assert partition_distance(before, region_codes(model, x)) == pytest.approx(0.3)


def test_codes_that_cannot_be_compared_are_rejected():
    with pytest.raises(ValueError, match="2 and 1 samples"):
        partition_distance(codes(relu=[[1], [0]]), codes(relu=[[1]]))
    with pytest.raises(ValueError, match=r"same layers.*'a': 1.*'b': 1"):
        partition_distance(codes(a=[[1]]), codes(b=[[1]]))
    with pytest.raises(ValueError, match=r"numbers of bits.*'a': 1.*'a': 2"):
        partition_distance(codes(a=[[1]]), codes(a=[[1, 0]]))
    with pytest.raises(TypeError, match="region_codes.*ndarray"):
        partition_distance(codes(a=[[1]]), np.zeros(3))


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 70)), elements=st.integers(0, 1)))
def test_unpacking_reverses_packing(bits):
    packed = pack_bits(tf.constant(bits, tf.bool)).numpy()
    np.testing.assert_array_equal(Codes({"relu": packed}, {"relu": bits.shape[1]}).unpack("relu"), bits)


@st.composite
def several_codes(draw, count):
    samples, widths = draw(st.integers(1, 3)), draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    bits = [arrays(np.uint8, (samples, width), elements=st.integers(0, 1)) for width in widths]
    return [codes(**{f"layer{i}": draw(one) for i, one in enumerate(bits)}) for _ in range(count)]


@settings(max_examples=100, deadline=None)
@given(several_codes(3))
def test_distance_is_a_metric(three):
    a, b, c = three
    assert partition_distance(a, a) == 0
    assert (partition_distance(a, b) == 0) == (a == b)
    assert 0 <= partition_distance(a, b) == partition_distance(b, a) <= 1
    assert partition_distance(a, c) <= partition_distance(a, b) + partition_distance(b, c) + 1e-12


@settings(max_examples=50, deadline=None)
@given(several_codes(4))
def test_matrix_contains_the_distance_of_each_pair(four):
    def unpacked(a, b):
        return np.mean([(a.unpack(name) != b.unpack(name)).mean() for name in a.layers])

    matrix, parts = partition_distances(four), partition_distances(four, per_layer=True)
    np.testing.assert_allclose(matrix, [[unpacked(a, b) for b in four] for a in four], atol=1e-12)
    assert list(parts) == four[0].layers
    np.testing.assert_allclose(np.mean(list(parts.values()), axis=0), matrix, atol=1e-12)


def test_matrix_of_codes_that_span_several_blocks(rng, monkeypatch):
    monkeypatch.setattr(distance, "BLOCK", 16)
    bits = rng.integers(0, 2, (3, 5, 77))
    matrix = partition_distances([codes(relu=one.tolist()) for one in bits])
    np.testing.assert_allclose(matrix, [[(a != b).mean() for b in bits] for a in bits], atol=1e-12)
    assert matrix.dtype == np.float64


def test_matrix_of_codes_that_cannot_be_compared_is_rejected():
    with pytest.raises(ValueError, match="at least one"):
        partition_distances([])
    with pytest.raises(ValueError, match="2 and 1 samples"):
        partition_distances([A, B, codes(small=[[1]], large=[[1] * 10])])
    with pytest.raises(TypeError, match="Received: str"):
        partition_distances([A, "codes"])
    assert partition_distances([A]).tolist() == [[0.0]]


def test_plane_runs_from_zero_through_both_inputs_to_their_sum():
    x0, x1 = np.array([[8.0, 0.0]]), np.array([[0.0, 2.0]])
    grid = plane(x0, x1, 3)
    assert grid.shape == (9, 1, 2)
    assert grid.dtype == np.float32
    assert grid[:, 0].tolist() == [[8 * a, 2 * b] for b in (0, 0.5, 1) for a in (0, 0.5, 1)]


def test_invalid_arguments_of_plane_are_rejected():
    with pytest.raises(ValueError, match=r"`x0` and `x1`.*\(2,\) and \(3,\)"):
        plane(np.zeros(2), np.zeros(3), 3)
    with pytest.raises(ValueError, match="Expected `n` to be an integer of at least 2. Received: 1"):
        plane(np.zeros(2), np.zeros(2), 1)
