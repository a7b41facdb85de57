from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
import torch
from cases import CASES, cross_entropy
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from wirings import WIRINGS

from landscape import models
from landscape.analyses.alignment import (
    align,
    aligned,
    find_permutations,
    symmetries_of,
    weight_blocks,
)
from landscape.analyses.interpolation import interpolate
from landscape.datasets import Batches
from landscape.evaluation import prepare
from landscape.results import load, problems, save
from landscape.states import distance
from landscape.symmetries import permute, random_permutations
from landscape.task import Task


def squares(outputs, targets):
    return outputs.flatten(1).square().sum(1)


def shuffled(name, seed=1):
    """A task, a state, and the same network with its units in random order."""
    wiring = WIRINGS[name]
    model = wiring.made()
    inputs = wiring.inputs(30)
    task = Task("train", model, squares, Batches(inputs, torch.zeros(30).long(), 12))
    a = model.state_dict()
    symmetries = symmetries_of(task, a)
    return task, a, permute(a, symmetries, random_permutations(symmetries, seed)), symmetries


def small(hidden=4, seed=0, dtype=torch.float32):
    """A task and two unlike states of a network with one hidden layer."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    a, b = (models.mlp(3, (hidden,), 2, seed=seed + s) for s in (1, 2))
    task = Task("train", a, cross_entropy, Batches(x, (x[:, 0] > 0).long(), 16))
    return task, *({k: v.to(dtype) for k, v in m.state_dict().items()} for m in (a, b))


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", WIRINGS)
def test_a_network_with_its_units_in_another_order_comes_back(name, method):
    task, a, b, symmetries = shuffled(name)
    assert distance(a, b) > 1
    found = find_permutations(task, a, b, method=method, symmetries=symmetries)
    assert found["distance_after"] == 0
    assert_allclose(found["distance_before"], distance(a, b))
    back = aligned(b, found, symmetries)
    for key, tensor in a.items():
        assert_array_equal(back[key], tensor)


@pytest.mark.parametrize("name", ["mlp-norm", "resnet20", "encoder", "lstm"])
def test_the_barrier_of_a_network_with_its_reordered_self_is_zero(name):
    task, a, b, _ = shuffled(name)
    ready = prepare(task, [a])
    raw = interpolate(ready, a, b, points=5)
    assert abs(raw["loss"] - raw["loss"][0]).max() > 1e-3
    line = interpolate(ready, a, align(ready, a, b), points=5)
    assert_allclose(line["loss"], float(line["loss"][0]), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["weights", "activations"])
def test_unlike_networks_come_closer_and_keep_their_function(name, method):
    case = CASES[name]
    task, (a, b) = case.task(), case.states()
    result = align(task, a, b, method=method)  # asserts the function itself
    before, after = (interpolate(task, s, s, points=2, batch_norm="keep") for s in (b, result))
    assert_allclose(after["loss"], before["loss"], rtol=1e-5)
    if method == "weights":
        assert distance(a, result) < distance(a, b)
    again = align(task, a, result, method=method)
    assert distance(a, again) <= distance(a, result) * (1 + 1e-6) or method == "activations"


def test_one_hidden_layer_is_matched_as_by_trying_all_orders():
    for seed in range(5):
        task, a, b = small(seed=seed)
        found = find_permutations(task, a, b)
        symmetries = symmetries_of(task, a)
        best = min(
            distance(a, permute(b, symmetries, {"fc1": np.array(p)}))
            for p in permutations(range(4))
        )
        assert_allclose(found["distance_after"], best, rtol=1e-12)
        # |a - b|^2 = |a|^2 + |b|^2 - 2 <a, b>, but for the biases of the output
        blocks = weight_blocks(a, b, symmetries)
        gain = 2 * (found["objective"].max() - sum(float((x.a * x.b).sum()) for x in blocks))
        fall = found["distance_before"] ** 2 - found["distance_after"] ** 2
        assert_allclose(gain, fall, rtol=1e-6)


def test_correlations_are_those_of_all_examples_at_once():
    task, a, b = small(hidden=5)
    found = find_permutations(task, a, b, method="activations")
    x = task.data.inputs.double()
    hidden = [x @ s["fc1.weight"].double().T + s["fc1.bias"].double() for s in (a, b)]
    total = np.zeros((5, 5))
    for one in (lambda h: h, torch.relu):  # the outputs of both modules
        total += np.nan_to_num(np.corrcoef(*(one(h).T for h in hidden))[:5, 5:])
    best = max(total[range(5), list(p)].sum() for p in permutations(range(5)))
    assert_allclose(found["objective"][0, -1], best, rtol=1e-5)
    order = found["permutation_fc1"].values
    assert_allclose(total[range(5), order].sum(), best, rtol=1e-5)


def test_units_that_never_change_are_no_trouble():
    task, a, b = small()
    b = dict(b, **{"fc1.weight": b["fc1.weight"].clone(), "fc1.bias": b["fc1.bias"].clone()})
    b["fc1.weight"][1] = 0
    b["fc1.bias"][1] = -1
    found = find_permutations(task, a, b, method="activations")
    assert np.isfinite(found["objective"]).all()
    assert_array_equal(np.sort(found["permutation_fc1"]), range(4))


def test_running_statistics_go_with_their_units():
    task, a, b, symmetries = shuffled("cnn")
    b = {k: v * 1.01 if k.endswith("running_var") else v for k, v in b.items()}
    found = align(task, a, b, symmetries=symmetries)
    for key, tensor in a.items():
        factor = 1.01 if key.endswith("running_var") else 1
        assert_array_equal(found[key], tensor * factor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_moved_and_never_computed(dtype):
    task, a, b = small(dtype=dtype)
    found = align(task, a, b)
    for key, tensor in b.items():
        assert found[key].dtype == dtype
        assert_array_equal(np.sort(found[key].double().ravel()), np.sort(tensor.double().ravel()))


def test_trained_networks_have_less_of_a_barrier_when_aligned():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] * x[:, 1] > 0).long()
    states = []
    for seed in (1, 2):
        model = models.mlp(4, (64,), 2, seed=seed)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        states.append({k: v.detach().clone() for k, v in model.state_dict().items()})
    task = Task("train", model, cross_entropy, Batches(x, y, 100))
    ready = prepare(task, states)
    raw = interpolate(ready, *states, points=11)["loss"].max()
    for method in ("weights", "activations"):
        line = interpolate(ready, states[0], align(ready, *states, method=method), points=11)
        assert line["loss"].max() < 0.7 * raw


@dataclass
class OnDisk:
    state: dict
    reads: int = 0

    def load(self):
        self.reads += 1
        return self.state


def test_stored_states_several_tasks_and_prepared_ones_serve_alike():
    task, a, b = small()
    test = Task("test", task.model, task.loss, Batches(task.data.inputs[:7], task.data.targets[:7]))
    expected = align(task, a, b, method="activations")
    stored = OnDisk(a), OnDisk(b)
    for tasks in ([test, task], prepare([test, task], [a])):
        found = align(tasks, *stored, method="activations")
        for key, tensor in expected.items():
            assert_array_equal(found[key], tensor)


def test_the_result_is_a_dataset_from_which_it_can_be_done_again(tmp_path):
    task, a, b, symmetries = shuffled("fused")
    found = find_permutations(task, a, b, starts=2, seed=4, progress=False)
    assert problems(found) == []
    assert found.attrs["analysis"] == "alignment"
    assert found["permutation_qkv#2"].dims == ("qkv.unit", "qkv#2.unit")
    assert found["objective"].dims == ("start", "sweep")
    assert dict(found.sizes)["start"] == 2
    share = float((found["permutation_embed"] != np.arange(12)).mean())
    assert_allclose(found["moved"].sel(group="embed"), share)
    again = load(save(found, tmp_path / "permutations.h5"))
    for key, tensor in aligned(b, again, symmetries).items():
        assert_array_equal(tensor, a[key])
    with pytest.raises(ValueError, match="the result holds no 'permutation_fc1'"):
        aligned(b, again, symmetries_of(*small()[:2]))


def test_symmetries_by_hand_serve_and_are_found_out_if_wrong():
    task, a, b = small()
    groups = {"hidden": [("fc1.weight", 0), ("fc1.bias", 0), ("output.weight", 1)]}
    by_hand, traced = align(task, a, b, symmetries=groups), align(task, a, b)
    for key, tensor in traced.items():
        assert_array_equal(by_hand[key], tensor)
    wrong = {"hidden": [("fc1.weight", 0), ("output.weight", 1)]}
    b = dict(b, **{"fc1.bias": torch.arange(4.0)})
    with pytest.raises(ValueError, match="another function: its outputs differ by"):
        align(task, a, b, symmetries=wrong)


def test_what_cannot_be_asked():
    task, a, b = small()
    with pytest.raises(ValueError, match="method must be 'weights' or 'activations', got 'ste'"):
        find_permutations(task, a, b, method="ste")
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        find_permutations(task, a, b, starts=0)
    with pytest.raises(ValueError, match="does not fit"):
        find_permutations(task, a, CASES["mlp"].states()[0])
    with pytest.raises(ValueError, match="the gains are not finite"):
        find_permutations(task, a, {k: v * torch.nan for k, v in b.items()})


def test_arguments_and_the_random_state_stay():
    task, a, b = small()
    before = {k: v.clone() for k, v in b.items()}
    random = torch.random.get_rng_state()
    first, second = (align(task, a, b, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), random)
    for key, tensor in before.items():
        assert_array_equal(b[key], tensor)
        assert_array_equal(first[key], second[key])


class Decided(nn.Module):
    """Gives its output and, as booleans, where that is positive."""

    def __init__(self):
        super().__init__()
        self.inner = models.mlp(3, (4,), 2, seed=3)

    def forward(self, x):
        y = self.inner(x)
        return y, y > 0


def test_outputs_may_hold_booleans():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    task = Task("train", Decided(), lambda y, _: squares(y[0], _), Batches(x, x[:, 0], 16))
    a = Decided().state_dict()
    symmetries = symmetries_of(task, a)
    b = permute(a, symmetries, random_permutations(symmetries, 2))
    assert distance(a, b) > 0.1
    assert distance(a, align(task, a, b)) == 0
