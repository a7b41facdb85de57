import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_array_equal
from torch import nn
from wirings import WIRINGS

from landscape import models
from landscape.engine import caller, install, own_names, replicate
from landscape.symmetries import (
    find_symmetries,
    identity,
    permute,
    random_permutations,
    specified,
)
from landscape.task import map_tensors


def outputs(model, state, inputs):
    (twin,) = replicate(
        model, 1, device=torch.device("cpu"), dtype=torch.float64, layout="contiguous"
    )
    inputs = map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)
    with torch.no_grad():
        install(twin, {name: state[name] for name in own_names(twin)})
        return caller(twin)(inputs)


@pytest.mark.parametrize("name", WIRINGS)
def test_groups_are_those_of_the_architecture(name):
    wiring = WIRINGS[name]
    found = find_symmetries(wiring.made(), wiring.inputs(2))
    assert tuple(found.shape(group) for group in found.free()) == wiring.groups


@pytest.mark.parametrize("name", WIRINGS)
def test_permutations_move_weights_and_leave_the_function(name):
    wiring = WIRINGS[name]
    model = wiring.made()
    state, inputs = model.state_dict(), wiring.inputs(6)
    found = find_symmetries(model, wiring.inputs(2))
    permutations = random_permutations(found, seed=1)
    moved = permute(state, found, permutations)
    before, after = outputs(model, state, inputs), outputs(model, moved, inputs)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    for key, tensor in state.items():
        assert_array_equal(np.sort(moved[key].ravel()), np.sort(tensor.ravel()))
    for group in found.free():  # each group, on its own, moves something and nothing else
        one = permute(state, found, {group.name: permutations[group.name]})
        assert_array_equal(outputs(model, one, inputs).argmax(-1), before.argmax(-1))


@pytest.mark.parametrize("name", CASES)
def test_all_cases_can_be_traced(name):
    case = CASES[name]
    task, state = case.task(), case.states(1)[0]
    inputs, _ = next(iter(task.data))
    inputs = task.data.transform(inputs) if getattr(task.data, "transform", None) else inputs
    found = find_symmetries(task.model, inputs, state)
    assert found.groups
    moved = permute(state, found, random_permutations(found, seed=2))
    assert any(not torch.equal(moved[key], state[key]) for key in state)
    before, after = outputs(task.model, state, inputs), outputs(task.model, moved, inputs)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_the_published_networks():
    image = torch.randn(2, 3, 8, 8)
    twenty = find_symmetries(models.resnet20(), image)
    # the residual stream of a stage, and the new channels of the next two; one group in each block
    sizes = [twenty[name].size for name in ("stem.conv", "block2_1.conv2", "block3_1.conv2")]
    assert sizes == [16, 16, 32]
    assert len(find_symmetries(models.resnet56(), image).groups) == 3 + 27
    assert len(find_symmetries(models.vgg16(width=4), torch.randn(2, 3, 32, 32)).groups) == 13


def test_unit_i_is_unit_p_i_of_the_old_state():
    model = models.mlp(3, (4,), 2, batch_norm=True)
    state = model.state_dict()
    p = np.array([2, 0, 3, 1])
    moved = permute(state, find_symmetries(model, torch.randn(2, 3)), {"fc1": p})
    assert_array_equal(moved["fc1.weight"], state["fc1.weight"][p])
    assert_array_equal(moved["output.weight"], state["output.weight"][:, p])
    assert_array_equal(moved["output.bias"], state["output.bias"])
    assert_array_equal(moved["bn1.running_var"], state["bn1.running_var"][p])


def test_dimensions_within_heads_by_hand():
    wiring = WIRINGS["fused"]
    model = wiring.made()
    state = model.state_dict()
    found = find_symmetries(model, wiring.inputs(2))
    permutations = random_permutations(found, seed=3)
    heads, keys, values = (permutations[name] for name in ("qkv", "qkv#2", "qkv#3"))
    old, new = (s["qkv.bias"].view(3, 3, 4) for s in (state, permute(state, found, permutations)))
    for h, d in np.ndindex(3, 4):
        assert new[0, h, d] == old[0, heads[h], keys[h, d]]
        assert new[1, h, d] == old[1, heads[h], keys[h, d]]
        assert new[2, h, d] == old[2, heads[h], values[h, d]]


