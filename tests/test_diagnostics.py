from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES, cross_entropy, squared_error, uneven
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import entr, log_softmax, logsumexp, softmax
from torch import nn
from torch.utils.data import TensorDataset

from landscape import examples, families
from landscape.analyses.diagnostics import combined, diagnose, with_diagnostics
from landscape.datasets import Batches
from landscape.evaluation import evaluate, prepare
from landscape.strategy import Strategy
from landscape.task import Task, wrong

T = np.linspace(0, 1, 5)
STRATEGIES = {
    "loop": Strategy(batch_size=7, points=3),
    "vmap": Strategy(batch_size=20, points=4, vectorised=True, moment_batch=20),
}
double = partial(diagnose, dtype=torch.float64)


def linear(num=60, classes=4, scale=3.0):
    """Outputs x W^T of known data and weights, some of them confident and some right."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num, 6, dtype=torch.float64, generator=generator)
    a, b = (
        {"weight": scale * torch.randn(classes, 6, dtype=torch.float64, generator=generator)}
        for _ in range(2)
    )
    noise = torch.randn(num, classes, dtype=torch.float64, generator=generator)
    labels = (x @ (a["weight"] + b["weight"]).T / scale + noise).argmax(1)
    model = nn.Linear(6, classes, bias=False)
    return Task("train", model, cross_entropy, Batches(x, labels, 16), {"error": wrong}), a, b


def calibration_error(outputs, labels, num):
    """Guo et al. 2017, equation 3, bin after bin."""
    probabilities = softmax(outputs, 1)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for lower in np.arange(num) / num:
        inside = (confidence > lower) & (confidence <= lower + 1 / num)
        if inside.any():
            gap = correct[inside].mean() - confidence[inside].mean()
            total += inside.mean() * abs(gap)
    return total


def by_hand(outputs, ends, labels, num_bins):
    """The mean of each diagnostic, with numpy."""
    rows, members = np.arange(len(labels)), (outputs, *ends)
    ensemble = np.mean([softmax(member, 1) for member in members], axis=0)
    loss = [-log_softmax(member, 1)[rows, labels] for member in members]
    error = [member.argmax(1) != labels for member in members]
    loss_of_all, error_of_all = -np.log(ensemble[rows, labels]), ensemble.argmax(1) != labels
    values = {
        "disagreement_a": outputs.argmax(1) != ends[0].argmax(1),
        "disagreement_b": outputs.argmax(1) != ends[1].argmax(1),
        "entropy": entr(softmax(outputs, 1)).sum(1),
        "ensemble_loss": loss_of_all,
        "ensemble_error": error_of_all,
        "ensemble_gain_loss": np.mean(loss, axis=0) - loss_of_all,
        "ensemble_gain_error": np.mean(error, axis=0) - error_of_all,
    }
    means = {name: value.mean() for name, value in values.items()}
    errors = {
        f"{name}_stderr": value.std(ddof=1) / np.sqrt(len(labels)) for name, value in values.items()
    }
    return means | errors | {"calibration_error": calibration_error(outputs, labels, num_bins)}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("num_bins", [1, 10, 15, 40])
def test_a_line_equals_its_brute_force_twin(num_bins, strategy):
    task, a, b = linear()
    found = double(task, families.line(a, b), T, num_bins=num_bins, strategy=strategy)
    x, labels = task.data.inputs.numpy(), task.data.targets.numpy()
    ends = [x @ state["weight"].numpy().T for state in (a, b)]
    for i, t in enumerate(T):
        expected = by_hand((1 - t) * ends[0] + t * ends[1], ends, labels, num_bins)
        for name, value in expected.items():
            assert_allclose(found[name][i], value, rtol=1e-9, atol=1e-12, err_msg=name)
    assert found["disagreement_a"].dims == found["calibration_error"].dims == ("t",)
    assert not [name for name in found if "gap" in name]
    assert found.attrs["num_bins"] == num_bins
    assert (found["calibration_error"] > 0.01).all()


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_the_loss_and_the_metrics_are_as_without(strategy):
    case = CASES["residual"]
    task, line = case.task(), families.line(*case.states())
    plain = evaluate(task, line, T, strategy=strategy, keep_examples=True)
    found = diagnose(task, line, T, strategy=strategy, keep_examples=True)
    for name in plain:
        assert_array_equal(found[name], plain[name])
    assert found.attrs["strategy"] == plain.attrs["strategy"]
    assert found["entropy_examples"].dims == ("t", "example")
    chosen = diagnose(task, line, T)
    assert_allclose(chosen["loss"], plain["loss"], rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("policy", ["recalibrate", "interpolate", "keep", "repair"])
@pytest.mark.parametrize("name", ["mlp", "residual", "group-norm"])
def test_an_end_agrees_with_itself(name, policy, strategy):
    case = CASES[name]
    task, states = case.task(), case.states()
    found = diagnose(task, families.line(*states), T, batch_norm=policy, strategy=strategy)
    a, b = found["disagreement_a"].values, found["disagreement_b"].values
    assert a[0] == b[-1] == 0
    assert a[-1] == b[0]
    own = diagnose(
        task, families.line(*states), T, ends=states, batch_norm=policy, strategy=strategy
    )
    for name in ("disagreement_a", "disagreement_b", "ensemble_loss"):
        assert_allclose(own[name], found[name], rtol=1e-5)


def test_other_ends_and_the_last_control_of_a_curve():
    task, a, b = linear()
    c = {"weight": a["weight"] - b["weight"]}
    curve = families.bezier(a, c, b)
    found = double(task, curve, T)
    assert found["disagreement_a"][0] == found["disagreement_b"][-1] == 0
    same = double(task, curve, T, ends=(a, b))
    assert_allclose(same["ensemble_loss"], found["ensemble_loss"], rtol=1e-14)

    class Kept:
        def load(self):
            return c

    other = double(task, families.line(a, b), T, ends=(Kept(), b))
    x = task.data.inputs
    expected = (x @ a["weight"].T).argmax(1) != (x @ c["weight"].T).argmax(1)
    assert_allclose(other["disagreement_a"][0], expected.double().mean())
    plane = double(task, families.plane(a, b, c), ([0.0], [0.0, 1.0]))
    assert plane["calibration_error"].dims == ("x", "y")
    assert plane["disagreement_a"].values[0, 0] == 0


def test_an_ensemble_of_equals_gains_nothing_and_others_do():
    task, a, b = linear()
    same = double(task, families.line(a, a), T)
    assert_allclose(same["ensemble_gain_loss"], 0, atol=1e-14)
    assert_allclose(same["ensemble_loss"], same["loss"], rtol=1e-13)
    assert_array_equal(same["ensemble_gain_error"], np.zeros(5))
    single = diagnose(task, families.line(a, a), T)
    assert_allclose(single["ensemble_gain_loss"], 0, atol=1e-6)
    other = double(task, families.line(a, b), T, keep_examples=True)
    assert (other["ensemble_gain_loss_examples"] >= -1e-14).all()  # Jensen's inequality
    assert (other["ensemble_gain_loss"] > 0.1).all()


def test_constant_outputs_have_the_entropy_and_the_calibration_of_a_uniform_guess():
    task, a, _ = linear()
    zero = {"weight": torch.zeros_like(a["weight"])}
    found = double(task, families.line(zero, zero), [0, 1])
    assert_allclose(found["entropy"], np.log(4), rtol=1e-14)
    share = (task.data.targets == 0).double().mean()
    assert_allclose(found["calibration_error"], abs(share - 0.25), rtol=1e-12)
    assert_allclose(found["calibration_error_stderr"], found["error_stderr"], rtol=1e-12)
    sure = {"weight": a["weight"] * 1e4}  # confidence 1 is in the last bin
    found = double(task, families.line(sure, sure), [0])
    assert_allclose(found["calibration_error"], found["error"], rtol=1e-12)
    assert_allclose(found["entropy"], 0, atol=1e-12)


def test_the_standard_error_of_the_calibration_error_is_that_of_a_bootstrap():
    task, a, b = linear(num=3000)
    found = double(task, families.line(a, b), [1.0], num_bins=5)
    outputs = (task.data.inputs @ b["weight"].T).numpy()
    labels = task.data.targets.numpy()
    random = np.random.default_rng(0)
    resampled = [
        calibration_error(outputs[index], labels[index], 5)
        for index in random.integers(0, 3000, (1500, 3000))
    ]
    assert_allclose(found["calibration_error_stderr"], np.std(resampled), rtol=0.05)
    # and exactly that of the mean of sign(gap) (correct - confidence)
    confidence, correct = softmax(outputs, 1).max(1), outputs.argmax(1) == labels
    number = np.ceil(confidence * 5)
    values = np.zeros(3000)
    for one in np.unique(number):
        gap = (correct - confidence) * (number == one)
        values += np.sign(gap.sum()) * gap
    stderr = values.std(ddof=1) / np.sqrt(3000)
    assert_allclose(found["calibration_error_stderr"], stderr, rtol=1e-9)


def test_splits_have_ends_of_their_own():
    case = CASES["residual"]
    whole, line = case.task(), families.line(*case.states())
    part = whole.data.subset(torch.arange(11))
    test = Task("test", whole.model, whole.loss, part, whole.metrics)
    train = Task("train", whole.model, whole.loss, whole.data, whole.metrics)
    both = double([test, train], line, T, keep_examples=True)
    assert both["calibration_error"].dims == ("split", "t")
    alone = double(train, line, T)
    for name in set(alone) - {"num_examples", "status"}:
        assert_allclose(both[name].sel(split="train"), alone[name], rtol=1e-9, atol=1e-12)
    expected = both["entropy_examples"].sel(split="train")[:, :11].mean("example")
    assert_allclose(both["entropy"].sel(split="test"), expected, rtol=1e-12)


def test_points_chunks_workers_and_streams_do_not_matter(monkeypatch):
    case = CASES["mlp"]
    task, line = case.task(), families.line(*case.states())
    strategy = Strategy(batch_size=46, points=2)
    whole = diagnose(task, line, T, strategy=strategy)
    ready = prepare(task, line, strategy=strategy)
    parts = [
        diagnose(ready, line, T[some])["calibration_error"] for some in (slice(3), slice(3, 5))
    ]
    assert_array_equal(np.concatenate(parts), whole["calibration_error"])
    with ThreadPoolExecutor(2) as executor:
        there = diagnose(ready, line, T, executor=executor)
    assert there.drop_attrs().identical(whole.drop_attrs())
    compared = with_diagnostics(ready, line)
    assert combined(evaluate(compared, line, T)).drop_attrs().identical(whole.drop_attrs())
    loader = uneven(TensorDataset(task.data.inputs, task.data.targets))
    monkeypatch.setattr(examples, "free_memory", lambda device: 500)
    for vectorised in (False, True):
        strategy = Strategy(points=2, vectorised=vectorised)
        other = Task("mlp", task.model, task.loss, loader, task.metrics)
        ready = with_diagnostics(other, line, strategy=strategy)
        assert ready.examples[0].source is not None
        streamed = combined(evaluate(ready, line, T))
        for name in whole:
            assert_allclose(streamed[name], whole[name], rtol=2e-5, atol=1e-7)


def test_outputs_that_exclude_a_class_and_some_that_are_not_finite():
    task, a, b = linear()

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4, bias=False)

        def forward(self, x):
            return torch.cat([self.layer(x), torch.full((len(x), 1), -torch.inf)], 1)

    a, b = ({"layer.weight": state["weight"]} for state in (a, b))
    masked = Task("masked", Masked(), cross_entropy, task.data)
    strategy = Strategy()
    found = double(masked, families.line(a, b), T, strategy=strategy)
    plain = double(*_renamed(task, a, b), T, strategy=strategy)
    for name in set(plain) - {"error", "error_stderr"}:
        assert_allclose(found[name], plain[name], rtol=1e-12)
    broken = {"layer.weight": a["layer.weight"] * torch.nan}
    found = double(masked, families.line(a, broken), [0.5], strategy=strategy)
    assert found["status"] == 2
    assert np.isnan(found["calibration_error"])


def _renamed(task, a, b):
    return task, families.line(*({"weight": state["layer.weight"]} for state in (a, b)))


# --- refusals -------------------------------------------------------------------------------------


def test_tasks_that_are_no_classifiers_are_refused():
    for name in ("regression", "tokens"):
        case = CASES[name]
        with pytest.raises(ValueError, match=rf"need a classifier.*task '{name}' has outputs"):
            diagnose(case.task(), families.line(*case.states()), T)

    class Pair(nn.Linear):
        def forward(self, x):
            return {"outputs": super().forward(x)}

    data = CASES["mlp"].task().data
    task = Task("pair", Pair(6, 3), lambda o, y: cross_entropy(o["outputs"], y), data)
    with pytest.raises(ValueError, match="outputs must be one tensor, got dict"):
        diagnose(task, families.line(*[Pair(6, 3).state_dict()] * 2), T)


def test_outputs_that_are_no_logits_are_refused():
    case = CASES["mlp"]

    def of_probabilities(outputs, targets):
        return -outputs.clamp(min=1e-9).log()[torch.arange(len(targets)), targets]

    def brier(outputs, targets):
        return squared_error(outputs, nn.functional.one_hot(targets, 3).to(outputs.dtype))

    model = nn.Sequential(case.model(), nn.Softmax(1))
    states = [{f"0.{key}": value for key, value in state.items()} for state in case.states()]
    for loss in (of_probabilities, brier):
        task = Task("probabilities", model, loss, case.task().data)
        with pytest.raises(
            ValueError, match="logits or log-probabilities.*'probabilities' changes"
        ):
            diagnose(task, families.line(*states), T, strategy=Strategy())
    model = nn.Sequential(case.model(), nn.LogSoftmax(1))
    logs = Task("logs", model, cross_entropy, case.task().data)
    found = double(logs, families.line(*states), T)
    plain = double(case.task(), families.line(*case.states()), T)
    assert_allclose(found["ensemble_gain_loss"], plain["ensemble_gain_loss"], rtol=1e-10)


def test_other_arguments_are_checked():
    task, a, b = linear()
    line = families.line(a, b)
    with pytest.raises(ValueError, match="two ends to compare with, got 1"):
        diagnose(task, line, T, ends=[a])
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        diagnose(task, line, T, num_bins=0)
    taken = Task("x", task.model, task.loss, task.data, {"entropy": wrong})
    with pytest.raises(ValueError, match="named like diagnostics: entropy; give them other names"):
        diagnose(taken, line, T)
    with pytest.raises(ValueError, match="has no calibration_gap_0 and on"):
        combined(evaluate(task, line, T))


def test_ensembles_in_the_far_tail_do_not_underflow():
    task, a, b = linear(scale=300.0)
    found = double(task, families.line(a, b), [0.5])
    x, labels = task.data.inputs.numpy(), task.data.targets.numpy()
    ends = [x @ state["weight"].numpy().T for state in (a, b)]
    members = [log_softmax(m, 1) for m in (ends[0], ends[1], (ends[0] + ends[1]) / 2)]
    logs = logsumexp(members, axis=0) - np.log(3)
    expected = -logs[np.arange(len(labels)), labels].mean()
    assert_allclose(found["ensemble_loss"], [expected], rtol=1e-12)
