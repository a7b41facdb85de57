import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import CASES, Residual, cross_entropy, uneven
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.utils.data import TensorDataset

from landscape import evaluation, examples, families
from landscape.analyses.interpolation import interpolate
from landscape.datasets import Batches
from landscape.engine import install
from landscape.evaluation import evaluate, prepare
from landscape.repair import corrected_layers, layers_to_correct
from landscape.strategy import Strategy
from landscape.task import Task, wrong

double = partial(evaluate, dtype=torch.float64, batch_norm="repair")
T = np.array([0.0, 0.3, 0.5, 1.0])
STRATEGIES = {
    "loop": Strategy(batch_size=7, points=3, moment_batch=11),
    "one batch": Strategy(batch_size=64, points=1, moment_batch=46),
    "vmap": Strategy(batch_size=20, points=4, vectorised=True, moment_batch=20),
    "vmap, one batch": Strategy(batch_size=20, points=3, vectorised=True, moment_batch=64),
    "channels last": Strategy(layout="channels_last", batch_size=13, points=2, moment_batch=9),
}


def chain(*layers):
    return nn.Sequential(*layers)


def plain_convolutions():
    return chain(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2, groups=1), nn.Tanh(),
        nn.Conv2d(5, 3, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 6), nn.ReLU(),
        nn.Linear(6, 3),
    )  # fmt: skip


def half_normalised():
    return chain(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(),
        nn.Linear(5, 3),
    )  # fmt: skip


def positions():
    """Linear layers on outputs (n, positions, units)."""
    return chain(nn.Unflatten(1, (3, 2)), nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 3), nn.Flatten(),
                 nn.Linear(9, 3))  # fmt: skip


MODELS = {
    "mlp": (CASES["mlp"].model, "mlp"),
    "positions": (positions, "mlp"),
    "convolutions": (plain_convolutions, "residual"),
    "half normalised": (half_normalised, "residual"),
}


def problem(name):
    """A task and two unlike states in float64."""
    make, data = MODELS[name]
    states = []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = make().double().state_dict()
        states.append(state)
    return Task("train", make(), cross_entropy, CASES[data].task().data, {"error": wrong}), *states


def in_double(data):
    return torch.cat([x.double() for x, _ in data]), torch.cat([y for _, y in data])


