import gc
import itertools
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import xarray as xr
from cases import CASES, cross_entropy
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from landscape.analyses.dynamics import dynamics, dynamics_rows, over_runs, with_landmarks
from landscape.datasets import digits
from landscape.evaluation import evaluate
from landscape.models import mlp
from landscape.results import problems
from landscape.states import State
from landscape.tables import dynamics_table
from landscape.task import Task, wrong

MOVED = ("distance", "cosine", "signs")


@dataclass(frozen=True)
class Kept:
    """A checkpoint in memory that says how often it was read."""

    state: State
    step: int
    reads: list[int]

    def load(self) -> State:
        self.reads.append(self.step)
        return self.state


def stored(states, every=10):
    reads: list[int] = []
    return [Kept(state, every * k, reads) for k, state in enumerate(states)], reads


def flat(state, names):
    return np.concatenate([state[name].double().numpy().ravel() for name in names])


def expected(x, y):
    """Distance, cosine and share of signs, number by number."""
    cosine = (x @ y) / np.sqrt((x @ x) * (y @ y))
    return np.sqrt(((x - y) ** 2).sum()), cosine, np.mean(np.sign(x) == np.sign(y))


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_norms_distances_and_shares_against_a_brute_force_twin(case):
    states = case.states(4)
    result = dynamics(case.task(), states, steps=[0, 2, 5, 9])
    own = [name for name, _ in case.model().named_parameters()]
    blocks = {layer: [n for n in own if n.rpartition(".")[0] == layer]
              for layer in result["layer"].values}  # fmt: skip
    assert sorted(itertools.chain(*blocks.values())) == sorted(own)
    for layer, names in [*blocks.items(), (None, own)]:
        one = result.sel(layer=layer) if layer else result
        prefix = "" if layer else "total_"
        vectors = [flat(state, names) for state in states]
        for k, x in enumerate(vectors):
            at = one.isel(step=k)
            assert_allclose(at[f"{prefix}weight_norm"], np.sqrt((x**2).sum()), rtol=1e-12)
            assert_allclose(at[f"{prefix}weight_std"], x.std(), rtol=1e-12, atol=1e-15)
            assert_allclose(at[f"{prefix}zeros"], np.mean(x == 0))
            others = {"initial": vectors[0], "final": vectors[-1]}
            others |= {"previous": vectors[k - 1]} if k else {}
            for name, y in others.items():
                got = [float(at[f"{prefix}{kind}_{name}"]) for kind in MOVED]
                assert_allclose(got, expected(x, y), rtol=1e-11, atol=1e-14)
        gaps = np.array([2, 3, 4])
        assert_allclose(
            one[f"{prefix}change_per_step"][1:], one[f"{prefix}distance_previous"][1:] / gaps
        )
    first = result.isel(step=0)
    assert np.isnan([first[f"total_{kind}_previous"] for kind in MOVED]).all()
    assert np.isnan(first["change_per_step"]).all()
    assert problems(result) == []


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_zero_and_one_at_the_reference_itself(case):
    states = case.states(3)
    result = dynamics(None, [*states, states[2]])
    for prefix in ("", "total_"):
        for where, name in ((0, "initial"), (2, "final"), (3, "final"), (3, "previous")):
            one = result.isel(step=where)
            assert_array_equal(one[f"{prefix}distance_{name}"], 0)
            assert_array_equal(one[f"{prefix}cosine_{name}"], 1)
            assert_array_equal(one[f"{prefix}signs_{name}"], 1)
    elsewhere = dynamics(None, states[:1], initial=states[1], final=states[2])
    assert (elsewhere["total_distance_initial"] > 0).all()
    again = dynamics(None, states[:2], initial=states[1], final=states[0])
    assert_array_equal(again["total_distance_final"][0], 0)
    assert_array_equal(again["total_distance_initial"][1], 0)


