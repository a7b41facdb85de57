"""Warm starts: nested data, exact starts, rounds that differ in nothing but their arm."""

import itertools
import math
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from landscape import checkpoints, datasets, models
from landscape.children import children_of
from landscape.datasets import Batches
from landscape.experiments import At, During, Run, Seeds, train
from landscape.experiments.branches import children, fresh_seed, last_checkpoint
from landscape.experiments.comparisons import generalisation_gap
from landscape.experiments.probes import gradient_norms, prediction_agreement
from landscape.experiments.transfer import fine_tuned, fixed, layers, new_head, transferred
from landscape.experiments.warmstarts import (
    FRESH,
    SHRINK_PERTURB,
    WARM,
    Arm,
    arrivals,
    gaussian,
    in_rounds,
    last_layer,
    queried,
    reached,
    regularised,
    shrink_perturb,
    started,
    subsets,
)

make = partial(models.mlp, 5, (8, 6), 3, batch_norm=True)


def data(num=48, seed=0):
    inputs = torch.randn(num, 5, generator=torch.Generator().manual_seed(seed))
    return Batches(inputs, inputs[:, :3].argmax(1), batch_size=16)


def run(name="a", **changes):
    settings = {"make_model": make, "epochs": 2, "batch_size": 16, "seeds": Seeds.all(3)}
    return Run(name=name, data=data(), test=data(seed=1), **settings | changes)


def first(end):
    """The state before the first step of a run."""
    return checkpoints(end.folder)[0].load()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Data in pieces -----------------------------------------------------------------------------------


def test_arriving_sets_are_nested_and_their_order_is_that_of_the_seed():
    whole = data(50)
    sets = arrivals(whole, 20, seed=4)
    assert [own.num_examples for own in sets] == [20, 40, 50]
    for small, large in itertools.pairwise(sets):
        assert torch.equal(large.inputs[: small.num_examples], small.inputs)
        assert torch.equal(large.targets[: small.num_examples], small.targets)
    rows = sets[-1].inputs.numpy()
    assert np.array_equal(np.unique(rows, axis=0), np.unique(whole.inputs.numpy(), axis=0))
    again, other = arrivals(whole, 20, seed=4), arrivals(whole, 20, seed=5)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(sets, again, strict=True))
    assert not torch.equal(sets[0].inputs, other[0].inputs)
    assert [own.num_examples for own in arrivals(whole, 25)] == [25, 50]
    assert torch.equal(subsets(whole, [7], seed=4)[0].inputs, sets[0].inputs[:7])
    with pytest.raises(ValueError, match="step must be 1 to 50"):
        arrivals(whole, 51)
    with pytest.raises(ValueError, match="sizes must be 1 to 50"):
        subsets(whole, [0, 10])


# Shrink and perturb -------------------------------------------------------------------------------


def trained():
    """A state whose statistics are not the initial."""
    state = make(seed=1).state_dict()
    state["bn1.running_mean"] += 0.5
    return state


def test_the_ends_of_shrink_and_perturb_are_the_identity_and_fresh_weights():
    old, new = trained(), make(seed=2).state_dict()
    assert equal(shrink_perturb(old, new, 1, 0, batch_norm="carry"), old)
    assert equal(shrink_perturb(old, new, 0, 1), new)
    mixed = shrink_perturb(old, new, 0.4, 0.1)
    for name in ("fc1.weight", "bn1.weight", "output.bias"):
        assert_allclose(mixed[name], 0.4 * old[name] + 0.1 * new[name], rtol=1e-6)
    assert torch.equal(mixed["bn1.running_mean"], new["bn1.running_mean"])
    kept = shrink_perturb(old, new, 0.4, 0.1, batch_norm="carry")
    assert torch.equal(kept["bn1.running_mean"], old["bn1.running_mean"])
    broken = {**old, "fc1.weight": old["fc1.weight"] * math.nan}
    assert equal(shrink_perturb(broken, new, 0, 1), new)
    with pytest.raises(ValueError, match="'carry' or 'reset', got 'keep'"):
        shrink_perturb(old, new, 1, 0, batch_norm="keep")
    with pytest.raises(ValueError, match="not of one architecture"):
        shrink_perturb(old, models.mlp(5, (9,), 3).state_dict(), 1, 0)


