"""Scores against autograd and sums over all labels, in float64; means over draws are enumerated."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal
from torch.nn import functional as F  # noqa: N812

from landscape.likelihoods import (
    Likelihood,
    counted_positions,
    drawn_cotangents,
    exact_cotangents,
    fisher_factor,
    likelihood_of,
    num_exact,
    num_uniforms,
    uncertainty,
)

cross_entropy = partial(F.cross_entropy, reduction="none")


def outputs_of(*shape, scale=1.5):
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


CASES = {
    "classes": (Likelihood("categorical"), outputs_of(3, 4)),
    "positions last": (Likelihood("categorical", 1), outputs_of(2, 3, 2)),
    "classes last": (Likelihood("categorical", -1), outputs_of(2, 2, 3)),
    "pixels": (Likelihood("categorical", 1), outputs_of(2, 3, 2, 1)),
    "bernoulli": (Likelihood("bernoulli"), outputs_of(3, 4)),
    "gaussian": (Likelihood("gaussian"), outputs_of(2, 3)),
    "one number": (Likelihood("gaussian"), outputs_of(4)),
}


def information(likelihood, outputs):
    """The Fisher information (b, n, n) of the outputs, by autograd of log p of torch's own."""
    found = []
    for one in outputs:
        size = one.numel()

        def log_p(flat, y):
            x = flat.reshape(one.shape)  # noqa: B023
            if likelihood.kind == "categorical":
                dim = likelihood.class_dim - 1 if likelihood.class_dim > 0 else -1
                return Categorical(logits=x.movedim(dim, -1)).log_prob(y).sum()
            if likelihood.kind == "bernoulli":
                return Bernoulli(logits=x).log_prob(y).sum()
            return Normal(x, 1.0).log_prob(y).sum()

        if likelihood.kind == "categorical":
            y = torch.zeros(1, dtype=torch.long).expand(size // outputs.shape[likelihood.class_dim])
            dim = likelihood.class_dim - 1 if likelihood.class_dim > 0 else -1
            y = y.reshape(one.movedim(dim, -1).shape[:-1])
        else:
            y = torch.zeros_like(one)
        hessian = torch.autograd.functional.hessian(partial(log_p, y=y), one.reshape(-1))
        found.append(-hessian)  # for these the mean over labels does not depend on the label
    return torch.stack(found)


def outer(cotangents):
    """The sum over k of s s' of each example, (b, n, n)."""
    flat = cotangents.reshape(*cotangents.shape[:2], -1)
    return torch.einsum("kbi,kbj->bij", flat, flat)


@pytest.mark.parametrize("name", CASES)
def test_exact_cotangents_are_a_root_of_the_information(name):
    likelihood, outputs = CASES[name]
    truth = information(likelihood, outputs)
    assert num_exact(likelihood, outputs) == outputs[0].numel()
    torch.testing.assert_close(outer(exact_cotangents(likelihood, outputs)), truth)
    pieces = [exact_cotangents(likelihood, outputs, slice(i, i + 2)) for i in range(0, 12, 2)]
    torch.testing.assert_close(outer(torch.cat(pieces)), truth)
    torch.testing.assert_close(uncertainty(likelihood, outputs), truth.diagonal(0, 1, 2).sum(1))
    tangents = torch.randn_like(outputs)
    product = torch.einsum("bij,bj->bi", truth, tangents.reshape(len(outputs), -1))
    found = fisher_factor(likelihood, outputs, tangents)
    torch.testing.assert_close(found.reshape(len(outputs), -1), product)


@pytest.mark.parametrize("scheme", ["importance", "plain"])
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("gaussian", "one number")])
def test_draws_are_unbiased_by_enumeration(name, scheme):
    """All pairs of a class and a sign of all positions, each as often as its chance."""
    likelihood, outputs = CASES[name]
    mean = torch.zeros_like(information(likelihood, outputs))
    for b in range(len(outputs)):
        one = outputs[b : b + 1]
        positions, _ = num_uniforms(likelihood, one)
        steps = [_steps(likelihood, one, at, scheme) for at in range(positions)]
        grids = torch.cartesian_prod(*[torch.arange(2 * len(s)) for s in steps])
        grids = grids.reshape(len(grids), positions)
        uniforms = torch.zeros(len(grids), 1, positions, 2, dtype=torch.float64)
        chances = torch.ones(len(grids), dtype=torch.float64)
        for at, ends in enumerate(steps):
            index, sign = grids[:, at] // 2, grids[:, at] % 2
            starts = torch.cat([ends.new_zeros(1), ends[:-1]])
            uniforms[:, 0, at, 0] = ((starts + ends) / 2)[index]
            uniforms[:, 0, at, 1] = 0.25 + 0.5 * sign
            chances *= (ends - starts)[index] / 2
        drawn = drawn_cotangents(likelihood, one, uniforms, scheme=scheme)
        assert chances.sum() == pytest.approx(1)
        mean[b] = outer(drawn * chances.sqrt().reshape(-1, *[1] * one.ndim))[0]
    torch.testing.assert_close(mean, information(likelihood, outputs))


