import copy
import random
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES, Residual, cross_entropy, scaled, uneven
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from landscape import evaluation, examples, families
from landscape.datasets import Batches
from landscape.evaluation import described, evaluate, outputs_at, placed_state, prepare
from landscape.strategy import Strategy
from landscape.task import Task, load_tasks, wrong

STRATEGIES = {
    "loop": Strategy(batch_size=7, points=3),
    "one batch": Strategy(batch_size=64, points=1),
    "vmap": Strategy(batch_size=20, points=4, vectorised=True),
    "channels last": Strategy(layout="channels_last", batch_size=13, points=2),
}
T = np.linspace(0, 1, 5)
double = partial(evaluate, dtype=torch.float64)


def run_plainly(model, state, task):
    """Values per example of a state, the slow way: load it and run batch after batch."""
    model = copy.deepcopy(model).double().eval()
    model.load_state_dict(state)
    values = {name: [] for name in task.measures()}
    with torch.no_grad():
        for inputs, targets in task.data:
            if isinstance(inputs, dict):
                inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
                outputs = model(**inputs)
            else:
                outputs = model(inputs.double())
            targets = targets.double() if targets.is_floating_point() else targets
            for name, measure in task.measures().items():
                values[name].append(measure(outputs, targets))
    return {name: torch.cat(parts).numpy() for name, parts in values.items()}


def as_double(state):
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_line_equals_its_brute_force_twin(case, strategy):
    if case.name == "recurrent" and strategy.vectorised:
        pytest.skip("an LSTM has no batching rule")
    task, (a, b) = case.task(), map(as_double, case.states())
    line = families.line(a, b)
    found = double(task, line, T, batch_norm="interpolate", strategy=strategy, keep_examples=True)
    for i, t in enumerate(T):
        expected = run_plainly(task.model, line.at(t), task)
        for name, values in expected.items():
            n = len(values)
            assert_allclose(found[name][i], values.mean(), rtol=1e-12, atol=1e-14)
            stderr = values.std(ddof=1) / np.sqrt(n)
            assert_allclose(found[f"{name}_stderr"][i], stderr, rtol=1e-8, atol=1e-12)
            assert_allclose(found[f"{name}_examples"][i], values, rtol=1e-11, atol=1e-13)
    assert (found.status == 1).all()


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("name", ["mlp", "residual", "tokens"])
def test_ends_have_the_checkpoints_own_values_to_the_last_bit(name, strategy):
    task, states = CASES[name].task(), CASES[name].states()
    for policy in ("keep", "interpolate"):
        line = evaluate(task, families.line(*states), T, batch_norm=policy, strategy=strategy)
        own = evaluate(task, states, batch_norm="keep", strategy=strategy)
        assert_array_equal(line["loss"][[0, -1]], own["loss"])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_trial_chooses_something_that_gives_the_same_numbers(case):
    task, states = case.task(), case.states()
    chosen = evaluate(task, families.line(*states), T, batch_norm="keep")
    fixed = evaluate(task, families.line(*states), T, batch_norm="keep", strategy=Strategy())
    assert_allclose(chosen["loss"], fixed["loss"], rtol=1e-5)
    again = evaluate(case.task(), families.line(*states), T, batch_norm="keep")
    assert_array_equal(chosen["loss"], again["loss"])
    assert chosen.attrs["strategy"] == again.attrs["strategy"]


def test_chunks_do_not_change_a_bit():
    task, states = CASES["residual"].task(), CASES["residual"].states()
    strategies = [Strategy(points=p, vectorised=v) for p in (1, 2, 5) for v in (False, True)]
    for vectorised in (False, True):
        found = [
            evaluate(task, families.line(*states), T, strategy=s)["loss"].values
            for s in strategies
            if s.vectorised == vectorised
        ]
        assert_array_equal(found[0], found[1])
        assert_array_equal(found[0], found[2])