def test_a_straight_line_at_constant_speed():
    a, b = (CASES["mlp"].states(2)[k] for k in (0, 1))
    steps = [0, 10, 30, 100]
    line = [{n: (1 - s / 100) * a[n].double() + s / 100 * b[n].double() for n in a} for s in steps]
    result = dynamics(None, line, steps=steps)
    length = float(result["total_distance_initial"][-1])
    assert_allclose(result["total_distance_initial"], length * np.array(steps) / 100, rtol=1e-12)
    assert_allclose(
        result["total_distance_initial"] + result["total_distance_final"], length, rtol=1e-12
    )
    assert_allclose(result["total_change_per_step"][1:], length / 100, rtol=1e-12)
    assert (np.diff(result["total_cosine_final"]) > 0).all()


def test_signs_and_cosines_of_zeros():
    def state(*values):
        return {"fc.weight": torch.tensor(values)}

    result = dynamics(None, [state(0.0, -1.0, 2.0, 0.0), state(-0.0, 1.0, 2.0, 3.0)])
    assert_array_equal(result["signs_initial"][1], 0.5)
    assert_array_equal(result["zeros"][:, 0], [0.5, 0.25])
    nothing = dynamics(None, [state(0.0, 0.0), state(3.0, 4.0)])
    assert_array_equal(nothing["cosine_initial"][:, 0], [1, np.nan])
    assert_array_equal(nothing["distance_initial"][:, 0], [0, 5])


def test_the_distribution_of_weights():
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.linspace(-12, 4, 400, dtype=torch.float64)
    values = sizes * torch.randn(400, generator=generator, dtype=torch.float64).sign()
    state = {"a.weight": values.view(20, 20), "a.bias": torch.zeros(3), "b": torch.ones(2)}
    result = dynamics(None, [state])
    both = np.concatenate([values.numpy(), np.zeros(3)])
    assert_allclose(
        result["weight_quantile"].sel(step=0, layer="a"), np.quantile(both, result["quantile"])
    )
    edges = np.append(result["magnitude"].values, np.inf)
    count = result["weight_count"].sel(step=0, layer="a")
    assert_array_equal(count, np.histogram(abs(both), edges)[0])
    assert_array_equal(result["weight_count"].sum("magnitude")[0], result["num_weights"])
    assert_array_equal(result["num_weights"], [403, 2])
    ones = result["weight_count"].sel(step=0, layer="b")
    assert float(ones["magnitude"][int(ones.values.argmax())]) == pytest.approx(1)
    assert_allclose(np.diff(np.log10(edges[1:-1])), 0.125)


def test_a_narrow_distribution_far_from_zero_keeps_its_width():
    x = 1 + 1e-9 * torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    result = dynamics(None, [{"a.w": x[:500], "b.w": x[500:]}])
    assert_allclose(result["total_weight_std"], x.numpy().std(), rtol=1e-6)


def test_tied_weights_count_once():
    case = CASES["tokens"]
    states = case.states(2)
    untied = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    result = dynamics(case.task(), untied)
    assert result["layer"].values.tolist() == ["embed", "norm"]
    assert int(result["num_weights"].sum()) == 7 * 5 + 2 * 5
    shared = dynamics(None, states)  # the constant table is not known to be no weight
    assert shared["layer"].values.tolist() == ["table", "embed", "norm"]
    assert_array_equal(
        shared["distance_initial"].sel(layer="embed"), result["distance_initial"].sel(layer="embed")
    )
    assert dynamics(None, untied)["layer"].values.tolist() == ["table", "embed", "norm", "out"]


def test_statistics_and_their_counters_are_no_weights():
    result = dynamics(None, CASES["residual"].states(2))
    weights = sum(p.numel() for p in CASES["residual"].model().parameters())
    assert int(result["num_weights"].sum()) == weights


def test_checkpoints_are_read_one_by_one():
    alive: weakref.WeakSet = weakref.WeakSet()
    most = []

    class Held(dict):
        __hash__ = object.__hash__

    @dataclass(frozen=True)
    class Counted:
        step: int

        def load(self):
            gc.collect()
            generator = torch.Generator().manual_seed(self.step)
            state = Held({"fc.weight": torch.randn(3, generator=generator)})
            alive.add(state)
            most.append(len(alive))
            return state

    result = dynamics(None, [Counted(step) for step in range(12)])
    assert max(most) <= 5
    assert len(most) == 14  # each once, and the references
    assert_array_equal(result["step"], range(12))


