"""Regularisation in time: when arms regularise, shares of a benefit, and verdicts on known data."""

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from scipy import stats

import regularisation_in_time as study
from landscape.experiments import Clock
from landscape.results import dataset
from shared import Settings

SETTINGS = Settings("regularisation_in_time", "tiny", num_seeds=2)
EPOCHS = 120
SMALL, FULL = study.PARTS, study.FULL["parts"]
SPREAD = np.array([-0.2, 0.1, 0.0, 0.3, -0.1, -0.1])  # over seeds, of mean 0


def made_up(part, gains, parts=SMALL, scale="small"):
    """A part's result whose gains over never, in points, are a function of when it is on."""
    names = ("until", "from", "onset")
    arms = [f"{name}-{15 * o}" for name, own in zip(names, parts[part], strict=True) for o in own]
    spans = np.array([span(arm) for arm in arms])
    means = np.array([0 if start == stop else gains(start, stop) for start, stop in spans])
    each = np.where((means == 0)[:, None], 0, means[:, None] + SPREAD)
    level = 80 + np.arange(6)
    epochs = np.arange(1, EPOCHS + 1)
    norms = 20 - np.minimum(epochs, 60) / 60 + 3 * np.maximum(epochs - 60, 0) / 60
    return dataset(
        {
            "test_accuracy": (("arm", "seed"), (level + each) / 100),
            "weight_norm": (
                ("arm", "seed", "epoch"),
                np.broadcast_to(norms, (len(arms), 6, EPOCHS)),
            ),
        },
        {
            "arm": arms,
            "seed": range(6),
            "epoch": epochs,
            "start": ("arm", spans[:, 0]),
            "stop": ("arm", spans[:, 1]),
        },
        analysis="made up",
        title="made up",
        epochs=EPOCHS,
        scale=scale,
    )


def span(arm):
    """The epochs in which an arm has the regulariser on, by its name."""
    kind, time = arm.split("-")
    return {
        "until": (0, int(time)), "from": (int(time), EPOCHS), "onset": (int(time), int(time) + 30)
    }[kind]  # fmt: skip


def traces_of(decay, final):
    """Traces that peak at epoch 15, higher for better accuracy, and end at `final` of it."""
    decay = decay.isel(arm=[not name.startswith("onset") for name in decay["arm"].values])
    reached = decay["test_accuracy"]
    early = [0 * reached + 900, reached, 2 * reached, 1.2 - reached, final(reached)]
    total = xr.concat(early, "epoch").transpose("arm", "seed", "epoch")
    coords = {name: decay[name] for name in ("arm", "seed", "start", "stop")}
    return dataset(
        {"total": total},
        coords | {"epoch": [0.0, 4.0, 15.0, 30.0, 120.0]},
        analysis="made up",
        title="made up",
        epochs=EPOCHS,
    )


def early_only(start, stop):
    """All the benefit comes in the first quarter."""
    return 2.0 * max(min(stop, 30) - start, 0) / 30


def late_only(start, stop):
    """All the benefit comes in the last quarter."""
    return 2.0 * max(stop - max(start, 90), 0) / 30


def results(annealed, constant):
    found = {part: made_up(part, annealed if "annealed" in part else constant) for part in SMALL}
    return found | {"fisher": traces_of(found["decay_annealed"], lambda reached: 1 - reached)}


def verdicts(claims):
    return {one.criterion: one.verdict for one in claims if one.verdict != "reported"}


def test_arms_regularise_in_the_epochs_that_the_result_names():
    runs = study.runs_of("decay_annealed", study.TINY, SETTINGS)
    coords = study.coords_of(runs, SMALL["decay_annealed"])
    spans = list(zip(coords["start"][1], coords["stop"][1], strict=True))
    assert (len(coords["arm"]), len(spans), coords["seed"]) == (14, 14, [1, 2])
    assert set(spans) >= {(0, 0), (0, 8), (0, 1), (6, 8), (2, 4)}
    for number, run in enumerate(runs):
        assert run.name == f"decay_annealed/seed-{1 + number // 14}/{coords['arm'][number % 14]}"
        assert run.seeds.init == 1 + number // 14
        decay = [
            run.weight_decay(Clock(0, epoch, 40, 8)) if callable(run.weight_decay) else 0.0
            for epoch in range(8)
        ]
        start, stop = spans[number % 14]
        assert decay == [0.01 if start <= epoch < stop else 0.0 for epoch in range(8)]


def test_a_constant_rate_is_constant_and_an_annealed_one_falls():
    runs = {
        rate: {run.name: run for run in study.runs_of(f"decay_{rate}", study.TINY, SETTINGS)}
        for rate in study.RATES
    }
    annealed = runs["annealed"]["decay_annealed/seed-1/from-4"]
    assert annealed.lr(annealed.lr_clock(30)) == pytest.approx(0.05 * 0.97**6)
    assert runs["constant"]["decay_constant/seed-1/from-4"].lr == 0.05


