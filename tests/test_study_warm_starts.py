"""The study of warm starts: its data, its gaps, and its verdicts on made-up results."""

import json
import math
from types import MappingProxyType

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose

import warm_starts
from landscape import datasets, plots
from landscape.datasets import Batches
from shared import Settings
from warm_starts import gap, judge, mixed, pattern_cnn, patterns, runs_of, two_thirds

SEEDS = np.arange(6)
CHANGES = MappingProxyType({seed: 0.1 * (seed - 2.5) for seed in SEEDS.tolist()})  # mean 0


# Data and networks --------------------------------------------------------------------------------


def test_each_image_hides_the_pattern_of_its_class_in_unit_noise():
    signs = torch.randn(10, 4, 4, generator=torch.Generator().manual_seed(3)).sign()
    for seed in (1, 101):
        chance = torch.Generator().manual_seed(seed)
        targets = torch.randint(10, (300,), generator=chance)
        noise = torch.randn(300, 1, 8, 8, generator=chance)
        parts = patterns(seed, 200, 100)
        hidden = torch.cat([part.inputs for part in parts]) - noise
        assert torch.equal(torch.cat([part.targets for part in parts]), targets)
        assert [part.num_examples for part in parts] == [200, 100]
        corners = set()
        for image, target in zip(hidden[:, 0], targets, strict=True):
            rows, columns = torch.nonzero(image.abs() > 0.7, as_tuple=True)
            row, column = rows.min(), columns.min()
            expected = torch.zeros(8, 8)
            expected[row : row + 4, column : column + 4] = 1.4 * signs[target]
            assert_allclose(image, expected, atol=1e-5)
            corners.add((row.item(), column.item()))
        assert len(corners) == 25


def test_the_network_of_the_patterns_is_that_of_its_seed():
    before = torch.get_rng_state()
    a, b, other = (pattern_cnn(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(a[0].weight, other[0].weight)
    weights = 9 * (1 * 16 + 16 * 32 + 32 * 32) + 2 * (16 + 32 + 32) + 32 * 10 + 10
    assert sum(parameter.numel() for parameter in a.parameters()) == weights
    assert a[:9](torch.zeros(2, 1, 8, 8)).shape == (2, 32, 4, 4)


def test_two_thirds_and_the_rest_are_all_images_scaled_to_one():
    inputs = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 2, 2)
    train, test = two_thirds(Batches(inputs, torch.arange(256)), seed=4)
    assert train.num_examples == 170
    assert sorted([*train.targets.tolist(), *test.targets.tolist()]) == list(range(256))
    for part in (train, test):
        for shown, targets in part:
            assert_allclose(shown[:, 0, 0, 0], targets / 127.5 - 1, atol=1e-6)


def test_arms_by_their_factor():
    assert mixed(0.0) is warm_starts.FRESH
    assert mixed(1.0) is warm_starts.WARM
    assert (mixed(0.4).shrink, mixed(0.4).perturb) == (0.4, 0.1)


def test_the_full_scale_can_be_described():
    plan = warm_starts.full(datasets.synthetic(num_examples=200))
    settings = Settings("warm_starts", "full", num_seeds=2)
    for network in (*plan["networks"], plan["online"]):
        run, _ = runs_of(settings, plan, "shares", network)
        assert json.loads(json.dumps(run.settings()))["lr"] == 1e-3
        (inputs, _) = next(iter(run.data))
        assert run.build()(inputs[:2]).shape == (2, 10)
    assert len({name for name, _ in plan["networks"]}) == len(plan["networks"])


# Effects ------------------------------------------------------------------------------------------


def results_of(accuracies, *, learned=1.0, epochs=None, dims=("arm", "seed"), **coords):
    """A result with these test accuracies by arm, which vary over seeds alike."""
    shape = len(accuracies), len(SEEDS)
    test = np.array([[value + CHANGES[s] / 100 for s in SEEDS] for value in accuracies.values()])
    spread = np.array([[0.01 * ((s + i) % 3 - 1) for s in SEEDS] for i in range(shape[0])]) / 100
    taken = (
        np.ones(shape)
        * np.array(list((epochs or dict.fromkeys(accuracies, 1.0)).values()))[:, None]
    )
    return xr.Dataset(
        {
            "test_accuracy": (dims, test + spread),
            "train_accuracy": (dims, np.full(shape, learned)),
            "epochs": (dims, taken),
        },
        {"arm": list(accuracies), "seed": SEEDS, **coords},
        {"scale": "small", "most_epochs": 30},
    )


def test_a_gap_counts_only_where_both_have_learned():
    found = results_of({"fresh": 0.9, "warm": 0.88, "other": 0.5})
    assert_allclose(gap(found, "fresh", "warm").mean(), 2.0, atol=0.02)
    found["train_accuracy"].loc[{"arm": "warm", "seed": [0, 3]}] = 0.98
    found["train_accuracy"].loc[{"arm": "other"}] = 0.0
    values = (
        found["test_accuracy"].sel(arm="fresh") - found["test_accuracy"].sel(arm="warm")
    ) * 100
    assert_allclose(gap(found, "fresh", "warm"), values.sel(seed=[1, 2, 4, 5]))
    assert len(gap(found, "fresh", "warm", 0.0)) == 6


# Verdicts -----------------------------------------------------------------------------------------


def made_up(*, scale="small", warm=0.88, mended=0.9, ratio=400.0, online_warm=0.65, fast=0.4):
    """Results in which everything shows that the papers found."""
    norm = np.array([[1.0, 1.0], [1.0, 1.02], [1.0, ratio]])
    gradients = xr.Dataset(
        {
            "norm": (("factor", "data", "seed"), np.repeat(norm[..., None], 6, -1)),
            "old_accuracy": (("factor", "seed"), np.ones((3, 6))),
        },
        {"factor": [0.0, 0.5, 1.0], "data": ["old", "new"], "seed": SEEDS},
        {"scale": scale},
    )
    names = ("ResNet-18, SGD", "logistic regression")
    shares = xr.concat(
        [results_of({"fresh": 0.9, "warm": 0.87}), results_of({"fresh": 0.9, "warm": 0.899})],
        "setting",
    ).assign_coords(
        setting=[f"{name}, 0.5" for name in names], network=("setting", list(names)),
        share=("setting", [0.5, 0.5]),
    ).assign_attrs(scale=scale)  # fmt: skip
    mixed_arm = "shrink 0.4" if scale == "full" else "shrink-perturb"
    last = results_of(
        {"fresh": 0.64, "warm": online_warm, mixed_arm: 0.77},
        epochs={"fresh": 30.0, "warm": 30 * fast, mixed_arm: 20.0},
    )
    online = last.expand_dims(round=2).assign_coords(num_examples=("round", [200, 400]))
    found = {"gradients": gradients, "shares": shares, "online": online.assign_attrs(scale=scale)}
    if scale != "full":
        arms = {"fresh": 0.9, "warm": warm, "shrink-perturb": mended}
        found["memorised"] = results_of(arms)
        cells = [
            results_of({"a": value}, epochs={"a": taken}).isel(arm=0, drop=True)
            for value, taken in ((math.nan, math.nan), (0.9, 9.0), (0.88, 2.0), (0.898, 5.0))
        ]
        rows = [xr.concat(cells[i : i + 2], "perturb") for i in (0, 2)]
        found["grid"] = xr.concat(rows, "shrink", combine_attrs="override").assign_coords(
            shrink=[0.0, 1.0], perturb=[0.0, 1.0]
        )
    return found


def verdicts(found):
    return [(one.criterion, one.verdict) for one in judge(found)]


def test_what_the_papers_found_shows():
    claims = judge(made_up())
    assert [(one.criterion, one.verdict) for one in claims] == [
        *[("A1", "shows")] * 3,
        ("A0", "reported"),
        ("A time", "reported"),
        ("A control", "null, as expected"),
        *[("A2", "shows")] * 2,
        ("A grid", "reported"),
        *[("A3", "shows")] * 2,
        *[("A3", "reported")] * 2,
    ]
    values = [one.mean for one in claims]
    assert_allclose(values[:3], [400, 1.02, 100])
    assert_allclose(values[3:8], [3.0, 1.0, 0.1, -2.0, 0.0], atol=0.02)
    assert values[8] == 1  # of three pairs: as good as fresh, and faster
    assert_allclose(values[9:], [12.0, 0.4, 2 / 3, -1.0], atol=0.02)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"ratio": 40.0}, 0),
        ({"warm": 0.896}, 6),
        ({"mended": 0.895}, 7),
        ({"mended": 0.905}, 7),
        ({"online_warm": 0.73}, 9),
        ({"fast": 0.7}, 10),
    ],
)
def test_what_does_not_show_is_said(change, place):
    found = verdicts(made_up(**change))
    assert found[place][1] == "does not show"
    assert [one for one in found if one[1] == "does not show"] == [found[place]]


