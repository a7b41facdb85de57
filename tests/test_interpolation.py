import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from landscape.analyses.interpolation import barrier, interpolate
from landscape.datasets import Batches
from landscape.evaluation import evaluate
from landscape.maths.resampling import bootstrap_interval
from landscape.results import dataset
from landscape.states import distance
from landscape.strategy import Strategy
from landscape.task import Task


def path(t, loss, **more):
    """A result along t as `interpolate` would give it."""
    t, loss = np.asarray(t, float), np.asarray(loss, float)
    variables = {"loss": ("t", loss), "loss_stderr": ("t", np.zeros(len(t)))}
    variables["status"] = ("t", np.ones(len(t), np.uint8))
    return dataset(variables | more, {"t": t}, analysis="interpolation", title="a path")


def test_both_ends_are_on_the_line_with_their_own_values():
    case = CASES["residual"]
    task, (a, b) = case.task(), case.states()
    line = interpolate(task, a, b, points=7)
    assert_allclose(line["t"], [0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1])
    own = evaluate(task, [a, b], batch_norm="keep")
    assert_array_equal(line["own_loss"][[0, -1]], own["loss"])
    assert_array_equal(line["own_error"][[0, -1]], own["error"])
    assert line["own_loss"][1:-1].isnull().all()
    recalibrated = evaluate(task, [a, b])
    assert_array_equal(line["loss"][[0, -1]], recalibrated["loss"])
    assert abs(line["loss"] - line["own_loss"]).max() > 1e-3
    assert_allclose(line.attrs["distance"], distance(a, b))


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_own_values_are_the_ends_where_statistics_are_kept(name):
    case = CASES[name]
    line = interpolate(case.task(), *case.states(), points=[-0.5, 0, 0.5, 1, 2], batch_norm="keep")
    assert_array_equal(line["own_loss"][[1, 3]], line["loss"][[1, 3]])
    assert line["own_loss"].isnull().sum() == 3


def test_chunks_of_a_line_are_the_line():
    case = CASES["residual"]
    task, states = case.task(), case.states()
    strategy = Strategy(points=2)
    whole = interpolate(task, *states, points=5, strategy=strategy)
    parts = [
        interpolate(task, *states, points=t, strategy=strategy)
        for t in ([0.0, 0.25], [0.5], [0.75, 1.0])
    ]
    for name in ("loss", "error", "loss_stderr", "own_loss"):
        assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_the_barrier_of_a_quadratic_is_the_closed_form():
    x = torch.randn(60, 3, dtype=torch.float64)
    model = torch.nn.Linear(3, 1, bias=False)
    task = Task(
        "saddle",
        model,
        lambda out, y: -(out - y).square().sum(1),
        Batches(x, torch.zeros(60, 1), 16),
    )
    a, b = ({"weight": torch.randn(1, 3, dtype=torch.float64)} for _ in range(2))
    line = interpolate(task, a, b, points=101, dtype=torch.float64)
    d = (b["weight"] - a["weight"])[0]
    height = 0.25 * d @ (x.T @ x / 60) @ d  # t (1 - t) d'Cd is largest at t = 1/2
    found = barrier(line)
    assert_allclose(found["loss"], height, rtol=1e-10)
    assert found["loss_position"] == 0.5
    assert_allclose(found.attrs["resolution"], 0.01)


T = np.linspace(0, 1, 5)


@pytest.mark.parametrize(
    ("values", "chord", "mean", "largest"),
    [
        ([1, 2, 5, 2, 1], 4.0, 4.0, 4.0),  # a hill between equal ends
        ([0, 1, 2, 3, 4], 0.0, 2.0, 0.0),  # monotone: "mean" sees a barrier where there is none
        ([4, 1, 0, 1, 2], 0.0, 1.0, 0.0),  # a valley
        ([0, 3, 1, 3, 4], 2.0, 2.0, 0.0),  # a hill below the higher end
    ],
)
def test_definitions_of_the_barrier(values, chord, mean, largest):
    found = [float(barrier(path(T, values), kind)["loss"]) for kind in ("chord", "mean", "max")]
    assert_allclose(found, [chord, mean, largest], atol=1e-12)


def test_splits_and_points_outside_of_the_ends():
    t = np.array([-0.5, 0, 0.5, 1, 1.5])
    loss = np.array([[9.0, 1, 3, 1, 9], [9, 0, 0, 0, 9]])
    variables = {"loss": (("split", "t"), loss), "loss_stderr": (("split", "t"), 0 * loss)}
    variables["status"] = ("t", np.ones(5, np.uint8))
    coords = {"t": t, "split": ["train", "test"]}
    found = barrier(dataset(variables, coords, analysis="interpolation", title=""))
    assert found["loss"].sel(split="train") == 2
    assert found["loss"].sel(split="test") == 0
    assert found["loss_position"].sel(split="train") == 0.5


def test_a_path_over_infinity_has_an_infinite_barrier():
    assert barrier(path(T, [1, 1, np.inf, 1, 1]))["loss"] == np.inf
    assert np.isnan(barrier(path(T, [1, 1, np.nan, 1, 1]))["loss"])


