from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, cross_entropy, squared_error, uneven
from numpy.testing import assert_allclose
from scipy.optimize import brentq
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from landscape.analyses.hessian import hessian_eigenvalues, hessian_trace
from landscape.analyses.sharpness import rescaled, sharpness
from landscape.datasets import Batches
from landscape.evaluation import outputs_at, prepare
from landscape.strategy import Strategy
from landscape.task import Task

EXACT = {"device": "cpu", "dtype": torch.float64, "strategy": Strategy()}


def parabola(noise=1.0, num=24):
    """A linear model with squared error, its state, and the inputs and targets of the parabola."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 4, generator=generator, dtype=torch.float64)
    w = torch.tensor([[1.5, -0.5, 0.3, 2.0]], dtype=torch.float64)
    y = x @ w.T + noise * torch.randn(num, 1, generator=generator, dtype=torch.float64)
    task = Task("line", nn.Linear(4, 1, bias=False), squared_error, Batches(x, y, batch_size=7))
    return task, {"weight": w}, x.numpy(), y.numpy()[:, 0], w[0].numpy()


def slope_and_hessian(x, y, w):
    return 2 * x.T @ (x @ w - y) / len(y), 2 * x.T @ x / len(y)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return make()


def relu_net():
    return seeded(lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(),
        nn.Linear(5, 3),
    ))  # fmt: skip


def relu_task():
    x = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    model = relu_net()
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    return Task("relu", model, cross_entropy, Batches(x, torch.arange(24) % 3, 9)), state


# --- sharpness ------------------------------------------------------------------------------------


def test_a_parabola_rises_as_its_slope_and_curvature_say():
    task, state, x, y, w = parabola()
    g, h = slope_and_hessian(x, y, w)
    found = sharpness(task, state, radius=0.3, **EXACT)
    length = np.linalg.norm(g)
    assert_allclose(found["sharpness"], 0.3 * length + 0.09 * g @ h @ g / (2 * length**2), 1e-12)
    assert_allclose(found["gradient_norm"], length, rtol=1e-12)
    move = 0.3 * w**2 * g / np.linalg.norm(w * g)
    found = sharpness(task, state, radius=0.3, adaptive=True, **EXACT)
    assert_allclose(found["sharpness"], g @ move + move @ h @ move / 2, rtol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_many_steps_find_the_largest_rise_of_a_parabola_in_the_ball(adaptive):
    task, state, x, y, w = parabola()
    g, h = slope_and_hessian(x, y, w)
    t = abs(w) if adaptive else np.ones(4)
    g, h = t * g, t[:, None] * h * t
    top = np.linalg.eigvalsh(h)[-1]

    def move(shift):  # at the largest value on the sphere, the slope points outwards
        return np.linalg.solve(shift * np.eye(4) - h, g)

    shift = brentq(lambda s: np.linalg.norm(move(s)) - 0.5, top + 1e-9, top + 1e4, xtol=1e-13)
    best = move(shift)
    found = sharpness(task, state, radius=0.5, adaptive=adaptive, steps=80, **EXACT)
    assert_allclose(found["sharpness"], g @ best + best @ h @ best / 2, rtol=1e-9)
    one = sharpness(task, state, radius=0.5, adaptive=adaptive, **EXACT)
    assert one["sharpness"] < found["sharpness"]


def test_at_a_minimum_the_largest_eigenvalue_says_it_all():
    task, state, *_ = parabola(noise=0.0)
    assert sharpness(task, state, **EXACT)["sharpness"] == 0
    found = sharpness(task, state, radius=0.2, steps=200, curvature=True, **EXACT)
    assert_allclose(found["sharpness"], 0.02 * found["top_eigenvalue"], rtol=1e-6)


def test_batches_have_moves_of_their_own():
    task, state, x, y, w = parabola(num=25)
    found = sharpness(task, state, radius=0.3, m=6, seed=5, **EXACT)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(5)).numpy()
    rises = []
    for part in np.split(order[:24], 4):
        g, h = slope_and_hessian(x[part], y[part], w)
        rises.append(0.3 * np.linalg.norm(g) + 0.09 * g @ h @ g / (2 * g @ g))
    assert_allclose(found["sharpness"], np.mean(rises), rtol=1e-12)
    assert_allclose(found["sharpness_stderr"], np.std(rises, ddof=1) / 2, rtol=1e-12)
    assert found.attrs["num_batches"] == 4
    assert found.attrs["m"] == 6
    fewer = sharpness(task, state, radius=0.3, m=6, seed=5, num_batches=2, **EXACT)
    assert_allclose(fewer["sharpness"], np.mean(rises[:2]), rtol=1e-12)
    whole = sharpness(task, state, radius=0.3, m=25, **EXACT)
    assert_allclose(whole["sharpness"], sharpness(task, state, radius=0.3, **EXACT)["sharpness"])
    assert np.isnan(whole["sharpness_stderr"])


def test_the_standard_error_over_batches_is_that_of_other_draws():
    task, state, *_ = parabola(num=2000)
    draws = [sharpness(task, state, m=5, num_batches=12, seed=s, **EXACT) for s in range(50)]
    spread = np.std([float(one["sharpness"]) for one in draws], ddof=1)
    stderr = np.sqrt(np.mean([float(one["sharpness_stderr"]) ** 2 for one in draws]))
    assert_allclose(spread, stderr, rtol=0.25)


@pytest.mark.parametrize("name", ["mlp", "residual", "tokens"])
def test_one_step_equals_its_brute_force_twin(name):
    case = CASES[name]
    task, state = case.task(), case.states()[0]
    found = sharpness(task, state, radius=0.2, batch_norm="keep", **EXACT)
    model = deepcopy(task.model).double().eval()
    model.load_state_dict(state)
    own = dict(model.named_parameters())

    def loss(parameters):
        values = []
        for inputs, targets in task.data:
            x = inputs if isinstance(inputs, dict) else {"x": inputs}
            x = {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
            args = ((), x) if name == "tokens" else (tuple(x.values()), {})
            values.append(task.loss(functional_call(model, parameters, *args), targets))
        return torch.cat(values).mean()

    value = loss(own)
    slopes = dict(zip(own, torch.autograd.grad(value, list(own.values())), strict=True))
    length = sum(slope.square().sum() for slope in slopes.values()) ** 0.5
    moved = {key: own[key] + 0.2 * slopes[key] / length for key in own}
    assert_allclose(found["sharpness"], (loss(moved) - value).item(), rtol=1e-9)
    steps = sharpness(task, state, radius=0.2, steps=6, batch_norm="keep", **EXACT)
    assert steps["sharpness"] > found["sharpness"]


def test_curvature_beside_sharpness_is_that_of_the_hessian():
    task, state = CASES["mlp"].task(), CASES["mlp"].states()[0]
    ready = prepare(task, [state], **EXACT)
    found = sharpness(ready, state, curvature=True)
    top = hessian_eigenvalues(ready, state, 1, tolerance=1e-3)
    assert_allclose(found["top_eigenvalue"], top["eigenvalue"][0], rtol=1e-12)
    trace = hessian_trace(ready, state)
    assert_allclose(found["trace"], trace["trace"], rtol=1e-12)
    assert_allclose(found["trace_stderr"], trace["trace_stderr"], rtol=1e-12)


# --- the same function elsewhere ------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("0", "4"), ("4", "6")])
@pytest.mark.parametrize("scale", [10.0, 0.1])
def test_adaptive_sharpness_sees_the_function_and_the_hessian_sees_the_scale(first, second, scale):
    task, state = relu_task()
    ready = prepare(task, [state], **EXACT)
    other = rescaled(ready, state, first, second, scale)
    a, b = outputs_at(ready, [state, other])[0]
    assert_allclose(b, a, rtol=1e-9, atol=1e-12)
    kept = set(state) - {f"{first}.weight", f"{first}.bias", f"{second}.weight"}
    assert all(other[name] is state[name] for name in kept)
    options = {"radius": 0.02, "steps": 3, "curvature": True}
    before, after = (sharpness(ready, s, adaptive=True, **options) for s in (state, other))
    for name in ("sharpness", "top_eigenvalue", "trace", "loss"):
        assert_allclose(after[name], before[name], rtol=1e-8)
    before, after = (sharpness(ready, s, **options) for s in (state, other))
    for name in ("sharpness", "top_eigenvalue", "trace"):
        assert abs(np.log(after[name] / before[name])) > np.log(1.2), name


def test_a_state_in_single_precision_keeps_its_outputs_and_its_dtype():
    task, state = relu_task()
    single = {name: tensor.float() for name, tensor in state.items()}
    other = rescaled(task, single, "4", "6", 1000.0, device="cpu")
    assert all(tensor.dtype == torch.float32 for tensor in other.values())
    ready = prepare(task, [single], **EXACT)
    a, b = outputs_at(ready, [single, other])[0]
    assert_allclose(b, a, atol=1e-5 * abs(a).max())


@pytest.mark.parametrize(
    ("name", "layers", "scale", "words"),
    [
        ("mlp", ("0", "3"), 2.0, "change the outputs by .* only functions with f"),
        ("residual", ("stem.0", "branch.0"), 2.0, "change the outputs by"),
        ("mlp", ("0", "1"), 2.0, "no layer '1' with a weight; it has 0, 3"),
        ("mlp", ("0", "head"), 2.0, "no layer 'head'"),
        ("mlp", ("0", "3"), 0.0, "scale must be positive, got 0"),
        ("mlp", ("0", "3"), -1.0, "scale must be positive, got -1"),
        ("tokens", ("norm", "out"), 2.0, "the model ties embed.weight, out.weight"),
    ],
)
def test_where_the_function_would_change_nothing_is_rescaled(name, layers, scale, words):
    case = CASES[name]
    with pytest.raises(ValueError, match=words):
        rescaled(case.task(), case.states()[0], *layers, scale, device="cpu")


# --- the user's things, trouble -------------------------------------------------------------------


def test_nothing_of_the_users_is_changed():
    case = CASES["residual"]
    task, state = case.task(), case.states()[0]
    task.model.train()
    twin, before = deepcopy(task.model), deepcopy(state)
    random = torch.get_rng_state()
    sharpness(task, state, steps=2, m=20, **EXACT)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert task.model.training
    own = task.model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in twin.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in task.model.parameters())
    assert all(torch.equal(before[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"radius": 0.0}, "need a positive radius and a step"),
        ({"steps": 0}, "need a positive radius and a step"),
        ({"m": 47}, "there are 46 examples, too few for batches of m=47"),
        ({"m": 5, "num_batches": 0}, "num_batches=0"),
    ],
)
def test_wrong_choices_are_refused(options, words):
    case = CASES["mlp"]
    with pytest.raises(ValueError, match=words):
        sharpness(case.task(), case.states()[0], **options, **EXACT)


def test_batches_are_drawn_from_memory_only():
    task, state, x, y, _ = parabola()
    ragged = [(torch.tensor(x[:3]), torch.tensor(y[:3, None]))]
    data = uneven(TensorDataset(torch.tensor(x), torch.tensor(y[:, None])))
    loaded = replace(task, data=data)
    found = sharpness(loaded, state, m=24, **EXACT)
    assert_allclose(found["sharpness"], sharpness(task, state, **EXACT)["sharpness"])
    unlike = replace(task, data=[*ragged, (torch.zeros(2, 1, 4).double(), torch.zeros(2, 1, 1))])
    with pytest.raises(ValueError, match="batches of m examples are drawn from data that fit"):
        sharpness(unlike, state, m=2, **EXACT)
    assert sharpness(unlike, state, **EXACT)["sharpness"] > 0


def test_a_loss_that_is_not_finite_nearby_is_an_error():
    def bounded(outputs, targets):
        return squared_error(outputs, targets) / (outputs.mean(1) < 2.5).to(outputs.dtype)

    x = torch.ones(4, 1, dtype=torch.float64)
    task = Task("edge", nn.Linear(1, 1, bias=False), bounded, Batches(x, x, batch_size=4))
    state = {"weight": torch.full((1, 1), 2.0, dtype=torch.float64)}
    with pytest.raises(ValueError, match="the loss of example 0 of task 'edge' is inf"):
        sharpness(task, state, radius=1.0, **EXACT)
