"""The verdicts of the study of lottery tickets on made-up results, and what its full scale is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose
from scipy import stats

from landscape.datasets import Batches
from landscape.experiments import comparisons
from landscape.experiments.branches import children
from landscape.experiments.masks import full_mask, shuffled_mask
from landscape.experiments.pruning import rewound, smaller_dense
from landscape.experiments.records import read_record
from lottery_tickets import (
    IMP,
    NEW,
    RANDOM,
    SMALLER,
    accuracies,
    judge,
    on_digits,
    on_images,
    parted,
    pruned,
    run_of,
)
from shared import Settings

SEEDS = np.arange(6)
SPREAD = np.array([-0.3, 0.1, 0.2, -0.25, 0.35, -0.1])  # of seeds, in points
ARMS = {IMP: "", RANDOM: "/random-layer-1", NEW: "/reinitialised-1", SMALLER: "/smaller"}


def unstable(title, barriers):
    """An instability whose means over seeds are these, in points, by step."""
    noise = np.stack([np.roll(SPREAD, shift) for shift in range(len(barriers))], axis=1)
    values = (np.array(list(barriers.values())) + noise / 10) / 100
    both = np.stack([np.zeros_like(values), values], axis=1)
    return xr.Dataset(
        {"barrier": (("seed", "split", "step"), both)},
        {"seed": SEEDS, "split": ["train", "test"], "step": list(barriers)},
        {"title": title, "late": max(barriers)},
    )


def sparse(accuracies, distances, steps=(0, 50)):
    """Tickets with three levels: accuracies in points (arm, step, level), distances (arm, step)."""
    chains = [(arm, number) for arm in ARMS for number in range(2)]
    errors = np.full((len(SEEDS), len(chains), 3), np.nan)
    apart = np.full_like(errors, np.nan)
    for place, (arm, number) in enumerate(chains):
        shift = list(ARMS).index(arm)
        noise = np.array([np.roll(SPREAD, shift * (2 * number + j)) for j in range(3)])
        errors[:, place] = 1 - (np.array(accuracies[arm][number])[:, None] + noise).T / 100
        if arm in distances:
            spread = (1 + shift) * np.roll(SPREAD, number) / 10
            apart[:, place, 1] = distances[arm][number] * np.exp(spread - spread.mean())
    dims = ("run", "chain", "level")
    density = np.broadcast_to([1, 0.044, 0.018], errors.shape)
    return xr.Dataset(
        {
            "test_error": (dims, errors),
            "density": (dims, density),
            "order_distance": (dims, apart),
            "pruning_distance": (dims, 0.8 * apart),
        },
        {
            "run": [f"seed-{seed}" for seed in SEEDS],
            "chain": [f"k={steps[number]}{ARMS[arm]}" for arm, number in chains],
            "level": [0, 1, 2],
            "step": ("chain", [float(steps[number]) for _, number in chains]),
            "of": ("chain", [f"k={steps[number]}" for _, number in chains]),
            "kind": ("chain", [""] * len(chains)),
            "control": ("chain", [arm for arm, _ in chains]),
        },
        {"parted": 1},
    )


def on_small_scale(barriers, anew, even, early, **tickets):
    return {
        "instability_deep": unstable("Deep", barriers),
        "instability_deep_anew": unstable("Deep", anew),
        "instability_deep_even": unstable("Deep, even batches", even),
        "instability_lenet": unstable("LeNet-like", early),
        "tickets": sparse(**tickets),
    }


GOOD = {
    "accuracies": {
        IMP: [[97, 96.3, 95.5], [97, 96.5, 96]],
        RANDOM: [[np.nan, 93, 85], [np.nan, 93, 86]],
        NEW: [[np.nan, 95, 92], [np.nan, 95, 92]],
        SMALLER: [[np.nan, 95, 93], [np.nan, np.nan, np.nan]],
    },
    "distances": {IMP: [2.0, 1.5], RANDOM: [6.0, 6.0]},
}
BAD = {
    "accuracies": {
        IMP: [[97, 94, 88], [97, 96, 90]],
        RANDOM: [[np.nan, 93, 87], [np.nan, 93, 87]],
        NEW: [[np.nan, 94, 87.5], [np.nan, 95, 90.5]],
        SMALLER: [[np.nan, 95, 93], [np.nan, np.nan, np.nan]],
    },
    "distances": {IMP: [2.0, 2.0], RANDOM: [2.2, 2.2]},
}


def verdicts(results):
    return [(one.criterion, round(one.mean, 3), one.verdict) for one in judge(results)]


def test_what_the_paper_found_shows():
    found = verdicts(
        on_small_scale(
            {0: 5.8, 15: 4.4, 400: 0.1}, {15: 4.0, 400: 0.9}, {0: 1.1, 400: 0.3}, {0: 0.2}, **GOOD
        )
    )
    assert found == [
        ("E1", 5.8, "shows"),
        ("E1", 0.1, "shows"),
        ("E1", 5.7, "shows"),
        ("E1 control", 0.9, "reported"),
        ("E1 control", 1.1, "reported"),
        ("E1 control", 0.8, "reported"),
        ("E1b", 0.2, "shows"),
        ("E2", 10.5, "shows"),
        ("E2", 3.5, "shows"),
        ("E2", 10.0, "shows"),
        ("E2", 4.0, "shows"),
        ("E2", 0.2, "null, as expected"),
        ("E2", -0.7, "reported"),
        ("E2", 3.3, "reported"),
        ("E2", 2.5, "reported"),
        *[("E2", of, "shows") for of in (3.0, 4.0, 3.0, 4.0)],
        ("E2", -0.4, "reported"),
    ]


def test_what_does_not_hold_does_not_show():
    found = verdicts(
        on_small_scale({0: 1.0, 400: 0.9}, {15: 1.0, 400: 0.9}, {0: 1.0, 400: 0.9}, {0: 1.2}, **BAD)
    )
    assert [one for *_, one in found] == [
        *["does not show"] * 2, "shows", *["reported"] * 3, *["does not show"] * 5,
        "not null", *["reported"] * 3, *["does not show"] * 4, "reported",
    ]  # fmt: skip


def test_the_full_scale_has_its_own_criteria():
    tickets = sparse(**BAD, steps=(0, 2000))
    barriers = {0: 80.0, 500: 20.0, 2000: 3.0, 5000: 1.0}
    found = {
        "instability_resnet": unstable("ResNet-20", barriers).assign_attrs(late=2000),
        "instability_resnet_anew": unstable("ResNet-20", {500: 9.0, 2000: 4.0}),
        "tickets": tickets,
    }
    assert verdicts(found) == [
        ("E.6", 80, "shows"),
        ("E.6", 3, "shows"),
        ("E1 control", 4, "reported"),
        ("E.6", 2, "shows"),
        ("E.6", 1, "null, as expected"),
        *[("E2", 1.1, "reported")] * 4,
        ("E2", 0, "reported"),
    ]


def test_the_report_has_what_each_run_came_to(tmp_path):
    """Smaller dense networks stand beside each step, and two copies of sparse networks part."""
    settings = Settings("lottery_tickets", "tiny", root=tmp_path, progress=False)
    scale = on_digits(
        epochs=(1, 2), num=200, steps=(0, 1, 2), rewound=2, levels=2, controlled=(2,), parted=1
    )
    found = pruned(settings, scale)
    for seed in (1, 2):
        folder = settings.runs_folder / f"tickets/seed-{seed}"
        own = accuracies(found).sel(run=f"seed-{seed}")
        for path, place in (
            ("level-00", (IMP, 0, 0)),
            ("level-00", (NEW, 2, 0)),
            ("k=2/level-01", (IMP, 2, 1)),
            ("k=0/random-layer-1/level-02", (RANDOM, 0, 2)),
            ("k=0/smaller/of-level-02", (SMALLER, 0, 2)),
            ("k=0/smaller/of-level-02", (SMALLER, 2, 2)),
        ):
            ended = 100 * (1 - read_record(folder / path)["test_error"][-1])
            assert_allclose(own.sel(control=place[0], step=place[1], level=place[2]), ended)
    there = found["barrier"].notnull().all("run")
    assert there.sum() == 2  # the random mask is at level 2 only
    assert there.sel(chain=["k=0", "k=2"], level=1).all()
    assert (found["barrier"].notnull() == found["order_distance"].notnull()).all()


def test_the_full_scale_is_that_of_the_paper():
    """Without the data: 391 steps an epoch, milestones and steps to part within, and sizes."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(50_000, -1, -1, -1)
    targets = torch.arange(50_000) % 10
    scale = on_images(Batches(images, targets), Batches(images[:100], targets[:100]))
    (network,) = scale.dense.values()
    run = run_of(network, "resnet", 1)
    assert run.timeline.steps == 62_560
    assert run.last_batch == "smaller"  # of 80 examples
    rates = [run.lr(run.lr_clock(step)) for step in (0, 31_999, 32_000, 48_000, 62_559)]
    assert_allclose(rates, [0.1, 0.1, 0.01, 0.001, 0.001])
    for step in network.steps:
        first, _ = children(run, step, "nowhere", vary="both")
        assert first.lr_clock(first.first_step).step == step
    dense = 3 * (1 + 3 * (8 + 1))
    pruning = 3 * (1 + 3 * (8 + 2 + 4) + 1)
    assert scale.epochs == 160 * (dense + pruning)
    mask = shuffled_mask(full_mask(run.build()), seed=1)
    small = {name: one & (torch.arange(one.numel()).reshape(one.shape) % 6 == 0)
             for name, one in mask.items()}  # fmt: skip
    level = rewound(replace(run, name="resnet/k=0/level-08"), small, run.build().state_dict(), 0)
    fitted = smaller_dense(level, tolerance=0.2, **scale.sizes)
    assert 0.8 < comparisons.num_parameters(fitted) / (comparisons.num_parameters(run) / 6) < 1.2


@pytest.mark.slow
def test_e1_instability_falls_while_a_deep_network_trains(tmp_path):
    """E1 and row 74 on other seeds than those of the published figures."""
    settings = Settings("lottery_tickets", first_seed=501, root=tmp_path, progress=False)
    network = replace(on_digits().dense["deep"], steps=(0, 400))
    found = parted(settings, network, "deep", anew=False, late=400)
    first, last = 100 * found["barrier"].sel(split="test").transpose("step", "seed").values
    assert len(first) == 12
    assert first.mean() >= 2
    assert last.mean() <= 0.5
    assert stats.ttest_rel(first, last, alternative="greater").pvalue < 0.01
