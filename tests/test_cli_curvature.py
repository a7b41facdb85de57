"""The verbs hessian and fisher, from files to files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose
from test_cli import folder as folder, run

from landscape import results
from landscape.analyses.hessian import hessian_density, hessian_eigenvalues, hessian_trace
from landscape.checkpoints import save_checkpoint

TASK = ("--task", "tasks.py:task", "-q")


def runs_of(num=3, runs=1):
    states = CASES["mlp"].states(num * runs)
    for number, state in enumerate(states):
        save_checkpoint(state, f"runs/seed{number // num}", step=10 * (number % num))
    return states


@pytest.fixture
def mlp(folder):
    """A folder whose task is that of the mlp."""
    text = Path("tasks.py").read_text()
    Path("tasks.py").write_text(text + "\n\ndef mlp():\n    return CASES['mlp'].task()\n")
    return folder


MLP = ("--task", "tasks.py:mlp")


@pytest.mark.parametrize(
    ("what", "compute", "variable"),
    [
        ("eigenvalues", hessian_eigenvalues, "eigenvalue"),
        ("trace", hessian_trace, "trace"),
        ("density", hessian_density, "density"),
    ],
)
def test_one_checkpoint(mlp, capsys, what, compute, variable):
    command = ("hessian", "mlp-a.pt", *MLP, "--what", what, "-o", "h.h5")
    assert run(*command) == 0
    assert capsys.readouterr().out == "h.h5\n"
    result = results.load("h.h5")
    case = CASES["mlp"]
    here = compute(case.task(), case.states()[0])
    assert_allclose(result[variable], here[variable], rtol=1e-5)
    assert results.problems(result) == []
    before = Path("h.h5").stat().st_mtime_ns
    assert run(*command) == 0  # nothing is left to do
    assert Path("h.h5").stat().st_mtime_ns == before
    assert run(*command, "--seed", 1) == 3
    assert "seed" in capsys.readouterr().err
    if what != "trace":
        assert run("plot", "h.h5", "-o", "h.png") == 0


@pytest.mark.parametrize("what", ["eigenvalues", "trace"])
def test_a_run(mlp, what):
    states = runs_of()
    command = ("hessian", "runs/seed0", *MLP, "--what", what, "--learning-rate", 0.1, "-o", "h.h5")
    assert run(*command) == 0
    result = results.load("h.h5")
    assert result["step"].values.tolist() == [0, 10, 20]
    compute = {"eigenvalues": hessian_eigenvalues, "trace": hessian_trace}[what]
    variable = what.removesuffix("s")
    task = CASES["mlp"].task()
    for number, state in enumerate(states):
        here = compute(task, state)
        assert_allclose(result[variable].isel(step=number), here[variable], rtol=1e-4)
    assert (result["learning_rate"] == 0.1).all()
    assert run("plot", "h.h5", "-o", "h.png") == 0


def test_a_checkpoint_that_fails_is_one_failed_point(mlp, capsys):
    states = runs_of()
    states[1]["0.weight"][0, 0] = np.nan
    torch.save(states[1], "runs/seed0/step-00000010.pt")
    command = ("hessian", "runs/seed0", *MLP, "--num", 2, "-o", "h.h5")
    assert run(*command) == 4
    assert "1 failed" in capsys.readouterr().err
    result = results.load("h.h5")
    assert result["status"].values.tolist() == [1, 3, 1]
    assert np.isfinite(result["eigenvalue"]).all("index").values.tolist() == [True, False, True]


def test_a_dry_run_writes_nothing(mlp, capsys):
    assert run("hessian", "mlp-a.pt", *MLP, "-o", "h.h5", "--dry-run") == 0
    assert "about" in capsys.readouterr().out
    assert not Path("h.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs/seed0", "--what", "density"), "one checkpoint"),
        (("mlp-a.pt", "--layers", "nowhere"), "nowhere"),
        (("mlp-a.pt", "--num", 100000), "eigenvalues"),
        (("residual-a.pt",), "residual-a.pt"),
    ],
)
def test_wrong_input_is_refused(mlp, capsys, arguments, message):
    runs_of(1)
    assert run("hessian", *arguments, *MLP, "-q", "-o", "w.h5") == 3
    assert message in capsys.readouterr().err
    assert not Path("w.h5").exists()
