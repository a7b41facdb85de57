"""The study of critical periods: what its arms share and differ in, and its verdicts."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import critical_periods as study
from landscape import models
from landscape.analyses.fisher import fisher_trace
from landscape.results import dataset
from landscape.task import Task
from shared import Settings

SEEDS = np.arange(1, 13)
WAVE = np.cos(SEEDS)[:, None] / 100  # what seeds differ in, the same in all arms
CONTROLS = ("deficits_sweep", "fisher_constant")
SMALL = Settings("critical_periods", "small")


# Arms ---------------------------------------------------------------------------------------------


def rates(run):
    """The learning rate of each epoch."""
    starts = run.timeline.starts[:-1]
    return [run.lr(run.lr_clock(step)) if callable(run.lr) else run.lr for step in starts]


@pytest.fixture
def small():
    """The runs of each part for two seeds."""
    return study.trials(replace(SMALL, num_seeds=2))


def test_deficits_end_at_a_constant_rate_and_the_clean_epochs_are_those_of_the_fresh_run(small):
    trial = small["deficits"]
    assert [len(values) for values in trial.coords.values()] == [1, 2, 6]
    fresh, none, *others = trial.runs[:6]
    annealing = 0.05 * 0.95 ** np.arange(60)
    assert_allclose(rates(fresh), annealing)
    for run in (none, *others):
        assert_allclose(rates(run), [0.05] * 120 + annealing.tolist())
        assert run.data is fresh.data
        assert run.seeds == fresh.seeds
    windows = [[(one.window.start, one.window.stop) for one in run.views] for run in trial.runs[:6]]
    assert windows == [[], [], *[[(0, 120)]] * 4]


@pytest.mark.parametrize("policy", [study.ANNEALED, study.CONSTANT, study.RE_ANNEALED])
def test_removal_differs_in_the_epochs_of_blur_and_has_equally_many_clean_ones(policy, small):
    trial = small["removal"]
    first = 10 * trial.coords["policy"].index(policy)
    for run, end in zip(trial.runs[first : first + 5], (0, 20, 40, 80, 120), strict=True):
        assert run.epochs == end + 60
        assert [one.window.stop for one in run.views] == ([end] if end else [])
        begun = {study.ANNEALED: end, study.CONSTANT: 0, study.RE_ANNEALED: 0}[policy]
        factor = 1.0 if policy == study.CONSTANT else 0.97
        assert_allclose(rates(run)[end:], 0.05 * factor ** (begun + np.arange(60)))


def test_other_deficits_have_the_epochs_rates_and_data_of_removal(small):
    trial, removal = small["deficits_sweep"], small["removal"].runs
    for first, policy in ((0, study.ANNEALED), (6, study.RE_ANNEALED)):
        (blur,) = (run for run in removal if run.name == f"removal/{policy}/seed-1/removed-80")
        for run in trial.runs[first : first + 3]:
            assert (run.epochs, run.seeds, run.data) == (blur.epochs, blur.seeds, blur.data)
            assert_allclose(rates(run), rates(blur))
            assert [one.window for one in run.views] == [one.window for one in blur.views]
            assert run.views != blur.views


def test_runs_of_the_fisher_information_differ_in_blur_and_rate_alone(small):
    annealed, constant = small["fisher"], small["fisher_constant"]
    runs, whole = annealed.runs + constant.runs, models.mlp(64, (128, 128), seed=1).state_dict()
    assert len(runs) == 2 * (3 + 2)
    for run in annealed.runs[:3] + constant.runs[:2]:
        assert run.checkpoint_steps == {15 * epoch for epoch in annealed.attrs["at"]}
        assert (run.epochs, run.seeds, run.data) == (120, runs[0].seeds, runs[0].data)
        for name, weights in run.build().state_dict().items():
            assert_allclose(weights, 0.3 * whole[name])
    stops = [[one.window.stop for one in run.views] for run in runs]
    assert stops == [[], [20], [60]] * 2 + [[], [60]] * 2
    assert_allclose(rates(runs[2]), 0.05 * 0.97 ** np.arange(120))
    assert set(rates(constant.runs[1])) == {0.05}


def test_the_full_scale_is_as_long_as_it_says(tmp_path):
    data = "synthetic:num_examples=128"
    trials = study.trials(Settings("critical_periods", "full", root=tmp_path, data=data))
    runs = [run for trial in trials.values() for run in trial.runs]
    assert len(runs) == 48
    assert sum(run.epochs for run in runs) == 11_520
    assert "48 runs with three seeds and 11,520 epochs" in study.__doc__.replace("\n", " ")
    assert trials["deficits"].attrs["examples"] == 128


# Numbers ------------------------------------------------------------------------------------------


def test_layers_hold_the_traces_of_their_tensors():
    model = models.small_cnn(width=4, seed=0)
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 1, 8, 8, generator=chance)
    targets = torch.arange(12) % 10
    loss = partial(torch.nn.functional.cross_entropy, reduction="none")
    task = Task("train", model, loss, [(inputs, targets)])
    trace = fisher_trace(task, model.state_dict(), labels="exact", device="cpu")["trace"]
    found = study.by_layer(trace.expand_dims("step"))
    assert list(found["layer"].values) == ["block1", "block2", "block3", "head"]
    assert_allclose(found.sum("layer"), [float(trace.sum())])
    of_head = trace.sel(tensor=["head.output.weight", "head.output.bias"])
    assert_allclose(found.sel(layer="head"), [float(of_head.sum())])


# Verdicts -----------------------------------------------------------------------------------------


def made_up(dims, values, coords, **attrs):
    """Accuracies (shares) of which seeds shift all arms alike, but for a little."""
    values = np.asarray(values, float)
    chance = np.random.default_rng(0).normal(0, 1e-4, (len(SEEDS), *values.shape))
    shares = 0.95 + values / 100 + WAVE.reshape(-1, *[1] * values.ndim) + chance
    variables = {"test_accuracy": (("seed", *dims), shares)}
    coords = coords | {"seed": SEEDS}
    attrs = {"scale": "small"} | attrs
    return dataset(variables, coords, analysis="critical periods", title="made up", **attrs)


def results_with(
    annealed=(0, 0, -0.5, -2, -4), constant=(0, 0.1, -0.2, 0.3, 0.1), onsets=(-1.5, -1, -0.5),
    blur=-0.5, noise=0.0, fisher=(0.1, 1.0, 0.1), blurred=(0.1, 8.0, 0.3), scale="small",
):  # fmt: skip
    """Results whose mean changes are these points, and traces of a layer at three epochs."""
    ends, policies = [0, 20, 40, 80, 120], [study.ANNEALED, study.CONSTANT, study.RE_ANNEALED]
    removal = made_up(
        ("policy", "removal"), [annealed, constant, constant],
        {"policy": policies, "removal": ends}, examples=900,
    )  # fmt: skip
    windows = made_up(
        ("policy", "onset"), [[0, *onsets]], {"policy": policies[:1], "onset": [-1, 0, 40, 120]},
        width=40,
    )  # fmt: skip
    deficits = made_up(
        ("policy", "arm"), [[0, 0.3, blur, noise, -0.1, -0.4]],
        {"policy": policies[2:], "arm": [*study.REFERENCES, *study.DEFICITS]}, until=120, clean=60,
        examples=300,
    )  # fmt: skip
    sweep = made_up(
        ("policy", "arm"), [[-1, -1, -1], [0, 0, 0]],
        {"policy": policies[::2], "arm": list(study.DEFICITS[1:])}, until=80, examples=900,
    )  # fmt: skip
    spread = np.exp(np.random.default_rng(1).normal(0, 0.05, (2, len(SEEDS), 2, 3)))
    layers = np.array([[[0.75], [0.25]], [[0.5], [0.5]]])  # of arms, then of layers
    traces = spread * layers[:, None] * np.array([fisher, blurred])[:, None, None, :]
    traced = dataset(
        {"trace": (("policy", "removal", "seed", "layer", "epoch"), traces[None])},
        {
            "policy": [study.ANNEALED], "removal": [0, 60], "seed": SEEDS,
            "layer": ["fc1", "output"], "epoch": [0, 40, 120],
        },
        analysis="critical periods", title="made up", during=40, images=900,
    )  # fmt: skip
    swapped = traced.isel(removal=[1, 0]).assign_coords(policy=[study.CONSTANT], removal=[0, 60])
    found = {"removal": removal, "windows": windows, "deficits": deficits, "fisher": traced,
             "fisher_constant": swapped, "deficits_sweep": sweep}  # fmt: skip
    return {name: one.assign_attrs(scale=scale) for name, one in found.items()}


def verdicts(**changes):
    """The verdicts by criterion, in the order of the claims."""
    found = {}
    for claim in study.judge(results_with(**changes)):
        found.setdefault(claim.criterion, []).append(claim.verdict)
    return found


def test_what_the_criteria_ask_for_shows():
    found = verdicts()
    for name in ("B1", "B4 rise", "B4 fall", "B4 during", "B4 after", "B2"):
        assert set(found[name]) == {"shows"}, name
    assert found["B1c"] == ["null, as expected"]
    assert found["B3 blur"] == ["shows", "reported"]  # the first is the criterion's reference
    assert found["B3 noise"] == ["null, as expected", "reported"]
    for name in ("B1 reset", "B1 flip", "B3 flip", "B3 permuted", "B4 constant", "B4 layers"):
        assert set(found[name]) == {"reported"}


@pytest.mark.parametrize(
    ("criterion", "place", "changes"),
    [
        ("B1", 0, {"annealed": (0, 0, -0.5, -0.9, -4)}),
        ("B1", 0, {"annealed": (0, 0, -0.5, -2, -1.9)}),  # longer is not worse
        ("B1", 0, {"annealed": (0, 0, -2.1, -2, -4)}),
        ("B1c", 0, {"constant": (0, 0, -0.6, 0, 0)}),  # at any length
        ("B2", 0, {"onsets": (-0.8, -0.6, -0.5)}),
        ("B2", 1, {"onsets": (-1.5, -0.4, -0.5)}),
        ("B3 blur", 0, {"blur": -0.2}),
        ("B3 noise", 0, {"noise": -0.25}),
        ("B4 rise", 0, {"fisher": (0.3, 1.0, 0.1)}),
        ("B4 fall", 0, {"fisher": (0.1, 1.0, 0.4)}),
        ("B4 during", 0, {"blurred": (0.1, 4.0, 0.3)}),
        ("B4 after", 0, {"blurred": (0.1, 8.0, 0.12)}),
    ],
)
def test_each_criterion_can_fail(criterion, place, changes):
    assert verdicts(**changes)[criterion][place] in ("does not show", "not null")


def test_the_full_scale_has_its_own_criteria():
    found = verdicts(scale="full")
    assert found["B1"] == ["does not show"]  # 2 points of 4
    assert verdicts(scale="full", annealed=(0, 0, -1, -5, -6))["B1"] == ["shows"]
    assert found["B3 flip"] == found["B3 noise"] == ["null, as expected", "reported"]
    assert found["B3 blur"] == found["B2"] == ["reported"] * 2
    assert found["B4 rise"] == ["reported"]


def test_effects_are_those_that_were_made_up():
    claims = {(c.criterion, c.quantity): c for c in study.judge(results_with())}
    b1 = claims["B1", "test accuracy, blur until epoch 80 less none, points"]
    assert_allclose(b1.mean, -2, atol=0.02)
    assert b1.low < -2 < b1.high < -1.9  # seeds differ by a point, but pairs do not
    assert_allclose(
        claims["B3 blur", "test accuracy, blur less none, equally long, points"].mean, -0.8,
        atol=0.02,
    )  # fmt: skip
    moved = claims["B4 layers", "share of the last layer at epoch 40, blur less none, points"]
    assert_allclose(moved.mean, 25, atol=2)
    assert claims["B4 peak", "epoch of the peak of the mean trace"].mean == 40
    for name, when in (("B4 during", "at epoch 40"), ("B4 after", "at the end")):
        what = f"trace {when}, blur over none"
        assert_allclose(claims["B4 constant", what].mean, 1 / claims[name, what].mean)
    noise = claims["B1 noise", "test accuracy, noise until epoch 80 less none, annealed, points"]
    assert_allclose(noise.mean, -1, atol=0.02)


def test_figures_are_drawn_from_results_with_and_without_the_controls():
    results = results_with()
    assert len(study.draw(results)) == 3
    bare = {name: one for name, one in results.items() if name not in CONTROLS}
    bare["removal"] = results["removal"].sel(policy=[study.ANNEALED])
    bare["deficits"] = results["deficits"].drop_sel(arm="permuted")
    drawn = study.draw(bare)
    assert "12 seeds" in drawn["critical_periods_removal"].caption
    (ax,) = drawn["critical_periods_deficits"].figure.axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["blur", "noise", "flip"]
