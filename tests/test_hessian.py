from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, cross_entropy, squared_error
from numpy.testing import assert_allclose
from torch import nn
from torch.func import functional_call

from landscape.analyses import curvature
from landscape.analyses.curvature import mean_loss_at, parameter_blocks
from landscape.analyses.gradient_noise import gradient_noise
from landscape.analyses.hessian import (
    hessian_density,
    hessian_eigenvalues,
    hessian_eigenvectors,
    hessian_trace,
)
from landscape.analyses.sharpness import sharpness
from landscape.datasets import Batches
from landscape.evaluation import evaluate, placed_state, prepare
from landscape.example_gradients import example_gradients, rules_for
from landscape.examples import read
from landscape.families import affine
from landscape.products import gauss_newton_product, hessian_product
from landscape.strategy import Strategy
from landscape.task import Task

EXACT = {"device": "cpu", "dtype": torch.float64, "strategy": Strategy()}
NAMES = ["mlp", "regression", "residual", "group-norm", "tokens"]


def prepared(name, **options):
    """A task in float64, a state of it, and the batches of its data as the model takes them."""
    case = CASES[name]
    state = case.states()[0]
    return prepare(case.task(), [state], **{**EXACT, **options}), state


def twin(ready, state, names=None):
    """A function of a flat vector of parameters that gives the mean loss, and their values."""
    task = ready.tasks[0]
    model = deepcopy(task.model).double().eval()
    model.load_state_dict(placed_state(ready, state))
    own = dict(model.named_parameters())
    names = list(own) if names is None else names
    shapes = [own[name].shape for name in names]
    at = torch.cat([own[name].detach().flatten() for name in names])
    data = list(read(task.data, torch.device("cpu")).batches(100))

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        moved = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        losses = []
        for inputs, targets in data:
            double = {
                k: v.double() if v.is_floating_point() else v
                for k, v in (inputs if isinstance(inputs, dict) else {"x": inputs}).items()
            }
            args = ((), double) if isinstance(inputs, dict) else ((double["x"],), {})
            losses.append(task.loss(functional_call(model, moved, *args), targets))
        return torch.cat(losses).mean()

    return loss, at


def dense_hessian(ready, state, names=None, h=1e-5):
    """By central differences of gradients."""
    loss, at = twin(ready, state, names)

    def slope(vector):
        vector = vector.clone().requires_grad_()
        return torch.autograd.grad(loss(vector), vector)[0]

    rows = [(slope(at + h * e) - slope(at - h * e)) / (2 * h) for e in torch.eye(len(at)).double()]
    matrix = torch.stack(rows)
    return ((matrix + matrix.T) / 2).numpy()


def dense(product, size):
    return product(torch.eye(size, dtype=torch.float64)).numpy()


# --- eigenvalues ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_eigenvalues_at_both_ends_are_those_of_differences_of_gradients(name):
    ready, state = prepared(name)
    matrix = dense_hessian(ready, state)
    expected = np.linalg.eigvalsh(matrix)
    found = hessian_eigenvalues(ready, state, 3, which="both ends", tolerance=1e-5)
    ends = np.concatenate([expected[:-4:-1], expected[:3]])
    assert_allclose(found["eigenvalue"], ends, rtol=1e-6, atol=1e-8 * abs(expected).max())
    distance = abs(expected[:, None] - found["eigenvalue"].values).min(0)
    assert (distance <= found["residual"].values + 1e-7 * abs(expected).max()).all()
    assert found.attrs["converged"] == "true"
    loss, at = twin(ready, state)
    assert_allclose(found["loss"], loss(at), rtol=1e-12)
    (slope,) = torch.autograd.grad(loss(at.requires_grad_()), at)
    assert_allclose(found["gradient_norm"], slope.norm(), rtol=1e-9)


