import copy
import math

import numpy as np
import pytest
import torch
from cases import CASES, cross_entropy, uneven
from layered import (
    DOUBLE,
    Branches,
    Patches,
    TimeFirst,
    Twice,
    batches,
    blocks_of,
    num_hooks,
    raising,
    random,
    seeded,
)
from torch import nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from landscape.activations import check_same_examples, hash_examples, record, stream
from landscape.datasets import Batches
from landscape.selection import frequencies, layers_of
from landscape.task import Task


def double(x):
    return torch.as_tensor(x, dtype=DOUBLE)


def test_the_number_of_examples_is_checked_in_each_batch():
    """With as many steps as examples the first batch looks right; the next one does not."""
    x = random(7, 3, 2)
    model = seeded(TimeFirst)
    found = layers_of(model, "lstm[0]", x[:3])
    with pytest.raises(ValueError, match=r"changes the number of examples: .* \(3, 4, 4\) for 4"):
        list(stream(model, found.layers, batches(x[3:], 4)))


def test_what_changes_an_output_in_place_does_not_change_what_was_captured():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)))
    model[1].running_mean.uniform_(-1, 1)
    x = random(20, 6)
    got = blocks_of(model, "*", x)
    assert_close(got["0"], x @ model[0].weight.T + model[0].bias)
    by_hand = (got["0"] - model[1].running_mean) / (model[1].running_var + 1e-5).sqrt()
    assert (by_hand < 0).any()
    assert_close(got["1"], by_hand)
    assert_close(got["2"], by_hand.relu())