@torch.no_grad()
def by_hand(model, states, coefficients, data):
    """The loss of a chain after REPAIR, layer after layer with all of the data in one batch.

    Moments are those of the ends, each run by itself; batch norms have the moments of the data (and
    in the end the unbiased variance, as in torch).
    """
    inputs, targets = in_double(data)
    mixed = {
        key: sum(c * state[key] for c, state in zip(coefficients, states, strict=True))
        for key in states[0]
        if not key.endswith("num_batches_tracked")
    }

    def run(state, wanted=None, unbiased=False):
        """Outputs, and the moments of each layer; set to the `wanted` ones, if there are any."""
        twin = copy.deepcopy(model).double().eval()
        twin.load_state_dict(state, strict=False)
        x, found, layers = inputs, {}, list(twin)
        for i, layer in enumerate(layers):
            is_linear = isinstance(layer, nn.Linear)
            following = layers[i + 1] if i + 1 < len(layers) else None
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                dims = [d for d in range(x.ndim) if d != 1]
                biased = x.var(dims, correction=0)
                layer.running_mean, layer.running_var = x.mean(dims), biased
                kept[i] = x.mean(dims), x.var(dims, correction=1)
                if unbiased:
                    layer.running_mean, layer.running_var = first_kept[i]
            x = layer(x)
            hidden = following is not None and not isinstance(
                following, nn.BatchNorm1d | nn.BatchNorm2d
            )
            if hidden and (is_linear or isinstance(layer, nn.modules.conv._ConvNd)):
                units = -1 if is_linear else 1
                y = x.movedim(units, -1).reshape(-1, x.shape[units])
                if unbiased:
                    mean, std = first_found[i]
                else:
                    mean, std = y.mean(0), y.std(0, correction=0)
                found[i] = mean, std
                if wanted is not None:
                    y = (y - mean) / std * wanted[i][1] + wanted[i][0]
                    x = y.reshape(x.movedim(units, -1).shape).movedim(-1, units)
        return x, found

    kept = {}
    moments = [run(state)[1] for state in states]
    wanted = {
        i: [sum(c * m[i][k] for c, m in zip(coefficients, moments, strict=True)) for k in range(2)]
        for i in moments[0]
    }
    kept = {}
    _, first_found = run(mixed, wanted)
    first_kept = dict(kept)
    outputs, _ = run(mixed, wanted, unbiased=True)
    return cross_entropy(outputs, targets).mean().item()


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_a_line_equals_its_brute_force_twin(name, strategy):
    task, a, b = problem(name)
    found = double(task, families.line(a, b), T, strategy=strategy)
    expected = [by_hand(task.model, (a, b), (1 - t, t), task.data) for t in T]
    assert_allclose(found["loss"], expected, rtol=1e-12)
    assert found.attrs["batch_norm"] == "repair"
    plainly = evaluate(task, families.line(a, b), T, dtype=torch.float64, strategy=strategy)
    assert abs(found["loss"] - plainly["loss"])[1:3].min() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_ends_are_those_without_repair(name):
    task, a, b = problem(name)
    for make in (families.line, families.polychain):
        found = double(task, make(a, b), [0, 1])
        plainly = evaluate(task, [a, b], dtype=torch.float64)
        assert_allclose(found["loss"], plainly["loss"], rtol=1e-13)
    single = evaluate(task, families.line(a, b), [0, 1], batch_norm="repair")
    assert_allclose(single["loss"], plainly["loss"], rtol=1e-5)


def outputs_of_layers(model, inputs):
    """What each correction gives, as (examples, units)."""
    seen = {}
    hooks = [
        model.get_submodule(f"{name}.correction").register_forward_hook(
            lambda m, args, out, name=name: seen.__setitem__(name, out)
        )
        for name in corrected_layers(model)
    ]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return {name: out.movedim(1, -1).reshape(-1, out.shape[1]) for name, out in seen.items()}


@pytest.mark.parametrize("name", ["mlp", "convolutions", "positions"])
def test_every_unit_has_the_interpolated_moments(name):
    task, a, b = problem(name)
    inputs, _ = in_double(task.data)
    ready = prepare(task, [a], dtype=torch.float64, strategy=STRATEGIES["loop"], device="cpu")
    coefficients = np.array([[0.75, 0.25], [1.0, 0.0], [0.0, 1.0]])
    job = evaluation._repaired(
        evaluation._Job(ready, families.line(a, b), coefficients, "repair", False)
    )
    at = []
    for k in range(3):
        with torch.inference_mode():
            (model,), tensors = evaluation._at_points(job, np.array([k]), ready.strategy)
            install(model, {key: tensor[0] for key, tensor in tensors.items()})
            at.append(outputs_of_layers(model, inputs))
    assert len(at[0]) >= 1
    for layer, mixed in at[0].items():
        first, last = at[1][layer], at[2][layer]
        for moment in (torch.mean, partial(torch.std, correction=0)):
            between = 0.75 * moment(first, dim=0) + 0.25 * moment(last, dim=0)
            assert_allclose(moment(mixed, dim=0), between, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "half normalised"])
def test_batches_and_their_order_do_not_matter(name):
    task, a, b = problem(name)
    line = families.line(a, b)
    expected = double(task, line, T, strategy=Strategy(moment_batch=46))["loss"]
    order = torch.randperm(46, generator=torch.Generator().manual_seed(0))
    shuffled = Task("train", task.model, task.loss, task.data.subset(order))
    for batch in (3, 20, 45):
        for one in (task, shuffled):
            found = double(one, line, T, strategy=Strategy(moment_batch=batch))["loss"]
            assert_allclose(found, expected, rtol=1e-12)


