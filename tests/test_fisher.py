"""Fisher information against loops over examples and all their labels, in float64."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import Residual, cross_entropy, squared_error
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from landscape.analyses import fisher_gradients, fisher_sampling
from landscape.analyses.fisher import fisher_diagonal, fisher_trace
from landscape.analyses.fisher_gradients import (
    NonFiniteError,
    Sampling,
    probe_at,
)
from landscape.analyses.fisher_sampling import drawn_points, estimated
from landscape.datasets import Batches
from landscape.engine import caller, gradients_allowed, with_state
from landscape.evaluation import placed_state, prepare
from landscape.task import Task

CPU = torch.device("cpu")
EXACT = {"device": "cpu", "dtype": torch.float64}


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.once, self.twice = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.twice(torch.tanh(self.twice(torch.tanh(self.once(x)))))


class Tied(nn.Module):
    """An embedding tied to the output, and a bare table of positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(3, 4), nn.Linear(4, 3, bias=False)
        self.out.weight = self.embed.weight
        self.table = nn.Parameter(torch.rand(2, 4))

    def forward(self, tokens):
        return self.out(torch.tanh(self.embed(tokens) + self.table))


class Attention(nn.Module):
    """Attention over tokens, with a label for each."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, tokens):
        x = self.norm(self.embed(tokens))
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


class GroupNormResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
        self.branch = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.branch(x)).mean((2, 3)))


def odd_convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2), nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular", groups=4), nn.Tanh(),
        nn.Conv2d(4, 3, (1, 3), stride=2), nn.Tanh(), nn.Conv2d(3, 3, 3, padding="same"),
        nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


def frozen():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


def tokens_loss(outputs, targets):
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def several_labels(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))


IMAGES, VECTORS, TOKENS = (2, 5, 5), (4,), (2,)
NETS = {
    "mlp": (mlp, VECTORS, "classes", cross_entropy),
    "batch-norm": (Residual, IMAGES, "classes", cross_entropy),
    "odd-convolutions": (odd_convolutions, IMAGES, "classes", cross_entropy),
    "group-norm": (GroupNormResidual, IMAGES, "classes", cross_entropy),
    "tied": (Tied, TOKENS, "tokens", tokens_loss),
    "twice": (Twice, VECTORS, "classes", cross_entropy),
    "attention": (Attention, TOKENS, "tokens", tokens_loss),
    "regression": (mlp, VECTORS, "values", squared_error),
    "multi-label": (mlp, VECTORS, "several", several_labels),
    "frozen": (frozen, VECTORS, "classes", cross_entropy),
}


def task_of(name, num=7, batch_size=3):
    make, shape, kind, loss = NETS[name]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(num, *shape, generator=generator, dtype=torch.float64)
    if kind == "tokens":
        x = torch.randint(0, 3, (num, *shape), generator=generator)
    y = {
        "classes": torch.arange(num) % 3,
        "tokens": torch.randint(0, 3, (num, 2), generator=generator),
        "values": torch.randn(num, 3, generator=generator, dtype=torch.float64),
        "several": torch.randint(0, 2, (num, 3), generator=generator).double(),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make()
        if any(isinstance(module, nn.modules.lazy.LazyModuleMixin) for module in model.modules()):
            model(x[:1].float())
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    for key, value in state.items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
    return Task(name, model, loss, Batches(x, y, batch_size)), state


def joint_labels(kind, outputs):
    """Pairs of a probability and log p of joint labels, whose mean over labels is exact."""
    outputs = outputs[0]
    if kind == "values":  # two points for each output: exact for squares of linear functions
        for signs in itertools.product((-1.0, 1.0), repeat=outputs.numel()):
            y = outputs.detach() + torch.tensor(signs, dtype=outputs.dtype)
            yield 0.5 ** outputs.numel(), -0.5 * (y - outputs).square().sum()
    elif kind == "several":
        for y in itertools.product((0.0, 1.0), repeat=outputs.numel()):
            y = torch.tensor(y, dtype=outputs.dtype)
            log_p = -F.binary_cross_entropy_with_logits(outputs, y, reduction="sum")
            yield log_p.exp().item(), log_p
    else:
        logs = outputs.reshape(-1, outputs.shape[-1]).log_softmax(-1)
        for y in itertools.product(range(logs.shape[1]), repeat=len(logs)):
            log_p = sum(row[label] for row, label in zip(logs, y, strict=True))
            yield log_p.exp().item(), log_p


def brute_diagonal(task, state, labels):
    """The mean over examples, and over all joint labels, of squared gradients."""
    model = with_state(task.model, state, device=CPU, dtype=torch.float64)
    wanted = [name for name, p in task.model.named_parameters() if p.requires_grad]
    own = dict(model.named_parameters())
    parameters = [own[name].requires_grad_() for name in wanted]
    total = [torch.zeros_like(p) for p in parameters]
    x, y = task.data.inputs, task.data.targets
    for n in range(len(x)):
        outputs = caller(model)(x[n : n + 1])
        if labels == "observed":
            terms = [(1.0, task.loss(outputs, y[n : n + 1])[0])]
        else:
            terms = joint_labels(NETS[task.name][2], outputs)
        for weight, value in terms:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True)
            for part, gradient in zip(total, gradients, strict=True):
                part += weight * gradient.square() / len(x)
    return dict(zip(wanted, total, strict=True))


def placed(task, state, batch_norm):
    ready = prepare(task, [state], batch_norm=batch_norm, **EXACT)
    return placed_state(ready, state, batch_norm=batch_norm)


@pytest.mark.parametrize("labels", ["exact", "observed"])
@pytest.mark.parametrize("name", NETS)
def test_traces_and_diagonals_are_those_of_a_loop_over_examples_and_labels(name, labels):
    task, state = task_of(name)
    for batch_norm in ("keep", "recalibrate") if name == "batch-norm" else ("keep",):
        options = {"labels": labels, "batch_norm": batch_norm, **EXACT}
        truth = brute_diagonal(task, placed(task, state, batch_norm), labels)
        found = fisher_trace(task, state, **options)
        assert list(found.tensor.values) == list(truth)
        wanted = [value.sum().item() for value in truth.values()]
        assert_allclose(found["trace"], wanted, rtol=1e-10, atol=1e-14)
        assert_allclose(found["total"], sum(wanted), rtol=1e-10)
        assert not found["trace_stderr"].any()
        diagonal = fisher_diagonal(task, state, **options)
        for key, value in truth.items():
            assert_allclose(diagonal[key], value, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("scheme", ["importance", "plain"])
@pytest.mark.parametrize("name", ["mlp", "attention", "regression", "multi-label"])
def test_many_draws_of_labels_give_the_exact_trace(name, scheme):
    task, state = task_of(name)
    truth = fisher_trace(task, state, labels="exact", **EXACT)
    found = fisher_trace(task, state, scheme=scheme, num_backwards=2_800, **EXACT)
    assert found.attrs["num_backwards"] == 2_800
    error = (found["trace"] - truth["trace"]) / found["trace_stderr"].clip(1e-12)
    assert abs(error).max() < 4
    assert_allclose(found["total"], truth["total"], rtol=0.1)
    assert not found["trace_stderr_examples"].any()
    assert_allclose(found["trace_stderr"], found["trace_stderr_labels"])


@pytest.mark.parametrize("labels", ["sampled", "exact", "observed"])
@pytest.mark.parametrize("num_backwards", [None, 12])
def test_batches_do_not_matter(labels, num_backwards):
    found = []
    for batch_size in (1, 4, 64):
        task, state = task_of("batch-norm", num=20, batch_size=batch_size)
        options = {"labels": labels, "num_backwards": num_backwards, "seed": 3, **EXACT}
        found.append(fisher_trace(task, state, **options))
    for other in found[1:]:
        for name in ("trace", "trace_stderr", "trace_stderr_labels", "total"):
            assert_allclose(other[name], found[0][name], rtol=1e-9, atol=1e-14)


def test_chosen_examples_and_labels_have_errors_of_two_parts():
    task, state = task_of("mlp", num=40)
    found = fisher_trace(task, state, num_backwards=40, **EXACT)
    assert found.attrs["num_backwards"] == 40
    assert_allclose(
        found["trace_stderr"] ** 2,
        found["trace_stderr_labels"] ** 2 + found["trace_stderr_examples"] ** 2,
    )
    assert (found["trace_stderr_examples"] > 0).any()
    exact = fisher_trace(task, state, labels="exact", num_backwards=60, **EXACT)
    assert exact.attrs["num_backwards"] == 60
    assert not exact["trace_stderr_labels"].any()


def test_drawn_examples_are_unbiased_and_show_their_variance():
    generator = np.random.default_rng(0)
    sizes = generator.gamma(0.3, size=50)
    values = sizes * generator.uniform(0.5, 1.5, 50) + 0.01
    values[0], sizes[1] = 0.2, 0.0
    means, variances = [], []
    for seed in range(3000):
        points = drawn_points(sizes, 20, seed=seed)
        terms = points.weights * values[points.numbers]
        pairs = terms[np.argsort(points.strata, kind="stable")].reshape(-1, 2)
        means.append(terms.sum())
        variances.append(((pairs[:, 0] - pairs[:, 1]) ** 2).sum())
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - values.mean()) < 4 * error
    assert_allclose(np.mean(variances), np.var(means), rtol=0.1)


@pytest.mark.parametrize("num", [40, 200])
def test_standard_errors_cover_the_truth_at_their_rate(num):
    """The share of seeds within one and two standard errors; some or all examples go backward."""
    task, state = task_of("mlp", num=90, batch_size=64)
    for key in state:
        state[key] *= 4  # certain labels, of which some are not
    truth = fisher_trace(task, state, labels="exact", **EXACT)
    ready = prepare(task, [state], **EXACT)
    within = []
    with gradients_allowed():
        probe = probe_at(ready, state, Sampling(num_backwards=num))
        for seed in range(300):
            how = Sampling(num_backwards=num, seed=seed)
            found = estimated(replace(probe, how=how))
            error = found.values - [*truth["trace"].values, float(truth["total"])]
            within.append(abs(error) / np.sqrt(found.labels + found.examples + 1e-30))
    for width, rate in ((1, 0.683), (2, 0.954)):
        shares = (np.stack(within)[:, [0, 1, -1]] < width).mean(0)
        assert_allclose(shares, rate, atol=0.1)


def test_a_tolerance_is_met_by_more_examples_then_labels_then_all():
    task, state = task_of("mlp", num=90, batch_size=64)
    for key in state:
        state[key] *= 4
    truth = fisher_trace(task, state, labels="exact", **EXACT)["total"]
    spent = []
    for tolerance in (0.3, 0.1, 0.03, 1e-3):
        found = fisher_trace(task, state, num_backwards=8, tolerance=tolerance, **EXACT)
        assert found["total_stderr"] <= tolerance * found["total"]
        assert abs(found["total"] - truth) <= max(4 * found["total_stderr"], 1e-12)
        spent.append(found.attrs["num_backwards"])
    assert spent == sorted(spent)
    assert spent[-1] == 3 * 90  # exact
    observed = fisher_trace(task, state, labels="observed", num_backwards=8, tolerance=0.1, **EXACT)
    assert observed["total_stderr"] <= 0.1 * observed["total"]


@pytest.mark.parametrize("labels", ["sampled", "observed"])
def test_examples_are_drawn_by_their_uncertainty(labels):
    """With one uncertain example among certain ones, few backward passes are nearly exact."""
    task, state = task_of("mlp", num=60)
    state["3.weight"] *= 0
    state["3.bias"] = torch.tensor([60.0, 0.0, 0.0])
    inputs = torch.zeros(60, 4, dtype=torch.float64)
    inputs[7] = 40.0
    state["3.weight"][1, 0] = 60 * torch.tanh(state["0.weight"][0].sum() * 40).sign()
    data = Batches(inputs, torch.zeros(60, dtype=torch.long), 8)
    task = Task("mlp", task.model, task.loss, data)
    truth = fisher_trace(task, state, labels=labels, num_backwards=None if labels == "observed"
                         else 50_000, **EXACT)  # fmt: skip
    found = fisher_trace(task, state, labels=labels, num_backwards=16, **EXACT)
    assert_allclose(found["total"], truth["total"], rtol=0.2)
    assert found["total_stderr"] < 0.2 * found["total"]


def test_streamed_data_give_what_data_in_memory_give():
    task, state = task_of("batch-norm", num=20, batch_size=6)
    batches = [(x, y) for x, y in task.data]
    uneven = [*batches[:2], *((x[i : i + 1], y[i : i + 1]) for x, y in batches[2:] for i in
                              range(len(x)))]  # fmt: skip
    for labels in ("sampled", "observed"):
        options = {"labels": labels, "num_backwards": 12, **EXACT}
        wanted = fisher_trace(task, state, **options)
        ready = prepare(task, [state], **EXACT)
        streamed = replace(ready.examples[0], inputs=None, targets=None, source=uneven)
        ready = replace(ready, examples=(streamed,))
        found = fisher_trace(ready, state, **options)
        assert_allclose(found["trace"], wanted["trace"], rtol=1e-9, atol=1e-14)
        assert_allclose(found["trace_stderr"], wanted["trace_stderr"], rtol=1e-9, atol=1e-14)


def test_examples_that_a_loader_drops_are_not_counted():
    task, state = task_of("mlp", num=20)
    data = TensorDataset(task.data.inputs, task.data.targets)
    loader = DataLoader(data, batch_size=8, drop_last=True)
    first = Batches(task.data.inputs[:16], task.data.targets[:16], 8)
    for labels in ("exact", "sampled", "observed"):
        found, wanted = (
            fisher_trace(replace(task, data=one), state, labels=labels, **EXACT)
            for one in (loader, first)
        )
        assert found.attrs["num_examples"] == 16
        assert_allclose(found["trace"], wanted["trace"], rtol=1e-12)


@pytest.mark.parametrize("labels", ["sampled", "exact"])
def test_where_memory_runs_out_there_are_fewer_at_a_time(labels, monkeypatch):
    task, state = task_of("attention", num=9, batch_size=9)
    wanted = fisher_trace(task, state, labels=labels, **EXACT)
    real, calls = fisher_gradients.example_gradients, []

    def small(model, rules, inputs, cotangents, **options):
        def counting(outputs):
            pulled = cotangents(outputs)
            calls.append(pulled.shape[:2])
            if pulled.shape[0] * pulled.shape[1] > limit:
                raise torch.OutOfMemoryError
            return pulled

        return real(model, rules, inputs, counting, **options)

    limit = 6 if labels == "sampled" else 1
    monkeypatch.setattr(fisher_sampling, "NUM_BACKWARDS", 18)
    wanted = fisher_trace(task, state, labels=labels, **EXACT)
    monkeypatch.setattr(fisher_gradients, "example_gradients", small)
    found = fisher_trace(task, state, labels=labels, **EXACT)
    assert_allclose(found["trace"], wanted["trace"], rtol=1e-10)
    assert max(k * b for k, b in calls) > limit
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        fisher_trace(task, state, labels=labels, **EXACT)


def test_nothing_of_the_user_is_changed():
    task, state = task_of("batch-norm")
    task.model.train()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    given = {name: value.clone() for name, value in state.items()}
    random = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fisher_trace(task, state, **EXACT)
    fisher_diagonal(task, state, labels="exact", **EXACT)
    assert task.model.training
    assert all(p.requires_grad and p.grad is None for p in task.model.parameters())
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(state[name], given[name])
    assert torch.equal(torch.random.get_rng_state(), random[0])
    assert (np.random.get_state()[1] == random[1]).all()  # noqa: NPY002


class Doubling(nn.Module):
    """Doubles its inputs, in place or not."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.last = inplace, nn.Linear(4, 3)

    def forward(self, x):
        return self.last(x.mul_(2) if self.inplace else 2 * x)


