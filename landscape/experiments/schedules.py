"""What is the learning rate, or any other scalar of a run, at a step? Schedules of the clock.

A schedule is called with a `Clock` and gives a number; a number by itself is the constant
schedule. All are values: two of the same fields are the same schedule, and they compose, as in
`Warmup(WarmRestarts(0.1, 10, factor=2), 2)`.

Times are counted in `"epochs"` (fractions within an epoch count), in `"steps"`, or as the `"share"`
of the run that has passed, 0 to 1. Only what looks at the share is fitted to the steps that remain
where a run re-anneals: `Linear`, `Cosine`, and others with `unit="share"`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from landscape.experiments.runs import At, Clock, Run, Scalar, Window

Unit = Literal["epochs", "steps", "share"]
UNITS = ("epochs", "steps", "share")
TOLERANCE = 1e-9  # epochs are sums of fractions: what is due at 0.3 is due at 0.1 + 0.2


@dataclass(frozen=True)
class Step:
    """`initial * factor ** m`, with m the number of `milestones` that have been reached."""

    initial: float
    milestones: tuple[float, ...]
    factor: float = 0.1
    unit: Unit = "epochs"

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_milestones(self.milestones)

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        return self.initial * self.factor ** _reached(self.milestones, _now(clock, self.unit))


@dataclass(frozen=True)
class Exponential:
    """`initial * factor ** k` after k whole epochs (or steps): constant within an epoch.

    With a factor of 0.97 and epochs, the schedule of Achille et al. (arXiv 1711.08856).
    """

    initial: float
    factor: float
    unit: Literal["epochs", "steps"] = "epochs"

    def __post_init__(self) -> None:
        _check_unit(self.unit, ("epochs", "steps"))

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        return self.initial * self.factor ** math.floor(_now(clock, self.unit) + TOLERANCE)


@dataclass(frozen=True)
class Linear:
    """From `initial` to `final` on a straight line between two shares of the run.

    Constant before `begin` and after `end`.
    """

    initial: float
    final: float = 0.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                "begin and end must be shares of the run, 0 <= begin < end <= 1, got "
                f"{self.begin} and {self.end}"
            )

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        passed = (clock.share - self.begin) / (self.end - self.begin)
        return self.initial + (self.final - self.initial) * min(max(passed, 0.0), 1.0)


@dataclass(frozen=True)
class Cosine:
    """From `initial` to `final` on half a cosine over the whole run."""

    initial: float
    final: float = 0.0

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        return _half_cosine(self.initial, self.final, clock.share)


@dataclass(frozen=True)
class WarmRestarts:
    """Half a cosine from `highest` to `lowest` in each cycle, then again from the top: SGDR.

    The first cycle lasts `first`, each other `factor` times as long as the one before it. With
    T the time within a cycle of length T_i, `lowest + (highest - lowest) (1 + cos(pi T / T_i)) / 2`
    (Loshchilov & Hutter, arXiv 1608.03983, eq. 5; there T_0 and T_mult).
    """

    highest: float
    first: float
    factor: float = 1.0
    lowest: float = 0.0
    unit: Unit = "epochs"

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_positive(first=self.first)
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1: cycles never shrink, got {self.factor}")

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        return _half_cosine(self.highest, self.lowest, self.cycle(clock)[1])

    def cycle(self, clock: Clock) -> tuple[int, float]:
        """The number of the cycle, from 0, and the share of it that has passed."""
        number, left, length = 0, _now(clock, self.unit), self.first
        if self.factor == 1:
            return _divided(left / length)
        while left + TOLERANCE >= length:
            number, left, length = number + 1, left - length, length * self.factor
        return number, max(left, 0.0) / length


@dataclass(frozen=True)
class Triangular:
    """Between `lowest` and `highest` on straight lines, up and down within each `period`.

    The cyclical learning rate of Smith (arXiv 1506.01186), whose step size is half the period.
    Begins at the lowest value, or at the highest, as fast geometric ensembling does (Garipov et
    al., arXiv 1802.10026). A cycle runs from low to low either way.
    """

    lowest: float
    highest: float
    period: float
    unit: Unit = "epochs"
    begin: Literal["lowest", "highest"] = "lowest"

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_positive(period=self.period)
        if self.begin not in ("lowest", "highest"):
            raise ValueError(f"begin must be 'lowest' or 'highest', got {self.begin!r}")

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        height = 1 - abs(2 * self.cycle(clock)[1] - 1)
        return self.lowest + (self.highest - self.lowest) * height

    def cycle(self, clock: Clock) -> tuple[int, float]:
        """The number of the cycle, from 0, and the share of it that has passed."""
        shift = 0.5 if self.begin == "highest" else 0.0
        return _divided(_now(clock, self.unit) / self.period + shift)


@dataclass(frozen=True)
class Warmup:
    """Any schedule, rising to it on a straight line during the first `length`.

    The warm-up of w steps multiplies step k = 0, 1, ... by min(1, (k + 1) / w): no step is lost,
    the last of the warm-up has the full value, and what follows is as it were without. Epochs are
    counted at their mean number of steps.
    """

    schedule: Scalar
    length: float
    unit: Unit = "steps"

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        _check_positive(length=self.length)

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        whole = {"steps": clock.steps, "epochs": clock.epochs, "share": 1}[self.unit]
        num_steps = self.length * clock.steps / whole
        return _value(self.schedule, clock) * min(1.0, (clock.step + 1) / num_steps)


@dataclass(frozen=True)
class Scaled:
    """A schedule times a factor."""

    schedule: Scalar
    factor: float

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        return _value(self.schedule, clock) * self.factor


@dataclass(frozen=True)
class Switched:
    """A scalar that is on during a window, and has another value outside it.

    Raises `ValueError` when called if the window lies outside training.
    """

    value: Scalar
    window: Window
    off: Scalar = 0.0

    def __call__(self, clock: Clock) -> float:
        """The value at a time."""
        end = clock.steps if self.window.unit == "steps" else clock.epochs
        if self.window.start >= end or (self.window.stop or 0) > end:
            raise ValueError(
                f"the window from {self.window.start} to {self.window.stop} {self.window.unit} "
                f"lies outside training, which has {end:g}; train longer or move the window"
            )
        return _value(self.value if clock in self.window else self.off, clock)


@dataclass(frozen=True)
class GrowingBatch:
    """A batch size that grows by `factor` at each of the `milestones`, in epochs.

    Put for `batch_size`, in place of a `Step` that falls by the same factor: the noise scale
    lr / batch_size is that of the decay (Smith et al., arXiv 1711.00489).
    """

    initial: int
    milestones: tuple[float, ...]
    factor: float

    def __post_init__(self) -> None:
        _check_milestones(self.milestones)
        if self.initial < 1 or self.factor < 1:
            raise ValueError(
                "initial and factor of a growing batch must be at least 1, got "
                f"{self.initial} and {self.factor}"
            )

    def __call__(self, epoch: int) -> int:
        """The number of examples of a batch, to the nearest integer, in an epoch."""
        return round(self.initial * self.factor ** _reached(self.milestones, epoch))


class Cyclic(Protocol):
    """A schedule that counts its cycles."""

    def cycle(self, clock: Clock) -> tuple[int, float]:
        """The number of the cycle, from 0, and the share of it that has passed."""


def cycle_ends(schedule: Cyclic, run: Run) -> At:
    """Checkpoints where each cycle of a learning rate has ended, for `checkpoints` of the run.

    The numbers of steps taken when a cycle is over, which is where its rate is lowest. The clock is
    that of the run's learning rate, so that `lr_policy` and branches are followed. The last cycle
    counts if training ends with it.

    Raises `ValueError` if no cycle ends during the run.
    """
    steps = range(run.first_step, run.timeline.steps + 1)
    numbers = [schedule.cycle(run.lr_clock(step))[0] for step in steps]
    ends = [step for step, a, b in zip(steps[1:], numbers, numbers[1:], strict=False) if b > a]
    if not ends:
        raise ValueError(
            f"no cycle of {schedule!r} ends within the {run.timeline.epochs} epochs of run "
            f"{run.name!r}; train longer or shorten the cycles"
        )
    return At(ends)


def linearly_scaled(lr: Scalar, *, batch_size: int, reference: int) -> Scalar:
    """A learning rate for another batch size: in proportion to it (Goyal et al., arXiv 1706.02677).

    `lr` is what is used with batches of `reference` examples.
    """
    _check_positive(batch_size=batch_size, reference=reference)
    factor = batch_size / reference
    return Scaled(lr, factor) if callable(lr) else lr * factor


def _value(scalar: Scalar, clock: Clock) -> float:
    return scalar(clock) if callable(scalar) else scalar


def _now(clock: Clock, unit: Unit) -> float:
    return {"epochs": clock.epoch, "steps": clock.step, "share": clock.share}[unit]


def _half_cosine(initial: float, final: float, share: float) -> float:
    return final + (initial - final) * (1 + math.cos(math.pi * share)) / 2


def _reached(milestones: Iterable[float], now: float) -> int:
    return sum(milestone <= now + TOLERANCE for milestone in milestones)


def _divided(position: float) -> tuple[int, float]:
    """The whole cycles of a position, and the share of the next that has passed."""
    number = math.floor(position + TOLERANCE)
    return number, max(position - number, 0.0)


def _check_unit(unit: str, units: tuple[str, ...] = UNITS) -> None:
    if unit not in units:
        raise ValueError(f"unit must be one of {', '.join(units)}, got {unit!r}")


def _check_milestones(milestones: tuple[float, ...]) -> None:
    if not all(a < b for a, b in zip((0.0, *milestones), milestones, strict=False)):
        raise ValueError(f"milestones must be above 0 and increase, got {milestones}")


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be above 0, got {number}")
