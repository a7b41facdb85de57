import gc
import weakref

import numpy as np
import pytest
import torch
from cases import CASES, squared_error
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from landscape.analyses import trajectory as module
from landscape.analyses.surface import finished, surface_rows
from landscape.analyses.trajectory import (
    trajectory,
    trajectory_path,
    trajectory_plan,
    trajectory_plane,
    with_surface,
)
from landscape.datasets import Batches
from landscape.evaluation import evaluate, prepare
from landscape.families import gram, project
from landscape.results import problems, sweep
from landscape.task import Task

DOUBLE = {"dtype": torch.float64}


def walk(num=7, *, seed=0, size=(4, 5)):
    """States of a random walk, in float64, with a buffer that is no weight."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num, *size, generator=generator, dtype=torch.float64).cumsum(0)
    biases = torch.randn(num, size[0], generator=generator, dtype=torch.float64).cumsum(0)
    return [
        {"weight": w, "bias": b, "n.running_mean": torch.full((2,), float(i))}
        for i, (w, b) in enumerate(zip(steps, biases, strict=True))
    ]


def stacked(states):
    return np.stack([np.concatenate([s["weight"].ravel(), s["bias"]]) for s in states])


class Stored:
    """A checkpoint that counts how many of its kind are in memory at once."""

    live = 0
    most = 0

    def __init__(self, state, step):
        self.state, self.step = state, step

    def load(self):
        state = dict(self.state)
        tensor = state["weight"].clone()
        weakref.finalize(tensor, self._gone)
        Stored.live += 1
        Stored.most = max(Stored.most, Stored.live)
        return {**state, "weight": tensor}

    @staticmethod
    def _gone():
        Stored.live -= 1


@pytest.mark.parametrize("origin", ["last", "mean"])
@pytest.mark.parametrize("num", [7, 21])
def test_the_path_is_that_of_a_singular_value_decomposition(origin, num):
    states = walk(num)
    result = trajectory(None, states, origin=origin, num_components=3)
    rows = stacked(states)
    rows = rows - (rows[-1] if origin == "last" else rows.mean(0))
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    for k, axis in enumerate("xyz"):
        expected = left[:, k] * values[k]
        expected *= -np.sign(expected[0])  # from left to right
        assert_allclose(result[f"path_{axis}"], expected, rtol=1e-9, atol=1e-9)
    assert_allclose(result["explained_variance"], values[:3] ** 2 / (values**2).sum(), rtol=1e-9)
    rest = np.linalg.norm((left * values)[:, 3:], axis=1)
    assert_allclose(result["path_distance"], rest, atol=1e-6)
    assert result["explained_variance"].sum() <= 1
    assert result.attrs["origin"] == origin
    assert "different axes" in result.attrs["axes"]
    assert problems(result) == []


@pytest.mark.parametrize("origin", ["last", "mean"])
def test_checkpoints_projected_on_the_plane_lie_on_the_path(origin):
    states = [{n: t.float() for n, t in state.items()} for state in walk(12)]
    path = trajectory(None, states, origin=origin)
    plane = trajectory_plane(states, path)
    assert_allclose(gram(plane), np.eye(2), atol=1e-9)
    for i, state in enumerate(states):
        place, far = project(plane, state)
        assert_allclose(place, [path["path_x"][i], path["path_y"][i]], atol=1e-7)
        assert_allclose(far, path["path_distance"][i], atol=1e-6)
    centre = plane.at(0, 0)
    expected = stacked(states)[-1] if origin == "last" else stacked(states).mean(0)
    assert_allclose(stacked([centre])[0], expected, rtol=1e-6)
    assert torch.equal(centre["n.running_mean"], states[-1]["n.running_mean"])


def test_few_checkpoints_are_in_memory_at_once():
    stored = [Stored(state, 10 * i) for i, state in enumerate(walk(30))]
    gc.collect()
    Stored.live = Stored.most = 0
    path = trajectory(None, stored)
    plane = trajectory_plane(stored, path)
    assert Stored.most == 13
    assert_array_equal(path["step"], 10 * np.arange(30))
    whole = trajectory(None, [one.state for one in stored])
    for name in ("path_x", "path_y", "path_distance", "loadings"):
        assert_array_equal(path[name], whole[name])
    assert_allclose(gram(plane), np.eye(2), atol=1e-9)
    assert_array_equal(trajectory(None, walk(3), steps=[5, 7, 9])["step"], [5, 7, 9])
    assert_array_equal(trajectory(None, walk(3))["step"], [0, 1, 2])


def test_a_huge_offset_costs_no_digits():
    exact = [{n: (t * 2**10).round() * 2.0**-13 for n, t in state.items()} for state in walk(9)]
    moved = [{n: (t + 2.0**9).float() for n, t in state.items()} for state in exact]
    assert torch.equal(moved[0]["weight"].double() - 2.0**9, exact[0]["weight"])
    for origin in ("last", "mean"):
        near, far = (trajectory(None, states, origin=origin) for states in (exact, moved))
        for name in ("path_x", "path_y", "path_distance", "explained_variance"):
            assert_allclose(far[name], near[name], rtol=1e-9, atol=1e-9)


def test_pieces_of_tensors_give_the_same_sums(monkeypatch):
    states = walk(5)
    whole = trajectory(None, states)
    monkeypatch.setattr(module, "PIECE", 3)
    assert_allclose(trajectory(None, states)["path_x"], whole["path_x"], rtol=1e-10, atol=1e-12)


def test_a_random_walk_is_recognised_and_noise_is_not():
    drifting = walk(40, size=(100, 100))
    for origin in ("mean", "last"):
        result = trajectory(None, drifting, origin=origin)
        assert (result["cosine_content"] > 0.95).all()
        assert "component 1, 2 is above 0.5: a random walk" in result.attrs["note"]
    generator = torch.Generator().manual_seed(0)
    noise = [{"w": torch.randn(50, generator=generator)} for _ in range(40)]
    result = trajectory(None, noise, origin="mean")
    assert (result["cosine_content"] < 0.5).all()
    assert "random walk" not in result.attrs["note"]


# --- the surface ----------------------------------------------------------------------------------


def descent(num=6):
    """Gradient descent on a linear regression in float64, with all checkpoints."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    x *= torch.tensor([1.0, 0.6, 0.3])
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(2, generator=generator, dtype=torch.float64)
    states = []
    for _ in range(num):
        states.append({"weight": weight.clone(), "bias": bias.clone()})
        rest = x @ weight.T + bias - y
        weight -= 0.3 * rest.T @ x / len(x)
        bias -= 0.3 * rest.mean(0)
    return Task("train", nn.Linear(3, 2), squared_error, Batches(x, y)), states