def test_large_offsets_do_not_cost_precision():
    task, a, b = problem("mlp")
    for state in (a, b):
        state["0.weight"] = state["0.weight"] * 100
        state["0.bias"] = state["0.bias"] - 100 * state["0.weight"].sum(1)
    data = Batches(task.data.inputs + 100, task.data.targets, 10)
    task = Task("train", task.model, task.loss, data)
    exact = double(task, families.line(a, b), T)["loss"]
    for batch in (7, 46):
        single = evaluate(
            task, families.line(a, b), T, batch_norm="repair", strategy=Strategy(moment_batch=batch)
        )
        assert_allclose(single["loss"], exact, rtol=2e-3)


def test_moments_come_from_the_training_data_and_from_some_of_them():
    task, a, b = problem("half normalised")
    index = torch.linspace(0, 45, 20).round().long()
    train = Task("train", task.model, task.loss, task.data.subset(index))
    test = Task("test", task.model, task.loss, task.data)
    line = families.line(a, b)
    both = double([test, train], line, T)
    assert both.attrs["batch_norm_data"] == "train"
    assert both.attrs["batch_norm_examples"] == 20
    expected = [by_hand(task.model, (a, b), (1 - t, t), train.data) for t in T]
    assert_allclose(both["loss"].sel(split="train"), expected, rtol=1e-12)
    few = double(test, line, T, batch_norm_examples=20)
    assert_allclose(few["loss"], both["loss"].sel(split="test"), rtol=1e-12)


def test_prepared_tasks_workers_chunks_and_streams_give_the_same(monkeypatch):
    task, a, b = problem("half normalised")
    line, strategy = families.line(a, b), Strategy(points=2, moment_batch=11)
    expected = double(task, line, T, strategy=strategy)["loss"]
    policy = {"batch_norm": "repair", "dtype": torch.float64}
    ready = prepare(task, line, strategy=strategy, **policy)
    assert_array_equal(evaluate(ready, line, T, batch_norm="repair")["loss"], expected)
    assert_array_equal(evaluate(ready, line, T[1:3], batch_norm="repair")["loss"], expected[1:3])
    assert type(ready.tasks[0].model[0]) is nn.Conv2d
    with ThreadPoolExecutor(2) as executor:
        there = evaluate(ready, line, T, batch_norm="repair", executor=executor)
    assert_array_equal(there["loss"], expected)
    kept = evaluate(ready, [a, b], batch_norm="keep")
    assert_array_equal(
        kept["loss"], evaluate(task, [a, b], batch_norm="keep", strategy=strategy,
                               dtype=torch.float64)["loss"]
    )  # fmt: skip
    tensors = [torch.cat(part) for part in zip(*task.data, strict=True)]
    task = Task("train", task.model, task.loss, uneven(TensorDataset(*tensors)))
    monkeypatch.setattr(examples, "free_memory", lambda device: 2000)
    for vectorised in (False, True):
        strategy = Strategy(points=3, vectorised=vectorised)
        streamed = double(task, line, T, strategy=strategy)["loss"]
        assert_allclose(streamed, expected, rtol=1e-12)


def test_a_job_with_corrections_travels_to_other_processes():
    task, a, b = problem("half normalised")
    ready = prepare(task, [a], dtype=torch.float64, strategy=STRATEGIES["loop"])
    coefficients = np.array([[0.75, 0.25], [0.5, 0.5]])
    job = evaluation._repaired(
        evaluation._Job(ready, families.Family((a, b), np.asarray), coefficients, "repair", False)
    )
    here, there = (
        evaluation._chunk(j, np.arange(2)) for j in (job, pickle.loads(pickle.dumps(job)))
    )
    assert_array_equal(here["loss"], there["loss"])


def test_the_policy_reaches_analyses_and_a_strategy_of_its_own():
    task, a, b = problem("mlp")
    found = interpolate(task, a, b, points=T, batch_norm="repair", dtype=torch.float64)
    expected = [by_hand(task.model, (a, b), (1 - t, t), task.data) for t in T]
    assert_allclose(found["loss"], expected, rtol=1e-12)
    assert prepare(task, [a], batch_norm="repair").strategy.moment_batch == 46


