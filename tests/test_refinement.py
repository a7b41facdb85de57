import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from landscape.maths import refinement
from landscape.maths.refinement import doubled, halved, worth_evaluating


def test_doubled_values_are_multilinear_interpolation():
    x, y = np.array([0.0, 1, 4]), np.array([-1.0, 0, 0.5, 3])
    values = 2 + x[:, None] * y - y + 3 * x[:, None]  # bilinear, so interpolation is exact
    fine_x, fine_y = halved(x), halved(y)
    assert_array_equal(fine_x, [0, 0.5, 1, 2.5, 4])
    expected = 2 + fine_x[:, None] * fine_y - fine_y + 3 * fine_x[:, None]
    assert_allclose(doubled(values, 2), expected, rtol=1e-14)
    assert_array_equal(doubled(np.stack([values, values], -1), 2)[..., 1], doubled(values, 2))


@pytest.mark.parametrize("axis", [np.linspace(-1, 1, 9), np.array([-1.0, -0.4, 0, 0.1, 0.7, 2])])
def test_the_estimated_error_of_a_parabola_is_its_error(axis):
    values = 3 * axis**2
    exact = doubled(values, 1)[1::2] - 3 * halved(axis)[1::2] ** 2
    assert_allclose(refinement._error(values, axis, 0), exact, rtol=1e-9)
    plane = values[:, None] + np.zeros(4)
    assert_allclose(refinement._error(plane, axis, 0), exact[:, None] + np.zeros(3), rtol=1e-9)
    assert_allclose(refinement._error(plane.T.copy(), axis, 1), exact + np.zeros((3, 1)), rtol=1e-9)


def test_only_extremes_of_a_linear_function_are_worth_it():
    x = np.linspace(0, 1, 9)
    mask = worth_evaluating(x[:, None] * 3 + x, [x, x])
    expected = np.zeros((17, 17), dtype=bool)
    expected[:3, :3] = expected[-3:, -3:] = True
    assert_array_equal(mask, expected)
    line = worth_evaluating(-x, [x])
    assert_array_equal(np.flatnonzero(line), [0, 1, 2, 14, 15, 16])
    assert worth_evaluating(x[:, None, None] + x[:, None] + x, [x] * 3).sum() == 2 * 27
    assert not worth_evaluating(np.full((5, 5), 2.0), [np.arange(5.0)] * 2).any()


def test_a_peak_between_flat_land_is_surrounded():
    values = np.zeros((7, 7))
    values[3, 4] = 1
    axes = [np.arange(7.0)] * 2
    mask = worth_evaluating(values, axes)
    assert mask[4:9, 6:11].all()
    assert not mask[:2].any()  # the bend at its foot reaches one cell further
    assert mask[2, 8]


def test_what_cannot_be_judged_is_evaluated():
    axis = np.arange(9.0)
    values = axis[:, None] * 10 + axis + 1
    values[8, 8] = np.inf
    mask = worth_evaluating(values, [axis, axis])
    assert mask[12:, 12:].all()  # the cells at the value, and at its neighbours
    assert worth_evaluating(values[:, :2], [axis, axis[:2]]).all()  # two points say nothing
    assert worth_evaluating(np.full((3, 3), np.nan), [axis[:3]] * 2).all()