def test_shrink_and_perturb_has_the_stated_mean_and_variance():
    """Over fresh draws: mean lambda theta, variance gamma^2 2 / fan-in; gaussian sigma^2."""
    old = {"weight": torch.full((300, 200), 2.0), "bias": torch.ones(4)}
    layer = nn.Linear(200, 300)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    fresh = {"weight": layer.weight.detach(), "bias": torch.zeros(4)}
    mixed = shrink_perturb(old, fresh, 0.4, 0.1)["weight"].double()
    std = 0.1 * math.sqrt(2 / 200)
    assert_allclose(mixed.mean(), 0.8, atol=5 * std / math.sqrt(60_000))
    assert_allclose(mixed.std(), std, rtol=0.02)
    noisy = shrink_perturb(old, gaussian(old, seed=3), 0.6, 0.01)["weight"].double()
    assert_allclose(noisy.mean(), 1.2, atol=5 * 0.01 / math.sqrt(60_000))
    assert_allclose(noisy.std(), 0.01, rtol=0.02)
    assert equal(gaussian(old, seed=3), gaussian(old, seed=3))


class Tied(nn.Module):
    """Two names for one weight, and a table that is no weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, x):
        return self.second(torch.relu(self.first(x) + self.table))[:, :3]


@pytest.mark.parametrize("noise", ["fresh_init", "gaussian"])
def test_tied_weights_move_once_and_tables_stay(noise, tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        return Tied()

    one, state = run(make_model=tied), tied(4).state_dict()
    two = started(one, Arm("a", 0.5, 0.1, noise), state)
    (end,) = train(two, tmp_path)
    begun = first(end)
    assert torch.equal(begun["first.weight"], begun["second.weight"])
    assert torch.equal(begun["table"], torch.arange(5.0))
    assert not torch.equal(begun["first.weight"], state["first.weight"] * 0.5)


# Rounds -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Two runs with four arms in three rounds, trained in stacks."""
    runs = [run(f"seed-{seed}", seeds=Seeds.all(seed)) for seed in (0, 1)]
    sets = [arrivals(one.data, 16, seed=one.seeds.order) for one in runs]
    arms = [FRESH, WARM, SHRINK_PERTURB, last_layer(["output.*"], runs[0]), regularised(0.1)]
    folder = tmp_path_factory.mktemp("rounds")
    return runs, arms, folder, in_rounds(runs, sets, arms, folder, stack=4), sets


def test_rounds_are_runs_of_their_own_and_the_first_is_shared(rounds):
    runs, arms, folder, ends, sets = rounds
    names = {arm: [[end.name for end in row] for row in own] for arm, own in ends.items()}
    assert names["warm"][0] == ["seed-0/round-0", "seed-1/round-0"] == names["fresh"][0]
    assert names["warm"][2] == ["seed-0/warm/round-2", "seed-1/warm/round-2"]
    assert names["warm-decay=0.1"][0][1] == "seed-1/warm-decay=0.1/round-0"
    assert ends["fresh"][2][0].step == 6  # two epochs of 48 examples
    assert in_rounds(runs, sets, arms, folder) == ends  # finished runs return at once


def test_a_warm_start_is_the_checkpoint_with_batch_norm_reset(rounds):
    before, after = (rounds[3]["warm"][number][1] for number in (1, 2))
    begun, left, new = first(after), last_checkpoint(before).load(), make(seed=0).state_dict()
    for name in begun:
        reset = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        assert torch.equal(begun[name], (new if reset else left)[name])