def test_curves_and_simplexes():
    task, a, b = problem("mlp")
    c = {key: (a[key] - b[key]) / 2 for key in a}
    chain = double(task, families.bezier(a, c, b), [0.4])["loss"]
    assert_allclose(
        chain, by_hand(task.model, (a, c, b), (0.36, 0.48, 0.16), task.data), rtol=1e-12
    )
    simplex = double(task, families.simplex(a, b, c), ([0.2], [0.3]))["loss"]
    assert_allclose(simplex[0, 0], by_hand(task.model, (a, b, c), (0.5, 0.2, 0.3), task.data))


def test_points_beyond_the_ends_are_refused():
    task, a, b = problem("mlp")
    for t in (-0.1, 1.5):
        with pytest.raises(ValueError, match="no meaning beyond them: stay between the control"):
            evaluate(task, families.line(a, b), [0.5, t], batch_norm="repair")
    directions = families.Family((a, b), lambda t: np.concatenate([np.ones_like(t), t], 1))
    with pytest.raises(ValueError, match="no meaning beyond them"):
        evaluate(task, directions, [0.5], batch_norm="repair")


# --- which layers ---------------------------------------------------------------------------------


def found_layers(model, inputs):
    return layers_to_correct(model.eval(), inputs)


def test_layers_before_a_batch_norm_and_the_last_need_none():
    assert found_layers(Residual(), torch.randn(2, 2, 5, 5)) == []
    assert found_layers(half_normalised(), torch.randn(2, 2, 5, 5)) == ["0", "6"]
    assert found_layers(plain_convolutions(), torch.randn(2, 2, 5, 5)) == ["0", "2", "4", "7"]
    assert found_layers(nn.Linear(6, 3), torch.randn(2, 6)) == []
    assert found_layers(nn.ReLU(), torch.randn(2, 6)) == []
    tokens = CASES["tokens"]
    inputs = {"tokens": torch.zeros(2, 4, dtype=torch.long), "scale": torch.ones(2)}
    assert found_layers(tokens.model(), inputs) == []
    recurrent = CASES["recurrent"].model()
    assert found_layers(recurrent, torch.randn(2, 5, 3)) == []


class Skipping(nn.Module):
    """The outputs of `stem` go to a batch norm and around it; two layers give outputs."""

    def __init__(self, around):
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.one, self.two, self.around = nn.Linear(6, 3), nn.Linear(6, 3), around

    def forward(self, x):
        y = self.stem(x)
        z = self.norm(y)
        z = z + y if self.around else z
        assert y.shape == (len(x), 6)
        return {"one": self.one(z), "two": [self.two(z)]}


def test_a_layer_whose_outputs_also_go_around_the_batch_norm_is_corrected():
    assert found_layers(Skipping(around=False), torch.randn(4, 6)) == []
    assert found_layers(Skipping(around=True), torch.randn(4, 6)) == ["stem"]


def test_behind_batch_norms_everywhere_repair_is_recalibration():
    case = CASES["residual"]
    line = families.line(*case.states())
    repaired, recalibrated = (
        evaluate(case.task(), line, T, batch_norm=policy, strategy=Strategy())
        for policy in ("repair", "recalibrate")
    )
    assert_array_equal(repaired["loss"], recalibrated["loss"])
    assert repaired.attrs["repaired_layers"] == "[]"
    assert "repaired_layers" not in recalibrated.attrs
    alone = evaluate(case.task(), case.states(), batch_norm="repair", strategy=Strategy())
    assert_array_equal(alone["loss"], recalibrated["loss"][[0, -1]])
    task, a, b = problem("half normalised")
    found = evaluate(task, families.line(a, b), T, batch_norm="repair")
    assert found.attrs["repaired_layers"] == '["0", "6"]'


