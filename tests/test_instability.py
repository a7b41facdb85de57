import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES, cross_entropy
from numpy.testing import assert_allclose, assert_array_equal

from landscape import results
from landscape.analyses.instability import (
    Child,
    barrier_matrix,
    instability,
    matrix_of,
    named_pairs,
    pair_curves,
    pairs_of,
    summarise,
)
from landscape.analyses.interpolation import interpolate
from landscape.checkpoints import CheckpointError, save_checkpoint
from landscape.children import children_of
from landscape.datasets import Batches
from landscape.evaluation import prepare
from landscape.maths.resampling import pair_interval
from landscape.states import distance
from landscape.strategy import Strategy
from landscape.task import Task, wrong


def saddle(name="saddle", num=60):
    """A task with loss -w'Cw, so that a line's chord barrier is d'Cd / 4; and the matrix C."""
    x = torch.randn(num, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(num))
    model = torch.nn.Linear(3, 1, bias=False)
    task = Task(
        name, model, lambda out, y: -(out - y).square().sum(1), Batches(x, torch.zeros(num, 1), 16)
    )
    return task, (x.T @ x / num).numpy()


def points(num, seed=0):
    rng = np.random.default_rng(seed)
    return [{"weight": torch.tensor(w[None])} for w in rng.normal(size=(num, 3))]


def vector(state):
    return state["weight"][0].numpy()


def chord(a, b, c):
    d = vector(b) - vector(a)
    return d @ c @ d / 4


def double_well():
    """A task with the loss (w^2 - 1)^2 of a single weight, and an error of 1 where |w| < 1/2."""
    model = torch.nn.Linear(1, 1, bias=False)
    data = Batches(torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1), 2)
    metrics = {"error": lambda out, y: (out[:, 0].abs() < 0.5).double()}
    return Task("well", model, lambda out, y: (out[:, 0] ** 2 - 1) ** 2, data, metrics)


def wells(*weights):
    return [{"weight": torch.tensor([[w]], dtype=torch.float64)} for w in weights]


exact = {"dtype": torch.float64, "device": "cpu", "strategy": Strategy(points=7)}


# --- instability


def family(num_runs=3, trunks=("one", "two"), steps=(0, 10)):
    states = iter(points(num_runs * len(trunks) * len(steps)))
    return [
        Child(step, trunk, f"run {run}", next(states))
        for step in steps
        for trunk in trunks
        for run in range(num_runs)
    ]


def test_instability_on_a_quadratic_is_the_closed_form():
    task, c = saddle()
    children = family()
    found = instability(task, children, kind="chord", **exact)
    for step in (0, 10):
        trunks = []
        for trunk in ("one", "two"):
            runs = [k.state for k in children if (k.step, k.trunk) == (step, trunk)]
            trunks.append([chord(a, b, c) for a, b in itertools.combinations(runs, 2)])
        here = found.sel(branch_step=step)
        assert_allclose(here["loss_instability"], np.mean(trunks), rtol=1e-10)
        heights = np.ravel(trunks)
        assert_allclose(found["loss_barrier"][found["step"] == step], heights, rtol=1e-10)
        pairs = [[0, 1], [0, 2], [1, 2]] * 2
        ends = pair_interval(heights[None], np.array(pairs), np.repeat([0, 1], 3))
        assert_allclose(
            [here["loss_instability_low"], here["loss_instability_high"]],
            np.ravel(ends), rtol=1e-9,
        )  # fmt: skip
    assert found.attrs["measure"] == "loss"
    assert_allclose(found.attrs["resolution"], 1 / 30)


def test_the_mean_of_the_ends_is_the_default_reference():
    task, c = saddle()
    a, b = points(2)
    t = np.linspace(0, 1, 31)
    path = [-w @ c @ w for w in ((1 - s) * vector(a) + s * vector(b) for s in t)]
    found = instability(task, [Child(5, "", "a", a), Child(5, "", "b", b)], **exact)
    expected = max(path) - (path[0] + path[-1]) / 2
    assert_allclose(found["loss_instability"], [expected], rtol=1e-10)
    assert_allclose(found["loss"][0], path, rtol=1e-10)
    assert np.isnan(found["loss_instability_low"]).all()  # one pair shows no spread
    assert np.isnan(found["loss_instability_high"]).all()
    assert_allclose(found["distance"], [distance(a, b)])


