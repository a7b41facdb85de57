import json
import pickle

import numpy as np
import pytest
import torch
from cases import CASES, squared_error, uneven
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.utils.data import TensorDataset

from landscape import families
from landscape.analyses.surface import (
    few_examples,
    finished,
    surface,
    surface_plan,
    surface_rows,
)
from landscape.datasets import Batches
from landscape.evaluation import evaluate, prepare
from landscape.results import problems, sweep
from landscape.states import distance
from landscape.task import Task

DOUBLE = {"dtype": torch.float64}


def bowl(num=12):
    """A linear regression in float64: its loss is a quadratic of the weights."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 2).double()
    states = [
        {
            "weight": torch.randn(2, 3, generator=generator, dtype=torch.float64),
            "bias": torch.randn(2, generator=generator, dtype=torch.float64),
        }
        for _ in range(4)
    ]
    return Task("train", model, squared_error, Batches(x, y, batch_size=5)), states


def height(task, state):
    """The closed form of its loss."""
    data = task.data
    rest = data.inputs @ state["weight"].T + state["bias"] - data.targets
    return rest.square().mean().item()


class Given(nn.Module):
    """Its output is its two weights, so that a loss is any function of the plane."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return self.place + x


def drawn(function, num=4):
    """A task whose loss at (x, y) is `function` of them, and the family of these."""

    def loss(outputs, targets):
        return function(outputs[:, 0], outputs[:, 1]) + 0 * targets

    zeros = torch.zeros(num, 2, dtype=torch.float64)
    task = Task("train", Given(), loss, Batches(zeros, torch.zeros(num, dtype=torch.float64)))
    one, two = torch.eye(2, dtype=torch.float64)
    origin = {"place": torch.zeros(2, dtype=torch.float64)}
    return task, families.affine(origin, {"place": one}, {"place": two})


def test_a_plane_through_three_states_maps_them_back():
    task, (a, b, c, d) = bowl()
    curve = families.bezier(a, d, b)
    result = surface(task, [a, b, c], points=(3, 5), marks={"d": d}, curve=curve, **DOUBLE)
    assert result["loss"].dims == ("x", "y")
    assert result["loss"].shape == (3, 5)
    vertices = families.plane_vertices(a, b, c)
    assert list(result["mark"].values) == ["w1", "w2", "w3", "d"]
    places = np.stack([result["mark_x"], result["mark_y"]], axis=1)
    assert_allclose(places[:3], vertices, atol=1e-9)
    assert_allclose(result["mark_distance"][:3], 0, atol=1e-9)
    family = families.plane(a, b, c)
    nearest = family.at(*places[3])
    assert_allclose(result["mark_distance"][3], distance(nearest, d), rtol=1e-9)
    assert result["mark_distance"][3] > 0.1
    for state, place in zip((a, b, c), places[:3], strict=True):
        assert distance(family.at(*place), state) < 1e-5
    wide = np.ptp(vertices, axis=0).max()
    for axis, name in enumerate("xy"):  # all three are on the grid, with a fifth on all sides
        low, high = vertices[:, axis].min(), vertices[:, axis].max()
        ends = [low - 0.2 * wide, high + 0.2 * wide]
        assert_allclose(result[name][[0, -1]], ends, atol=1e-9)
        assert result[name].attrs["units"] == "distance"
    assert_allclose(result["gram"], np.eye(2), atol=1e-9)
    ends = result.isel(curve_t=[0, -1])
    assert_allclose(np.stack([ends["curve_x"], ends["curve_y"]], 1), vertices[:2], atol=1e-9)
    assert result.sizes["curve_t"] == 61
    middle, far = families.project(family, curve.at(0.5))
    assert_allclose(result["curve_distance"].sel(curve_t=0.5), far, rtol=1e-9)
    assert_allclose(result["curve_y"].sel(curve_t=0.5), middle[1], rtol=1e-9)
    assert problems(result) == []


def test_every_value_of_a_quadratic_is_its_closed_form():
    task, (a, b, c, _) = bowl()
    family = families.plane(a, b, c)
    result = surface(task, [a, b, c], points=(3, 5), **DOUBLE)
    for i, x in enumerate(result["x"].values):
        for j, y in enumerate(result["y"].values):
            assert_allclose(result["loss"][i, j], height(task, family.at(x, y)), rtol=1e-10)
    space = surface(task, families.affine(a, b, c, {"bias": a["bias"]}), points=3, **DOUBLE)
    assert space["loss"].dims == ("x", "y", "z")
    expected = height(task, families.affine(a, b, c, {"bias": a["bias"]}).at(-1, 0, 1))
    assert_allclose(space["loss"][0, 1, 2], expected, rtol=1e-10)
    flat = surface(task, families.line(a, b), x=[0.25, 2.0], marks={"c": c}, **DOUBLE)
    assert_allclose(flat["loss"][1], height(task, families.line(a, b).at(2.0)), rtol=1e-10)
    assert_allclose(flat["gram"], [[distance(a, b) ** 2]], rtol=1e-12)
    assert flat["t"].attrs["units"] == ""
    assert flat["mark_t"].dims == ("mark",)