def test_some_rows_are_those_of_all():
    case = CASES["mlp"]
    task, (files, reads) = case.task(), stored(case.states(6))
    whole = dynamics_rows(task, files, gradients=True)
    assert_array_equal(whole["step"], [0, 10, 20, 30, 40, 50])
    for rows in ([0], [3], [4, 5], [1, 4, 2]):
        reads.clear()
        part = dynamics_rows(task, files, rows=rows, gradients=True)
        xr.testing.assert_allclose(part, whole.isel(step=rows), rtol=1e-12)
        assert len(reads) <= 2 + 2 * len(rows)


def test_loss_and_metrics_are_those_of_evaluate():
    case = CASES["residual"]
    task, states = case.task(), case.states(3)
    few = task.data.subset(torch.arange(20))
    splits = [replace(task, name="train"), replace(task, name="test", data=few)]
    result = dynamics(splits, states, dtype=torch.float64)
    there = evaluate(splits, states, dtype=torch.float64)
    assert result["loss"].dims == ("split", "step")
    for name in ("loss", "error", "loss_stderr"):
        assert_allclose(result[name], there[name], rtol=1e-12)
    assert_array_equal(result["num_examples"], [46, 20])
    assert result.attrs["batch_norm"] == "recalibrate"
    assert problems(result) == []
    single = dynamics(task, states, dtype=torch.float64, batch_norm="keep")
    assert_allclose(
        single["loss"], evaluate(task, states, dtype=torch.float64, batch_norm="keep")["loss"]
    )


def test_gradients_and_their_noise_against_a_brute_force_twin():
    case = CASES["mlp"]
    task, states = case.task(), case.states(2)
    result = dynamics(task, states, gradients=True, dtype=torch.float64)
    for k, state in enumerate(states):
        model = case.model().double().eval()
        model.load_state_dict(state)
        rows = []
        for x, y in zip(task.data.inputs, task.data.targets, strict=True):
            loss = cross_entropy(model(x[None].double()), y[None]).sum()
            parts = torch.autograd.grad(loss, list(model.parameters()))
            rows.append([part.flatten().numpy() for part in parts])
        blocks = {"0": slice(0, 2), "3": slice(2, 4)}
        for layer, block in [*blocks.items(), (None, slice(0, 4))]:
            each = np.stack([np.concatenate(row[block]) for row in rows])
            mean, variance = each.mean(0), each.var(0, ddof=1).sum()
            one = result.isel(step=k)
            one = one.sel(layer=layer) if layer else one
            prefix = "" if layer else "total_"
            assert_allclose(one[f"{prefix}gradient_norm"], np.linalg.norm(mean), rtol=1e-9)
            square = mean @ mean - variance / len(each)
            scale = variance / square if square > 0 else np.nan
            assert_allclose(one[f"{prefix}noise_scale"], scale, rtol=1e-8)
    assert "gradient_norm" not in dynamics(task, states)
    with pytest.raises(ValueError, match=r"gradients=True needs a task"):
        dynamics(None, states, gradients=True)


def test_frozen_layers_have_no_gradient_and_the_others_sum_without_them():
    case = CASES["mlp"]
    task, states = case.task(), case.states(2)
    task.model[0].requires_grad_(False)
    result = dynamics(task, states, gradients=True)
    assert np.isnan(result["gradient_norm"].sel(layer="0")).all()
    assert_allclose(result["total_gradient_norm"], result["gradient_norm"].sel(layer="3"))
    assert (result["distance_initial"].sel(layer="0")[1] > 0).all()


