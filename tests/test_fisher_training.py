"""Checkpoints one after the other give what each gives alone; those that fail are single points."""

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose, assert_array_equal

from landscape import results
from landscape.analyses.fisher import fisher_trace
from landscape.analyses.fisher_training import estimate, fisher_over_training
from landscape.evaluation import evaluate
from landscape.task import Task

OPTIONS = {"device": "cpu", "dtype": torch.float64, "num_backwards": 20, "seed": 2}


class Stored:
    """A checkpoint, or what is left of one."""

    def __init__(self, state, step):
        self.state, self.step = state, step

    def load(self):
        if self.state is None:
            raise OSError("the file ends too early")
        return self.state


def checkpoints(case, num=3):
    return [Stored(state, 10 * n) for n, state in enumerate(case.states(num))]


def test_each_checkpoint_has_what_it_has_alone_for_each_choice():
    case = CASES["residual"]
    task, states = case.task(), checkpoints(case)
    choices = {"labels": ["sampled", "observed"], "batch_norm": ["keep", "recalibrate"]}
    found = fisher_over_training(task, states, **choices, **OPTIONS)
    assert found["trace"].dims == ("step", "batch_norm", "labels", "tensor")
    assert_array_equal(found["step"], [0, 10, 20])
    for step, state in enumerate(states):
        for policy in choices["batch_norm"]:
            values = evaluate(task, [state.state], batch_norm=policy, device="cpu")
            one = found.sel(batch_norm=policy).isel(step=step)
            for name in ("loss", "loss_stderr", "error", "error_stderr"):
                assert_allclose(one[name], values[name][0], rtol=1e-5)
            for labels in choices["labels"]:
                options = OPTIONS | {"labels": labels, "batch_norm": policy}
                alone = fisher_trace(task, state, **options)
                for name in ("trace", "trace_stderr", "trace_stderr_examples", "total_stderr"):
                    assert_allclose(
                        one[name].sel(labels=labels), alone[name], rtol=1e-9, atol=1e-14
                    )
                assert one["num_backwards"].sel(labels=labels) == alone.attrs["num_backwards"]
    assert_array_equal(found["rule"], alone["rule"])
    assert found.attrs["likelihood"] == "categorical"


def test_parts_of_a_run_put_together_are_the_run(tmp_path):
    case = CASES["residual"]
    task, states = case.task(), checkpoints(case)
    whole = fisher_over_training(task, states, **OPTIONS)

    def compute(steps):
        chosen = [state for state in states if state.step in steps]
        return fisher_over_training(task, chosen, **OPTIONS)

    steps = [state.step for state in states]
    path = tmp_path / "fisher.h5"
    options = {"plan": {}, "title": "Fisher", "analysis": "fisher over training", "seconds": 0}
    results.sweep(compute, {"step": steps}, output=path, **options)
    found = results.load(path)
    for name, variable in whole.data_vars.items():
        if variable.dtype.kind == "f":
            assert_allclose(found[name], variable, rtol=1e-9, atol=1e-14)
        else:
            assert_array_equal(found[name], variable)
    assert found.attrs["labels"] == "sampled"
    assert not results.problems(found)


def test_checkpoints_that_fail_are_single_points():
    case = CASES["residual"]
    task, states = case.task(), checkpoints(case, 5)
    whole = fisher_over_training(task, states[3:4], **OPTIONS)
    states[0].state = dict(states[0].state)
    states[0].state["head.0.weight"] = states[0].state["head.0.weight"] * float("nan")
    states[1].state = None
    states[2].state = {"other": torch.zeros(2)}
    states[4].state = {n: t * 1e30 if t.is_floating_point() else t
                       for n, t in states[4].state.items()}  # fmt: skip
    found = fisher_over_training(task, states, **OPTIONS | {"dtype": torch.float32})
    meanings = [results.STATUS[code] for code in found["status"].values]
    assert meanings == ["nonfinite", "failed", "failed", "ok", "nonfinite"]
    problems = found["problem"].values.tolist()
    assert "the output of example 0 of task 'residual' is not finite" in problems[0]
    assert problems[1] == "OSError: the file ends too early"
    assert "the state does not fit Residual" in problems[2]
    assert problems[3] == ""
    assert_array_equal(np.isfinite(found["total"]), [False, False, False, True, False])
    assert_array_equal(np.isfinite(found["loss"]), [False, False, False, True, False])
    assert_allclose(found["total"][3], whole["total"][0], rtol=1e-4)
    nothing = fisher_over_training(task, states[1:3], **OPTIONS)
    assert_array_equal(nothing["tensor"], whole["tensor"])
    assert "loss" not in nothing


def test_several_tasks_have_measures_each_and_the_information_of_the_training_data():
    case = CASES["mlp"]
    train = case.task()
    test = Task("test", train.model, train.loss, [next(iter(train.data))], train.metrics)
    train = Task("train", train.model, train.loss, train.data, train.metrics)
    state = case.states(1)[0]
    found = fisher_over_training([test, train], [state], **OPTIONS)
    assert_array_equal(found["split"], ["test", "train"])
    alone = fisher_over_training(train, [state], measures=False, **OPTIONS)
    assert_allclose(found["trace"], alone["trace"], rtol=1e-10)
    assert "loss" not in alone
    assert found.attrs["task"] == "train"


def test_wrong_questions_are_refused():
    case = CASES["mlp"]
    task, states = case.task(), case.states(2)
    with pytest.raises(ValueError, match="has no batch norm to choose statistics for"):
        fisher_over_training(task, states, batch_norm=["keep", "recalibrate"], **OPTIONS)
    with pytest.raises(ValueError, match="got 3 steps for 2 checkpoints"):
        fisher_over_training(task, states, steps=[1, 2, 3], **OPTIONS)
    with pytest.raises(ValueError, match="labels must be one of sampled, exact, observed"):
        fisher_over_training(task, states, labels=["sampled", "empirical"], **OPTIONS)
    with pytest.raises(
        ValueError, match="must be 'recalibrate' or 'keep' at a single state, got 'repair'"
    ):
        fisher_over_training(task, states, batch_norm="repair", **OPTIONS)


def test_the_estimate_covers_the_choices():
    case = CASES["residual"]
    task, state = case.task(), case.states(1)[0]
    one = estimate(task, state, labels="observed", measures=False, device="cpu")
    assert 0 < one.seconds < 60
    weights = sum(p.numel() for p in task.model.parameters())
    assert one.bytes > 8 * weights