def test_a_quadratic_model_has_the_parabola_of_the_closed_form():
    model = nn.Linear(3, 1, bias=False)
    x = torch.randn(50, 3, dtype=torch.float64)
    data = Batches(x, torch.zeros(50, 1, dtype=torch.float64), batch_size=16)
    task = Task("quadratic", model, lambda out, y: (out - y).square().sum(1), data)
    a, b = ({"weight": torch.randn(1, 3, dtype=torch.float64)} for _ in range(2))
    t = np.linspace(-0.5, 1.5, 9)
    found = double(task, families.line(a, b), t)["loss"]
    w = (1 - t)[:, None] * a["weight"].numpy() + t[:, None] * b["weight"].numpy()
    expected = np.einsum("ti,ij,tj->t", w, (x.T @ x / 50).numpy(), w)
    assert_allclose(found, expected, rtol=1e-12)


def test_a_plane_on_an_oblong_grid():
    task, states = CASES["mlp"].task(), CASES["mlp"].states(3)
    plane = families.plane(*states)
    x, y = np.array([0.0, 1.0, 2.0]), np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    found = double(task, plane, (x, y), strategy=Strategy(points=4))
    assert found["loss"].dims == ("x", "y")
    for i, j in ((0, 1), (2, 4), (1, 0)):
        own = run_plainly(task.model, plane.at(x[i], y[j]), task)["loss"].mean()
        assert_allclose(found["loss"].sel(x=x[i], y=y[j]), own, rtol=1e-6)


def test_several_tasks_have_a_split_each():
    case = CASES["residual"]
    train, test = case.task(), case.task()
    few = train.data.subset(torch.arange(11))
    tasks = [Task("train", *_parts(train)), Task("test", test.model, test.loss, few, test.metrics)]
    both = evaluate(tasks, case.states(), batch_norm="keep", keep_examples=True)
    assert both["loss"].dims == ("split", "state")
    assert both["split"].values.tolist() == ["train", "test"]
    assert both["num_examples"].values.tolist() == [46, 11]
    alone = evaluate(tasks[1], case.states(), batch_norm="keep")
    assert_allclose(both["loss"].sel(split="test"), alone["loss"], rtol=1e-6)
    assert both["loss_examples"].sel(split="test").isnull().sum() == 2 * (46 - 11)


def _parts(task):
    return task.model, task.loss, task.data, task.metrics


def test_prepared_tasks_can_stand_for_the_tasks():
    case = CASES["mlp"]
    task, states = case.task(), case.states()
    ready = prepare(task, states)
    assert prepare(ready, states) is ready
    assert_array_equal(evaluate(ready, states)["loss"], evaluate(task, states)["loss"])


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_outputs_are_those_of_the_model_for_all_examples(strategy):
    case = CASES["residual"]
    train, states = case.task(), [as_double(state) for state in case.states()]
    few = train.data.subset(torch.arange(11))
    tasks = [train, Task("few", train.model, train.loss, few)]
    ready = prepare(tasks, states, strategy=strategy, dtype=torch.float64)
    line = families.line(*states)
    found = outputs_at(ready, line, np.array([[0, 1], [0.5, 0.5]]), batch_norm="interpolate")
    assert [part.shape for part in found] == [(2, 46, 3), (2, 11, 3)]
    for k, t in enumerate((1.0, 0.5)):
        model = copy.deepcopy(train.model).double().eval()
        model.load_state_dict(line.at(t))
        with torch.no_grad():
            expected = torch.cat([model(inputs.double()) for inputs, _ in train.data])
        assert_allclose(found[0][k], expected, rtol=1e-10)
        assert_allclose(found[1][k], expected[:11], rtol=1e-10)
    alone = outputs_at(ready, states[1:], batch_norm="keep")
    assert_allclose(alone[0][0], found[0][0], rtol=1e-14)


# --- the user's things ----------------------------------------------------------------------------


