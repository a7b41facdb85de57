"""Masks count what they should, chains rewind to where they say, and zeros stay zero."""

import json
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from landscape import Task, checkpoints, instability, models, results
from landscape.analyses.instability import Child
from landscape.checkpoints import load_state
from landscape.datasets import Batches
from landscape.experiments import At, Run, RunError, Seeds, train
from landscape.experiments.branches import children, last_checkpoint
from landscape.experiments.comparisons import num_parameters
from landscape.experiments.masks import (
    MASK,
    cost,
    densities,
    density,
    full_mask,
    load_mask,
    overlap,
    pruned,
    save_mask,
    shuffled_mask,
    stability,
)
from landscape.experiments.pruning import (
    Chain,
    iterative_pruning,
    levels_in,
    randomly_pruned,
    reinitialised,
    rewinding_point,
    rewound,
    smaller_dense,
    sparsity_curve,
    started_from,
    train_masked,
)
from landscape.experiments.schedules import Step, Warmup
from landscape.task import wrong
from tests.cases import CASES

MLP = partial(models.mlp, 16, (12, 9), 3)
BN = partial(models.mlp, 16, (12,), 3, batch_norm=True)
QUIET = {"device": "cpu", "progress": False}


def data(num=48, seed=0):
    inputs = torch.randn(num, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Batches(inputs, (inputs.flatten(1)[:, :3]).argmax(1), batch_size=16)


def run(name="a", **changes):
    given = {"make_model": MLP, "data": data(), "epochs": 2, "batch_size": 16, "lr": 0.1}
    given |= {"checkpoints": (At([0, 2]),), "weight_decay": 0.01, "test": data(30, seed=1)}
    return Run(name=name, **given | changes)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def count(mask):
    return sum(int(one.sum()) for one in mask.values())


def nested(inner, outer):
    return all(bool((outer[name] | ~inner[name]).all()) for name in inner)


def noise(shapes, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


def ones(shapes):
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


SHAPES = {"a": (30, 40), "b": (25, 12, 3, 3), "c": (50, 20)}


# Masks --------------------------------------------------------------------------------------------


def test_what_can_be_pruned_are_weights_without_biases_and_norms():
    mask = full_mask(BN(seed=0))
    assert list(mask) == ["fc1.weight", "output.weight"]
    assert density(mask) == 1
    assert list(full_mask(BN(seed=0), kept=("output.*",))) == ["fc1.weight"]
    wide = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm((2, 6)), nn.Linear(6, 2))
    assert list(full_mask(wide)) == ["0.weight", "2.weight"]
    assert list(full_mask(CASES["tokens"].model())) == ["embed.weight"]  # tied: once
    with pytest.raises(ValueError, match=r"'head\.\*' of kept matches no parameter; they are fc1"):
        full_mask(BN(seed=0), kept=("head.*",))
    with pytest.raises(ValueError, match="no weights to prune"):
        full_mask(BN(seed=0), kept=("fc1.*", "output.*"))


def test_the_largest_weights_survive_over_all_layers_or_in_each():
    state, mask = noise(SHAPES), ones(SHAPES)
    for share in (0.9, 0.37, 0.05):
        every = pruned(state, mask, share)
        flat = np.concatenate([state[name].abs().numpy().ravel() for name in SHAPES])
        threshold = np.sort(flat)[::-1][round(share * flat.size) - 1]
        for name in SHAPES:
            assert np.array_equal(every[name], state[name].abs().numpy() >= threshold)
        own = pruned(state, mask, share, scope="layer")
        for name in SHAPES:
            values = state[name].abs().numpy()
            limit = np.sort(values.ravel())[::-1][round(share * values.size) - 1]
            assert np.array_equal(own[name], values >= limit)


def test_of_equal_magnitudes_the_first_survive_and_their_number_is_exact():
    state = {"a": torch.tensor([[0.5, -0.5, 0.0], [0.5, 0.0, 0.5]])}
    assert pruned(state, ones({"a": (2, 3)}), 0.5)["a"].tolist() == [[1, 1, 0], [1, 0, 0]]
    state = {"a": torch.zeros(2, 3)}  # survivors that are zero come before what is pruned
    before = {"a": torch.tensor([[False, True, False], [True, True, False]])}
    assert nested(pruned(state, before, 1 / 3), before)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_levels_are_nested_and_do_not_drift(scope):
    """Row 64: the density after r rounds is 0.8 ** r within one weight."""
    mask = ones(SHAPES)
    for number in range(1, 16):
        before, state = mask, noise(SHAPES, seed=number)
        mask = pruned(state, before, 0.8**number, scope=scope)
        groups = [mask] if scope == "global" else [{name: one} for name, one in mask.items()]
        for group in groups:
            size = sum(one.numel() for one in group.values())
            assert abs(count(group) - 0.8**number * size) <= 1
        assert nested(mask, before)


def test_random_masks_keep_the_counts_of_their_parts():
    """Row 69."""
    mask = pruned(noise(SHAPES), ones(SHAPES), 0.3)
    everywhere = shuffled_mask(mask, within="all")
    assert count(everywhere) == count(mask)
    assert densities(everywhere) != densities(mask)
    assert densities(shuffled_mask(mask, within="layer", seed=4)) == densities(mask)
    for within, dim in (("filter", 0), ("channel", 1)):
        found = shuffled_mask(mask, within=within)
        for name, one in mask.items():
            others = [d for d in range(one.ndim) if d != dim]
            assert torch.equal(found[name].sum(others), one.sum(others))
            assert not torch.equal(found[name], one)
    assert equal(shuffled_mask(mask, seed=2), shuffled_mask(mask, seed=2))
    assert not equal(shuffled_mask(mask, seed=2), shuffled_mask(mask, seed=3))


def test_random_masks_are_uniform_and_overlap_by_the_product_of_their_densities():
    """Row 75: within four standard errors of the hypergeometric distribution."""
    shapes = {"a": (200, 100)}
    state = noise(shapes)
    a, b = (pruned(state, ones(shapes), share) for share in (0.4, 0.15))
    found = overlap(shuffled_mask(a, seed=1), shuffled_mask(b, seed=2))["a"]
    spread = np.sqrt(0.4 * 0.6 * 0.15 * 0.85 / 20000)
    assert abs(found - 0.4 * 0.15) < 4 * spread
    assert overlap(a, b)["a"] == 0.15  # nested: the overlap is the smaller one
    small = {"a": torch.tensor([[True, True, False, False]])}
    often = sum(shuffled_mask(small, seed=seed)["a"].double() for seed in range(2000)) / 2000
    assert_allclose(often, np.full((1, 4), 0.5), atol=4 * np.sqrt(0.25 / 2000))


def test_stability_is_zero_for_identical_weights_and_looks_at_survivors_alone():
    """Row 72."""
    a, b = noise(SHAPES), noise(SHAPES, seed=1)
    mask = pruned(a, ones(SHAPES), 0.2)
    assert stability(a, dict(a), mask) == (0, 0)
    masked = {name: a[name] * mask[name] for name in a}
    assert stability(a, masked, mask) == (0, 0)
    x, y = (np.concatenate([s[n].double().numpy()[mask[n]] for n in SHAPES]) for s in (a, b))
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    expected = np.linalg.norm(x - y), np.degrees(np.arccos(cosine))
    assert_allclose(stability(a, b, mask), expected, rtol=1e-12)
    assert_allclose(stability(a, {n: -2 * t for n, t in a.items()}, mask)[1], 180, rtol=1e-12)
    near = {n: t * torch.tensor(1 + 1e-9, dtype=torch.float64) for n, t in a.items()}
    assert stability(a, near, mask)[1] < 1e-6


def test_masks_are_files_beside_checkpoints(tmp_path):
    mask = pruned(noise(SHAPES), ones(SHAPES), 0.3)
    save_mask(mask, tmp_path / "x")
    assert equal(load_mask(tmp_path / "x"), mask)
    save_mask(mask, tmp_path / "x")
    with pytest.raises(RunError, match=r"holds another mask .* is 0\.3, and this one's 1"):
        save_mask(ones(SHAPES), tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["mask.npz"]
    with pytest.raises(RunError, match="no mask lies beside the checkpoints"):
        load_mask(tmp_path)


# Costs --------------------------------------------------------------------------------------------


def test_costs_of_lenet_are_those_counted_by_hand():
    """Row 76: positions x weights of each layer, and survivors in the place of weights."""
    model = models.lenet(seed=0)
    mask = pruned(model.state_dict(), full_mask(model), 0.25)
    places = {"conv1": 28 * 28, "conv2": 10 * 10, "fc1": 1, "fc2": 1, "output": 1}
    sizes = {"conv1": 150, "conv2": 2400, "fc1": 48000, "fc2": 10080, "output": 840}
    found = cost(model, torch.zeros(1, 1, 28, 28), mask)
    left = {name: int(mask[f"{name}.weight"].sum()) for name in sizes}
    assert found.multiply_adds == sum(places[n] * sizes[n] for n in sizes) == 416520
    assert found.sparse_multiply_adds == sum(places[n] * left[n] for n in sizes)
    assert found.weights == 61706
    assert found.nonzero == 61706 - sum(sizes.values()) + sum(left.values())
    assert found.bytes == 4 * 61706
    bits = -(-sum(sizes.values()) // 8)
    assert found.sparse_bytes == 4 * found.nonzero + bits
    assert cost(model, torch.zeros(5, 1, 28, 28), mask).multiply_adds == 5 * 416520
    whole = cost(model, torch.zeros(1, 1, 28, 28), full_mask(model))
    assert whole.sparse_multiply_adds == whole.multiply_adds


def test_costs_know_groups_strides_and_products_without_weights():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
            self.out = nn.Linear(16, 5)

        def forward(self, x):
            x = self.conv(x).flatten(2)  # (n, 8, 16)
            return self.out(torch.bmm(torch.bmm(x, x.transpose(1, 2)), x))

    model = Attending().train()
    half = {name: torch.arange(one.numel()).reshape(one.shape) % 2 == 0
            for name, one in full_mask(model).items()}  # fmt: skip
    found = cost(model, torch.zeros(3, 4, 8, 8), half)
    conv, out, free = 16 * 8 * 2 * 9, 8 * 16 * 5, 8 * 8 * 16 + 8 * 8 * 16
    assert found.multiply_adds == 3 * (conv + out + free)
    assert found.sparse_multiply_adds == 3 * (conv // 2 + out // 2 + free)
    assert model.training
    assert all(module.training for module in model.modules())


# Chains -------------------------------------------------------------------------------------------


class Watch:
    """Notes at each step whether what is pruned is anything but zero."""

    def __init__(self):
        self.seen = []

    def __repr__(self):
        return "Watch"

    def __call__(self, step, view):
        for name, mask in view.run.masks.items():
            gone = ~mask
            moments = [moment[name] for moment in view.optimiser.values()]
            self.seen += [bool((one[gone] != 0).any()) for one in (view.weights[name], *moments)]


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """Two seeds, two rewinding steps, three levels."""
    folder = tmp_path_factory.mktemp("chains")
    lr = Step(0.1, (3, 5), unit="steps")
    runs = [run(f"seed-{seed}", seeds=Seeds.all(seed), lr=lr) for seed in (1, 2)]
    chains = [Chain(step=0, kept=("output.*",)), Chain(step=2, kept=("output.*",))]
    return runs, chains, folder, iterative_pruning(runs, chains, folder, levels=3, **QUIET)


def test_each_level_is_a_run_with_its_mask(chained):
    _, _, folder, found = chained
    assert list(found) == ["seed-1/k=0", "seed-1/k=2", "seed-2/k=0", "seed-2/k=2"]
    for name, done in found.items():
        assert [level.number for level in done] == [0, 1, 2, 3]
        assert levels_in(folder / name) == dict.fromkeys((1, 2, 3), "finished")
        total = 16 * 12 + 12 * 9
        for level in done[1:]:
            assert level.run.name == f"{name}/level-{level.number:02d}"
            assert equal(load_mask(folder / level.run.name), level.mask)
            assert abs(count(level.mask) - 0.8**level.number * total) <= 1
            assert nested(level.mask, found[name][level.number - 1].mask)
            before = last_checkpoint(done[level.number - 1].end).load()
            largest = pruned(before, done[level.number - 1].mask, 0.8**level.number)
            assert equal(level.mask, largest)


def test_survivors_start_from_the_dense_networks_weights_and_the_clock_at_k(chained):
    """Rows 66 and 67."""
    _, _, folder, found = chained
    for name, done in found.items():
        step = int(name[-1])
        dense = load_state(folder / done[0].run.name / f"step-{step:08d}.pt")
        for level in done[1:]:
            first = checkpoints(folder / level.run.name)[0]
            assert first.step == step == level.run.first_step
            begun = first.load()
            for own, tensor in begun.items():
                alive = level.mask.get(own, torch.ones_like(tensor, dtype=torch.bool))
                assert torch.equal(tensor[alive], dense[own][alive])
                assert not tensor[~alive].any()
            assert level.run.lr_clock(step).step == step
            record = results.load(folder / level.run.name / "record.h5")
            assert_allclose(record["lr"], [0.1, 0.001])
            assert record["step"].values[-1] == 6


@pytest.mark.parametrize("optimiser", ["sgd", "nesterov", "adam", "adamw"])
def test_zeros_stay_zero_at_every_step_and_so_do_their_moments(optimiser, tmp_path):
    """Row 87, for each optimiser, alone and in a stack."""
    watch = Watch()
    runs = [run(f"{seed}", optimiser=optimiser, seeds=Seeds.all(seed)) for seed in (1, 2)]
    dense = train(runs, tmp_path, **QUIET)
    levels = []
    for one, end in zip(runs, dense, strict=True):
        mask = pruned(last_checkpoint(end), full_mask(one.build()), 0.3)
        point = rewinding_point(tmp_path / one.name, 2)
        one = rewound(replace(one, name=f"{one.name}/pruned"), mask, point, 2)
        levels.append(replace(one, hooks=(watch,)))
    for stack, place in ((1, "alone"), (2, "stacked")):
        for end, one in zip(
            train_masked(levels, tmp_path / place, stack=stack, **QUIET), levels, strict=True
        ):
            final = last_checkpoint(end).load()
            for name, alive in one.masks.items():
                assert not final[name][~alive].any()
                assert (final[name][alive] != 0).all()
    assert len(watch.seen) > 50
    assert not any(watch.seen)


@pytest.fixture(scope="module")
def copied(chained):
    """Two copies of each of two levels, which see the data in other orders."""
    _, _, folder, found = chained
    levels = [found[f"seed-1/k={step}"][3] for step in (0, 2)]
    copies = [
        children(level.run, step, folder, seeds=(5, 6), optimiser="reset")
        for level, step in zip(levels, (0, 2), strict=True)
    ]
    ends = train([one for pair in copies for one in pair], folder, **QUIET)
    states = [last_checkpoint(end).load() for end in ends]
    return levels, copies, [states[:2], states[2:]]


def test_stability_to_data_order_is_that_of_the_survivors(copied, chained, tmp_path):
    """Row 73: a twin by hand; a copy that sees the data in the order of the level repeats it."""
    folder = chained[2]
    for level, (a, b) in zip(copied[0], copied[2], strict=True):
        x, y = (
            np.concatenate([s[n].double().numpy()[level.mask[n]] for n in level.mask])
            for s in (a, b)
        )
        angle = np.degrees(np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y)))
        assert_allclose(stability(a, b, level.mask), (np.linalg.norm(x - y), angle), rtol=1e-7)
        assert stability(a, b, level.mask)[0] > 0.01
        own = level.run.seeds.order
        twin = children(level.run, level.run.first_step, folder, seeds=(own,), optimiser="reset")
        end = train(twin, tmp_path, stack=1, **QUIET)[0]
        apart, _ = stability(last_checkpoint(end), last_checkpoint(level.end), level.mask)
        assert apart < 1e-5


class Telling(nn.Sequential):
    """A network that also gives the largest magnitude of its pruned weights."""

    mask: dict

    def forward(self, inputs):
        outputs = super().forward(inputs)
        weights = dict(self.named_parameters())
        gone = [weights[name][~alive].abs().max() for name, alive in self.mask.items()]
        return torch.cat([outputs, torch.stack(gone).max().expand(len(inputs), 1)], 1)


def test_the_line_between_two_subnetworks_keeps_their_mask(copied):
    """Row 74: the instability of subnetworks, with masks kept on the path, and a twin by hand."""
    levels, copies, states = copied
    model = Telling(OrderedDict(MLP(seed=0).named_children()))
    t, test = np.linspace(0, 1, 5), data(30, seed=1)
    for level, runs, (a, b) in zip(levels, copies, states, strict=True):
        model.mask = dict(level.mask)
        task = Task(
            "test",
            model,
            lambda outputs, targets: nn.functional.cross_entropy(
                outputs[:, :-1], targets, reduction="none"
            ),
            test,
            {
                "error": lambda outputs, targets: wrong(outputs[:, :-1], targets),
                "pruned": lambda outputs, targets: outputs[:, -1],
            },
        )
        step = level.run.first_step
        own = [
            Child(step, "seed-1", run.name, state) for run, state in zip(runs, (a, b), strict=True)
        ]
        found = instability(task, own, points=t, device="cpu", dtype=torch.float64)
        assert not found["pruned"].values.any()
        errors = [1 - accuracy_between(a, b, level.mask, share, test) for share in t]
        assert_allclose(found["error"].values[0], errors, atol=1e-12)
        height = max(errors) - (errors[0] + errors[-1]) / 2
        assert_allclose(found["error_instability"], [max(height, 0)], atol=1e-12)
        assert found["branch_step"].values.tolist() == [step]


def accuracy_between(a, b, mask, share, test):
    """The accuracy of the masked mixture of two states, in float64."""
    model = MLP(seed=0).double()
    mixed = {n: (1 - share) * a[n].double() + share * b[n].double() for n in a}
    model.load_state_dict({n: one * mask[n] if n in mask else one for n, one in mixed.items()})
    found = model(test.inputs.double()).argmax(1)
    return float((found == test.targets).double().mean())


def test_a_warm_up_is_a_schedule_whose_clock_rewinds_to_k(tmp_path):
    """Row 71: rewound to step 2 of 4 of its warm-up, a network goes on with its second half.

    With all weights alive it trains to the weights of the dense run, and so at the same rates.
    """
    lr = Warmup(Step(0.1, (5,), unit="steps"), 4)
    one = run(lr=lr, momentum=0.0)
    done = iterative_pruning(one, Chain(step=2), tmp_path, levels=2, **QUIET)["a/k=2"]
    for level in done[1:]:
        own = level.run
        rates = [own.lr(own.lr_clock(step)) for step in (2, 3, 4, 5)]
        assert_allclose(rates, [0.1 * 3 / 4, 0.1, 0.1, 0.01], rtol=1e-12)
        record = results.load(tmp_path / own.name / "record.h5")
        assert_allclose(record["lr"], [0.1 * 3 / 4, 0.01])
    point, full = rewinding_point(tmp_path / "a/level-00", 2), full_mask(one.build())
    again = rewound(replace(one, name="alive"), full, point, 2)
    anew = rewound(replace(one, name="anew"), full, point, 0)
    ends = train_masked([again, anew], tmp_path, **QUIET)
    dense, same, other = (last_checkpoint(end).load() for end in (done[0].end, *ends))
    for name, tensor in dense.items():
        assert_allclose(same[name], tensor, atol=1e-6)
    assert not torch.allclose(other["fc1.weight"], dense["fc1.weight"], atol=1e-3)


def test_one_level_is_one_shot_pruning(chained, tmp_path):
    """Row 65."""
    runs, *_, found = chained
    dense = found["seed-1/k=0"][0]
    one = iterative_pruning(
        runs[0], Chain(share=0.6, kept=("output.*",)), tmp_path, levels=1, **QUIET
    )
    mask = one["seed-1/k=0"][1].mask
    assert equal(mask, pruned(last_checkpoint(dense.end), dense.mask, 0.4))


def test_a_chain_resumes_at_any_level_and_goes_on_to_more(chained, tmp_path):
    runs, chains, _, found = chained
    short = iterative_pruning(runs[:1], chains, tmp_path, levels=1, **QUIET)
    assert levels_in(tmp_path / "seed-1/k=2") == {1: "finished"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    again = iterative_pruning(runs[:1], chains, tmp_path, levels=3, **QUIET)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")}.items()
    assert [len(done) for done in short.values()] == [2, 2]
    for name, done in again.items():
        for level, other in zip(done, found[name], strict=True):
            assert equal(level.mask, other.mask)
            a, b = (last_checkpoint(one.end).load() for one in (level, other))
            for key, tensor in a.items():
                assert_allclose(tensor, b[key], atol=1e-5)  # stacks of other sizes round otherwise


def test_a_stopped_level_goes_on_from_within(chained, tmp_path):
    """An interruption within level 1 leaves levels that are read, and the same call goes on."""
    runs, chains, _, found = chained

    class Trip:
        on = True

        def __repr__(self):
            return "Trip"

        def __call__(self, step, view):
            if self.on and "level-01" in view.run.name and step == 4:
                raise RuntimeError("the power is gone")

    trip = Trip()
    one = replace(runs[0], hooks=(trip,))
    with pytest.raises(RuntimeError, match="power"):
        iterative_pruning(one, chains[1], tmp_path, levels=2, **QUIET)
    assert levels_in(tmp_path / "seed-1/k=2") == {1: "running"}
    trip.on = False
    done = iterative_pruning(one, chains[1], tmp_path, levels=2, **QUIET)["seed-1/k=2"]
    assert levels_in(tmp_path / "seed-1/k=2") == {1: "finished", 2: "finished"}
    for level, other in zip(done, found["seed-1/k=2"][:3], strict=True):
        a, b = (last_checkpoint(one.end).load() for one in (level, other))
        assert equal(level.mask, other.mask)
        for key, tensor in a.items():
            assert_allclose(tensor, b[key], atol=1e-5)


def test_learning_rate_rewinding_and_fine_tuning_keep_the_trained_weights(chained, tmp_path):
    runs = chained[0]
    chains = [Chain(step=2, retrain="lr"), Chain(step=2, retrain="fine-tune")]
    found = iterative_pruning(runs[0], chains, tmp_path, levels=2, **QUIET)
    assert list(found) == ["seed-1/k=2-lr", "seed-1/k=2-fine-tune"]
    for name, rates in (("k=2-lr", [0.1, 0.001]), ("k=2-fine-tune", [0.001, 0.001])):
        done = found[f"seed-1/{name}"]
        for level in done[1:]:
            trained = last_checkpoint(done[level.number - 1].end).load()
            begun = checkpoints(tmp_path / level.run.name)[0]
            assert begun.step == 2
            for key, alive in level.mask.items():
                assert torch.equal(begun.load()[key], trained[key] * alive)
            record = results.load(tmp_path / level.run.name / "record.h5")
            assert_allclose(record["lr"], rates)


def test_a_restarted_chain_trains_all_steps_from_the_weights_at_k(chained, tmp_path):
    found = iterative_pruning(
        chained[0][0], Chain(step=2, restart=True, name="full"), tmp_path, levels=1, **QUIET
    )
    level = found["seed-1/full"][1]
    steps = [checkpoint.step for checkpoint in checkpoints(tmp_path / level.run.name)]
    assert steps == [0, 2, 6]
    dense = load_state(tmp_path / "seed-1/level-00/step-00000002.pt")
    begun = checkpoints(tmp_path / level.run.name)[0].load()
    assert torch.equal(begun["fc1.weight"], dense["fc1.weight"] * level.mask["fc1.weight"])


def test_the_optimiser_and_batch_norm_can_be_carried(tmp_path):
    one = run(make_model=BN, keep_optimiser=True)
    chains = [
        Chain(step=2, optimiser="carry", name="carried"),
        Chain(step=2, batch_norm="reset", name="reset"),
    ]
    found = iterative_pruning(one, chains, tmp_path, levels=1, **QUIET)
    dense = load_state(tmp_path / "a/level-00/step-00000002.pt")
    for name, same in (("carried", True), ("reset", False)):
        begun = checkpoints(tmp_path / found[f"a/{name}"][1].run.name)[0].load()
        assert torch.equal(begun["bn1.running_mean"], dense["bn1.running_mean"]) is same
    told = json.loads((tmp_path / "a/carried/level-01/run.json").read_text())["settings"]["start"]
    assert (told["optimiser"], told["step"], told["clock"]) == ("carry", 2, "continue")


def test_a_chain_whose_run_breaks_ends_and_the_others_go_on(tmp_path):
    runs = [run("good"), run("bad", lr=1e30)]
    found = iterative_pruning(runs, Chain(), tmp_path, levels=2, **QUIET)
    assert [len(done) for done in found.values()] == [3, 1]
    assert found["bad/k=0"][0].end.status == "nonfinite"


# Controls and curves ------------------------------------------------------------------------------


def test_controls_change_one_thing(chained):
    """Rows 68 and 69."""
    _, _, folder, found = chained
    level = found["seed-2/k=2"][3]
    fresh, random = reinitialised(level.run), randomly_pruned(level.run)
    everywhere = randomly_pruned(level.run, within="all", number=2)
    assert fresh.name == "seed-2/k=2/reinitialised-1/level-03"
    assert everywhere.name == "seed-2/k=2/random-all-2/level-03"
    assert equal(fresh.masks, level.mask)
    assert densities(random.masks) == densities(level.mask)
    assert not equal(random.masks, level.mask)
    ends = train_masked([fresh, random, everywhere], folder, **QUIET)
    starts = [checkpoints(end.folder)[0] for end in ends]
    assert [start.step for start in starts] == [2, 2, 2]
    dense = load_state(folder / "seed-2/level-00/step-00000002.pt")
    for own, start in zip((random, everywhere), starts[1:], strict=True):
        for name, alive in own.masks.items():
            assert torch.equal(start.load()[name], dense[name] * alive)
    begun, initial = starts[0].load(), load_state(folder / "seed-2/level-00/step-00000000.pt")
    for name, alive in level.mask.items():
        assert not begun[name][~alive].any()
        assert not (begun[name] == initial[name])[alive].any()
    assert equal(load_mask(ends[1].folder), random.masks)


def test_a_smaller_dense_network_has_as_many_parameters_as_the_mask_leaves(chained, tmp_path):
    """Each level against the sizes of all networks, counted by hand."""
    _, _, _, found = chained
    widths = range(1, 13)
    sizes = np.array([16 * n + n + n * n + n + 3 * n + 3 for n in widths])
    base = replace(found["seed-2/k=2"][0].run, make_model=partial(models.mlp, 16, classes=3))
    for level in found["seed-2/k=2"][1:]:
        one = replace(level.run, make_model=partial(models.mlp, 16, hidden=(12, 9), classes=3))
        left = count(level.mask) + 12 + 9 + 9 * 3 + 3
        small = smaller_dense(one, hidden=[(n, n) for n in widths])
        assert num_parameters(small) == sizes[np.abs(sizes - left).argmin()]
        numbers = replace(one, masks={name: m.float() for name, m in one.masks.items()})
        assert num_parameters(smaller_dense(numbers, hidden=[(n, n) for n in widths])) == (
            num_parameters(small)
        )
        assert small.name == f"seed-2/k=2/smaller/of-level-{level.number:02d}"
        assert (small.seeds, small.first_step, small.masks) == (one.seeds, 0, {})
        assert num_parameters(one) == 16 * 12 + 12 + 12 * 9 + 9 + 9 * 3 + 3
    (end,) = train(small, tmp_path, **QUIET)
    curve = sparsity_curve([small], tmp_path)
    assert (curve["density"].item(), curve["level"].item()) == (1, 3)
    assert end.step == 6
    says = (
        rf"level-03', which has {left} parameters left: .* the hidden given, the nearest has 1063"
    )
    with pytest.raises(ValueError, match=says):
        smaller_dense(one, hidden=[(20, 30)])
    with pytest.raises(ValueError, match="has no masks"):
        smaller_dense(base, hidden=[(1, 1)])


def test_random_masks_of_other_seeds_are_other_masks(chained):
    found = chained[3]
    a, b = (randomly_pruned(found[f"seed-{seed}/k=0"][1].run).masks for seed in (1, 2))
    assert not equal(a, b)


def test_the_dense_point_of_the_curve_is_the_dense_run(chained, tmp_path):
    """Row 70: also a level without pruning trains to the weights of the dense run."""
    runs, _, folder, found = chained
    done = found["seed-1/k=0"]
    curve = sparsity_curve([*done, "nothing"], folder)
    assert curve["level"].values.tolist() == [0, 1, 2, 3, -1]
    assert_allclose(curve["density"][:4], [density(level.mask) for level in done])
    assert curve["chain"].values[3] == "seed-1/k=0"
    record = results.load(folder / "seed-1/level-00/record.h5")
    assert curve["test_error"].values[0] == record["test_error"].values[-1]
    own = densities(done[3].mask)
    assert curve["layer_density"].sel(layer="fc2.weight").values[3] == own["fc2.weight"]
    assert curve["layer_density"].values[0].tolist() == [1, 1]
    assert np.isnan(curve["density"].values[4])
    full = full_mask(runs[0].build())
    point = rewinding_point(folder / "seed-1/level-00", 0)
    end = train_masked([rewound(replace(runs[0], name="full"), full, point, 0)], tmp_path, **QUIET)
    a, b = (last_checkpoint(one).load() for one in (end[0], done[0].end))
    for name in a:
        assert_allclose(a[name], b[name], atol=1e-6)


# Bad input ----------------------------------------------------------------------------------------


def test_a_density_that_would_empty_a_layer_names_it():
    state = noise(SHAPES)
    state["b"] *= 1e-3
    with pytest.raises(ValueError, match=r"density of 0\.1 would leave no weight in b \(of 2700\)"):
        pruned(state, ones(SHAPES), 0.1)
    with pytest.raises(ValueError, match=r"no weight in a \(of 1200\), c \(of 1000\)"):
        pruned(state, ones(SHAPES), 0.0003, scope="layer")
    lone = {"a": torch.tensor([[True]]), "b": torch.zeros(500, 2, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"this shuffle would leave no weight in a \(of 1\)"):
        shuffled_mask(lone, within="all")


def test_masks_of_other_shapes_are_refused(tmp_path):
    other = ones({"fc1.weight": (12, 15), "fc9.weight": (2, 2)})
    state = MLP(seed=0).state_dict()
    says = r"fc1.weight \(12, 15\) \(\(12, 16\)\), fc9.weight \(2, 2\) \(missing\)"
    for refused in (
        lambda: pruned(state, other, 0.5),
        lambda: stability(state, state, other),
        lambda: cost(MLP(seed=0), torch.zeros(1, 16), other),
        lambda: overlap(other, full_mask(MLP(seed=0))),
    ):
        with pytest.raises(ValueError, match="of another architecture"):
            refused()
    with pytest.raises(ValueError, match=says):
        pruned(state, other, 0.5)
    with pytest.raises(ValueError, match="masks are named and shaped as parameters"):
        train(run(masks=other), tmp_path, **QUIET)


def test_numbers_that_make_no_sense_are_refused():
    state, mask = noise(SHAPES), ones(SHAPES)
    with pytest.raises(ValueError, match="density must be above 0 and at most 1, got 0"):
        pruned(state, mask, 0)
    with pytest.raises(ValueError, match="scope must be 'global' or 'layer', got 'row'"):
        pruned(state, mask, 0.5, scope="row")
    with pytest.raises(ValueError, match="within must be 'layer', 'filter' or 'channel', got 'x'"):
        shuffled_mask(mask, within="x")
    with pytest.raises(ValueError, match="asks for 2450 weights .* only 490 survive"):
        pruned(state, pruned(state, mask, 0.1), 0.5)
    with pytest.raises(ValueError, match="weights of a, b, c are not finite"):
        pruned({**state, "a": state["a"] * torch.nan}, mask, 0.5)
    with pytest.raises(ValueError, match="share must lie between 0 and 1, got 1"):
        Chain(share=1)
    with pytest.raises(ValueError, match="retrain must be"):
        Chain(retrain="late")
    with pytest.raises(ValueError, match="scope must be"):
        Chain(scope="row")


def test_a_step_without_checkpoint_says_which_exist(chained, tmp_path):
    runs, _, folder, _ = chained
    with pytest.raises(ValueError, match=r"no checkpoint at step 1 .* steps 0, 2 \(before the end"):
        iterative_pruning(runs, Chain(step=1), tmp_path, levels=1, **QUIET)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"no checkpoint at step 5 to rewind to.* steps 0, 2, 6\."):
        rewinding_point(folder / "seed-1/level-00", 5)
    with pytest.raises(ValueError, match="those of steps none"):
        rewinding_point(tmp_path, 0)


def test_a_missing_level_is_named(chained, tmp_path):
    runs, chains, *_ = chained
    for number in (1, 2, 4):
        (tmp_path / f"seed-1/k=0/level-{number:02d}").mkdir(parents=True)
    says = "has the levels 1, 2, 4 and lacks 3, .* remove the levels after 3"
    with pytest.raises(ValueError, match=says):
        levels_in(tmp_path / "seed-1/k=0")
    with pytest.raises(ValueError, match=says):
        iterative_pruning(runs, chains, tmp_path, levels=4, **QUIET)
    with pytest.raises(ValueError, match="holds no levels of a chain"):
        levels_in(tmp_path)


def test_what_cannot_become_a_chain_is_refused(tmp_path):
    def chain(one, *chains, levels=1):
        iterative_pruning(one, chains, tmp_path, levels=levels, **QUIET)

    with pytest.raises(ValueError, match=r"names of their own, got \['k=0', 'k=0'\]"):
        chain(run(), Chain(), Chain(share=0.5))
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        chain(run(), Chain(), levels=0)
    with pytest.raises(ValueError, match="has masks already"):
        chain(run(masks=full_mask(MLP(seed=0))), Chain())
    with pytest.raises(ValueError, match="does not keep its optimiser, which chain 'k=0' carries"):
        chain(run(), Chain(optimiser="carry"))
    with pytest.raises(ValueError, match=r"level 1 of a/k=0 cannot .* in fc1.weight \(of 192\)"):
        chain(run(), Chain(share=0.999, scope="layer"))
    with pytest.raises(ValueError, match="masks are boolean, .*, got torch.float32"):
        pruned({"a": torch.ones(2, 2)}, {"a": torch.ones(2, 2)}, 0.5)
    with pytest.raises(ValueError, match="'a' starts from no state"):
        started_from(run(), "other", {})
    assert MASK == "mask.npz"
