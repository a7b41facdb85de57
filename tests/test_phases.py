import numpy as np
import pytest
from numpy.testing import assert_allclose

from landscape.maths.phases import peak


def hump(steps):
    """s exp(1 - s): its peak is at 1, where it is 1."""
    return steps * np.exp(1 - steps)


def test_the_peak_of_an_exact_curve():
    steps = np.linspace(0, 5, 51)
    found = peak(steps, hump(steps))
    assert_allclose([found.step, found.value, found.low, found.high], [1, 1, 1, 1])
    assert found.rises
    assert found.falls


def test_steps_are_sorted_and_what_is_not_finite_does_not_count():
    steps, values = [3, 1, 2, 0, 4], [2.0, 5.0, np.nan, 1.0, np.inf]
    found = peak(steps, values, [0, 0, np.nan, 0, 0])
    assert (found.step, found.value, found.low, found.high) == (1, 5, 1, 1)
    assert found.rises
    assert found.falls


def test_curves_that_only_rise_or_only_fall():
    steps = np.arange(6.0)
    up, down = peak(steps, steps, 0.1 + 0 * steps), peak(steps, -steps, 0.1 + 0 * steps)
    assert (up.step, up.rises, up.falls) == (5, True, False)
    assert (down.step, down.rises, down.falls) == (0, False, True)
    single = peak([7], [1.0], [0.5])
    assert (single.low, single.high, single.rises, single.falls) == (7, 7, False, False)


def test_equal_exact_values_are_all_possible():
    found = peak([0, 1, 2, 3, 4], [0, 1, 0.5, 1, 0])
    assert (found.step, found.low, found.high) == (1, 1, 3)


def test_two_steps_of_equal_error_compare_like_their_difference():
    # the difference has a standard error of sqrt(2): a normal quantile, one-sided
    limit = 1.6449 * np.sqrt(2)
    for gap in (0.93 * limit, 1.07 * limit):
        found = peak([0, 1], [0, gap], [1, 1], num=40000)
        assert found.rises == (gap > limit)


@pytest.mark.parametrize("shape", ["hump", "flat", "plateau"])
def test_the_interval_covers_the_peak_at_its_level(shape):
    """In a flat curve every step is the peak: the first one, say, must be covered as well."""
    steps = np.linspace(0, 4, 17)
    truth = {"hump": hump(steps), "flat": 1 + 0 * steps, "plateau": np.minimum(hump(steps), 0.9)}
    values, stderr = truth[shape], 0.02 + 0.05 * hump(steps)
    generator = np.random.default_rng(3)
    num, covered = 400, np.zeros(len(steps))
    for trial in range(num):
        noisy = values + stderr * generator.standard_normal(len(steps))
        found = peak(steps, noisy, stderr, level=0.9, num=500, seed=trial)
        covered += (found.low <= steps) & (steps <= found.high)
    best = values > values.max() - 1e-12
    assert (covered[best] / num).min() > 0.9 - 3 * np.sqrt(0.09 / num)
    if shape == "hump":
        assert covered[[0, -1]].sum() == 0  # it is seen to rise and to fall


def test_equal_seeds_give_equal_intervals():
    steps = np.linspace(0, 5, 20)
    noise = np.full(20, 0.2)
    assert peak(steps, hump(steps), noise, seed=4) == peak(steps, hump(steps), noise, seed=4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0, 1], [1.0]), {}, "must have one shape"),
        (([0, 1], [np.nan, np.inf]), {}, "without a finite value has no peak"),
        (([0, 1], [0, 1], [0.1, -0.1]), {}, "must be finite and not negative"),
        (([0, 1], [0, 1], [0.1, np.nan]), {}, "must be finite and not negative"),
        (([0, 1], [0, 1]), {"level": 1.0}, "level must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_curves_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        peak(*arguments, **options)