@pytest.mark.parametrize("maps", ["average", "positions", "flatten", "pool", "frequency"])
def test_maps_are_captured_before_they_are_changed_in_place(maps):
    """Channels last, where a form is but another view of the output."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True)))
    model = model.to(memory_format=torch.channels_last)
    x = random(8, 2, 5, 4).contiguous(memory_format=torch.channels_last)
    assert_close(blocks_of(model, "0", x, maps)["0"], blocks_of(model[0], "*", x, maps)["Conv2d"])


def test_calls_and_parts_are_those_of_the_forward_pass():
    model, x = seeded(Branches), random(10, 6)
    got = blocks_of(model, "*,block[*],pair[*],block[logits]", x)
    first = model.first(x)
    second = model.shared(first)
    third = model.shared(second.tanh())
    expected = {
        "first": first, "shared:1": second, "shared:2": third,
        "block[hidden]": third * 2, "block[logits]": third + 1,
        "pair[0]": third * 6, "pair[1][0]": (third * 2).relu(), "single": third * 6 - 1,
    }  # fmt: skip
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert_close(got[name], values, msg=name)


def test_the_steps_of_a_recurrent_layer_are_tokens():
    model, x = seeded(CASES["recurrent"].model), random(10, 5, 3)
    outputs, _ = model.lstm(x)
    assert_close(blocks_of(model, "lstm[0]", x)["lstm[0]"], outputs.mean(1))
    assert_close(blocks_of(model, "lstm[0]", x, "positions")["lstm[0]"], outputs.reshape(50, 4))
    assert_close(blocks_of(model, "lstm[0]", x, "flatten")["lstm[0]"], outputs.reshape(10, 20))


def test_the_layers_of_a_transformer_give_their_tokens():
    """Against a pass by hand, step by step; alone or together, since torch has a fused pass."""
    model, x = seeded(Patches), random(10, 2, 6, 6)
    tokens = model.embed(x).flatten(2).transpose(1, 2)
    layer = model.encoder.layers[0]
    attended = layer.self_attn(tokens, tokens, tokens, need_weights=False)[0]
    middle = layer.norm1(tokens + attended)
    wide = layer.linear1(middle)
    after = layer.norm2(middle + layer.linear2(wide.relu()))
    expected = {"self_attn": attended, "norm1": middle, "linear1": wide, "norm2": after}
    for name, values in expected.items():
        name = f"encoder.layers.0.{name}"
        assert_close(blocks_of(model, name, x)[name], values.mean(1))
        assert_close(blocks_of(model, "*", x)[name], values.mean(1))
        rows = values.reshape(90, -1)
        assert_close(blocks_of(model, "encoder.layers*", x, "positions")[name], rows)
    assert_close(blocks_of(model, "encoder.layers.?", x)["encoder.layers.0"], after.mean(1))
    assert "encoder.layers.0.self_attn.out_proj" in layers_of(model, "*", x[:3]).notes[0]


@pytest.mark.parametrize("shape", [(6,), (4, 5), (4, 5, 3), (4, 5, 3, 2)])
def test_batches_of_any_size_give_the_same_rows(shape):
    convolution = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}.get(len(shape))
    make = (lambda: convolution(4, 3, 2)) if convolution else (lambda: nn.Linear(6, 3))
    model, x = seeded(lambda: nn.Sequential(make(), nn.Tanh())), random(12, *shape)
    maps = "positions" if convolution else "average"
    whole = blocks_of(model, "*", x, maps, size=12)
    for size in (1, 5, 7):
        assert_close(blocks_of(model, "*", x, maps, size=size), whole)


# --- forms ----------------------------------------------------------------------------------------


GRIDS = {"conv 1": (7,), "conv 2": (5, 6), "conv 3": (3, 4, 2), "tokens": (7,)}


def maps_of(name, num=6):
    """A model of one module that gives its inputs, and maps (n, c, ...) with the channels first."""
    grid = GRIDS[name]
    values = random(num, 3, *grid)
    if name == "tokens":
        return nn.Identity(), values.movedim(1, -1), values
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(grid) - 1](3, eps=0, affine=False)
    return norm.double().eval(), values, values


def form(name, maps):
    module, x, values = maps_of(name)
    (got,) = blocks_of(module, type(module).__name__, x, maps, size=4).values()
    return got, values


@pytest.mark.parametrize("name", GRIDS)
def test_forms_are_those_of_a_loop_over_examples_and_positions(name):
    places = list(np.ndindex(*GRIDS[name]))
    got, values = form(name, "average")
    assert_close(got, torch.stack([sum(v[:, *p] for p in places) / len(places) for v in values]))
    got, values = form(name, "positions")
    assert_close(got, torch.stack([v[:, *p] for v in values for p in places]))
    got, values = form(name, "flatten")
    order = values if name != "tokens" else values.movedim(1, -1)
    assert_close(got, torch.stack([v.reshape(-1) for v in order]))


@pytest.mark.parametrize(
    ("name", "grid"),
    [("conv 1", (3,)), ("conv 2", (2, 3)), ("conv 3", (2, 2, 1)), ("tokens", (4,))],
)
def test_pooled_maps_are_means_over_windows(name, grid):
    got, values = form(name, f"pool:{'x'.join(map(str, grid))}")
    rows = []
    for example in values:
        for place in np.ndindex(*grid):
            windows = [
                slice(math.floor(i * size / num), math.ceil((i + 1) * size / num))
                for i, num, size in zip(place, grid, GRIDS[name], strict=True)
            ]
            rows.append(example[:, *windows].reshape(3, -1).mean(1))
    assert_close(got, torch.stack(rows))


@pytest.mark.parametrize("name", GRIDS)
def test_frequencies_are_sums_over_positions(name):
    got, values = form(name, "frequency")
    grid = GRIDS[name]
    places, counts = frequencies("frequency:" + "x".join(map(str, grid)))
    positions = torch.tensor(list(np.ndindex(*grid)), dtype=DOUBLE)
    for matrix, place in zip(got, places, strict=True):
        angles = positions @ (double(place) / double(grid)) * 2 * torch.pi
        waves = torch.polar(torch.ones_like(angles), -angles)
        assert_close(matrix, values.flatten(2).to(waves.dtype) @ waves)
    power = (got.abs().square().sum((1, 2)) * torch.as_tensor(counts)).sum()
    assert_close(power, values.square().sum() * math.prod(grid))  # Parseval
    assert counts.sum() == math.prod(grid)


def test_a_shift_around_the_edges_turns_phases_and_nothing_else():
    module, x, _ = maps_of("conv 2")
    (plain,) = blocks_of(module, "*", x, "frequency").values()
    (moved,) = blocks_of(module, "*", x.roll((2, 1), (2, 3)), "frequency").values()
    assert not torch.allclose(plain, moved)
    assert_close(moved.mH @ moved, plain.mH @ plain)


# --- what goes wrong ------------------------------------------------------------------------------


def test_values_that_are_not_finite_name_their_layer_and_batch():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)))
    x = random(20, 6)
    x[13, 2] = torch.nan
    layers = layers_of(model, "*", x[:3]).layers
    seen = stream(model, layers, batches(x, 6))
    next(seen), next(seen)
    with pytest.raises(ValueError, match=r"activations of 0, 1, 2 are not finite in batch 2 "):
        next(seen)
    x[13, 2] = 0.0
    model[2].weight[:] = 0
    model[2].bias[:] = 1.7e308
    assert len(list(stream(model, layers, batches(x, 6)))) == 4  # their sum alone is not finite
    model[2].bias[1] = torch.inf
    with pytest.raises(ValueError, match=r"activations of 2 are not finite in batch 0 "):
        next(stream(model, layers, batches(x, 6)))


def test_hooks_are_removed_when_the_forward_pass_fails_or_the_stream_is_left():
    model, x = seeded(Branches), random(10, 6)
    found = layers_of(model, "*", x[:3])
    seen = stream(model, found.layers, batches(x, 3))
    next(seen)
    assert num_hooks(model) == 0
    model.pair.forward = raising
    with pytest.raises(RuntimeError, match="out of order"):
        next(seen)
    assert num_hooks(model) == 0
    with pytest.raises(RuntimeError, match="out of order"):
        layers_of(model, "*", x[:3])
    assert num_hooks(model) == 0


def test_a_failing_recording_leaves_the_task_as_it_was():
    case = CASES["residual"]
    task, (state, _) = case.task(), case.states()
    task.model.train()
    task.model.head.register_forward_pre_hook(raising)
    before = copy.deepcopy(task.model.state_dict())
    with pytest.raises(RuntimeError, match="out of order"):
        record(task, state, device="cpu")
    assert num_hooks(task.model) == 1
    assert all(module.training for module in task.model.modules())
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    assert_close(task.model.state_dict(), before, rtol=0, atol=0)


def test_layers_that_run_more_or_less_often_later_are_refused():
    model, x = seeded(Twice), random(10, 6)
    layers = layers_of(model, "layer", x[:3]).layers
    with pytest.raises(
        ValueError, match="layer ran 2 times in this batch and 1 times in the first"
    ):
        list(stream(model, layers, batches(x, 5)))


def test_inputs_of_another_size_are_refused_where_rows_depend_on_it():
    model, x = seeded(lambda: nn.Conv2d(2, 3, 2)), random(4, 2, 5, 5)
    others = [(x, x), (x[..., 1:], x)]
    for maps in ("positions", "flatten"):
        layers = layers_of(model, "*", x, maps=maps).layers
        with pytest.raises(ValueError, match=r"\(4, 3, 4, 3\) have another size than in the first"):
            list(stream(model, layers, others, maps=maps))
    assert len(list(stream(model, layers, others))) == 2


# --- recordings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_recordings_hold_what_the_model_gives(name):
    """Against the model's own outputs, state loaded and in evaluation mode."""
    case = CASES[name]
    task, (state, _) = case.task(), case.states()
    found = record(task, state, device="cpu", dtype=DOUBLE)
    model = copy.deepcopy(task.model).double().eval()
    model.load_state_dict(state)
    rows = []
    for inputs, _ in task.data:
        if isinstance(inputs, dict):
            rows.append(model(inputs["tokens"], inputs["scale"].double()).mean(1))
        else:
            rows.append(model(inputs.double()))
    assert_close(found.values[found.names[-1]], torch.cat(rows).detach())
    assert found.num_examples == 46
    assert not found[found.names[0]].is_inference()


