"""Schedules are their closed forms, those of torch where it has them, and compose."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.optim import lr_scheduler

from landscape.datasets import Batches
from landscape.experiments.runs import At, Branch, Clock, Run, Window
from landscape.experiments.schedules import (
    Cosine,
    Exponential,
    GrowingBatch,
    Linear,
    Scaled,
    Step,
    Switched,
    Triangular,
    WarmRestarts,
    Warmup,
    cycle_ends,
    linearly_scaled,
)
from landscape.experiments.settings import described

ALL = [
    Step(0.1, (3, 6)),
    Exponential(0.1, 0.97),
    Linear(0.1),
    Cosine(0.1),
    WarmRestarts(0.1, 2, factor=2),
    Triangular(0.01, 0.1, 2),
    Warmup(Cosine(0.1), 3),
    Scaled(Cosine(0.1), 2.0),
    Switched(Cosine(0.1), Window(2, 4)),
]


def linear(seed=0):
    return nn.Linear(2, 2)


def a_run(**changes):
    """10 epochs of 8 steps."""
    data = Batches(torch.zeros(32, 2), torch.zeros(32, dtype=torch.long))
    return Run(**{"name": "a", "make_model": linear, "data": data, "epochs": 10, "batch_size": 4,
                  **changes})  # fmt: skip


RUN = a_run()


def values(schedule, run=RUN):
    """The value at each step."""
    return np.array([schedule(run.clock(step)) for step in range(run.timeline.steps)])


def of_torch(scheduler, *, per_epoch, initial, **arguments):
    """The learning rate of a scheduler of torch at each of 80 steps."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial)
    schedule, rates = scheduler(optimiser, **arguments), []
    for step in range(80):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if not per_epoch or step % 8 == 7:
            schedule.step()
    return rates


STEPS = np.arange(80)
EPOCHS = STEPS // 8


# Closed forms and torch ---------------------------------------------------------------------------


def test_steps_exponentials_and_lines_are_their_closed_forms():
    assert_allclose(
        values(Step(0.1, (3, 6), 0.2)), 0.1 * 0.2 ** ((EPOCHS >= 3) * 1 + (EPOCHS >= 6))
    )
    assert_allclose(values(Step(0.1, (5,), unit="steps")), np.where(STEPS < 5, 0.1, 0.01))
    assert_allclose(values(Step(0.1, (0.25,), unit="share")), np.where(STEPS < 20, 0.1, 0.01))
    assert_allclose(values(Exponential(0.05, 0.97)), 0.05 * 0.97**EPOCHS)
    assert_allclose(values(Exponential(0.05, 0.97, "steps")), 0.05 * 0.97**STEPS)
    assert_allclose(values(Linear(0.3, 0.1)), 0.3 - 0.2 * STEPS / 80)
    assert_allclose(
        values(Linear(0.3, 0.1, 0.5, 0.75)), np.interp(STEPS, [0, 40, 60, 80], [0.3, 0.3, 0.1, 0.1])
    )


