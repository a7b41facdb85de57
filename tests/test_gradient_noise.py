from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, cross_entropy, squared_error
from numpy.testing import assert_allclose
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from landscape.analyses import gradient_noise as module
from landscape.analyses.gradient_noise import gradient_noise
from landscape.datasets import Batches
from landscape.evaluation import placed_state, prepare
from landscape.strategy import Strategy
from landscape.task import Task

EXACT = {"device": "cpu", "dtype": torch.float64, "strategy": Strategy()}


def gradients(task, state):
    """Those of each example (n, P), by a loop over single examples; and the sizes of tensors."""
    model = deepcopy(task.model).double().eval()
    model.load_state_dict(state)
    own, rows = list(model.parameters()), []
    for inputs, targets in task.data:
        for k in range(len(targets)):
            one = slice(k, k + 1)
            if isinstance(inputs, dict):
                scale = inputs["scale"][one].double()
                outputs = model(tokens=inputs["tokens"][one], scale=scale)
            else:
                outputs = model(inputs[one].double())
            slopes = torch.autograd.grad(task.loss(outputs, targets[one].clone()).sum(), own)
            rows.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(rows).numpy(), [p.numel() for p in own]


def measures(g):
    """Trace of the covariance, mean product of unlike examples, and their ratio."""
    n = len(g)
    trace = np.cov(g.T).trace() if g.shape[1] > 1 else g.var(ddof=1)
    products = g @ g.T
    square = (products.sum() - products.trace()) / (n * (n - 1))
    return np.array([trace, square, trace / square if square > 0 else np.nan])


NAMES = ("covariance_trace", "squared_gradient", "noise_scale")


@pytest.mark.parametrize("name", ["mlp", "residual", "group-norm", "tokens"])
def test_measures_are_those_of_a_loop_over_examples(name):
    case = CASES[name]
    task, state = case.task(), case.states()[0]
    ready = prepare(task, [state], **EXACT)
    found = gradient_noise(ready, state)
    g, sizes = gradients(task, placed_state(ready, state))
    parts = np.split(g, np.cumsum(sizes)[:-1], axis=1)
    expected = np.stack([measures(part) for part in parts], 1)
    for measure, values, total in zip(NAMES, expected, measures(g), strict=True):
        assert_allclose(found[measure], values, rtol=1e-9, atol=1e-13, err_msg=measure)
        assert_allclose(found[f"total_{measure}"], total, rtol=1e-9)
    assert list(found["num_parameters"].values) == sizes
    assert_allclose(found["covariance_trace"].sum(), found["total_covariance_trace"], rtol=1e-12)
    assert_allclose(found["squared_gradient"].sum(), found["total_squared_gradient"], rtol=1e-9)


def test_the_gradient_of_a_batch_is_as_long_as_the_measures_say():
    case = CASES["mlp"]
    task, state = case.task(), case.states()[0]
    found = gradient_noise(task, state, **EXACT)
    g, _ = gradients(task, state)
    pairs = [(g[a] + g[b]) / 2 for a in range(46) for b in range(a)]
    mean = np.mean([pair @ pair for pair in pairs])  # McCandlish et al. 2018, appendix A.1
    expected = found["total_squared_gradient"] + found["total_covariance_trace"] / 2
    assert_allclose(mean, expected, rtol=1e-10)


@pytest.mark.parametrize("num_groups", [5, 46])
def test_standard_errors_are_those_of_leaving_groups_out(num_groups):
    case = CASES["mlp"]
    task, state = case.task(), case.states()[0]
    g, _ = gradients(task, state)
    found = gradient_noise(task, state, num_groups=num_groups, seed=3, **EXACT)
    order = torch.randperm(46, generator=torch.Generator().manual_seed(3)).numpy()
    groups = np.array_split(order, num_groups)
    whole = measures(g)
    without = np.array([measures(np.delete(g, group, axis=0)) for group in groups])
    h = np.array([46 / len(group) for group in groups])[:, None]
    centre = num_groups * whole - ((1 - 1 / h) * without).sum(0)
    variance = ((h * whole - (h - 1) * without - centre) ** 2 / (h - 1)).mean(0)
    for name, value in zip(NAMES, variance**0.5, strict=True):
        assert_allclose(found[f"total_{name}_stderr"], value, rtol=1e-8)
    if num_groups == 46:  # the usual jackknife
        usual = np.sqrt(45 / 46 * ((without - without.mean(0)) ** 2).sum(0))
        assert_allclose(variance**0.5, usual, rtol=1e-8)


def test_over_draws_of_the_data_measures_are_unbiased_and_errors_hold():
    weight = torch.tensor([[0.7, -0.4, 0.2]], dtype=torch.float64)

    def drawn(seed, num):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(num, 3, generator=generator, dtype=torch.float64)
        y = x.sum(1, keepdim=True) + torch.randn(num, 1, generator=generator, dtype=torch.float64)
        return x, y

    # the gradient is 2 r x with r = v'x - e, for v = w - 1: its mean is 2 v
    v = weight[0].numpy() - 1
    square = 4 * v @ v
    # E r^2 |x|^2 = |v|^2 (P + 2) + P, since E (v'x)^2 |x|^2 = |v|^2 (P + 2)
    trace = 4 * (v @ v * 5 + 3) - square
    found = []
    for seed in range(60):
        x, y = drawn(seed, 60)
        model = nn.Linear(3, 1, bias=False)
        task = Task("draw", model, squared_error, Batches(x, y, batch_size=60))
        found.append(gradient_noise(task, {"weight": weight}, num_groups=12, **EXACT))
    for name, truth in zip(NAMES, (trace, square, trace / square), strict=True):
        values = np.array([float(one[f"total_{name}"]) for one in found])
        stderrs = np.array([float(one[f"total_{name}_stderr"]) for one in found])
        if name != "noise_scale":  # a ratio is not
            assert abs(values.mean() - truth) < 3 * values.std() / len(values) ** 0.5
        assert_allclose(np.sqrt((stderrs**2).mean()), values.std(), rtol=0.3)
        assert 0.85 <= (abs(values - truth) < 2.2 * stderrs).mean() <= 1  # t, 11 degrees of freedom


