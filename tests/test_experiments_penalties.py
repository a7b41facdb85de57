"""Penalties: closed forms on linear models, brute-force twins, and what happens in a stack."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F  # noqa: N812

from landscape import models
from landscape.datasets import Batches
from landscape.experiments import Run, Seeds, stacking, train
from landscape.experiments.branches import last_checkpoint
from landscape.experiments.penalties import (
    Apart,
    EverySteps,
    Fading,
    drawn_labels,
    fisher_penalised,
    fisher_penalty,
    friendly,
)
from landscape.experiments.runs import Clock, cross_entropy

CPU = torch.device("cpu")


def linear(seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).double()


class Normalised(nn.Module):
    """Each kind of normalisation whose second derivatives torch gets wrong under vmap."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 4, 3, padding=1), nn.Linear(20, 3)
        self.norms = nn.Sequential(
            nn.BatchNorm1d(4), nn.Tanh(), nn.LayerNorm(5), nn.InstanceNorm1d(4, affine=True)
        )

    def forward(self, x):
        return self.last(torch.tanh(self.norms(self.first(x[:, None]))).flatten(1))


def normalised(seed):
    return Normalised().double()


def data(num=48, seed=0):
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, 5, generator=chance, dtype=torch.float64)
    return Batches(inputs, inputs[:, :3].argmax(1), batch_size=16)


def run(make_model=linear, name="a", **changes):
    settings = {"epochs": 2, "batch_size": 16, "seeds": Seeds.all(3)}
    return Run(name=name, make_model=make_model, data=data(), **settings | changes)


def gradient(runs, step=0):
    """Losses (n,) and gradients (n, P) of the runs on the first batch."""
    stack = stacking.stacked(runs, CPU)
    (scalars,) = stacking.scalars(runs, [step], stack.weights)
    knobs = {name: scalars[name] for name in runs[0].knobs}
    inputs, targets = next(iter(data()))
    shown = inputs.expand(len(runs), -1, -1), targets.expand(len(runs), -1)
    losses, outputs = stacking.gradients(stack, runs[0].objective, *shown, knobs)
    return losses, stack.gradient.clone(), outputs, stack


def test_the_penalty_of_softmax_regression_is_the_closed_form():
    model, (inputs, _) = linear(0), next(iter(data()))
    weights = dict(model.named_parameters())
    seed, step = torch.tensor(4.0), torch.tensor(7.0)

    def call(weights, inputs):
        return functional_call(model, weights, (inputs,))

    found = fisher_penalty(call, weights, inputs, seed, step)
    chances = call(weights, inputs).softmax(1)
    labels = drawn_labels(chances.detach(), seed, step)
    wrong = (chances - F.one_hot(labels, 3)) / len(inputs)
    expected = (wrong.T @ inputs).square().sum() + wrong.sum(0).square().sum()
    assert_allclose(found.item(), expected.item(), rtol=1e-12)
    for a, b in zip(
        torch.autograd.grad(found, list(weights.values())),
        torch.autograd.grad(expected, list(weights.values())),
        strict=True,
    ):
        assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def test_labels_are_drawn_from_the_predictions_and_from_seed_and_step_alone():
    chances = torch.tensor([0.2, 0.0, 0.5, 0.3]).double().expand(20_000, 4)
    labels = drawn_labels(chances, torch.tensor(1.0), torch.tensor(2.0))
    shares = np.bincount(labels, minlength=4) / 20_000
    assert_allclose(shares, [0.2, 0.0, 0.5, 0.3], atol=0.01)
    assert shares[1] == 0
    assert torch.equal(labels, drawn_labels(chances, torch.tensor(1.0), torch.tensor(2.0)))
    for other in ((1.0, 3.0), (2.0, 2.0), (2.0, 1.0)):
        again = drawn_labels(chances, *map(torch.tensor, other))
        assert_allclose((labels == again).double().mean(), 0.04 + 0.25 + 0.09, atol=0.015)