def test_networks_that_have_not_learned_are_no_evidence():
    found = made_up()
    found["memorised"]["train_accuracy"][:] = 0.9
    assert [one[1] for one in verdicts(found)[6:8]] == ["does not show"] * 2
    assert math.isnan(judge(found)[6].mean)
    assert "0 pairs of 6 learned" in judge(found)[6].quantity


def test_at_full_scale_the_gap_is_gated_and_the_rest_is_told():
    found = made_up(scale="full")
    claims = {(one.criterion, one.verdict) for one in judge(found)}
    assert claims == {
        ("A1", "reported"),
        ("A.6", "shows"),
        ("A time", "reported"),
        ("A control", "null, as expected"),
        ("A3", "reported"),
    }
    few = {name: one.isel(seed=slice(2)) for name, one in found.items()}
    assert ("A.6", "does not show") in {(one.criterion, one.verdict) for one in judge(few)}


def test_settings_stand_below_each_other():
    found = made_up(scale="full")["shares"]
    each = [found.isel(setting=i) for i in range(2)]
    with plots.paper_style():
        _, axes = warm_starts.panels(1)
        warm_starts.draw_rows(
            {str(i): warm_starts.lost(one) for i, one in enumerate(each)}, axes[0, 0], 0
        )
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["0", "1"]
    (line,) = axes[0, 0].containers[0].lines[:1]
    assert_allclose(line.get_xdata(orig=False), [3.0, 0.1], atol=0.02)
    assert_allclose(line.get_ydata(orig=False), [0, 1])


def test_a_time_is_that_of_an_arm_in_those_of_fresh():
    found = results_of({"fresh": 0.9, "warm": 0.9}, epochs={"fresh": 8.0, "warm": 2.0})
    assert_allclose(warm_starts.time_of(found["epochs"]).mean, 0.25)
