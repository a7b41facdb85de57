import json
import math
from functools import partial

import pytest
import torch

from landscape import models
from landscape.checkpoints import save_checkpoint
from landscape.datasets import Batches
from landscape.experiments import (
    At,
    Branch,
    Clock,
    During,
    Every,
    Run,
    Seeds,
    Window,
    log_spaced,
)
from landscape.experiments.settings import described, differences

DATA = Batches(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3)
MAKE = partial(models.mlp, 4, (5,), 3)


def a_run(**changes):
    return Run(
        **{"name": "a", "make_model": MAKE, "data": DATA, "epochs": 4, "batch_size": 16, **changes}
    )


def halving(clock):
    return 0.5**clock.epoch


def cosine(clock):
    return (1 + math.cos(math.pi * clock.share)) / 2


def rate(run, step):
    return run.lr(run.lr_clock(step))


# Time ---------------------------------------------------------------------------------------------


def test_an_epoch_has_as_few_batches_as_hold_all_examples():
    assert a_run().timeline.starts == (0, 4, 8, 12, 16)
    growing = a_run(batch_size=lambda epoch: 10 * 2**epoch, epochs=3)
    assert growing.timeline.starts == (0, 5, 8, 10)
    assert growing.clock(5) == Clock(5, 1.0, 10, 3)
    assert growing.clock(9) == Clock(9, 2.5, 10, 3)
    assert growing.clock(10).epoch == 3
    assert growing.clock(5).share == 0.5


def test_windows_are_half_open_and_the_same_in_steps_and_in_epochs():
    line = a_run().timeline
    for window, steps in (
        (Window(1, 3), (4, 12)),
        (Window(0.5, 0.75), (2, 3)),
        (Window(), (0, 16)),
        (Window(3), (12, 16)),
        (Window(5, 7, "steps"), (5, 7)),
    ):
        assert window.within(line) == steps
        assert [s for s in range(16) if line.at(s) in window] == list(range(*steps))


def test_checkpoints_are_the_union_of_plans_with_the_first_and_the_last_step():
    assert a_run().checkpoint_steps == {0, 4, 8, 12, 16}
    assert a_run(checkpoints=()).checkpoint_steps == {0, 16}
    dense = (At(range(4)), Every(epochs=2), Every(steps=7))
    assert a_run(checkpoints=dense).checkpoint_steps == {0, 1, 2, 3, 7, 8, 14, 16}
    assert log_spaced(10).steps == (0, 1, 2, 4, 8, 10)
    assert log_spaced(8, per_octave=2).steps == (0, 1, 2, 3, 4, 6, 8)


# Policies of the learning rate --------------------------------------------------------------------


def branch(clock, step=8):
    return Branch(
        state=MAKE(seed=1).state_dict(), step=step, optimiser="reset", clock=clock,
        batch_norm="carry",
    )  # fmt: skip


def test_a_branch_says_what_the_learning_rate_does():
    def rates(schedule, clock):
        run = a_run(lr=schedule, start=branch(clock))
        return [rate(run, step) for step in (8, 12, 15)]

    assert rates(halving, "continue") == pytest.approx([0.25, 0.125, 0.5**3.75])
    assert rates(halving, "reset") == pytest.approx([1, 0.5, 0.5**1.75])
    assert rates(halving, "constant") == pytest.approx([0.25] * 3)
    assert rates(halving, "re-anneal") == pytest.approx([1, 0.5, 0.5**1.75])
    share = [cosine(Clock(k, 0, 16, 4)) for k in range(17)]
    assert rates(cosine, "continue") == pytest.approx([share[8], share[12], share[15]])
    assert rates(cosine, "reset") == pytest.approx([share[0], share[4], share[7]])
    assert rates(cosine, "constant") == pytest.approx([share[8]] * 3)
    assert rates(cosine, "re-anneal") == pytest.approx([share[0], share[8], share[14]])


