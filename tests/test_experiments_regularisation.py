"""Arms differ from their base in one thing, at the times and with the learning rate they say."""

import pickle
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from landscape import checkpoints, models, results
from landscape.datasets import Batches
from landscape.experiments.augmentations import Mixup, Shift
from landscape.experiments.deficits import Blur, NoiseImages, flip_vertical
from landscape.experiments.regularisation import (
    Regulariser,
    compared_deficits,
    compared_optimisers,
    large_batches,
    over_seeds,
    regularised_from,
    regularised_until,
    regularised_windows,
    removal_sweep,
    sensitivity_windows,
)
from landscape.experiments.runs import POLICIES, During, Run, Seeds, Window
from landscape.experiments.schedules import (
    Cosine,
    Exponential,
    Linear,
    Switched,
    Warmup,
)
from landscape.experiments.training import train

LABELS = torch.arange(48) % 3
IMAGES = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
DATA = Batches(IMAGES + LABELS[:, None, None, None], LABELS)


def network(*, seed):
    return models.mlp(64, (9,), 3, seed=seed).double()


BASE = Run(
    name="base", make_model=network, data=DATA, epochs=6, batch_size=12, lr=Exponential(0.05, 0.8)
)  # 24 steps
DECAY = Regulariser(weight_decay=0.1)
train = partial(train, device="cpu", progress=False, stack=1)


def rates(run):
    return [run.lr(run.lr_clock(step)) for step in range(run.timeline.steps)]


def decays(run):
    decay = run.weight_decay
    return [
        decay(run.clock(step)) if callable(decay) else decay for step in range(run.timeline.steps)
    ]


def views_at(run, epoch):
    clock = run.clock(run.timeline.step_of(epoch))
    return [timed.what for timed in run.views if clock in timed.window]


def changed(run, base=BASE):
    """The fields in which a run differs from the base, without its name."""
    pairs = ((field.name, getattr(run, field.name), getattr(base, field.name))
             for field in fields(Run))  # fmt: skip
    return {name for name, a, b in pairs if a is not b and a != b} - {"name"}


def states(run, folder):
    return {checkpoint.step: checkpoint.load() for checkpoint in checkpoints(folder / run.name)}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# Deficits in time ---------------------------------------------------------------------------------


def test_a_removal_sweep_ends_so_many_clean_epochs_after_each_removal():
    runs = removal_sweep(BASE, Blur(size=4), [0, 2, 5], clean=3, lr_policy="continue")
    assert [run.name for run in runs] == ["base/removed-0", "base/removed-2", "base/removed-5"]
    for run, removal in zip(runs, [0, 2, 5], strict=True):
        assert run.epochs == removal + 3
        seen = [views_at(run, epoch) for epoch in range(run.epochs)]
        assert seen == [[Blur(size=4)]] * removal + [[]] * 3
        assert rates(run) == [BASE.lr(run.clock(step)) for step in range(run.timeline.steps)]
        assert changed(run) <= {"epochs", "views", "lr_window"}
    assert changed(runs[0]) == {"epochs"}


