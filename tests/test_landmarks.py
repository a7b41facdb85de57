import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from landscape.maths.landmarks import landmarks


def test_an_exponential_decay():
    steps = np.arange(0, 101, 5)
    found = landmarks(steps, 8 * np.exp(-steps / 20))
    assert found.threshold == 4
    assert found.reached == 15  # the first multiple of 5 above 20 log 2 = 13.9
    assert found.steepest == 0
    assert found.minimum == 100
    # within 5 % of the range of the last value: exp(-s / 20) <= exp(-5) + 0.05 (1 - exp(-5))
    assert found.plateau == 5 * np.ceil(-20 * np.log(0.05 + 0.95 * np.exp(-5)) / 5)


def test_a_threshold_that_is_left_again_is_reached_when_it_is_kept():
    found = landmarks([0, 1, 2, 3, 4], [1.0, 0.2, 0.6, 0.3, 0.3], threshold=0.3)
    assert (found.reached, found.steepest, found.minimum, found.plateau) == (3, 0, 1, 3)
    assert np.isnan(landmarks([0, 1, 2], [1.0, 0.1, 0.9]).reached)


def test_the_steepest_descent_is_per_step():
    found = landmarks([0, 10, 11, 111], [3.0, 2.0, 1.5, 0.5])
    assert found.steepest == 10


def test_a_curve_that_only_rises_or_stays():
    rising = landmarks([0, 1, 2], [1.0, 2.0, 4.0])
    assert np.isnan([rising.reached, rising.steepest]).all()
    assert (rising.minimum, rising.plateau) == (0, 2)
    level = landmarks([3, 4], [1.0, 1.0], threshold=1.0)
    assert (level.reached, level.minimum, level.plateau) == (3, 3, 3)
    assert np.isnan(level.steepest)
    single = landmarks([7], [1.0])
    assert (single.minimum, single.plateau, single.threshold) == (7, 7, 0.5)


def test_steps_are_sorted_and_what_is_not_finite_does_not_count():
    steps, values = np.arange(6.0), np.array([5.0, 4.0, 2.0, 1.0, 1.5, 1.0])
    order = [3, 0, 5, 1, 4, 2]
    clean = landmarks(steps, values)
    assert landmarks(steps[order], values[order]) == clean
    assert landmarks([*steps, 6, 7], [*values, np.nan, np.inf]) == clean
    nothing = landmarks([0, 1], [np.nan, np.nan])
    assert np.isnan([nothing.threshold, nothing.reached, nothing.minimum, nothing.plateau]).all()


def test_scales_do_not_matter():
    steps, values = np.arange(9), np.random.default_rng(0).random(9)
    a, b = landmarks(steps, values), landmarks(10 * steps, 7 * values)
    names = ("reached", "steepest", "minimum", "plateau")
    assert_array_equal([10 * getattr(a, n) for n in names], [getattr(b, n) for n in names])
    assert_allclose(7 * a.threshold, b.threshold)


def test_bad_input():
    with pytest.raises(ValueError, match=r"one shape \(n,\), got \(2,\), \(3,\)"):
        landmarks([0, 1], [1, 2, 3])
    with pytest.raises(ValueError, match=r"tolerance must be at least 0, got -1"):
        landmarks([0, 1], [1, 2], tolerance=-1)