def test_a_run_that_diverged():
    case = CASES["mlp"]
    states = case.states(3)
    states[1] = dict(states[1]) | {"0.weight": torch.full((8, 6), torch.nan)}
    result = dynamics(case.task(), states, gradients=True)
    assert_array_equal(result["status"], [1, 2, 1])
    lost = result.isel(step=1)
    assert np.isnan(lost["loss"])
    assert np.isnan(lost["total_gradient_norm"])
    assert np.isnan(lost["weight_norm"].sel(layer="0"))
    assert np.isnan(lost["weight_quantile"].sel(layer="0")).all()
    assert int(lost["weight_count"].sel(layer="0").sum()) == 8  # the biases
    assert np.isfinite(lost["weight_norm"].sel(layer="3"))
    assert np.isfinite(result["total_gradient_norm"][[0, 2]]).all()
    assert_array_equal(dynamics(None, states)["status"], [1, 2, 1])


def curve(**more):
    error = np.array([[0.9, 0.5, 0.2, 0.1, 0.1], [0.8, 0.6, 0.5, 0.3, 0.4]])
    coords = {"split": ["train", "test"], "step": [0, 1, 10, 100, 1000]}
    return xr.Dataset({"error": (("split", "step"), error), **more}, coords)


def test_landmarks_of_each_split():
    found = with_landmarks(curve(loss=("step", [4.0, 3.0, 2.5, 2.0, 1.0])))
    assert found.attrs["measure"] == "error"
    assert_allclose(found["landmark_threshold"], [0.45, 0.4])
    assert_array_equal(found["landmark_reached"], [10, 100])
    assert_array_equal(found["landmark_steepest"], [0, 0])
    assert_array_equal(found["landmark_minimum"], [100, 100])
    assert_array_equal(found["landmark_plateau"], [100, 1000])
    chosen = with_landmarks(found, threshold=0.15)
    assert_array_equal(chosen["landmark_reached"], [100, np.nan])
    assert float(with_landmarks(found, measure="loss")["landmark_reached"]) == 100
    with pytest.raises(ValueError, match=r"no 'accuracy' along 'step'"):
        with_landmarks(found, measure="accuracy")


def test_runs_side_by_side():
    case = CASES["mlp"]
    states = case.states(6)
    each = {f"seed{k}": dynamics(case.task(), states[3 * k : 3 * k + 3]) for k in range(2)}
    both = over_runs(each)
    assert both["loss"].dims == ("run", "step")
    assert both["run"].values.tolist() == ["seed0", "seed1"]
    assert both["total_distance_initial"].dims == ("run", "step")
    assert both["landmark_minimum"].dims == ("run",)
    assert both["num_weights"].dims == ("layer",)
    for name, one in each.items():
        for variable in ("loss", "distance_final", "weight_count", "status"):
            assert_array_equal(both[variable].sel(run=name), one[variable])
    again = with_landmarks(both.drop_vars([n for n in both if str(n).startswith("landmark")]))
    assert_array_equal(again["landmark_minimum"], both["landmark_minimum"])
    assert problems(both) == []


def test_runs_that_differ():
    mlp_states, residual = CASES["mlp"].states(3), CASES["residual"].states(3)
    one = dynamics(None, mlp_states)
    with pytest.raises(ValueError, match=r"step by step, but a has 2 besides and b has 5 besides"):
        over_runs({"a": one, "b": dynamics(None, mlp_states, steps=[0, 1, 5])})
    with pytest.raises(ValueError, match=r"step by step, but a has 2 besides and b has 2 of them"):
        over_runs({"a": one, "b": dynamics(None, mlp_states[:2])})
    with pytest.raises(ValueError, match=r"layer by layer, but a has 0, 3 besides and b has stem"):
        over_runs({"a": one, "b": dynamics(None, residual)})


