"""Every rule against the gradients of single examples, one autograd call for each, in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from cases import CASES, Recurrent, Residual, Tokens
from torch import nn
from torch.nn import functional as F  # noqa: N812

from landscape.engine import caller, replicate
from landscape.example_gradients import example_gradients, fallback, parts, rules_for
from landscape.task import map_tensors


class Twice(nn.Module):
    """One layer used twice, beside one that is used once."""

    def __init__(self):
        super().__init__()
        self.once, self.twice = nn.Linear(6, 5), nn.Linear(5, 5)

    def forward(self, x):
        return self.twice(torch.tanh(self.twice(torch.tanh(self.once(x)))))


class Bare(nn.Module):
    """Bare parameters, of the model and in a module of its own kind; one that nothing takes."""

    def __init__(self):
        super().__init__()
        self.scale, self.lost = nn.Parameter(torch.rand(5)), nn.Parameter(torch.rand(2))
        self.inner, self.slope = nn.Linear(6, 5), nn.PReLU(5)
        self.dead = nn.Linear(5, 5)

    def forward(self, x):
        return self.slope(self.inner(x)) * self.scale + self.dead(x[:, :5]).detach()


class Attention(nn.Module):
    """Attention over tokens from linear layers."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(9, 8, padding_idx=0), nn.LayerNorm(8)
        self.queries, self.keys, self.values = (
            nn.Linear(8, 8, bias=b) for b in (True, True, False)
        )
        self.out, self.last = nn.Linear(8, 8), nn.RMSNorm(8)

    def forward(self, tokens):
        x = self.norm(self.embed(tokens))
        q, k, v = (
            f(x).unflatten(-1, (2, 4)).transpose(1, 2)
            for f in (self.queries, self.keys, self.values)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(x + self.out(mixed))


class Encoder(nn.Module):
    """torch's own attention, with the examples first or second."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        if self.batch_first:
            return self.head(self.layer(x).mean(1))
        return self.head(self.layer(x.transpose(0, 1)).mean(0))


class InPlace(nn.Module):
    """Activations and sums in place, behind a root of the graph and behind other layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu_(self.first(x))
        y = self.norm(self.second(x).mul_(2))
        y += x
        return self.head(F.relu_(y).mean((2, 3)))


class Folded(nn.Module):
    """Positions folded into the examples: the rows of an example together, or far apart."""

    def __init__(self, apart):
        super().__init__()
        self.apart, self.inner, self.norm, self.out = (
            apart, nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2),
        )  # fmt: skip

    def forward(self, x):
        if self.apart:
            x = x.transpose(0, 1)
        y = self.out(self.norm(torch.tanh(self.inner(x.reshape(-1, 4))))).unflatten(0, x.shape[:2])
        return y.sum(0 if self.apart else 1)


class Refused(nn.Module):
    """What `vmap` cannot do: a branch that depends on the values."""

    def __init__(self):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.rand(6)), nn.Linear(6, 3)

    def forward(self, x):
        x = x * self.scale
        return self.out(torch.tanh(x) if x.sum().isfinite() else x)


class Elsewhere(nn.Module):
    """A weight that a layer and a bare operation take."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(self.inner(x)) @ self.inner.weight


class Standardised(nn.Conv2d):
    """A kind of its own: not what a convolution computes."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def convolutions():
    """Convolutions of all kinds behind one another, with norms between."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2), padding="same", padding_mode="reflect"),
        nn.GroupNorm(3, 6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=(2, 3), padding=(1, 2), groups=2, bias=False),
        nn.InstanceNorm2d(8, affine=True),
        nn.Conv2d(8, 4, 5, padding="same", padding_mode="replicate", dilation=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        nn.Conv2d(6, 3, 2, stride=2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def volumes():
    """Convolutions in one and in three dimensions."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2, padding_mode="circular"),
        nn.ConvTranspose1d(4, 4, 3, stride=2, groups=2, output_padding=1),
        nn.BatchNorm1d(4),
        nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"),
        nn.Unflatten(2, (2, 2, -1)),
        nn.Conv3d(6, 4, (2, 2, 3), stride=(1, 2, 2), padding=(1, 0, 1), groups=2),
        nn.ConvTranspose3d(4, 2, 2, stride=(1, 2, 1)),
        nn.BatchNorm3d(2),
        nn.Flatten(2),
        nn.Tanh(),
        nn.LayerNorm(24, bias=False),
    )