def test_a_fresh_start_knows_its_seed_and_round_alone(rounds, tmp_path):
    begun = first(rounds[3]["fresh"][2][1])
    assert equal(begun, make(seed=fresh_seed(1, 2)).state_dict())
    other = started(run(seeds=Seeds.all(1)), FRESH, trained(), number=2)
    assert equal(first(train(other, tmp_path)[0]), begun)
    assert fresh_seed(1, 0) == 1
    assert len({fresh_seed(seed, number) for seed in range(9) for number in range(9)}) == 81


def test_a_shrunk_start_has_the_stated_weights(rounds):
    before, after = (rounds[3]["shrink-perturb"][number][0] for number in (0, 1))
    left, new = last_checkpoint(before).load(), make(seed=fresh_seed(0, 1)).state_dict()
    assert equal(first(after), shrink_perturb(left, new, 0.4, 0.1))


def test_in_the_last_layer_arm_nothing_else_moves(rounds):
    before, after = (last_checkpoint(rounds[3]["last-layer"][n][0]).load() for n in (1, 2))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {n for n in moved if "running" not in n and "num_" not in n} == {
        "output.weight",
        "output.bias",
    }
    with pytest.raises(ValueError, match="matches no parameter"):
        last_layer(["head.*"], run())
    with pytest.raises(ValueError, match="nothing would be held"):
        last_layer(["*"], run())


def test_decay_since_the_first_round_changes_it_too(rounds):
    ends = rounds[3]
    decayed = last_checkpoint(ends["warm-decay=0.1"][0][0]).load()
    plain = last_checkpoint(ends["warm"][0][0]).load()
    assert decayed["fc1.weight"].norm() < plain["fc1.weight"].norm()


def test_a_round_can_be_trained_by_itself(rounds, tmp_path):
    runs, _, _, ends, sets = rounds
    before = last_checkpoint(ends["warm"][0][0])
    alone = started(replace(runs[0], name="alone", data=sets[0][1]), WARM, before)
    found = last_checkpoint(train(alone, tmp_path)[0]).load()
    stacked = last_checkpoint(ends["warm"][1][0]).load()
    for name in found:
        assert_allclose(found[name], stacked[name], rtol=2e-3, atol=1e-5)


def test_the_optimiser_can_be_carried_to_the_same_weights_only(tmp_path):
    one = run(keep_optimiser=True)
    arm = Arm("momentum", optimiser="carry", batch_norm="carry")
    ends = in_rounds(one, [[one.data, one.data]], [arm], tmp_path)["momentum"]
    assert ends[1][0].status == "finished"
    with pytest.raises(ValueError, match="cannot be carried to other weights"):
        Arm("no", shrink=0.5, optimiser="carry")
    with pytest.raises(ValueError, match="'fresh_init' or 'gaussian'"):
        Arm("no", noise="uniform")


def test_rounds_refuse_what_is_not_one_sequence_for_each_run(tmp_path):
    with pytest.raises(ValueError, match="one sequence for each of 1 runs"):
        in_rounds(run(), [[data()], [data()]], [WARM], tmp_path)
    with pytest.raises(ValueError, match="names of their own"):
        in_rounds(run(), [[data()]], [WARM, WARM], tmp_path)


def test_a_round_stops_at_its_training_accuracy_or_at_the_cap(tmp_path):
    easy, hard = (run(name, epochs=60, stop=reached(goal)) for name, goal in (("e", 0.6), ("h", 1)))
    hard = replace(hard, epochs=2)
    ends = train([easy, hard], tmp_path)
    assert ends[0].status == "stopped"
    assert ends[0].step < easy.timeline.steps
    assert ends[1].status == "finished"
    assert reached(0.99)({"train_error": 0.01})
    assert not reached(0.99)({"train_error": 0.011})
    assert not reached(0.99)({"train_error": math.nan})
    assert pickle.loads(pickle.dumps(reached(0.9)))({"train_error": 0.1})
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        reached(99)