def test_a_removal_sweep_does_with_the_learning_rate_what_its_policy_says():
    fresh = [0.05 * 0.8 ** (step // 4) for step in range(24)]
    sweep = partial(removal_sweep, BASE, Blur(size=4), [0, 2], clean=3)
    for policy, before in (("reset", fresh[:8]), ("re-anneal", [0.05] * 8)):
        none, two = sweep(lr_policy=policy)
        assert_allclose(rates(none), fresh[:12])
        assert_allclose(rates(two), before + fresh[:12])
    for run in sweep(lr_policy="constant"):
        assert_allclose(rates(run), 0.05)  # the run without deficit too


@pytest.mark.parametrize("policy", POLICIES)
def test_sensitivity_windows_slide_and_differ_in_nothing_else(policy):
    never, *runs = sensitivity_windows(BASE, flip_vertical, [0, 1, 4], width=2, lr_policy=policy)
    assert changed(never) == set()
    assert views_at(never, 0) == []
    for run, onset in zip(runs, [0, 1, 4], strict=True):
        assert run.name == f"base/onset-{onset}"
        on = [bool(views_at(run, epoch)) for epoch in range(6)]
        assert on == [onset <= epoch < onset + 2 for epoch in range(6)]
        assert run.lr_policy == policy
        assert run.lr_window == Window(onset, onset + 2)
        assert changed(run) <= {"views", "lr_policy", "lr_window"}


def test_sensitivity_windows_with_clean_epochs_after_each():
    never, *runs = sensitivity_windows(
        BASE, flip_vertical, [0, 3], width=2, clean=4, lr_policy="continue"
    )
    assert [run.epochs for run in (never, *runs)] == [9, 6, 9]


def test_compared_deficits_have_the_learning_rate_and_length_of_the_run_without():
    deficits = {"blur": Blur(size=4), "noise": NoiseImages()}
    runs = compared_deficits(BASE, deficits, until=2, clean=3, lr_policy="re-anneal")
    assert [run.name for run in runs] == ["base/none", "base/blur", "base/noise"]
    assert [views_at(run, 1.5) for run in runs] == [[], [Blur(size=4)], [NoiseImages()]]
    assert [views_at(run, 2) for run in runs] == [[], [], []]
    assert {tuple(rates(run)) for run in runs} == {tuple(rates(runs[0]))}
    assert_allclose(rates(runs[0])[:8], 0.05)
    with pytest.raises(ValueError, match="a deficit cannot be named 'none'"):
        compared_deficits(BASE, {"none": Blur(size=4)}, until=1, clean=1, lr_policy="continue")


def test_deficits_are_added_to_the_views_of_the_base():
    base = replace(BASE, views=(During(flip_vertical),))
    (run,) = removal_sweep(base, Blur(size=4), [2], clean=3, lr_policy="continue")
    assert views_at(run, 1) == [flip_vertical, Blur(size=4)]
    assert views_at(run, 2) == [flip_vertical]


# Regularisation in time ---------------------------------------------------------------------------


def test_regularised_until_and_from_meet_at_never_and_always():
    until = regularised_until(BASE, DECAY, [0, 2, 6], lr_policy="continue")
    since = regularised_from(BASE, DECAY, [6, 2, 0], lr_policy="continue")
    assert [run.name for run in until] == ["base/until-0", "base/until-2", "base/until-6"]
    assert [run.name for run in since] == ["base/from-6", "base/from-2", "base/from-0"]
    steps = np.arange(24)
    for runs, on in ((until, steps < 8), (since, steps >= 8)):
        never, half, always = runs
        assert changed(never) == set()
        assert decays(never) == [0.0] * 24
        assert_allclose(decays(half), np.where(on, 0.1, 0))
        assert decays(always) == [0.1] * 24
        assert changed(half) == changed(always) == {"weight_decay", "lr_window"}


def test_the_base_says_what_holds_outside_the_window():
    base = replace(BASE, weight_decay=0.01, augmentations=(During(Shift(2)),), knobs={"alpha": 0.5})
    on = Regulariser(Cosine(0.1), (Shift(1), Mixup(1.0, 3)), {"alpha": Linear(2.0)})
    (run,) = regularised_windows(base, on, [2], width=2.5, lr_policy="continue")
    window = Window(2, 4.5)
    assert run.name == "base/onset-2"
    assert run.weight_decay == Switched(Cosine(0.1), window, 0.01)
    assert run.knobs == {"alpha": Switched(Linear(2.0), window, 0.5)}
    assert run.augmentations == (
        During(Shift(2)), During(Shift(1), window), During(Mixup(1.0, 3), window)
    )  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_every_arm_carries_the_policy_of_the_learning_rate(policy):
    runs = regularised_windows(BASE, DECAY, [0, 1.5, 4], width=2, lr_policy=policy)
    assert {run.lr_policy for run in runs} == {policy}
    assert [run.lr_window for run in runs] == [Window(0, 2), Window(1.5, 3.5), Window(4, 6)]
    until = regularised_until(BASE, DECAY, [0, 3], lr_policy="constant")
    assert all(set(rates(run)) == {0.05} for run in until)


@pytest.mark.parametrize("regulariser", [DECAY, Regulariser(augmentations=(Shift(1),))], ids=str)
def test_weights_are_those_of_never_and_always_while_nothing_differs(regulariser, tmp_path):
    until = regularised_until(BASE, regulariser, [0, 3, 6], lr_policy="continue")
    since = regularised_from(BASE, regulariser, [3], lr_policy="continue")
    train([*until, *since], tmp_path)
    never, first, always, last = (states(run, tmp_path) for run in (*until, *since))
    for step in (0, 4, 8, 12):
        assert equal(first[step], always[step])
        assert equal(last[step], never[step])
    for arm in (first, last):
        assert not equal(arm[16], never[16])
        assert not equal(arm[16], always[16])


# Single steps -------------------------------------------------------------------------------------


def after_one_step(folder, **changes):
    """Weights before and after one step on all data."""
    run = replace(BASE, epochs=1, batch_size=48, lr=0.1, **changes)
    train(run, folder)
    return states(run, folder).values()


def test_a_step_without_decay_is_a_plain_step_and_decay_adds_exactly_itself(tmp_path):
    before, plain = after_one_step(tmp_path, name="plain", momentum=0.0)
    model = network(seed=0)
    model.load_state_dict(before)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(DATA.inputs), DATA.targets).backward()
    optimiser.step()
    scheduled = Switched(0.3, Window(0.5, 1))
    _, zero = after_one_step(tmp_path, name="zero", momentum=0.0, weight_decay=scheduled)
    for name, tensor in model.state_dict().items():
        assert_allclose(plain[name], tensor, rtol=1e-12)
        assert torch.equal(zero[name], plain[name])
    _, decayed = after_one_step(
        tmp_path, name="decayed", momentum=0.0, weight_decay=0.3, undecayed=("*.bias",)
    )
    for name, tensor in plain.items():
        decay = 0.0 if name.endswith("bias") else 0.1 * 0.3
        assert_allclose(tensor - decayed[name], decay * before[name], atol=1e-14)


def test_frozen_layers_do_not_move_while_they_are_frozen(tmp_path):
    last = list(network(seed=0).state_dict())[-2].partition(".")[0]
    run = replace(BASE, frozen=(During(f"{last}.*", Window(0, 3)),), weight_decay=0.1, momentum=0.9)
    train(run, tmp_path)
    found = states(run, tmp_path)
    for name in found[0]:
        held = name.startswith(f"{last}.")
        assert torch.equal(found[12][name], found[0][name]) == held
        assert not torch.equal(found[16][name], found[12][name])
    free = replace(BASE, name="free", weight_decay=0.1, frozen=())
    train(free, tmp_path)
    assert not equal(states(free, tmp_path)[4], found[4])


# What regularises by itself -----------------------------------------------------------------------


def test_arms_of_large_batches():
    base = replace(BASE, lr=0.05, batch_size=8)  # 36 steps
    small, large, scaled, warmed, longer = large_batches(base, 20, warmup=2)
    assert [run.name.removeprefix("base/") for run in (small, large, scaled, warmed, longer)] == [
        "small", "large", "scaled", "warmed", "longer"
    ]  # fmt: skip
    assert changed(small, base) == set()
    assert changed(large, base) == {"batch_size"}
    assert scaled.lr == pytest.approx(0.05 * 20 / 8)
    assert warmed.lr == Warmup(scaled.lr, 2, "epochs")
    assert changed(longer, base) == {"batch_size", "epochs"}
    per_epoch = longer.timeline.steps // longer.epochs
    assert small.timeline.steps <= longer.timeline.steps < small.timeline.steps + per_epoch
    for size in (8, 49):
        with pytest.raises(ValueError, match="must lie above that of the base, 8, and be at most"):
            large_batches(base, size, warmup=2)


def test_optimisers_are_compared_with_equally_many_settings():
    trials = {"sgd": [{"lr": 0.1}, {"lr": 0.01}], "adam": [{"lr": 1e-3}, {"lr": 1e-4}]}
    runs = compared_optimisers(BASE, trials)
    found = [(run.name, run.optimiser, run.lr) for run in runs]
    assert found == [
        ("base/sgd-0", "sgd", 0.1),
        ("base/sgd-1", "sgd", 0.01),
        ("base/adam-0", "adam", 1e-3),
        ("base/adam-1", "adam", 1e-4),
    ]
    for unequal in ({**trials, "adamw": [{"lr": 1e-3}]}, {"sgd": []}, {}):
        with pytest.raises(ValueError, match="equally many settings to be compared"):
            compared_optimisers(BASE, unequal)


def test_arms_over_seeds_are_paired():
    arms = regularised_until(BASE, DECAY, [0, 3], lr_policy="continue")
    runs = over_seeds(arms, range(2))
    assert [run.name for run in runs] == [
        f"base/until-{t}/seed-{s}" for t in (0, 3) for s in range(2)
    ]
    assert [run.seeds for run in runs] == [Seeds.all(0), Seeds.all(1)] * 2


def test_all_arms_train_together_with_ends_of_their_own(tmp_path):
    arms = [
        *removal_sweep(BASE, Blur(size=4), [0, 2], clean=2, lr_policy="re-anneal"),
        *sensitivity_windows(BASE, flip_vertical, [0, 3], width=2, lr_policy="reset"),
        *regularised_until(BASE, DECAY, [2, 6], lr_policy="constant"),
        *regularised_from(BASE, Regulariser(augmentations=(Shift(1),)), [2], lr_policy="continue"),
    ]
    arms = pickle.loads(pickle.dumps([replace(run, data=DATA) for run in arms]))
    arms = [replace(run, data=DATA) for run in arms]
    alone, at_once = tmp_path / "alone", tmp_path / "at once"
    train(arms, alone)
    ends = train(arms, at_once, stack=len(arms))
    assert [end.step for end in ends] == [run.timeline.steps for run in arms]
    for run in arms:
        a, b = (results.load(folder / run.name / "record.h5") for folder in (alone, at_once))
        for name in ("train_loss", "weight_norm", "lr"):
            assert_allclose(a[name], b[name], rtol=1e-9)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Regulariser, "a regulariser needs weight_decay, augmentations or knobs"),
        (
            lambda: removal_sweep(BASE, Blur(size=4), [1.5], clean=3, lr_policy="continue"),
            r"removals must be whole numbers of epochs, at least 0, got \[1.5\]",
        ),
        (
            lambda: sensitivity_windows(BASE, Blur(size=4), [5], width=2, lr_policy="continue"),
            "the window from 5 to 7 epochs lies outside training",
        ),
        (
            lambda: regularised_until(BASE, DECAY, [7], lr_policy="continue"),
            "the window from 0 to 7 epochs lies outside training",
        ),
        (
            lambda: regularised_windows(BASE, DECAY, [5], width=2, lr_policy="continue"),
            "the window from 5 to 7 epochs lies outside training",
        ),
        (
            lambda: regularised_from(
                BASE, Regulariser(knobs={"alpha": 1.0}), [2], lr_policy="continue"
            ),
            r"knobs \['alpha'\] have no value in run 'base' for when they are off; it has none",
        ),
        (
            lambda: regularised_until(BASE, DECAY, [2], lr_policy="anneal"),
            "lr_policy must be one of continue, reset, constant, re-anneal, got 'anneal'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_window_may_reach_the_end_of_training(tmp_path, policy):
    base = replace(BASE, lr=Cosine(0.05), test=DATA)
    (run,) = regularised_until(base, DECAY, [BASE.epochs], lr_policy=policy)
    (end,) = train(run, tmp_path)
    assert end.status == "finished"