def test_with_no_weight_the_loss_and_its_gradient_are_the_plain_ones():
    plain, penalised = gradient([run()]), gradient([fisher_penalised(run(), 0.0)])
    assert torch.equal(plain[0], penalised[0])
    assert torch.equal(plain[1], penalised[1])


@pytest.mark.parametrize("wrap", [functools.partial(fisher_penalised, weight=0.5), friendly])
def test_second_derivatives_through_normalisation_are_right_in_a_stack(wrap):
    """Fused kernels drop a term under vmap; the gradient of one run is that of differences."""
    runs = [wrap(run(normalised, str(i), seeds=Seeds(i, noise=3))) for i in range(3)]
    together = gradient(runs)
    for row, one in enumerate(runs):
        alone = gradient([one])
        assert_allclose(together[0][row], alone[0][0], rtol=1e-12)
        assert_allclose(together[1][row], alone[1][0], rtol=1e-9, atol=1e-13)
        for name, tensor in together[3].buffers.items():
            assert_allclose(tensor[row], alone[3].buffers[name][0], rtol=1e-12)
    assert (together[3].buffers["norms.0.num_batches_tracked"] == 1).all()


def test_the_gradient_of_the_penalty_is_that_of_central_differences():
    penalised = fisher_penalised(run(normalised), 0.5)
    found = gradient([penalised])[1][0]
    (inputs, targets), model = next(iter(data())), penalised.build().train()
    chance = torch.Generator().manual_seed(5)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    along = {
        name: torch.randn(tensor.shape, generator=chance, dtype=torch.float64)
        for name, tensor in weights.items()
    }
    knobs = {n: torch.tensor(float(v)) for n, v in (("fisher_seed", 3), ("fisher_step", 0))}
    knobs["fisher_weight"] = torch.tensor(0.5).double()

    def loss(amount):
        moved = {name: weights[name] + amount * along[name] for name in weights}
        buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}

        def call(weights, inputs):
            return functional_call(model, {**weights, **buffers}, (inputs,))

        return penalised.objective(call, moved, inputs, targets, knobs).item()

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    flat = torch.cat([tensor.flatten() for tensor in along.values()])
    assert_allclose((found @ flat).item(), slope, rtol=1e-6)


