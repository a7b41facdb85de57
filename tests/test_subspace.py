"""The split of the gradient by the Hessian is that of the dense matrix of a tiny network."""

import weakref

import numpy as np
import pytest
import torch
from cases import CASES, squared_error
from numpy.testing import assert_allclose
from torch import nn
from torch.func import functional_call

from landscape.analyses.hessian import hessian_eigenvalues
from landscape.analyses.subspace import gradient_subspace, overlap, squared_cosines
from landscape.checkpoints import Checkpoint
from landscape.datasets import Batches
from landscape.evaluation import placed_state, prepare
from landscape.examples import read
from landscape.maths.lanczos import top_eigenvalues
from landscape.strategy import Strategy
from landscape.task import Task

EXACT = {"device": "cpu", "dtype": torch.float64, "strategy": Strategy()}


def dense(name, state, batch_norm=None):
    """The gradient (P,) and the Hessian (P, P) of the mean loss, by second derivatives."""
    task = CASES[name].task()
    ready = prepare(task, [state], batch_norm=batch_norm, **EXACT)
    placed = placed_state(ready, state, batch_norm=batch_norm)
    model = CASES[name].model().double().eval()
    model.load_state_dict(placed)
    own = dict(model.named_parameters())
    ((inputs, targets),) = read(task.data, torch.device("cpu")).batches(100)

    def loss(vector):
        parts = vector.split([p.numel() for p in own.values()])
        moved = {n: part.view_as(p) for part, (n, p) in zip(parts, own.items(), strict=True)}
        return task.loss(functional_call(model, moved, (inputs.double(),)), targets).mean()

    at = torch.cat([p.detach().flatten() for p in own.values()]).requires_grad_()
    (slope,) = torch.autograd.grad(loss(at), at, create_graph=True)
    rows = torch.autograd.grad(slope, at, torch.eye(len(at)).double(), is_grads_batched=True)[0]
    return slope.detach().numpy(), rows.numpy()


@pytest.mark.parametrize(
    ("name", "policy"), [("mlp", None), ("residual", "recalibrate"), ("residual", "keep")]
)
def test_shares_and_overlaps_are_those_of_the_dense_hessian(name, policy):
    case, num = CASES[name], 4
    states = case.states(3)
    found = gradient_subspace(case.task(), states, num, batch_norm=policy, tolerance=1e-9, **EXACT)
    before = None
    for row, state in enumerate(states):
        slope, matrix = dense(name, state, policy)
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        top = vectors[:, : -num - 1 : -1]
        one = found.isel(step=row)
        assert_allclose(one["eigenvalue"], values[: -num - 1 : -1], rtol=1e-8)
        assert_allclose(one["gradient_norm"], np.linalg.norm(slope), rtol=1e-9)
        cosines = (top.T @ slope) ** 2 / (slope @ slope)
        assert_allclose(one["squared_cosine"], cosines, rtol=1e-6, atol=1e-10)
        assert_allclose(one["gradient_share"], cosines.sum(), rtol=1e-6)
        assert 0 < one["gradient_share"] < 1
        expected = np.nan if before is None else np.linalg.norm(before.T @ top) ** 2 / num
        assert_allclose(one["subspace_overlap"], expected, rtol=1e-6)
        before = top
    assert found.attrs["converged"] == "true"
    assert found.attrs["batch_norm"] == (policy or "none")


def test_all_directions_hold_the_whole_gradient():
    case = CASES["regression"]
    state = case.states()[0]
    size = sum(p.numel() for p in case.model().parameters())
    found = gradient_subspace(case.task(), [state, state], size, **EXACT)
    assert_allclose(found["gradient_share"], 1, rtol=0, atol=1e-12)
    assert (found["gradient_share"] <= 1).all()
    assert_allclose(found["subspace_overlap"][1], 1, rtol=1e-12)


def line(weight):
    """A linear model whose Hessian is diagonal, 2, 8 and 18, with its minimum at 0."""
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)) * 3**0.5
    task = Task("line", nn.Linear(3, 1, bias=False), squared_error, Batches(x, torch.zeros(3, 1)))
    return task, {"weight": torch.tensor([weight], dtype=torch.float64)}


def test_a_quadratic_bowl_has_shares_by_hand():
    task, state = line([3.0, 2.0, 1.0])  # the gradient is (6, 16, 18)
    found = gradient_subspace(task, [state], 2, steps=[70], **EXACT)
    assert found["step"].item() == 70
    assert_allclose(found["eigenvalue"][0], [18, 8], rtol=1e-9)
    total = 6**2 + 16**2 + 18**2
    assert_allclose(found["squared_cosine"][0], [18**2 / total, 16**2 / total], rtol=1e-9)
    assert_allclose(found["gradient_share"], 1 - 6**2 / total, rtol=1e-9)


