import copy

import pytest
import torch
from cases import CASES
from layered import (
    Branches,
    Copy,
    Fold,
    Last,
    Noise,
    Single,
    TimeFirst,
    Turn,
    blocks_of,
    random,
    seeded,
)
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

from landscape.examples import read
from landscape.selection import (
    common_form,
    few_inputs,
    frequencies,
    layers_of,
    neurons,
    rows_per_example,
)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("*", "first shared:1 shared:2 single"),
        ("f*", "first"),
        ("shared", "shared:1 shared:2"),
        ("shared:2", "shared:2"),
        (["shared:?", "first"], "first shared:1 shared:2"),
        ("single,first", "first single"),
        (nn.Linear, "first shared:1 shared:2"),
        ("Lin*", "first shared:1 shared:2"),
        ([Single, "block[hidden]"], "block[hidden] single"),
        ("block[*]", "block[hidden] block[logits]"),
        ("pair[1][0]", "pair[1][0]"),
        ("b*[hidden],firs[st]", "first block[hidden]"),
        ("single[0]", "single"),
    ],
)
def test_selections_give_layers_in_the_order_of_the_forward_pass(selection, expected):
    assert layers_of(Branches(), selection, torch.randn(3, 6)).names == expected.split()


def test_what_patterns_leave_out_is_noted():
    notes = "\n".join(layers_of(Branches(), "*", torch.randn(3, 6)).notes)
    assert "block (Both) gives 2 tensors, choose one of them: block[hidden], block[logits]" in notes
    assert "pair (Pair) gives 2 tensors, choose one of them: pair[0], pair[1][0]" in notes
    assert "never called as modules in the forward pass, so without outputs: idle" in notes


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("frist", r"no layer matches 'frist' \(closest: first\); layers that run: first, shared:1"),
        ("shared:3", r"no layer matches 'shared:3' \(closest: shared"),
        ("idle", "never called as modules .*: idle; layers that run"),
        ("first,block", r"block \(Both\) gives 2 tensors, choose one of them: block\[hidden\], "),
        (nn.Conv2d, "no module of type Conv2d runs"),
        ("pair*", r"no layer is left of the selection:\n.*choose one of them: pair\[0\]"),
        ("", "layers must be names"),
        ([], "layers must be names"),
        ([3], "layers must be names"),
    ],
)
def test_selections_that_cannot_be_met_are_refused(selection, message):
    with pytest.raises(ValueError, match=message):
        layers_of(Branches(), selection, torch.randn(3, 6))


def test_modules_that_only_pass_values_on_must_be_named():
    model, x = CASES["mlp"].model(), torch.randn(3, 6)
    assert layers_of(model, "*", x).names == ["0", "1", "3"]
    assert layers_of(model, "?", x).names == ["0", "1", "3"]
    assert layers_of(model, "2", x).names == ["2"]
    assert layers_of(model, nn.Dropout, x).names == ["2"]
    assert layers_of(nn.Linear(6, 2), "*", x).names == ["Linear"]


def test_layers_that_change_the_number_of_examples_are_refused_or_noted():
    model, x = Fold(), torch.randn(3, 6)
    with pytest.raises(ValueError, match=r"windows changes the number of examples: it gives shape "
                       r"\(6, 5\) for 3 examples.*fold 2 windows"):  # fmt: skip
        layers_of(model, "windows", x)
    found = layers_of(model, "*", x)
    assert found.names == ["out"]
    assert "windows changes the number of examples" in found.notes[0]
    with pytest.raises(ValueError, match=r"gives shape \(5, 3, 4\) for 3 .*without batch_first"):
        layers_of(TimeFirst(), "lstm[0]", torch.randn(3, 5, 2))