def test_layers_composed_of_plain_operations_give_the_fused_values():
    model, inputs = normalised(0), torch.randn(9, 5, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    for mode in (True, False):
        model.train(mode)
        with Apart():
            apart = model(inputs)
        assert all(torch.equal(before[n], t) for n, t in model.named_buffers())
        assert_allclose(apart.detach(), model.train(mode)(inputs).detach(), rtol=1e-10, atol=1e-12)
        model.load_state_dict(before, strict=False)


def test_the_penalty_is_on_at_every_so_many_steps_only():
    clock = [Clock(step, step / 10, 40, 4) for step in range(40)]
    assert [t for t in range(40) if EverySteps(0.5, 10)(clock[t])] == [0, 10, 20, 30]
    assert EverySteps(Fading(1.0, 0.5), 10)(clock[10]) == 0.5
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fisher_penalised(run(), 0.1, every=0)


def test_the_penalty_lowers_the_gradients_at_drawn_labels(tmp_path):
    """What it is for: the trace of the Fisher information stays smaller."""
    ends = train(
        [
            fisher_penalised(
                run(name=str(weight), epochs=20, lr=0.1, momentum=0.0), weight, every=1
            )
            for weight in (0.0, 20.0)
        ],
        tmp_path,
    )
    inputs, traces = data().inputs, []
    for end in ends:
        state = last_checkpoint(end).load()
        chances = (inputs @ state["1.weight"].T + state["1.bias"]).softmax(1)
        lengths = inputs.square().sum(1) + 1
        traces.append(((1 - chances.square().sum(1)) * lengths).mean())
    assert traces[1] < 0.8 * traces[0]


def moved(one, step=0):
    """The inputs on which a friendly run trains, and their targets."""
    seen, model = [], one.build().train()
    weights = dict(model.named_parameters())
    (scalars,) = stacking.scalars([one], [step], next(model.parameters()))
    knobs = {name: scalars[name][0] for name in one.knobs}

    def call(weights, inputs):
        seen.append(inputs)
        return functional_call(model, weights, (inputs,))

    inputs, targets = next(iter(data()))
    one.objective(call, weights, inputs, targets, knobs)
    return seen[-1], call, weights


def test_inputs_are_moved_by_descent_on_the_loss_of_each_example():
    """One step from softmax regression: x - rate * (p - y) W."""
    one = friendly(run(), steps=1, rate=0.2)
    shown, call, weights = moved(one)
    inputs, targets = next(iter(data()))
    wrong = call(weights, inputs).softmax(1) - F.one_hot(targets, 3)
    assert_allclose(
        shown.detach(), (inputs - 0.2 * wrong @ weights["1.weight"]).detach(), rtol=1e-12
    )


def test_during_the_ramp_the_loss_is_lower_and_after_it_nothing_moves():
    one = friendly(run(normalised, epochs=10), steps=4, rate=0.05, until=0.5)
    inputs, targets = next(iter(data()))
    gains = []
    for step in range(one.timeline.steps):
        shown, call, weights = moved(one, step)
        with torch.no_grad():
            gain = cross_entropy(call, weights, inputs, targets, {}) - cross_entropy(
                call, weights, shown, targets, {}
            )
        gains.append(gain.item())
        assert torch.equal(shown, inputs) == (step >= 15)
    assert all(gain > 0 for gain in gains[:15])
    assert all(gain == 0 for gain in gains[15:])
    assert all(a > b for a, b in itertools.pairwise(gains[:16]))


def test_the_error_of_the_record_is_that_on_the_inputs_as_they_are():
    one = friendly(run(), steps=5, rate=1.0)
    model, (inputs, _) = one.build(), next(iter(data()))
    assert_allclose(gradient([one])[2][0], model(inputs).detach(), rtol=1e-12)


def test_after_the_ramp_gradients_are_the_plain_ones():
    eased = friendly(run(normalised), steps=2, until=0.1)
    last = eased.timeline.steps - 1
    plain, after = gradient([run(normalised)], last), gradient([eased], last)
    assert_allclose(after[1], plain[1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"rate": 0}, {"until": 1.5}, {"power": 0}])
def test_friendly_training_refuses_settings_out_of_range(changes):
    with pytest.raises(ValueError, match="expected steps >= 1"):
        friendly(run(), **changes)


def test_stacked_runs_have_strengths_of_their_own(tmp_path):
    make = functools.partial(models.mlp, 5, (6,), 3)
    base = replace(run(make), data=replace(data(), inputs=data().inputs.float()))
    runs = [
        friendly(fisher_penalised(replace(base, name=f"{w}-{u}"), w, every=2), until=u)
        for w, u in ((0.0, 0.5), (0.3, 0.5), (0.3, 1.0))
    ]
    stacked = train(runs, tmp_path / "stacked", stack=3)
    single = train(runs, tmp_path / "single", stack=1)
    for a, b in zip(stacked, single, strict=True):
        own, other = last_checkpoint(a).load(), last_checkpoint(b).load()
        for name in own:
            assert_allclose(own[name], other[name], rtol=2e-4, atol=2e-6)


def test_vmap_alone_is_wrong_about_fused_normalisation():
    """When this fails torch has been mended, and `Apart` need not compose layers any more."""
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs, targets = next(iter(data()))
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def penalty(weights):
        def loss(weights):
            return F.cross_entropy(functional_call(model, weights, (inputs,)), targets)

        return sum(g.square().sum() for g in torch.func.grad(loss)(weights).values())

    def slope(function, weights):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
        return torch.autograd.grad(function(leaves).sum(), leaves["0.weight"])[0]

    pairs = {name: torch.stack([tensor, tensor]) for name, tensor in weights.items()}
    alone, stacked = slope(penalty, weights), slope(vmap(penalty), pairs)[0]
    assert (alone - stacked).norm() > 1e-4 * alone.norm()