def test_groups_can_be_written_by_hand():
    model = models.mlp(3, (4,), 2)
    state = model.state_dict()
    groups = {"hidden": [("fc1.weight", 0), ("fc1.bias", 0), ("output.weight", 1)]}
    by_hand, traced = specified(groups, state), find_symmetries(model, torch.randn(2, 3))
    p = np.array([2, 0, 3, 1])
    one, other = permute(state, by_hand, {"hidden": p}), permute(state, traced, {"fc1": p})
    for key in state:
        assert_array_equal(one[key], other[key])
    assert str(by_hand) == "hidden: 4 units: fc1.weight[0], fc1.bias[0], output.weight[1]"
    with pytest.raises(ValueError, match="names 'fc9', which the state does not have"):
        specified({"x": [("fc9", 0)]}, state)
    with pytest.raises(ValueError, match=r"dimension 2 of fc1.weight, which has shape \(4, 3\)"):
        specified({"x": [("fc1.weight", 2)]}, state)
    with pytest.raises(ValueError, match=r"one size: fc1.weight\[0\] has 4, fc1.weight\[1\] has 3"):
        specified({"x": [("fc1.weight", 0), ("fc1.weight", 1)]}, state)
    with pytest.raises(ValueError, match="dimension 0 of fc1.bias is in 'x' and in 'y'"):
        specified({"x": [("fc1.bias", 0)], "y": [("fc1.bias", 0)]}, state)


class Transformed(nn.Sequential):
    """Inputs have no units: any operation may be done to them."""

    def forward(self, x):
        return super().forward(torch.fft.fft(x).real)


class Around(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(3, 4), nn.Linear(4, 2), between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.cumsum(1),
        lambda x: x * torch.arange(1.0, 5),
        lambda x: x.flip(1),
        lambda x: x[:, [1, 0, 2, 3]],
        lambda x: x * x[:, ::2].sum(1, keepdim=True),
        lambda x: x.sort(1).values,
        lambda x: torch.nn.functional.one_hot(x.argmax(1), 4).to(x.dtype),
    ],
)
def test_units_that_have_an_order_stay(between):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Around(between)
    assert find_symmetries(model, torch.randn(2, 3)).free() == ()


@pytest.mark.parametrize(
    ("between", "shapes"),
    [
        (lambda x: x.softmax(1) + x.amax(1, keepdim=True), {(4,)}),
        (lambda x: x * torch.ones(4) + torch.zeros(2, 4), {(4,)}),
        (lambda x: torch.einsum("ni,nj->nij", x, x).sum(1), {(4,)}),
        (lambda x: torch.where(x > 0, x, torch.zeros_like(x)).clamp_(max=1), {(4,)}),
        (lambda x: torch.stack([x, x * 2]).mean(0), {(4,)}),
        (lambda x: torch.cat([x[:, :2], x[:, 2:].exp()], 1), {(2,), (2,)}),
        (lambda x: x.unflatten(1, (2, 2)).flip(1).flatten(1) + x, {(2,)}),  # alike in both halves
        (lambda x: x.unflatten(1, (2, 2)).softmax(1).flatten(1), {(2,)}),
        (lambda x: x.unflatten(1, (2, 2)).softmax(2).flatten(1), {(2,), (2, 2)}),
        (
            lambda x: (
                x.unflatten(1, (2, 2)) @ x.unflatten(1, (2, 2)).mT @ x.unflatten(1, (2, 2))
            ).flatten(1),
            {(2,)},
        ),
        (
            lambda x: (x.unflatten(1, (2, 2)) @ torch.eye(2, dtype=x.dtype)).amax(2).repeat(1, 2),
            {(2,)},
        ),
    ],
)
def test_what_happens_to_all_units_alike_leaves_them_free(between, shapes):
    found = find_symmetries(Around(between), torch.randn(2, 3))
    assert {found.shape(group) for group in found.free()} == shapes