def test_eigenvalues_of_blocks_are_those_of_the_diagonal_blocks():
    ready, state = prepared("group-norm")
    matrix = dense_hessian(ready, state)
    found = hessian_eigenvalues(ready, state, 2, layers="each")
    assert list(found["block"].values) == ["0", "1", "4"]
    start = 0
    for block, size in zip(found["block"].values, (4 * 9 + 4, 8, 36 * 3 + 3), strict=True):
        part = matrix[start : start + size, start : start + size]
        expected = np.linalg.eigvalsh(part)[:-3:-1]
        assert_allclose(found["eigenvalue"].sel(block=block), expected, rtol=1e-6, atol=1e-9)
        start += size
    assert start == len(matrix)


def test_the_gauss_newton_matrix_of_softmax_is_the_fisher_information_of_all_classes():
    ready, state = prepared("mlp")
    task = ready.tasks[0]
    model = deepcopy(task.model).double().eval()
    model.load_state_dict(state)
    fisher = 0.0
    for x in task.data.inputs.double():
        logs = torch.log_softmax(model(x[None])[0], 0)
        for log in logs:
            slopes = torch.autograd.grad(log, list(model.parameters()), retain_graph=True)
            g = torch.cat([slope.flatten() for slope in slopes])
            fisher = fisher + log.exp().detach() * torch.outer(g, g) / 46
    values = np.linalg.eigvalsh(fisher)
    found = hessian_eigenvalues(ready, state, 4, matrix="gauss-newton", tolerance=1e-6)
    assert_allclose(found["eigenvalue"], values[:-5:-1], rtol=1e-9)
    trace = hessian_trace(ready, state, matrix="gauss-newton", method="xtrace", num_products=180,
                          tolerance=None)  # fmt: skip
    assert_allclose(trace["trace"], values.sum(), rtol=1e-9)


def test_a_linear_model_with_squared_error_has_the_moments_of_its_inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False)
    task = Task("line", model, squared_error, Batches(x, x[:, :1] ** 2, batch_size=7))
    values = np.linalg.eigvalsh(2 * (x.T @ x).numpy() / 30)[::-1]
    state = model.state_dict()
    for matrix in ("hessian", "gauss-newton"):
        found = hessian_eigenvalues(task, state, 4, matrix=matrix, **EXACT)
        assert_allclose(found["eigenvalue"], values, rtol=1e-12)


