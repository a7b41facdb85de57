"""Every rule against the gradients of single examples, one autograd call for each, in float64."""

import copy

import pytest
import torch
from cases import CASES, Recurrent, Residual, Tokens
from torch import nn
from torch.nn import functional as F  # noqa: N812

from landscape.engine import caller, replicate
from landscape.example_gradients import example_gradients, rules_for
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


def assert_equal(found, expected, rtol=1e-10):
    """Equal relative to the largest element of the tensor."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=rtol * scale)


def assert_right(model, rules, inputs, k, rtol=1e-10, **wanted):
    cotangents = cotangents_of(model, inputs, k)
    weights = torch.rand(cotangents.shape[:2], generator=torch.Generator().manual_seed(5))
    weights = weights.to(cotangents.dtype)
    truth = brute_force(copy.deepcopy(model).double(), doubled(inputs), cotangents.double())
    found = example_gradients(model, rules, inputs, lambda _: cotangents, weights=weights, **wanted)
    assert set(found.norms) == set(rules.counted)
    for name in rules.counted:
        gradients = truth[name]
        factors = weights.double().reshape(*weights.shape, *[1] * (gradients.ndim - 2))
        assert_equal(found.norms[name], gradients.square().flatten(2).sum(2), rtol)
        if wanted.get("diagonal"):
            assert_equal(found.diagonal[name], (factors * gradients.square()).sum((0, 1)), rtol)
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
