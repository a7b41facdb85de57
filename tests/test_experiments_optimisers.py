import pytest
import torch
from numpy.testing import assert_allclose

from landscape.experiments.optimisers import moments, update

KINDS = ("sgd", "nesterov", "adam", "adamw")
RATES = [(0.1, 0.9, 0.01), (0.03, 0.0, 0.0), (0.2, 0.5, 0.1)]  # of three runs


def of_torch(kind, parameters, lr, momentum, decay):
    if kind in ("adam", "adamw"):
        cls = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        return cls(parameters, lr=lr, betas=(momentum, 0.999), weight_decay=decay)
    nesterov = kind == "nesterov" and momentum > 0
    return torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov
    )


def gradient_at(weights):
    """That of a function with unlike curvatures, which is far from quadratic."""
    return torch.sin(3 * weights) + weights * torch.arange(weights.shape[-1]) / 3


def column(index):
    return torch.tensor([rates[index] for rates in RATES], dtype=torch.float64)[:, None]


def rates():
    return {"lr": column(0), "momentum": column(1), "weight_decay": column(2)}


def start():
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_those_of_torch_for_each_run_of_a_stack(kind):
    weights = start()
    own = [torch.nn.Parameter(row.clone()) for row in weights]
    theirs = [of_torch(kind, [p], *r) for p, r in zip(own, RATES, strict=True)]
    kept = moments(kind, weights)
    for _ in range(20):
        update(kind, weights, gradient_at(weights), kept, **rates())
        for parameter, optimiser in zip(own, theirs, strict=True):
            parameter.grad = gradient_at(parameter.detach())
            optimiser.step()
        assert_allclose(weights, torch.stack(own).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_weights_stand_still_to_the_bit_and_keep_no_moments(kind):
    weights, kept = start(), moments(kind, start())
    for _ in range(3):
        update(kind, weights, gradient_at(weights), kept, **rates())
    mask = torch.ones_like(weights)
    mask[:, 2:4] = 0
    before, free = weights.clone(), weights.clone()
    free_kept = {name: tensor.clone() for name, tensor in kept.items()}
    update(kind, weights, gradient_at(weights), kept, **rates(), mask=mask)
    update(kind, free, gradient_at(free), free_kept, **rates())
    assert torch.equal(weights[:, 2:4], before[:, 2:4])
    assert_allclose(weights[:, 4:], free[:, 4:], rtol=0)
    assert all((kept[name][:, 2:4] == 0).all() for name in kept if name != "count")


def test_decay_leaves_out_what_it_is_told_to_and_differs_by_exactly_the_decay():
    weights, plain = start(), start()
    decayed = torch.ones_like(weights)
    decayed[:, 0] = 0
    before = weights.clone()
    update("sgd", weights, gradient_at(before), moments("sgd", before), **rates(), decayed=decayed)
    none = rates() | {"weight_decay": torch.zeros(3, 1, dtype=torch.float64)}
    update("sgd", plain, gradient_at(before), moments("sgd", before), **none)
    assert torch.equal(weights[:, 0], plain[:, 0])
    assert_allclose(
        plain[:, 1:] - weights[:, 1:], (column(0) * column(2) * before)[:, 1:], atol=1e-15
    )
