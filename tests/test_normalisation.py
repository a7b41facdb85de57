import copy

import numpy as np
import pytest
import torch
from cases import CASES, Residual, cross_entropy, scaled
from numpy.testing import assert_allclose
from torch import nn

from landscape import families
from landscape.datasets import Batches
from landscape.evaluation import evaluate
from landscape.normalisation import batch_norms, check_policy, statistics_names
from landscape.strategy import Strategy
from landscape.task import Task

CASE = CASES["residual"]


def in_one_batch(model, state, batches):
    """The loss after one pass in training mode with all examples in one batch, as torch does it."""
    model = copy.deepcopy(model).double().train()
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
        if isinstance(module, nn.Dropout):
            module.eval()
    inputs = torch.cat([x.double() for x, _ in batches])
    targets = torch.cat([y for _, y in batches])
    with torch.no_grad():
        model(inputs)
        return cross_entropy(model.eval()(inputs), targets).mean().item()


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 20, 45, 46, 100])
def test_moments_are_those_of_all_the_data_whatever_the_batches(batch, vectorised):
    task, states = CASE.task(), CASE.states()
    strategy = Strategy(batch_size=10, points=3, vectorised=vectorised, moment_batch=batch)
    line = families.line(*states)
    t = np.linspace(0, 1, 4)
    found = evaluate(task, line, t, strategy=strategy, dtype=torch.float64)
    for position, value in zip(t, found["loss"], strict=True):
        state = families.Family(
            tuple(
                {k: v.double() if v.is_floating_point() else v for k, v in s.items()}
                for s in states
            ),
            line.coefficients,
        ).at(position)
        assert_allclose(value, in_one_batch(task.model, state, task.data), rtol=1e-12)


@pytest.mark.parametrize("order", ["sorted by class", "reversed", "shuffled"])
def test_moments_do_not_depend_on_the_order_of_the_data(order):
    task, states = CASE.task(), CASE.states()
    index = {
        "sorted by class": task.data.targets.argsort(),
        "reversed": torch.arange(46).flip(0),
        "shuffled": torch.randperm(46, generator=torch.Generator().manual_seed(0)),
    }[order]
    other = Task("residual", task.model, task.loss, task.data.subset(index), task.metrics)
    for strategy in (Strategy(batch_size=10, moment_batch=10), Strategy(moment_batch=46)):
        first, second = (
            evaluate(one, states, strategy=strategy, dtype=torch.float64)["loss"]
            for one in (task, other)
        )
        assert_allclose(first, second, rtol=1e-12)
    single = evaluate(other, states, strategy=Strategy(batch_size=10, moment_batch=10))["loss"]
    assert_allclose(single, first, rtol=1e-5)


def test_moments_come_from_the_training_data():
    task, states = CASE.task(), CASE.states()
    rest = Batches(task.data.inputs[:9], task.data.targets[:9], 5, scaled)
    test = Task("test", task.model, task.loss, rest)
    train = Task("train", task.model, task.loss, task.data)
    both = evaluate([test, train], states, dtype=torch.float64)
    assert both.attrs["batch_norm_data"] == "train"
    state = {k: v.double() if v.is_floating_point() else v for k, v in states[0].items()}
    expected = in_one_batch(task.model, state, task.data)
    assert_allclose(both["loss"].sel(split="train", state=0), expected, rtol=1e-12)
    alone = evaluate(test, states, dtype=torch.float64)
    assert abs(alone["loss"] - both["loss"].sel(split="test")).max() > 1e-4


def test_some_examples_spread_over_the_data():
    task, states = CASE.task(), CASE.states()
    few = evaluate(task, states, batch_norm_examples=10, dtype=torch.float64)
    assert few.attrs["batch_norm_examples"] == 10
    index = torch.linspace(0, 45, 10).round().long()
    train = Task("train", task.model, task.loss, task.data.subset(index))
    whole = Task("whole", task.model, task.loss, task.data)
    same = evaluate([whole, train], states, dtype=torch.float64)["loss"].sel(split="whole")
    assert_allclose(few["loss"], same, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        evaluate(task, states, batch_norm_examples=1)


def test_large_offsets_do_not_cost_precision():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + 1000
    task = Task("offset", model, cross_entropy, Batches(x, (x[:, 0] > 1000).long(), 16))
    state = model.state_dict()
    exact = evaluate(task, [state], dtype=torch.float64)["loss"]
    for batch in (7, 64):
        single = evaluate(task, [state], strategy=Strategy(moment_batch=batch))["loss"]
        assert_allclose(single, exact, rtol=2e-3)


def test_policies():
    model = Residual()
    assert check_policy(model, None) == "recalibrate"
    for policy in (None, "none", "recalibrate", "interpolate", "keep"):
        assert check_policy(nn.Linear(2, 2), policy) == "none"
    assert check_policy(nn.Linear(2, 2), "repair") == check_policy(model, "repair") == "repair"
    assert list(batch_norms(model)) == ["stem.1", "branch.1", "head.1"]
    assert len(statistics_names(model)) == 6
    assert statistics_names(nn.BatchNorm1d(2)) == ["running_mean", "running_var"]
    with pytest.raises(
        ValueError, match="one of recalibrate, interpolate, keep, repair, got 'refresh'"
    ):
        check_policy(model, "refresh")
    with pytest.raises(ValueError, match="got 'repiar'"):
        check_policy(nn.Linear(2, 2), "repiar")
    with pytest.raises(ValueError, match="cannot recalibrate 0: instance norm"):
        check_policy(nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)), None)


def test_running_variances_are_not_extrapolated():
    with pytest.raises(ValueError, match="extrapolate running variances"):
        evaluate(CASE.task(), families.line(*CASE.states()), [1.5], batch_norm="interpolate")


def test_a_layer_that_is_used_twice_is_refused_and_an_unused_one_is_not():
    class Odd(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.norm, self.spare, self.times = nn.BatchNorm1d(6), nn.BatchNorm1d(6), times

        def forward(self, x):
            for _ in range(self.times):
                x = self.norm(x)
            return x

    data = CASES["mlp"].task().data
    for batch in (10, 46):
        strategy = Strategy(moment_batch=batch)
        once = Task("once", Odd(1), cross_entropy, data)
        state = Odd(1).state_dict()
        assert (evaluate(once, [state], strategy=strategy)["status"] == 1).all()
        twice = Task("twice", Odd(2), cross_entropy, data)
        with pytest.raises(ValueError, match="'norm' is used twice"):
            evaluate(twice, [state], strategy=strategy)
        alone = Odd(2)
        del alone.spare
        twice = Task("twice", alone, cross_entropy, data)
        with pytest.raises(ValueError, match="'norm' is used twice"):
            evaluate(twice, [alone.state_dict()], strategy=strategy)


def test_a_single_value_per_channel_is_refused():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    data = CASES["mlp"].task().data.subset(torch.tensor([0]))
    task = Task("one", model, cross_entropy, data)
    with pytest.raises(ValueError, match="'1' sees a single value per channel"):
        evaluate(task, [model.state_dict()], strategy=Strategy())
