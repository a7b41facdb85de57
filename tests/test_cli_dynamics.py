"""The verb dynamics, from files to files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose, assert_array_equal
from test_cli import folder as folder, run

from landscape import results
from landscape.analyses.dynamics import dynamics
from landscape.checkpoints import save_checkpoint
from landscape.states import State

TASK = ("--task", "tasks.py:task", "-q")

LAYERS = ["stem.0", "stem.1", "branch.0", "branch.1", "head.0", "head.1", "head.2"]


@pytest.fixture
def states(folder: Path) -> dict[str, list[State]]:
    """The checkpoints of two runs at three steps, in folders of their own."""
    found = CASES["residual"].states(6)
    runs = {"seed0": found[:3], "seed1": found[3:]}
    for name, each in runs.items():
        for step, state in zip((0, 10, 100), each, strict=True):
            save_checkpoint(state, f"runs/{name}", step=step)
    return runs


def test_one_run_without_a_task(states, capsys):
    assert run("dynamics", "runs/seed0", "-o", "d.h5") == 0
    said = capsys.readouterr()
    assert said.out == "d.h5\n"
    rows = [line.split() for line in said.err.rstrip().split("\n")]
    assert [row[0] for row in rows[-8:]] == [*LAYERS, "total"]
    result = results.load("d.h5")
    here = dynamics(None, states["seed0"], steps=[0, 10, 100])
    for name in here.data_vars:
        assert_array_equal(result[name], here[name], err_msg=str(name))
    assert result.attrs["analysis"] == "dynamics"
    assert results.problems(result) == []
    assert run("plot", "d.h5", "-o", "d.pdf") == 0
    assert Path("d.pdf").read_bytes().startswith(b"%PDF")


def test_a_run_with_its_loss_and_gradients(states, capsys):
    command = ("dynamics", "runs/seed0", "--task", "tasks.py:several", "--gradients", "-o", "d.h5")
    assert run(*command, "--dtype", "float64") == 0
    result = results.load("d.h5")
    task = CASES["residual"].task()
    here = dynamics(
        task, states["seed0"], steps=[0, 10, 100], gradients=True, dtype=torch.float64
    )  # of the training data
    for name in ("loss", "error", "landmark_minimum", "landmark_threshold"):
        assert_allclose(result[name].sel(split="train"), here[name], rtol=1e-9, err_msg=name)
    for name in ("gradient_norm", "total_noise_scale"):
        assert_allclose(result[name], here[name], rtol=1e-9, err_msg=name)
    said = capsys.readouterr().err
    assert "train error: at most" in said
    assert "test error: at most" in said
    assert run("plot", "d.h5", "-o", "d.png") == 0
    # another threshold does not compute anything again
    assert run(*command, "--dtype", "float64", "--threshold", 2, "-q") == 0
    again = results.load("d.h5")
    assert_array_equal(again["landmark_reached"], [0, 0])
    assert_array_equal(again["loss"], result["loss"])


def test_several_runs_side_by_side(states):
    assert run("dynamics", "runs/seed0", "runs/seed1", *TASK, "-o", "both.h5") == 0
    both = results.load("both.h5")
    assert both["run"].values.tolist() == ["seed0", "seed1"]
    for name in ("seed0", "seed1"):
        assert run("dynamics", f"runs/{name}", *TASK, "-o", f"{name}.h5") == 0
        one = results.load(f"{name}.h5")
        for variable in ("distance_final", "total_signs_initial", "loss", "landmark_plateau"):
            assert_allclose(both[variable].sel(run=name), one[variable], rtol=1e-6)
    assert both["status"].dims == ("run", "step")
    assert run("plot", "both.h5", "-o", "both.png") == 0


def test_other_references(states):
    ends = ("--initial", "residual-a.pt", "--final", "runs/seed1/step-00000010.pt")
    assert run("dynamics", "runs/seed0", *ends, "-q", "-o", "d.h5") == 0
    here = dynamics(
        None, states["seed0"], initial=torch.load("residual-a.pt"), final=states["seed1"][1]
    )
    result = results.load("d.h5")
    for name in ("distance_initial", "cosine_final", "total_signs_final"):
        assert_array_equal(result[name], here[name])


def test_it_resumes_step_by_step(states, monkeypatch, capsys):
    from landscape.analyses import dynamics as module

    rows = module.dynamics_rows
    seen: list[list[int]] = []

    def interrupted(task, files, *, rows: list[int], **options):
        if task is not None:
            if seen:
                raise KeyboardInterrupt
            seen.append(rows)
        return original(task, files, rows=rows, **options)

    original = rows
    command = ("dynamics", "runs/seed0", "--task", "tasks.py:task", "-q", "-o", "d.h5")
    with monkeypatch.context() as patch:
        patch.setattr(module, "dynamics_rows", interrupted)
        assert run(*command) == 130
    assert results.load("d.h5")["status"].values.tolist() == [1, 0, 0]
    assert run(*command) == 0
    resumed = results.load("d.h5")
    here = dynamics(CASES["residual"].task(), states["seed0"], steps=[0, 10, 100])
    assert_allclose(resumed["loss"], here["loss"], rtol=1e-6)
    assert_array_equal(resumed["distance_previous"], here["distance_previous"])
    capsys.readouterr()
    assert run(*command, "--gradients") == 3
    assert "gradients: false -> true" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_used_is_a_single_failure(states, capsys):
    bad = dict(states["seed0"][1]) | {"head.2.bias": torch.full((3,), torch.nan)}
    torch.save(bad, "runs/seed0/step-00000010.pt")
    torch.save(states["seed0"][1], "runs/seed0/step-00000200.pt")
    command = ("dynamics", "runs/seed0", *TASK, "-o", "d.h5")
    assert run(*command) == 4
    assert "head.2.bias" in capsys.readouterr().err
    result = results.load("d.h5")
    assert_array_equal(result["status"], [1, 3, 3, 1])  # 100 has no checkpoint before it
    assert np.isfinite(result["loss"]).sum() == 2
    assert run(*command, "--allow-nonfinite", "-o", "n.h5") == 4
    assert_array_equal(results.load("n.h5")["status"], [1, 2, 1, 1])
    torch.save(states["seed0"][1], "runs/seed0/step-00000010.pt")
    assert run(*command) == 3  # another file is another plan
    assert run(*command, "--overwrite") == 0


def test_workers_give_the_same(states):
    command = ("dynamics", "runs/seed0", *TASK)
    assert run(*command, "-o", "here.h5") == 0
    assert run(*command, "--workers", 1, "-o", "there.h5") == 0
    here, there = results.load("here.h5"), results.load("there.h5")
    assert_array_equal(there["distance_initial"], here["distance_initial"])
    assert_allclose(there["loss"], here["loss"], rtol=1e-5)


def test_a_dry_run_tells_the_cost_and_writes_nothing(states, capsys):
    inputs = ("runs/seed0", "runs/seed1")
    assert run("dynamics", *inputs, *TASK, "--gradients", "-o", "d.h5", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("3 steps of 2 runs\nabout ")
    assert run("dynamics", "runs/seed0", "-o", "d.h5", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("3 steps of one run\nabout ")
    assert not Path("d.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs/seed0", "--gradients"), "--gradients needs --task"),
        (("runs/seed0", "runs/other"), "only one of them has step 10, 100"),
        (("runs/seed0", "runs/seed0"), "named twice"),
        (("runs/nowhere",), "nowhere"),
        (("runs/seed0", "residual-a.pt"), "seed0"),
        (("residual-a.pt", "mlp-a.pt"), "stem.0.weight"),
        (("runs/seed0", "--final", "mlp-a.pt"), "the final state"),
        (("runs/seed0", "--task", "tasks.py:task", "--measure", "accuracy"), "loss, error, got"),
        (("runs/seed0", "--measure", "error"), "those of a --task"),
    ],
)
def test_wrong_input_is_refused_before_a_file_is_written(states, capsys, arguments, message):
    save_checkpoint(states["seed0"][0], "runs/other", step=0)
    assert run("dynamics", *arguments, "-o", "w.h5") == 3
    assert message in capsys.readouterr().err
    assert not Path("w.h5").exists()
