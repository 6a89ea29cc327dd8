"""Pruning schedules and the progress along them, without a training."""

import pytest
from helpers.schedules import Every

from tfspline.callbacks.schedules import Progress, Schedule


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (0.5, TypeError, "schedule must be a function.*0.5"),
        (Every, TypeError, "schedule must be a function"),
        (lambda step: 0.5, TypeError, "schedule must return .*0.5"),
        (lambda step: (True, "much"), TypeError, "'much'"),
        (lambda step: (True, 1.0), ValueError, r"sparsities in \[0, 1\).* 1.0 at step 0"),
        (lambda step: (True, -0.1), ValueError, "-0.1"),
    ],
)
def test_refuses_functions_of_another_kind(function, error, message):
    with pytest.raises(error, match=message):
        Schedule(function)


def test_rounds_float32():
    assert Schedule(lambda step: (True, 0.29999998)).at(0) == 0.3


def test_yields_the_steps_that_prune():
    assert list(Schedule(Every(0.4, begin=2, end=6, frequency=2)).within(0, 20)) == [(2, 0.0), (4, 0.2), (6, 0.4)]


@pytest.mark.parametrize(
    "function",
    [Every(0.5, 0, 12), Every(0.0), lambda step: (step % 5 == 0, 0.5), Every(0.5, 0, 11, 4), lambda step: (True, 0.5)],
)
def test_schedules_that_end_fit(function):
    assert Schedule(function).misfit(12) is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda step: (False, 0.5), "never prunes within the 12 steps"),
        (Every(0.5, 13, 20), "never prunes"),
        (Every(0.5, 0, 14), "does not end within the 12 steps .* 0.4286 there and 0.5 at step 14"),
        (lambda step: (True, min(0.9, step / 50)), "does not end within the 12 steps"),
    ],
)
def test_schedules_that_never_prune_or_end_do_not_fit(function, message):
    misfit = Schedule(function).misfit(12)
    assert misfit.startswith("schedule ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(misfit)


def test_progress_returns_the_last_sparsity_that_is_due():
    progress = Progress(Schedule(lambda step: (step % 2 == 0, step / 10)))
    assert progress.due() == 0.0
    assert progress.due() is None
    progress.step = 1
    assert progress.due() is None
    progress.step = 5  # several steps in one execution
    assert progress.due() == 0.4


def test_progress_counts_from_where_the_schedule_begins():
    progress = Progress(Schedule(lambda step: (step == 2, 0.5)), begin=None)
    progress.step = 7
    assert progress.due() is None
    progress.begin = progress.step
    progress.step = 8
    assert progress.due() is None
    progress.step = 9
    assert progress.due() == 0.5


def test_a_restored_progress_continues():
    schedule = Schedule(lambda step: (step % 2 == 0, step / 10))
    progress, restored = Progress(schedule, begin=3), Progress(schedule, begin=None)
    progress.step = 5
    assert progress.due() == 0.2
    restored.restore(progress.to_arrays())
    assert restored.due() is None
    restored.step = 7
    assert restored.due() == 0.4


def test_calls_schedules_of_tfmot_only_where_they_prune(tfmot):
    schedules = tfmot.sparsity.keras
    for function in (
        schedules.PolynomialDecay(0.1, 0.5, 3, 17, frequency=4),
        schedules.ConstantSparsity(0.5, 2, -1, 5),
    ):
        for first in range(20):
            pruned = list(Schedule(function).within(first, 20))
            assert pruned == list(Schedule(lambda step, of=function: of(step)).within(first, 20))
    calls = []

    class Counted(schedules.ConstantSparsity):
        def __call__(self, step):
            calls.append(step)
            return super().__call__(step)

    Counted.__module__ = schedules.ConstantSparsity.__module__
    schedule = Schedule(Counted(0.5, 0, frequency=100))
    calls.clear()
    assert len(list(schedule.within(0, 1000))) == len(calls) == 10
