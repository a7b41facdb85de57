"""Published sizes, hand-computed shortcuts, and the ways in which the engine calls a model."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from landscape import models

SMALL = {
    "mlp": (partial(models.mlp, 16, (5, 4), 3), (1, 4, 4)),
    "mlp_bn": (partial(models.mlp, 16, (5, 4), 3, batch_norm=True), (1, 4, 4)),
    "lenet": (partial(models.lenet, 1, 28, 3), (1, 28, 28)),
    "small_cnn": (partial(models.small_cnn, 1, 3, width=3), (1, 8, 8)),
    "small_cnn_plain": (partial(models.small_cnn, 3, 3, 2, batch_norm=False), (3, 8, 8)),
    "resnet20": (partial(models.resnet20, 3, 3, width=2), (3, 8, 8)),
    "resnet20_plain": (partial(models.resnet20, 3, 3, 2, False, False), (3, 8, 8)),
    "resnet32": (partial(models.resnet32, 3, 3, width=2, batch_norm=False), (3, 8, 8)),
    "resnet56": (partial(models.resnet56, 3, 3, width=2, skip=False), (3, 9, 9)),
    "resnet18": (partial(models.resnet18, 3, 3, width=2), (3, 8, 8)),
    "resnet18_plain": (partial(models.resnet18, 3, 3, width=2, batch_norm=False), (3, 9, 9)),
    "all_cnn": (partial(models.all_cnn, 3, 3, width=2), (3, 9, 9)),
    "vgg16": (partial(models.vgg16, 3, 3, width=2), (3, 32, 32)),
}


@pytest.fixture(params=SMALL)
def case(request):
    """Two states of one model in float64, with running statistics of their own, and five inputs."""
    make, shape = SMALL[request.param]
    states = []
    for seed in (1, 2):
        model = make(seed=seed).double()
        x = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        model(x)  # moves the running statistics of batch norm
        states.append(model.eval())
    return *states, x


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (partial(models.mlp, 784, (300, 100)), 266_610),  # LeNet-300-100
        (models.lenet, 61_706),
        (models.resnet20, 269_722),
        (models.resnet32, 464_154),
        (models.resnet56, 853_018),
        (models.resnet18, 11_173_962),
        (models.all_cnn, 1_620_010),
        (models.vgg16, 14_724_042),
    ],
)
def test_parameter_counts_are_the_published_ones(model, published):
    assert num_parameters(model()) == published


def test_the_slim_residual_network_has_the_weights_of_its_paper():
    convolutions = [m for m in models.resnet18(width=16).modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.weight.numel() for m in convolutions) == 697_776  # published: 0.70 M


def test_sizes_follow_the_arguments():
    # (k+1) weights and biases per unit; the convolution before batch norm has no bias
    assert num_parameters(models.mlp(7, (), 3)) == 8 * 3
    assert num_parameters(models.mlp(7, (5,), 3, batch_norm=True)) == 8 * 5 + 2 * 5 + 6 * 3
    w = 4
    convolutions = 9 * (2 * w + w * 2 * w + 2 * w * 4 * w)
    head = (4 * w + 1) * 3
    assert num_parameters(models.small_cnn(2, 3, w)) == convolutions + 2 * 7 * w + head
    assert num_parameters(models.small_cnn(2, 3, w, False)) == convolutions + 7 * w + head
    narrow, wide = models.resnet20(width=2), models.resnet20(width=4)
    for a, b in zip(narrow.modules(), wide.modules(), strict=True):
        if isinstance(a, nn.Conv2d):
            assert b.out_channels == 2 * a.out_channels


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 12, 12)])
def test_lenet_takes_channels_and_size(shape):
    assert models.lenet(shape[0], shape[1], 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_lenet_refuses_images_that_vanish():
    with pytest.raises(ValueError, match=r"size must be at least 12 .* got 11"):
        models.lenet(size=11)


def test_vmap_over_stacked_states_equals_two_forwards(case):
    first, second, x = case
    stacked = stack_module_state([first, second])
    together = vmap(lambda p, b: functional_call(first, (p, b), (x,)))(*stacked)
    apart = torch.stack([first(x), second(x)])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)
    assert (together[0] - together[1]).abs().max() > 1e-4


def test_an_example_does_not_depend_on_its_batch_or_memory_format(case):
    model, _, x = case
    expected = model(x)
    one_by_one = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(one_by_one, expected, rtol=1e-10, atol=1e-10)
    other = model.to(memory_format=torch.channels_last)(
        x.contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(other, expected, rtol=1e-10, atol=1e-10)


def test_all_parameters_receive_finite_gradients(case):
    model, _, x = case
    target = torch.arange(len(x)) % 3
    F.cross_entropy(model(x), target).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_shortcut_by_hand():
    x = torch.arange(2 * 2 * 3 * 3.0).reshape(2, 2, 3, 3)
    out = models.shortcut(x, channels=5, stride=2)
    expected = torch.zeros(2, 5, 2, 2)
    for n in range(2):
        for c in range(2):
            for i in range(2):
                for j in range(2):
                    expected[n, c, i, j] = 18 * n + 9 * c + 3 * (2 * i) + 2 * j
    assert torch.equal(out, expected)
    assert torch.equal(models.shortcut(x, channels=2, stride=1), x)


@pytest.mark.parametrize("skip", [True, False])
def test_residual_block_is_its_branch_plus_the_shortcut(skip):
    model = models.resnet20(width=2, skip=skip, seed=0).double().eval()
    x = torch.rand(2, 2, 6, 6, dtype=torch.float64)  # as after the first stage
    block = model.block2_1
    branch = F.conv2d(x, block.conv1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5
    branch = F.conv2d(branch.relu(), block.conv2.weight, padding=1) / (1 + 1e-5) ** 0.5
    if skip:
        branch[:, :2] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), branch.relu(), rtol=1e-12, atol=1e-12)


def test_initial_weights_are_he_normal():
    model = models.vgg16(width=64, seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
            weight = module.weight.double()
            std = (2 / (9 * module.in_channels)) ** 0.5
            error = 1 / (2 * weight.numel()) ** 0.5  # of a standard deviation, relative
            assert abs(weight.std() / std - 1) < 5 * error
            assert abs(weight.mean()) < 5 * std / weight.numel() ** 0.5
    assert not model.head.output.bias.any()


def test_without_batch_norm_signals_neither_vanish_nor_explode():
    # each of n branches adds about 1/n of the variance: at most e in all, not 2^27
    model = models.resnet56(width=16, batch_norm=False, seed=0)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ratio = model[:-1](x).square().mean() / model.stem(x).square().mean()
    assert 0.2 < ratio < 10


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone(name):
    make, _ = SMALL[name]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (make(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_without_a_seed_the_global_generator_is_drawn_from():
    torch.manual_seed(3)
    a, b = models.mlp(), models.mlp()
    assert torch.equal(a.fc1.weight, models.mlp(seed=3).fc1.weight)
    assert not torch.equal(a.fc1.weight, b.fc1.weight)


def test_small_cnn_learns_digits():
    bunch = load_digits()
    x = torch.tensor((bunch.images - 4.9) / 6, dtype=torch.float32)[:, None]
    y = torch.tensor(bunch.target)
    order = torch.tensor(np.random.default_rng(0).permutation(len(x)))
    train, test = order[:1437], order[1437:]
    model = models.small_cnn(seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(8):
        if epoch == 6:
            optimiser.param_groups[0]["lr"] = 0.01
        for batch in train[
            torch.randperm(1437, generator=torch.Generator().manual_seed(epoch))
        ].split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[test]).argmax(1) == y[test]).double().mean()
    assert accuracy > 0.96
