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


@pytest.fixture(scope="module")
def doubles():
    return [
        {"w": v["w"].double(), "b": torch.tensor(i / 3).double()} for i, v in enumerate(VECTORS)
    ]


def test_affine_points_are_the_origin_plus_multiples_of_the_directions():
    origin = {"w": torch.randn(3, 2), "norm.running_mean": torch.ones(2), "steps": torch.tensor(3)}
    one = {"w": torch.randn(3, 2), "norm.running_mean": 5 * torch.ones(2), "steps": torch.tensor(9)}
    two = {"w": 1e-6 * torch.randn(3, 2)}
    family = families.affine(origin, one, two, {})
    assert family.coordinates == ("x", "y", "z")
    point = family.at(0.5, -300.0, 7.0)
    expected = origin["w"].double() + 0.5 * one["w"].double() - 300 * two["w"].double()
    torch.testing.assert_close(point["w"], expected.float(), rtol=0, atol=0)
    assert torch.equal(point["norm.running_mean"], torch.ones(2))
    assert point["steps"] == 3
    assert torch.equal(family.at(0, 0, 0)["w"], origin["w"])
    assert_allclose(families.gram(family)[1, 1], two["w"].double().square().sum(), rtol=1e-9)


@given(point=st.lists(st.floats(-2, 3), min_size=3, max_size=3))
@settings(max_examples=20, deadline=None)
def test_affine_coefficients_sum_to_one(point):
    family = families.affine(*VECTORS)
    assert_allclose(family.coefficients(np.array([point])).sum(1), 1, atol=1e-9)


def test_precision_of_affine_families():
    half = {"w": torch.tensor([1.0, 2.0]).half(), "k": torch.tensor([1])}
    assert families.affine(half, {"w": torch.ones(2)}).at(1e-5)["w"].dtype == torch.float32
    double = {"w": torch.tensor([1.0, 2.0]).double()}
    assert families.affine(double, {"w": torch.ones(2)}).at(1e-12)["w"][0] == 1 + 1e-12


def test_a_direction_for_one_of_two_tied_names_moves_both():
    weight = torch.randn(4, 3)
    tied = {"embed": weight, "out": weight, "other": weight.clone()}
    half = {"embed": weight.half(), "other": weight.half()}
    for origin in (tied, half | {"out": half["embed"]}):
        point = families.affine(origin, {"embed": torch.ones(4, 3)}).at(0.5)
        assert torch.equal(point["out"], point["embed"])
        assert torch.equal(point["other"], origin["other"].float())
    both = families.affine(tied, {"embed": torch.ones(4, 3), "out": torch.ones(4, 3)})
    assert torch.equal(both.at(0.5)["out"], weight + 0.5)


def test_gram_is_the_inner_products_of_displacements():
    a, b, c, _ = VECTORS
    stacked = torch.stack([b["w"], c["w"]]).double().numpy()
    assert_allclose(families.gram(families.affine(a, b, c)), stacked @ stacked.T, rtol=1e-12)
    assert_allclose(families.gram(families.plane(a, b, c)), np.eye(2), atol=1e-12)
    edges = stacked - a["w"].double().numpy()
    assert_allclose(families.gram(families.simplex(a, b, c)), edges @ edges.T, rtol=1e-12)


@pytest.mark.parametrize("make", [families.affine, families.simplex, families.plane])
def test_projection_is_the_dense_least_squares(make, doubles):
    a, b, c, d = doubles
    family = make(a, b, c)
    origin, one, two, state = (
        torch.cat([point["w"], point["b"][None]]).double().numpy()
        for point in (family.at(0, 0), family.at(1, 0), family.at(0, 1), d)
    )
    axes = np.stack([one - origin, two - origin], axis=1)
    expected, (square,), *_ = np.linalg.lstsq(axes, state - origin, rcond=None)
    coordinates, far = families.project(family, d)
    assert_allclose(coordinates, expected, rtol=1e-9)
    assert_allclose(far, square**0.5, rtol=1e-9)
    coordinates, far = families.project(family, family.at(2, -0.7))
    assert_allclose(coordinates, [2, -0.7], rtol=1e-9)
    assert far < 1e-9


