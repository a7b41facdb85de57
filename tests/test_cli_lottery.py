"""The verb lottery, from folders of chains to a report and its figure."""

import shutil
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal
from test_cli import run
from test_experiments_tickets import made as made, mask_of

from landscape import results
from landscape.experiments.masks import save_mask
from landscape.experiments.tickets import tickets


@pytest.fixture(autouse=True)
def here(made, monkeypatch):
    """The hand-made chains are the working folder."""
    monkeypatch.chdir(made)


def test_a_report_and_its_figure(capsys):
    assert run("lottery", ".", "-o", "l.h5", "-q") == 0
    assert capsys.readouterr() == ("l.h5\n", "")
    found, own = results.load("l.h5"), tickets(".")
    assert found.attrs["analysis"] == "tickets"
    assert found.variables.keys() == own.variables.keys()
    for name in own.variables:
        assert_array_equal(found[name], own[name])
    assert run("validate", "l.h5") == 0
    for ending, first in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
        assert run("plot", "l.h5", "-o", f"l.{ending}") == 0
        assert Path(f"l.{ending}").read_bytes().startswith(first)
    assert run("info", "l.h5") == 0
    assert "distance to the dense network" in capsys.readouterr().out


def test_the_table_says_what_there_is(capsys):
    assert run("lottery", "s1", "s2", "-o", "l.h5") == 0
    said = capsys.readouterr()
    assert said.out == "l.h5\n"
    rows = [line.split() for line in said.err.splitlines() if "tickets:" not in line]
    assert rows[-3:] == [
        ["dense", "2", "0", "1", "0.0550", "[0.0500,", "0.0600]"],
        ["k=4", "2", "1-2", "0.5", "0.2050", "[0.2000,", "0.2100]", "6.325", "12.65", "0"],
        ["k=4/random", "2", "2", "0.5", "0.4050", "[0.4000,", "0.4100]", "3.162"],
    ]


def test_levels_that_are_not_over_are_named_and_broken_ones_make_another_exit_code(capsys):
    shutil.rmtree("s1/k=4/level-02")
    save_mask(mask_of(8, 2), "s1/k=4/level-02")
    shutil.rmtree("s2/k=4/random")
    assert run("lottery", ".", "-o", "l.h5") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == ["missing: s2/k=4/random/level-02", "running: s1/k=4/level-02"]
    told = Path("s2/k=4/level-02/run.json")
    told.write_text(told.read_text().replace("finished", "nonfinite"))
    assert run("lottery", ".", "-o", "l.h5") == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [
        "running: s1/k=4/level-02", "landscape: finished, but of 5 levels 1 non-finite",
    ]  # fmt: skip
    assert "nonfinite: s2/k=4/level-02" in lines


def test_chosen_chains_and_a_dry_run(capsys):
    assert run("lottery", ".", "-o", "l.h5", "--dry-run") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["chain", "runs", "levels"], ["k=4", "2", "1-2"], ["k=4/random", "2", "2"],
    ]  # fmt: skip
    assert not Path("l.h5").exists()
    assert run("lottery", ".", "-o", "l.h5", "-q", "--chains", "k=?") == 0
    assert results.load("l.h5")["chain"].values.tolist() == ["k=4"]


def test_a_report_is_made_anew_but_replaces_nothing_else(made, capsys):
    assert run("lottery", "s1", "-o", "l.h5", "-q") == 0
    assert run("lottery", ".", "-o", "l.h5", "-q") == 0
    assert results.load("l.h5").sizes["run"] == 2
    shutil.copy("s1/level-00/record.h5", "l.h5")
    assert run("lottery", ".", "-o", "l.h5", "-q") == 3
    assert "holds the analysis 'run', which a report would replace" in capsys.readouterr().err
    assert run("lottery", ".", "-o", "l.h5", "-q", "--overwrite") == 0
    assert results.load("l.h5").attrs["analysis"] == "tickets"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("empty",), "empty holds no chain: looked for folders level-01, level-02"),
        (("nowhere",), "no such folder"),
        ((".", "--chains", "k=9"), "no chain matches k=9; there are k=4, k=4/random"),
        (("gap",), "has the levels 2 and lacks 1"),
        (("bare",), "holds a run but no mask.npz"),
        (("other",), "of another architecture"),
    ],
)
def test_wrong_input_is_refused_before_a_file_is_written(capsys, arguments, message):
    Path("empty").mkdir()
    for name in ("gap", "bare", "other"):
        shutil.copytree("s1", f"{name}/s1")
    shutil.rmtree("gap/s1/k=4/level-01")
    Path("bare/s1/k=4/level-02/mask.npz").unlink()
    Path("other/s1/k=4/level-02/mask.npz").unlink()
    save_mask({"c": mask_of(3, 3)["a"]}, "other/s1/k=4/level-02")
    assert run("lottery", *arguments, "-o", "w.h5", "-q") == 3
    assert message in capsys.readouterr().err
    assert not Path("w.h5").exists()
