"""Eigenvalues against the whole matrix, summed over examples and labels, in float64."""

from functools import partial

import numpy as np
import pytest
import torch
from cases import squared_error
from numpy.testing import assert_allclose
from test_fisher import CPU, EXACT, NETS, joint_labels, several_labels, task_of
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from landscape.analyses import fisher_spectrum
from landscape.analyses.fisher import fisher_diagonal
from landscape.analyses.fisher_spectrum import fisher_eigenvalues
from landscape.datasets import Batches
from landscape.engine import caller, with_state
from landscape.likelihoods import Likelihood, fisher_factor
from landscape.products import fisher_product, mean_loss
from landscape.task import Task

KEEP = {"batch_norm": "keep", **EXACT}


def whole_matrix(task, state, labels):
    """The mean of g g' over examples and joint labels, (P, P)."""
    model = with_state(task.model, state, device=CPU, dtype=torch.float64)
    own = dict(model.named_parameters())
    wanted = [name for name, p in task.model.named_parameters() if p.requires_grad]
    parameters = [own[name].requires_grad_() for name in wanted]
    x, y = task.data.inputs, task.data.targets
    total = 0
    for n in range(len(x)):
        outputs = caller(model)(x[n : n + 1])
        terms = [(1.0, task.loss(outputs, y[n : n + 1])[0])]
        if labels == "exact":
            terms = joint_labels(NETS[task.name][2], outputs)
        for weight, value in terms:
            parts = torch.autograd.grad(value, parameters, retain_graph=True)
            flat = torch.cat([part.reshape(-1) for part in parts])
            total = total + weight * torch.outer(flat, flat) / len(x)
    return total


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("labels", ["exact", "observed"])
@pytest.mark.parametrize("name", ["mlp", "tied", "multi-label", "regression", "frozen"])
def test_eigenvalues_and_dimensions_are_those_of_the_whole_matrix(name, labels, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(fisher_spectrum, "DENSE", 0)
    task, state = task_of(name)
    matrix = whole_matrix(task, state, labels)
    values = torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0).numpy()
    found = fisher_eigenvalues(
        task, state, 3, labels=labels, damping=0.01, tolerance=1e-7, num_probes=40, **KEEP
    )
    assert_allclose(found["eigenvalue"], values[:3], rtol=1e-9)
    wanted = {
        "trace": values.sum(),
        "intrinsic_dimension": values.sum() / values[0],
        "participation_ratio": values.sum() ** 2 / (values**2).sum(),
        "effective_parameters": (values / (values + 0.01)).sum(),
        "log_determinant": np.log1p(values / 0.01).sum(),
    }
    for key, value in wanted.items():
        if dense:
            assert_allclose(found[key], value, rtol=1e-8)
            assert found[f"{key}_stderr"] == 0
        else:
            assert 0 < found[f"{key}_stderr"] < 0.3 * value
            assert abs(found[key] - value) < 4 * found[f"{key}_stderr"]


@pytest.mark.parametrize(("kind", "loss"), [
    ("categorical", None), ("bernoulli", several_labels), ("gaussian", squared_error),
])  # fmt: skip
def test_the_divergence_of_a_small_step_is_half_its_length_in_the_information(kind, loss):
    """KL(f_w, f_{w+d}) = 1/2 d'Fd + O(|d|^3): halving d halves the relative error."""
    task, state = task_of("mlp")
    state = {name: value.double() for name, value in state.items()}
    mean = mean_loss(task, state, **EXACT)
    product = fisher_product(mean, partial(fisher_factor, Likelihood(kind)))
    direction = torch.randn(mean.size, generator=torch.Generator().manual_seed(2)).double()

    def outputs_at(scale):
        parts = direction.split([state[name].numel() for name in mean.names])
        moved = {
            name: state[name] + scale * part.reshape(state[name].shape)
            for name, part in zip(mean.names, parts, strict=True)
        }
        return with_state(task.model, moved, device=CPU, dtype=torch.float64)(task.data.inputs)

    def distribution(outputs):
        if kind == "gaussian":
            return Normal(outputs, 1.0)
        return (Categorical if kind == "categorical" else Bernoulli)(logits=outputs)

    errors = []
    for scale in (2e-3, 1e-3, 5e-4):
        each = kl_divergence(distribution(outputs_at(0.0)), distribution(outputs_at(scale)))
        quadratic = scale**2 / 2 * float(direction @ product(direction))
        errors.append(float(each.sum()) / len(task.data.inputs) / quadratic - 1)
    assert abs(errors[0]) < 0.02
    assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.15)


def test_at_an_exact_fit_of_a_relu_network_the_hessian_has_the_same_diagonal():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    model = model.double()
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        data = Batches(x, model(x), batch_size=4)

    def loss(outputs, targets):
        return (outputs - targets).square().sum(1) / 2

    diagonal = fisher_diagonal(Task("fit", model, loss, data), model.state_dict(),
                               labels="exact", **EXACT)  # fmt: skip
    for name, parameter in model.named_parameters():

        def mean(value):
            moved = dict(model.named_parameters()) | {name: value}  # noqa: B023
            return loss(torch.func.functional_call(model, moved, x), data.targets).mean()

        hessian = torch.autograd.functional.hessian(mean, parameter.detach())
        size = parameter.numel()
        truth = hessian.reshape(size, size).diagonal().reshape(parameter.shape)
        assert_allclose(diagonal[name], truth, rtol=1e-9, atol=1e-14)


def test_wrong_questions_are_refused():
    task, state = task_of("tied")
    with pytest.raises(ValueError, match="must be 'exact' or 'observed', got 'sampled'"):
        fisher_eigenvalues(task, state, labels="sampled", **KEEP)
    with pytest.raises(ValueError, match="a matrix of 20 rows has as many eigenvalues, got num=21"):
        fisher_eigenvalues(task, state, 21, **KEEP)
    with pytest.raises(ValueError, match="damping must be positive"):
        fisher_eigenvalues(task, state, damping=0.0, **KEEP)
    targets = task.data.targets.clone()
    targets[5, 1] = -100
    padded = Task("tied", task.model, task.loss, Batches(task.data.inputs, targets, 3))
    with pytest.raises(ValueError, match="labels that are no class and are ignored"):
        fisher_eigenvalues(padded, state, 3, **KEEP)
