"""The verbs connect, surface, trajectory, instability and align, from files to files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose, assert_array_equal
from test_cli import folder as folder, run, start, wait_for_points

import landscape
from landscape import results
from landscape.checkpoints import load_state, save_checkpoint
from landscape.cli import main

ENDS = ("residual-a.pt", "residual-b.pt")
TASK = ("--task", "tasks.py:task", "-q")


def connect(*more, output="curve.h5"):
    options = ("--epochs", 2, "--batch-size", 16, "--points", 5, "-o", output)
    return run("connect", *ENDS, *TASK, *options, *more)


def test_a_curve_is_trained_evaluated_and_drawn(folder, capsys):
    assert connect("--weight-decay", 1e-3, "--save-bends", "bends", "--diagnostics") == 0
    out, err = capsys.readouterr()
    assert out == "curve.h5\n"
    assert "bends/step-00000001.pt" in err
    result = results.load("curve.h5")
    case = CASES["residual"]
    here = landscape.connect(
        case.task(), *case.states(), epochs=2, batch_size=16, points=5, weight_decay=1e-3,
        diagnostics=True,
    )  # fmt: skip
    for name in ("loss", "regularised_loss", "bends", "arc_length", "disagreement_a"):
        assert_array_equal(result[name], here[name])
    assert result.attrs["length_ratio"] == here.attrs["length_ratio"]
    assert results.problems(result) == []
    assert not [path for path in Path().iterdir() if "training" in path.name]
    bend = load_state("bends/step-00000001.pt")
    assert_array_equal(bend["stem.0.weight"].ravel(), result["bends"][0, :72])
    before = Path("curve.h5").read_bytes()
    assert connect("--weight-decay", 1e-3, "--diagnostics") == 0  # nothing is left to do
    assert results.load("curve.h5").equals(result)
    assert len(before)
    assert run("plot", "curve.h5", "-o", "curve.png") == 0
    assert connect("--weight-decay", 1e-2) == 3
    assert "recipe" in capsys.readouterr().err


@pytest.mark.parametrize("curve", ["polychain", "autoneb"])
def test_other_paths(folder, capsys, curve):
    options = ("--curve", curve, "--bends", 2, "--cycles", 2)
    assert run("connect", *ENDS, "--task", "tasks.py:task", "--epochs", 1, "--points", 4, *options,
               "-o", "path.h5") == 0  # fmt: skip
    assert "mean over length" in capsys.readouterr().err
    result = results.load("path.h5")
    assert result.sizes["bend"] >= 2
    assert {0.0, 1.0} <= set(result["t"].values)


def test_a_stopped_training_goes_on(folder, monkeypatch):
    monkeypatch.setattr("landscape.cli.training.EVERY", 0.0)

    def interrupted(self, snapshot):
        self.write(snapshot)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("landscape.cli.training._Keeper.__call__", interrupted)
        assert connect() == 130
    assert Path(".curve.h5.training").exists()
    assert connect() == 0
    assert connect(output="whole.h5") == 0
    cut, whole = results.load("curve.h5"), results.load("whole.h5")
    assert_array_equal(cut["bends"], whole["bends"])
    assert_array_equal(cut["training_loss"], whole["training_loss"])
    assert_array_equal(cut["loss"], whole["loss"])


def test_a_curve_that_diverges_ends_with_four(folder, capsys):
    assert connect("--lr", 1e30) == 4
    assert "diverged in epoch" in capsys.readouterr().err
    assert np.isfinite(results.load("curve.h5")["bends"]).all()


def test_any_optimiser_and_data_of_their_own_can_train(folder, capsys):
    with Path("tasks.py").open("a") as file:
        file.write("def batches(): return CASES['residual'].task().data.subset(range(8))\n")
        file.write("def endless(): return iter([])\n")
    assert connect("--optimiser", "Adam", "--optimiser-args", '{"betas": [0.8, 0.9]}') == 0
    assert results.load("curve.h5").attrs["optimiser"] == "Adam"
    assert connect("--training-data", "tasks.py:batches", output="few.h5") == 0
    assert connect("--training-data", "tasks.py:endless", output="x.h5") == 3
    assert "must know its number of batches" in capsys.readouterr().err
    assert connect("--optimiser", "Adm", output="x.h5") == 3
    assert "--optimiser must be a class of torch.optim" in capsys.readouterr().err
    assert connect("--optimiser-args", '{"betas": [0.8, 0.9]}', output="x.h5") == 3
    assert "--optimiser-args needs an --optimiser" in capsys.readouterr().err


def test_a_surface_about_one_through_three_and_along_a_curve(folder, capsys):
    save_checkpoint(CASES["residual"].states(3)[2], "c", step=0)
    assert run("surface", *ENDS, "c/step-00000000.pt", *TASK, "--points", "4x3",
               "--mark", "again=residual-a.pt", "-o", "plane.h5") == 0  # fmt: skip
    plane = results.load("plane.h5")
    assert plane["loss"].sizes == {"x": 4, "y": 3}
    case = CASES["residual"]
    states = case.states(3)
    here = landscape.surface(case.task(), states, points=(4, 3))
    assert_array_equal(plane["loss"], here["loss"])
    assert plane["mark"].values.tolist() == ["a", "b", "c", "again"]
    assert_allclose(plane["mark_x"][3], 0, atol=1e-6)
    assert results.problems(plane) == []
    assert run("surface", *ENDS, "c/step-00000000.pt", *TASK, "--points", "4x3",
               "--mark", "again=residual-a.pt", "-o", "plane.h5") == 0  # fmt: skip

    assert run("surface", ENDS[0], *TASK, "--points", "3", "--seed", 4, "-o", "random.h5") == 0
    random = results.load("random.h5")
    here = landscape.surface(case.task(), states[0], points=3, seed=4)
    assert_array_equal(random["loss"], here["loss"])
    assert run("surface", ENDS[0], *TASK, "--points", "5", "--dimensions", 1, "-o", "one.h5") == 0
    assert results.load("one.h5")["loss"].sizes == {"x": 5}
    assert run("surface", ENDS[0], *TASK, "--direction", ENDS[1], "--points", "3x3",
               "--direction", "c/step-00000000.pt", "-o", "given.h5") == 0  # fmt: skip
    assert results.load("given.h5").attrs["kind"] == "family"

    assert connect() == 0
    assert run("surface", *ENDS, "--curve", "curve.h5", *TASK, "--points", "3", "-o", "c.h5") == 0
    bent = results.load("c.h5")
    assert bent["mark"].values.tolist() == ["a", "b", "bend"]
    assert_allclose(bent["curve_distance"], 0, atol=1e-4)
    for name in ("plane", "random", "one", "c"):
        assert run("plot", f"{name}.h5", "-o", f"{name}.pdf") == 0
    assert run("plot", "plane.h5", "-o", "plane.vts") == 0
    assert "StructuredGrid" in Path("plane.vts").read_text()


def test_a_preview_is_refined(folder):
    about = ("surface", ENDS[0], *TASK, "--points", "5")
    assert run(*about, "--examples", 20, "-o", "preview.h5") == 0
    preview = results.load("preview.h5")
    assert preview["num_examples"] == 20
    assert run("surface", ENDS[0], *TASK, "--refine", "preview.h5", "-o", "fine.h5") == 0
    fine = results.load("fine.h5")
    assert fine["loss"].sizes == {"x": 9, "y": 9}
    assert fine["num_examples"] == 46
    whole = landscape.surface(CASES["residual"].task(), CASES["residual"].states()[0], points=9)
    evaluated = fine["evaluated"].values == 1
    assert_array_equal(fine["loss"].values[evaluated], whole["loss"].values[evaluated])


def test_an_interrupted_surface_is_resumed_to_the_same_numbers(folder):
    arguments = ["surface", "mlp-a.pt", "--task", "tasks.py:slow", "--points", "3x3"]
    arguments += ["--task-args", '{"seconds": 0.3}', "-q", "-o"]
    process = start(*arguments, "cut.h5")
    wait_for_points(folder / "cut.h5", 1, process)
    process.kill()
    process.communicate()
    assert run(*arguments, "cut.h5") == 0
    assert run(*arguments, "whole.h5") == 0
    cut, whole = results.load("cut.h5"), results.load("whole.h5")
    assert set(cut) == set(whole)
    for name in whole.data_vars:
        assert_array_equal(cut[name], whole[name])


def test_a_trajectory_with_and_without_a_surface(folder, capsys):
    states = CASES["residual"].states(4)
    for step, state in zip((0, 5, 20, 90), states, strict=True):
        save_checkpoint(state, "run", step=step)
    assert run("trajectory", "run", *TASK, "--points", "3", "-o", "path.h5") == 0
    result = results.load("path.h5")
    assert result["step"].values.tolist() == [0, 5, 20, 90]
    assert result["loss"].sizes == {"x": 3, "y": 3}
    here = landscape.trajectory(CASES["residual"].task(), landscape.checkpoints("run"), points=3)
    assert_array_equal(result["path_x"], here["path_x"])
    assert_array_equal(result["loss"], here["loss"])
    assert results.problems(result) == []
    assert run("trajectory", "run", *TASK, "--points", "3", "-o", "path.h5") == 0
    files = sorted(map(str, Path("run").iterdir()))
    assert run("trajectory", *files, *TASK, "--path-only", "--tsne", "-o", "only.h5") == 0
    assert "loss" not in results.load("only.h5")
    only = ("trajectory", *files, *TASK, "--path-only", "--tsne")
    assert run(*only, "-o", "only.h5") == 0
    before = Path("path.h5").read_bytes()
    for other in ((*only, "-o", "path.h5"), (*only, "--origin", "mean", "-o", "only.h5")):
        assert run(*other) == 3
        assert "was made by another plan and is left as it is" in capsys.readouterr().err
    assert Path("path.h5").read_bytes() == before
    assert run(*only, "--dry-run", "-o", "dry.h5") == 0
    assert "nothing is evaluated" in capsys.readouterr().out
    assert not Path("dry.h5").exists()
    assert run(*only, "--origin", "mean", "--overwrite", "-o", "only.h5") == 0
    for name in ("path", "only"):
        assert run("plot", f"{name}.h5", "-o", f"{name}.pdf") == 0


@pytest.fixture
def runs(folder):
    """Children from two steps, two runs each; those of step 90 are the same."""
    a, b, c = CASES["residual"].states(3)
    for step, states in {0: (a, b), 90: (c, c)}.items():
        for name, state in zip("ab", states, strict=True):
            save_checkpoint(state, f"runs/k={step}/order-{name}", step=100)
    return folder


def test_instability_from_folders(runs, capsys):
    command = ("instability", "runs", "--task", "tasks.py:task", "--points", 3, "-o", "i.h5")
    assert run(*command, "--measure", "loss") == 0
    out, err = capsys.readouterr()
    assert out == "i.h5\n"
    assert "branch step" in err
    assert "stable from" in err
    result = results.load("i.h5")
    assert result["branch_step"].values.tolist() == [0, 90]
    assert_allclose(result["loss_instability"].sel(branch_step=90), 0, atol=1e-6)
    assert result["stable_from"] == 90
    assert results.problems(result) == []
    assert run(*command, "--measure", "loss", "--threshold", 100) == 0  # no new evaluation
    assert results.load("i.h5")["stable_from"] == 0
    assert run("plot", "i.h5", "-o", "i.pdf") == 0


def test_barriers_between_all_pairs_of_runs_or_steps(runs, capsys):
    folders = [str(path) for path in sorted(Path("runs").glob("*/*"))]
    options = ("--all-pairs", "--task", "tasks.py:task", "--points", 3, "--measure", "loss")
    assert run("instability", *folders, *options, "-o", "m.h5") == 0
    assert "one basin" in capsys.readouterr().err
    matrix = results.load("m.h5")
    assert matrix["loss"].sizes == {"run": 4, "other_run": 4}
    assert matrix["run"].values.tolist() == [name.removeprefix("runs/") for name in folders]
    assert matrix["loss"][0, 1] == matrix["loss"][1, 0] > 0.1
    assert matrix["loss"][2, 3] == 0
    assert matrix["basin"][0] != matrix["basin"][1]
    assert run("instability", *folders, *options, "-o", "m.h5") == 0
    for step, state in zip((0, 5), CASES["residual"].states(), strict=True):
        save_checkpoint(state, "run", step=step)
    assert run("instability", "run", *options, "-o", "steps.h5") == 0
    assert results.load("steps.h5")["run"].values.tolist() == ["0", "5"]
    assert run("plot", "m.h5", "-o", "m.pdf") == 0
    mixed = folders[0], str(Path(folders[1]).absolute())
    assert run("instability", *mixed, *options, "-o", "mixed.h5") == 0
    assert results.load("mixed.h5")["run"].values.tolist() == ["order-a", "order-b"]
    assert run("instability", *folders, "--task", "tasks.py:task", "-o", "x.h5") == 3
    assert "add --all-pairs" in capsys.readouterr().err


def test_alignment_undoes_a_permutation(folder, capsys):
    state = dict(CASES["mlp"].states()[0])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    for name in ("0.weight", "0.bias"):
        state[name] = state[name][order]
    state["3.weight"] = state["3.weight"][:, order]
    torch.save(state, "permuted.pt")
    arguments = json.dumps({"name": "mlp"})
    command = ("align", "mlp-a.pt", "permuted.pt", "--task", "tasks.py:task", "--task-args",
               arguments, "--points", 5, "-o", "aligned.h5")  # fmt: skip
    assert run(*command, "--save", "aligned") == 0
    out, err = capsys.readouterr()
    assert out == "aligned.h5\n"
    assert "aligned loss" in err
    result = results.load("aligned.h5")
    assert result["alignment"].values.tolist() == ["raw", "aligned"]
    raw, aligned = result["loss"].values
    assert abs(raw[2] - raw[0]) > 1e-3
    assert_allclose(aligned, raw[0], atol=1e-6)
    assert_allclose(result.attrs["aligned_distance"], 0, atol=1e-6)
    saved, wanted = load_state("aligned/step-00000000.pt"), CASES["mlp"].states()[0]
    assert all(torch.equal(saved[name], wanted[name]) for name in wanted)
    assert run(*command) == 0
    assert run("plot", "aligned.h5", "-o", "aligned.pdf") == 0
    groups = {"hidden": [["0.weight", 0], ["0.bias", 0], ["3.weight", 1]]}
    Path("groups.json").write_text(json.dumps(groups))
    by_hand = (*command[:-1], "by_hand.h5", "--symmetries", "groups.json")
    assert run(*by_hand) == 0
    assert_array_equal(results.load("by_hand.h5")["loss"], result["loss"])


def test_paths_through_several_and_layers(folder):
    assert run("interpolate", *ENDS, ENDS[0], *TASK, "--points", 3, "-o", "path.h5") == 0
    assert results.load("path.h5")["t"].values.tolist() == [0, 0.5, 1]
    assert run("interpolate", *ENDS, *TASK, "--points", 3, "--layers", "blocks", "-o", "l.h5") == 0
    assert results.load("l.h5")["layer"].values.tolist() == ["stem", "branch", "head"]
    assert run("plot", "l.h5", "-o", "l.pdf") == 0
    repaired = ("interpolate", *ENDS, *TASK, "--points", 3, "--batch-norm", "repair")
    assert run(*repaired, "-o", "r.h5") == 0
    assert results.load("r.h5").attrs["batch_norm"] == "repair"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("surface", *ENDS), "two need --curve"),
        (("surface", ENDS[0], "--points", "4"), "points must be odd"),
        (("surface", *ENDS, ENDS[0]), "lie on a line"),
        (("surface", ENDS[0], "--mark", "x"), "NAME=CHECKPOINT"),
        (("surface", ENDS[0], *["--mark", f"x={ENDS[1]}"] * 2), "names of their own"),
        (("surface", ENDS[0], "--z-range", -1, 1), "--z-range is for an axis"),
        (("surface", *ENDS, "--curve", "nothing.h5"), "nothing.h5: no such results file"),
        (("surface", *ENDS, "mlp-a.pt"), "missing"),
        (("connect", ENDS[0], "mlp-a.pt"), "missing"),
        (("connect", *ENDS, "--curve", "autoneb", "--start", ENDS[0]), "leave out --start"),
        (("connect", *ENDS, "--bends", 2, "--start", ENDS[0]), "for each of 2 bends, got 1"),
        (("connect", *ENDS, "--optimiser", "SGD", "--optimiser-args", '{"x": 1}'), "argument 'x'"),
        (("interpolate", *ENDS, "--layers", "steam"), "no tensor of the model is named 'steam'"),
        (("interpolate", *ENDS, ENDS[0], "--layers", "stem"), "between two checkpoints, got 3"),
        (("trajectory", ENDS[0]), "at least two checkpoints, got 1"),
        (("trajectory", *ENDS, "--pattern", "*"), "one folder"),
        (("instability", "nowhere"), "no such folder"),
        (("instability", "--all-pairs", ENDS[0], ENDS[0]), "named twice"),
        (("instability", "--all-pairs", *ENDS, "--measure", "los"), "measure must be one of loss"),
        (("align", ENDS[0], "mlp-a.pt"), "missing"),
        (("align", *ENDS, "--symmetries", "tasks.py"), "tasks.py: not JSON"),
    ],
)
def test_geometry_that_makes_no_sense_is_refused(folder, capsys, arguments, words):
    assert run(*arguments, *TASK, "-o", "x.h5") == 3
    assert words in capsys.readouterr().err
    assert not Path("x.h5").exists()


def test_dry_runs_write_nothing(folder, capsys):
    save_checkpoint(CASES["residual"].states(1)[0], "run", step=0)
    save_checkpoint(CASES["residual"].states()[1], "run", step=7)
    for verb in (
        ("connect", *ENDS), ("surface", ENDS[0]), ("align", *ENDS),
        ("instability", "--all-pairs", "run"),
    ):  # fmt: skip
        assert run(*verb, *TASK, "--dry-run", "-o", "dry.h5") == 0
        assert "forward passes" in capsys.readouterr().out
        assert not Path("dry.h5").exists()


def test_classic_surface_files_are_drawn(folder, capsys):
    import h5py

    with h5py.File("classic.h5", "w") as file:
        file["xcoordinates"], file["ycoordinates"] = np.linspace(-1, 1, 4), np.linspace(-1, 1, 4)
        file["train_loss"] = np.arange(16.0).reshape(4, 4) + 1
        file["train_acc"] = np.full((4, 4), 50.0)
    assert run("info", "classic.h5") == 0
    assert "loss" in capsys.readouterr().out
    assert run("plot", "classic.h5", "-o", "classic.pdf") == 0


def test_help_of_every_verb(capsys):
    for verb in ("connect", "surface", "trajectory", "instability", "align", "plot"):
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert "--task" in capsys.readouterr().out or verb == "plot"


def test_a_table_is_printed_beside_diagnostics(folder, capsys):
    command = ("interpolate", *ENDS, "--task", "tasks.py:task", "--points", 3, "--diagnostics")
    assert run(*command, "-o", "line.h5") == 0
    assert "barrier (chord)" in capsys.readouterr().err


def test_files_that_change_between_commands_are_read_anew(folder):
    save_checkpoint(CASES["residual"].states(3)[2], "c", step=0)
    three = ("surface", *ENDS, "c/step-00000000.pt", *TASK, "--points", "2x2", "-o", "s.h5")
    assert run(*three) == 0
    assert connect() == 0
    before = results.load("s.h5")["loss"], results.load("curve.h5")["loss"]
    torch.save(CASES["residual"].states(4)[3], ENDS[1])
    assert run(*three) == 3
    assert run(*three, "--overwrite") == 0
    assert connect("--overwrite") == 0
    now = results.load("s.h5")["loss"], results.load("curve.h5")["loss"]
    assert not np.any(now[0].values == before[0].values)
    assert now[1][-1] != before[1][-1]
    here = landscape.evaluate(CASES["residual"].task(), [CASES["residual"].states(4)[3]])
    assert_allclose(now[1][-1], here["loss"][0], rtol=1e-6)


def test_a_search_that_ended_is_kept_until_it_is_evaluated(folder, monkeypatch):
    command = ("--curve", "autoneb", "--cycles", 3)
    with monkeypatch.context() as patch:
        patch.setattr("landscape.analyses.connectivity.along", interrupt)
        assert connect(*command) == 130
    found = torch.load(".curve.h5.training", weights_only=True)["fields"]
    assert len(found["numbers"]) == 3
    assert connect(*command) == 0
    assert_array_equal(results.load("curve.h5")["bends"], found["rows"])


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_dry_runs_count_the_mini_batches_of_the_training(folder, capsys):
    few = ("--batch-norm-examples", 4, "--dry-run")
    assert connect(*few) == 0
    assert "training: 6 mini-batches; then" in capsys.readouterr().out  # 46 examples in 3, twice
    assert connect(*few, "--curve", "autoneb", "--cycles", 5) == 0
    assert "training: 30 mini-batches at each of 5 pivots" in capsys.readouterr().out


def test_there_is_a_bend_for_each_start(folder):
    assert connect("--start", *ENDS) == 0
    assert results.load("curve.h5").sizes["bend"] == 2


def test_a_line_is_refined_without_saying_again_that_it_is_one(folder):
    assert run("surface", ENDS[0], *TASK, "--points", "5", "--dimensions", 1, "-o", "one.h5") == 0
    assert run("surface", ENDS[0], *TASK, "--refine", "one.h5", "-o", "fine.h5") == 0
    assert results.load("fine.h5").sizes["x"] == 9


def failing(names):
    """A sweep whose points at some places fail on their worker."""

    def sweep(options, job, compute, over, *, plan, title, analysis, **more):
        ((dim, values),) = over.items()
        status = np.ones(len(values), np.uint8)
        status[names] = results.STATUS.index("failed")
        return results.dataset({"status": (dim, status)}, over, title=title, analysis=analysis)

    return sweep


@pytest.mark.parametrize("verb", ["surface", "instability"])
def test_nothing_is_concluded_from_points_that_failed(folder, capsys, monkeypatch, verb):
    arguments = {"surface": [ENDS[0]], "instability": ["--all-pairs", *ENDS]}[verb]
    for module in ("surfaces", "instability"):
        monkeypatch.setattr(f"landscape.cli.{module}.sweep", failing([0]))
    assert run(verb, *arguments, *TASK, "--points", 3, "-o", "x.h5") == 4
    assert "1 failed" in capsys.readouterr().err
    assert not Path("x.h5").exists()


def test_a_figure_has_the_name_and_measures_of_its_format(folder, capsys):
    assert run("surface", ENDS[0], *TASK, "--points", 3, "-o", "s.h5") == 0
    assert run("plot", "s.h5", "--html", "-o", "s.pdf") == 3
    assert "ends in .html, got s.pdf" in capsys.readouterr().err
    assert run("plot", "s.h5", "--y", "loss", "error", "-o", "s.vts") == 3
    assert "holds one measure, got --y loss error" in capsys.readouterr().err