def test_all_arms_are_trained_on_the_queries_of_the_first(tmp_path):
    runs = [run(f"seed-{seed}", seeds=Seeds.all(seed)) for seed in (0, 1)]
    ends, labelled = queried(runs, [FRESH, WARM], tmp_path, first=16, budget=8, rounds=3)
    for row, (one, order) in enumerate(zip(runs, labelled, strict=True)):
        assert len(order) == 32 == len(set(order.tolist()))
        known = set(order[:16].tolist())
        model = one.build().eval()
        for number in (0, 1):
            state = last_checkpoint(ends["fresh"][number][row]).load()
            outputs = functional_call(model, state, (one.data.inputs,)).softmax(1).amax(1)
            unknown = [i for i in outputs.argsort().tolist() if i not in known]
            asked = order[16 + 8 * number : 24 + 8 * number].tolist()
            assert set(asked) == set(unknown[:8])
            known |= set(asked)
        for number in (1, 2):
            shown = {
                arm: (ends[arm][number][row].folder / "run.json").read_text().split('"data"')[1]
                for arm in ("fresh", "warm")
            }
            hashes = {arm: text.split('"sha256": "')[1][:64] for arm, text in shown.items()}
            assert hashes["fresh"] == hashes["warm"]
    with pytest.raises(ValueError, match="need 64, and there are 48"):
        queried(runs, [FRESH], tmp_path, first=16, budget=24, rounds=3)


# Probes -------------------------------------------------------------------------------------------


def test_without_biases_shrinking_keeps_every_answer():
    model = nn.Sequential(
        nn.Linear(5, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)
    ).double()
    shown = replace(data(), inputs=data().inputs.double())
    assert_allclose(prediction_agreement(model, model.state_dict(), [1, 0.5, 0.1], shown), 1)
    biased = nn.Linear(5, 3).double()
    state = {**biased.state_dict(), "bias": torch.tensor([5.0, 0, 0]).double()}
    found = prediction_agreement(biased, state, [1.0, 0.5], shown)
    answers = [
        (shown.inputs @ state["weight"].T * f + f * state["bias"]).argmax(1) for f in (1, 0.5)
    ]
    assert_allclose(found, [1, (answers[0] == answers[1]).double().mean()])


