import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from landscape.descent import Recipe, Snapshot, descend, fall, flat_model, shuffled
from landscape.task import Task

CPU = torch.device("cpu")


def parts(case, recipe, dtype=torch.float64):
    task, (state, _) = case.task(), case.states()
    flat = flat_model(task, state, recipe, device=CPU, dtype=dtype)
    return task, flat, shuffled(task, recipe, device=CPU, dtype=dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_flat_gradient_is_that_of_autograd(case):
    recipe = Recipe(weight_decay=0.1, decayed=["*weight"])
    task, flat, batches = parts(case, recipe)
    inputs, targets = next(batches.epoch(torch.Generator().manual_seed(1)))
    torch.manual_seed(5)
    loss = flat.loss_and_gradient(task, inputs, targets)

    model = case.model().double().train()
    model.load_state_dict(case.states()[0])
    torch.manual_seed(5)
    arguments = {"args": (inputs,)} if isinstance(inputs, torch.Tensor) else {"kwargs": inputs}
    outputs = model(*arguments.get("args", ()), **arguments.get("kwargs", {}))
    mean = task.loss(outputs, targets).mean()
    decayed = [p for name, p in model.named_parameters() if name.endswith("weight")]
    (mean + 0.05 * sum(p.square().sum() for p in decayed)).backward()
    assert_allclose(loss, mean.item(), rtol=1e-12)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert_allclose(flat.gradient, expected, rtol=1e-9, atol=1e-12)


def test_batches_are_a_new_permutation_of_the_data_in_each_epoch():
    _, _, batches = parts(CASES["mlp"], Recipe(batch_size=10))
    generator = torch.Generator().manual_seed(0)
    epochs = [list(batches.epoch(generator)) for _ in range(2)]
    sizes = [len(targets) for _, targets in epochs[0]]
    assert len(batches) == len(sizes) == 5
    assert max(sizes) - min(sizes) <= 1
    first, second = (torch.cat([inputs for inputs, _ in epoch]) for epoch in epochs)
    assert not torch.equal(first, second)
    assert_array_equal(first.sum(1).sort()[0], second.sum(1).sort()[0])


def quadratic_step(train, generator, inputs, targets):
    train.gradients.copy_(train.rows)
    return train.rows.square().sum() / 2


def run(recipe, step=quadratic_step, **options):
    _, flat, batches = parts(CASES["mlp"], recipe)
    return descend(flat, flat.weights[None].clone(), batches, recipe, step, **options)


def test_training_goes_on_from_a_snapshot_to_the_same_bits():
    def noisy(train, generator, inputs, targets):
        train.gradients.copy_(train.rows + torch.rand(1, generator=generator) * torch.randn(1))
        return inputs.square().mean()

    recipe = Recipe(epochs=4, batch_size=10, optimiser=lambda p: torch.optim.Adam(p, lr=0.01))
    snapshots = []
    whole = run(recipe, noisy, on_snapshot=snapshots.append)
    assert [one.epoch for one in snapshots] == [1, 2, 3, 4]
    resumed = run(recipe, noisy, snapshot=snapshots[1], on_snapshot=lambda _: None)
    assert torch.equal(resumed.rows, whole.rows)
    assert resumed.losses == whole.losses
    assert resumed.random["order"].equal(whole.random["order"])


def test_sgd_on_a_quadratic_is_the_closed_form():
    recipe = Recipe(
        epochs=3, batch_size=46, optimiser=lambda p: torch.optim.SGD(p, lr=0.1), schedule=fall
    )
    before = run(Recipe(epochs=1, lr=1e-300)).rows
    factors = 1 - 0.1 * np.array([1, 1, 1 - 0.99 * (2 / 3 - 0.5) / 0.4])
    assert_allclose(run(recipe).rows, before * factors.prod(), rtol=1e-12)


def test_what_diverges_ends_with_the_best_weights():
    def later(optimiser, steps):  # the learning rate explodes in the third epoch
        return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: 1e12 if n >= 10 else 0.1)

    recipe = Recipe(epochs=50, batch_size=10, schedule=later, lr=1.0)
    last = run(recipe)
    good = run(replace(recipe, epochs=1))  # where the second epoch begins, the best one
    assert 3 <= last.diverged < 10
    assert last.epoch == 1
    assert torch.equal(last.rows, good.rows)


def test_nothing_of_the_user_is_changed():
    case = CASES["residual"]
    task = case.task()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    recipe = Recipe(epochs=1)
    state = case.states()[0]
    kept = {name: tensor.clone() for name, tensor in state.items()}
    flat = flat_model(task, state, recipe, device=CPU, dtype=torch.float32)

    def step(train, generator, inputs, targets):
        loss = flat.loss_and_gradient(task, inputs, targets)
        train.gradients[0] = flat.gradient
        return loss

    batches = shuffled(task, recipe, device=CPU, dtype=torch.float32)
    descend(flat, flat.weights[None], batches, recipe, step)
    assert task.model.training
    assert all(p.grad is None and p.requires_grad for p in task.model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in task.model.state_dict().items())
    assert all(torch.equal(state[n], kept[n]) for n in kept)
    assert random.getstate() == states[0]
    assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_training_data_of_their_own_may_differ_between_passes():
    class Noisy:
        def __len__(self):
            return 3

        def __iter__(self):
            return iter([(torch.randn(4, 6), torch.zeros(4).long()) for _ in range(3)])

    recipe = Recipe(epochs=2, data=Noisy())
    seen = []

    def step(train, generator, inputs, targets):
        seen.append(inputs)
        return quadratic_step(train, generator, inputs, targets)

    run(recipe, step)
    assert len(seen) == 6
    assert seen[0].dtype == torch.float64
    assert not torch.equal(seen[0], seen[3])
    again = list(seen)
    run(recipe, step)
    assert all(map(torch.equal, again, seen[6:]))  # random augmentation is seeded


def test_recipes_that_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="at least one epoch"):
        Recipe(epochs=0)
    with pytest.raises(ValueError, match="lr must be positive"):
        Recipe(lr=0.0)
    decaying = Recipe(optimiser=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match="use weight_decay= here and 0 in the optimiser"):
        run(decaying)
    task = Task("t", nn.Linear(6, 3), CASES["mlp"].loss, CASES["mlp"].task().data)
    endless = Recipe(data=type("Endless", (), {"__iter__": lambda self: iter([])})())
    with pytest.raises(ValueError, match="must know its number of batches"):
        shuffled(task, endless, device=CPU, dtype=torch.float32)
    with pytest.raises(ValueError, match="holds no batches"):
        shuffled(task, Recipe(data=[]), device=CPU, dtype=torch.float32)
    with pytest.raises(ValueError, match="must be a list of patterns of names"):
        Recipe(decayed="*weight")  # letter by letter, * would match every name
    with pytest.raises(ValueError, match=r"holds weights \(2, 3\), this training has \(1, 83\)"):
        run(Recipe(), snapshot=Snapshot(0, torch.zeros(2, 3)))


def test_a_training_that_ended_is_over_whether_it_diverged_or_not():
    recipe = Recipe(2, batch_size=10, optimiser=lambda p: torch.optim.SGD(p, lr=1e300))
    diverged = run(recipe)
    assert diverged.diverged == 1
    assert run(recipe, snapshot=diverged) is diverged
    done = run(Recipe(epochs=2))
    assert run(Recipe(epochs=2), snapshot=done) is done
