"""Averages of weights and of answers: means in closed form, exact batch norm, cycles, hooks."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from landscape import checkpoints, datasets, load_state, models
from landscape.datasets import Batches
from landscape.experiments import At, Run, Seeds, train
from landscape.experiments.averaging import (
    EMA,
    averaged,
    ensemble,
    fast_geometric,
    refreshed,
    snapshots,
    swa,
)
from landscape.experiments.branches import checkpoint_at

make = partial(models.mlp, 5, (8,), 3, batch_norm=True)


def data(num=1100, seed=0):
    inputs = torch.randn(num, 5, generator=torch.Generator().manual_seed(seed))
    return Batches(inputs, inputs[:, :3].argmax(1), batch_size=100)


def run(name="a", **changes):
    settings = {"epochs": 2, "batch_size": 100, "lr": 0.1, "seeds": Seeds.all(3)}
    return Run(name=name, make_model=make, data=data(), **settings | changes)


def states(num=3):
    found = [make(seed=seed).state_dict() for seed in range(num)]
    for number, state in enumerate(found):
        state["bn1.num_batches_tracked"] += number
        state["bn1.running_mean"] += number
    return found


def test_the_average_is_the_mean_of_the_weights_and_takes_the_rest_from_the_last():
    given = states()
    mean = averaged(given)
    for name in ("fc1.weight", "bn1.weight", "output.bias"):
        expected = torch.stack([state[name].double() for state in given]).mean(0).float()
        assert torch.equal(mean[name], expected)
    for name in ("bn1.running_mean", "bn1.num_batches_tracked"):
        assert torch.equal(mean[name], given[-1][name])
    assert all(torch.equal(averaged(given[:1])[name], given[0][name]) for name in given[0])
    with pytest.raises(ValueError, match="at least one state"):
        averaged([])
    with pytest.raises(ValueError, match="not of one architecture"):
        averaged([given[0], models.mlp(5, (9,), 3, batch_norm=True).state_dict()])


def test_refreshed_statistics_are_the_moments_of_all_data():
    model, shown = make(seed=0), data()
    state = averaged(states())
    new = refreshed(state, model, shown)
    before = F.linear(
        shown.inputs.double(), *(state[f"fc1.{n}"].double() for n in ("weight", "bias"))
    )
    assert_allclose(new["bn1.running_mean"], before.mean(0), rtol=1e-5, atol=1e-6)
    assert_allclose(new["bn1.running_var"], before.var(0), rtol=1e-5)
    assert all(torch.equal(new[n], state[n]) for n in state if "running" not in n)
    again = refreshed(state, model, replace(shown.subset(range(1099, -1, -1)), batch_size=7))
    assert_allclose(again["bn1.running_var"], new["bn1.running_var"], rtol=1e-6)
    assert torch.equal(model.bn1.running_mean, torch.zeros(8))
    plain = models.mlp(5, (8,), 3, seed=0)
    assert refreshed(plain.state_dict(), plain, shown).keys() == plain.state_dict().keys()


def test_swa_writes_the_average_beside_the_run(tmp_path):
    one = run()
    train(one, tmp_path)
    steps = [11, 22]
    written = swa(one, tmp_path, steps)
    assert written.path == tmp_path / "a-swa" / "step-00000022.pt"
    mean = averaged([checkpoint_at(tmp_path / "a", step) for step in steps])
    expected = refreshed(mean, make(seed=0), one.data)
    found = written.load()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["bn1.running_mean"], mean["bn1.running_mean"])
    assert [found.step for found in checkpoints(tmp_path / "a")] == [0, 11, 22]


def test_the_moving_average_is_that_of_all_steps(tmp_path):
    """Its closed form over checkpoints of every step; resuming or stacking changes nothing."""
    hook = EMA(0.8, checkpoints=(At([5]),))
    runs = [
        run(f"r{seed}", seeds=Seeds.all(seed), checkpoints=(At(range(23)),), hooks=(hook,))
        for seed in range(2)
    ]
    train(runs, tmp_path, stack=2)
    for one in runs:
        kept = [found.load() for found in checkpoints(tmp_path / one.name)]
        assert len(kept) == 23
        for last in (5, 22):
            shares = 0.2 * 0.8 ** np.arange(last, -1, -1.0)
            shares[0] = 0.8**last
            assert_allclose(shares.sum(), 1)
            found = load_state(tmp_path / f"{one.name}-ema" / f"step-{last:08d}.pt")
            for name in ("fc1.weight", "bn1.bias", "output.bias"):
                values = np.stack([state[name].numpy().astype(float) for state in kept[: last + 1]])
                mean = np.tensordot(shares, values, 1)
                assert_allclose(found[name], mean, rtol=1e-4, atol=1e-6)
            exact = refreshed(found, make(seed=0), one.data)
            assert_allclose(found["bn1.running_var"], exact["bn1.running_var"], rtol=1e-6)
    with pytest.raises(ValueError, match="below 1"):
        EMA(1.0)


def fails(step, view):
    if step == 17 and not (view.folder / "failed").exists():
        (view.folder / "failed").touch()
        raise InterruptedError


def test_the_moving_average_goes_on_where_it_was(tmp_path):
    one = run(hooks=(EMA(0.9),))
    train(one, tmp_path / "whole")
    broken = replace(one, hooks=(EMA(0.9), fails))
    with pytest.raises(InterruptedError):
        train(broken, tmp_path / "broken")
    train(broken, tmp_path / "broken")
    whole, mended = (
        load_state(tmp_path / n / "a-ema/step-00000022.pt") for n in ("whole", "broken")
    )
    assert all(torch.equal(whole[name], mended[name]) for name in whole)


def test_snapshots_stand_at_the_ends_of_equal_cosine_cycles():
    one = snapshots(run(epochs=6), cycles=3, lr=0.2)
    assert one.checkpoints[-1].steps == (22, 44, 66)
    rates = [one.lr(one.clock(step)) for step in range(66)]
    expected = [0.1 * (np.cos(np.pi * (step % 22) / 22) + 1) for step in range(66)]
    assert_allclose(rates, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="cycles must be 1 to 6"):
        snapshots(run(epochs=6), cycles=7, lr=0.1)


def test_fast_geometric_members_stand_where_the_rate_is_lowest():
    one = fast_geometric(run(), make(seed=0).state_dict(), cycles=3, period=4)
    assert one.timeline.steps == 132
    steps = one.checkpoints[-1].steps
    assert steps == (22, 66, 110)
    rates = np.array([one.lr(one.lr_clock(step)) for step in range(132)])
    assert_allclose(rates[[0, 44, 88]], 0.05)
    assert_allclose(rates[list(steps)], 0.0005)
    assert_allclose(rates[:44], rates[44:88])
    assert rates.min() >= 0.0005 - 1e-15
    with pytest.raises(ValueError, match="even number of epochs"):
        fast_geometric(run(), make(seed=0).state_dict(), cycles=3, period=3)


def test_an_ensemble_is_the_mean_of_the_softmax_of_its_last_members():
    given, shown = states(), data(seed=1)
    found = ensemble(make(seed=0), given, shown)
    model = make(seed=0).eval()
    chances = [
        functional_call(model, state, (shown.inputs,)).detach().double().softmax(1).numpy()
        for state in given
    ]
    targets = shown.targets.numpy()
    for count in (1, 2, 3):
        mean = np.mean(chances[-count:], axis=0)
        one = found.sel(num_members=count)
        assert_allclose(one["error"], (mean.argmax(1) != targets).mean(), rtol=1e-12)
        loss = -np.log(mean[np.arange(1100), targets]).mean()
        assert_allclose(one["loss"], loss, rtol=1e-9)
    assert_allclose(found["member_loss"][-1], found["loss"][0], rtol=1e-12)
    assert (found["loss"] <= found["member_loss"].max()).all()
    with pytest.raises(ValueError, match="at least one state"):
        ensemble(model, [], shown)


def test_copies_of_one_network_are_as_good_as_it(tmp_path):
    """An ensemble of equals is its member; its loss is never above the mean member's (Jensen)."""
    state = make(seed=0).state_dict()
    found = ensemble(make(seed=1), [state] * 3, data())
    assert_allclose(found["loss"], found["member_loss"], rtol=1e-12)
    assert_allclose(found["error"], found["member_error"])
    mixed = ensemble(make(seed=1), states(), data())
    assert mixed["loss"][-1] <= mixed["member_loss"].mean()