def test_gradient_norms_are_those_of_the_batches():
    model = nn.Linear(5, 3).double()
    shown = replace(data(40), inputs=data(40).inputs.double())
    (found,) = gradient_norms(model, model.state_dict(), {"new": shown}).values()
    norms = []
    for inputs, targets in shown:
        wrong = (model(inputs).softmax(1) - F.one_hot(targets, 3)) / len(inputs)
        norms.append(((wrong.T @ inputs).square().sum() + wrong.sum(0).square().sum()).sqrt())
    assert_allclose(found, torch.stack(norms).mean().item(), rtol=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


# Children -----------------------------------------------------------------------------------------


def test_children_differ_in_the_named_chance_alone_and_are_found_in_their_folders(tmp_path):
    parent = run(
        "seed-3",
        keep_optimiser=True,
        checkpoints=(At([2]),),
        augmentations=(During(Noise()),),
    )
    train(parent, tmp_path)
    for vary in ("order", "augmentation", "both"):
        made = children(parent, 2, tmp_path, seeds=(3, 4, 5), vary=vary)
        train(made, tmp_path)
        own = last_checkpoint(train(parent, tmp_path)[0]).load()
        states = [checkpoints(tmp_path / child.name)[-1].load() for child in made]
        for name in own:  # the parent's own seed repeats it
            assert_allclose(states[0][name], own[name], rtol=2e-4, atol=2e-6)
        assert not torch.allclose(states[1]["fc1.weight"], states[2]["fc1.weight"])
        seeds = made[1].seeds
        assert (seeds.order == 4) == (vary != "augmentation")
        assert (seeds.augmentation == 4) == (vary != "order")
    found = children_of(tmp_path)
    assert len(found) == 9
    assert {(child.step, child.trunk) for child in found} == {(2, "seed-3")}
    assert {child.run for child in found} >= {"order-3", "augmentation-4", "both-5"}


class Noise:
    """Noise on the inputs."""

    def __repr__(self):
        return "Noise()"

    def draw(self, generator, num):
        return torch.randn(num, 5, generator=generator)

    def apply(self, inputs, targets, draws):
        return inputs + 0.3 * draws, targets


def test_children_refuse_steps_without_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at step 1"):
        children(run(keep_optimiser=True), 1, tmp_path)
    with pytest.raises(ValueError, match="does not keep its optimiser"):
        children(run(), 3, tmp_path)
    with pytest.raises(ValueError, match="vary must be one of"):
        children(run(), 3, tmp_path, vary="seed")
    assert [c.name for c in children(run(), 0, tmp_path)] == ["a/k=0/order-1", "a/k=0/order-2"]


# Transfer -----------------------------------------------------------------------------------------


def test_a_new_head_is_initialised_and_the_backbone_is_that_of_the_checkpoint(tmp_path):
    other = models.mlp(5, (8, 6), 7, batch_norm=True, seed=9).state_dict()
    one = fine_tuned(run(), other, head=["output.*"])
    begun = first(train(one, tmp_path)[0])
    fresh = make(seed=3).state_dict()
    for name in begun:
        assert torch.equal(begun[name], (fresh if name.startswith("output") else other)[name])
    held = train(fine_tuned(run("b"), other, head=["output.*"], frozen=True), tmp_path)[0]
    state = last_checkpoint(held).load()
    assert all(torch.equal(state[n], other[n]) for n in ("fc1.weight", "bn2.bias", "fc2.bias"))
    assert not torch.equal(state["output.weight"], fresh["output.weight"])
    with pytest.raises(ValueError, match="does not fit at output.weight, output.bias"):
        new_head(other, fresh, ["fc1.*"])
    with pytest.raises(ValueError, match="'head.*' of the head matches none"):
        new_head(other, fresh, ["head.*"])


def test_of_a_prefix_of_depth_d_the_first_d_layers_are_the_others_and_stay(tmp_path):
    other, fresh = trained(), make(seed=3).state_dict()
    assert layers(make()) == ["fc1", "bn1", "fc2", "bn2", "output"]
    depths = (0, 2, 5)
    frozen = train([transferred(run(str(d)), other, d) for d in depths], tmp_path, stack=1)
    plain = train(run("plain"), tmp_path)[0]
    assert equal(last_checkpoint(frozen[0]).load(), last_checkpoint(plain).load())
    for depth, end in zip(depths[1:], frozen[1:], strict=True):
        begun, state = first(end), last_checkpoint(end).load()
        for name in begun:
            ours = layers(make()).index(name.partition(".")[0]) < depth
            assert torch.equal(begun[name], (other if ours else fresh)[name])
            if "running" not in name and "num_" not in name:
                assert torch.equal(state[name], begun[name]) == ours
    tuned = train(transferred(run("tuned"), other, 2, frozen=False), tmp_path)[0]
    assert not torch.equal(last_checkpoint(tuned).load()["fc1.weight"], other["fc1.weight"])
    with pytest.raises(ValueError, match="depth must be 0 to 5"):
        transferred(run(), other, 6)


def test_a_fixed_classifier_is_bit_identical(tmp_path):
    one = fixed(run(weight_decay=0.1), ["output.*"])
    state = last_checkpoint(train(one, tmp_path)[0]).load()
    assert torch.equal(state["output.weight"], make(seed=3).state_dict()["output.weight"])
    assert not torch.equal(state["fc1.weight"], make(seed=3).state_dict()["fc1.weight"])


# Gates of the literature at small scale -----------------------------------------------------------


def digits(seed=0, num=900):
    """Of the digits, 900 that a seed draws to train on, and the rest to test."""
    train_set, test_set = datasets.load(), datasets.load(split="test")
    inputs = torch.cat([train_set.inputs, test_set.inputs])
    targets = torch.cat([train_set.targets, test_set.targets])
    transform = train_set.transform
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    return [
        Batches(transform(inputs[own]), targets[own], batch_size=32)
        for own in (order[:num], order[num:])
    ]


def mlp_run(data, test, seed, **changes):
    settings = {
        "name": f"seed-{seed}",
        "make_model": partial(models.mlp, 64, (128, 128), 10),
        "epochs": 60,
        "batch_size": 32,
        "lr": 0.05,
        "seeds": Seeds.all(seed),
        "checkpoints": (),
        "test_every": 60,
    }
    return Run(data=data, test=test, **settings | changes)


@pytest.mark.slow
def test_a1_new_examples_pull_much_harder_until_the_weights_shrink(tmp_path):
    """Section A, A1: ratios of gradient norms, and answers that shrinking keeps."""
    whole, _ = digits()
    halves = [whole.subset(range(450)), whole.subset(range(450, 900))]
    runs = [mlp_run(halves[0], None, seed) for seed in range(10)]
    ratios, agreements = [], []
    for one, end in zip(runs, train(runs, tmp_path), strict=True):
        model, state = one.build(), last_checkpoint(end).load()
        fresh = replace(one, seeds=Seeds.all(fresh_seed(one.seeds.init, 1))).build().state_dict()
        pair = []
        for begun in (state, shrink_perturb(state, fresh, 0.5, 0.1)):
            norms = gradient_norms(model, begun, {"old": halves[0], "new": halves[1]})
            pair.append(norms["new"] / norms["old"])
        ratios.append(pair)
        agreements.append(prediction_agreement(model, state, [0.5], halves[0])[0])
    warm, shrunk = np.mean(ratios, axis=0)
    assert warm >= 50
    assert shrunk <= 1.5
    assert np.mean(agreements) >= 0.99


@pytest.mark.slow
def test_a2_memorised_noise_hurts_a_warm_start_and_shrinking_mends_it(tmp_path):
    """Section A, A2: half the labels of the first phase are random."""
    runs, sets = [], []
    for seed in range(10):
        whole, test = digits(seed)
        chance = torch.Generator().manual_seed(seed)
        random = torch.randint(0, 10, whole.targets.shape, generator=chance)
        some = torch.rand(whole.num_examples, generator=chance) < 0.5
        noisy = replace(whole, targets=torch.where(some, random, whole.targets))
        runs.append(mlp_run(whole, test, seed))
        sets.append([noisy, whole])
    ends = in_rounds(runs, sets, [FRESH, WARM, SHRINK_PERTURB], tmp_path)
    names = {arm: [end.name for end in own[1]] for arm, own in ends.items()}
    gap = generalisation_gap(names["fresh"], names["warm"], tmp_path)
    assert gap["num_pairs"] == 10
    assert gap["mean_gap"] >= 0.005
    assert gap["p_value"] < 0.01
    mended = generalisation_gap(names["fresh"], names["shrink-perturb"], tmp_path)
    assert abs(mended["mean_gap"]) <= 0.004


@pytest.mark.slow
def test_a_convex_model_does_not_mind_where_it_starts(tmp_path):
    """Row 12: logistic regression, half of the data first; the gap stays below half a point."""
    whole, test = digits()
    make_linear = partial(models.mlp, 64, (), 10)
    runs = [mlp_run(whole, test, s, make_model=make_linear, momentum=0.0) for s in range(4)]
    sets = [subsets(whole, [450, 900], seed=seed) for seed in range(4)]
    ends = in_rounds(runs, sets, [FRESH, WARM], tmp_path)
    names = {arm: [end.name for end in own[1]] for arm, own in ends.items()}
    gap = generalisation_gap(names["fresh"], names["warm"], tmp_path, train_accuracy=0.9)
    assert gap["num_pairs"] == 4
    assert abs(gap["mean_gap"]) < 0.005