def test_trunks_count_the_same_however_many_runs_they_have():
    task, c = saddle()
    a, b, d, e, f = points(5)
    named = [("one", a), ("one", b), ("two", d), ("two", e), ("two", f)]
    children = [Child(0, trunk, str(n), state) for n, (trunk, state) in enumerate(named)]
    found = instability(task, children, kind="chord", **exact)
    second = np.mean([chord(*pair, c) for pair in itertools.combinations([d, e, f], 2)])
    assert_allclose(found["loss_instability"], [(chord(a, b, c) + second) / 2], rtol=1e-10)


def test_splits_have_their_own_instability_and_stable_step():
    (first, c), (second, d) = saddle("train", 60), saddle("test", 20)
    children = family(2, ("",))
    found = instability([first, second], children, kind="chord", threshold=0.5, **exact)
    assert found["loss"].dims == ("split", "pair", "t")
    for name, matrix in (("train", c), ("test", d)):
        expected = [chord(children[i].state, children[i + 1].state, matrix) for i in (0, 2)]
        assert_allclose(found["loss_instability"].sel(split=name), expected, rtol=1e-10)
        stable = [step for step, height in zip((0, 10), expected, strict=True) if height <= 0.5]
        wanted = np.nan if expected[1] > 0.5 else min(stable)
        assert_array_equal(found["stable_from"].sel(split=name), wanted)


def test_the_order_of_children_does_not_matter():
    task, _ = saddle()
    children = family()
    found = instability(task, children, **exact)
    order = np.random.default_rng(0).permutation(len(children))
    again = instability(task, [children[i] for i in order], **exact)
    assert_array_equal(again["branch_step"], found["branch_step"])
    assert_allclose(again["loss_instability"], found["loss_instability"], rtol=1e-12)


def constructed(steps, peaks, num_runs=2):
    """Curves whose error rises by given peaks (steps,) over ends without error."""
    group = partial(itertools.combinations, range(num_runs), 2)
    pairs = [
        tuple(Child(step, "", f"r{run}", {}) for run in pair) for step in steps for pair in group()
    ]
    height = np.repeat(peaks, len(list(group())))
    error = np.stack([0 * height, height, 0 * height], axis=1)
    dims = ("pair", "t")
    variables = dict.fromkeys(("loss", "error"), (dims, error))
    variables |= {f"{name}_stderr": (dims, 0 * error) for name in ("loss", "error")}
    variables["status"] = (dims, np.ones(error.shape, np.uint8))
    coords = {
        "t": [0, 0.5, 1],
        "step": ("pair", [a.step for a, _ in pairs]),
        "trunk": ("pair", [a.trunk for a, _ in pairs]),
        "run_a": ("pair", [a.run for a, _ in pairs]),
        "run_b": ("pair", [b.run for _, b in pairs]),
    }
    return results.dataset(variables, coords, analysis="pair curves", title="constructed")


@pytest.mark.parametrize(
    ("peaks", "stable"),
    [
        ([0.3, 0.2, 0.02, 0.01], 50),  # at the threshold is stable
        ([0.3, 0.01, 0.1, 0.01], 400),  # stable at 10, and not again at 50
        ([0.0, 0.0, 0.0, 0.0], 0),
        ([0.0, 0.0, 0.0, 0.03], np.nan),
        ([0.3, 0.2, 0.01, np.nan], np.nan),  # what is not known is not stable
    ],
)
def test_stable_from_needs_all_later_steps(peaks, stable):
    found = summarise(constructed([0, 10, 50, 400], peaks))
    assert found.attrs["measure"] == "error"
    assert_allclose(found["error_instability"], peaks)
    assert_array_equal(found["stable_from"], stable)
    assert np.isnan(found["stable_from_high"])  # two runs: there is no upper end


def test_steps_are_ordered_by_their_numbers():
    found = summarise(constructed([400, 0, 50], [0.01, 0.3, 0.01]))
    assert_array_equal(found["branch_step"], [0, 50, 400])
    assert_array_equal(found["stable_from"], 50)


def test_the_upper_end_is_stable_later_than_the_mean():
    curves = constructed([0, 10], [0.0, 0.0], num_runs=4)
    curves["error"][:6, 1] = [0, 0, 0.05, 0, 0.05, 0]  # mean 0.0167, but not for all runs
    found = summarise(curves)
    assert found["stable_from"] == 0
    assert found["error_instability_high"][0] > 0.02
    assert found["stable_from_high"] == 10