def _steps(likelihood, outputs, at, scheme):
    """Where between 0 and 1 the uniform number of a position changes what is drawn."""
    if likelihood.kind == "bernoulli":
        p = outputs.reshape(-1)[at].sigmoid()
        return torch.stack([p, torch.ones_like(p)])
    moved = outputs.movedim(likelihood.class_dim, -1)
    p = moved.reshape(-1, moved.shape[-1])[at].softmax(-1)
    lengths = (torch.eye(len(p), dtype=p.dtype) - p).square().sum(1)
    odds = p if scheme == "plain" else p * lengths
    return odds.cumsum(0) / odds.sum()


def test_draws_by_importance_have_one_length_and_gaussian_ones_their_moments():
    likelihood, outputs = CASES["positions last"]
    uniforms = torch.rand(50, 2, *num_uniforms(likelihood, outputs))
    lengths = drawn_cotangents(likelihood, outputs, uniforms).flatten(2).square().sum(2)
    torch.testing.assert_close(lengths, uncertainty(likelihood, outputs).expand(50, -1))
    likelihood, outputs = CASES["gaussian"]
    levels = ((torch.arange(20_000) + 0.5) / 20_000).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 2)
    plain = drawn_cotangents(likelihood, outputs, levels, scheme="plain")
    torch.testing.assert_close(plain.square().mean(0), torch.ones_like(outputs), rtol=1e-3, atol=0)
    signs = drawn_cotangents(likelihood, outputs, levels)
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert signs.sum() == 0


@pytest.mark.parametrize("gap", [5.0, 40.0, 300.0])
def test_certain_outputs_keep_all_their_digits(gap):
    """Two classes: p(1 - p) each, |e_c - p|^2 = 2 (1 - p_c)^2, in closed form."""
    likelihood, outputs = Likelihood("categorical"), torch.tensor([[gap, 0.0]])
    small = torch.exp(torch.tensor(-gap, dtype=torch.float64))
    p, q = 1 / (1 + small), small / (1 + small)
    torch.testing.assert_close(
        uncertainty(likelihood, outputs), (2 * p * q)[None], rtol=1e-12, atol=0
    )
    outputs = outputs.double()
    root = exact_cotangents(likelihood, outputs)
    torch.testing.assert_close(root[0, 0, 0], p.sqrt() * q, rtol=1e-12, atol=0)
    drawn = drawn_cotangents(likelihood, outputs, torch.rand(20, 1, 1, 2))
    torch.testing.assert_close(
        drawn.square().sum(-1), (2 * p * q).expand(20, 1), rtol=1e-12, atol=0
    )
    product = fisher_factor(likelihood, outputs, torch.tensor([[0.3, 1.7]], dtype=torch.float64))
    torch.testing.assert_close(product[0, 1], 1.4 * p * q, rtol=1e-12, atol=0)


def test_ignored_labels_hold_no_information():
    likelihood, outputs = Likelihood("categorical", -1), outputs_of(2, 3, 4)
    targets = torch.tensor([[0, -100, 1], [2, 3, 0]])
    counted = counted_positions(likelihood, outputs, targets)
    whole, part = outputs[:, [0, 2]], uncertainty(likelihood, outputs, counted)
    torch.testing.assert_close(part[0], uncertainty(likelihood, whole)[0])
    torch.testing.assert_close(part[1], uncertainty(likelihood, outputs)[1])
    for cotangents in (
        exact_cotangents(likelihood, outputs, counted=counted),
        drawn_cotangents(likelihood, outputs, torch.rand(5, 2, 3, 2), counted=counted),
    ):
        assert not cotangents[:, 0, 1].any()
        assert cotangents[:, 1, 1].any()
    assert counted_positions(likelihood, outputs, targets.clamp(min=0)) is None


