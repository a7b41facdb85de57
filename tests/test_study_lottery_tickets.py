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
from lottery_tickets import (
    ARMS,
    Remainder,
    judge,
    on_digits,
    on_images,
    parted,
    ratio,
    run_of,
)
from shared import Settings

SEEDS = np.arange(6)
SPREAD = np.array([-0.3, 0.1, 0.2, -0.25, 0.35, -0.1])  # of seeds, in points
WIDER = np.exp(SPREAD / 10).mean()  # of what is spread by its logarithm


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


def pruned(accuracies, distances, steps=(0, 50)):
    """Tickets with three levels: accuracies in points (arm, step, level), distances (arm, step)."""
    axes = {"arm": list(ARMS), "step": list(steps), "level": [0, 1, 2], "seed": SEEDS}
    values = np.full([len(one) for one in axes.values()], np.nan)
    apart = np.full([len(one) for name, one in axes.items() if name != "level"], np.nan)
    for shift, (arm, own) in enumerate(accuracies.items()):
        noise = np.array([[np.roll(SPREAD, shift * (2 * i + j)) for j in range(3)] for i in (0, 1)])
        values[list(ARMS).index(arm)] = (np.array(own)[..., None] + noise) / 100
    for power, (arm, own) in enumerate(distances.items(), start=1):
        noise = np.stack([np.roll(SPREAD, shift) for shift in range(len(steps))]) / 10
        apart[list(ARMS).index(arm)] = np.array(own)[:, None] * np.exp(power * noise)
    dims = ("arm", "step", "seed")
    return xr.Dataset(
        {
            "accuracy": (tuple(axes), values),
            "order_distance": (dims, apart),
            "pruning_distance": (dims, 0.8 * apart),
        },
        {**axes, "density": ("level", [1, 0.044, 0.018])},
        {"parted": 1},
    )


def on_small_scale(barriers, anew, even, early, **tickets):
    return {
        "instability_deep": unstable("Deep", barriers),
        "instability_deep_anew": unstable("Deep", anew),
        "instability_deep_even": unstable("Deep, even batches", even),
        "instability_lenet": unstable("LeNet-like", early),
        "tickets": pruned(**tickets),
    }


GOOD = {
    "accuracies": {
        "magnitude": [[97, 96.3, 95.5], [97, 96.5, 96]],
        "random": [[np.nan, 93, 85], [np.nan, 93, 86]],
        "reinitialised": [[np.nan, 95, 92], [np.nan, 95, 92]],
        "smaller": [[np.nan, 95, 93], [np.nan, np.nan, np.nan]],
    },
    "distances": {"magnitude": [2.0, 1.5], "random": [6.0, 6.0]},
}
BAD = {
    "accuracies": {
        "magnitude": [[97, 94, 88], [97, 96, 90]],
        "random": [[np.nan, 93, 87], [np.nan, 93, 87]],
        "reinitialised": [[np.nan, 94, 87.5], [np.nan, 95, 90.5]],
        "smaller": [[np.nan, 95, 93], [np.nan, np.nan, np.nan]],
    },
    "distances": {"magnitude": [2.0, 2.0], "random": [2.2, 2.2]},
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
        *[("E2", round(of * WIDER, 3), "shows") for of in (3.0, 4.0, 3.0, 4.0)],
        ("E2", round(-0.4 * WIDER, 3), "reported"),
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
    tickets = pruned(**BAD, steps=(0, 2000))
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
        *[("E2", round(1.1 * WIDER, 3), "reported")] * 4,
        ("E2", 0, "reported"),
    ]


def test_a_ratio_is_compared_with_one():
    over, under = (xr.DataArray(one) for one in ([3.0, 4.0, 6.0], [1.0, 2.0, 2.0]))
    found = ratio(over, under)
    assert_allclose(found.mean, (3 + 2 + 3) / 3)
    assert_allclose(found.p, stats.ttest_1samp(np.log([3, 2, 3]), 0).pvalue)


def test_the_last_batch_of_an_epoch_averages_what_is_left_over():
    """900 examples are 15 batches of 60; batches of 64 leave 4, each of them shown 15 times."""
    draws = Remainder(64).draw(torch.Generator(), 900)
    images = torch.arange(900.0).reshape(1, 15, 60)
    found = [
        Remainder(64).apply(images[:, i], images[:, i].long(), draws[None, 60 * i : 60 * (i + 1)])
        for i in range(15)
    ]
    for i, (inputs, targets) in enumerate(found):
        assert torch.equal(inputs.long(), targets)
        assert i == 14 or torch.equal(inputs, images[:, i])
    assert_allclose(found[-1][0].mean(), np.mean([840, 841, 842, 843]))
    assert found[-1][0].unique(return_counts=True)[1].tolist() == [15] * 4
    whole = Remainder(64).draw(torch.Generator(), 640)
    assert not (whole[:-64] + 1).any()
    assert whole[-64:].tolist() == list(range(64))


def test_the_full_scale_is_that_of_the_paper():
    """Without the data: 391 steps an epoch, milestones and steps to part within, and sizes."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(50_000, -1, -1, -1)
    targets = torch.arange(50_000) % 10
    scale = on_images(Batches(images, targets), Batches(images[:100], targets[:100]))
    (network,) = scale.dense.values()
    run = run_of(network, "resnet", 1)
    assert run.timeline.steps == 62_560
    rates = [run.lr(run.lr_clock(step)) for step in (0, 31_999, 32_000, 48_000, 62_559)]
    assert_allclose(rates, [0.1, 0.1, 0.01, 0.001, 0.001])
    for step in network.steps:
        first, _ = children(run, step, "nowhere", vary="both")
        assert first.lr_clock(first.first_step).step == step
    dense = 3 * (1 + 3 * (8 + 1))
    sparse = 3 * (1 + 3 * (8 + 2 + 2) + 1)
    assert scale.epochs == 160 * (dense + sparse)
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