def test_nothing_of_the_users_is_changed():
    case = CASES["residual"]
    task, states = case.task(), case.states()
    task.model.train()
    task.model.head.requires_grad_(False)
    model = copy.deepcopy(task.model)
    before = copy.deepcopy(states)
    randomness = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    torch.set_float32_matmul_precision("medium")
    try:
        evaluate(task, families.line(*states), T)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert random.getstate() == randomness[0]
    assert_array_equal(np.random.get_state()[1], randomness[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), randomness[2])
    assert task.model.training
    for (name, old), (_, new) in zip(
        model.named_parameters(), task.model.named_parameters(), strict=True
    ):
        assert torch.equal(old, new), name
        assert old.requires_grad == new.requires_grad
        assert new.grad is None
    for old, new in zip(before, states, strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_that_begins_in_place_does_not_change_the_data(strategy):
    x, y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    kept = x.clone()
    models = [nn.Sequential(nn.ReLU(inplace), nn.Linear(4, 3)) for inplace in (True, False)]
    states = [{name: k * value for name, value in models[0].state_dict().items()} for k in (1, 2)]
    for data in (Batches(x, y, 8), [(x, y)]):
        found, wanted = (
            evaluate(Task("one", model, cross_entropy, data), states, device="cpu",
                     strategy=STRATEGIES[strategy])["loss"]
            for model in models
        )  # fmt: skip
        assert torch.equal(x, kept)
        assert_allclose(found, wanted, rtol=1e-12)


def test_random_states_and_settings_come_back_after_an_error():
    case = CASES["mlp"]

    def failing(outputs, targets):
        torch.rand(3)
        if len(targets) > 5:
            raise RuntimeError("a fault of the user's own")
        return outputs[:, 0]

    task = Task("x", case.model(), failing, case.task().data)
    torch.set_float32_matmul_precision("high")
    state = torch.get_rng_state()
    try:
        with pytest.raises(RuntimeError, match="user's own"):
            evaluate(task, case.states(), strategy=Strategy())
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.is_grad_enabled()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_settings_of_precision_come_back_whichever_way_they_were_made(setting):
    code = f"""
import torch
from landscape.engine import exact_arithmetic
{setting}
b = torch.backends
places = [b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn]
before = [place.fp32_precision for place in places]
with exact_arithmetic():
    assert all(place.fp32_precision == 'ieee' for place in places)
    assert b.cudnn.deterministic and torch.is_inference_mode_enabled()
assert before == [place.fp32_precision for place in places]
assert not b.cudnn.deterministic
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_skeleton_on_the_meta_device_is_enough():
    case = CASES["residual"]
    task = case.task()
    with torch.device("meta"):
        skeleton = Residual()
    bare = Task(task.name, skeleton, task.loss, task.data, task.metrics)
    a, b = case.states()
    assert_array_equal(
        evaluate(bare, [a, b], strategy=Strategy())["loss"],
        evaluate(task, [a, b], strategy=Strategy())["loss"],
    )


def test_weights_in_half_precision_are_evaluated_in_single():
    case = CASES["mlp"]
    task, (a, _) = case.task(), case.states()
    half = {name: tensor.bfloat16() for name, tensor in a.items()}
    single = {name: tensor.float() for name, tensor in half.items()}
    found = evaluate(task, [half], strategy=Strategy())
    assert_array_equal(found["loss"], evaluate(task, [single], strategy=Strategy())["loss"])
    assert found.attrs["dtype"] == "float32"


def test_a_placed_state_has_the_statistics_of_a_pass_in_training_mode_over_all_data():
    case = CASES["residual"]
    task, (state, _) = case.task(), case.states()
    ready = prepare(task, [state], device="cpu", dtype=torch.float64)
    found = placed_state(ready, state)
    twin = case.model().double().train()
    twin.load_state_dict(state)
    for module in twin.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    with torch.no_grad():
        twin(scaled(task.data.inputs).double())
    for name, expected in twin.state_dict().items():
        if name.endswith(("mean", "var")):
            assert_allclose(found[name], expected, rtol=1e-11, atol=1e-11)
            assert not found[name].is_inference()
        else:
            assert found[name] is state[name]
    assert list(found) == list(state)
    own = evaluate(ready, [found], batch_norm="keep")["loss"]
    assert_allclose(own, evaluate(ready, [state])["loss"], rtol=1e-12)
    kept = placed_state(ready, state, batch_norm="keep")
    assert all(kept[name] is state[name] for name in state)
    assert described(ready) == {
        "model": "Residual", "batch_norm": "recalibrate", "batch_norm_examples": 46,
        "batch_norm_data": "residual", "device": "cpu", "dtype": "float64",
    }  # fmt: skip
    assert described(ready, "keep")["batch_norm_data"] == ""


def test_a_placed_state_without_batch_norm_is_the_state_in_the_models_order():
    case = CASES["tokens"]
    state = case.states()[0]
    ready = prepare(case.task(), [state], device="cpu")
    found = placed_state(ready, dict(reversed(state.items())))
    assert list(found) == list(state)
    assert all(found[name] is state[name] for name in state)
    with pytest.raises(ValueError, match="missing"):
        placed_state(ready, {})


# --- data -----------------------------------------------------------------------------------------


def test_a_loader_and_tensors_give_the_same():
    case = CASES["mlp"]
    task = case.task()
    loader = uneven(TensorDataset(task.data.inputs, task.data.targets))
    other = Task("mlp", task.model, task.loss, loader, task.metrics)
    strategy = Strategy(batch_size=46)
    assert_array_equal(
        evaluate(task, case.states(), strategy=strategy)["loss"],
        evaluate(other, case.states(), strategy=strategy)["loss"],
    )


@pytest.mark.parametrize("name", ["residual", "tokens"])
@pytest.mark.parametrize("strategy", [Strategy(points=2), Strategy(points=2, vectorised=True)])
def test_data_that_does_not_fit_is_streamed(monkeypatch, name, strategy):
    case = CASES[name]
    task, states = case.task(), case.states()
    if name == "residual":
        data = uneven(TensorDataset(scaled(task.data.inputs), task.data.targets))
        task = Task(task.name, task.model, task.loss, data, task.metrics)
    expected = double(task, families.line(*states), T, keep_examples=True, strategy=strategy)
    monkeypatch.setattr(examples, "free_memory", lambda device: 2000)
    streamed = double(task, families.line(*states), T, keep_examples=True, strategy=strategy)
    assert prepare(task, states, strategy=strategy).examples[0].source is not None
    assert_allclose(streamed["loss"], expected["loss"], rtol=1e-12)
    assert_allclose(streamed["loss_examples"], expected["loss_examples"], rtol=1e-11)


def test_batches_of_unlike_shapes_are_kept_apart():
    batches = [(torch.randn(3, 4, 6), torch.zeros(3, 2)), (torch.randn(2, 7, 6), torch.ones(2, 2))]
    model = nn.Linear(6, 2)
    task = Task("ragged", model, lambda out, y: (out.mean(1) - y).square().sum(1), batches)
    state = model.state_dict()
    with torch.no_grad():
        expected = torch.cat([task.loss(model(x), y) for x, y in batches]).double().mean()
    assert_allclose(evaluate(task, [state])["loss"], [expected.item()], rtol=1e-6)


def test_a_loader_that_shuffles_is_refused():
    case = CASES["mlp"]
    task = case.task()
    data = TensorDataset(task.data.inputs, task.data.targets)
    loader = DataLoader(data, batch_size=9, shuffle=True)
    with pytest.raises(ValueError, match="differs between two passes.*shuffle=False"):
        evaluate(Task("mlp", task.model, task.loss, loader), case.states())


@pytest.mark.parametrize("data", [[], [(torch.zeros(0, 6), torch.zeros(0))]])
def test_an_empty_data_set_is_refused(data):
    case = CASES["mlp"]
    with pytest.raises(ValueError, match="holds no examples"):
        evaluate(Task("mlp", case.model(), cross_entropy, data), case.states())


@pytest.mark.parametrize("data", [[torch.zeros(4, 6)], [(torch.zeros(4, 6),)], [(1, 2)]])
def test_data_that_are_no_pairs_are_refused(data):
    case = CASES["mlp"]
    with pytest.raises(ValueError, match=r"pairs \(inputs, targets\)"):
        evaluate(Task("mlp", case.model(), cross_entropy, data), case.states())


# --- tasks ----------------------------------------------------------------------------------------


def test_tasks_that_cannot_serve_are_refused_at_once():
    case = CASES["mlp"]
    data = case.task().data
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got function"):
        Task("x", case.model, cross_entropy, data)
    with pytest.raises(TypeError, match="loss must be callable"):
        Task("x", case.model(), "cross_entropy", data)
    with pytest.raises(TypeError, match=r"re-iterable.*got a list_iterator"):
        Task("x", case.model(), cross_entropy, iter([1]))
    with pytest.raises(ValueError, match="metric 'loss' must be callable and not be named"):
        Task("x", case.model(), cross_entropy, data, {"loss": wrong})
    with pytest.raises(TypeError, match="sequence of them, got int"):
        evaluate([3], case.states())
    with pytest.raises(ValueError, match=r"does not fit Residual:\n  missing \(23\)"):
        evaluate([case.task(), CASES["residual"].task()], case.states())
    with pytest.raises(ValueError, match="different names"):
        evaluate([case.task(), case.task()], case.states())


def test_a_scalar_loss_is_refused():
    case = CASES["mlp"]
    task = Task("mlp", case.model(), F.cross_entropy, case.task().data)
    with pytest.raises(ValueError, match=r"shape \(2,\) for 2 examples, got \(\).*'none'"):
        evaluate(task, case.states())


class Choice(nn.Module):
    def forward(self, x):
        return x.argmax(1)


def test_a_loss_that_does_not_take_the_outputs_is_refused():
    case = CASES["mlp"]
    classes = nn.Sequential(*case.model(), Choice())
    state = {name: torch.randn_like(value) for name, value in classes.state_dict().items()}
    task = Task("chosen", classes, cross_entropy, case.task().data)
    with pytest.raises(ValueError, match=r"loss of task 'chosen' does not take .* \(2,\) of"):
        evaluate(task, [state])


def test_a_metric_of_the_wrong_shape_is_refused():
    case = CASES["mlp"]
    task = Task("mlp", case.model(), cross_entropy, case.task().data, {"out": lambda o, y: o})
    with pytest.raises(ValueError, match=r"out of task 'mlp'.*got \(2, 3\)"):
        evaluate(task, case.states())


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_found_before_any_point(label):
    case = CASES["mlp"]
    data = case.task().data
    targets = data.targets.clone()
    targets[30] = label
    task = Task("mlp", case.model(), cross_entropy, Batches(data.inputs, targets, 10))
    with pytest.raises(ValueError, match=rf"labels 0 to 2\), example 30 .* the label {label}$"):
        evaluate(task, case.states())


def test_an_ignored_label_is_not_out_of_range():
    case = CASES["mlp"]
    data = case.task().data
    targets = data.targets.clone()
    targets[30] = -100
    task = Task("mlp", case.model(), cross_entropy, Batches(data.inputs, targets, 10))
    assert (evaluate(task, case.states()).status == 1).all()
    targets[31] = 7
    with pytest.raises(ValueError, match="example 31 of the data has the label 7"):
        evaluate(task, case.states())


def test_states_that_do_not_fit_the_model_are_refused():
    case = CASES["mlp"]
    (state,) = case.states(1)
    with pytest.raises(ValueError, match=r"does not fit Sequential:\n  missing \(1\): 0.bias"):
        evaluate(case.task(), [{k: v for k, v in state.items() if k != "0.bias"}])
    with pytest.raises(ValueError, match="no states to evaluate"):
        evaluate(case.task(), [])


def test_constant_tables_must_agree():
    case = CASES["tokens"]
    a, b = case.states()
    b = b | {"table": b["table"] + 1}
    with pytest.raises(ValueError, match="buffers table differ"):
        evaluate(case.task(), families.line(a, b), T)


@pytest.mark.parametrize("strategy", [Strategy(points=2), Strategy(points=2, vectorised=True)])
def test_states_that_stand_alone_may_have_tables_of_their_own(strategy):
    task, (a, b) = CASES["tokens"].task(), map(as_double, CASES["tokens"].states())
    b = b | {"table": b["table"] + 1}
    found = double(task, [a, b], strategy=strategy)
    for state, value in zip((a, b), found["loss"], strict=True):
        own = run_plainly(task.model, state, task)["loss"].mean()
        assert_allclose(value, own, rtol=1e-12)


def test_states_have_no_points():
    case = CASES["mlp"]
    with pytest.raises(ValueError, match="points are coordinates of a family"):
        evaluate(case.task(), case.states(), np.linspace(0, 1, 5))


def test_points_are_checked():
    case = CASES["mlp"]
    task, (a, b, c) = case.task(), case.states(3)
    with pytest.raises(ValueError, match="a family needs points"):
        evaluate(task, families.line(a, b))
    with pytest.raises(ValueError, match="finite numbers"):
        evaluate(task, families.line(a, b), [0.0, np.nan])
    with pytest.raises(ValueError, match=r"one axis for each of \(x, y\), got 1"):
        evaluate(task, families.plane(a, b, c), [T])


# --- trouble while running ------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_stored_and_marked():
    case = CASES["mlp"]
    task, (a, b) = case.task(), case.states()
    b = b | {"3.bias": torch.full((3,), torch.inf)}
    found = evaluate(task, [a, b, a], strategy=Strategy(points=3))
    assert found["status"].values.tolist() == [1, 2, 1]
    assert np.isnan(found["loss"].values[1])
    assert_array_equal(found["loss"].values[0], found["loss"].values[2])


@pytest.mark.parametrize("strategy", [Strategy(points=4), Strategy(points=4, vectorised=True)])
@pytest.mark.parametrize("limit", [100, 46, 9])
def test_out_of_memory_halves_the_work_and_gives_the_same_numbers(monkeypatch, strategy, limit):
    case = CASES["residual"]
    task, states = case.task(), case.states()
    expected = double(task, families.line(*states), T, strategy=strategy)
    measured = evaluation.measured
    tried = []

    def scarce(measures, call, inputs, targets):
        values = measured(measures, call, inputs, targets)
        points = 4 if strategy.vectorised and not tried else 1
        tried.append(len(targets) * points)
        if tried[-1] > limit:
            raise torch.OutOfMemoryError("no memory left")
        return values

    monkeypatch.setattr(evaluation, "measured", scarce)
    found = double(task, families.line(*states), T, strategy=strategy)
    assert_allclose(found["loss"], expected["loss"], rtol=1e-12)
    assert tried[-1] <= limit
    monkeypatch.setattr(evaluation, "measured", _no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="none at all"):
        double(task, families.line(*states), T, strategy=strategy)


def _no_memory(*args):
    raise torch.OutOfMemoryError("none at all")


def test_a_model_that_vmap_cannot_follow_is_looped():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            out = self.layer(x)
            return out if out.sum().item() > 0 else -out

    task = Task("branching", Branching(), cross_entropy, CASES["mlp"].task().data)
    states = [Branching().state_dict() for _ in range(2)]
    assert '"vectorised": false' in evaluate(task, states).attrs["strategy"]


def test_a_metric_that_vmap_cannot_follow_is_looped():
    def listed(outputs, targets):
        return torch.tensor([float(value) for value in outputs.sum(1).tolist()])

    case = CASES["mlp"]
    task = Task("listed", case.model(), cross_entropy, case.task().data, {"sum": listed})
    found = evaluate(task, families.line(*case.states()), T)
    assert '"vectorised": false' in found.attrs["strategy"]
    assert (found["status"] == 1).all()


def test_batch_norm_without_statistics_sees_the_users_batches():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))
    data = CASES["mlp"].task().data
    task = Task("batches", model, cross_entropy, data)
    with torch.no_grad():
        expected = torch.cat([cross_entropy(model(x), y) for x, y in data]).mean().item()
    found = evaluate(task, [model.state_dict()])
    assert_allclose(found["loss"], [expected], rtol=1e-6)


def test_dropout_stays_off_and_no_warning_is_given():
    case = CASES["mlp"]
    task, states = case.task(), case.states()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (evaluate(task, states)["loss"].values for _ in range(2))
    assert_array_equal(first, second)


def test_executors_give_the_same_bits():
    from concurrent.futures import ThreadPoolExecutor

    case = CASES["residual"]
    task, states = case.task(), case.states()
    line = families.line(*states)
    strategy = Strategy(points=2)
    here = evaluate(task, line, T, strategy=strategy)
    with ThreadPoolExecutor(2) as executor:
        there = evaluate(task, line, T, strategy=strategy, executor=executor)
    assert_array_equal(here["loss"], there["loss"])


# --- tasks by name --------------------------------------------------------------------------------


def test_tasks_are_loaded_from_modules_and_files(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from cases import CASES\n"
        "def task(name='mlp'):\n"
        "    return CASES[name].task()\n"
        "def number():\n"
        "    return 3\n"
    )
    (task,) = load_tasks(f"{file}:task", {"name": "tokens"})
    assert task.name == "tokens"
    monkeypatch.chdir(tmp_path)
    assert load_tasks("mine:task")[0].name == "mlp"
    with pytest.raises(ValueError, match="no function 'tusk'; did you mean 'task'"):
        load_tasks("mine:tusk")
    with pytest.raises(ValueError, match=r"named pkg.mod:function or path/file.py:function, got"):
        load_tasks("mine")
    with pytest.raises(ValueError, match="module 'nowhere' of the task cannot be imported"):
        load_tasks("nowhere:task")
    with pytest.raises(ValueError, match="no file other.py"):
        load_tasks("other.py:task")
    with pytest.raises(TypeError, match=r"landscape.Task or a sequence of them, got|not iterable"):
        load_tasks("mine:number")


def test_scattered_points_are_the_points_of_a_grid():
    case = CASES["residual"]
    family = families.plane(*case.states(3))
    axes = [np.array([0.0, 0.4, 1.1]), np.array([-0.2, 0.3])]
    whole = double(case.task(), family, axes)
    flat = np.array([[x, y] for x in axes[0] for y in axes[1]])
    result = double(case.task(), family, flat[[4, 1]], scattered=True)
    assert_array_equal(result["loss"], whole["loss"].values.ravel()[[4, 1]])
    assert_array_equal(result["x"], [1.1, 0.0])
    assert result["y"].dims == ("point",)
    for wrong_points in (flat.T, flat[:0], flat + np.nan):
        with pytest.raises(ValueError, match=r"must be a non-empty \(n, 2\) array"):
            double(case.task(), family, wrong_points, scattered=True)


def test_statistics_that_agree_may_be_extrapolated():
    case = CASES["residual"]
    a, _ = case.states()
    family = families.random_plane(a, model=case.model())
    results = [
        double(case.task(), family, [[-1.0, 0.5], [0.2]], batch_norm=policy)
        for policy in ("interpolate", "keep")
    ]
    assert_allclose(results[0]["loss"], results[1]["loss"], rtol=1e-6)


def test_a_single_point_needs_no_vmap():
    case = CASES["group-norm"]  # torch refuses group norm of a single point, channels last
    strategy = Strategy(points=8, vectorised=True, batch_size=10, layout="channels_last")
    one = evaluate(case.task(), case.states(1), strategy=strategy)
    several = evaluate(case.task(), case.states(3), strategy=strategy)
    assert_allclose(one["loss"][0], several["loss"][0], rtol=1e-5)


def test_labels_of_tokens_out_of_range_are_named():
    model = nn.Sequential(
        nn.Embedding(7, 5), nn.Linear(5, 7)
    )  # outputs (batch, positions, classes)

    def loss(outputs, targets):
        return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)

    tokens = torch.randint(0, 7, (9, 4), generator=torch.Generator().manual_seed(0))
    targets = tokens.clone()
    targets[5, 2] = 7
    task = Task("tokens", model, loss, Batches(tokens, targets, 3))
    with pytest.raises(ValueError, match=r"7 outputs .* example 5 .* label 7"):
        evaluate(task, [model.state_dict()])
    good = Task("tokens", model, loss, Batches(tokens, tokens, 3))
    assert evaluate(good, [model.state_dict()])["loss"] > 0
