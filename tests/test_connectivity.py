import copy
from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from torch import nn

from landscape.analyses.connectivity import connect, curve_between, curve_of, summary
from landscape.analyses.interpolation import barrier, interpolate
from landscape.datasets import Batches
from landscape.evaluation import evaluate
from landscape.families import bezier
from landscape.maths import curves
from landscape.states import distance
from landscape.task import Task

double = {"dtype": torch.float64}


class Point(nn.Module):
    """Weights in a plane, for losses that are functions of the weights alone."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return self.w.expand(len(x), 2)


def point_task(loss):
    data = Batches(torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4), batch_size=2)
    return Task("train", Point(), loss, data)


def at(*w):
    return {"w": torch.tensor(w, dtype=torch.float64)}


def square(outputs, targets):
    return outputs.square().sum(1) / 2


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("curve", ["bezier", "polychain"])
def test_an_untrained_curve_is_the_line(case, curve):
    a, b = ({n: t.double() if t.is_floating_point() else t for n, t in s.items()}
            for s in case.states())  # fmt: skip
    t = np.linspace(0, 1, 7)
    straight = evaluate(case.task(), curve_between(a, b, curve=curve, bends=3), t, **double)
    line = interpolate(case.task(), a, b, points=t, **double)
    assert_allclose(straight["loss"], line["loss"], rtol=1e-10)


def test_the_trained_bend_of_a_quadratic_is_the_closed_form():
    # minimises the mean over t of |w(t)|^2 / 2: 2/15 bend + 1/10 (a + b) = 0
    a, b = at(1.0, 3.0), at(-2.0, 1.0)
    result = connect(point_task(square), a, b, epochs=4000, batch_size=4, lr=0.3, **double)
    expected = -0.75 * (a["w"] + b["w"])
    assert_allclose(result["bends"].values[0], expected, atol=0.02)


@pytest.mark.parametrize("curve", ["bezier", "polychain"])
def test_a_step_is_the_gradient_through_the_curve(curve):
    """One step of SGD against autograd through w(t), weight decay on w(t) included."""
    case = CASES["mlp"]
    task = Task("train", nn.Sequential(nn.Linear(6, 3)), case.loss, case.task().data)
    a, b = ({k: torch.randn(v.shape, generator=torch.Generator().manual_seed(s)).double()
             for k, v in task.model.state_dict().items()} for s in (1, 2))  # fmt: skip
    options = {"curve": curve, "bends": 2, "epochs": 1, "batch_size": 46, "weight_decay": 0.3}
    sgd = partial(torch.optim.SGD, lr=0.1)
    result = connect(task, a, b, optimiser=sgd, seed=4, **options, **double)

    family = curve_between(a, b, curve=curve, bends=2)
    controls = [torch.cat([c[n].flatten() for n in a]).requires_grad_() for c in family.controls]
    generator = torch.Generator().manual_seed(4)
    torch.randperm(46, generator=generator)  # the order of the data
    t = torch.rand(1, 1, generator=generator, dtype=torch.float64).numpy()
    w = sum(c * row for c, row in zip(family.coefficients(t)[0], controls, strict=True))
    inputs, targets = task.data.inputs.double(), task.data.targets
    outputs = inputs @ w[:18].view(3, 6).T + w[18:]
    (case.loss(outputs, targets).mean() + 0.15 * w.square().sum()).backward()
    expected = [(row - 0.1 * row.grad).detach() for row in controls[1:-1]]
    assert_allclose(result["bends"], torch.stack(expected), rtol=1e-10)


@pytest.mark.parametrize("name", ["residual", "tokens"])
def test_ends_stay_as_they_are_and_the_curve_can_be_had_again(name):
    case = CASES[name]
    task, (a, b) = case.task(), case.states()
    kept = copy.deepcopy((dict(a), dict(b), task.model.state_dict()))
    result = connect(task, a, b, epochs=3, points=9, batch_size=16)
    for state, before in zip((a, b, task.model.state_dict()), kept, strict=True):
        assert all(torch.equal(state[n], before[n]) for n in before)
    family = curve_of(result, a, b)
    assert family.controls[0] is a
    assert family.controls[-1] is b
    again = evaluate(task, family, result["t"].values)
    assert_array_equal(again["loss"], result["loss"])
    assert distance(family.controls[1], bezier(a, b).at(0.5)) > 1e-3
    ends = interpolate(task, a, b, points=2)
    assert_array_equal(result["loss"].sel(t=[0, 1]), ends["loss"])


def test_training_lowers_a_barrier_and_free_ends_move():
    def valley(outputs, targets):  # low on a parabola through both ends
        x, y = outputs.T
        return (y - (1 - x**2)).square()

    task, a, b = point_task(valley), at(-1.0, 0.0), at(1.0, 0.0)
    options = {"epochs": 400, "lr": 0.1, "batch_size": 4, **double}
    line = barrier(interpolate(task, a, b, points=21, **double))
    assert_allclose(line["loss"], 1.0, rtol=1e-12)
    assert barrier(connect(task, a, b, **options))["loss"] < 1e-4
    free = connect(task, at(-1.0, 0.5), at(1.0, -0.5), free_ends=True, **options)
    assert free["loss"].max() < 1e-3
    fixed = connect(task, at(-1.0, 0.5), at(1.0, -0.5), **options)
    assert_allclose(fixed["loss"].sel(t=[0, 1]), 0.25, rtol=1e-12)


def test_a_stopped_training_goes_on_to_the_same_curve():
    case = CASES["mlp"]
    a, b = case.states()
    seen = []
    options = {"epochs": 4, "batch_size": 10, "points": 3, "weight_decay": 1e-3}
    whole = connect(case.task(), a, b, on_snapshot=seen.append, **options)
    resumed = connect(case.task(), a, b, snapshot=seen[1], **options)
    assert_array_equal(resumed["bends"], whole["bends"])
    assert_array_equal(resumed["training_loss"], whole["training_loss"])


def test_a_curve_that_diverges_is_the_last_good_one():
    case = CASES["regression"]
    a, b = case.states()
    result = connect(case.task(), a, b, epochs=20, lr=1e20, points=5)
    assert result.attrs["diverged"] > 0
    assert np.isfinite(result["bends"]).all()
    assert (result["status"] == 1).all()


def test_lengths_norms_and_the_regularised_loss_are_their_closed_forms():
    task, a, b = point_task(square), at(0.0, 0.0), at(2.0, 0.0)
    result = connect(
        task, a, b, start=at(1.0, 2.0), epochs=1, lr=1e-300, points=11, weight_decay=0.5, **double
    )
    t = result["t"].values
    w = np.stack([2 * t, 4 * t * (1 - t)], axis=1)

    def speed(t):
        return np.hypot(2, 4 - 8 * t)

    expected = [quad(speed, 0, end)[0] for end in t]
    assert_allclose(result["arc_length"], expected, rtol=1e-9, atol=1e-12)
    assert_allclose(result.attrs["length_ratio"], expected[-1] / 2, rtol=1e-9)
    assert_allclose(result["weight_norm"], np.linalg.norm(w, axis=1), rtol=1e-12)
    squares = (w**2).sum(1)
    assert_allclose(result["regularised_loss"], squares / 2 + squares / 4, rtol=1e-12)


def test_arc_length_converges_at_order_four_and_is_exact_for_chains():
    gram = np.diag([0.0, 1.0, 2.0, 3.0])
    knots = np.linspace(0, 1, 4)
    chain = partial(curves.hat, num=4)
    sides = np.sqrt([1.0, 3.0, 5.0])
    ends = np.array([0.0, 1 / 3, 0.5, 1.0, -1 / 3])
    lengths = curves.arc_length(chain, gram, ends, knots)
    assert_allclose(
        lengths, [0, sides[0], sides[0] + sides[1] / 2, sides.sum(), -sides[0]], atol=1e-12
    )
    bend = partial(curves.bernstein, degree=2)
    plane = np.array([[0, 0, 0], [0, 5.0, 2.0], [0, 2.0, 4.0]])
    exact = quad(lambda t: np.hypot(2, 4 - 8 * t), 0, 1, epsabs=1e-14)[0]
    sums = [curves._chords(bend, plane, np.array([0.0, 1.0]), num) for num in (8, 16, 32)]
    errors = [abs((4 * fine - coarse) / 3 - exact) for coarse, fine in zip(sums, sums[1:])]  # noqa: B905, RUF007
    assert errors[0] / errors[1] > 12


def test_a_summary_weighs_by_t_or_by_length():
    t = np.array([0.0, 0.5, 1.0, 1.5])
    result = connect(point_task(square), at(0.0, 0.0), at(3.0, 4.0), epochs=1, points=t, **double)
    result["loss"].values[:] = [1.0, 3.0, 2.0, 99.0]
    result["arc_length"].values[:] = [0.0, 1.0, 4.0, 9.0]
    numbers = summary(result)["loss"]
    assert dict(zip(numbers["of"].values.tolist(), numbers.values.tolist(), strict=True)) == {
        "start": 1.0, "end": 2.0, "min": 1.0, "max": 3.0, "mean": 2.25, "arc": (2 + 7.5) / 4,
    }  # fmt: skip
    assert_allclose(curves.path_mean(np.array([1.0, 2.0]), np.zeros(2)), 1.5)


def test_knots_of_a_chain_are_on_the_grid():
    case = CASES["mlp"]
    result = connect(case.task(), *case.states(), curve="polychain", bends=2, epochs=1, points=5)
    assert set(np.linspace(0, 1, 4)) <= set(result["t"].values)
    assert len(result["t"]) == 7


def test_what_cannot_be_joined_is_refused():
    case = CASES["mlp"]
    task, (a, b) = case.task(), case.states()
    with pytest.raises(ValueError, match="curve must be one of bezier, polychain, got 'arc'"):
        connect(task, a, b, curve="arc")
    with pytest.raises(ValueError, match="at least one bend, got 0"):
        connect(task, a, b, bends=0)
    with pytest.raises(ValueError, match="a state for each of 2 bends, got 1"):
        connect(task, a, b, bends=2, start=a)
    other = {name: torch.zeros(*t.shape, 2) for name, t in b.items()}
    with pytest.raises(ValueError, match=r"0.weight expected \(8, 6\), found \(8, 6, 2\)"):
        connect(task, a, other)
    with pytest.raises(ValueError, match="holds no bends"):
        curve_of(interpolate(task, a, b, points=2), a, b)
    curve = connect(task, a, b, epochs=1, points=2)
    with pytest.raises(ValueError, match="in the same order"):
        curve_of(curve, b, a)
    small = {name: t[:2] for name, t in a.items()}
    with pytest.raises(ValueError, match="give the two states that it was trained between"):
        curve_of(curve, small, small)


def test_diagnostics_compare_a_curve_with_its_ends():
    case = CASES["mlp"]
    result = connect(case.task(), *case.states(), epochs=1, points=3, diagnostics=True)
    assert result["disagreement_a"][0] == result["disagreement_b"][-1] == 0
    assert (result["entropy"] > 0).all()


def test_a_curve_with_free_ends_can_be_had_again():
    case = CASES["mlp"]
    task, (a, b) = case.task(), case.states()
    options = {"epochs": 4, "batch_size": 10, "bends": 2, "points": 5}
    result = connect(task, a, b, free_ends=True, lr=0.3, **options)
    family = curve_of(result, a, b)
    assert result.sizes["bend"] == len(family.controls) == 4
    assert distance(family.controls[0], a) > 1e-3
    assert_array_equal(evaluate(task, family, result["t"].values)["loss"], result["loss"])


@pytest.mark.parametrize("absent", ["embed.weight", "out.weight"])
def test_checkpoints_may_hold_tied_weights_once(absent):
    case = CASES["tokens"]
    task, states = case.task(), case.states()
    once = [{name: t for name, t in state.items() if name != absent} for state in states]
    options = {"epochs": 1, "points": 3, "batch_size": 16}
    result, whole = (connect(task, *ends, **options) for ends in (once, states))
    assert_array_equal(result["loss"], whole["loss"])
    assert_array_equal(result["bends"], whole["bends"])
    assert set(curve_of(result, *once).controls[1]) == set(once[0])


def test_the_data_of_a_recipe_are_recorded_by_their_kind():
    case = CASES["mlp"]
    batches = list(case.task().data)
    result = connect(case.task(), *case.states(), epochs=1, points=2, data=batches)
    assert result.attrs["data"] == "list"
    assert result.attrs["decayed"] == "*"