@pytest.mark.parametrize("name", ["mlp", "residual", "tokens"])
def test_the_centre_of_a_random_plane_is_the_model_itself(name):
    case = CASES[name]
    task, (state, other) = case.task(), case.states()
    result = surface(task, state, points=(3, 5), marks={"other": other}, extent=0.3)
    own = evaluate(task, [state])
    assert_array_equal(result["loss"].sel(x=0, y=0), own["loss"][0])
    assert_allclose(result["x"], [-0.3, 0, 0.3], rtol=1e-15)
    family = families.random_plane(state, model=task.model)
    assert_array_equal(result["gram"], families.gram(family))
    assert result.attrs["normalise"] == "filter"
    assert result.attrs["seed"] == 0
    coordinates, far = families.project(family, other)
    found = [result["mark_x"].item(), result["mark_y"].item(), result["mark_distance"].item()]
    assert_allclose(found, [*coordinates, far], rtol=1e-12)
    kept = surface(task, state, points=3, batch_norm="keep", seed=1)
    assert_array_equal(
        kept["loss"].sel(x=0, y=0), evaluate(task, [state], batch_norm="keep")["loss"][0]
    )


def test_grids_about_a_state_contain_it():
    task, (a, b, c, _) = bowl()
    for size, extent in ((3, 0.3), (13, 0.3), (21, 1.0), (51, 0.7)):
        plan = surface_plan(a, model=task.model, points=size, extent=extent)
        assert plan.axes[0][size // 2] == 0
        assert_allclose(plan.axes[0], np.linspace(-extent, extent, size), atol=1e-12)
    with pytest.raises(ValueError, match="points must be odd, got 20: the middle one"):
        surface(task, a, points=20)
    with pytest.raises(ValueError, match="values of y must contain 0: that point is the state"):
        surface(task, a, x=[-1, 0, 1], y=[0.5, 1.0])
    with pytest.raises(ValueError, match="must be odd, got 4"):
        surface(task, families.affine(a, b, c), x=[1.0], points=4)
    elsewhere = surface(task, families.affine(a, b, c), x=[1.0], y=[0.5, 2], **DOUBLE)
    assert_allclose(elsewhere["loss"][0, 0], height(task, families.affine(a, b, c).at(1, 0.5)))
    assert surface_plan(a, model=task.model, points=(401,)).family.coordinates == ("x",)
    assert surface_plan(a, model=task.model, points=3, z=[0.0]).family.coordinates == (
        "x",
        "y",
        "z",
    )


def test_bad_requests_are_refused():
    task, (a, b, c, d) = bowl()
    with pytest.raises(ValueError, match="through three states, got 2"):
        surface(task, [a, b])
    with pytest.raises(ValueError, match="lie on a line"):
        surface(task, [a, b, families.line(a, b).at(0.3)])
    with pytest.raises(ValueError, match=r"this family has 1 \(t\)"):
        surface(task, families.line(a, b), y=[0.0])
    with pytest.raises(ValueError, match="has 4"):
        surface(task, families.simplex(a, b, c, d, a))
    with pytest.raises(ValueError, match=r"one for each of \(x, y\); got \(3, 4, 5\)"):
        surface(task, [a, b, c], points=(3, 4, 5))
    with pytest.raises(ValueError, match="a curve has one coordinate"):
        surface(task, [a, b, c], curve=families.plane(a, b, c))
    with pytest.raises(ValueError, match="curved along"):
        surface(task, families.bezier(a, b, c), marks={"d": d})


def test_a_curve_is_a_surface_of_one_coordinate_without_axes():
    task, (a, b, c, _) = bowl()
    curve = families.bezier(a, b, c)
    result = surface(task, curve, points=5, **DOUBLE)
    assert_allclose(result["t"], np.linspace(0, 1, 5))
    assert_allclose(result["loss"][2], height(task, curve.at(0.5)), rtol=1e-10)
    assert "gram" not in result


def test_marks_may_name_the_three_states_and_are_read_when_needed():
    task, (a, b, c, d) = bowl()

    class Stored:
        def __init__(self, state):
            self.state = state
            self.num = 0

        def load(self):
            self.num += 1
            return self.state

    first, more = Stored(a), Stored(d)
    result = surface(task, [first, b, c], points=3, marks={"start": first, "far": more}, **DOUBLE)
    assert list(result["mark"].values) == ["start", "w2", "w3", "far"]
    assert (first.num, more.num) == (1, 2)  # a further mark before the surface, and after it
    for marks in ({"w2": d}, {"w2": a}):
        with pytest.raises(ValueError, match="name 'w2' of a mark is that of one of the three"):
            surface(task, [a, b, c], marks=marks)


def test_marks_and_curves_that_do_not_fit_are_refused_before_any_evaluation():
    _, (a, b, c, _) = bowl()
    other = {"weight": a["weight"]}
    with pytest.raises(ValueError, match=r"mark 'odd' \(1\) differ: (.|\n)*missing \(1\): bias"):
        surface_plan([a, b, c], marks={"odd": other})
    with pytest.raises(ValueError, match=r"the curve \(1\) differ: (.|\n)*missing \(1\): bias"):
        surface_plan([a, b, c], curve=families.line(other, other))
    with pytest.raises(ValueError, match="curved along"):
        surface_plan(families.bezier(a, b, c), curve=families.line(a, b))


@pytest.mark.parametrize("axis", [np.arange(-1, 1.1, 0.1), np.linspace(-0.1, 0.1, 23)])
def test_an_axis_that_misses_the_state_by_rounding_contains_it(axis):
    _, (a, *_) = bowl()
    assert 0.0 not in axis
    across, _ = surface_plan(a, x=axis, y=[-1e-9, 0, 1]).axes
    assert_array_equal(across[across != 0], axis[across != 0])
    assert_allclose(across, axis, atol=1e-15)
    assert 0.0 in across
    with pytest.raises(ValueError, match="extent must be positive, got 0"):
        surface_plan(a, extent=0)


def test_a_negative_margin_would_turn_the_axes_around():
    _, (a, b, c, _) = bowl()
    with pytest.raises(ValueError, match="margin must not be negative, got -1"):
        surface_plan([a, b, c], margin=-1)


def test_rows_in_a_file_are_the_surface(tmp_path):
    task, (a, b, c, d) = bowl()
    whole = surface(task, [a, b, c], points=(5, 4), marks={"d": d}, **DOUBLE)
    plan = pickle.loads(pickle.dumps(surface_plan([a, b, c], points=(5, 4), marks={"d": d})))
    ready = prepare(task, plan.family, **DOUBLE)
    rows = sweep(
        lambda x: surface_rows(ready, plan, x), {"x": plan.axes[0]}, output=tmp_path / "s.h5",
        plan={}, title="rows", analysis="surface", seconds=0,
    )  # fmt: skip
    result = finished(rows, plan)
    for name in whole.variables:
        assert_array_equal(result[name], whole[name], err_msg=name)
        assert result[name].dims == whole[name].dims
    assert result.attrs["title"] == whole.attrs["title"] == "Surface of 5 x 4 points"


# --- previews -------------------------------------------------------------------------------------


def _joined(batches):
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_a_preview_takes_evenly_spread_examples_of_any_data():
    task, (a, b, c, _) = bowl()
    x, y = task.data.inputs, task.data.targets
    rows = torch.linspace(0, 11, 5).round().long()
    assert rows.tolist() == [0, 3, 6, 8, 11] or rows.tolist() == [0, 3, 5, 8, 11]
    streamed = Task("train", task.model, task.loss, uneven(TensorDataset(x, y)))
    listed = Task("train", task.model, task.loss, [(x[:7], y[:7]), (x[7:], y[7:])])
    for one in (task, streamed, listed):
        before = torch.get_rng_state()
        (few,) = few_examples(one, 5)
        assert torch.equal(before, torch.get_rng_state())
        inputs, targets = _joined(few.data)
        picked = [int((x == row).all(1).nonzero()) for row in inputs]
        assert picked in ([0, 3, 6, 8, 11], [0, 3, 5, 8, 11])
        assert torch.equal(targets, y[picked])
        values = surface(one, [a, b, c], points=3, examples=5, **DOUBLE)
        exact = Task("train", task.model, task.loss, Batches(x[picked], y[picked]))
        assert_allclose(values["loss"], surface(exact, [a, b, c], points=3, **DOUBLE)["loss"])
        assert values.attrs["examples"] == values["num_examples"] == 5
        assert_allclose(values["loss_stderr"][0, 0], _stderr(exact, values, a, b, c), rtol=1e-9)
    assert few_examples(task, 99)[0].data is task.data
    with pytest.raises(ValueError, match="at least 2 examples"):
        surface(task, a, examples=1)
    with pytest.raises(TypeError, match=r"few_examples\(tasks, num\)"):
        surface(prepare(task, [a], **DOUBLE), a, examples=5)


def _stderr(task, result, *states):
    point = families.plane(*states).at(result["x"].values[0], result["y"].values[0])
    rest = task.data.inputs @ point["weight"].T + point["bias"] - task.data.targets
    losses = rest.square().mean(1)
    return (losses.var() / len(losses)).sqrt().item()


# --- refinement -----------------------------------------------------------------------------------


def valley(x, y):
    """A curved valley with a ridge: contours bend, and the maximum is inside."""
    return 3 * torch.exp(-8 * ((x - 0.31) ** 2 + (y + 0.17) ** 2)) + (x + y**2) ** 2 + 0.1 * y**2


def test_a_refined_surface_is_the_fine_one_where_it_matters():
    task, family = drawn(valley)
    plan = {"x": np.linspace(-1, 1, 26), "y": np.linspace(-1, 1, 26)}
    coarse = surface(task, family, **plan, **DOUBLE)
    fine = surface(task, family, points=51, **DOUBLE)
    refined = surface(task, family, previous=coarse, **DOUBLE)
    assert_allclose(refined["x"], fine["x"], atol=1e-15)
    evaluated = refined["evaluated"].values == 1
    assert_array_equal(evaluated[::2, ::2], True)
    assert_allclose(refined["loss"].values[evaluated], fine["loss"].values[evaluated], atol=1e-12)
    new = evaluated.sum() - coarse["loss"].size
    assert new < 0.3 * (fine["loss"].size - coarse["loss"].size)
    found, exact = refined["loss"].values, fine["loss"].values
    span = exact.max() - exact.min()
    assert 0 < abs(found - exact).max() < 0.02 * span
    assert found.argmin() == exact.argmin()
    hill = (slice(20, 45), slice(10, 33))  # its top is the maximum inside of the grid
    assert found[hill].argmax() == exact[hill].argmax()
    assert_allclose(found[hill].max(), exact[hill].max(), atol=1e-12)
    for level in exact.min() + span * np.geomspace(1e-3, 1, 12)[1:-1]:
        wrong = (found > level) != (exact > level)  # points on the wrong side of a contour
        assert wrong.mean() < 0.003
    assert (refined["status"] == 1).all()
    assert problems(refined) == []


def test_a_linear_surface_needs_hardly_any_new_point():
    task, family = drawn(lambda x, y: 2 * x - y + 3)
    coarse = surface(task, family, points=11, **DOUBLE)
    refined = surface(task, family, previous=coarse, **DOUBLE)
    fine = surface(task, family, points=21, **DOUBLE)
    assert_allclose(refined["loss"], fine["loss"], atol=1e-12)
    assert refined["evaluated"].sum() - 121 <= 10  # around the highest and the lowest corner
    flat_task, _ = drawn(lambda x, y: 0 * x + 3)
    coarse = surface(flat_task, family, points=11, **DOUBLE)
    refined = surface(flat_task, family, previous=coarse, **DOUBLE)
    assert refined["evaluated"].sum() == 121
    assert_allclose(refined["loss"], 3)
    assert refined.attrs["batch_norm"] == "none"


def test_points_around_values_that_are_not_finite_are_evaluated():
    task, family = drawn(lambda x, y: (x + y) / (x < 0.45))
    coarse = surface(task, family, points=11, **DOUBLE)
    refined = surface(task, family, previous=coarse, **DOUBLE)
    fine = surface(task, family, points=21, **DOUBLE)
    assert_array_equal(np.isfinite(refined["loss"]), np.isfinite(fine["loss"]))
    assert_array_equal(refined["status"], fine["status"])
    finite = np.isfinite(fine["loss"].values)
    assert_allclose(refined["loss"].values[finite], fine["loss"].values[finite], atol=1e-12)


def test_refinement_goes_on_from_a_refined_surface():
    task, family = drawn(valley)
    once = surface(task, family, points=11, **DOUBLE)
    for _ in range(2):
        once = surface(task, family, previous=once, **DOUBLE)
    fine = surface(task, family, points=41, **DOUBLE)
    evaluated = once["evaluated"].values == 1
    assert evaluated.mean() < 0.7
    assert_allclose(once["loss"].values[evaluated], fine["loss"].values[evaluated], atol=1e-12)
    assert abs(once["loss"].values - fine["loss"].values).max() < 0.025 * fine["loss"].values.max()


def test_values_of_other_examples_are_not_taken_over():
    task, (a, b, c, _) = bowl()
    preview = surface(task, [a, b, c], points=7, examples=6, **DOUBLE)
    refined = surface(task, [a, b, c], previous=preview, **DOUBLE)
    family = families.plane(a, b, c)
    evaluated = refined["evaluated"].values == 1
    assert evaluated[::2, ::2].all()
    assert refined["num_examples"] == 12
    assert refined.attrs["examples"] == 0
    for i, j in np.argwhere(evaluated):
        point = family.at(refined["x"].values[i], refined["y"].values[j])
        assert_allclose(refined["loss"][i, j], height(task, point), rtol=1e-10)
    missing = np.argwhere(~evaluated)
    assert len(missing)
    whole = surface(task, [a, b, c], points=13, **DOUBLE)
    assert abs(refined["loss"].values - whole["loss"].values).max() < 0.02 * whole["loss"].max()


def test_refined_rows_in_any_order_are_the_refined_surface():
    task, (a, b, c, _) = bowl()
    other = Task(
        "test",
        task.model,
        task.loss,
        Batches(*(t[:7] for t in (task.data.inputs, task.data.targets))),
    )
    for examples in (None, 6):
        coarse = surface([task, other], [a, b, c], points=(5, 9), examples=examples, **DOUBLE)
        whole = surface([task, other], [a, b, c], previous=coarse, **DOUBLE)
        assert whole["loss"].dims == ("split", "x", "y")
        plan = surface_plan([a, b, c], previous=coarse)
        ready = prepare([task, other], plan.family, **DOUBLE)
        rows = [surface_rows(ready, plan, plan.axes[0][i : i + 1]) for i in range(9)]
        for name in ("loss", "loss_stderr", "status", "evaluated"):
            dims = whole[name].dims
            parts = np.concatenate([row[name].values for row in rows], axis=dims.index("x"))
            known = np.isfinite(parts)
            assert_array_equal(parts[known], whole[name].values[known])
        assert_array_equal(rows[3]["num_examples"], [12, 7])


def test_a_previous_surface_must_be_of_the_same_family_and_task():
    task, (a, b, c, d) = bowl()
    coarse = surface(task, [a, b, c], points=3, **DOUBLE)
    assert json.loads(coarse.attrs["strategy"])
    with pytest.raises(ValueError, match="of another family"):
        surface(task, [a, b, d], previous=coarse, **DOUBLE)
    with pytest.raises(ValueError, match="of another family"):
        surface(task, [families.line(a, b).at(-0.1), b, c], previous=coarse, **DOUBLE)
    with pytest.raises(ValueError, match="leave out x, y and z"):
        surface(task, [a, b, c], x=[1.0], previous=coarse, **DOUBLE)
    with pytest.raises(ValueError, match=r"must be a surface over \(t\)"):
        surface(task, families.line(a, b), previous=coarse, **DOUBLE)
    test = Task("test", task.model, task.loss, task.data)
    with pytest.raises(ValueError, match="previous surface is of train, not of test"):
        surface(test, [a, b, c], previous=coarse, **DOUBLE)
    plan = surface_plan([a, b, c], previous=coarse)
    with pytest.raises(ValueError, match="does not have the rows"):
        surface_rows(task, plan, [0.123], **DOUBLE)
    pending = coarse.assign(status=coarse["status"] * 0)
    with pytest.raises(ValueError, match="pending or failed"):
        surface(task, [a, b, c], previous=pending, **DOUBLE)
    case = CASES["residual"]
    task, states = case.task(), case.states(3)
    coarse = surface(task, states, points=3, batch_norm="keep")
    with pytest.raises(ValueError, match="batch_norm='keep': refine it with the same"):
        surface(task, states, previous=coarse)


def test_nothing_of_the_user_is_changed():
    case = CASES["residual"]
    task, states = case.task(), case.states(3)
    task.model.train()
    task.model.stem[0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in task.model.parameters()]
    before = {n: t.clone() for n, t in task.model.state_dict().items()}
    kept = [{n: t.clone() for n, t in state.items()} for state in states]
    random = torch.get_rng_state()
    surface(task, states, points=3, examples=20, marks={"again": states[0]})
    surface(task, states[0], points=3)
    assert torch.equal(random, torch.get_rng_state())
    assert task.model.training
    assert flags == [p.requires_grad for p in task.model.parameters()]
    after = task.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    for state, copy in zip(states, kept, strict=True):
        assert all(torch.equal(state[name], copy[name]) for name in copy)