def test_a_share_of_a_benefit_is_that_of_the_means_with_the_error_of_a_ratio():
    found = made_up("decay_annealed", early_only)
    rng = np.random.default_rng(0)
    accuracy = 0.8 + 0.02 * rng.random(found["test_accuracy"].shape)
    accuracy[found["arm"].values == "until-120"] += 0.03
    found["test_accuracy"] = (("arm", "seed"), accuracy)
    never, own, full = (
        100 * found["test_accuracy"].sel(arm=arm).values
        for arm in ("until-0", "until-60", "until-120")
    )
    ratio = (own - never).mean() / (full - never).mean()
    covariance = np.cov(own - never, full - never) / 6
    gradient = np.array([1, -ratio]) / (full - never).mean()  # of the ratio by both means
    half = stats.t.ppf(0.975, 5) * (gradient @ covariance @ gradient) ** 0.5
    share = study.recovered(found, 0, 4)
    expected = np.array([ratio, ratio - half, ratio + half])
    assert_allclose([share.mean, share.low, share.high], 100 * expected)
    assert share.p == pytest.approx(stats.ttest_rel(own, never).pvalue)


def test_a_share_of_no_benefit_is_unknown():
    found = made_up("decay_annealed", lambda start, stop: 0.0)
    share = study.recovered(found, 0, 4)
    assert np.isnan([share.mean, share.low, share.high]).all()


def test_windows_are_those_of_one_width_in_order():
    onsets, gains = study.windows(made_up("decay_annealed", early_only))
    assert onsets.tolist() == [0, 15, 30, 45, 60, 90]
    assert_allclose(gains[:, 0], 2 + SPREAD, rtol=1e-9)
    assert_allclose(gains[:, 1], 1 + SPREAD, rtol=1e-9)
    assert_allclose(gains[:, 2:], 0, atol=1e-9)
    lines = [np.polyfit(onsets, own, 1)[0] for own in gains]
    assert_allclose(study.slopes(onsets, gains), lines)


def test_curves_end_at_never_and_always():
    found = made_up("shifts_annealed", early_only)
    until, on_until = study.along(found, "stop")
    later, on_later = study.along(found, "start")
    assert until.tolist() == [0, 15, 30, 60, 120]
    assert later.tolist() == [0, 15, 60, 90, 120]
    assert_allclose(on_until[:, 0], on_later[:, -1])
    assert_allclose(on_until[:, -1], on_later[:, 0])
    assert_allclose(on_later[:, 1] - on_later[:, -1], (1 + SPREAD) / 100)


def test_traces_are_read_at_the_end_at_the_early_peak_without_the_start_and_after_a_quarter():
    decay = made_up("decay_annealed", early_only)
    fisher = traces_of(decay, lambda reached: 100 * reached)
    peak, quarter, final = study.traces_at(fisher).values()
    reached = decay["test_accuracy"].sel(arm=fisher["arm"])
    assert_allclose(final.transpose(*reached.dims), 100 * reached)
    assert_allclose(peak.transpose(*reached.dims), 2 * reached)
    assert_allclose(quarter.transpose(*reached.dims), 1.2 - reached)
    assert_allclose(study.correlations(final, reached), 1)
    assert_allclose(study.correlations(quarter, reached), -1)
    fisher["total"].loc[{"epoch": 4.0}] = 2.5
    assert list(study.traces_at(fisher)) == ["after a quarter of training", "at the end"]
    ratio = study.relative(fisher, final).sel(arm="until-120")
    never, always = (reached.sel(arm=arm) for arm in ("until-0", "until-120"))
    assert_allclose(ratio, np.log10(always / never))


def test_the_claims_of_the_paper_show_where_they_hold():
    found = study.judge(results(early_only, late_only))
    assert verdicts(found) == dict.fromkeys(("C1", "C1c", "C2", "C3", "C4"), "shows")
    told = {one.quantity: one.mean for one in found}
    assert told["first half only (% of benefit)"] == pytest.approx(100)
    assert told["second half only, constant rate (% of benefit)"] == pytest.approx(100)
    growth = "growth of the weight norm from half of training to the end, annealed rate (%)"
    assert told[growth] == pytest.approx(100 * 3 / 19)
    correlation = "rank correlation over arms of accuracy and trace"
    assert told[f"{correlation} at the end"] == pytest.approx(-1)
    assert told[f"{correlation} at the early peak"] == pytest.approx(1)
    assert told[f"{correlation} after a quarter of training"] == pytest.approx(-1)
    assert told["window from epoch 90 - never, constant rate (points)"] == pytest.approx(2)


def test_the_claims_of_the_paper_do_not_show_where_time_does_not_matter():
    def always(start, stop):
        return 2.0

    assert verdicts(study.judge(results(always, early_only))) == dict.fromkeys(
        ("C1", "C1c", "C2", "C3", "C4"), "does not show"
    )


@pytest.mark.parametrize(
    ("gains", "expected"), [(early_only, "shows"), (late_only, "does not show")]
)
def test_the_gates_of_the_full_scale(gains, expected):
    decay = made_up("decay_annealed", gains, FULL, "full")
    fisher = traces_of(decay, lambda reached: 1 - reached)
    found = study.judge({"decay_annealed": decay, "fisher": fisher})
    assert verdicts(found) == dict.fromkeys(("C gate, off", "C gate, on"), expected)