@pytest.mark.parametrize("name", ["residual", "tokens"])
def test_the_loss_bends_along_an_eigenvector_as_its_eigenvalue_says(name):
    case = CASES[name]
    ready, state = prepared(name)
    result, vectors = hessian_eigenvectors(ready, state, 2, batch_norm="keep", tolerance=1e-6)
    assert not [n for vector in vectors for n in vector if "running" in n or "table" in n]
    h = 1e-3
    double = {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
    line = affine(double, vectors[0])
    loss = evaluate(ready, line, [-h, 0.0, h], batch_norm="keep")["loss"].values
    assert_allclose(loss[0] + loss[2] - 2 * loss[1], h**2 * result["eigenvalue"][0], rtol=1e-4)
    flat = [torch.cat([v[n].flatten() for n, _ in case.model().named_parameters()])
            for v in vectors]  # fmt: skip
    assert_allclose(torch.stack(flat) @ torch.stack(flat).T, np.eye(2), atol=1e-9)
    if name == "tokens":
        assert vectors[0]["out.weight"] is vectors[0]["embed.weight"]


# --- trace ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("name", ["regression", "tokens"])
def test_with_enough_products_the_trace_is_exact(name, method):
    ready, state = prepared(name)
    matrix = dense_hessian(ready, state)
    found = hessian_trace(ready, state, method=method, num_products=3 * len(matrix), tolerance=None)
    assert_allclose(found["trace"], matrix.trace(), rtol=1e-7)
    assert_allclose(found["trace_stderr"], 0, atol=1e-9)


def test_blocks_sum_to_the_total_and_all_lie_within_their_errors():
    ready, state = prepared("group-norm")
    diagonal = dense_hessian(ready, state).diagonal()
    found = hessian_trace(ready, state, layers="each", num_products=200, tolerance=None)
    assert_allclose(found["trace"].sum(), found["total"], rtol=1e-12)
    ends = np.cumsum(found["num_parameters"].values)
    exact = [part.sum() for part in np.split(diagonal, ends[:-1])]
    assert (abs(found["trace"] - exact) < 3.5 * found["trace_stderr"]).all()
    assert abs(found["total"] - diagonal.sum()) < 3.5 * found["total_stderr"]
    whole = hessian_trace(ready, state, num_products=200, tolerance=None)
    assert_allclose(whole["trace"], found["total"], rtol=1e-12)
    assert_allclose(whole["trace_stderr"], found["total_stderr"], rtol=1e-12)


def test_blocks_by_patterns_are_taken_in_any_order():
    ready, state = prepared("group-norm")
    diagonal = torch.tensor(dense_hessian(ready, state).diagonal().copy())
    found = hessian_trace(ready, state, layers=["*.bias", "4.weight"], num_products=300)
    model = ready.tasks[0].model
    parts = diagonal.split([p.numel() for p in model.parameters()])
    sums = {n: d.sum().item() for (n, _), d in zip(model.named_parameters(), parts, strict=True)}
    biases = sum(value for name, value in sums.items() if name.endswith("bias"))
    error = abs(found["trace"].values - [biases, sums["4.weight"]])
    assert (error < 4 * found["trace_stderr"].values).all()
    assert_allclose(found["trace"].sum(), found["total"], rtol=1e-12)


def test_two_standard_errors_hold_the_trace_as_often_as_they_say():
    ready, state = prepared("regression")
    exact = dense_hessian(ready, state).trace()
    found = [hessian_trace(ready, state, tolerance=None, seed=seed) for seed in range(100)]
    errors = np.array([one["trace"] - exact for one in found])
    stderrs = np.array([one["trace_stderr"] for one in found])
    inside = abs(errors) < 2.045 * stderrs  # t with 29 degrees of freedom
    assert 0.88 <= inside.mean() <= 1
    assert_allclose(np.sqrt((errors**2).mean()), np.sqrt((stderrs**2).mean()), rtol=0.2)


def test_probes_are_drawn_until_the_tolerance_is_met():
    ready, state = prepared("mlp")
    found = hessian_trace(ready, state, tolerance=0.05, num_products=8)
    assert found.attrs["converged"] == "true"
    assert found["trace_stderr"] <= 0.05 * abs(found["trace"])
    assert found.attrs["num_products"] > 8
    few = hessian_trace(ready, state, tolerance=1e-4, num_products=8, max_products=20)
    assert few.attrs["converged"] == "false"
    assert few.attrs["num_products"] == 20
    without = hessian_trace(ready, state, tolerance=None, num_products=8, max_products=2)
    assert without.attrs["num_products"] == 8


# --- Hessian and Fisher information ---------------------------------------------------------------


def relu_task(num=20):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5),
            nn.ReLU(), nn.Linear(5, 3),
        )  # fmt: skip
        x = torch.randn(num, 1, 6, 6)
    return Task("relu", model, cross_entropy, Batches(x, torch.arange(num) % 3, batch_size=8))


def test_networks_of_pieces_have_the_diagonal_of_the_fisher_information():
    task = relu_task()
    mean, _ = mean_loss_at(task, task.model.state_dict(), **EXACT)
    hessian = dense(hessian_product(mean), mean.size)
    model = deepcopy(task.model).double().requires_grad_(False)
    inputs = task.data.inputs.double()

    def cotangents(outputs):
        p = outputs.softmax(1)
        return (torch.eye(3)[:, None] - p) * p.T.sqrt()[:, :, None]

    found = example_gradients(model, rules_for(model, inputs), inputs, cotangents, diagonal=True)
    fisher = torch.cat([found.diagonal[name].flatten() for name in mean.names]) / len(inputs)
    assert_allclose(hessian.diagonal(), fisher, rtol=1e-11, atol=1e-16)
    newton = dense(gauss_newton_product(mean), mean.size)
    assert_allclose(newton.diagonal(), fisher, rtol=1e-11, atol=1e-16)
    assert abs(hessian - newton).max() > 0.01  # off the diagonal they differ