@pytest.mark.parametrize(
    ("ours", "scheduler", "arguments"),
    [
        (Step(0.1, (3, 6)), lr_scheduler.MultiStepLR, {"milestones": [3, 6], "per_epoch": True}),
        (Exponential(0.1, 0.9), lr_scheduler.ExponentialLR, {"gamma": 0.9, "per_epoch": True}),
        (
            Cosine(0.1, 0.01),
            lr_scheduler.CosineAnnealingLR,
            {"T_max": 80, "eta_min": 0.01, "per_epoch": False},
        ),
        (
            WarmRestarts(0.1, 8, 2, 0.001, unit="steps"),
            lr_scheduler.CosineAnnealingWarmRestarts,
            {"T_0": 8, "T_mult": 2, "eta_min": 0.001, "per_epoch": False},
        ),
        (
            Triangular(0.01, 0.1, 14, unit="steps"),
            lr_scheduler.CyclicLR,
            {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 7, "cycle_momentum": False,
             "per_epoch": False},
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "__dataclass_fields__") else "",
)  # fmt: skip
def test_schedules_are_those_of_torch(ours, scheduler, arguments):
    assert_allclose(values(ours), of_torch(scheduler, initial=0.1, **arguments), rtol=1e-9)


# Restarts and cycles ------------------------------------------------------------------------------


def test_restarts_begin_at_the_top_and_end_within_a_step_of_the_bottom():
    rates = values(WarmRestarts(0.1, 2, factor=2, lowest=0.01))  # cycles of 2, 4 and 8 epochs
    for begin, length in ((0, 16), (16, 32), (48, 64)):
        assert rates[begin] == pytest.approx(0.1, rel=1e-12)
        assert_allclose(
            rates[begin : begin + length],
            0.01 + 0.09 * (1 + np.cos(np.pi * np.arange(min(length, 80 - begin)) / length)) / 2,
        )
    for last, length in ((15, 16), (47, 32)):
        assert rates[last] - 0.01 == pytest.approx(0.09 * (1 - math.cos(math.pi / length)) / 2)


@pytest.mark.parametrize("period", [2, 0.25, 1 / 3, 0.1])
@pytest.mark.parametrize("cycle", [
    lambda period: Triangular(0.01, 0.1, period),
    lambda period: Triangular(0.01, 0.1, period, begin="highest"),
    lambda period: WarmRestarts(0.1, period, lowest=0.01),
], ids=["triangular", "from the top", "restarts"])  # fmt: skip
def test_cycles_are_periodic(cycle, period):
    schedule = cycle(period)
    for now in np.linspace(0, 3, 91):
        once, later = (schedule(Clock(0, epoch, 100, 1000)) for epoch in (now, now + 100 * period))
        assert later == pytest.approx(once, abs=1e-9)


def test_triangles_reach_both_bounds_and_are_straight():
    rates = values(Triangular(0.01, 0.1, 2))
    assert_allclose(rates, np.interp(STEPS % 16, [0, 8, 16], [0.01, 0.1, 0.01]))
    assert_allclose(values(Triangular(0.01, 0.1, 2, begin="highest"))[:-8], rates[8:])


def test_cycle_ends_are_where_the_rate_is_lowest():
    assert cycle_ends(WarmRestarts(0.1, 1, factor=2), RUN) == At((8, 24, 56))
    assert cycle_ends(WarmRestarts(0.1, 5), RUN) == At((40, 80))  # the last ends with training
    assert cycle_ends(Triangular(0.01, 0.1, 4), RUN) == At((32, 64))
    assert cycle_ends(Triangular(0.01, 0.1, 4, begin="highest"), RUN) == At((16, 48, 80))
    fractions = cycle_ends(WarmRestarts(0.1, 1 / 8 + 1e-12), RUN)
    assert fractions == At(range(1, 81))
    run = replace(RUN, checkpoints=(cycle_ends(WarmRestarts(0.1, 5), RUN),))
    assert run.checkpoint_steps == {0, 40, 80}


def test_cycle_ends_follow_the_clock_of_the_learning_rate():
    reset = a_run(lr_policy="reset", lr_window=Window(0, 3))
    assert cycle_ends(WarmRestarts(0.1, 2), reset) == At((16, 40, 56, 72))
    start = Branch(state={}, step=24, optimiser="reset", clock="reset", batch_norm="carry")
    assert cycle_ends(WarmRestarts(0.1, 2), a_run(start=start)) == At((40, 56, 72))
    with pytest.raises(ValueError, match=r"no cycle of .* ends within the 10 epochs of run 'a'"):
        cycle_ends(WarmRestarts(0.1, 11), RUN)


# Composition --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{"length": 20}, {"length": 2.5, "unit": "epochs"},
                                    {"length": 0.25, "unit": "share"}])  # fmt: skip
@pytest.mark.parametrize("schedule", [0.35, *ALL[:6]], ids=repr)
def test_warm_up_is_linear_and_reaches_its_target_at_its_last_step(schedule, length):
    plain = values(schedule) if callable(schedule) else np.full(80, schedule)
    warm = values(Warmup(schedule, **length))
    assert_allclose(warm[:20] / plain[:20], np.arange(1, 21) / 20)
    assert_allclose(warm[19:], plain[19:], rtol=1e-14)