def test_finding_layers_leaves_the_model_and_the_random_state_as_they_are():
    model = nn.Sequential(CASES["mlp"].model(), Noise()).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    layers_of(model, "*", torch.zeros(3, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_form_is_common_to_all_layers():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    ).double()
    x = random(5, 2, 7, 7)
    layers = layers_of(model, "*", x[:3]).layers
    assert [layer.grid for layer in layers] == [(6, 6), (3, 3), ()]
    convolutional = layers_of(model, "*", x[:3], maps="positions")
    assert convolutional.names == ["0", "1"]
    assert "3 gives one vector for each example" in convolutional.notes[0]
    maps = convolutional.layers
    single = nn.Sequential(*model[:2], nn.AdaptiveAvgPool2d(1))
    assert layers_of(single, "*", x[:3], maps="pool").names == ["0", "1"]  # 1x1 is no position
    assert common_form(maps, "pool") == "pool:3x3"
    assert common_form(maps, "frequency") == "frequency:3x3"
    assert common_form(layers, "average") == "average"
    assert [neurons(layer, "flatten") for layer in layers] == [108, 27, 4]
    assert [rows_per_example(maps, form) for form in ("average", "pool:2x3")] == [1, 6]
    for layers_twice in (maps, (*maps, *maps)):  # of two networks
        with pytest.raises(ValueError, match=r"grids: 6x6 \(0\), 3x3 \(1\); .* maps='pool:3x3'"):
            common_form(layers_twice, "positions")
    with pytest.raises(ValueError, match=r"smaller grids only.*largest possible is pool:3x3"):
        common_form(maps, "pool:4x3")
    with pytest.raises(ValueError, match="unlike dimensions"):
        common_form(maps, "pool:4")
    with pytest.raises(ValueError, match=r"3 gives one vector .*maps='average'"):
        common_form(layers, "pool")
    with pytest.raises(ValueError, match="3 gives one vector"):
        layers_of(model, "0,3", x[:3], maps="pool")
    with pytest.raises(ValueError, match="maps must be average, positions.*got 'mean'"):
        common_form(layers, "mean")
    with pytest.raises(ValueError, match="maps must be"):
        common_form(layers, "pool:2x")
    pooled = blocks_of(model, "*", x, "frequency")
    by_hand = torch.fft.fft2(F.adaptive_avg_pool2d(model[0](x), 3))
    places, _ = frequencies("frequency:3x3")
    for matrix, (i, j) in zip(pooled["0"], places, strict=True):
        assert_close(matrix, by_hand[:, :, i, j].detach())


def test_which_dimension_holds_the_channels_follows_from_the_modules():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.MaxPool1d(2), nn.GELU(), Turn(),
            nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4),
        )
    )  # fmt: skip
    x = random(6, 2, 9)
    found = layers_of(model, "*", x[:3])
    assert [layer.width for layer in found.layers] == [3] * 6 + [4] * 3
    assert [layer.channels for layer in found.layers] == [1] * 5 + [-1] * 4
    assert_close(blocks_of(model, "4", x)["4"], model[:5](x).mean(2))
    assert_close(blocks_of(model, "7", x)["7"], model[:8](x).mean(1))


def test_the_dimension_of_the_channels_can_be_said():
    model, x = seeded(lambda: nn.Sequential(Turn(), nn.Linear(2, 4), Turn())), random(6, 2, 5)
    turned = model(x)
    assert_close(blocks_of(model, "2", x)["2"], turned.mean(1))
    assert_close(blocks_of(model, "2", x, channels_first=["2"])["2"], turned.mean(2))
    images = seeded(lambda: nn.Sequential(Last(), nn.Linear(2, 4), nn.ReLU(), Copy()))
    x = random(6, 2, 5, 3)
    got = blocks_of(images, "1,2", x)
    assert_close(got["1"], images[:2](x).mean((1, 2)))
    assert_close(got["2"], images(x).mean((1, 2)))
    assert_close(blocks_of(images, "3", x)["3"], images(x).mean((2, 3)))
    assert_close(blocks_of(images, "3", x, channels_last=["*"])["3"], images(x).mean((1, 2)))


def test_few_inputs_are_ready_for_the_model():
    task = CASES["residual"].task()
    few = few_inputs(read(task.data, torch.device("cpu")))
    assert_close(few, task.data.transform(task.data.inputs[:3]))
    streamed = CASES["tokens"].task()
    few = few_inputs(read(streamed.data, torch.device("cpu")), 2)
    assert [len(tensor) for tensor in few.values()] == [2, 2]