def test_at_an_exact_fit_the_hessian_is_the_gauss_newton_matrix():
    task = relu_task()
    outputs = task.model(task.data.inputs).detach()
    task = replace(task, loss=squared_error, data=Batches(task.data.inputs, outputs, batch_size=8))
    state = task.model.state_dict()
    mean, _ = mean_loss_at(task, state, device="cpu", dtype=torch.float64, strategy=Strategy())
    hessian = dense(hessian_product(mean), mean.size)
    newton = dense(gauss_newton_product(mean), mean.size)
    assert_allclose(hessian, newton, atol=1e-5 * newton.max())


# --- density --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_a_density_integrates_to_one_and_its_mean_is_the_trace_by_the_parameters(name):
    ready, state = prepared(name)
    found = hessian_density(ready, state, num_probes=6, num_steps=20, grid=4000)
    x, y = found["eigenvalue"].values, found["density"].values
    assert_allclose(np.trapezoid(y, x), 1, rtol=1e-4)
    size = found.attrs["num_parameters"]
    assert_allclose(np.trapezoid(x * y, x), found["trace"] / size, rtol=1e-3)
    probes = hessian_trace(ready, state, num_products=6, tolerance=None)
    assert_allclose(found["trace"], probes["trace"], rtol=1e-9)
    assert_allclose(found["trace_stderr"], probes["trace_stderr"], rtol=1e-9)
    assert_allclose(found["weights"].sum("node"), 1, rtol=1e-12)