@pytest.mark.parametrize(
    ("between", "shapes"),
    [
        (nn.Hardswish(), {(8,)}),
        (nn.LogSigmoid(), {(8,)}),
        (nn.PReLU(8), {(8,)}),
        (nn.MaxPool2d(2), {(8,)}),
        (nn.LPPool2d(2, 2), {(8,)}),
        (nn.AdaptiveAvgPool2d(1), {(8,)}),
        (nn.Upsample(scale_factor=2, mode="bicubic"), {(8,)}),
        (nn.ReflectionPad2d(1), {(8,)}),
        (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), {(8,)}),
        (nn.GroupNorm(4, 8), {(4,), (4, 2)}),
        (nn.LocalResponseNorm(3), set()),  # neighbours among channels
        (nn.PixelShuffle(2), {(2,)}),
        (nn.PixelUnshuffle(2), {(8,)}),
        (nn.ChannelShuffle(2), {(4,), (4, 2)}),
        (nn.Conv2d(8, 8, 2, groups=8), {(8,)}),
        (nn.ConvTranspose2d(8, 6, 2, groups=2), {(2,), (2, 4), (2, 3)}),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 5, 2)), {(8,), (5,)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_between_two_others(between, shapes):
    model = nn.Sequential(nn.Conv2d(2, 8, 1), between, nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, 2, 4, 4))
    found = find_symmetries(model, torch.randn(2, 2, 4, 4))
    assert {found.shape(group) for group in found.free()} == shapes


def test_an_operation_that_is_not_known_is_named():
    model = nn.Sequential(nn.Linear(3, 4), Around(lambda x: torch.fft.fft(x).real))
    model[1].first = nn.Linear(4, 4)
    with pytest.raises(ValueError) as caught:
        find_symmetries(model, torch.randn(2, 3))
    assert str(caught.value) == (
        "tracing cannot follow the operation aten._fft_r2c.default in '1': it takes units of "
        "1.first.weight[0], 1.first.bias[0], and how it treats them is not known. Give the "
        "symmetries by hand instead, as symmetries={'name of a group': [('fc1.weight', 0), "
        "('fc1.bias', 0), ('fc2.weight', 1)], ...}: the dimensions that are permuted together."
    )


def test_inputs_may_be_transformed_by_any_operation():
    model = Transformed(nn.Linear(3, 4), nn.Linear(4, 2))
    assert [group.size for group in find_symmetries(model, torch.randn(2, 3)).groups] == [4]


def test_what_tracing_does_not_see_is_found_out():
    order = np.arange(1.0, 5)
    model = Around(lambda x: torch.from_numpy(x.numpy() * order))
    with pytest.raises(ValueError, match="depends on its units in a way that tracing does not see"):
        find_symmetries(model, torch.randn(2, 3))


def test_permutations_are_checked():
    model = models.mlp(3, (4,), 2)
    found = find_symmetries(model, torch.randn(2, 3))
    state = model.state_dict()
    with pytest.raises(ValueError, match="no group 'fc7' to permute; the groups are: fc1"):
        permute(state, found, {"fc7": np.arange(4)})
    with pytest.raises(ValueError, match=r"must be of shape \(4,\).*0 to 3 once; got shape \(4,\)"):
        permute(state, found, {"fc1": np.array([0, 1, 1, 3])})
    with pytest.raises(ValueError, match="another model: the state has no 'fc1.weight'"):
        permute({}, found, identity(found))


def test_the_model_and_the_random_state_are_left_alone():
    model = WIRINGS["encoder"].made().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random, fast = torch.random.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    find_symmetries(model, WIRINGS["encoder"].inputs(2))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    for key, tensor in model.state_dict().items():
        assert_array_equal(tensor, before[key])
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() == fast
