import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_array_equal

from landscape import results
from landscape.checkpoints import save_checkpoint
from landscape.cli import main
from landscape.experiments.masks import save_mask

HERE = Path(__file__).parent
TASK = """
import sys, time
sys.path.insert(0, {here!r})
import torch
from cases import CASES
torch.set_num_threads(1)

def task(name="residual"):
    return CASES[name].task()

def slow(seconds=0.3):
    from landscape.task import Task
    one = CASES["mlp"].task()
    def late(outputs, targets):
        time.sleep(seconds)
        return one.loss(outputs, targets)
    return Task("slow", one.model, late, one.data, one.metrics)

def several():
    from landscape.task import Task
    one = CASES["residual"].task()
    few = one.data.subset(torch.arange(20))
    splits = {{"train": one.data, "test": few}}
    return [Task(n, one.model, one.loss, data, one.metrics) for n, data in splits.items()]

def crash():
    raise LookupError("a fault in the task")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a task file and two checkpoints, for each of two models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text(TASK.format(here=str(HERE)))
    for name in ("residual", "mlp"):
        for seed, state in enumerate(CASES[name].states()):
            torch.save(state, tmp_path / f"{name}-{'ab'[seed]}.pt")
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def line(*more, task="tasks.py:task", name="residual", output="line.h5"):
    ends = (f"{name}-a.pt", f"{name}-b.pt")
    return run("interpolate", *ends, "--task", task, "--points", 5, "-o", output, "-q", *more)


def start(*arguments, **options):
    """The console script in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "landscape", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_from_two_checkpoints_to_a_figure(folder, capsys):
    assert line(task="tasks.py:several") == 0
    assert capsys.readouterr().out == "line.h5\n"
    result = results.load("line.h5")
    assert result["loss"].dims == ("split", "t")
    assert (result["status"] == 1).all()
    assert run("plot", "line.h5", "-o", "line.pdf") == 0
    assert Path("line.pdf").read_bytes().startswith(b"%PDF")
    capsys.readouterr()
    assert run("info", "line.h5") == 0
    said = capsys.readouterr().out
    for words in ("Linear interpolation at 5 points", "own_loss", "split 2 x t 5", "5 ok", "torch"):
        assert words in said
    assert run("validate", "line.h5") == 0
    assert capsys.readouterr().out == "line.h5: ok\n"


def test_the_command_line_and_python_give_the_same_numbers(folder):
    assert line() == 0
    case = CASES["residual"]
    from landscape import interpolate

    here = interpolate(case.task(), *case.states(), points=5)
    there = results.load("line.h5")
    for name in ("loss", "error", "loss_stderr", "own_loss"):
        assert_array_equal(here[name], there[name])


def test_a_table_of_barriers_goes_to_standard_error(folder, capsys):
    arguments = ["interpolate", "residual-a.pt", "residual-b.pt", "--task", "tasks.py:task"]
    assert run(*arguments, "-o", "l.h5") == 0
    out, err = capsys.readouterr()
    assert out == "l.h5\n"
    assert "barrier (chord)" in err
    assert "own" not in out


def test_other_ranges_and_arguments(folder):
    assert line("--range", -0.5, 1.5, "--batch-norm", "keep", "--dtype", "float64") == 0
    result = results.load("line.h5")
    assert_array_equal(result["t"], np.linspace(-0.5, 1.5, 5))
    assert result.attrs["batch_norm"] == "keep"
    assert result.attrs["dtype"] == "float64"
    args = json.dumps({"name": "mlp"})
    assert line("--task-args", args, "--keep-examples", name="mlp", output="m.h5") == 0
    assert results.load("m.h5")["loss_examples"].sizes == {"t": 5, "example": 46}


def test_a_stranger_saves_checkpoints_in_other_ways(folder):
    a, b = CASES["mlp"].states()
    torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in a.items()}}, "ddp.pt")
    save_checkpoint(b, "runs", step=10)
    code = run("interpolate", "ddp.pt", "runs/step-00000010.pt", "--task", "tasks.py:task",
               "--task-args", '{"name": "mlp"}', "--points", 3, "-o", "x.h5", "-q")  # fmt: skip
    assert code == 0


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(folder, capsys):
    assert line("--dry-run") == 0
    said = capsys.readouterr().out
    assert "5 points x (46 examples evaluated + 46 for batch norm) = 460 forward passes" in said
    assert "Strategy(" in said
    assert not Path("line.h5").exists()