def test_intervals_come_with_the_examples():
    case = CASES["mlp"]
    line = interpolate(case.task(), *case.states(), points=5, keep_examples=True)
    found = barrier(line, "mean")
    assert found["loss_low"] < found["loss"] < found["loss_high"]
    assert found["loss_low"] == barrier(line, "mean")["loss_low"]
    assert found["loss_low"] != barrier(line, "mean", seed=1)["loss_low"]
    assert "loss_low" not in barrier(interpolate(case.task(), *case.states(), points=5))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(size=(1, 4000))
    low, high = bootstrap_interval(values, lambda means: means[:, 0], num=4000)
    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(4000)
    assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.06 * half)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        peak = rng.exponential(size=300)  # the barrier of its mean is 1
        values = np.stack([np.zeros(300), peak, np.zeros(300)])
        low, high = bootstrap_interval(values, lambda m: m.max(1), level=0.9, num=300, seed=seed)
        hits += low <= 1 <= high
    assert 0.83 <= hits / 200 <= 0.96


def test_large_data_are_resampled_in_parts():
    values = np.random.default_rng(2).normal(size=(2, 2**21))
    low, high = bootstrap_interval(values, lambda means: means[:, 0], num=24)
    assert abs(high - low) < 10 / np.sqrt(2**21)


def test_what_cannot_be_asked():
    with pytest.raises(ValueError, match="'chord', 'mean' or 'max', got 'relative'"):
        barrier(path(T, T), "relative")
    with pytest.raises(ValueError, match="needs both ends"):
        barrier(path([0.1, 1], [0, 0]))
    pending = path(T, T)
    pending["status"][2] = 0
    with pytest.raises(ValueError, match="still pending"):
        barrier(pending)
    with pytest.raises(ValueError, match="at least two examples, got 1"):
        bootstrap_interval(np.zeros((2, 1)), lambda m: m[:, 0])
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        bootstrap_interval(np.zeros((2, 5)), lambda m: m[:, 0], level=95)


def test_a_path_leads_through_all_its_states():
    case = CASES["residual"]
    states = case.states(3)
    task = case.task()
    result = interpolate(task, *states, points=4, dtype=torch.float64)
    assert_array_equal(result["t"], [0, 1 / 3, 0.5, 2 / 3, 1])  # the knot is added
    first = interpolate(task, *states[:2], points=[0, 2 / 3, 1], dtype=torch.float64)
    assert_allclose(result["loss"][:3], first["loss"], rtol=1e-12)
    own = evaluate(task, states, batch_norm="keep", dtype=torch.float64)
    assert_allclose(result["own_loss"].dropna("t"), own["loss"], rtol=1e-12)
    assert_allclose(result.attrs["distance"], distance(states[0], states[2]))


@pytest.mark.parametrize("layers", ["each", "blocks", ["stem", "head.0"]])
def test_layers_move_one_by_one(layers):
    case = CASES["residual"]
    a, b = case.states()
    result = interpolate(case.task(), a, b, points=3, layers=layers, dtype=torch.float64)
    names = {
        "each": ["stem.0", "stem.1", "branch.0", "branch.1", "head.0", "head.1", "head.2"],
        "blocks": ["stem", "branch", "head"],
    }.get(layers if isinstance(layers, str) else "", layers)
    assert result["layer"].values.tolist() == names
    for name in names:
        mixed = {n: (t + b[n]) / 2 if n.startswith(name) and t.is_floating_point() else t
                 for n, t in a.items()}  # fmt: skip
        alone = evaluate(case.task(), [mixed], batch_norm="recalibrate", dtype=torch.float64)
        assert_allclose(result["loss"].sel(layer=name, t=0.5), alone["loss"][0], rtol=1e-6)
    assert barrier(result)["loss"].dims == ("layer",)


def test_what_cannot_be_moved_alone_is_refused():
    case = CASES["residual"]
    a, b = case.states()
    with pytest.raises(ValueError, match="no tensor of the model is named 'stemm'"):
        interpolate(case.task(), a, b, layers=["stemm"])
    with pytest.raises(ValueError, match="names no part"):
        interpolate(case.task(), a, b, layers=[])
    with pytest.raises(ValueError, match="not for a path"):
        interpolate(case.task(), a, b, a, layers="each")
    with pytest.raises(ValueError, match="choose layers or align"):
        interpolate(case.task(), a, b, layers="each", align=True)


def test_diagnostics_compare_with_both_ends():
    case = CASES["mlp"]
    a, b = case.states()
    plain = interpolate(case.task(), a, b, points=3)
    result = interpolate(case.task(), a, b, points=3, diagnostics=True)
    assert_array_equal(result["loss"], plain["loss"])
    assert_array_equal(result["own_error"], plain["own_error"])
    assert result["disagreement_a"][0] == result["disagreement_b"][-1] == 0
    assert result["disagreement_a"][-1] == result["disagreement_b"][0] > 0
    assert not [name for name in result if "gap" in str(name)]


def test_raw_and_aligned_in_one_result():
    case = CASES["mlp"]
    a, _ = case.states()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    b = {**a, "0.weight": a["0.weight"][order], "0.bias": a["0.bias"][order],
         "3.weight": a["3.weight"][:, order]}  # fmt: skip
    result = interpolate(case.task(), a, b, points=5, align=True)
    raw, aligned = result["loss"].values
    assert abs(raw[2] - raw[0]) > 1e-3
    assert_allclose(aligned, raw[0], atol=1e-6)
    assert result.attrs["distance"] > 1 > 1e-6 > result.attrs["aligned_distance"]
    given = interpolate(case.task(), a, b, points=5, align=a)
    assert_array_equal(given["loss"].sel(alignment="aligned"), given["loss"][1, 0])


def test_a_point_may_be_asked_for_twice():
    case = CASES["mlp"]
    result = interpolate(case.task(), *case.states(), points=[0.0, 0.0, 0.5, 1.0])
    assert_array_equal(result["own_loss"].isnull(), [False, False, True, False])
    assert_array_equal(result["own_loss"][[0, 1, 3]], result["loss"][[0, 1, 3]])