@pytest.mark.parametrize("origin", ["last", "mean"])
def test_the_surface_lies_in_the_plane_of_the_path(origin):
    task, states = descent()
    result = trajectory(
        task, states, origin=origin, points=(5, 7), marks={"start": states[0]}, **DOUBLE
    )
    assert result.attrs["analysis"] == "trajectory"
    assert result["loss"].dims == ("x", "y")
    assert result["loss"].shape == (5, 7)
    assert result["x"].attrs["units"] == "distance"
    plane = trajectory_plane(states, trajectory_path(states, origin=origin))
    for i, x in enumerate(result["x"].values):
        for j, y in enumerate(result["y"].values):
            point = plane.at(x, y)
            rest = task.data.inputs @ point["weight"].T + point["bias"] - task.data.targets
            assert_allclose(result["loss"][i, j], rest.square().mean().item(), rtol=1e-10)
    for axis in "xy":
        path, line = result[f"path_{axis}"].values, result[axis].values
        wide = path.max() - path.min()
        assert line[0] <= path.min() - 0.19 * wide
        assert line[-1] >= path.max() + 0.19 * wide
        assert_allclose(np.diff(line), np.diff(line)[0], rtol=1e-9)
    assert_allclose(result["mark_x"][0], result["path_x"][0], rtol=1e-9)
    assert_allclose(result["gram"], np.eye(2), atol=1e-9)
    if origin == "last":  # the final checkpoint is a point of the grid
        own = evaluate(task, [states[-1]], **DOUBLE)["loss"][0]
        assert_array_equal(result["loss"].sel(x=0, y=0), own)
    assert problems(result) == []