def test_recordings_in_other_forms_have_the_rows_of_the_examples():
    case = CASES["residual"]
    task, (state, _) = case.task(), case.states()
    flat = record(task, state, "stem,branch", maps="flatten", device="cpu")
    rows = record(task, state, "stem,branch", maps="positions", device="cpu")
    assert rows.rows_per_example == 25
    for name in flat.names:
        expected = flat[name].reshape(46, 4, 25).movedim(1, 2).reshape(-1, 4)
        assert_close(rows[name], expected)
    waves = record(task, state, "stem", maps="frequency", device="cpu")
    assert waves.maps == "frequency:5x5"
    assert_close(waves["stem"][0], flat["stem"].reshape(46, 4, 25).sum(2).to(torch.complex64))
    half = record(task, state, "stem", device="cpu", dtype=torch.bfloat16)
    whole = record(task, state, "stem", device="cpu")
    assert half["stem"].dtype == torch.float32
    assert_close(half["stem"], whole["stem"], rtol=0.05, atol=0.05)
    with pytest.raises(KeyError, match="'stam' was not recorded .closest: stem"):
        whole["stam"]


def test_recordings_that_would_not_fit_are_refused_with_their_size():
    case = CASES["residual"]
    task, (state, _) = case.task(), case.states()
    size = 46 * (100 + 100) * 4
    message = (
        rf"2 layers on 46 examples take {size:,} bytes, and 1,000 are allowed .stem alone takes "
        ".*fewer layers, maps='average', or fewer examples"
    )
    with pytest.raises(ValueError, match=message):
        record(task, state, "stem,branch", maps="flatten", device="cpu", max_bytes=1000)
    record(task, state, "stem,branch", maps="flatten", device="cpu", max_bytes=size)