def test_on_digits_snapshots_and_averages_are_as_good_as_their_members(tmp_path):
    """Section G: the ensemble beats its mean member; SWA has no more loss than its iterates."""
    train_set, test_set = datasets.load(), datasets.load(split="test")
    base = Run(
        name="base",
        make_model=partial(models.mlp, 64, (32,), 10, batch_norm=True),
        data=train_set,
        epochs=12,
        batch_size=64,
        seeds=Seeds.all(1),
    )
    snap = snapshots(base, cycles=4, lr=0.2)
    train(snap, tmp_path)
    steps = snap.checkpoints[-1].steps
    members = [checkpoint_at(tmp_path / "base", step) for step in steps]
    found = ensemble(base.build(), members, test_set)
    assert found["error"][-1] <= found["member_error"].mean()

    geometric = replace(
        fast_geometric(base, members[-1], cycles=3, period=2, highest=0.3, lowest=0.03),
        name="geometric",
    )
    train(geometric, tmp_path)
    lows = geometric.checkpoints[-1].steps
    average = swa(geometric, tmp_path, lows)
    iterates = [checkpoint_at(tmp_path / "geometric", step) for step in lows]
    losses = ensemble(base.build(), [*iterates, average], train_set)["member_loss"].values
    assert losses[-1] <= losses[:-1].mean()
