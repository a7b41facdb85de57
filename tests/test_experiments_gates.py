"""What the papers on deficits and regularisation in time find, at the scale of digits."""

from dataclasses import replace

import pytest
from scipy import stats
from test_experiments_warmstarts import digits, mlp_run

from landscape.experiments import Seeds, comparisons, train
from landscape.experiments.deficits import Blur, PixelNoise
from landscape.experiments.regularisation import (
    Regulariser,
    compared_deficits,
    regularised_from,
    regularised_until,
    regularised_windows,
    removal_sweep,
    sensitivity_windows,
)
from landscape.experiments.runs import During
from landscape.experiments.schedules import Exponential

pytestmark = pytest.mark.slow
BASE = {"batch_size": 64, "lr": Exponential(0.05, 0.97), "weight_decay": 1e-3, "test_every": 1000}


def accuracies(arms, folder):
    """Final test accuracies in points: a row for each list of runs, a column for each arm."""
    ends = train([run for runs in arms for run in runs], folder, progress=False)
    assert {end.status for end in ends} == {"finished"}
    found = comparisons.outcomes([end.name for end in ends], folder)["test_accuracy"].values
    return 100 * found.reshape(len(arms), -1)


@pytest.mark.parametrize("policy", ["continue", "constant"])
def test_b1_an_early_blur_hurts_for_good_only_if_the_rate_is_annealed(tmp_path, policy):
    """Section B, B1 and B1c, row 19: blur for 80 epochs, then 60 clean ones."""
    arms = []
    for seed in range(12):
        data, test = digits(seed)
        base = mlp_run(data, test, seed, **BASE)
        arms.append(removal_sweep(base, Blur(size=3), [0, 80], clean=60, lr_policy=policy))
    found = accuracies(arms, tmp_path)
    change = found[:, 1] - found[:, 0]
    if policy == "continue":
        assert change.mean() <= -1.0
        assert stats.ttest_1samp(change, 0).pvalue < 1e-3
    else:
        assert abs(change.mean()) <= 0.5


def test_c1_weight_decay_is_needed_early_only(tmp_path):
    """Section C, C1, rows 28 and 29: shares of its benefit in either half of training."""
    arms = []
    for seed in range(10):
        data, test = digits(seed, 300)
        base = mlp_run(data, test, seed, **BASE | {"weight_decay": 0.0, "epochs": 120})
        noise = During(PixelNoise(0.7, seed=seed))
        base = replace(base, views=(noise,), test=noisy(test, seed), seeds=Seeds.all(seed))
        decay = Regulariser(weight_decay=1e-2)
        arms.append(
            [
                *regularised_until(base, decay, [0, 60, 120], lr_policy="continue"),
                *regularised_from(base, decay, [60], lr_policy="continue"),
            ]
        )
    never, first, always, second = accuracies(arms, tmp_path).T
    benefit = (always - never).mean()
    assert benefit >= 1.0
    assert stats.ttest_rel(always, never).pvalue < 0.01
    assert (first - never).mean() >= 0.8 * benefit
    assert (second - never).mean() <= 0.2 * benefit


def noisy(test, seed):
    """The test images with noise of the same strength."""
    inputs, targets = PixelNoise(0.7, seed=1000 + seed)(test.inputs, test.targets)
    return replace(test, inputs=inputs, targets=targets)


def test_b2_blur_hurts_less_the_later_it_comes(tmp_path):
    """Section B, B2, row 20: 40 epochs of blur from an onset on, then 120 clean ones."""
    onsets, arms = [0, 20, 40, 60, 80, 120], []
    for seed in range(12):
        data, test = digits(seed, 300)
        base = mlp_run(data, test, seed, **BASE)
        arms.append(
            sensitivity_windows(
                base, Blur(size=2), onsets, width=40, clean=120, lr_policy="continue"
            )
        )
    names = [run.name.rsplit("/", 1)[1] for run in arms[0]]
    means = dict(zip(names, accuracies(arms, tmp_path).mean(0), strict=True))
    by_onset = [means[name] for name in names if name != "never"]
    assert by_onset[-1] - by_onset[0] >= 0.4
    assert stats.spearmanr(onsets, by_onset).statistic >= 0.8


def test_b3_blur_leaves_a_trace_after_a_fresh_annealing(tmp_path):
    """Section B, B3, row 21: 120 epochs of blur at a constant rate, then 60 of annealing."""
    arms = []
    for seed in range(24):
        data, test = digits(seed, 300)
        base = mlp_run(data, test, seed, **BASE | {"lr": Exponential(0.05, 0.95)})
        deficits = {"blur": Blur(size=3)}
        arms.append(compared_deficits(base, deficits, until=120, clean=60, lr_policy="re-anneal"))
    none, blur = accuracies(arms, tmp_path).T
    assert (blur - none).mean() <= -0.25
    assert stats.ttest_rel(blur, none).pvalue < 0.05


def test_c4_windows_of_weight_decay_help_early_only(tmp_path):
    """Section C, C4, row 30: 30 epochs of weight decay from an onset on."""
    arms = []
    for seed in range(10):
        data, test = digits(seed, 300)
        base = mlp_run(data, noisy(test, seed), seed, **BASE | {"weight_decay": 0.0, "epochs": 120})
        base = replace(base, views=(During(PixelNoise(0.7, seed=seed)),))
        decay = Regulariser(weight_decay=1e-2)
        arms.append(
            [
                *regularised_until(base, decay, [0], lr_policy="continue"),
                *regularised_windows(base, decay, [0, 60, 90], width=30, lr_policy="continue"),
            ]
        )
    never, early, late, last = accuracies(arms, tmp_path).T
    assert (early - never).mean() >= 0.8
    assert abs((late - never).mean()) <= 0.3
    assert abs((last - never).mean()) <= 0.3