def test_switched_scalars_are_on_in_their_window_alone():
    inside = (STEPS >= 20) & (STEPS < 36)
    assert_allclose(values(Switched(5e-4, Window(2.5, 4.5))), np.where(inside, 5e-4, 0))
    decay = Switched(Linear(1.0), Window(20, 36, "steps"), off=Cosine(0.1))
    assert_allclose(values(decay), np.where(inside, values(Linear(1.0)), values(Cosine(0.1))))
    assert values(Switched(1.0, Window(9)))[-8:].all()
    for window in (Window(10), Window(3, 11), Window(80, unit="steps")):
        with pytest.raises(ValueError, match=r"lies outside training, which has (10|80)"):
            Switched(1.0, window)(RUN.clock(0))


def test_a_schedule_of_the_share_is_fitted_to_the_steps_that_remain():
    run = a_run(lr_policy="re-anneal", lr_window=Window(0, 6))
    for schedule in (Linear(0.1), Cosine(0.1), Step(0.1, (0.5,), unit="share")):
        rates = [schedule(run.lr_clock(step)) for step in range(80)]
        short = a_run(epochs=4)
        assert_allclose(rates, np.r_[np.full(48, 0.1), values(schedule, short)])


# Batch sizes --------------------------------------------------------------------------------------


def test_large_batches_scale_in_proportion():
    assert linearly_scaled(0.1, batch_size=1024, reference=256) == pytest.approx(0.4)
    scaled = linearly_scaled(Cosine(0.1), batch_size=384, reference=256)
    assert_allclose(values(scaled), 1.5 * values(Cosine(0.1)))


def test_a_growing_batch_has_the_noise_scale_of_the_decay():
    decay, grown = Step(0.1, (3, 6), factor=1 / 2), GrowingBatch(4, (3, 6), factor=2)
    for epoch in range(10):
        noise = decay(Clock(0, float(epoch), 1, 10)) / 4
        assert 0.1 / grown(epoch) == pytest.approx(noise, rel=1e-12)
    run = a_run(batch_size=grown)
    assert np.diff(run.timeline.starts).tolist() == [8] * 3 + [4] * 3 + [2] * 4


# What they are ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [*ALL, GrowingBatch(4, (3,), 2)], ids=repr)
def test_schedules_are_values_that_describe_themselves_and_travel(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    words = described(schedule)
    assert words["is"] == f"landscape.experiments.schedules:{type(schedule).__name__}"
    assert set(words) == {"is", *schedule.__dataclass_fields__}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Step(0.1, (6, 3)), r"milestones must be above 0 and increase, got \(6, 3\)"),
        (lambda: Step(0.1, (3,), unit="epoch"), "unit must be one of epochs, steps, share, got 'e"),
        (lambda: Exponential(0.1, 0.9, "share"), "unit must be one of epochs, steps, got 'share'"),
        (lambda: Linear(0.1, begin=0.5, end=0.5), "0 <= begin < end <= 1, got 0.5 and 0.5"),
        (lambda: WarmRestarts(0.1, 0), "first must be above 0, got 0"),
        (lambda: WarmRestarts(0.1, 2, factor=0.5), "factor must be at least 1: cycles never"),
        (lambda: Triangular(0, 0.1, -1), "period must be above 0, got -1"),
        (lambda: Triangular(0, 0.1, 1, begin="top"), "begin must be 'lowest' or 'highest', got"),
        (lambda: Warmup(0.1, 0), "length must be above 0, got 0"),
        (lambda: GrowingBatch(0, (3,), 2), "must be at least 1, got 0 and 2"),
        (lambda: GrowingBatch(4, (0,), 2), r"milestones must be above 0 and increase, got \(0,\)"),
        (lambda: linearly_scaled(0.1, batch_size=8, reference=0), "reference must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