def test_a_summary_can_be_made_again_from_the_file(tmp_path):
    task, _ = saddle()
    found = instability(task, family(), **exact)
    results.save(found, tmp_path / "x.h5")
    kept = results.load(tmp_path / "x.h5")
    assert results.problems(kept) == []
    for options in ({"kind": "chord"}, {"threshold": 0.9}, {"level": 0.5, "seed": 3}):
        again, fresh = summarise(kept, **options), instability(task, family(), **exact, **options)
        for name in fresh:
            assert_array_equal(again[name], fresh[name])
        assert again.attrs["kind"] == options.get("kind", "mean")
    fewer = summarise(found.isel(pair=found["step"] == 10))
    assert_array_equal(fewer["branch_step"], [10])


def test_pairs_are_the_points_of_a_sweep_that_can_be_interrupted(tmp_path):
    task, _ = saddle()
    pairs = pairs_of(family())
    ready = prepare(task, [pairs[0][0].state], **exact)
    seen = []

    def compute(numbers):
        seen.extend(numbers)
        if len(seen) > 7 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return pair_curves(ready, [pairs[number] for number in numbers])

    sweep = partial(
        results.sweep, compute, {"pair": np.arange(len(pairs))}, output=tmp_path / "x.h5",
        plan={}, title="", analysis="instability", seconds=0.0,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        sweep()
    with pytest.raises(ValueError, match="still pending"):
        summarise(results.load(tmp_path / "x.h5"))
    (tmp_path / "again").touch()
    found = summarise(sweep())
    whole = instability(task, family(), **exact)
    for name in whole.variables:
        assert_array_equal(found[name], whole[name])
    results.save(found, tmp_path / "x.h5")
    assert len(seen) == len(pairs) + 1  # the one that was interrupted
    assert_array_equal(sweep()["stable_from"], whole["stable_from"])
    assert len(seen) == len(pairs) + 1


class Counted:
    """A state that is read when needed, and counts how many are held."""

    held, most, reads = 0, 0, 0

    def __init__(self, state):
        self.state = state

    def load(self):
        Counted.reads += 1
        Counted.held += 1
        Counted.most = max(Counted.most, Counted.held)
        return Held(self.state)


class Held(dict):
    def __del__(self):
        Counted.held -= 1


def test_at_most_two_states_are_held_at_a_time():
    task, _ = saddle()
    states = points(4)
    ready = prepare(task, states, **exact)
    lazy = pair_curves(ready, named_pairs([Counted(state) for state in states]))
    assert Counted.most == 2
    assert Counted.reads == 8  # 3 + 1, 2 + 1 less the one kept, and so on
    assert_array_equal(lazy["loss"], pair_curves(ready, named_pairs(states))["loss"])


def test_lines_are_those_of_interpolate_with_batch_norm_too():
    case = CASES["residual"]
    task, states = case.task(), case.states(3)
    found = pair_curves(task, named_pairs(states, "abc"), points=[0, 0.5, 1], device="cpu")
    assert found["run_b"].values.tolist() == ["b", "c", "c"]
    for number, (a, b) in enumerate(itertools.combinations(states, 2)):
        line = interpolate(task, a, b, points=[0, 0.5, 1], device="cpu")
        for name in ("loss", "error", "own_loss", "loss_stderr"):
            assert_allclose(found[name][number], line[name], rtol=1e-5)
    assert found.attrs["batch_norm"] == "recalibrate"
    assert "distance" not in found.attrs


def test_nothing_of_the_user_is_changed():
    case = CASES["residual"]
    task, states = case.task(), case.states(3)
    kept = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    model = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    barrier_matrix(task, states, points=3, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert task.model.training
    pairs = [*zip(states, kept, strict=True), (task.model.state_dict(), model)]
    assert all(torch.equal(now[n], then[n]) for now, then in pairs for n in then)


# --- matrices


def test_barriers_of_a_quadratic_are_the_closed_form():
    task, c = saddle()
    states = points(4)
    found = barrier_matrix(task, states, names="dbca", threshold=1.0, **exact)
    expected = np.array([[chord(a, b, c) for a in states] for b in states])
    assert_allclose(found["loss"], expected, rtol=1e-10)
    assert_array_equal(found["loss"], found["loss"].T)
    assert_array_equal(np.diag(found["loss"]), 0)
    assert found["run"].values.tolist() == ["d", "b", "c", "a"]
    assert_allclose(found["distance"], [[distance(a, b) for a in states] for b in states])
    assert_allclose(found["end_loss"], [-vector(s) @ c @ vector(s) for s in states], rtol=1e-10)


def test_two_wells_are_two_basins():
    weights = [1.0, -1.0, 0.9, -1.1, 1.2]
    found = barrier_matrix(double_well(), wells(*weights), **exact)
    assert_array_equal(found["basin"], [0, 1, 0, 1, 0])
    assert found.attrs["measure"] == "error"
    assert_array_equal(found["error"][0], [0, 1, 0, 1, 0])
    assert_allclose(found["loss"][0, 1], 1, rtol=1e-10)  # the top of the hill, at w = 0
    t = np.linspace(0, 1, 31)
    for (i, a), (j, b) in itertools.combinations(enumerate(weights), 2):
        path = (((1 - t) * a + t * b) ** 2 - 1) ** 2
        height = (path - (1 - t) * path[0] - t * path[-1]).max()
        assert_allclose(found["loss"][i, j], height, rtol=1e-10, atol=1e-14)


def test_different_ends_of_equal_error_are_seen_as_such():
    found = barrier_matrix(double_well(), wells(-1.0, 1.0), **exact)
    assert_allclose(found["distance"][0, 1], 2)
    assert_array_equal(found["end_error"], [0, 0])
    assert_allclose(found["end_loss"], [0, 0], atol=1e-14)
    assert found["error"][0, 1] == 1


def test_permuting_the_runs_permutes_the_matrix():
    task, states = double_well(), wells(1.0, -1.0, 0.9, -1.1, 1.2)
    found = barrier_matrix(task, states, **exact)
    order = [3, 1, 4, 0, 2]
    again = barrier_matrix(task, [states[i] for i in order], names=order, **exact)
    again = again.sel(run=found["run"], other_run=found["other_run"])
    for name in ("loss", "error", "distance", "end_loss"):
        assert_allclose(again[name], found[name], rtol=1e-12, atol=1e-14)
    same = found["basin"].values[:, None] == found["basin"].values
    assert_array_equal(again["basin"].values[:, None] == again["basin"].values, same)
    assert_array_equal(again["basin"].sel(run=["3", "1", "4", "0", "2"]), [0, 0, 1, 1, 1])


def test_a_basin_is_one_on_every_split():
    train = double_well()
    test = replace(train, name="test", metrics={"error": lambda out, y: out[:, 0] * 0})
    found = barrier_matrix([test, replace(train, name="train")], wells(-1.0, 1.0), **exact)
    assert found["error"].dims == ("split", "run", "other_run")
    assert_array_equal(found["error"][:, 0, 1], [0, 1])
    assert_array_equal(found["basin"], [0, 1])


def test_a_matrix_can_be_made_again_from_the_file(tmp_path):
    task, states = double_well(), wells(1.0, -1.0, 0.7)
    results.save(barrier_matrix(task, states, **exact), tmp_path / "x.h5")
    kept = results.load(tmp_path / "x.h5")
    assert results.problems(kept) == []
    for options in ({"kind": "mean"}, {"measure": "loss", "threshold": 0.3}):
        again, fresh = matrix_of(kept, **options), barrier_matrix(task, states, **exact, **options)
        for name in fresh:
            assert_array_equal(again[name], fresh[name])
    assert_array_equal(again["basin"], [0, 1, 0])


def test_a_network_without_a_number_is_a_basin_of_its_own():
    found = barrier_matrix(double_well(), wells(1.0, np.inf, 1.1), measure="loss", **exact)
    assert_array_equal(np.isfinite(found["loss"]), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert_array_equal(found["basin"], [0, 1, 0])


# --- refusals


def test_what_cannot_be_compared():
    a, b = points(2)
    with pytest.raises(ValueError, match="no children to compare"):
        pairs_of([])
    with pytest.raises(ValueError, match="step 3 of trunk 'x' has the single run 'b'"):
        pairs_of([Child(3, "", "a", a), Child(3, "", "b", b), Child(3, "x", "b", b)])
    with pytest.raises(ValueError, match="step 3 has several runs named 'a'"):
        pairs_of([Child(3, "", "a", a), Child(3, "", "a", b)])
    task, _ = saddle()
    with pytest.raises(ValueError, match="no pairs of networks"):
        pair_curves(task, [])
    with pytest.raises(ValueError, match="at least two networks, got 1"):
        barrier_matrix(task, [a])
    for names in (["x"], ["x", "x"]):
        with pytest.raises(ValueError, match="2 networks need as many unlike names"):
            barrier_matrix(task, [a, b], names=names)
    other = {"weight": torch.zeros(1, 4)}
    with pytest.raises(ValueError, match=r"(?s)runs 'a' and 'b': .*not of one architecture"):
        instability(task, [Child(0, "", "a", a), Child(0, "", "b", other)], **exact)
    curves = pair_curves(task, named_pairs(points(3)), points=3, **exact)
    for wrong_pairs in ([0, 1], [0, 1, 1]):
        with pytest.raises(ValueError, match="each of their 3 pairs once, got"):
            matrix_of(curves.isel(pair=wrong_pairs))
    curves["status"][1] = results.STATUS.index("failed")
    with pytest.raises(ValueError, match="some pairs have failed"):
        matrix_of(curves)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "highest"}, "kind must be 'chord', 'mean' or 'max', got 'highest'"),
        ({"measure": "error"}, "measure must be one of loss, got 'error'"),
        ({"points": [0, 0.5]}, "needs both ends"),
        ({"level": 95}, "level must lie between 0 and 1, got 95"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(options, message):
    class Unread:
        def load(self):
            raise AssertionError("read before the arguments were looked at")

    task, _ = saddle()
    children = [Child(0, "", name, Unread()) for name in "ab"]
    with pytest.raises(ValueError, match=message):
        instability(task, children, **options)
    if "level" not in options:
        with pytest.raises(ValueError, match=message):
            barrier_matrix(task, [Unread(), Unread()], **options)


# --- folders


def make(folder, *paths, steps=(10, 90)):
    for number, path in enumerate(paths):
        for step in steps:
            state = {"weight": torch.tensor([[float(number), float(step)]])}
            save_checkpoint(state, folder / path, step=step)


def named(children):
    return [(child.step, child.trunk, child.run) for child in children]


def test_a_folder_names_its_children(tmp_path):
    make(tmp_path, "trunk-1/k=500/b", "trunk-1/k=500/a", "trunk-1/k=20/a", "trunk-1/k=20/b")
    found = children_of(tmp_path)
    expected = [(step, "trunk-1", run) for step in (20, 500) for run in "ab"]
    assert named(found) == expected
    weights = [child.state.load()["weight"].tolist() for child in found]
    assert weights == [[[n, 90.0]] for n in (2.0, 3.0, 1.0, 0.0)]  # the last, of the right run


@pytest.mark.parametrize("step", ["k=7", "k7", "k-7", "step-7", "step_007", "from-7", "From7"])
@pytest.mark.parametrize("trunk", ["", "trunk-1/", "seed=1/", "init-1/", "seed1/"])
def test_how_steps_and_trunks_may_be_written(tmp_path, step, trunk):
    make(tmp_path, f"{trunk}{step}/lenet/x", f"{trunk}{step}/lenet/seed=2")
    runs = ("lenet/seed=2", "lenet/x") if trunk else ("lenet/x",)
    if trunk:
        assert named(children_of(tmp_path)) == [(7, trunk[:-1], run) for run in runs]
    else:  # without another, the seed is that of the trunk
        with pytest.raises(ValueError, match="has the single run 'lenet/x'"):
            children_of(tmp_path)


def test_the_step_may_stand_above_the_trunk_or_below_the_run(tmp_path):
    make(tmp_path, "k=3/init-a/x", "k=3/init-a/y", "init-a/x/k=4", "init-a/y/k=4")
    assert named(children_of(tmp_path)) == [(s, "init-a", r) for s in (3, 4) for r in "xy"]


def test_trunks_may_keep_their_own_checkpoints(tmp_path):
    make(tmp_path, "trunk-1", "trunk-1/k=5/a", "trunk-1/k=5/b")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "trunk-1" / "k=5" / "mask.pt")
    make(tmp_path, ".trash/k=5/c")
    assert [child.run for child in children_of(tmp_path)] == ["a", "b"]


def test_checkpoints_that_are_folders_are_no_runs(tmp_path):
    for run, step in itertools.product("ab", (10, 90)):
        inner = tmp_path / "k=0" / run / f"checkpoint-{step}"
        make(inner, ".", steps=(step,))
        next(inner.glob("*.pt")).rename(inner / "pytorch_model.bin")
    found = children_of(tmp_path)
    assert named(found) == [(0, "", "a"), (0, "", "b")]
    assert found[1].state.load()["weight"].tolist() == [[0.0, 90.0]]


def test_a_pattern_names_children_and_leaves_the_rest_out(tmp_path):
    make(tmp_path, "i1-at5-x", "i1-at5-y", "i2-at5-x", "i2-at5-y", "best")
    pattern = r"(?P<trunk>\w+)-at(?P<step>\d+)-(?P<run>\w+)"
    expected = [(5, trunk, run) for trunk in ("i1", "i2") for run in "xy"]
    assert named(children_of(tmp_path, pattern)) == expected
    whole = named(children_of(tmp_path, r"i1-at(?P<step>\d+)-."))
    assert whole == [(5, "", "i1-at5-x"), (5, "", "i1-at5-y")]


def test_folders_that_say_too_little(tmp_path):
    def refused(folder, message, pattern=None, error=CheckpointError):
        with pytest.raises(error, match=message):
            children_of(tmp_path / folder, pattern)

    refused("absent", "there is no such folder")
    (tmp_path / "empty" / "k=0").mkdir(parents=True)
    refused("empty", "nothing here is a run; folders that hold checkpoints: none")
    make(tmp_path, "plain/a", "plain/b")
    refused("plain", "(?s)a holds checkpoints, and its path says no branch step.*pattern=")
    refused("plain", "nothing here is a run; folders that hold checkpoints: a, b", r"(?P<step>\d)")
    refused("plain", "gives no step: KeyError", "[ab]")
    refused("plain", "gives no step: ValueError", "(?P<step>[ab])")
    refused("plain", "gives no step", "(?P<step>[ab]")
    make(tmp_path, "two/k=1/from-2/a")
    refused("two", "its path says several branch steps, expected one")
    make(tmp_path, "single/k=1/a", "single/k=1/b", "single/k=2/a")
    refused("single", "step 2 has the single run 'a'", error=ValueError)
    make(tmp_path, "same/k=1/a", "same/step-1/a")
    refused("same", "k=1/a and step-1/a would all be run 'a' of trunk '' from step 1")
    make(tmp_path, "nested/k=1/a", "nested/k=1/a/ema", "nested/k=1/b")
    refused("nested", "k=1/a holds checkpoints, and so does k=1/a/ema in it")
    make(tmp_path, "short/k=1/a", "short/k=1/b")
    make(tmp_path, "short/k=1/b", steps=(95,))
    refused("short", "run 'a' ends at step 90 and run 'b' at 95")
    make(tmp_path, "bad/k=1/a", "bad/k=1/b")
    (tmp_path / "bad/k=1/b/best.pt").touch()
    refused("bad", "no rule reads a step from each")


# --- from training to the answer


def descend(model, x, y, *, state, steps, order):
    """Train with momentum on batches of 32 in the order of a seed, and give the state."""
    model.load_state_dict(state)
    generator = torch.Generator().manual_seed(order)
    velocities = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for _ in range(steps):
        batch = torch.randint(len(x), (32,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            moving = zip(model.parameters(), gradients, velocities, strict=True)
            for parameter, gradient, velocity in moving:
                parameter -= 0.05 * velocity.mul_(0.9).add_(gradient)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_networks_that_part_early_end_apart_and_those_that_part_late_do_not(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 16, generator=generator)
    y = torch.randint(4, (500,), generator=generator)  # labels to be learnt by heart
    sizes = itertools.pairwise([16, 32, 32, 32, 32, 4])
    parts = [part for a, b in sizes for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    model = torch.nn.Sequential(*parts[:-1])
    task = Task("train", model, cross_entropy, Batches(x, y, 500), {"error": wrong})
    for trunk in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(trunk)
            for layer in parts[::2]:
                torch.nn.init.kaiming_normal_(layer.weight)
        first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for step in (0, 490):
            state = descend(model, x, y, state=first, steps=step, order=trunk)
            for order in (10, 11, 12):
                end = descend(model, x, y, state=state, steps=500 - step, order=order)
                run = tmp_path / f"trunk-{trunk}" / f"k={step}" / f"order-{order}"
                save_checkpoint(end, run, step=500)
    found = instability(task, children_of(tmp_path), device="cpu")
    early, late = found["error_instability"].values
    assert early > 0.1
    assert late <= 0.02
    assert found["error_instability_low"][0] > found["error_instability_high"][1]
    assert_array_equal(found["stable_from"], 490)


def test_any_number_of_points_has_both_ends():
    case = CASES["mlp"]
    result = barrier_matrix(case.task(), case.states(), points=1)
    assert result["t"].values.tolist() == [0, 1]
    assert_array_equal(result["loss"], np.zeros((2, 2)))
