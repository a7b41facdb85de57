"""Other starts change what they say and nothing else; other tasks come before the first step."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from landscape import checkpoints, models, results
from landscape.datasets import Batches
from landscape.experiments import At, Run, Seeds, train
from landscape.experiments.branches import last_checkpoint
from landscape.experiments.deficits import Blur, NoisyLabels
from landscape.experiments.masks import full_mask, pruned
from landscape.experiments.perturbations import (
    QuarterTurns,
    against_effective_std,
    effective_std,
    noisy,
    perturbations,
    perturbed_runs,
    pretraining,
    shuffled,
    with_head,
    with_magnitudes,
    with_signs,
    with_weights,
)
from landscape.experiments.pruning import rewound, train_masked
from tests.cases import CASES

QUIET = {"device": "cpu", "progress": False}
MLP = partial(models.mlp, 16, (12, 9), 5)
SHAPES = {"a": (30, 40), "b": (25, 12, 3, 3), "bias": (9,)}


def noise(seed=0, shapes=SHAPES):
    chance = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=chance, dtype=torch.float64) for n, s in shapes.items()}


STATE, OTHER = noise(), noise(1)
MASK = pruned(noise(2), {n: torch.ones(SHAPES[n], dtype=torch.bool) for n in ("a", "b")}, 0.3)


def data(num=48, seed=0):
    inputs = torch.randn(num, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Batches(inputs, inputs.flatten(1)[:, :5].argmax(1), batch_size=16)


def run(name="a", **changes):
    given = {"make_model": MLP, "data": data(), "epochs": 2, "batch_size": 16, "lr": 0.1}
    return Run(name=name, **given | {"checkpoints": (At([0, 2]),)} | changes)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def only_survivors_changed(new):
    kept = all(torch.equal(new[n][~MASK[n]], STATE[n][~MASK[n]]) for n in MASK)
    return kept and torch.equal(new["bias"], STATE["bias"]) and equal(STATE, noise())


def sliced(tensor, mask, within):
    """The survivors of each part of a tensor, sorted."""
    if within == "layer":
        parts = [(tensor, mask)]
    else:
        dim = ("filter", "channel").index(within)
        parts = list(zip(tensor.unbind(dim), mask.unbind(dim), strict=True))
    return [values[alive].sort().values.tolist() for values, alive in parts]


# Perturbations ------------------------------------------------------------------------------------


def test_signs_and_magnitudes_come_from_where_they_are_said_to():
    """Row 80."""
    signs, sizes = with_signs(STATE, OTHER, MASK), with_magnitudes(STATE, OTHER, MASK)
    for name, alive in MASK.items():
        own, other = STATE[name][alive], OTHER[name][alive]
        assert torch.equal(signs[name][alive], other.sign() * own.abs())
        assert torch.equal(sizes[name][alive], own.sign() * other.abs())
    assert only_survivors_changed(signs)
    assert only_survivors_changed(sizes)
    assert equal(with_signs(STATE, STATE, MASK), STATE)
    assert equal(with_magnitudes(STATE, STATE, MASK), STATE)
    assert equal(with_magnitudes(signs, OTHER, MASK), with_weights(STATE, OTHER, MASK))


@pytest.mark.parametrize("within", ["layer", "filter", "channel"])
def test_shuffles_keep_the_values_of_each_part(within):
    """Row 81."""
    free = shuffled(STATE, MASK, within=within)
    kept = shuffled(STATE, MASK, within=within, keep_signs=True)
    for name, alive in MASK.items():
        assert sliced(free[name], alive, within) == sliced(STATE[name], alive, within)
        sizes = sliced(STATE[name].abs(), alive, within)
        assert sliced(kept[name].abs(), alive, within) == sizes
        assert torch.equal(kept[name].sign(), STATE[name].sign())
        moved = (free[name] != STATE[name])[alive].double().mean()
        assert moved > 0.5
    assert only_survivors_changed(free)
    assert only_survivors_changed(kept)
    assert equal(free, shuffled(STATE, MASK, within=within))
    assert not equal(free, shuffled(STATE, MASK, within=within, seed=1))


def test_a_shuffle_in_a_smaller_part_is_one_in_a_larger_one_but_not_the_reverse():
    free = shuffled(STATE, MASK, within="layer")
    for within in ("filter", "channel"):
        smaller = shuffled(STATE, MASK, within=within)
        assert sliced(smaller["b"], MASK["b"], "layer") == sliced(STATE["b"], MASK["b"], "layer")
        assert sliced(free["b"], MASK["b"], within) != sliced(STATE["b"], MASK["b"], within)


def test_shuffles_are_uniform():
    state = {"a": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}
    mask = {"a": torch.tensor([[True, False, True, True]])}
    drawn = torch.cat([shuffled(state, mask, seed=seed)["a"] for seed in range(3000)])
    assert (drawn[:, 1] == 2).all()
    for column in (0, 2, 3):
        for value in (1, 3, 4):
            share = (drawn[:, column] == value).double().mean()
            assert abs(share - 1 / 3) < 4 * (2 / 9 / 3000) ** 0.5


def test_noise_has_the_spread_that_is_asked_for():
    """Row 82: the realised standard deviation lies within 5 %."""
    for scale in (0.5, 3.0):
        changed = noisy(STATE, MASK, scale)
        for name, alive in MASK.items():
            spread = (changed[name] - STATE[name])[alive].std()
            assert abs(spread / (scale * STATE[name].std()) - 1) < 0.05
        assert only_survivors_changed(changed)
    assert equal(noisy(STATE, MASK, 0.0), STATE)
    one, three = (noisy(STATE, MASK, scale)["a"] - STATE["a"] for scale in (1.0, 3.0))
    assert_allclose(three, 3 * one, atol=1e-12)


def test_the_effective_deviation_is_that_of_the_change():
    """Row 83: over survivors; a shift has none."""
    changed = shuffled(STATE, MASK)
    values = [(changed[n] - STATE[n]).numpy()[MASK[n].numpy()] for n in MASK]
    assert_allclose(effective_std(STATE, changed, MASK), np.concatenate(values).std(), rtol=1e-12)
    assert effective_std(STATE, STATE, MASK) == 0
    moved = {name: tensor + 3 for name, tensor in STATE.items()}
    assert_allclose(effective_std(STATE, moved, MASK), 0, atol=1e-12)
    masked = {name: tensor * MASK.get(name, 1) for name, tensor in STATE.items()}
    assert effective_std(STATE, masked, MASK) == 0


def test_tied_weights_stay_tied():
    state = CASES["tokens"].model().state_dict()
    mask = full_mask(CASES["tokens"].model())
    changed = noisy(state, mask, 1.0)
    assert not torch.equal(changed["embed.weight"], state["embed.weight"])
    assert torch.equal(changed["embed.weight"], changed["out.weight"])


def test_perturbed_runs_train_as_one_stack_from_their_starts(tmp_path):
    (end,) = train(run(), tmp_path, **QUIET)
    now, initial = checkpoints(end.folder)[1], checkpoints(end.folder)[0]
    mask = pruned(last_checkpoint(end), full_mask(MLP(seed=0)), 0.5)
    level = rewound(run("a/k=2/level-01"), mask, now, 2)
    states = perturbations(now, initial, MLP(seed=9).state_dict(), mask, scales=(1, 3))
    assert list(states) == [
        "none", "initial", "fresh", "initial-magnitudes", "initial-signs",
        "shuffled-layer", "shuffled-layer-signs-kept",
        "shuffled-filter", "shuffled-filter-signs-kept",
        "shuffled-channel", "shuffled-channel-signs-kept", "noise-1", "noise-3",
    ]  # fmt: skip
    ends = train(perturbed_runs(level, states), tmp_path, **QUIET)
    for (name, state), own in zip(states.items(), ends, strict=True):
        assert own.name == f"a/k=2/{name}/level-01"
        begun = checkpoints(own.folder)[0]
        assert begun.step == 2
        for key, tensor in begun.load().items():
            assert torch.equal(tensor, state[key] * mask.get(key, 1))
        for key, alive in mask.items():
            assert not last_checkpoint(own).load()[key][~alive].any()


def test_accuracies_are_set_against_the_changes_of_the_starts(tmp_path):
    """Row 83: from what the runs left, as computed from the states."""
    arms, changes = {}, []
    for seed in (1, 2):
        state, other = (MLP(seed=s).state_dict() for s in (seed, seed + 10))
        mask = pruned(state, full_mask(MLP(seed=0)), 0.5)
        level = rewound(run(f"{seed}/level-01", test=data(40, seed=9)), mask, state, 2)
        states = {"none": state, "noise": noisy(state, mask, 2.0)}
        states["fresh"] = with_weights(state, other, mask)
        changes.append([effective_std(state, one, mask) for one in states.values()])
        for name, own in zip(states, perturbed_runs(level, states), strict=True):
            arms.setdefault(name, []).append(own)
    train_masked([own for runs in arms.values() for own in runs], tmp_path, **QUIET)
    found = against_effective_std(arms, tmp_path)
    assert_allclose(found["effective_std"], np.transpose(changes), rtol=1e-6)
    record = results.load(tmp_path / "2/fresh/level-01/record.h5")
    assert found["test_error"].sel(arm="fresh", seed=1) == record["test_error"][-1]
    x, y = found["effective_std"].mean("seed"), 1 - found["test_error"].mean("seed")
    assert_allclose(found["correlation"], np.corrcoef(x, y)[0, 1], rtol=1e-10)
    assert equal_results(found, results.load(results.save(found, tmp_path / "found.h5")))
    with pytest.raises(ValueError, match=r"at least three arms .* got none \(2\), noise \(2\)"):
        against_effective_std({name: arms[name] for name in ("none", "noise")}, tmp_path)
    with pytest.raises(ValueError, match="'plain' among them"):
        against_effective_std(arms, tmp_path, reference="plain")


def equal_results(a, b):
    return all(np.array_equal(a[name].values, b[name].values) for name in a.variables)


def test_what_cannot_be_perturbed_is_refused():
    with pytest.raises(ValueError, match="scale must be at least 0, got -1"):
        noisy(STATE, MASK, -1)
    with pytest.raises(ValueError, match="within must be 'layer', 'filter' or 'channel', got 'x'"):
        shuffled(STATE, MASK, within="x")
    with pytest.raises(ValueError, match=r"another architecture; .* b \(25, 12, 3, 3\) \(missing"):
        with_signs(STATE, {"a": OTHER["a"]}, MASK)


# Pre-training -------------------------------------------------------------------------------------


def test_quarter_turns_are_exact_and_four_of_them_are_none():
    """Row 85."""
    images, view = noise(shapes={"x": (400, 2, 5, 5)})["x"], QuarterTurns(seed=3)
    turned, labels = view(images, torch.zeros(400, dtype=torch.long))
    assert torch.equal(labels, view.turns(400))
    back = torch.stack([
        torch.rot90(image, 4 - int(label), (-2, -1))
        for image, label in zip(turned, labels, strict=True)
    ])  # fmt: skip
    assert torch.equal(back, images)
    one = images[labels == 1][0, 0]
    assert torch.equal(turned[labels == 1][0, 0], one.T.flip(0))  # counter-clockwise
    counts = torch.bincount(labels, minlength=4)
    assert ((counts - 100).abs() < 4 * (400 * 3 / 16) ** 0.5).all()
    assert torch.equal(view(images, labels)[0], turned)
    assert not torch.equal(QuarterTurns(seed=4)(images, labels)[0], turned)
    with pytest.raises(ValueError, match=r"square images .*, got \(3, 1, 4, 5\)"):
        view(torch.zeros(3, 1, 4, 5), torch.zeros(3))


def test_random_labels_are_uniform_and_fixed_by_their_seed():
    """Row 84."""
    labels = torch.arange(5000) % 5
    drawn = NoisyLabels(1.0, 5, seed=2)(torch.zeros(5000, 1), labels)[1]
    counts = torch.bincount(drawn, minlength=5)
    assert ((counts - 1000).abs() < 4 * (5000 * 4 / 25) ** 0.5).all()
    assert torch.equal(drawn, NoisyLabels(1.0, 5, seed=2)(torch.zeros(5000, 1), labels)[1])
    assert abs((drawn == labels).double().mean() - 0.2) < 4 * (0.16 / 5000) ** 0.5


@pytest.mark.parametrize("view", [NoisyLabels(1.0, 5), QuarterTurns(), Blur(factor=2)])
def test_pretraining_is_the_run_on_data_as_the_view_shows_them(view, tmp_path):
    """Rows 84 to 86: the same weights as a run on a data set that holds the changed examples."""
    base = run(seeds=Seeds.all(4))
    first = pretraining(base, "other", view, epochs=3, lr=0.05)
    shown = data()
    inputs, targets = view(shown.inputs, shown.targets)
    plain = run("plain", data=Batches(inputs, targets), epochs=3, lr=0.05, seeds=Seeds.all(4))
    a, b = (last_checkpoint(e).load() for e in train([first, plain], tmp_path, stack=1, **QUIET))
    assert first.name == "a/other"
    assert [one.step for one in checkpoints(tmp_path / "a/other")] == [0, 9]
    assert equal(a, b)


def test_sparse_pretraining_keeps_its_zeros_and_the_head_is_new(tmp_path):
    """Row 87, and the start of a level from what was learned."""
    base = run(seeds=Seeds.all(4))
    mask = pruned(MLP(seed=4).state_dict(), full_mask(MLP(seed=4)), 0.4)
    first = pretraining(base, "turns", QuarterTurns(), epochs=2, lr=0.05, mask=mask)
    (end,) = train(first, tmp_path, **QUIET)
    for checkpoint in checkpoints(end.folder):
        for name, alive in mask.items():
            assert not checkpoint.load()[name][~alive].any()
    learned = last_checkpoint(end)
    begun = with_head(base, learned, ["output.*"])
    initial = base.build().state_dict()
    assert torch.equal(begun["output.weight"], initial["output.weight"])
    assert torch.equal(begun["fc1.weight"], learned.load()["fc1.weight"])
    assert not torch.equal(begun["fc2.bias"], initial["fc2.bias"])