def positions(x):
    return x.flatten(1).unflatten(1, (5, 4))


IMAGES, VECTORS = (2, 7, 8), (6,)
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(True), nn.Linear(8, 3)), VECTORS),
    "one output": (lambda: nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 1)), VECTORS),
    "residual with batch norm": (Residual, IMAGES),
    "residual with group norm": (CASES["group-norm"].model, (2, 5, 5)),
    "convolutions": (convolutions, IMAGES),
    "volumes": (volumes, (2, 9)),
    "in place": (InPlace, IMAGES),
    "used twice": (Twice, VECTORS),
    "bare": (Bare, VECTORS),
    "attention": (Attention, 5),
    "encoder": (lambda: Encoder(True), (5, 8)),
    "encoder, examples second": (lambda: Encoder(False), (5, 8)),
    "folded": (lambda: Folded(False), (5, 4)),
    "folded apart": (lambda: Folded(True), (5, 4)),
    "recurrent": (Recurrent, (5, 3)),
    "refused": (Refused, VECTORS),
    "elsewhere": (Elsewhere, VECTORS),
    "standardised": (lambda: nn.Sequential(Standardised(2, 3, 3), nn.Flatten()), IMAGES),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), VECTORS),
    "tied": (Tokens, "tokens"),
}


def problem(name, num=6, dtype=torch.float64):
    """A private model with moved parameters and statistics, and inputs."""
    make, shape = MODELS[name]
    generator = torch.Generator().manual_seed(3)
    if shape == "tokens":
        inputs = {"tokens": torch.randint(0, 7, (num, 4), generator=generator),
                  "scale": torch.rand(num, generator=generator, dtype=dtype)}  # fmt: skip
    elif isinstance(shape, int):
        inputs = torch.randint(0, 9, (num, shape), generator=generator)
    else:
        inputs = torch.randn(num, *shape, generator=generator, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make()
        if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
            model(inputs.float())
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "original" not in key:
            tensor += torch.rand(tensor.shape, generator=generator) / 4
    return private(model, dtype), inputs


def private(model, dtype=torch.float64):
    (twin,) = replicate(model, 1, device=torch.device("cpu"), dtype=dtype, layout="contiguous")
    return twin


def cotangents_of(model, inputs, k):
    outputs = caller(model)(inputs)
    generator = torch.Generator().manual_seed(4)
    return torch.randn(k, *outputs.shape, generator=generator, dtype=outputs.dtype)


def brute_force(model, inputs, cotangents):
    """Gradients (k, b, *shape) of each parameter, one example and one cotangent at a time."""
    model = copy.deepcopy(model).requires_grad_(True)
    own = dict(model.named_parameters())
    found = {name: [] for name in own}
    for k, n in [(k, n) for k in range(len(cotangents)) for n in range(cotangents.shape[1])]:
        outputs = caller(model)(map_tensors(lambda x, n=n: x[n : n + 1], inputs))
        gradients = torch.autograd.grad(
            outputs, list(own.values()), cotangents[k, n : n + 1], allow_unused=True
        )
        for (name, parameter), gradient in zip(own.items(), gradients, strict=True):
            found[name].append(torch.zeros_like(parameter) if gradient is None else gradient)
    lead = cotangents.shape[:2]
    return {name: torch.stack(list_).unflatten(0, lead).detach() for name, list_ in found.items()}


def assert_equal(found, expected, rtol=1e-10, noise=0.0):
    """Equal relative to the largest element of the tensor."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=rtol, atol=rtol * scale + noise
    )


def assert_right(model, rules, inputs, k, rtol=1e-10, **wanted):
    cotangents = cotangents_of(model, inputs, k)
    weights = torch.rand(cotangents.shape[:2], generator=torch.Generator().manual_seed(5))
    weights = weights.to(cotangents.dtype)
    truth = brute_force(copy.deepcopy(model).double(), doubled(inputs), cotangents.double())
    found = example_gradients(model, rules, inputs, lambda _: cotangents, weights=weights, **wanted)
    assert set(found.norms) == set(rules.counted)
    largest = max(g.square().flatten(2).sum(2).max().item() for g in truth.values())
    noise = (1e3 * torch.finfo(cotangents.dtype).eps) ** 2 * largest  # of gradients that are zero
    for name in rules.counted:
        gradients = truth[name]
        factors = weights.double().reshape(*weights.shape, *[1] * (gradients.ndim - 2))
        assert_equal(found.norms[name], gradients.square().flatten(2).sum(2), rtol, noise)
        if wanted.get("diagonal"):
            assert_equal(
                found.diagonal[name], (factors * gradients.square()).sum((0, 1)), rtol, noise
            )
        if wanted.get("mean"):
            assert_equal(found.mean[name], (factors * gradients).sum((0, 1)), rtol)


def doubled(inputs):
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_norms_diagonals_and_means_are_those_of_single_examples(name):
    model, inputs = problem(name)
    rules = rules_for(model, inputs)
    for k in (1, 3):
        assert_right(model, rules, inputs, k)
        assert_right(model, rules, inputs, k, diagonal=True, mean=True)


def kinds(rules):
    return {name: rule.kind for name, rule in rules.parameters.items()}


def test_every_parameter_is_listed_with_its_rule_and_why():
    model, inputs = problem("bare")
    rules = rules_for(model, inputs, counted=["scale", "lost", "inner.weight", "dead.weight"])
    assert kinds(rules) == {
        "scale": "fallback", "lost": "unused", "inner.weight": "linear", "inner.bias": "frozen",
        "slope.weight": "frozen", "dead.weight": "linear", "dead.bias": "frozen",
    }  # fmt: skip
    assert rules.counted == ("scale", "lost", "inner.weight", "dead.weight")
    assert "of the model itself" in rules.parameters["scale"].why
    assert "gradient was zero" in rules.parameters["dead.weight"].why
    assert "scale         fallback: a parameter" in str(rules)
    found = example_gradients(model, rules, inputs, lambda _: cotangents_of(model, inputs, 2))
    assert set(found.norms) == set(rules.counted)
    assert not found.norms["lost"].any()
    assert not found.norms["dead.weight"].any()


@pytest.mark.parametrize(
    ("name", "parameter", "why"),
    [
        ("used twice", "twice.weight", "the layer runs 2 times"),
        ("tied", "embed.weight", "shared by embed.weight, out.weight"),
        ("elsewhere", "inner.weight", "used outside of the layer 'inner'"),
        ("recurrent", "lstm.weight_hh_l0", "of a LSTM, for which there is no rule"),
        ("refused", "scale", "one example at a time, since vmap refuses: vmap: It looks like"),
        ("encoder", "layer.self_attn.in_proj_weight", "of a MultiheadAttention"),
        ("folded apart", "inner.weight", "not along the first dimension"),
        ("folded", "norm.weight", "several rows"),
    ],
)
def test_reasons_of_the_fallback(name, parameter, why):
    rules = rules_for(*problem(name))
    assert rules.parameters[parameter].kind == "fallback"
    assert why in rules.parameters[parameter].why


@pytest.mark.parametrize("name", ["mlp", "convolutions", "volumes", "attention"])
def test_nothing_falls_back_where_there_is_a_rule(name):
    rules = rules_for(*problem(name))
    assert not rules.fallback
    assert not any(rule.why for rule in rules.parameters.values())


@pytest.mark.parametrize("name", ["mlp", "convolutions", "attention", "encoder", "used twice"])
def test_single_precision(name):
    model, inputs = problem(name, dtype=torch.float32)
    rules = rules_for(model, inputs)
    for k in (1, 3):
        assert_right(model, rules, inputs, k, rtol=1e-5, diagonal=True)


@pytest.mark.parametrize("name", ["convolutions", "in place", "attention", "bare", "refused"])
def test_the_batch_size_does_not_matter(name):
    model, inputs = problem(name)
    rules, cotangents = rules_for(model, inputs), cotangents_of(model, inputs, 2)
    whole = example_gradients(model, rules, inputs, lambda _: cotangents, diagonal=True)
    pieces = [
        example_gradients(model, rules, inputs[part], lambda _: cotangents[:, part], diagonal=True)  # noqa: B023
        for part in (slice(0, 1), slice(1, 3), slice(3, 6))
    ]
    for parameter in rules.counted:
        norms = torch.cat([piece.norms[parameter] for piece in pieces], 1)
        assert_equal(norms, whole.norms[parameter], 1e-12)
        total = sum(piece.diagonal[parameter] for piece in pieces)
        assert_equal(total, whole.diagonal[parameter], 1e-12)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("way", ["unfold", "shift", "grouped", "gram", "direct"])
@pytest.mark.parametrize("name", ["convolutions", "volumes", "attention"])
def test_all_ways_give_the_same(monkeypatch, name, way, step):
    used = set()

    def chosen(ways, part, steps):
        best = way if way in ways else next(iter(ways))
        used.add(best)
        return best, step

    monkeypatch.setattr(parts, "_measured", chosen)
    model, inputs = problem(name)
    rules = rules_for(model, inputs)
    for k in (1, 2):
        assert_right(model, rules, inputs, k)
        assert_right(model, rules, inputs, k, diagonal=True)
    if (way, name) in {("gram", "attention"), ("direct", "attention"), ("gram", "volumes"),
                       ("shift", "convolutions"), ("grouped", "volumes")}:  # fmt: skip
        assert way in used


def test_the_fastest_way_is_measured_once_for_each_shape(monkeypatch):
    calls = []
    measured = parts._measured
    monkeypatch.setattr(parts, "_measured", lambda *a: calls.append(a) or measured(*a))
    model, inputs = problem("volumes")
    rules, cotangents = rules_for(model, inputs), cotangents_of(model, inputs, 1)
    del calls[:]
    for _ in range(2):
        example_gradients(model, rules, inputs, lambda _: cotangents)
    assert len(calls) == len(rules.choices) == 5


@pytest.mark.parametrize("name", ["bare", "encoder", "used twice"])
def test_the_fallback_keeps_to_its_memory(monkeypatch, name):
    sizes = []
    monkeypatch.setattr(fallback, "MEMORY", 1)
    vmap = fallback.vmap

    def watched(function, in_dims):
        def run(*args):
            sizes.append(args[0].shape[1])
            return vmap(function, in_dims)(*args)

        return run

    monkeypatch.setattr(fallback, "vmap", watched)
    model, inputs = problem(name)
    rules = rules_for(model, inputs)
    assert_right(model, rules, inputs, 2, diagonal=True, mean=True)
    assert set(sizes) == {1}


@pytest.mark.parametrize("name", ["mlp", "convolutions", "attention"])
def test_cotangents_go_back_together_or_in_turn(name):
    model, inputs = problem(name)
    rules = rules_for(model, inputs)
    for _ in range(7):  # three of each are timed, then the faster is taken
        assert_right(model, rules, inputs, 3, diagonal=True, mean=True)
    (times,) = rules.seconds.values()
    assert sorted(map(len, times.values())) == [3, 4]
    assert_right(model, replace(rules, stacked=False, seconds={}), inputs, 3, diagonal=True)


def test_a_function_without_vmap():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * torch.from_numpy(3 * x.numpy() ** 2)

    model = private(nn.Sequential(nn.Linear(6, 4), Lambda(Cube.apply, 4), nn.PReLU(4)))
    inputs = torch.randn(6, 6, dtype=torch.float64)
    rules = rules_for(model, inputs)
    assert kinds(rules)["0.weight"] == "linear"
    assert "since vmap refuses" in rules.parameters["2.weight"].why
    assert_right(model, rules, inputs, 3, diagonal=True)


def test_hooks_of_the_user_are_part_of_the_model():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].register_forward_hook(lambda module, args, outputs: outputs * 3)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    model, inputs = private(model), torch.randn(6, 6, dtype=torch.float64)
    rules = rules_for(model, inputs)
    assert set(kinds(rules).values()) == {"linear"}
    assert_right(model, rules, inputs, 2, diagonal=True)


def test_a_rule_that_disagrees_with_single_examples_is_replaced():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].register_forward_hook(lambda module, args, outputs: outputs + module.weight.sum())
    model, inputs = private(model), torch.randn(6, 6, dtype=torch.float64)
    rules = rules_for(model, inputs)
    assert [*kinds(rules).values()] == ["fallback", "linear", "linear", "linear"]
    assert "gives other norms than" in rules.parameters["0.weight"].why
    assert_right(model, rules, inputs, 2, diagonal=True)


def test_the_model_is_left_as_it_was_also_on_errors():
    model, inputs = problem("encoder")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rules, state = rules_for(model, inputs), torch.random.get_rng_state()

    def broken(outputs):
        raise KeyError("broken")

    for cotangents in (broken, lambda outputs: torch.ones_like(outputs)[None]):
        if cotangents is broken:
            with pytest.raises(KeyError, match="broken"):
                example_gradients(model, rules, inputs, cotangents)
        else:
            example_gradients(model, rules, inputs, cotangents)
        for module in model.modules():
            assert "forward" not in vars(module)
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.cudnn.enabled
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
        assert torch.equal(state, torch.random.get_rng_state())


def test_inputs_may_come_from_inference_mode():
    model, inputs = problem("in place")
    with torch.inference_mode():
        same = inputs.clone()
        rules, cotangents = rules_for(model, same), cotangents_of(model, same, 2)
        found = example_gradients(model, rules, same, lambda _: cotangents, diagonal=True)
    truth = brute_force(model, inputs, cotangents.clone())
    for name in rules.counted:
        assert_equal(found.diagonal[name], truth[name].square().sum((0, 1)))
    with torch.inference_mode():
        model = private(copy.deepcopy(model))
    with pytest.raises(ValueError, match=r"made in inference mode.*outside of"):
        example_gradients(model, rules, inputs, lambda _: cotangents)


class Lambda(nn.Module):
    def __init__(self, function, width=6):
        super().__init__()
        self.inner, self.function = nn.Linear(width, width), function

    def forward(self, x):
        return self.function(self.inner(x))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda y: y - y.mean(0), "examples are not independent.* in the model itself"),
        (lambda y: F.dropout(y, training=True), "examples are not independent.*or with chance"),
        (lambda y: y.argmax(1), "not differentiable: they are of torch.int64; return the scores"),
        (lambda y: y.argmax(1).double(), "not differentiable: no gradient reaches a parameter"),
        (lambda y: y.detach(), "not differentiable: no gradient reaches a parameter"),
        (lambda y: (y, y), "a model whose output is one tensor, got tuple; wrap the model"),
        (lambda y: y.mean(), r"have the 3 examples along the first dimension, got shape \(\)"),
        (lambda y: y.T, r"have the 3 examples along the first dimension, got shape \(6, 3\)"),
    ],
)
def test_models_without_gradients_of_single_examples_are_refused(function, match):
    model, inputs = private(Lambda(function)), torch.randn(5, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=match):
        rules_for(model, inputs)


def test_modules_that_mix_examples_are_named():
    inputs = torch.randn(5, 6)
    norm = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    with pytest.raises(ValueError, match="not independent: 1 normalise with the statistics"):
        rules_for(norm.train(), inputs)
    untracked = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.raises(ValueError, match="not independent: 1 normalise with the statistics"):
        rules_for(untracked.eval(), inputs)
    with pytest.raises(ValueError, match="dropout is active in 1: gradients would depend on"):
        rules_for(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)).train(), inputs)

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    nested = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Tanh(), Centred()), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"not independent: .* in 1\.1\. Gradients"):
        rules_for(private(nested), inputs.double())


def test_bad_arguments():
    model, inputs = problem("mlp")
    with pytest.raises(ValueError, match="the model has no parameters 3.weight"):
        rules_for(model, inputs, counted=["0.weight", "3.weight"])
    with pytest.raises(ValueError, match="no parameter is counted"):
        rules_for(model, inputs, counted=[])
    rules = rules_for(model, inputs)
    with pytest.raises(ValueError, match=r"shape \(k, 6, 3\), one for .* got \(6, 3\)"):
        example_gradients(model, rules, inputs, torch.ones_like)


def test_another_way_through_the_model_is_refused():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.how = nn.Linear(6, 6), "once"

        def forward(self, x):
            if self.how == "never":
                return x
            y = self.inner(x)
            if self.how == "twice":
                y = self.inner(y)
            if self.how == "in place":
                x.mul_(2)
            return y

    model, inputs = private(Sometimes()), torch.randn(5, 6, dtype=torch.float64)
    rules = rules_for(model, inputs)
    ways = {"twice": "ran twice", "in place": "changed in place", "never": "did not run"}
    for how, match in ways.items():
        model.how = how
        with pytest.raises(ValueError, match=f"'inner' {match}.*make the rules with inputs"):
            example_gradients(model, rules, inputs, lambda y: torch.ones_like(y)[None])