def test_recordings_of_other_examples_or_another_order_are_detected():
    x, y = random(30, 6).float(), torch.arange(30) % 3

    def recorded(data, **options):
        task = Task("train", model, cross_entropy, data)
        return record(task, model.state_dict(), device="cpu", **options)

    model = CASES["mlp"].model()
    first = recorded(Batches(x, y, batch_size=7))
    check_same_examples(first, recorded(Batches(x, y, batch_size=30), dtype=DOUBLE))
    check_same_examples(first, recorded(Batches(x, y.roll(1), batch_size=4)))
    check_same_examples(first, recorded(uneven(TensorDataset(x, y))))
    check_same_examples(first, recorded(list(zip(x.split(11), y.split(11), strict=True))))
    order = torch.arange(30)
    order[[3, 17]] = order[[17, 3]]
    with pytest.raises(ValueError, match="not of the same examples in the same order .30 and 30"):
        check_same_examples(first, recorded(Batches(x[order], y[order])))
    with pytest.raises(ValueError, match="30 and 29 examples"):
        check_same_examples(first, recorded(Batches(x[:29], y[:29])))
    with pytest.raises(ValueError, match="unlike rows: maps='average' .* maps='flatten'"):
        check_same_examples(first, recorded(Batches(x, y), maps="flatten"))


def test_the_hash_of_the_examples_is_that_of_the_recording_whatever_the_batches():
    for name in ("residual", "tokens", "recurrent"):
        case = CASES[name]
        task, (state, _) = case.task(), case.states()
        recording = record(task, state, "*", device="cpu")
        assert recording.examples == hash_examples(task.data)
    tokens, scale, _ = CASES["tokens"].task().data.dataset.tensors

    def split(size):
        pairs = zip(tokens.split(size), scale.split(size), strict=True)
        return [({"tokens": some, "scale": of_them}, some) for some, of_them in pairs]

    assert hash_examples(split(5)) == hash_examples(split(46))
    swapped = [({"tokens": tokens, "scale": scale.roll(1)}, tokens)]
    assert hash_examples(split(5)) != hash_examples(swapped)
    assert hash_examples([(tokens, tokens)]) != hash_examples([(tokens.reshape(23, -1), tokens)])


def test_a_stored_state_is_read():
    case = CASES["residual"]
    task, (state, _) = case.task(), case.states()

    class Stored:
        def load(self):
            return state

    assert_close(
        dict(record(task, Stored(), device="cpu").values),
        dict(record(task, state, device="cpu").values),
    )