def mean_of_tokens(outputs, targets):
    flat = cross_entropy(outputs.flatten(0, 1), targets.flatten())
    return flat.reshape(targets.shape).sum(1) / (targets >= 0).sum(1)


def weighted(outputs, targets):
    return cross_entropy(outputs, targets) * (1 + targets)


def smoothed(outputs, targets):
    return cross_entropy(outputs, targets, label_smoothing=0.1)


LABELS, TOKENS = torch.tensor([0, 2, 1]), torch.tensor([[0, 2], [1, 1], [2, 0]])
FOUND = [
    (cross_entropy, (3, 4), LABELS, ("categorical", 1, 1.0)),
    (cross_entropy, (3, 3), torch.eye(3) * 0.7 + 0.1, ("categorical", 1, 1.0)),
    (lambda o, y: cross_entropy(o, y).sum(1), (3, 3, 2), TOKENS, ("categorical", 1, 1.0)),
    (mean_of_tokens, (3, 2, 4), TOKENS, ("categorical", -1, 0.5)),
    (mean_of_tokens, (3, 3, 3), torch.tensor([[0, -100, 2], [1, 1, 0], [2, 0, -100]]),
     ("categorical", -1, 4 / 9)),
    (lambda o, y: cross_entropy(o, y).mean(1), (3, 3, 3), LABELS[None].expand(3, 3),
     ("categorical", 1, 1 / 3)),
    (lambda o, y: F.binary_cross_entropy_with_logits(o, y, reduction="none").mean(1), (3, 4),
     torch.eye(3, 4), ("bernoulli", 1, 0.25)),
    (lambda o, y: F.softplus(-o[:, 0] * (2 * y - 1)), (3, 1), torch.tensor([0, 1, 1]),
     ("bernoulli", 1, 1.0)),
    (lambda o, y: (o - y).square().mean(1), (3, 4), torch.rand(3, 4), ("gaussian", 1, 0.5)),
    (lambda o, y: (o[:, 0] - y).square() / 2, (3, 1), torch.rand(3), ("gaussian", 1, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "shape", "targets", "wanted"), FOUND)
def test_the_likelihood_is_that_of_the_loss(loss, shape, targets, wanted):
    found = likelihood_of(loss, outputs_of(*shape).float(), targets)
    assert (found.kind, found.class_dim) == wanted[:2]
    assert found.scale == pytest.approx(wanted[2], rel=1e-3)


def test_log_probabilities_are_logits_too():
    outputs = outputs_of(3, 4).log_softmax(1)
    loss = partial(F.nll_loss, reduction="none")
    assert likelihood_of(loss, outputs, LABELS).kind == "categorical"
    with pytest.raises(ValueError, match="belongs to no likelihood"):
        likelihood_of(loss, outputs + 1, LABELS)  # then they are no log-probabilities


@pytest.mark.parametrize("loss", [weighted, smoothed, lambda o, y: -cross_entropy(o, y),
                                  nn.MultiMarginLoss(reduction="none")])  # fmt: skip
def test_other_losses_ask_what_is_meant(loss):
    outputs = outputs_of(3, 4)
    with pytest.raises(ValueError, match=r"likelihood='categorical'.*labels='observed'"):
        likelihood_of(loss, outputs, LABELS)
    assert likelihood_of(loss, outputs, LABELS, "categorical").kind == "categorical"
    with pytest.raises(ValueError, match="must be 'auto' or one of categorical, bernoulli"):
        likelihood_of(loss, outputs, LABELS, "poisson")


def test_probabilities_are_no_logits():
    loss = partial(F.binary_cross_entropy, reduction="none")
    with pytest.raises(ValueError, match="must be logits, not probabilities"):
        likelihood_of(loss, torch.rand(3, 4), torch.eye(3, 4))
    with pytest.raises(ValueError, match=r"needs outputs \(b, classes, ...\), got \(3,\)"):
        likelihood_of(loss, torch.rand(3), torch.rand(3), "categorical")
    with pytest.raises(ValueError, match="scheme must be one of importance, plain"):
        drawn_cotangents(*CASES["classes"], torch.rand(1, 3, 1, 2), scheme="best")
