"""Sets of runs: every cell is there, failures are marked, and gaps count once all have learned."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

from landscape import models
from landscape.datasets import Batches
from landscape.experiments import Run, Seeds, train
from landscape.experiments.comparisons import (
    ablations,
    generalisation_gap,
    grid,
    num_parameters,
    outcomes,
)
from landscape.experiments.warmstarts import reached
from landscape.results import load, problems


def data(num=64, seed=0):
    inputs = torch.randn(num, 5, generator=torch.Generator().manual_seed(seed))
    return Batches(inputs, inputs[:, :3].argmax(1), batch_size=16)


def run(name="a", **changes):
    settings = {"make_model": partial(models.mlp, 5, (8,), 3), "epochs": 3, "batch_size": 16}
    return Run(name=name, data=data(), test=data(seed=1), **settings | changes)


def test_a_grid_has_every_cell_and_failures_are_marked(tmp_path):
    cells = grid(run(), lr=(0.1, 1e30), batch_size=(16, 32))
    assert [cell.name for cell in cells] == [
        "a/lr=0.1/batch_size=16",
        "a/lr=0.1/batch_size=32",
        "a/lr=1e+30/batch_size=16",
        "a/lr=1e+30/batch_size=32",
    ]
    assert (cells[3].lr, cells[3].batch_size) == (1e30, 32)
    train(cells, tmp_path)
    found = outcomes([*cells, "never"], tmp_path, train_accuracy=0.7)
    assert not problems(found)
    assert found["ended"].values.tolist() == ["finished"] * 2 + ["nonfinite"] * 2 + ["missing"]
    assert np.isfinite(found["test_accuracy"]).values.tolist() == [True, True, False, False, False]
    with pytest.raises(ValueError, match="at least one value each"):
        grid(run(), lr=())
    with pytest.raises(ValueError, match="two runs would share a name"):
        grid(run(), lr=(0.1, 0.1))


def test_times_to_a_threshold_are_those_of_the_record(tmp_path):
    one = run(epochs=40, stop=reached(0.9))
    (end,) = train(one, tmp_path)
    record = load(end.folder / "record.h5")
    accuracy = 1 - record["train_error"].values
    found = outcomes([one], tmp_path, train_accuracy=0.8).isel(run=0)
    there = np.flatnonzero(accuracy >= 0.8)[0]
    assert found["ended"] == "stopped"
    assert found["epochs_to_threshold"] == record["epoch"][there]
    assert_allclose(found["seconds_to_threshold"], record["seconds"][: there + 1].sum())
    assert_allclose(found["seconds"], record["seconds"].sum())
    assert_allclose(found["train_accuracy"], accuracy[-1])
    assert_allclose(found["test_accuracy"], 1 - record["test_error"][-1])
    assert np.isnan(outcomes([one], tmp_path, train_accuracy=1.1)["epochs_to_threshold"][0])


def test_gaps_count_only_where_both_have_learned_the_data(tmp_path):
    easy = [run(f"easy-{s}", epochs=40, seeds=Seeds.all(s)) for s in range(3)]
    other = [replace(one, name=one.name.replace("easy", "other"), lr=0.2) for one in easy]
    other[1] = replace(other[1], epochs=1)
    train([*easy, *other], tmp_path)
    table = outcomes([*easy, *other], tmp_path)["test_accuracy"].values
    found = generalisation_gap(easy, other, tmp_path)
    assert np.isfinite(found["gap"]).values.tolist() == [True, False, True]
    expected = (table[:3] - table[3:])[[0, 2]]
    assert_allclose(found["gap"].values[[0, 2]], expected)
    assert_allclose(found["mean_gap"], expected.mean())
    assert found["num_pairs"] == 2
    p_value = stats.ttest_rel(table[[0, 2]], table[[3, 5]]).pvalue
    assert_allclose(found["p_value"], p_value)
    none = generalisation_gap(easy[1:2], other[1:2], tmp_path)
    assert none["num_pairs"] == 0
    assert np.isnan(none["mean_gap"])
    with pytest.raises(ValueError, match="in pairs, got 3 and 2"):
        generalisation_gap(easy, other[:2], tmp_path)


def test_ablations_change_the_model_alone_and_say_its_size():
    made = ablations(
        run(make_model=partial(models.resnet20, 1, 3, 4)),
        batch_norm=(True, False),
        skip=(True, False),
    )
    assert [one.name for one in made][1] == "a/batch_norm=True/skip=False"
    sizes = {one.name: num_parameters(one) for one in made}
    counted = [
        sum(p.numel() for p in models.resnet20(1, 3, 4, bn, skip).parameters())
        for bn in (True, False)
        for skip in (True, False)
    ]
    assert list(sizes.values()) == counted
    with pytest.raises(ValueError, match="arguments of make_model"):
        ablations(run())