@pytest.mark.parametrize("loader", [False, True])
def test_a_model_that_begins_in_place_has_the_information_of_its_twin(loader):
    task, _ = task_of("mlp", num=40)
    data, kept = task.data, task.data.inputs.clone()
    if loader:
        data = [(data.inputs[:20], data.targets[:20]), (data.inputs[20:], data.targets[20:])]
    changing, plain = (Task("one", Doubling(inplace), cross_entropy, data)
                       for inplace in (True, False))  # fmt: skip
    state = plain.model.state_dict()
    for options in ({}, {"num_backwards": 12}, {"labels": "exact"}, {"labels": "observed"}):
        found, wanted = (fisher_trace(one, state, **options, **EXACT) for one in (changing, plain))
        assert torch.equal(task.data.inputs, kept)
        assert_allclose(found["trace"], wanted["trace"], rtol=1e-12)


def test_what_was_counted_is_said():
    task, state = task_of("frozen")
    found = fisher_trace(task, state, **EXACT)
    assert found.attrs["not_counted"] == "0.weight"
    assert found["tensor"].values.tolist() == ["0.bias", "2.weight", "2.bias"]
    assert found["module"].values.tolist() == ["0", "2", "2"]
    assert found["num_parameters"].values.tolist() == [5, 15, 3]
    task, state = task_of("tied")
    found = fisher_trace(task, state, **EXACT)
    assert found["rule"].values.tolist() == ["fallback", "fallback"]
    assert "embed.weight: shared by embed.weight, out.weight" in found.attrs["notes"]
    assert (found.attrs["likelihood"], found.attrs["labels"]) == ("categorical", "sampled")
    assert found.attrs["loss_scale"] == pytest.approx(0.5)


