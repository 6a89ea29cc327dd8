"""The early-bird decision on codes made by hand, without a model."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfspline.callbacks.early_bird_tests import TESTS
from tfspline.callbacks.settling import LookClock, SettlingTest
from tfspline.spline.codes import Codes


def codes_of(row):
    return Codes({"relu": np.packbits([row], axis=1, bitorder="little")}, {"relu": len(row)})


def partition_test(threshold=0.16, lookback=3):
    return SettlingTest(threshold, lookback, TESTS["partition"].passes)


def by_epoch(test, rows):
    """Shows the test one row of bits an epoch, None for a failed training; returns its decisions."""
    clock, decisions = LookClock(), []
    for epoch, row in enumerate(rows, 1):
        clock.begin_epoch(epoch, None)
        clock.advance()
        decisions.append(test.look(None if row is None else codes_of(row), clock))
    return decisions


def test_settles_when_the_codes_of_all_lookback_epochs_are_near():
    test = partition_test(threshold=0.25, lookback=3)
    rows = [[0] * 10, [1] * 10, [1] * 9 + [0], [1] * 8 + [0, 0], [1] * 8 + [0, 0], [1] * 8 + [0, 0]]
    assert by_epoch(test, rows) == [False, False, False, False, True, False]
    assert math.isnan(test.distances[0])
    # Epoch 4 is 0.2 from epoch 2, but 0.8 from epoch 1; epoch 5 is at most 0.2 from each of the three before it.
    assert test.distances[1:] == [1.0, 0.9, 0.8, 0.2, 0.1]
    assert (test.epoch, test.step) == (5, None)
    assert len(test.codes) == 3


def test_does_not_settle_before_there_are_lookback_earlier_epochs():
    test = partition_test(lookback=3)
    assert not any(by_epoch(test, [[0, 1]] * 3))
    assert test.distances[1:] == [0, 0]
    assert test.epoch is None


@pytest.mark.parametrize(("metric", "settles"), [("partition", False), ("mask", True)])
def test_only_the_mask_test_accepts_a_distance_equal_to_the_threshold(metric, settles):
    test = SettlingTest(0.5, 1, TESTS[metric].passes)
    assert by_epoch(test, [[0, 1], [1, 1]]) == [False, settles]
    assert test.distances[1] == 0.5


def test_comparison_starts_anew_after_a_failure():
    test = partition_test(lookback=1)
    assert by_epoch(test, [[0, 1], None, [0, 1], [0, 1]]) == [False, False, False, True]
    assert [math.isnan(distance) for distance in test.distances] == [True, True, True, False]
    assert test.epoch == 4


def test_remembers_the_first_epoch_that_settled():
    test = partition_test(lookback=1)
    assert by_epoch(test, [[0, 1]] * 4) == [False, True, False, False]
    assert test.epoch == 2
    assert len(test.distances) == 4


def test_uses_the_distance_that_workers_agree_on():
    test, clock = partition_test(lookback=1), LookClock()
    for epoch in (1, 2):
        clock.begin_epoch(epoch, None)
        clock.advance()
        settled = test.look(codes_of([0, 1]), clock, agree=lambda distance: 0.9)
    assert test.distances == [0.9, 0.9] and not settled


def by_step(walk, steps, every, **options):
    """Shows a test the codes of a training with `steps` steps an epoch and a row of bits for each step."""
    test, clock = partition_test(**options), LookClock(every)
    for epoch in range(len(walk) // steps):
        clock.begin_epoch(epoch + 1, steps)
        for step in range(epoch * steps, (epoch + 1) * steps):
            if every and clock.advance():
                test.look(codes_of(walk[step]), clock)
        if every is None and clock.advance():
            test.look(codes_of(walk[step]), clock)
    return test


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9, 1.0]), st.integers(1, 3))
def test_a_distance_means_the_same_at_any_frequency(seed, straightness, lookback):
    # 400 hyperplanes that move like particles with friction, ever more slowly: first straight on, then to and fro.
    rng, steps = np.random.default_rng(seed), 12
    pushes = rng.normal(size=(10 * steps, 400)) * np.linspace(1, 0.05, 10 * steps)[:, None]
    speeds = np.zeros_like(pushes)
    for step in range(1, len(pushes)):
        speeds[step] = straightness * speeds[step - 1] + pushes[step]
    walk = rng.normal(size=400) + speeds.cumsum(0) * (1.001 - straightness) > 0
    tests = {every: by_step(walk, steps, every, lookback=lookback) for every in (1, 2, 3, 6, 12)}
    per_epoch = by_step(walk, steps, None, lookback=lookback)
    np.testing.assert_array_equal(tests[12].distances, per_epoch.distances)
    assert per_epoch.step is None and tests[12].epoch == per_epoch.epoch
    for every in (2, 3, 6, 12):
        # Frequent looks see whatever rarer looks see at the same steps.
        first = lookback * steps // every
        np.testing.assert_array_equal(tests[every].distances[first:], tests[1].distances[every - 1 :: every][first:])
        if tests[every].epoch is not None:
            assert tests[1].step <= tests[every].step and tests[every].epoch == -(-tests[every].step // steps)


def test_compares_with_the_looks_nearest_to_an_epoch_ago():
    # An epoch has 4 steps, and there is a look every 3: after 3, 6, 9, 12, 15. An epoch before 9 is 5, and the nearest
    # look is 6; before 12 it is 8, nearest 9; before 15 it is 11, nearest 12.
    walk = np.zeros((16, 10), bool)
    walk[5, :5] = walk[8, :2] = walk[14, :1] = True
    test = by_step(walk, 4, every=3, lookback=1, threshold=0.15)
    assert test.distances[2:] == [pytest.approx(0.3), pytest.approx(0.2), pytest.approx(0.1)]
    assert (test.step, test.epoch) == (15, 4)


def test_clock_learns_the_length_of_an_epoch():
    clock = LookClock(every=4)
    clock.begin_epoch(1, None)
    assert clock.epoch_length is None
    assert [clock.advance(3) for _ in range(2)] == [False, True]
    clock.end_epoch(None)
    assert clock.epoch_length == 6
    with pytest.raises(ValueError, match="every=4 .* 3 steps"):
        clock.begin_epoch(2, 3)