def test_without_a_gradient_there_is_no_share():
    task, state = line([0.0, 0.0, 0.0])
    found = gradient_subspace(task, [state], 2, **EXACT)
    assert np.isnan(found["gradient_share"]).all()
    assert_allclose(found["eigenvalue"][0], [18, 8], rtol=1e-9)


def test_batches_and_precision_hardly_matter_and_eigenvalues_are_those_of_the_hessian():
    case = CASES["residual"]
    state = case.states()[0]
    options = {"tolerance": 1e-6, **EXACT}
    exact = gradient_subspace(case.task(), [state], 3, **options)
    split = gradient_subspace(case.task(), [state], 3, batch_size=7, **options)
    single = gradient_subspace(case.task(), [state], 3, device="cpu")
    for other, rtol in ((split, 1e-9), (single, 1e-3)):
        assert_allclose(other["gradient_share"], exact["gradient_share"], rtol=rtol)
    alone = hessian_eigenvalues(case.task(), state, 3, **options)
    assert_allclose(exact["eigenvalue"][0], alone["eigenvalue"], rtol=1e-12)
    newton = gradient_subspace(case.task(), [state], 3, matrix="gauss-newton", **options)
    assert newton.attrs["matrix"] == "gauss-newton"
    assert not np.allclose(newton["eigenvalue"], exact["eigenvalue"], rtol=1e-3)


def test_subspaces_drawn_at_random_overlap_by_the_share_of_dimensions():
    chance = torch.Generator().manual_seed(0)
    bases = [
        torch.linalg.qr(torch.randn(400, 8, generator=chance, dtype=torch.float64))[0]
        for _ in range(60)
    ]
    found = [overlap(a, b) for a, b in zip(bases[::2], bases[1::2], strict=True)]
    assert_allclose(np.mean(found), 8 / 400, rtol=0.1)
    turned = bases[0] @ torch.linalg.qr(bases[1][:8])[0]
    assert_allclose(overlap(bases[0], turned), 1, rtol=1e-12)
    inside = bases[0] @ torch.arange(8.0, dtype=torch.float64)
    assert_allclose(squared_cosines(inside, bases[0]).sum(), 1, rtol=1e-12)


def test_checkpoints_are_read_with_their_steps(tmp_path):
    case = CASES["mlp"]
    states = case.states(2)
    stored = []
    for step, state in zip((5, 20), states, strict=True):
        torch.save(state, tmp_path / f"{step}.pt")
        stored.append(Checkpoint(tmp_path / f"{step}.pt", step))
    found = gradient_subspace(case.task(), stored, 2, **EXACT)
    assert found["step"].values.tolist() == [5, 20]
    alone = gradient_subspace(case.task(), states[1:], 2, **EXACT)
    assert_allclose(found["gradient_share"][1], alone["gradient_share"][0], rtol=1e-9)


def test_eigenvectors_of_no_more_than_two_checkpoints_are_held(monkeypatch):
    held, most = weakref.WeakSet(), []

    def watched(*args, **options):
        found = top_eigenvalues(*args, **options)
        held.add(found.vectors)
        most.append(len(held))
        return found

    monkeypatch.setattr("landscape.analyses.subspace.top_eigenvalues", watched)
    case = CASES["mlp"]
    gradient_subspace(case.task(), case.states(4), 2, **EXACT)
    assert most == [1, 2, 2, 2]


def test_what_cannot_be_done_is_said():
    case = CASES["mlp"]
    state = case.states(1)[0]
    with pytest.raises(ValueError, match="no checkpoint"):
        gradient_subspace(case.task(), [], 2)
    with pytest.raises(ValueError, match="got 2 steps for 1 checkpoints"):
        gradient_subspace(case.task(), [state], 2, steps=[1, 2])
    with pytest.raises(ValueError, match=r"step 30: a matrix of .* rows"):
        gradient_subspace(case.task(), [state], 10**6, steps=[30], **EXACT)
    with pytest.raises(ValueError, match="matrix must be"):
        gradient_subspace(case.task(), [state], 2, matrix="fisher", **EXACT)
    broken = {**state, "0.weight": state["0.weight"] * torch.nan}
    with pytest.raises(ValueError, match="step 1: .*example 0"):
        gradient_subspace(case.task(), [state, broken], 2, **EXACT)