def test_one_and_three_components_have_lines_and_spaces():
    task, states = descent()
    line = trajectory(task, states, num_components=1, points=5, **DOUBLE)
    assert line["loss"].dims == ("x",)
    space = trajectory(task, states, num_components=3, points=3, **DOUBLE)
    assert space["loss"].dims == ("x", "y", "z")
    assert space["path_z"].dims == ("step",)
    assert "loss" not in trajectory(task, states, surface=False)


def test_rows_in_a_file_are_the_surface(tmp_path):
    task, states = descent()
    whole = trajectory(task, states, points=5, **DOUBLE)
    path = trajectory_path(states)
    plan = trajectory_plan(states, path, points=5)
    ready = prepare(task, plan.family, **DOUBLE)
    rows = sweep(
        lambda x: surface_rows(ready, plan, x), {"x": plan.axes[0]}, output=tmp_path / "t.h5",
        plan={}, title="rows", analysis="trajectory", seconds=0,
    )  # fmt: skip
    result = with_surface(path, finished(rows, plan))
    for name in whole.variables:
        assert_array_equal(result[name], whole[name], err_msg=str(name))
    assert result.attrs["title"] == "Trajectory of 6 checkpoints on a surface of 5 x 5 points"


def test_batch_norm_statistics_come_from_the_last_checkpoint():
    case = CASES["residual"]
    task, states = case.task(), case.states(4)
    result = trajectory(task, states, points=3, batch_norm="keep")
    own = evaluate(task, states[-1:], batch_norm="keep")
    assert_array_equal(result["loss"].sel(x=0, y=0), own["loss"][0])


# --- t-SNE, and bad input -------------------------------------------------------------------------


def test_an_embedding_keeps_neighbours():
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(2, 30, generator=generator)
    states = [{"w": centres[i % 2] + torch.randn(30, generator=generator)} for i in range(20)]
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    result = trajectory(None, states, tsne=True)
    assert_array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    places = np.stack([result["tsne_x"], result["tsne_y"]], axis=1)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    same = np.arange(20)[:, None] % 2 == np.arange(20) % 2
    assert apart[same].max() < apart[~same].min()
    again = trajectory(None, states, tsne=True)
    assert_array_equal(again["tsne_x"], result["tsne_x"])
    with pytest.raises(ValueError, match="t-SNE needs at least 4 checkpoints, got 3"):
        trajectory(None, walk(3), tsne=True)


def test_bad_checkpoints_are_refused():
    states = walk(4)
    with pytest.raises(ValueError, match=r"at least two checkpoints, got 1; surface\(\)"):
        trajectory(None, states[:1])
    with pytest.raises(ValueError, match="the 3 checkpoints are all equal"):
        trajectory(None, [states[0]] * 3)
    with pytest.raises(ValueError, match=r"span 1 directions, 2 components.*num_components="):
        trajectory(None, states[:2])
    other = {"weight": torch.ones(4, 6), "bias": states[0]["bias"], "extra": torch.ones(1)}
    with pytest.raises(ValueError) as caught:
        trajectory(None, [*states[:2], other, states[3]], steps=[0, 10, 20, 30])
    for part in ("(step 30)", "step 20", "extra", "weight expected (4, 5), found (4, 6)"):
        assert part in str(caught.value)
    broken = dict(states[1], bias=states[1]["bias"] * np.nan)
    with pytest.raises(ValueError, match=r"steps \[10\] hold values that are not finite"):
        trajectory(None, [states[0], broken, *states[2:]], steps=[0, 10, 20, 30])
    with pytest.raises(ValueError, match="got 2 steps for 4 checkpoints"):
        trajectory(None, states, steps=[1, 2])
    with pytest.raises(ValueError, match="origin must be 'last' or 'mean'"):
        trajectory(None, states, origin="first")
    with pytest.raises(ValueError, match="num_components must be 1 to 3, got 4"):
        trajectory(None, states, num_components=4)
    with pytest.raises(ValueError, match="the path has 4 steps, got 3 checkpoints"):
        trajectory_plane(states[:3], trajectory_path(states))
    task, states = descent()
    with pytest.raises(ValueError, match="points must be one number, or 2 for this path"):
        trajectory(task, states, points=(3, 3, 3))
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        trajectory(task, states, points=2)
