"""The study of training heuristics: its runs, rises and layers, and verdicts on made-up results."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose

import training_heuristics as study
from landscape import plots
from shared import Settings
from training_heuristics import (
    DECAYED,
    FIRST,
    LAST,
    NONE,
    PLAIN,
    RESTARTED,
    SMALL,
    TAUGHT,
    WARMED,
    restart_run,
    rise,
    same_depth,
    small,
    tiny,
    warm_up_run,
    whole,
)

T = np.linspace(0, 1, 5)
BUMP = np.array([0.0, 0.5, 1.0, 0.5, 0.0])


# Runs ---------------------------------------------------------------------------------------------


def test_restarts_and_decay_leave_the_ends_of_cycles_in_runs_that_differ_in_the_rate_alone():
    how = small()["restarts"]
    restarted, decayed = (
        restart_run(how, schedule, "smaller", 2) for schedule in (RESTARTED, DECAYED)
    )
    epochs = {restarted.timeline.at(step).epoch for step in restarted.checkpoint_steps}
    assert epochs == {0, 10, 30, *range(30, 71, 2)}
    epochs = {decayed.timeline.at(step).epoch for step in decayed.checkpoint_steps}
    assert epochs == {0, 10, 30, 70}
    rates = [restarted.lr(restarted.timeline.at(15 * epoch)) for epoch in (0, 10, 20, 30, 50)]
    assert_allclose(rates, [0.1, 0.1, 0.05, 0.1, 0.05])
    rates = [decayed.lr(decayed.timeline.at(15 * epoch)) for epoch in (0, 34, 35, 52, 53)]
    assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001])
    same = replace(decayed, name="a", lr=0.1, checkpoints=())
    assert same.settings() == replace(restarted, name="a", lr=0.1, checkpoints=()).settings()


def test_an_arm_warms_up_or_freezes_for_the_window_alone():
    how = small()["warm_up"]
    runs = {name: warm_up_run(how, name, 1) for name in how["arms"]}
    assert len(runs) == 4
    for name, run in runs.items():
        rates = [run.lr(run.clock(step)) for step in (0, 44, 89, 90, 95, 96)]
        early = [1 / 90, 0.5, 1.0] if name == WARMED else [1.0] * 3
        assert_allclose(rates, 0.35 * np.array([*early, 1.0, 1.0, 0.1]))
        assert run.freezing_steps == ({0, 90} if name in (LAST, FIRST) else set())
        assert run.checkpoint_steps == {0, 30, 90, 120}
    held = {name: sorted(one.what for one in runs[name].frozen) for name in (LAST, FIRST)}
    assert held == {LAST: ["fc4.*", "output.*"], FIRST: ["fc1.*", "fc2.*", "fc3.*"]}


def test_at_full_scale_an_arm_of_small_batches_has_its_own_rate():
    plan = study.full(study.digits(1))
    plan["warm_up"]["training"]["batch_size"] = 900
    run = warm_up_run(plan["warm_up"], SMALL, 1)
    assert (run.batch_size, run.lr(run.clock(0)), run.weight_decay) == (100, 0.05, 0.0)
    for name in ("restarts", "distillation"):
        assert study.run_of(plan[name], "a", 1).weight_decay == 5e-4


def test_lessons_that_were_interrupted_go_on(tmp_path):
    settings = Settings("training_heuristics", "tiny", root=tmp_path, progress=False)
    found = []
    for chance in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(chance)
            found.append(study.lessons(settings, tiny()["distillation"]))
    assert_allclose(found[1]["svcca"], found[0]["svcca"])
    together = json.loads((settings.runs("distilled/seed-1") / "run.json").read_text())["together"]
    assert together == ["distilled/seed-1", "distilled/seed-2"]


# Numbers ------------------------------------------------------------------------------------------


def test_a_rise_is_what_a_line_is_above_its_higher_end():
    lines = xr.DataArray(
        [BUMP, T, 1 - T, BUMP + 0.4 * T, np.where(T == 0.5, np.nan, BUMP)], dims=("seed", "t")
    )
    assert_allclose(rise(lines), [1.0, 0.0, 0.0, 1.2 - 0.4, np.nan])


def test_runs_that_diverged_are_left_out_whole():
    values = xr.DataArray([[[1.0, 2.0], [3.0, 4.0]], [[5.0, np.nan], [6.0, 7.0]]])
    values = values.rename(dict(zip(values.dims, ("arm", "seed", "t"), strict=True)))
    assert_allclose(whole(values), [[[3.0, 4.0], [6.0, 7.0]]])
    assert whole(values.isel(arm=1, t=1)).tolist() == [7.0]


def test_layers_of_a_student_meet_those_of_the_teacher_at_the_same_depth():
    assert same_depth(4, 4) == [(i, i) for i in range(4)]
    assert same_depth(14, 4) == [(3, 0), (6, 1), (9, 2), (13, 3)]
    assert same_depth(3, 5)[-1] == (2, 4)


# Verdicts -----------------------------------------------------------------------------------------


def restarts(lines, curves, *, scale="small"):
    """Results in which the lines and curves of the seeds rise as told."""
    curves = np.asarray(curves, float)[:, None] * BUMP
    lines = np.asarray(lines, float)[:, None] * BUMP
    return xr.Dataset(
        {
            "line_loss": (("case", "schedule", "seed", "t"), [[lines, 0 * lines]]),
            "curve_loss": (("case", "seed", "t"), [curves]),
        },
        {"case": ["epochs 30 to 70"], "schedule": [RESTARTED, DECAYED], "t": T},
        attrs={"scale": scale},
    )


RISES = np.linspace(0.05, 0.15, 8)


@pytest.mark.parametrize(
    ("curve", "verdict"), [(0.01, "shows"), (0.0199, "shows"), (0.0201, "does not show")]
)
def test_d1_needs_a_line_that_rises_five_times_as_far_as_the_curve(curve, verdict):
    gate, leaving, control = study.judge_restarts(restarts(RISES, np.full(8, curve)))
    assert (gate.verdict, leaving.verdict, control.verdict) == (verdict, "reported", "reported")
    assert gate.mean == pytest.approx(0.1 - curve)
    assert gate.p == pytest.approx(2 / 2**8)  # Wilcoxon, all of one sign
    assert leaving.mean == 8
    assert control.mean == 0


def test_d1_does_not_show_without_any_rise_and_leaves_out_what_diverged():
    flat = study.judge_restarts(restarts(np.zeros(8), np.zeros(8)))[0]
    assert (flat.verdict, flat.num_seeds) == ("does not show", 8)
    few = study.judge_restarts(restarts([np.nan, *RISES], [0.0, np.nan, *np.zeros(7)]))
    assert few[0].num_seeds == 7
    assert few[1].quantity.startswith("seeds of 7 ")
    assert few[0].mean == pytest.approx(RISES[1:].mean())


def test_d1_goes_without_a_control_that_diverged():
    found = restarts(RISES, np.zeros(8))
    found["line_loss"].loc[{"schedule": DECAYED}] = np.nan
    gate, _, control = study.judge_restarts(found)
    assert gate.verdict == "shows"
    assert np.isnan(control.mean)


def test_d1_at_full_scale_asks_for_no_test_of_few_seeds():
    gate = study.judge_restarts(restarts([0.1, 0.2], [0.01, 0.02], scale="full"))[0]
    assert gate.verdict == "shows"
    assert "p <" not in gate.condition
    flat = study.judge_restarts(restarts([0.0, 0.0], [0.0, 0.0], scale="full"))[0]
    assert flat.verdict == "does not show"


def warm_up(reached, *, scale="small", tested=None, moves=None):
    """Results with these final accuracies (arm, seed); nan for runs that diverged."""
    arms = [NONE, WARMED, LAST, SMALL if scale == "full" else FIRST]
    reached = np.asarray(reached, float)
    each = np.full((*reached.shape, 2), 0.5) if moves is None else moves
    curves = np.repeat(reached[..., None], 3, axis=-1)
    return xr.Dataset(
        {
            "accuracy": (("arm", "seed", "epoch"), curves),
            "train_accuracy": (("arm", "seed"), reached),
            "test_accuracy": (("arm", "seed"), reached if tested is None else tested),
            "svcca": (("arm", "seed", "layer"), each),
            "move": (("arm", "seed", "layer"), each),
        },
        {"arm": arms, "epoch": [1, 2, 3], "layer": [1, 2]},
        attrs={"scale": scale, "early": 30, "window": 90, "window_epochs": 2},
    )


@pytest.mark.parametrize(
    ("successes", "verdicts"),
    [((3, 12, 12, 3), ["shows"] * 4), ((4, 11, 11, 4), ["does not show"] * 4)],
)
def test_d2_counts_runs_that_learned_and_those_that_diverged_did_not(successes, verdicts):
    reached = np.where(np.arange(16) < np.array(successes)[:, None], 0.951, np.nan)
    reached[0, -1] = 0.95  # not above
    claims = study.judge_warm_up(warm_up(reached))
    assert [one.mean for one in claims[:4]] == list(successes)
    assert [one.verdict for one in claims[:4]] == verdicts
    assert {one.verdict for one in claims[4:]} == {"reported"}


def test_d2_tells_the_median_move_and_the_mean_likeness_of_runs_that_are_finite():
    moves = np.full((4, 3, 2), np.nan)
    moves[0, 1, 1] = 9.0
    moves[1, :, 1] = [0.1, 0.2, 0.9]
    found = study.judge_warm_up(warm_up(np.ones((4, 3)), moves=moves))[4:]
    assert_allclose([one.mean for one in found], [9.0, 0.2, 9.0, 0.4])
    assert "of 1 runs, no warm-up" in found[0].quantity
    moves[0] = np.nan
    assert np.isnan(study.judge_warm_up(warm_up(np.ones((4, 3)), moves=moves))[4].mean)


def test_d2_at_full_scale_compares_test_accuracies_in_points():
    tested = np.array([[0.89, np.nan], [0.92, 0.90], [0.925, 0.905], [0.93, 0.93]])
    found = study.judge_warm_up(warm_up(np.ones((4, 2)), scale="full", tested=tested))
    assert_allclose([one.mean for one in found[:3]], [46.5, 0.5, 2.0])  # what diverged has none
    assert [one.verdict for one in found[:3]] == ["shows", "shows", "reported"]


def taught(gains, scale="small"):
    """Results in which distilled students are nearer to their teachers by gains (seed, layer)."""
    gains = np.asarray(gains, float)
    return xr.Dataset(
        {
            "svcca": (("arm", "seed", "layer"), [0.5 + gains, np.full(gains.shape, 0.5)]),
            "test_accuracy": (("network", "seed"), np.full((3, len(gains)), 0.9)),
        },
        {"arm": [TAUGHT, PLAIN], "layer": np.arange(1, gains.shape[1] + 1)},
        attrs={"scale": scale},
    )


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [(0.0, 0.05, "shows"), (0.03, 0.05, "does not show"), (-0.05, 0.02, "does not show")],
)
def test_d3_needs_a_gain_at_the_last_layer_that_the_first_has_not(first, last, verdict):
    gains = np.tile([first, 0.0, 0.0, last], (8, 1))
    gains[:, -1] += np.linspace(-0.01, 0.01, 8)
    found = study.judge_distillation(taught(gains))
    assert found[0].verdict == verdict
    assert found[0].mean == pytest.approx(last)
    assert found[1].mean == pytest.approx(last - first)
    assert found[2].mean == 0


def test_d3_at_full_scale_compares_the_last_third_with_the_others():
    gains = [[0.0, 0.1, 0.1, 0.1, 0.3, 0.5], [0.1, 0.0, 0.1, 0.1, 0.3, 0.5]]
    found = study.judge_distillation(taught(gains, "full"))[0]
    assert found.mean == pytest.approx(0.4 - 0.075)
    assert found.verdict == "shows"
    assert study.judge_distillation(taught(0 * np.array(gains), "full"))[0].verdict != "shows"


# Figures ------------------------------------------------------------------------------------------


def test_runs_that_diverged_are_drawn_at_chance_and_layers_by_the_runs_that_are_finite():
    reached = np.where(np.arange(4)[:, None] < 1, np.nan, np.ones((4, 5)))
    moves = np.full((4, 5, 2), 0.5)
    moves[0, 1:] = np.nan
    moves[1, :, 1] = [0.1, 0.2, 0.3, 0.4, 5.0]
    moves[2] = 0.0  # frozen
    with plots.paper_style():
        figure = study.draw_warm_up(warm_up(reached, moves=moves)).figure
    left, middle, _ = figure.axes
    assert_allclose(left.lines[0].get_ydata(), 10.0)
    assert_allclose(left.lines[1].get_ydata(), 100.0)
    drawn = [line.get_ydata().tolist() for line in middle.lines[:8]]
    assert drawn[:4] == [[0.5], [0.5], [0.5], [0.5]]
    assert drawn[6:] == [[0.1, 0.2, 0.3, 0.4, 5.0], [0.3]]
    assert len(middle.lines) == 2 * 2 * 3  # of three arms


def test_the_full_scale_is_refused_without_images():
    settings = Settings("training_heuristics", "full", root=Path("nowhere"))
    with pytest.raises(ValueError, match="The full scale needs CIFAR-10"):
        study.measure(settings)
