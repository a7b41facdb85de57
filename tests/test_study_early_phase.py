"""Verdicts of the early phase on made-up results, and what its runs see and cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose

from early_phase import (
    CORRELATED,
    MASKS,
    PERTURBED,
    RESNET,
    SCALES,
    TASKS,
    Ticket,
    correlation,
    dense,
    judge,
    other_task,
    planned_epochs,
)
from landscape import datasets
from landscape.experiments.deficits import Blur

SEEDS = 6
CHANGE = {
    "shuffled-layer": -1.0, "shuffled-layer-signs-kept": -0.1, "noise-0.5": -0.2, "noise-2": -1.0,
    "noise-3": -3.0, "reinitialised": -4.0,
}  # fmt: skip


def made(change=None, network="deep", setting="deep, k = 50", **values):
    """Results whose accuracies differ from that of step k by `change` points in the mean."""
    chance = np.random.default_rng(0)

    def accuracies(means):
        spread = 0.02 * chance.standard_normal((*np.shape(means), SEEDS))
        return 0.95 + (np.asarray(means)[..., None] + spread) / 100

    change = CHANGE | (change or {})
    means = [change.get(arm, 0.0) for arm in PERTURBED]
    std = np.array([abs(mean) for mean in means])
    step = np.array([0, 1, 10, 100])
    telemetry = {
        "gradient_norm": [4.0, 3.0, 1.0, 0.5], "sign_flips": [0.0, 0.01, 0.03, 0.09],
        "distance_initial": [0.0, 1.0, 2.0, 3.0], "distance_final": [3.0, 2.0, 1.0, 0.0],
    } | values  # fmt: skip
    seeds = {"seed": range(SEEDS)}
    about = {"top": 10, "epochs": 20}
    along = ("network", "seed", "step")
    return {
        "telemetry": xr.Dataset(
            {
                name: (along, np.tile(curve, (1, SEEDS, 1)))
                for name, curve in telemetry.items()
            },
            {"network": [network], "step": step, **seeds}, about,
        ),
        "subspace": xr.Dataset(
            {
                "gradient_share": (along, np.full((1, SEEDS, 4), 0.7)),
                "of_random_directions": ("network", [1e-3]),
            },
            {"network": [network], "step": step, **seeds}, about,
        ),
        "perturbations": xr.Dataset(
            {
                "accuracy": (("setting", "arm", "seed"), accuracies(means)[None]),
                "effective_std": (("setting", "arm", "seed"), np.tile(std[:, None], (1, 1, SEEDS))),
                "dense_accuracy": (("setting", "seed"), accuracies(0.2)[None]),
            },
            {"setting": [setting], "arm": list(PERTURBED), **seeds}, about,
        ),
        "pretraining": xr.Dataset(
            {
                "accuracy": (
                    ("setting", "task", "epochs", "seed"),
                    accuracies([[[9.0, change.get(task, 0.0)] for task in TASKS]]),
                )
            },
            {"setting": [setting], "task": list(TASKS), "epochs": [5, 20], **seeds}, about,
        ),
        "sparse-pretraining": xr.Dataset(
            {
                "accuracy": (
                    ("mask", "before", "setting", "seed"),
                    accuracies([[[-1.0], [-1.0 + 2 * (mask == "pruned")]] for mask in MASKS]),
                )
            },
            {"mask": list(MASKS), "before": ["none", "rotation"], "setting": [setting], **seeds},
            about,
        ),
    }  # fmt: skip


def verdicts(results):
    return {(one.criterion, one.quantity[:12]): one.verdict for one in judge(results)}


def verdict(results, criterion):
    (found,) = {one.verdict for one in judge(results) if one.criterion == criterion}
    return found


def test_what_meets_all_criteria_shows():
    claims = judge(made())
    assert {one.verdict for one in claims} == {"shows", "null, as expected", "reported"}
    assert {one.criterion for one in claims if one.verdict == "shows"} == {
        "F2 telemetry", "F2 shuffled-layer", "F2 shuffled-layer-signs-kept", "F2 noise-3",
        "F2 reinitialised", "F2 effective std",
    }  # fmt: skip
    assert {one.num_seeds for one in claims} == {SEEDS}
    by_name = {one.criterion: one for one in claims}
    assert_allclose(by_name["F2 noise-3"].mean, -3, atol=0.05)
    assert_allclose(by_name["F2 sparse pruned"].mean, 2, atol=0.05)
    assert_allclose(by_name["F2 sparse random"].mean, 0, atol=0.05)
    assert_allclose(by_name["F2 dense"].mean, -0.2, atol=0.05)


@pytest.mark.parametrize(
    ("criterion", "change"),
    [
        ("F2 shuffled-layer", {"shuffled-layer": -0.3}),
        ("F2 shuffled-layer-signs-kept", {"shuffled-layer-signs-kept": -0.8}),
        ("F2 noise-3", {"noise-3": -1.2}),
        ("F2 noise-3", {"noise-2": -0.1}),  # not in order
        ("F2 reinitialised", {"reinitialised": -1.0}),
    ],
)
def test_what_misses_a_criterion_does_not_show(criterion, change):
    assert verdict(made(change=change), criterion) == "does not show"


def test_nulls_are_two_sided_and_noise_counts_in_the_deep_network_alone():
    assert verdict(made(change={"rotation": 0.8}), "F2 rotation") == "not null"
    assert verdict(made(change={"blur": -0.8}), "F2 blur") == "not null"
    shallow = made(network="shallow", setting="shallow, k = 50", change={"noise-3": -0.1})
    assert verdict(shallow, "F1 noise-3") == "reported"


@pytest.mark.parametrize(
    ("values", "quantity"),
    [
        ({"sign_flips": [0.0, 0.1, 0.2, 0.3]}, "signs flippe"),
        ({"sign_flips": [0.0, 0.0, 0.005, 0.3]}, "signs flippe"),
        ({"distance_initial": [0.0, 2.0, 1.9, 3.0]}, "least change"),
        ({"distance_final": [3.0, 3.1, 1.0, 0.0]}, "largest chan"),
        ({"gradient_norm": [4.0, 3.0, 2.1, 0.5]}, "gradient nor"),
    ],
)
def test_each_of_the_signs_of_the_first_steps_can_be_missed(values, quantity):
    found = {q: v for (name, q), v in verdicts(made(**values)).items() if "telemetry" in name}
    assert [q for q, v in found.items() if v == "does not show"] == [quantity]


def test_at_full_scale_signs_must_not_suffice_and_wrong_labels_must_not_help():
    setting = {"network": "resnet20", "setting": "resnet20, k = 500"}
    small_like = made(**setting)
    name = "F k = 500 shuffled-layer-signs-kept"
    assert verdict(small_like, name) == "does not show"
    assert verdict(made(**setting, change={"shuffled-layer-signs-kept": -1.5}), name) == "shows"
    labels = {"initial": -2.0, "random labels": -3.0}
    assert verdict(made(**setting, change=labels), "F k = 500 random labels") == "shows"
    labels["random labels"] = -1.0
    assert verdict(made(**setting, change=labels), "F k = 500 random labels") == "does not show"
    assert verdict(made(**setting, change={"rotation": -0.8}), "F k = 500 rotation") == "shows"
    assert verdict(made(**setting, change={"noise-3": 5.0}), "F k = 500 noise-3") == "reported"
    assert verdict(small_like, "F resnet20 telemetry") == "reported"


def test_the_correlation_is_over_thirteen_arms():
    found = made()["perturbations"].isel(setting=0)
    assert len(CORRELATED) == 13
    assert correlation(found).mean < -0.99  # accuracies fall in proportion
    spoilt = found.copy(deep=True)
    spoilt["effective_std"].loc[{"arm": "fresh"}] = 100.0
    assert correlation(spoilt) == correlation(found)


def run_of_resnet():
    images = datasets.load("synthetic:num_examples=200")
    scale, network = replace(SCALES["full"], watched=50), replace(RESNET, steps=(5,))
    run = dense(scale, network, 3, (images, images))
    return run, Ticket("resnet20, k = 5", network, run, run, {})


def test_blurred_rotations_are_turns_of_blurred_images_and_those_of_sharp_ones():
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(40, dtype=torch.long)
    run, one = run_of_resnet()
    seen = {}
    for task in ("rotation", "blurred rotation"):
        found = images, targets
        for view in other_task(one, run, task, 2, 8).views:
            found = view.what(*found)
        seen[task] = found
    blurred, _ = Blur(size=8)(images, targets)
    turned, turns = seen["blurred rotation"]
    assert torch.equal(turns, seen["rotation"][1])
    assert set(turns.tolist()) == {0, 1, 2, 3}
    for image, before, number in zip(turned, blurred, turns.tolist(), strict=True):
        assert torch.equal(torch.rot90(image, -number, (-2, -1)), before)


def test_flips_would_change_the_labels_of_turns_and_are_left_out():
    run, one = run_of_resnet()
    for task in TASKS:
        own = other_task(one, run, task, 2, 8)
        kinds = [type(each.what).__name__ for each in own.augmentations]
        assert kinds == (["Shift"] if "rotation" in task else ["Shift", "Flip"])
        assert own.name == f"resnet20/seed-3/{task}-2".replace(" ", "-")
        assert (own.epochs, own.lr, own.seeds, own.test) == (2, 0.1, run.seeds, None)


def test_the_planned_epochs_are_those_of_all_runs():
    network = replace(RESNET, steps=(500, 2000), levels=8, epochs=160)
    scale = replace(SCALES["full"], networks=(network,), pretrained=(2, 10, 40))
    one_seed = 160 * (1 + 2 * 8 + 2 * 13 + 4 * 3 + 3 + 1) + 4 * 52 + 3 * 40
    assert planned_epochs(scale, 3) == 3 * one_seed
