"""What the studies share, the index of all of them, and each of them in a few seconds."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose
from scipy import stats

import reproduce
from landscape import datasets, models, results
from landscape.experiments import Run
from shared import (
    Drawn,
    Effect,
    Settings,
    band,
    bars,
    digits,
    effect,
    interval,
    judged,
    panels,
    ratio,
    run_study,
    workers,
)


def test_an_effect_is_a_paired_t_test_with_its_interval():
    values = np.array([-1.0, -2.0, -0.5, -1.5])
    found = effect(values)
    reference = stats.ttest_1samp(values, 0)
    assert_allclose([found.mean, found.p, found.num], [-1.25, reference.pvalue, 4])
    assert_allclose([found.low, found.high], reference.confidence_interval(0.95))
    assert effect(values, tail="less").p == pytest.approx(found.p / 2)
    assert effect(values, test="wilcoxon").p == pytest.approx(2 / 2**4)
    assert effect([0.0, 0.0, 0.0], test="wilcoxon").p == 1.0


def test_an_effect_without_spread_is_certain_unless_it_is_nothing():
    assert effect([2.0, 2.0]).p == 0.0
    assert effect([0.0, 0.0]).p == 1.0
    assert math.isnan(effect([2.0]).p)
    assert effect([]).num == 0
    with pytest.raises(ValueError, match="1 of 2 seeds have no value"):
        effect([1.0, math.nan])


def test_a_ratio_is_that_of_geometric_means():
    found = ratio([2.0, 8.0], [1.0, 1.0])
    assert found.mean == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)
    assert found.p == pytest.approx(effect(np.log([2.0, 8.0])).p)


@pytest.mark.parametrize(
    ("given", "condition", "verdict"),
    [
        ({"at_most": -1.0, "p_below": 0.05}, "<= -1, p < 0.05", "shows"),
        ({"at_most": -2.0}, "<= -2", "does not show"),
        ({"at_most": -1.0, "p_below": 1e-9}, "<= -1, p < 1e-09", "does not show"),
        ({"within": 2.0, "expected": "null"}, "within 2 of 0", "null, as expected"),
        ({"within": 0.5, "expected": "null"}, "within 0.5 of 0", "not null"),
        ({"at_least": -9, "also": {"ordered": False}}, ">= -9, ordered", "does not show"),
        ({"expected": "report"}, "", "reported"),
        ({"at_most": -1.0, "gated": False}, "", "reported"),
    ],
)
def test_a_verdict_is_that_of_its_condition(given, condition, verdict):
    found = judged("X1", "figure", "blur hurts", "points", effect([-1.2, -1.3, -1.1]), **given)
    assert (found.condition, found.verdict) == (condition, verdict)
    assert found.num_seeds == 3


def test_a_claim_without_condition_is_refused():
    with pytest.raises(ValueError, match="X1: a claim needs a condition"):
        judged("X1", "figure", "blur hurts", "points", 1.0)


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (-1.234, -1.8, -0.6614, "-1.23 [-1.8, -0.661]"),
        (2.33e-8, -0.0498, 0.0498, "0 [-0.0498, 0.0498]"),
        (-3.88e-9, -0.335, 0.335, "0 [-0.335, 0.335]"),
        (1.03, 0.9912, 1.07, "1.03 [0.991, 1.07]"),
        (-0.55, -5.2251, 4.125, "-0.55 [-5.23, 4.12]"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (16, math.nan, math.nan, "16"),
        (1.5e-6, math.nan, math.nan, "1.5e-06"),
        (math.nan, math.nan, math.nan, "not measured"),
    ],
)
def test_an_interval_is_told_to_three_digits_without_the_noise_of_rounding(mean, low, high, text):
    assert interval(Effect(mean, low, high, math.nan, 8)) == text


def test_digits_of_a_seed_are_split_once():
    train, test = digits(3)
    assert (train.num_examples, test.num_examples) == (900, 897)
    fewer, same_test = digits(3, 300)
    assert torch.equal(fewer.inputs, train.inputs[:300])
    assert torch.equal(same_test.inputs, test.inputs)
    together = torch.cat([train.inputs, test.inputs])
    parts = [datasets.load(split=split) for split in ("train", "test")]
    all_of_them = torch.cat([parts[0].transform(one.inputs) for one in parts])
    assert_allclose(together.sum((0, 1)), all_of_them.sum((0, 1)), rtol=1e-4)
    noisy, _ = digits(3, noise=0.7)
    assert float((noisy.inputs - train.inputs).std()) == pytest.approx(0.7, rel=0.02)
    assert torch.equal(noisy.targets, train.targets)


def test_a_result_is_kept_until_the_seeds_or_the_script_are_others(tmp_path):
    made = []

    def compute():
        made.append(1)
        return results.dataset({"x": ("seed", [1.0])}, {"seed": [1]}, analysis="x", title="x")

    settings = Settings("study", root=tmp_path)
    for _ in range(2):
        assert settings.kept("x", compute)["x"].values == [1.0]
    assert len(made) == 1
    Settings("study", root=tmp_path, num_seeds=4).kept("x", compute)
    Settings("study", root=tmp_path, num_seeds=4, code="changed").kept("x", compute)
    assert len(made) == 3


def test_a_result_that_is_damaged_is_named_and_left(tmp_path):
    settings = Settings("study", root=tmp_path)
    path = settings.folder / "x.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of a file")
    with pytest.raises(ValueError, match=r"x.h5 .*damaged.*Remove it, and the same command"):
        settings.kept("x", lambda: pytest.fail("computed again"))
    assert path.read_bytes() == b"half of a file"


def test_settings_choose_seeds_and_scales():
    assert Settings("study", first_seed=101).seeds(3) == range(101, 104)
    assert Settings("study", scale="tiny").seeds(12) == range(1, 3)
    assert Settings("study", num_seeds=5).seeds(12) == range(1, 6)
    assert Settings("study", scale="full").choose(tiny=1, small=2, full=3) == 3


def test_the_full_scale_says_where_its_images_come_from(tmp_path):
    with pytest.raises(ValueError, match="Download cifar-10-python"):
        Settings("study", scale="full").images()
    with pytest.raises(ValueError, match=r"(?s)no such folder.*--data cifar10:FOLDER"):
        Settings("study", scale="full", data=f"cifar10:{tmp_path / 'none'}").images()
    train, test = Settings("study", scale="full", data="synthetic:num_examples=50").images()
    assert (train.num_examples, len(test.inputs[0])) == (50, 3)
    for others, came in (
        ("sklearn:digits", r"\(1, 8, 8\) in 10 classes"),
        ("synthetic:num_examples=50,classes=11", r"\(3, 32, 32\) in 11 classes"),
    ):
        with pytest.raises(ValueError, match=came + r", where the.* take images \(3, 32, 32\)"):
            Settings("study", scale="full", data=others).images()


def test_the_full_scale_is_refused_without_a_gpu(tmp_path):
    train, _ = digits(0, 100)
    run = Run(name="run", make_model=models.mlp, data=train, epochs=1, batch_size=50)
    settings = Settings("study", scale="full", root=tmp_path, device="cpu")
    with pytest.raises(ValueError, match=r"study at full scale trains for 8,400 epochs.*--force"):
        settings.check_time(run, 8400)
    Settings("study", scale="full", device="cpu", force=True).check_time(run, 8400)
    Settings("study", device="cpu").check_time(run, 8400)


def test_a_band_is_a_t_interval_over_seeds():
    values = np.array([[1.0, 2.0], [3.0, 5.0], [2.0, 2.0]])
    _, axes = panels(2)
    band(axes[0, 0], [0, 1], values, "arm")
    (line,) = axes[0, 0].get_lines()
    assert_allclose(line.get_ydata(), values.mean(0))
    low, high = stats.t.interval(0.95, 2, values.mean(0), stats.sem(values))
    edges = axes[0, 0].collections[0].get_paths()[0].vertices
    assert_allclose([edges[:, 1].min(), edges[:, 1].max()], [low.min(), high.max()])
    band(axes[0, 0], [0, 1], values, geometric=True)
    assert_allclose(axes[0, 0].get_lines()[1].get_ydata(), stats.gmean(values))
    bars(axes[0, 1], {"a": values[:, 0], "b": values[:, 1]})
    assert [tick.get_text() for tick in axes[0, 1].get_xticklabels()] == ["a", "b"]


# A study of its own -------------------------------------------------------------------------------


def measure(settings):
    def compute():
        seeds = list(settings.seeds(3))
        return results.dataset(
            {"x": ("seed", np.array(seeds, float))}, {"seed": seeds}, analysis="x", title="x"
        )

    return {"numbers": settings.kept("numbers", compute)}


def draw(found):
    fig, axes = panels(1)
    band(axes[0, 0], [0], found["numbers"]["x"].values[:, None])
    return {"study_numbers": Drawn(fig, "Numbers.")}


def judge(found):
    return [judged("X1", "study_numbers", "they are high | low", "x", effect(found["numbers"]["x"]),
                   at_least=1.5)]  # fmt: skip


def test_a_study_measures_draws_and_judges(tmp_path, capsys):
    run_study(measure, draw, judge, argv=["--folder", str(tmp_path), "--first-seed", "7"])
    folder = tmp_path / "small" / "test_studies-seeds-7"
    assert {path.name for path in folder.glob("[a-z]*")} == {
        "numbers.h5", "study_numbers.pdf", "study_numbers.png", "summary.json",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["claims"][0]["mean"] == 8.0
    assert summary["claims"][0]["verdict"] == "shows"
    assert summary["command"].endswith("test_studies.py --scale small --first-seed 7")
    assert "shows" in capsys.readouterr().out
    xr.load_dataset(folder / "numbers.h5", engine="h5netcdf")
    before = (folder / "study_numbers.pdf").read_bytes()
    (folder / "study_numbers.pdf").unlink()
    again = ["--folder", str(tmp_path), "--first-seed", "7", "--only", "figure"]
    run_study(measure, draw, judge, argv=again)
    assert (folder / "study_numbers.pdf").read_bytes() == before


def test_a_figure_needs_results(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no results; call without --only figure"):
        run_study(measure, draw, judge, argv=["--folder", str(tmp_path), "--only", "figure"])


def test_a_figure_needs_all_results(tmp_path):
    run_study(measure, draw, judge, argv=["--folder", str(tmp_path)])
    folder = tmp_path / "small" / "test_studies-seeds-1"
    (folder / "numbers.h5").rename(folder / "others.h5")
    again = ["--folder", str(tmp_path), "--only", "figure"]
    with pytest.raises(SystemExit, match=r"have no 'numbers'.*call without --only figure"):
        run_study(measure, draw, judge, argv=again)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seeds", "1"], "--seeds must be at least 2, for error bars; got 1"),
        (["--first-seed", "-1"], "--first-seed must be at least 0, got -1"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--data", "cifar10:somewhere"], "--data is for --scale full"),
        (["--device", "gpu"], "--device gpu cannot be used here: Expected one of"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here: "),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_begins(options, told, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_study(measure, draw, judge, argv=["--folder", str(tmp_path), *options])
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--folder", "--figures"])
def test_a_folder_that_cannot_be_written_is_named(option, tmp_path):
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(SystemExit, match=r"test_studies.py: .*file"):
        run_study(measure, draw, judge, argv=["--folder", str(tmp_path), option, str(file)])


def test_control_c_ends_with_its_code_and_a_line(tmp_path, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    interrupted.__module__ = measure.__module__
    with pytest.raises(SystemExit, match="130"):
        run_study(interrupted, draw, judge, argv=["--folder", str(tmp_path)])
    assert "test_studies.py: interrupted; what was finished is on disk" in capsys.readouterr().err


def test_control_c_does_not_wait_for_workers():
    started = time.monotonic()

    def use():
        with workers(2) as executor:
            assert executor.submit(os.getpid).result() != os.getpid()
            executor.submit(time.sleep, 600)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert time.monotonic() - started < 120


def test_a_reader_who_has_gone_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    told = subprocess.run(
        [sys.executable, "-c", "from shared import show; show('x' * 10**6)"],
        cwd=Path(reproduce.__file__).parent, stdout=writing, stderr=subprocess.PIPE, check=True,
    )  # fmt: skip
    os.close(writing)
    assert told.stderr == b""


# The index ----------------------------------------------------------------------------------------


def test_the_index_has_each_claim_and_keeps_what_is_above(tmp_path):
    summaries = []
    for first in (1, 101):
        run_study(
            measure, draw, judge, argv=["--folder", str(tmp_path), "--first-seed", str(first)]
        )
        path = tmp_path / "small" / f"test_studies-seeds-{first}" / "summary.json"
        summaries.append(json.loads(path.read_text()))
    index = tmp_path / "README.md"
    index.write_text("# Figures\n\nBy hand.\n")
    for _ in range(2):
        reproduce.write_index(summaries, index)
    text = index.read_text()
    assert text.startswith("# Figures\n\nBy hand.\n\n" + reproduce.MARK)
    assert text.count("![study_numbers](study_numbers.png)") == 1
    assert "- Small scale, seeds from 1: 1 of 1 claims with a criterion came out as" in text
    row = next(line for line in text.splitlines() if line.startswith("| X1"))
    assert r"they are high \| low" in row
    assert "**shows**: 2 [-0.484, 4.48], p 0.07, 3 seeds" in row
    assert "**shows**: 102 [99.5, 104]" in row
    reproduce.write_claims(summaries, tmp_path / "claims.csv")
    with (tmp_path / "claims.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["first_seed"], row["mean"]) for row in rows] == [("1", "2.0"), ("101", "102.0")]


def test_what_is_there_stays_whole_when_writing_is_cut_off(tmp_path, monkeypatch):
    command = ["--folder", str(tmp_path)]
    run_study(measure, draw, judge, argv=command)
    summary = tmp_path / "small" / "test_studies-seeds-1" / "summary.json"
    known = [json.loads(summary.read_text())]
    writers = {"claims.csv": reproduce.write_claims, "README.md": reproduce.write_index}
    for name, write in writers.items():
        write(known, tmp_path / name)
    paths = [summary, *(tmp_path / name for name in writers)]
    whole = [path.read_bytes() for path in paths]

    def half(path, text, **_):
        path.write_bytes(text.encode()[:40])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    for name, write in writers.items():
        with pytest.raises(KeyboardInterrupt):
            write(known, tmp_path / name)
    with pytest.raises(SystemExit, match="130"):
        run_study(measure, draw, judge, argv=command)
    assert [path.read_bytes() for path in paths] == whole
    assert not list(tmp_path.rglob("*.tmp"))


def test_studies_and_seeds_that_are_named_twice_run_once():
    options = reproduce._parsed(["--first-seed", "7", "1", "7", "--only", *["warm_starts"] * 2])
    assert options.figures == Path("studies/figures")
    assert reproduce._parsed([]).figures == Path("figures")
    assert reproduce._parsed(["--scale", "tiny"]).figures == Path("studies/figures")
    assert (options.first_seed, options.only) == ([7, 1], ["warm_starts"])


@pytest.mark.slow
def test_all_studies_run_from_end_to_end_and_again_from_their_results(tmp_path):
    command = ["--scale", "tiny", "--folder", str(tmp_path)]
    reproduce.main(command)
    claims = (tmp_path / "figures" / "claims.csv").read_text()
    for study in reproduce.STUDIES:
        folder = tmp_path / "tiny" / f"{study}-seeds-1"
        summary = json.loads((folder / "summary.json").read_text())
        assert {one["figure"] for one in summary["claims"]} <= set(summary["figures"])
        assert f"{study},tiny,1," in claims
        for name in summary["figures"]:
            for ending in (".pdf", ".png"):
                assert (tmp_path / "figures" / f"{name}{ending}").stat().st_size > 5000
    reproduce.main([*command, "--only-figures"])
    assert (tmp_path / "figures" / "claims.csv").read_text() == claims


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_to_the_same_claims(tmp_path):
    script = Path(reproduce.__file__).with_name("regularisation_in_time.py")
    command = [sys.executable, str(script), "--scale", "tiny", "--quiet", "--folder"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")])
    runs = tmp_path / "killed" / "tiny" / "regularisation_in_time-seeds-1" / "runs"
    while killed.poll() is None and len(list(runs.glob("*/seed-1/*/record.h5"))) < 8:
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    told = [
        subprocess.run([*command, str(tmp_path / name)], capture_output=True, check=True).stdout
        for name in ("killed", "whole")
    ]
    assert told[0] == told[1]


@pytest.mark.slow
def test_regularisation_in_time_shows_at_the_scale_of_digits(tmp_path):
    """Section C in full: C1 to C4 and the constant-rate control, on ten seeds."""
    command = ["--folder", str(tmp_path), "--figures", str(tmp_path), "--workers", "1"]
    reproduce.main([*command, "--only", "regularisation_in_time"])
    with (tmp_path / "claims.csv").open() as file:
        gated = {row["criterion"]: row for row in csv.DictReader(file) if row["condition"]}
    assert {"C1", "C1c", "C2", "C3", "C4"} <= gated.keys()
    assert {row["verdict"] for row in gated.values()} == {"shows"}


def test_a_study_that_fails_is_named_and_an_earlier_index_stays(tmp_path, capsys):
    command = ["--scale", "full", "--folder", str(tmp_path), "--figures", str(tmp_path)]
    (tmp_path / "README.md").write_text("# Figures\n\nEarlier verdicts.\n")
    with pytest.raises(SystemExit, match="not finished: warm_starts, seeds from 1. The same"):
        reproduce.main([*command, "--only", "warm_starts"])
    told = capsys.readouterr().out
    assert "warm_starts, seeds from 1: failed, " in told
    assert "Download cifar-10-python" in told
    assert (tmp_path / "README.md").read_text() == "# Figures\n\nEarlier verdicts.\n"
    assert not (tmp_path / "claims.csv").exists()