def test_batches_and_loaders_do_not_matter_to_the_values():
    case = CASES["mlp"]
    task, state = case.task(), case.states()[0]
    a = gradient_noise(task, state, **EXACT)
    b = gradient_noise(task, state, batch_size=1, num_groups=3, **EXACT)
    streamed = [(x, y) for x, y in DataLoader(TensorDataset(*_tensors(task)), batch_size=9)]
    unlike = [(x[:, None] if i else x, y) for i, (x, y) in enumerate(streamed)]

    class Flat(nn.Sequential):
        def forward(self, x):
            return super().forward(x.flatten(1))

    other = replace(task, model=Flat(*case.model()), data=unlike)
    c = gradient_noise(other, state, num_groups=4, **EXACT)
    assert c.attrs["num_groups"] == 4
    for name in NAMES:
        assert_allclose(a[name], b[name], rtol=1e-9)
        assert_allclose(a[name], c[name], rtol=1e-9)
    assert_allclose(a["loss"], c["loss"], rtol=1e-12)


def _tensors(task):
    return task.data.inputs, task.data.targets


def test_frozen_parameters_are_left_out_and_listed():
    case = CASES["mlp"]
    task, state = case.task(), case.states()[0]
    whole = gradient_noise(task, state, **EXACT)
    task.model[0].weight.requires_grad_(False)
    found = gradient_noise(task, state, **EXACT)
    assert found.attrs["not_counted"] == '["0.weight"]'
    assert list(found["tensor"].values) == ["0.bias", "3.weight", "3.bias"]
    assert_allclose(found["covariance_trace"], whole["covariance_trace"][1:], rtol=1e-12)


def test_where_the_expected_gradient_may_be_zero_there_is_no_noise_scale():
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
    task = Task("zero", nn.Linear(1, 1, bias=False), squared_error, Batches(x, y, batch_size=4))
    found = gradient_noise(task, {"weight": torch.zeros(1, 1, dtype=torch.float64)}, **EXACT)
    assert_allclose(found["total_covariance_trace"], 16 / 3)
    assert_allclose(found["total_squared_gradient"], -4 / 3)
    assert np.isnan(found["total_noise_scale"])


def test_nothing_of_the_users_is_changed():
    case = CASES["residual"]
    task, state = case.task(), case.states()[0]
    task.model.train()
    before, own = deepcopy(state), deepcopy(task.model.state_dict())
    random = torch.get_rng_state()
    gradient_noise(task, state, **EXACT)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert task.model.training
    assert all(torch.equal(own[name], t) for name, t in task.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in task.model.parameters())
    assert all(torch.equal(before[name], state[name]) for name in state)


def _infinite_slope(outputs, targets):
    losses, odd = cross_entropy(outputs, targets), targets == 2
    edge = outputs[odd, 0]
    return losses.index_add(0, odd.nonzero()[:, 0], (edge - edge.detach()).abs().sqrt())


def test_an_example_without_a_finite_gradient_is_named():
    case = CASES["mlp"]
    task = replace(case.task(), loss=_infinite_slope)
    with pytest.raises(ValueError, match=r"the gradient of example \d+ of task 'mlp'") as error:
        gradient_noise(task, case.states()[0], **EXACT)
    number = int(str(error.value).split("example ")[1].split()[0])
    assert task.data.targets[number] == 2


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"num_groups": 1}, "3 examples and 2 groups at least, got 46 examples and num_groups"),
        ({"data": Batches(torch.zeros(2, 6), torch.zeros(2).long(), 2)}, {}, "got 2 examples"),
        ({"loss": nn.CrossEntropyLoss()}, {}, "reduction='none'"),
        ({"loss": lambda o, t: (o.argmax(1) != t).double()}, {}, "cannot be differentiated"),
    ],
)
def test_what_cannot_serve_is_refused(change, options, words):
    case = CASES["mlp"]
    task = replace(case.task(), metrics={}, **change)
    with pytest.raises(ValueError, match=words):
        gradient_noise(task, case.states()[0], **options, **EXACT)


def test_examples_that_are_not_independent_are_refused():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))
    task = replace(CASES["mlp"].task(), model=nn.Sequential(*model, nn.Linear(4, 3)))
    with pytest.raises(ValueError, match="examples are not independent: 1 normalise"):
        gradient_noise(task, task.model.state_dict(), **EXACT)


def test_out_of_memory_halves_the_batches(monkeypatch):
    case = CASES["mlp"]
    task, state = case.task(), case.states()[0]
    expected = gradient_noise(task, state, num_groups=2, **EXACT)
    whole, sizes = module.example_gradients, []

    def limited(model, rules, inputs, cotangents, **wanted):
        sizes.append(len(inputs))
        if len(inputs) > 3:
            raise torch.OutOfMemoryError
        return whole(model, rules, inputs, cotangents, **wanted)

    monkeypatch.setattr(module, "example_gradients", limited)
    found = gradient_noise(task, state, num_groups=2, **EXACT)
    assert sizes[:3] == [10, 5, 2]
    for name in NAMES:
        assert_allclose(found[f"total_{name}"], expected[f"total_{name}"], rtol=1e-9)