def test_a_density_has_the_eigenvalues_of_the_dense_hessian():
    ready, state = prepared("regression")
    values = np.linalg.eigvalsh(dense_hessian(ready, state))
    found = hessian_density(ready, state, num_probes=12, num_steps=len(values))
    x, width = found["eigenvalue"].values, found.attrs["width"]
    kernels = np.exp(-0.5 * ((x - values[:, None]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    error = found["density"].values - kernels.mean(0)
    assert (abs(error) <= 5 * found["density_stderr"].values + 1e-3).all()


def test_a_density_by_decades_leaves_out_what_it_says():
    ready, state = prepared("regression")
    found = hessian_density(ready, state, num_probes=6, num_steps=20, log=True, grid=4000)
    decades = np.log10(found["eigenvalue"].values)
    share = np.trapezoid(found["density"].sum("sign").values, decades)
    assert_allclose(share + found.attrs["near_zero"], 1, rtol=1e-3)
    assert list(found["sign"].values) == [1, -1]


# --- batch norm, tasks, parameters ----------------------------------------------------------------


def test_statistics_are_recomputed_or_kept_and_the_result_says_which():
    case = CASES["residual"]
    task, (state, _) = case.task(), case.states()
    ready = prepare(task, [state], **EXACT)
    fresh = hessian_trace(task, state, tolerance=None, **EXACT)
    kept = hessian_trace(task, state, tolerance=None, batch_norm="keep", **EXACT)
    placed = hessian_trace(
        task, placed_state(ready, state), tolerance=None, batch_norm="keep", **EXACT
    )
    assert fresh.attrs["batch_norm"] == "recalibrate"
    assert fresh.attrs["batch_norm_data"] == "residual"
    assert kept.attrs["batch_norm"] == "keep"
    assert_allclose(fresh["trace"], placed["trace"], rtol=1e-12)
    assert abs(kept["trace"] / fresh["trace"] - 1) > 0.1
    assert_allclose(kept["loss"], evaluate(ready, [state], batch_norm="keep")["loss"][0])


@pytest.mark.parametrize("batch_size", [1, 46])
def test_batches_do_not_matter(batch_size):
    ready, state = prepared("residual")
    a = hessian_eigenvalues(ready, state, 2)
    b = hessian_eigenvalues(ready, state, 2, batch_size=batch_size)
    assert_allclose(a["eigenvalue"], b["eigenvalue"], rtol=1e-9)


def test_of_several_tasks_the_one_that_is_trained_on_counts():
    case = CASES["mlp"]
    test, state = case.task(), case.states()[0]
    inputs, targets = test.data.inputs[:20], test.data.targets[:20]
    train = replace(test, name="train", data=Batches(inputs, targets, batch_size=10))
    a = hessian_eigenvalues([test, train], state, 2, **EXACT)
    b = hessian_eigenvalues(train, state, 2, **EXACT)
    assert_allclose(a["eigenvalue"], b["eigenvalue"], rtol=1e-12)
    assert a.attrs["task"] == "train"
    assert a.attrs["num_examples"] == 20


def test_frozen_parameters_are_left_out_and_listed():
    case = CASES["mlp"]
    task, state = case.task(), case.states()[0]
    task.model[0].requires_grad_(False)
    ready = prepare(task, [state], **EXACT)
    expected = np.linalg.eigvalsh(dense_hessian(ready, state, ["3.weight", "3.bias"]))
    found = hessian_eigenvalues(ready, state, 3)
    assert_allclose(found["eigenvalue"], expected[:-4:-1], rtol=1e-6)
    assert found.attrs["not_counted"] == '["0.weight", "0.bias"]'
    assert found.attrs["num_parameters"] == 27
    task.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is left"):
        hessian_eigenvalues(ready, state)


def test_a_checkpoint_is_read_when_it_is_needed():
    class Checkpoint:
        def load(self):
            return CASES["mlp"].states()[0]

    ready, state = prepared("mlp")
    a = hessian_eigenvalues(ready, Checkpoint(), 1)
    assert_allclose(a["eigenvalue"], hessian_eigenvalues(ready, state, 1)["eigenvalue"])


def test_nothing_of_the_users_is_changed():
    case = CASES["residual"]
    task, state = case.task(), case.states()[0]
    task.model.train()
    task.model.stem[0].weight.requires_grad_(False)
    twin, before = deepcopy(task.model), deepcopy(state)
    random = torch.get_rng_state()
    hessian_eigenvectors(task, state, 2, device="cpu")
    hessian_trace(task, state, device="cpu", tolerance=None)
    hessian_density(task, state, device="cpu", num_probes=2, num_steps=5)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert task.model.training
    for (name, old), new in zip(twin.named_parameters(), task.model.parameters(), strict=True):
        assert torch.equal(old, new), name
        assert old.requires_grad == new.requires_grad
        assert new.grad is None
    assert all(torch.equal(old, new) for old, new in zip(
        twin.buffers(), task.model.buffers(), strict=True))  # fmt: skip
    assert all(torch.equal(before[name], state[name]) for name in state)


def test_a_model_that_begins_in_place_is_its_twin_and_leaves_the_data():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept, y = x.clone(), torch.arange(30) % 3
    changing, plain = (
        Task("one", nn.Sequential(nn.ReLU(inplace), nn.Linear(4, 3)), cross_entropy, data)
        for inplace, data in ((True, Batches(x, y, 8)), (False, Batches(kept.clone(), y, 8)))
    )
    state = plain.model.state_dict()
    for compute, name in (
        (hessian_eigenvalues, "eigenvalue"),
        (hessian_trace, "trace"),
        (hessian_density, "nodes"),
        (sharpness, "sharpness"),
        (gradient_noise, "covariance_trace"),
    ):
        found, wanted = (compute(one, state, **EXACT)[name] for one in (changing, plain))
        assert torch.equal(x, kept), name
        assert_allclose(found, wanted, rtol=1e-9)


def test_groups_of_parameters():
    names = ["w", "a.weight", "a.bias", "b.c.weight", "b.weight"]
    assert parameter_blocks(names, "each") == {
        "": ["w"], "a": ["a.weight", "a.bias"], "b.c": ["b.c.weight"], "b": ["b.weight"],
    }  # fmt: skip
    assert parameter_blocks(names, "blocks") == {
        "w": ["w"], "a": ["a.weight", "a.bias"], "b": ["b.c.weight", "b.weight"],
    }  # fmt: skip
    assert parameter_blocks(names, ["b", "w"]) == {"b": ["b.c.weight", "b.weight"], "w": ["w"]}
    with pytest.raises(ValueError, match="no parameter that counts is named 'x'"):
        parameter_blocks(names, "x")
    with pytest.raises(ValueError, match=r"'a.bias' is in two blocks, 'a' and '\*.bias'"):
        parameter_blocks(names, ["a", "*.bias"])


# --- trouble --------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batches_and_gives_the_same_numbers(monkeypatch):
    ready, state = prepared("mlp")
    expected = hessian_eigenvalues(ready, state, 2)
    whole, sizes = curvature.gradient, []

    def limited(mean):
        sizes.append(mean.batch_size)
        if mean.batch_size > 3:
            raise torch.OutOfMemoryError
        return whole(mean)

    monkeypatch.setattr(curvature, "gradient", limited)
    found = hessian_eigenvalues(ready, state, 2)
    assert sizes == [10, 5, 2]
    assert_allclose(found["eigenvalue"], expected["eigenvalue"], rtol=1e-9)

    def never(mean):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(curvature, "gradient", never)
    with pytest.raises(torch.OutOfMemoryError):
        hessian_eigenvalues(ready, state, 2)


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (hessian_eigenvalues, {"matrix": "fisher"}, "matrix must be 'hessian' or"),
        (hessian_eigenvalues, {"which": "smallest"}, "which must be one of 'largest'"),
        (hessian_eigenvalues, {"num": 84}, "a matrix of 83 rows has 83 eigenvalues"),
        (hessian_eigenvalues, {"num": 30, "layers": "each"}, "'3' has 27 parameters, fewer than"),
        (hessian_eigenvalues, {"layers": "head"}, "no parameter that counts is named 'head'"),
        (hessian_trace, {"method": "exact"}, "method must be one of 'hutchinson', 'hutch"),
        (hessian_trace, {"method": "xtrace", "layers": "each"}, "layers need method='hutchinson'"),
        (hessian_eigenvalues, {"tolerance": -1e-4}, "tolerance must not be negative, got -0.0001"),
        (hessian_trace, {"tolerance": 0.0}, "tolerance must be positive, or None"),
        (hessian_trace, {"tolerance": float("nan")}, "tolerance must be positive, or None"),
        (hessian_density, {"width": 0.0}, "width must be positive"),
        (hessian_trace, {"batch_norm": "repair"}, "must be 'recalibrate' or 'keep' at a single"),
        (hessian_density, {"num_steps": 0}, "need a probe and a step"),
    ],
)
def test_wrong_choices_are_refused(function, options, words):
    ready, state = prepared("mlp")
    with pytest.raises(ValueError, match=words):
        function(ready, state, **options)


def _argmax(outputs, targets):
    return (outputs.argmax(1) != targets).float()


class Dropping(nn.Linear):
    """Dropout whatever the mode."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)


def test_outputs_that_change_with_chance_are_refused():
    model = Dropping(4, 3)
    data = Batches(torch.ones(9, 4), torch.arange(9) % 3, 3)
    with pytest.raises(ValueError, match="outputs of task 'dropping' change with chance"):
        hessian_trace(Task("dropping", model, cross_entropy, data), model.state_dict())


def _infinite_slope(outputs, targets):
    return cross_entropy(outputs, targets) + (outputs[:, 0] - outputs[:, 0].detach()).abs().sqrt()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.CrossEntropyLoss(), "use reduction='none'"),
        (_argmax, "cannot be differentiated"),
        (_infinite_slope, "the gradient of example 0 of task 'mlp' is not finite"),
    ],
)
def test_losses_that_cannot_serve_are_refused(loss, words):
    case = CASES["mlp"]
    task = replace(case.task(), loss=loss, metrics={})
    with pytest.raises(ValueError, match=words):
        hessian_trace(task, case.states()[0], **EXACT)


def test_labels_out_of_range_are_named():
    case = CASES["mlp"]
    task = case.task()
    targets = task.data.targets.clone()
    targets[17] = 3
    task = replace(task, data=Batches(task.data.inputs, targets, batch_size=10))
    with pytest.raises(ValueError, match="example 17 of the data has the label 3"):
        hessian_trace(task, case.states()[0], **EXACT)