def test_ignored_tokens_are_left_out():
    """The trace is that of shorter sentences where the model sees each token by itself."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4)).double()
    tokens = torch.tensor([[0, 1, 2], [3, 4, 0]])
    targets = torch.tensor([[1, 2, -100], [0, 3, -100]])

    def loss(outputs, targets):
        return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1)

    for labels in ("exact", "observed"):
        whole = Task("padded", model, loss, Batches(tokens, targets, 2))
        short = Task("short", model, loss, Batches(tokens[:, :2], targets[:, :2], 2))
        found, wanted = (
            fisher_trace(task, model.state_dict(), labels=labels, **EXACT)
            for task in (whole, short)
        )
        assert_allclose(found["trace"], wanted["trace"], rtol=1e-12)


def averaged(outputs, targets):
    return F.cross_entropy(outputs, targets)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x).argmax(1)


def test_bad_input_is_named():
    task, state = task_of("mlp")
    data = task.data
    with pytest.raises(ValueError, match="reduction='none'"):
        fisher_trace(Task("mean", task.model, averaged, data), state, **EXACT)
    model = Mixing()
    with pytest.raises(ValueError, match=r"norm normalise with the statistics of the batch"):
        fisher_trace(Task("mixing", model, cross_entropy, data), model.state_dict(), **EXACT)
    model = Rounded()
    with pytest.raises(ValueError, match="the outputs are not differentiable"):
        fisher_trace(Task("rounded", model, lambda o, y: (o - y).double(), data),
                     model.state_dict(), **EXACT)  # fmt: skip
    with pytest.raises(ValueError, match="labels out of range: the model gives 3 outputs"):
        fisher_trace(replace(task, data=Batches(data.inputs, data.targets + 1, 3)), state, **EXACT)
    with pytest.raises(ValueError, match="task 'mlp': the loss belongs to no likelihood"):
        fisher_trace(replace(task, loss=lambda o, y: cross_entropy(o, y) * (y + 1)), state, **EXACT)
    with pytest.raises(ValueError, match="cannot be differentiated with respect to the outputs"):
        fisher_trace(replace(task, loss=lambda o, y: (o.argmax(1) != y).double()), state,
                     labels="observed", **EXACT)  # fmt: skip
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3))
    tokens = torch.arange(80).reshape(20, 4) % 3
    targets = tokens.clone()
    targets[15, 1] = 3
    far = Task("tokens", model, tokens_loss, Batches(tokens, targets, 3))
    with pytest.raises(ValueError, match=r"gives 3 .* example 15 of the data has the label 3"):
        fisher_trace(far, model.state_dict(), **EXACT)


def test_an_example_without_finite_gradient_is_named():
    task, _ = task_of("mlp", num=20)

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            return self.inner(x).abs().sqrt()

    model = Root().double()
    inputs = task.data.inputs.clone()
    inputs[13] = 0
    with torch.no_grad():
        model.inner.bias[:] = 0
    data = Batches(inputs, task.data.targets, 6)
    broken = Task("root", model, cross_entropy, data)
    for labels in ("sampled", "exact", "observed"):
        with pytest.raises(NonFiniteError, match="the gradient of example 13 of task 'root'"):
            fisher_trace(broken, model.state_dict(), labels=labels, **EXACT)
    inputs[14] = float("nan")
    with pytest.raises(NonFiniteError, match="the output of example 14 of task 'root'"):
        fisher_trace(broken, model.state_dict(), num_backwards=12, **EXACT)


def test_wrong_options_are_refused():
    task, state = task_of("mlp")
    for options, message in (
        ({"labels": "empirical"}, "labels must be one of sampled, exact, observed"),
        ({"scheme": "best"}, "scheme must be one of importance, plain"),
        ({"num_backwards": 0}, "num_backwards must be at least 1"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"seed": -1}, "seed must not be negative"),
        ({"batch_norm": "interpolate"}, "batch_norm must be 'recalibrate' or 'keep'"),
    ):
        with pytest.raises(ValueError, match=message):
            fisher_trace(task, state, **options, **EXACT)
    with pytest.raises(ValueError, match="has no standard error to meet a tolerance"):
        fisher_diagonal(task, state, tolerance=0.1, **EXACT)