def test_bad_input():
    case = CASES["mlp"]
    states = case.states(3)
    misshapen = dict(states[1]) | {"0.weight": torch.zeros(9, 6)}
    with pytest.raises(ValueError, match=r"step 1 and the initial one.*\n.*0\.weight expected"):
        dynamics(None, [states[0], misshapen, states[2]])
    renamed = {n.replace("3.", "4."): t for n, t in states[2].items()}
    with pytest.raises(ValueError, match=r"the final state: .*Sequential.*\n.*3\.weight"):
        dynamics(case.task(), [*states[:2], renamed])
    with pytest.raises(ValueError, match=r"steps must increase .*, got 5, 5"):
        dynamics(None, states, steps=[0, 5, 5])
    with pytest.raises(ValueError, match=r"got 2 steps for 3 checkpoints"):
        dynamics(None, states, steps=[0, 1])
    with pytest.raises(ValueError, match="there is no checkpoint"):
        dynamics(None, [])
    with pytest.raises(ValueError, match="no floating-point weights"):
        dynamics(None, [{"counter": torch.ones(3, dtype=torch.int64)}])


def test_nothing_of_the_users_changes():
    case = CASES["residual"]
    task, states = case.task(), case.states(2)
    before = {n: t.clone() for n, t in task.model.state_dict().items()}
    copies = [{n: t.clone() for n, t in state.items()} for state in states]
    task.model.train()
    torch.manual_seed(3)
    random = torch.get_rng_state()
    dynamics(task, states, gradients=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert task.model.training
    for now, then in zip([task.model.state_dict(), *states], [before, *copies], strict=True):
        assert all(torch.equal(now[name], then[name]) for name in then)


def test_other_number_types_give_nearly_the_same():
    states = CASES["mlp"].states(2)
    half = [{n: t.to(torch.bfloat16) for n, t in state.items()} for state in states]
    exact = dynamics(None, [{n: t.float() for n, t in state.items()} for state in half])
    same = dynamics(None, half)
    assert_array_equal(same["distance_initial"], exact["distance_initial"])


def telemetry(steps, total, seed=0):
    """Checkpoints of a small network on digits at some steps of SGD."""
    data = digits()
    x = data.transform(data.inputs) if data.transform else data.inputs.float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mlp(64, (128, 128), seed=seed)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        for step in range(total + 1):
            if step in steps:
                yield {n: t.detach().clone() for n, t in model.state_dict().items()}
            chosen = torch.randint(len(x), (64,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), data.targets[chosen]).backward()
            optimiser.step()


def test_the_telemetry_of_early_training():
    steps = [0, 1, 2, 5, 10, 20, 50, 100, 200, 300]
    task = Task("train", mlp(64, (128, 128)), cross_entropy, digits(), {"error": wrong})
    result = dynamics(task, list(telemetry(steps, 300)), steps=steps, gradients=True)
    flipped = 100 * (1 - float(result["total_signs_initial"].sel(step=10)))
    assert 1 <= flipped <= 10
    assert (np.diff(result["total_distance_initial"]) > 0).all()
    assert (np.diff(result["total_distance_final"]) < 0).all()
    slope = result["total_gradient_norm"]
    assert float(slope.sel(step=10)) < 0.5 * float(slope.sel(step=0))
    assert float(result["error"][-1]) < 0.05
    assert float(result["landmark_reached"]) in steps[1:8]


def test_the_table_says_how_far_each_layer_went():
    def state(shift):
        return {"a.w": torch.tensor([3.0, 4.0 - shift]), "b.w": torch.tensor([shift - 2.0])}

    states = [state(0.0), state(4.0)]
    rows = [" ".join(row.split()) for row in dynamics_table(dynamics(None, states)).split("\n")]
    assert rows == [
        "layer parameters norm at step 0 at 1 distance cosine same signs",
        "a 2 5.0000 3.0000 4.0000 0.6000 0.5000",
        "b 1 2.0000 2.0000 4.0000 -1.0000 0.0000",
        "total 3 5.3852 3.6056 5.6569 0.2575 0.3333",
    ]
    both = over_runs({"x": dynamics(None, states), "y": dynamics(None, states[:1] * 2)})
    assert "2.0000 [0.0000, 4.0000]" in dynamics_table(both)
    told = dynamics_table(with_landmarks(dynamics(None, states).assign(error=("step", [0.8, 0.1]))))
    assert told.split("\n")[-1] == (
        "error: at most 0.4 from step 1, fastest fall from step 0, minimum at step 1, plateau from "
        "step 1"
    )
