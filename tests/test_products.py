from dataclasses import replace

import pytest
import torch
from cases import CASES, cross_entropy, squared_error, token_loss
from numpy.testing import assert_allclose
from torch import nn
from torch.func import functional_call, jacrev, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import products
from landscape.datasets import Batches
from landscape.examples import arrange, read
from landscape.maths.lanczos import top_eigenvalues
from landscape.products import (
    fisher_product,
    gauss_newton_product,
    gradient,
    hessian_product,
    mean_loss,
)
from landscape.task import Task

OPTIONS = {"device": "cpu", "dtype": torch.float64}


class Attention(nn.Module):
    """A layer norm whose input and weights are differentiated, before and after attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.before, self.after = nn.LayerNorm(4), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 7)

    def forward(self, tokens):
        x = self.embed(tokens)
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.out(self.after(x))


class FusedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(3, 12), nn.Linear(4, 2)

    def forward(self, x):
        q, k, v = self.inside(x)[:, None].chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y[:, 0, -1])


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make()


def convolution():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def norms():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def data(shape, targets, num=22, batch_size=8):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(num, *shape, generator=generator)
    if targets == "tokens":
        x = torch.randint(0, 7, (num, 4), generator=generator)
        return Batches(x, x.roll(1, 1), batch_size=batch_size)
    y = torch.arange(num) % 3 if targets == "classes" else x.flatten(1)[:, :2] ** 2
    return Batches(x, y, batch_size=batch_size)


NETS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)),
        ((6,), "classes"), cross_entropy,
    ),
    "convolution": (convolution, ((2, 5, 5), "classes"), cross_entropy),
    "norms": (norms, ((2, 4, 4), "classes"), cross_entropy),
    "attention": (Attention, ((), "tokens"), token_loss),
    "fused": (FusedAttention, ((5, 3), "values"), squared_error),
    "regression": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2)),
        ((6,), "values"), squared_error,
    ),
}  # fmt: skip


def task_of(name):
    make, (shape, targets), loss = NETS[name]
    task = Task(name, seeded(make), loss, data(shape, targets))
    state = {k: v.clone() for k, v in task.model.state_dict().items()}
    if name == "convolution":
        state["1.running_mean"] += 0.3
        state["1.running_var"] *= 2
    return task, state


def dense(product, size):
    return product(torch.eye(size, dtype=torch.float64))


def moved(mean, state, vector):
    """The state with a flat vector added to it, in float64."""
    new = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    return new | {
        name: new[name] + vector[part].reshape(new[name].shape)
        for name, part in mean.blocks.items()
    }


def whole_batch(task, state):
    """A float64 model in evaluation mode, its parameters, all inputs and targets."""
    model = seeded(NETS[task.name][0]).double().eval()
    model.load_state_dict(state)
    inputs = task.data.inputs
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    targets = task.data.targets
    return model, inputs, targets.double() if targets.is_floating_point() else targets


def jacobian(task, state):
    """The outputs (n, outputs...) and their Jacobian (n, outputs..., P), by reverse mode alone."""
    model, inputs, targets = whole_batch(task, state)
    outputs = model(inputs)
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(y, [*model.parameters()], retain_graph=True)]
        )
        for y in outputs.flatten()
    ]
    return outputs.detach(), torch.stack(rows).reshape(*outputs.shape, -1), targets


@pytest.mark.parametrize("name", NETS)
def test_the_hessian_is_the_difference_of_exact_gradients(name):
    task, state = task_of(name)
    mean = mean_loss(task, state, **OPTIONS)
    hessian = dense(hessian_product(mean), mean.size)
    step = 1e-4
    ends = [
        [
            gradient(mean_loss(task, moved(mean, state, sign * step * unit), **OPTIONS))[1]
            for sign in (-2, -1, 1, 2)
        ]
        for unit in torch.eye(mean.size, dtype=torch.float64)[:: max(1, mean.size // 25)]
    ]
    differences = [(a - 8 * b + 8 * c - d) / (12 * step) for a, b, c, d in ends]
    columns = hessian[:, :: max(1, mean.size // 25)]
    largest = hessian.abs().max().item()
    assert_allclose(torch.stack(differences, 1), columns, rtol=1e-8, atol=1e-8 * largest)
    assert_allclose(hessian, hessian.T, atol=1e-14 * largest)


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_that_of_one_batch_in_float64(name):
    task, state = task_of(name)
    model, inputs, targets = whole_batch(task, state)
    loss = task.loss(model(inputs), targets).mean()
    loss.backward()
    value, flat = gradient(mean_loss(task, state, **OPTIONS))
    assert_allclose(value, loss.item(), rtol=1e-13)
    assert_allclose(flat, torch.cat([p.grad.flatten() for p in model.parameters()]), atol=1e-14)


@pytest.mark.parametrize("name", NETS)
def test_gauss_newton_is_the_dense_product_of_its_factors(name):
    task, state = task_of(name)
    outputs, rows, targets = jacobian(task, state)
    expected = torch.zeros(rows.shape[-1], rows.shape[-1], dtype=torch.float64)
    for y, j, target in zip(outputs, rows, targets, strict=True):
        curvature = torch.autograd.functional.hessian(
            lambda y, target=target: task.loss(y[None], target[None]).sum(), y
        ).reshape(y.numel(), y.numel())
        j = j.flatten(0, -2)
        expected += j.T @ curvature @ j / len(outputs)
    mean = mean_loss(task, state, **OPTIONS)
    found = dense(gauss_newton_product(mean), mean.size)
    assert_allclose(found, expected, atol=1e-13 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["mlp", "norms"])
def test_gauss_newton_of_cross_entropy_is_the_exact_fisher_matrix(name):
    task, state = task_of(name)
    model, inputs, _ = whole_batch(task, state)
    log_p = torch.log_softmax(model(inputs), 1)
    expected = 0
    for row in log_p:
        for one in row:
            g = torch.autograd.grad(one, [*model.parameters()], retain_graph=True)
            g = torch.cat([part.flatten() for part in g])
            expected = expected + one.exp().detach() * torch.outer(g, g) / len(log_p)

    def softmax(outputs, tangents):
        p = outputs.softmax(1)
        return p * (tangents - (p * tangents).sum(1, keepdim=True))

    mean = mean_loss(task, state, **OPTIONS)
    for product in (gauss_newton_product(mean), fisher_product(mean, softmax)):
        assert_allclose(dense(product, mean.size), expected, atol=1e-14)


def test_a_linear_model_has_no_curvature_of_its_own():
    task = Task("linear", seeded(lambda: nn.Linear(6, 2)), squared_error, data((6,), "values"))
    state = task.model.state_dict()
    mean = mean_loss(task, state, **OPTIONS)
    hessian = dense(hessian_product(mean), mean.size)
    x = torch.cat([task.data.inputs, torch.ones(22, 1)], 1).double()
    weights = torch.cat([torch.arange(12).reshape(2, 6), torch.tensor([[12], [13]])], 1)
    expected = torch.zeros(14, 14, dtype=torch.float64)
    for row in weights:  # the loss is the mean over two outputs
        expected[row[:, None], row] = x.T @ x / 22
    assert_allclose(hessian, expected, atol=1e-14)
    assert_allclose(dense(gauss_newton_product(mean), 14), expected, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_over_jacrev_is_wrong_where_we_are_right():
    """If this fails with a newer torch, the warning at the head of `products` can go."""
    task, state = task_of("attention")
    model, inputs, targets = whole_batch(task, state)
    mean = mean_loss(task, state, **OPTIONS)
    vector = torch.randn(mean.size, generator=torch.Generator().manual_seed(0)).double()
    own = {name: p.detach() for name, p in model.named_parameters()}
    tangents = {name: vector[part].reshape(own[name].shape) for name, part in mean.blocks.items()}

    def loss(weights):
        return task.loss(functional_call(model, weights, (inputs,)), targets).mean()

    with sdpa_kernel([SDPBackend.MATH]):
        _, parts = jvp(jacrev(loss), (own,), (tangents,))
    theirs = torch.cat([part.flatten() for part in parts.values()])
    ours = hessian_product(mean)(vector)
    assert (theirs - ours).norm() > 0.01 * ours.norm()


@pytest.mark.parametrize("make", [hessian_product, gauss_newton_product])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_batches_and_kept_graphs_change_nothing(case, make):
    task, (state, _) = case.task(), case.states()
    means = [mean_loss(task, state, batch_size=size, **OPTIONS) for size in (5, 46)]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(means[0].size, 2, generator=generator, dtype=torch.float64)
    expected = make(means[0], keep=False)(vectors)
    largest = expected.abs().max().item()
    for keep in (None, True, False):
        product = make(means[1], keep=keep)
        assert_allclose(product(vectors), expected, atol=1e-12 * largest)
        assert_allclose(product(vectors[:, 1]), expected[:, 1], atol=1e-12 * largest)
    gradients = [gradient(mean) for mean in means]
    for value, flat in gradients[1:]:
        assert_allclose(value, gradients[0][0], rtol=1e-12)
        assert_allclose(flat, gradients[0][1], atol=1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_all_kinds_of_models_agree_with_differences(case):
    task, (state, _) = case.task(), case.states()
    mean = mean_loss(task, state, **OPTIONS)
    vector = torch.randn(mean.size, generator=torch.Generator().manual_seed(0)).double()
    product = hessian_product(mean)(vector)
    step = 1e-6
    ends = []
    for sign in (1, -1):
        new = moved(mean, state, sign * step * vector)
        tied = {"out.weight": new["embed.weight"]} if case.name == "tokens" else {}
        ends.append(gradient(mean_loss(task, new | tied, **OPTIONS))[1])
    difference = (ends[0] - ends[1]) / (2 * step)
    largest = difference.abs().max().item()
    assert_allclose(product, difference, atol=1e-6 * largest)


@pytest.mark.parametrize("make", [hessian_product, gauss_newton_product])
def test_some_parameters_give_a_diagonal_block(make):
    task, state = task_of("convolution")
    mean = mean_loss(task, state, **OPTIONS)
    whole = dense(make(mean), mean.size)
    names = ["5.weight", "1.bias"]  # given in another order than the model has them
    part = mean_loss(task, state, names=names, **OPTIONS)
    assert part.names == ("1.bias", "5.weight")
    index = torch.cat([torch.arange(mean.size)[mean.blocks[name]] for name in part.names])
    expected = whole[index[:, None], index]
    assert_allclose(dense(make(part), part.size), expected, atol=1e-14)
    assert_allclose(gradient(part)[1], gradient(mean)[1][index], atol=1e-15)


def test_frozen_parameters_are_left_out():
    task, state = task_of("mlp")
    task.model[0].weight.requires_grad_(False)
    mean = mean_loss(task, state, **OPTIONS)
    assert mean.names == ("0.bias", "3.weight", "3.bias")
    assert mean.size == 23


def test_top_eigenvalues_of_a_network_are_those_of_the_dense_hessian():
    task, state = task_of("attention")
    mean = mean_loss(task, state, **OPTIONS)
    exact = torch.linalg.eigvalsh(dense(hessian_product(mean), mean.size)).flip(0)
    single = mean_loss(task, state, device="cpu")
    for at, tolerance, error in ((mean, 1e-4, 1e-8), (single, 1e-3, 1e-5)):
        found = top_eigenvalues(hessian_product(at), at.size, 3, tolerance=tolerance)
        assert found.converged.all()
        assert_allclose(found.values, exact[:3], rtol=error)
        assert found.num_products < 40


def test_float32_is_as_good_as_float32_is():
    task, state = task_of("norms")
    exact, single = (
        mean_loss(task, state, device="cpu", dtype=d) for d in (torch.float64, torch.float32)
    )
    for make in (hessian_product, gauss_newton_product):
        expected = dense(make(exact), exact.size)
        found = dense(make(single), single.size)
        assert found.dtype == torch.float64
        assert_allclose(found, expected, atol=2e-6 * expected.abs().max().item())


def test_graphs_are_kept_only_where_there_is_memory(monkeypatch):
    task, state = task_of("mlp")
    mean = mean_loss(task, state, **OPTIONS)
    passes = []
    inner = products._outputs
    monkeypatch.setattr(products, "_outputs", lambda *a: passes.append(0) or inner(*a))
    for free, expected in ((2**30, 3 + 1), (1000, 3 * 3 + 1)):  # batches, and one to measure
        monkeypatch.setattr(products, "free_memory", lambda device, free=free: free)
        passes.clear()
        product = hessian_product(mean)
        for _ in range(3):
            product(torch.ones(mean.size))
        assert len(passes) == expected


def test_nothing_of_the_user_is_changed():
    case = CASES["residual"]
    task, (state, _) = case.task(), case.states()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    random_state = torch.get_rng_state()
    with torch.no_grad():
        mean = mean_loss(task, state, device="cpu")
        gradient(mean)
        hessian_product(mean)(torch.ones(mean.size))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        examples = arrange(read(task.data, torch.device("cpu")), "contiguous", torch.float32)
        inside = mean_loss(task, state, examples=examples, device="cpu")
        found = hessian_product(inside)(torch.ones(mean.size))
    assert_allclose(found, hessian_product(mean)(torch.ones(mean.size)), rtol=1e-6, atol=1e-7)
    assert task.model.training
    assert all(p.grad is None and p.requires_grad for p in task.model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in task.model.state_dict().items())
    assert all(torch.equal(state[n], kept[n]) for n in kept)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", ["recurrent", "residual"])
def test_recurrent_layers_alone_do_without_cudnn(name, monkeypatch):
    task, (state, _) = CASES[name].task(), CASES[name].states()
    seen = []
    inner = products._outputs
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(products, "_outputs", lambda *a: seen.append(cudnn.enabled) or inner(*a))
    gradient(mean_loss(task, state, **OPTIONS))
    assert set(seen) == {name != "recurrent"}
    assert cudnn.enabled


class Rounded(nn.Linear):
    def forward(self, x):
        return super().forward(x).argmax(1).to(x.dtype)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


def test_what_cannot_be_differentiated_is_refused():
    task, state = task_of("mlp")
    mean = mean_loss(task, state, **OPTIONS)
    one = torch.ones(mean.size)
    with pytest.raises(ValueError, match=r"shape \(8,\) for 8 examples, got \(\); use reduction"):
        gradient(replace(mean, loss=nn.functional.cross_entropy))
    with pytest.raises(ValueError, match="loss of task 'mlp' cannot be differentiated"):
        hessian_product(replace(mean, loss=lambda y, t: (y.argmax(1) != t).double()))(one)
    rounded = Task("r", Rounded(6, 3), squared_error, task.data)
    flat = mean_loss(rounded, rounded.model.state_dict(), **OPTIONS)
    for make in (hessian_product, gauss_newton_product):
        with pytest.raises(ValueError, match="outputs .* cannot be differentiated .* argmax"):
            make(flat)(torch.ones(flat.size))
    once = replace(mean, loss=lambda y, t: cross_entropy(Once.apply(y), t))
    for make in (hessian_product, gauss_newton_product):
        with pytest.raises(ValueError, match="no second derivative"):
            make(once)(one)
    with pytest.raises(ValueError, match=r"expected vectors of shape \(53,\) or \(53, m\), got"):
        hessian_product(mean)(torch.ones(3))
    with pytest.raises(ValueError, match="no parameter 'conv'"):
        mean_loss(task, state, names=["conv"])
    with pytest.raises(ValueError, match="no parameter is left"):
        mean_loss(task, state, names=[])


def test_the_example_that_is_not_finite_is_named():
    task, state = task_of("regression")
    mean = mean_loss(task, state, **OPTIONS)
    targets = task.data.targets.clone()
    targets[13] = 0
    data = Batches(task.data.inputs, targets, batch_size=8)

    def root(outputs, targets):
        return (outputs[:, 0] * targets[:, 0]).abs().sqrt()  # no slope where the target is zero

    broken = mean_loss(Task("t", task.model, root, data), state, **OPTIONS)
    with pytest.raises(ValueError, match="gradient of example 13 of task 't' is not finite"):
        gradient(broken)
    far = replace(
        mean, loss=lambda y, t: squared_error(y, t) / (t[:, 0] != task.data.targets[9, 0])
    )
    with pytest.raises(ValueError, match="the loss of example 9 of task 'regression' is inf"):
        hessian_product(far)(torch.ones(mean.size))