def test_projection_on_oblique_axes_of_unlike_lengths():
    generator = torch.Generator().manual_seed(3)
    origin, one, two, aside = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    two = 1e-5 * (two + 3 * one)
    basis, _ = torch.linalg.qr(torch.stack([one, two], dim=1))
    aside -= basis @ (basis.T @ aside)
    family = families.affine({"w": origin}, {"w": 1e4 * one}, {"w": two})
    coordinates, far = families.project(family, {"w": origin + 2e4 * one - 3 * two + aside})
    assert_allclose(coordinates, [2, -3], rtol=1e-4)  # 1e-16 * 2e4 / 1e-5 is lost in the state
    assert_allclose(coordinates[0], 2, rtol=1e-9)
    assert_allclose(far, aside.norm(), rtol=1e-9)
    flat = families.affine({"w": origin}, {"w": one}, {"w": 0 * one})
    coordinates, far = families.project(flat, {"w": origin + 2 * one})
    assert_allclose(coordinates, [2, 0], atol=1e-12)
    assert far < 1e-12


def test_a_huge_offset_costs_projections_no_digits():
    generator = torch.Generator().manual_seed(3)
    base = (1e4 * torch.ones(1000)).float()
    steps = torch.randn(3, 1000, generator=generator).sign() * 2.0**-8  # exact at this offset
    a, b, c = ({"w": base + step} for step in steps)
    family = families.plane(a, b, c)
    vertices = families.plane_vertices(a, b, c)
    for state, vertex in zip((a, b, c), vertices, strict=True):
        coordinates, far = families.project(family, state)
        assert_allclose(coordinates, vertex, atol=1e-12)
        assert far < 1e-12


def test_what_is_curved_has_no_axes():
    a, b, c, d = VECTORS
    for family in (families.bezier(a, b, c), families.polychain(a, b, c, d)):
        with pytest.raises(ValueError, match=r"curved along \(t\)"):
            families.project(family, d)
        with pytest.raises(ValueError, match="curved"):
            families.gram(family)
    assert_allclose(families.project(families.bezier(a, b), b)[0], [1], rtol=1e-9)
    with pytest.raises(ValueError, match="not of one architecture"):
        families.project(families.line(a, b), {"w": torch.zeros(6)})


def test_projection_reads_a_stored_state_once():
    class Stored:
        num = 0

        def load(self):
            self.num += 1
            return VECTORS[1]

    stored = Stored()
    coordinates, _ = families.project(families.line(*VECTORS[:2]), stored)
    assert_allclose(coordinates, [1], rtol=1e-9)
    assert stored.num == 1


def test_controls_know_their_places():
    a, b, c, _ = VECTORS
    vertices = families.plane_vertices(a, b, c)
    assert_allclose(families.control_places(families.plane(a, b, c)), vertices, atol=1e-9)
    assert_allclose(families.control_places(families.line(a, b)), [[0], [1]], atol=1e-12)
    corners = [[0, 0], [1, 0], [0, 1]]
    assert_allclose(families.control_places(families.simplex(a, b, c)), corners, atol=1e-12)


def test_a_nearly_collinear_plane_still_has_orthonormal_axes(doubles):
    a, b, c, _ = doubles
    near = families.line(a, b).at(0.4)
    near = {"w": near["w"] + 1e-5 * (c["w"] - a["w"]), "b": near["b"]}
    assert_allclose(families.gram(families.plane(a, b, near)), np.eye(2), atol=1e-9)


@pytest.mark.parametrize("normalise", ["filter", "layer", "model", None])
def test_a_random_plane_has_its_state_in_the_centre(normalise):
    case = CASES["residual"]
    model, (state, _) = case.model(), case.states()
    family = families.random_plane(state, model=model, normalise=normalise, num=3)
    assert families.is_about_origin(family)
    centre, point = family.at(0, 0, 0), family.at(0.5, -1, 0.3)
    assert all(torch.equal(centre[name], state[name]) for name in state)
    for name in state:
        moves = name.endswith("weight") and state[name].ndim > 1
        assert torch.equal(point[name], state[name]) != moves, name
    weights = [n for n in state if n.endswith("weight") and state[n].ndim > 1]
    squares = sum(state[n].double().square().sum() for n in weights)
    if normalise is not None:
        assert_allclose(families.gram(family).diagonal(), squares, rtol=1e-9)


def test_bad_directions_are_refused():
    a, b, *_ = VECTORS
    with pytest.raises(ValueError, match="1 to 3 directions, got 0"):
        families.affine(a)
    with pytest.raises(ValueError, match=r"direction of y does not fit.*\n  unknown \(1\): v"):
        families.affine(a, b, {"v": b["w"]})
    with pytest.raises(ValueError, match=r"wrong shape: w \(4,\) for \(5,\)"):
        families.affine(a, {"w": torch.ones(4)})
    with pytest.raises(ValueError, match="num must be 1 to 3, got 4"):
        families.random_plane({"w": torch.ones(2, 2)}, num=4)
    with pytest.raises(ValueError, match="does not fit Sequential"):
        families.random_plane(a, model=CASES["mlp"].model())
