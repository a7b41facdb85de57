"""The verb layers, from files to files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose, assert_array_equal
from test_cli import folder as folder, run

from landscape import results
from landscape.analyses.layer_pairs import compared
from landscape.analyses.layers import compare_layers, layer_convergence, layer_matrix
from landscape.checkpoints import save_checkpoint

TASK = ("--task", "tasks.py:task", "-q")


def runs_of(num=3):
    """Folders of checkpoints: two runs of the residual network with some steps each."""
    states = CASES["residual"].states(2 * num)
    for run_number in range(2):
        for step in range(num):
            state = states[run_number * num + step]
            save_checkpoint(state, f"runs/seed{run_number}", step=10 * step)
    return states


def test_two_checkpoints(folder, capsys):
    ends = ("residual-a.pt", "residual-b.pt")
    options = ("--measure", "cka", "svcca", "--blocks", 4, "-o", "l.h5")
    assert run("layers", *ends, *TASK, *options) == 0
    assert capsys.readouterr().out == "l.h5\n"
    result = results.load("l.h5")
    case = CASES["residual"]
    here = compare_layers(case.task(), *case.states(), measure=["cka", "svcca"], blocks=4)
    for name in ("cka", "svcca", "cka_stderr", "rank", "other_condition"):
        assert_allclose(result[name], here[name], rtol=1e-12)
    assert results.problems(result) == []
    assert run("plot", "l.h5", "-o", "l.pdf") == 0
    assert Path("l.pdf").read_bytes().startswith(b"%PDF")
    before = Path("l.h5").read_bytes()
    assert run("layers", *ends, *TASK, *options) == 0
    assert results.load("l.h5").equals(result)
    assert before
    assert run("layers", *ends, *TASK, "--measure", "cka", "--blocks", 4, "-o", "l.h5") == 3
    assert "measure" in capsys.readouterr().err


def test_a_run_against_its_end_resumes_step_by_step(folder, capsys, monkeypatch):
    states = runs_of()[:3]
    command = ("layers", "runs/seed0", "--against", "final", "--task", "tasks.py:task",
               "--blocks", 0, "-o", "c.h5")  # fmt: skip
    seen = []

    def interrupted(task, some, *rest, **options):
        if seen:
            raise KeyboardInterrupt
        seen.extend(some)
        return layer_convergence(task, some, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr("landscape.analyses.layers.layer_convergence", interrupted)
        assert run(*command) == 130
    assert results.load("c.h5")["status"].values.tolist() == [1, 0, 0]
    capsys.readouterr()
    assert run(*command) == 0
    assert "from step" in capsys.readouterr().err
    result = results.load("c.h5")
    here = layer_convergence(CASES["residual"].task(), states, steps=[0, 10, 20], blocks=0)
    assert result["step"].values.tolist() == [0, 10, 20]
    assert_allclose(result["cka"], here["cka"], rtol=1e-12)
    assert result.attrs["analysis"] == "layer convergence"
    assert run("plot", "c.h5", "-o", "c.png") == 0


def test_folders_stand_for_their_last_checkpoint(folder):
    states = runs_of()
    assert run("layers", "runs/seed0", "runs/seed1", *TASK, "--blocks", 0, "-o", "p.h5") == 0
    result = results.load("p.h5")
    here = compare_layers(CASES["residual"].task(), states[2], states[5], blocks=0)
    assert_allclose(result["cka"], here["cka"], rtol=1e-12)
    ends = [result.attrs[name] for name in ("first", "second")]
    assert ends == ["seed0/step-00000020.pt", "seed1/step-00000020.pt"]
    against = ("--against", "runs/seed1", "--blocks", 0, "-o", "f.h5")
    assert run("layers", "runs/seed0", *TASK, *against) == 0
    assert_allclose(results.load("f.h5")["cka"][2], np.diag(here["cka"]), rtol=1e-6)


def test_passes_of_a_dry_run_are_those_that_are_made(folder, capsys, monkeypatch):
    runs_of(5)
    made = []
    monkeypatch.setattr("landscape.analyses.layers.HELD", 2)
    command = ("layers", "runs/seed0", "--between", "steps", *TASK, "--blocks", 0, "-o", "d.h5")
    assert run(*command, "--dry-run") == 0
    said = capsys.readouterr().out

    def counted(networks, *rest):
        made.extend(networks)
        return compared(networks, *rest)

    monkeypatch.setattr("landscape.analyses.layers.compared", counted)
    assert run(*command) == 0
    assert f", {len(made)} passes of a network" in said


def test_against_a_checkpoint(folder):
    states = runs_of()
    assert run("layers", "runs/seed0", "--against", "residual-a.pt", *TASK, "-o", "c.h5",
               "--layers", "Conv2d", "--blocks", 0) == 0  # fmt: skip
    here = layer_convergence(
        CASES["residual"].task(), states[:3], torch.load("residual-a.pt"), layers="Conv2d", blocks=0
    )
    assert_allclose(results.load("c.h5")["cka"], here["cka"], rtol=1e-12)


@pytest.mark.parametrize("kind", ["steps", "runs"])
def test_matrices(folder, kind, capsys):
    states = runs_of()
    inputs = ("runs/seed0",) if kind == "steps" else ("runs/seed0", "runs/seed1")
    assert run("layers", *inputs, "--between", kind, "--task", "tasks.py:task",
               "--blocks", 0, "-o", "m.h5") == 0  # fmt: skip
    result = results.load("m.h5")
    dim = kind.removesuffix("s")
    chosen = states[:3] if kind == "steps" else [states[2], states[5]]
    labels = [0, 10, 20] if kind == "steps" else ["seed0", "seed1"]
    assert result[dim].values.tolist() == labels
    here = layer_matrix(CASES["residual"].task(), chosen, labels, dim=dim, blocks=0)
    assert_allclose(result["cka"].transpose(*here["cka"].dims), here["cka"], rtol=1e-12)
    assert f"over pairs of {kind}" in capsys.readouterr().err
    assert run("plot", "m.h5", "-o", "m.png") == 0


def test_which_data(folder):
    ends = ("residual-a.pt", "residual-b.pt")
    command = ("layers", *ends, "--task", "tasks.py:several", "-q", "--blocks", 0)
    assert run(*command, "-o", "first.h5") == 0
    assert run(*command, "--split", "test", "-o", "test.h5") == 0
    first, test = (results.load(f"{name}.h5")["cka"].values for name in ("first", "test"))
    assert abs(first - test).max() > 1e-4
    assert run(*command, "--examples", 20, "-o", "few.h5") == 0
    assert results.load("few.h5").attrs["num_rows"] == 20


def test_a_dry_run_tells_the_cost_and_writes_nothing(folder, capsys):
    runs_of()
    for inputs in (("residual-a.pt",), ("runs/seed0", "--against", "final"),
                   ("runs/seed0", "--between", "steps")):  # fmt: skip
        assert run("layers", *inputs, *TASK, "-o", "d.h5", "--dry-run") == 0
        assert "MiB for the joint moments" in capsys.readouterr().out
    assert not Path("d.h5").exists()


def test_workers_give_the_same(folder):
    runs_of()
    command = ("layers", "runs/seed0", "--against", "final", *TASK, "--blocks", 0)
    assert run(*command, "-o", "here.h5") == 0
    assert run(*command, "--workers", 1, "-o", "there.h5") == 0
    assert_array_equal(results.load("there.h5")["cka"], results.load("here.h5")["cka"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("residual-a.pt", "residual-b.pt", "--layers", "conv9"), "no layer matches 'conv9'"),
        (("residual-a.pt", "residual-b.pt", "mlp-a.pt"), "add --against final"),
        (("residual-a.pt", "mlp-a.pt"), "mlp-a.pt"),
        (("residual-a.pt", "--split", "validation"), "--split must be one of"),
        (("runs/seed0", "--against", "final", "--other-layers", "x"), "two checkpoints alone"),
        (("runs/nowhere", "--against", "final"), "nowhere"),
        (("residual-a.pt", "--maps", "position"), "position"),
        (("residual-a.pt", "--blocks", 9999), "at most the number of examples"),
        (("residual-a.pt", "--measure", "svcca", "--threshold", 2), "threshold must be in (0, 1]"),
        (("residual-a.pt", "--layers", "stem", "--maps", "pool:99x99"), "largest possible is pool"),
        (("residual-a.pt", "--between", "steps"), "at least two checkpoints"),
        (("runs/seed0",), "add --against final"),
        (("runs/seed0", "runs/seed1", "--against", "final"), "seed0 is a folder of checkpoints"),
    ],
)
def test_wrong_input_is_refused_before_a_file_is_written(folder, capsys, arguments, message):
    runs_of(1)
    assert run("layers", *arguments, *TASK, "-o", "w.h5") == 3
    assert message in capsys.readouterr().err
    assert not Path("w.h5").exists()
    shutil.rmtree("runs")
