import numpy as np
import pytest
import torch
from cases import CASES
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from landscape import families
from landscape.maths import curves
from landscape.states import distance

VECTORS = [{"w": torch.randn(5, generator=torch.Generator().manual_seed(i))} for i in range(4)]


def controls_met():
    a, b, c, d = VECTORS
    yield families.line(a, b), {(0.0,): a, (1.0,): b}
    yield families.bezier(a, b, c), {(0.0,): a, (1.0,): c}
    yield families.polychain(a, b, c, d), {(0.0,): a, (1 / 3,): b, (2 / 3,): c, (1.0,): d}
    yield families.simplex(a, b, c), {(0.0, 0.0): a, (1.0, 0.0): b, (0.0, 1.0): c}
    vertices = families.plane_vertices(a, b, c)
    yield families.plane(a, b, c), dict(zip(map(tuple, vertices.tolist()), (a, b, c), strict=True))


@pytest.mark.parametrize(("family", "points"), list(controls_met()))
def test_families_pass_through_their_controls_exactly(family, points):
    for point, state in points.items():
        torch.testing.assert_close(family.at(*point)["w"], state["w"], rtol=0, atol=0)


@pytest.mark.parametrize(("family", "points"), list(controls_met()))
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_coefficients_sum_to_one(family, points, data):
    num = len(family.coordinates)
    numbers = st.floats(-2, 3)
    point = data.draw(st.lists(numbers, min_size=num, max_size=num))
    assert_allclose(family.coefficients(np.array([point])).sum(1), 1, atol=1e-9)


def test_a_bezier_curve_with_bends_on_the_line_is_the_line():
    a, b, *_ = VECTORS
    middle = families.line(a, b).at(0.5)
    curve = families.bezier(a, middle, b)
    for t in (0.1, 0.37, 0.8):
        expected = families.line(a, b).at(t)["w"]
        torch.testing.assert_close(curve.at(t)["w"], expected, rtol=1e-5, atol=1e-6)


def test_bernstein_polynomials_of_degree_two():
    t = np.linspace(0, 1, 7)[:, None]
    expected = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)
    assert_allclose(curves.bernstein(t, degree=2), expected, atol=1e-15)


def test_the_plane_has_orthonormal_axes_and_real_distances():
    a, b, c, _ = ({"w": v["w"].double()} for v in VECTORS)
    plane = families.plane(a, b, c)
    p, q = (0.3, -0.2), (-1.1, 0.7)
    expected = np.hypot(p[0] - q[0], p[1] - q[1])
    assert_allclose(distance(plane.at(*p), plane.at(*q)), expected, rtol=1e-12)


def test_integers_are_copied_from_the_nearest_control():
    a, b = CASES["residual"].states()
    line = families.line(a, b)
    assert line.at(0.4)["stem.1.num_batches_tracked"].item() == 10
    assert line.at(0.6)["stem.1.num_batches_tracked"].item() == 11
    assert line.at(0.6)["stem.1.num_batches_tracked"].dtype == torch.int64


def test_half_precision_states_are_mixed_in_double():
    a, b = {"w": torch.tensor([1.0]).half()}, {"w": torch.tensor([1.001]).half()}
    exact = 0.5 * a["w"].double() + 0.5 * b["w"].double()
    assert families.line(a, b).at(0.5)["w"] == exact.half()


def test_bad_geometry_is_refused():
    a, b, *_ = VECTORS
    with pytest.raises(ValueError, match="lie on a line"):
        families.plane(a, b, families.line(a, b).at(0.3))
    with pytest.raises(ValueError, match="lie on a line"):
        families.plane(a, a, b)
    with pytest.raises(ValueError, match="at least 2 states, got 1"):
        families.bezier(a)
    with pytest.raises(ValueError, match=r"coordinates \(t\), got 2 numbers"):
        families.line(a, b).at(0.1, 0.2)
    with pytest.raises(ValueError, match="not of one architecture"):
        families.line(a, {"w": torch.zeros(4)})