def test_a_window_says_what_the_learning_rate_does():
    def rates(policy):
        run = a_run(lr=cosine, lr_policy=policy, lr_window=Window(1, 2))
        return [rate(run, step) for step in (2, 4, 6, 8, 12)]

    share = [cosine(Clock(k, 0, 16, 4)) for k in range(17)]
    assert rates("continue") == pytest.approx([share[i] for i in (2, 4, 6, 8, 12)])
    assert rates("reset") == pytest.approx([share[i] for i in (2, 4, 6, 0, 4)])
    assert rates("constant") == pytest.approx([share[i] for i in (2, 4, 4, 4, 4)])
    assert rates("re-anneal") == pytest.approx([share[2], share[4], share[4], share[0], share[8]])


# Settings -----------------------------------------------------------------------------------------


def test_settings_are_json_and_tell_runs_apart():
    def settings(**changes):
        return json.loads(json.dumps(a_run(**changes).settings()))

    assert settings() == settings(data=Batches(DATA.inputs.clone(), DATA.targets))
    other = Batches(DATA.inputs + 1, DATA.targets)
    for change, keys in (
        ({"seeds": Seeds(order=1)}, {"seeds.order"}),
        ({"lr": halving}, {"lr"}),
        ({"data": other}, {"data.sha256"}),
        ({"make_model": partial(models.mlp, 4, (6,), 3)}, {"make_model.arguments"}),
        ({"lr_window": Window(0, 2)}, {"lr_window"}),
    ):
        assert set(differences(settings(), settings(**change))) == keys


def test_functions_without_a_place_are_told_apart_by_what_they_are_made_of():
    def scaled(factor):
        return lambda clock: factor * clock.epoch

    assert described(scaled(2)) == described(scaled(2))
    assert described(scaled(2)) != described(scaled(3))
    assert described(lambda clock: clock.epoch + 1) != described(lambda clock: clock.epoch + 2)


def test_a_checkpoint_is_described_by_its_contents(tmp_path):
    one = save_checkpoint(MAKE(seed=0), tmp_path / "one", step=3)
    two = save_checkpoint(MAKE(seed=0), tmp_path / "two", step=3)
    assert described(one) == described(two)
    assert described(one) != described(save_checkpoint(MAKE(seed=1), tmp_path / "two", step=3))


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"batch_size": 51}, "batch_size must be 1 to 50, the number of training examples, got 51"),
        ({"batch_size": 0}, "batch_size must be 1 to 50"),
        ({"views": (During(None, Window(4, 5)),)}, "from 4 to 5 epochs lies outside training"),
        ({"frozen": (During("*", Window(3, 20, "steps")),)}, "which has 16 steps; train longer"),
        ({"lr_policy": "reset"}, "needs the lr_window that it is about"),
        ({"lr_policy": "none"}, "lr_policy must be one of continue, reset, constant, re-anneal"),
        ({"optimiser": "lion"}, "optimiser must be one of sgd, nesterov, adam, adamw"),
        ({"checkpoints": (At([17]),)}, "checkpoints at steps .17. lie outside training"),
        ({"start": branch("continue", 16)}, "starts at step 16, but training ends after 16"),
        ({"name": "../a"}, "a folder within another"),
        ({"epochs": 0}, "at least 1"),
        (
            {"start": branch("reset"), "lr_policy": "reset", "lr_window": Window(0, 3)},
            "not both",
        ),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_trained_is_refused_at_once(changes, match):
    with pytest.raises(ValueError, match=match):
        a_run(**changes)


def test_what_has_no_window_is_refused():
    with pytest.raises(TypeError, match=r"hold During\(what, Window\(...\)\), got 'fc1.*'"):
        a_run(frozen=("fc1.*",))


def test_windows_and_plans_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="stops after that, got 3 to 3 epochs"):
        Window(3, 3)
    with pytest.raises(ValueError, match="unit of a window must be 'epochs' or 'steps'"):
        Window(0, 3, "batches")
    with pytest.raises(ValueError, match="Every takes epochs or steps"):
        Every()
    with pytest.raises(ValueError, match="clock of a branch must be one of continue"):
        branch("anneal")