def test_info_of_a_checkpoint_and_of_a_folder_of_them(folder, capsys):
    assert run("info", "mlp-a.pt") == 0
    said = capsys.readouterr().out
    assert "sha256" in said
    assert "zip" in said
    for step in (200, 30):
        save_checkpoint(CASES["mlp"].states(1)[0], "runs", step=step)
    assert run("info", "runs") == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [["30", "step-00000030.pt"], ["200", "step-00000200.pt"]]


def test_points_that_are_not_finite_end_with_four(folder, capsys):
    (state,) = CASES["mlp"].states(1)
    torch.save(state | {"3.bias": torch.full((3,), torch.inf)}, "mlp-b.pt")
    more = ("--task-args", '{"name": "mlp"}')
    assert line(*more, name="mlp") == 3
    assert "infinite values: 3.bias" in capsys.readouterr().err
    assert line(*more, "--allow-nonfinite", name="mlp") == 4
    assert "non-finite" in capsys.readouterr().err
    assert run("validate", "line.h5") == 4
    assert "nonfinite" in capsys.readouterr().out
    assert run("plot", "line.h5", "-o", "line.png") == 0


# --- input that is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["interpolate"], "required: a, b, --task"),
        (["interpolate", "a", "b", "--task", "x:y", "-o", "o", "--points", "0"], "at least 1"),
        (["interpolate", "a", "b", "--task", "x:y", "-o", "o", "--task-args", "{"], "not JSON"),
        (["interpolate", "a", "b", "--task", "x:y", "-o", "o", "--task-args", "3"], "JSON object"),
        (["interpolate", "a", "b", "--task", "x:y", "-o", "o", "--workers", "all"], "'auto'"),
        (["dance"], "invalid choice: 'dance'"),
    ],
)
def test_wrong_usage_ends_with_two(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("nowhere/line.h5", "the folder nowhere does not exist; create it first"),
        (".", "is a folder; name a file in it"),
        ("tasks.py/line.h5", "tasks.py does not exist|cannot be written"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_anything_is_read(
    folder, capsys, monkeypatch, output, words
):
    monkeypatch.setattr("landscape.task.load_tasks", lambda *_: pytest.fail("read the inputs"))
    assert line(output=output) == 3
    assert any(word in capsys.readouterr().err for word in words.split("|"))


def test_a_folder_that_is_read_only_is_refused(folder, capsys, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("landscape.cli.jobs.tempfile.TemporaryFile", refuse)
    assert line() == 3
    assert "cannot be written to: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: path.unlink(), "residual-b.pt"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("epoch,loss\n1,2.3\n"), "residual-b.pt"),
        (lambda path: path.write_bytes(path.read_bytes()[:-600]), "residual-b.pt"),
        (lambda path: torch.save(CASES["mlp"].states(1)[0], path), "missing (23): stem.0.weight"),
    ],
)
def test_checkpoints_that_cannot_be_read_are_refused(folder, capsys, break_it, words):
    break_it(folder / "residual-b.pt")
    assert line() == 3
    assert words in capsys.readouterr().err
    assert not Path("line.h5").exists()


def test_tasks_that_cannot_be_had_are_refused(folder, capsys):
    for task, words in (
        ("nothing.py:task", "no file"),
        ("tasks.py:tusk", "did you mean 'task'"),
        ("tasks", "named pkg.mod:function"),
    ):
        assert line(task=task) == 3
        assert words in capsys.readouterr().err
    assert line("--task-args", '{"nam": "mlp"}') == 3
    assert "unexpected keyword argument 'nam'" in capsys.readouterr().err


def test_a_fault_of_our_own_or_of_the_task_shows_its_traceback(folder, capsys):
    assert line(task="tasks.py:crash") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "a fault in the task" in err


def test_another_plan_on_an_existing_file_is_refused(folder, capsys):
    assert line() == 0
    before = Path("line.h5").read_bytes()
    assert line("--batch-norm", "keep") == 3
    err = capsys.readouterr().err
    assert 'batch_norm: null -> "keep"' in err
    assert "--overwrite" in err
    torch.save(CASES["residual"].states(3)[2], "residual-b.pt")
    assert line() == 3
    assert "b_sha256" in capsys.readouterr().err
    assert Path("line.h5").read_bytes() == before
    assert line("--overwrite") == 0


def test_results_that_cannot_be_read_are_refused(folder, capsys):
    Path("text.h5").write_text("not HDF5")
    for verb in (["plot", "text.h5", "-o", "a.pdf"], ["info", "text.h5"], ["validate", "none.h5"]):
        assert run(*verb) == 3
    assert "text.h5 (8 bytes) cannot be read as" in capsys.readouterr().err


# --- interrupted ----------------------------------------------------------------------------------


def wait_for_points(path, num, process):
    """Wait until so many points of a results file are done."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if path.exists() and (results.load(path)["status"] == 1).sum() >= num:
            return
        time.sleep(0.05)
    raise AssertionError("the process made no progress")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_an_interrupted_run_is_resumed_to_the_same_numbers(folder, number, code):
    arguments = ["interpolate", "mlp-a.pt", "mlp-b.pt", "--task", "tasks.py:slow", "--points", 9]
    arguments += ["--task-args", '{"seconds": 0.3}', "-q", "-o"]
    process = start(*arguments, "cut.h5", env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for_points(folder / "cut.h5", 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    if code > 0:
        assert "the same command goes on from there" in err
    assert 2 <= results.load("cut.h5")["status"].values.sum() < 9
    assert run(*arguments, "cut.h5") == 0
    assert run(*arguments, "whole.h5") == 0
    cut, whole = results.load("cut.h5"), results.load("whole.h5")
    for name in whole.data_vars:
        assert_array_equal(cut[name], whole[name])
    left = {path.name for path in folder.iterdir() if path.suffix in (".tmp", ".owner")}
    assert not left


def test_a_second_writer_is_refused(folder, capsys):
    arguments = ["interpolate", "mlp-a.pt", "mlp-b.pt", "--task", "tasks.py:slow", "-q"]
    process = start(*arguments, "-o", "both.h5")
    try:
        wait_for_points(folder / "both.h5", 1, process)
        assert run(*arguments, "-o", "both.h5") == 3
        assert f"being written by process {process.pid}" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()


def test_workers_give_the_same_numbers(folder):
    pytest.importorskip("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["interpolate", "residual-a.pt", "residual-b.pt", "--task", "tasks.py:several"]
    arguments += ["--points", "6", "-q", "-o"]
    for more in (["here.h5"], ["there.h5", "--workers", "2"]):
        process = start(*arguments, *more, env=environment)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    here, there = results.load("here.h5"), results.load("there.h5")
    for name in ("loss", "error", "own_loss", "status"):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-6)


def test_help_comes_at_once():
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "landscape", "--help"], capture_output=True, check=True
        )
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.4


def test_warnings_are_for_people(capsys, monkeypatch):
    def warned(options):
        warnings.warn("the tide is out", UserWarning, stacklevel=1)
        return True

    monkeypatch.setattr("landscape.cli.files.validate", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        assert run("validate", "x.h5") == 0
        assert warnings.showwarning is shown
    assert capsys.readouterr().err == "landscape: warning: the tide is out\n"


def test_info_of_a_pruned_run(folder, capsys):
    state = CASES["mlp"].states()[0]
    save_checkpoint(state, "pruned", step=3)
    mask = {"0.weight": torch.zeros_like(state["0.weight"], dtype=torch.bool)}
    mask["0.weight"][0] = True
    save_mask(mask, "pruned")
    assert run("info", "pruned") == 0
    said = capsys.readouterr().out
    assert "step-00000003.pt" in said
    assert "0.weight      0.125" in said
    assert "all           0.125" in said
