"""The verbs hessian and fisher, from files to files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose
from test_cli import folder as folder, run

from landscape import results
from landscape.analyses.fisher import fisher_trace
from landscape.analyses.fisher_training import fisher_over_training
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
    if what == "trace":
        assert result["trace"].attrs["long_name"] == "trace of the Hessian"
    assert run("plot", "h.h5", "-o", "h.png") == 0


@pytest.mark.parametrize(("layers", "blocks"), [("each", ["0", "3"]), ("blocks", ["0", "3"]),
                                                ("*.weight", ["*.weight"])])  # fmt: skip
def test_blocks_of_a_run(mlp, layers, blocks):
    states = runs_of()
    command = ("runs/seed0", *MLP, "-q", "--layers", layers, "-o")
    assert run("hessian", *command, "e.h5", "--num", 2) == 0
    assert run("hessian", *command, "t.h5", "--what", "trace") == 0
    values, traces = results.load("e.h5"), results.load("t.h5")
    task = CASES["mlp"].task()
    for number, state in enumerate(states):
        here = hessian_eigenvalues(task, state, 2, layers=layers)
        assert here["block"].values.tolist() == blocks
        assert_allclose(values["eigenvalue"].isel(step=number), here["eigenvalue"], rtol=1e-4)
        here = hessian_trace(task, state, layers=layers)
        assert_allclose(traces["trace"].isel(step=number), here["trace"], rtol=1e-4)
    assert run("plot", "e.h5", "-o", "e.png") == 0
    assert run("plot", "t.h5", "-o", "t.png") == 0


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


# --- fisher ---------------------------------------------------------------------------------------


def test_the_fisher_information_of_one_checkpoint(mlp, capsys):
    command = ("fisher", "mlp-a.pt", *MLP, "--labels", "exact", "-o", "f.h5")
    assert run(*command) == 0
    out, err = capsys.readouterr()
    assert out == "f.h5\n"
    assert "exact" in err
    result = results.load("f.h5")
    here = fisher_trace(CASES["mlp"].task(), CASES["mlp"].states()[0], labels="exact")
    assert_allclose(result["trace"], here["trace"], rtol=1e-6)
    assert result["tensor"].values.tolist() == here["tensor"].values.tolist()
    assert run("plot", "f.h5", "-o", "f.png") == 0
    assert run("fisher", "mlp-a.pt", *MLP, "--labels", "exact", "observed", "-o", "g.h5") == 3
    assert "one kind of labels" in capsys.readouterr().err


def test_the_fisher_information_of_a_run_in_epochs(mlp, capsys):
    states = runs_of()
    command = ("fisher", "runs/seed0", *MLP, "--labels", "sampled", "observed",
               "--steps-per-epoch", 10, "--deficit", "0:1", "-o", "f.h5")  # fmt: skip
    assert run(*command) == 0
    assert "peak" in capsys.readouterr().err
    result = results.load("f.h5")
    assert result["step"].values.tolist() == [0, 1, 2]
    assert result.attrs["units"] == "epochs"
    assert (result.attrs["deficit_start"], result.attrs["deficit_end"]) == (0, 1)
    here = fisher_over_training(
        CASES["mlp"].task(), states, steps=[0, 1, 2], labels=["sampled", "observed"]
    )
    for name in ("trace", "total_stderr", "loss"):
        assert_allclose(result[name].transpose(*here[name].dims), here[name], rtol=1e-5)
    highest = here["total"].idxmax("step")
    assert_allclose(result["peak_step"], highest)
    before = results.load("f.h5")
    assert run(*command) == 0
    assert results.load("f.h5").equals(before)
    assert run("plot", "f.h5", "-o", "f.png") == 0


def test_the_fisher_information_of_several_runs(mlp, capsys):
    states = runs_of(2, runs=2)
    command = ("fisher", "runs/seed0", "runs/seed1", *MLP, "-q", "-o", "f.h5")
    assert run(*command, "--deficit", "seed1=0:5") == 0
    result = results.load("f.h5")
    assert result["run"].values.tolist() == ["seed0", "seed1"]
    assert np.isnan(result["deficit_end"].values).tolist() == [True, False]
    for number, name in enumerate(("seed0", "seed1")):
        here = fisher_over_training(CASES["mlp"].task(), states[2 * number : 2 * number + 2])
        assert_allclose(result["trace"].sel(run=name), here["trace"], rtol=1e-5)
    assert run("plot", "f.h5", "-o", "f.png") == 0
    assert run(*command, "--deficit", "seed7=0:5", "--overwrite") == 3
    assert "seed7" in capsys.readouterr().err


def test_a_bad_checkpoint_is_one_failed_point_of_the_fisher_information(mlp, capsys):
    states = runs_of()
    states[1]["0.weight"][0, 0] = np.nan
    torch.save(states[1], "runs/seed0/step-00000010.pt")
    assert run("fisher", "runs/seed0", *MLP, "-o", "f.h5") == 4
    assert "1 failed" in capsys.readouterr().err
    result = results.load("f.h5")
    assert np.isfinite(result["total"]).values.tolist() == [True, False, True]


def test_what_is_wrong_with_the_task_is_no_failed_point(mlp, capsys):
    runs_of()
    Path("tasks.py").write_text(
        Path("tasks.py").read_text() + "\n\ndef odd():\n    task = mlp()\n    import dataclasses\n"
        "    return dataclasses.replace(task, loss=lambda o, y: o.abs().sum(1))\n"
    )
    command = ("fisher", "runs/seed0", "-q", "-o", "f.h5", "--task")
    assert run(*command, "tasks.py:odd") == 3
    assert "the loss belongs to no likelihood" in capsys.readouterr().err
    assert run(*command, "tasks.py:mlp", "--overwrite", "--labels", "sampled", "sampled") == 0
    assert results.load("f.h5")["labels"].values.tolist() == ["sampled"]
    for verb, option in (("fisher", "--tolerance"), ("hessian", "--learning-rate")):
        with pytest.raises(SystemExit):
            run(verb, "runs/seed0", *MLP, "-o", "g.h5", option, "0")
        assert "expected a number above 0, got '0'" in capsys.readouterr().err


def test_the_cost_of_the_fisher_information(mlp, capsys):
    runs_of()
    assert run("fisher", "runs/seed0", *MLP, "-o", "f.h5", "--dry-run") == 0
    assert "3 checkpoints, about" in capsys.readouterr().out
    assert not Path("f.h5").exists()