def test_a_layer_that_is_used_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.shared(torch.relu(self.shared(x))))

    task = Task("twice", Twice(), cross_entropy, CASES["mlp"].task().data)
    states = [Twice().state_dict() for _ in range(2)]
    with pytest.raises(ValueError, match="layer 'shared' is used twice in one forward pass"):
        evaluate(task, families.line(*states), T, batch_norm="repair")


# --- units that do not vary, and others -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [7, 46])
@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_dead_units_stay_finite_and_do_not_become_noise(dtype, batch, bias):
    task, a, b = problem("mlp")
    a["0.weight"][0], a["0.bias"][0] = 0.0, bias  # dead at one end
    b["0.weight"][1], a["0.weight"][1] = 0.0, 0.0  # dead at both
    b["0.weight"][2] = -a["0.weight"][2]  # dead half way
    a["0.bias"][2], b["0.bias"][2] = bias, bias
    strategy = Strategy(moment_batch=batch)
    found = evaluate(
        task, families.line(a, b), T, batch_norm="repair", dtype=dtype, strategy=strategy
    )
    assert (found["status"] == 1).all()
    near = dict(a) | {"0.weight": a["0.weight"].clone()}
    near["0.weight"][2] *= 1 + 4 * torch.finfo(dtype).eps  # what the arithmetic may add
    again = evaluate(
        task, families.line(near, b), T, batch_norm="repair", dtype=dtype, strategy=strategy
    )
    assert_allclose(found["loss"], again["loss"], rtol=3e-3)
    plainly = evaluate(task, [a, b], dtype=torch.float64)
    assert_allclose(found["loss"][[0, -1]], plainly["loss"], rtol=1e-5)


def test_a_layer_of_zeros_and_a_state_that_is_not_finite():
    task, a, b = problem("mlp")
    zero = {key: value * 0 for key, value in a.items()}
    found = evaluate(task, families.line(zero, zero), T, batch_norm="repair")
    assert_allclose(found["loss"], np.log(3), rtol=1e-6)
    broken = a | {"0.bias": a["0.bias"] * torch.nan}
    found = evaluate(task, families.line(broken, b), [0, 0.5], batch_norm="repair")
    assert found["status"].values.tolist() == [2, 2]


def test_the_collapse_of_deviations_along_a_line_is_removed():
    """Two wide networks with unlike hidden units: half way, deep units hardly vary any more."""
    widths = [6, 256, 256, 256, 3]
    layers = [nn.Linear(i, o) for i, o in pairwise(widths)]
    model = chain(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    states = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        state = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
        for key, value in state.items():
            if key.endswith("weight"):
                value.normal_(std=(2 / value.shape[1]) ** 0.5, generator=generator)
        states.append(state)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(9))
    spread = Task("spread", model, lambda outputs, _: outputs.var(1), Batches(x, x[:, 0] * 0, 200))
    line = families.line(*states)
    end, half = evaluate(spread, line, [0, 0.5])["loss"].values
    repaired = evaluate(spread, line, [0, 0.5], batch_norm="repair")["loss"].values
    assert half < 0.25 * end  # each of four layers halves the variance of what is uncorrelated
    assert repaired[0] == pytest.approx(end, rel=1e-4)
    # the last layer is not corrected: it halves the variance once
    assert 0.3 * end < repaired[1] < 0.8 * end


def test_nothing_of_the_users_is_changed():
    task, a, b = problem("half normalised")
    task.model.train()
    before, states = copy.deepcopy(task.model), copy.deepcopy((a, b))
    line = families.line(a, b)
    ready = prepare(task, line)
    randomness = torch.get_rng_state()
    evaluate(ready, line, T, batch_norm="repair")
    assert torch.equal(randomness, torch.get_rng_state())
    assert ready.tasks[0].model is task.model
    assert task.model.training
    assert not any(module._forward_hooks for module in task.model.modules())
    assert list(task.model.state_dict()) == list(before.state_dict()) == list(a)
    assert all(
        torch.equal(old[key], new[key])
        for old, new in zip(states, (a, b), strict=True)
        for key in old
    )
