"""Pruning schedules: at which steps units are switched off, and how many. Independent of Keras."""

from collections.abc import Callable, Iterator
from typing import Any, cast

from tfspline.callbacks.state import Saved


class Schedule:
    """A pruning schedule, a function step -> `(should_prune, sparsity)`, whose answers are checked."""

    def __init__(self, function: Callable[[int], tuple[bool, float]]):
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"schedule must be a function, step -> (should_prune, sparsity). Received: {function!r}")
        self._function = function
        self.at(0)

    def at(self, step: int) -> float | None:
        """Returns the sparsity for a step; None if the schedule does not prune there."""
        answer = self._function(step)
        try:
            prune, sparsity = answer
            # tfmot's sparsities are float32; rounding turns 0.29999998 into 0.3.
            prune, sparsity = bool(prune), round(float(sparsity), 6)
        except (TypeError, ValueError) as error:
            raise TypeError(f"schedule must return (should_prune, sparsity). Received: {answer!r}") from error
        if not prune:
            return None
        if not 0 <= sparsity < 1:
            raise ValueError(f"schedule must return sparsities in [0, 1). Received: {sparsity} at step {step}")
        return sparsity

    def within(self, first: int, stop: int) -> Iterator[tuple[int, float]]:
        """Yields the steps in [first, stop) at which the schedule prunes, each with its sparsity."""
        steps, schedule = range(first, stop), cast(Any, self._function)
        if type(schedule).__module__.startswith("tensorflow_model_optimization."):
            # A call to tfmot's own schedules takes a millisecond, as much as a small training step. They prune at
            # regular intervals, so the steps in between need no call.
            turns = max(0, -((schedule.begin_step - first) // schedule.frequency))
            steps = range(schedule.begin_step + turns * schedule.frequency, stop, schedule.frequency)
        for step in steps:
            sparsity = self.at(step)
            if sparsity is not None:
                yield step, sparsity

    def misfit(self, steps: int) -> str | None:
        """Returns why the schedule does not suit a training of `steps` steps; None if it does."""
        sparsities = dict(self.within(0, steps + 1))
        if not sparsities:
            return f"schedule never prunes within the {steps} steps of the fit. Let it begin earlier, or train longer."
        final = sparsities[max(sparsities)]
        end = getattr(self._function, "end_step", None)  # tfmot's schedules have one; -1 means never
        beyond = [end] if end is not None else range(steps + 1, 2 * steps + 1)
        later = [step for step in beyond if step > steps and self.at(step) not in (None, final)]
        if not later:
            return None
        return (
            f"schedule does not end within the {steps} steps of the fit: its sparsity is {final:.4g} there and "
            f"{self.at(later[-1]):.4g} at step {later[-1]}. Shorten the schedule, or train longer; another fit with "
            "this callback continues it."
        )


class Progress(Saved):
    """How far a training has come along a schedule."""

    SAVED = ("step", "begin", "_next")

    def __init__(self, schedule: Schedule, begin: int | None = 0):
        self.schedule = schedule
        self.step = 0  # the number of trained steps
        self.begin = begin  # the training step that is step 0 of the schedule; None until the schedule begins
        self._next = 0  # the first step of the schedule that has not been considered

    def due(self) -> float | None:
        """Returns the sparsity of the last pruning step since the last call, up to the current step; None if none."""
        if self.begin is None:
            return None
        stop = self.step - self.begin + 1
        due = list(self.schedule.within(self._next, stop))
        self._next = max(self._next, stop)
        return due[-1][1] if due else None

    def prunes(self, remaining: int) -> bool:
        """Whether the schedule prunes at all, in a training of `remaining` further steps or one twice as long."""
        steps = self.step - (self.begin or 0) + remaining
        return next(self.schedule.within(0, 2 * steps + 1), None) is not None

    def misfit(self, remaining: int) -> str | None:
        """Returns why the schedule does not suit a training of `remaining` further steps; None if it does."""
        return self.schedule.misfit(self.step - (self.begin or 0) + remaining)
