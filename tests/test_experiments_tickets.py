"""A report on chains says what lies in their folders: by hand-made ones, and by trained ones."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from landscape import models, results
from landscape.checkpoints import save_checkpoint
from landscape.datasets import Batches
from landscape.experiments import At, Run, Seeds
from landscape.experiments.branches import children, last_checkpoint
from landscape.experiments.masks import density, save_mask, stability
from landscape.experiments.perturbations import (
    against_effective_std,
    perturbations,
    perturbed_runs,
)
from landscape.experiments.pruning import (
    Chain,
    iterative_pruning,
    randomly_pruned,
    reinitialised,
    rewinding_point,
    train_masked,
)
from landscape.experiments.tickets import Place, chains_in, tickets

QUIET = {"device": "cpu", "progress": False}
END = 20
ARMS = ("none", "fresh", "initial-signs", "noise-1", "noise-2")


# Folders made by hand -----------------------------------------------------------------------------


def mask_of(a, b):
    """Of layer a (2, 5) the first `a` weights survive, of layer b (1, 10) the first `b`."""
    return {
        name: (torch.arange(10) < num).reshape(shape)
        for name, num, shape in (("a", a, (2, 5)), ("b", b, (1, 10)))
    }


def level(path, *, values=1.0, first=0, start=None, error=0.1, mask=None, status="finished"):
    """The folder of a run: weights are 0 at its first step and `values` at its last."""
    path.mkdir(parents=True)
    if mask is not None:
        save_mask(mask, path)
    settings = {"start": None if start is None else {"step": first, "state": start}}
    (path / "run.json").write_text(
        json.dumps({"status": status, "step": END, "settings": settings})
    )
    for step, weights in ((first, 0.0), (END, values)):
        state = {
            name: torch.full(shape, float(weights))
            for name, shape in (("a", (2, 5)), ("b", (1, 10)))
        }
        save_checkpoint(state, path, step=step)
    if status == "finished":
        rows = {
            "test_error": ("epoch", [0.9, error, np.nan]),
            "train_error": ("epoch", [0.9, 0.5, error / 2]),
        }
        record = results.dataset(rows, {"epoch": [1, 2, 3]}, analysis="run", title="")
        results.save(record, path / "record.h5")


@pytest.fixture
def made(tmp_path):
    """Two runs whose dense weights are 1: chains to k = 4 with two levels, and two controls."""
    for number, run in enumerate(("s1", "s2")):
        root, more = tmp_path / run, 0.01 * number
        level(root / "level-00", error=0.05 + more)
        point = {"step": 4, "key": None, "sha256": "0"}
        for n, survivors, values in ((1, (10, 6), 3.0), (2, (8, 2), -1.0)):
            level(
                root / f"k=4/level-{n:02d}", values=values, first=4, start=point,
                error=0.1 * n + more, mask=mask_of(*survivors),
            )  # fmt: skip
        level(
            root / "k=4/random/level-02", values=2.0, first=4, start={"a": {}}, error=0.4 + more,
            mask=mask_of(5, 5),
        )  # fmt: skip
        for name, values in (("order-1", 1.0), ("order-2", 4.0), ("both-3", -2.0)):
            level(root / f"k=4/level-02/k=4/{name}", values=values, first=4)
        level(root / "k=4/level-02/k=4/order-4", values=9.0, first=4, status="running")
        level(root / "k=4/level-02/k=12/order-5", values=9.0, first=12)
    return tmp_path


def test_densities_and_errors_of_known_folders(made):
    found = tickets(made)
    assert found["run"].values.tolist() == ["s1", "s2"]
    assert found["chain"].values.tolist() == ["k=4", "k=4/random"]
    assert found["level"].values.tolist() == [0, 1, 2]
    nan = np.nan
    one = found.sel(run="s1")
    assert_allclose(one["density"], [[1, 0.8, 0.5], [1, nan, 0.5]])
    layers = [[[1, 1], [1, 0.6], [0.8, 0.2]], [[1, 1], [nan, nan], [0.5, 0.5]]]
    assert_allclose(one["layer_density"], layers)
    assert_allclose(one["test_error"], [[0.05, 0.1, 0.2], [0.05, nan, 0.4]])
    assert_allclose(one["train_error"], [[0.025, 0.05, 0.1], [0.025, nan, 0.2]])
    apart = found.sel(run="s2")["test_error"] - one["test_error"]
    assert_allclose(apart, [[0.01] * 3, [0.01, nan, 0.01]])
    assert one["ended"].values.tolist() == [["finished"] * 3, ["finished", "missing", "finished"]]
    assert results.problems(found) == []


def test_distances_of_known_weights(made):
    """Closed forms: all surviving weights differ by a constant."""
    one = tickets(made).sel(run="s1")
    nan = np.nan
    far = [[nan, 2 * np.sqrt(16), 2 * np.sqrt(10)], [nan, nan, 1 * np.sqrt(10)]]
    assert_allclose(one["pruning_distance"], far)
    assert_allclose(one["pruning_angle"], [[nan, 0, 180], [nan, nan, 0]], atol=1e-6)
    assert one["pruning_angle"].attrs["units"] == "degree"
    # copies that end at 1, 4 and -2: pairs differ by 3, 3 and 6, angles are 0, 180 and 180
    assert_allclose(one["order_distance"].values[0], [nan, nan, 4 * np.sqrt(10)])
    assert_allclose(one["order_angle"].values[0], [nan, nan, 120])
    assert np.isnan(one["order_distance"].values[1]).all()


def test_a_single_copy_has_no_distance(made):
    for name in ("order-1", "both-3"):
        shutil.rmtree(made / "s1/k=4/level-02/k=4" / name)
    found = tickets(made)["order_distance"].sel(chain="k=4", level=2)
    assert_allclose(found, [np.nan, 4 * np.sqrt(10)])


def test_what_is_known_of_each_chain(made):
    found = tickets(made)
    assert found["step"].values.tolist() == [4, 4]
    assert found["of"].values.tolist() == ["k=4", "k=4"]
    assert found["control"].values.tolist() == ["", "random"]
    assert found["kind"].values.tolist() == ["", ""]


@pytest.mark.parametrize(
    ("name", "start", "step", "kind"),
    [
        ("k=4-lr", {"step": END, "sha256": "0"}, 4, "lr"),  # from the trained weights, clock at 4
        (
            "full",
            {"step": 4, "sha256": "0"},
            4,
            "full",
        ),  # from the weights at 4, whatever the clock
        ("k=40", {"step": 4, "sha256": "0"}, 4, "k=40"),
    ],
)
def test_steps_are_those_of_the_weights(tmp_path, name, start, step, kind):
    level(tmp_path / "s/level-00")
    first = 0 if name == "full" else 4
    level(tmp_path / f"s/{name}/level-01", first=first, start=start, mask=mask_of(3, 3))
    found = tickets(tmp_path)
    assert found["step"].values.tolist() == [step]
    assert found["kind"].values.tolist() == [kind]


def test_effective_std_is_that_of_the_starts_and_for_equal_masks_alone(made):
    same = made / "s1/k=4/moved/level-02"
    level(same, first=4, start={"a": {}}, mask=mask_of(8, 2), error=0.3)
    start = {
        "a": torch.tensor([[3.0, -3, 3, -3, 3], [-3, 3, -3, 99, 99]]),
        "b": torch.tensor([[3.0, -3, *[99.0] * 8]]),
    }
    (same / "step-00000004.pt").unlink()
    save_checkpoint(start, same, step=4)
    found = tickets(made)["effective_std"].sel(level=2)
    assert_allclose(found.sel(chain="k=4/moved"), [3, np.nan])
    assert_allclose(found.sel(chain="k=4/random"), [np.nan, np.nan])
    assert_allclose(found.sel(chain="k=4"), [0, 0])


def test_a_correlation_is_over_the_runs_that_have_both_values(made):
    """A control whose chain is not over in one run has an error there, and no change."""
    changes = {"far": 2.0, "near": 1.0}
    for run, more in (("s1", 0.0), ("s2", 0.5)):
        for name, size in changes.items():
            path = made / f"{run}/k=4/{name}/level-02"
            level(path, first=4, start={"a": {}}, mask=mask_of(8, 2), error=0.2 + 0.1 * size + more)
            signs = size * (-1.0) ** torch.arange(10)
            (path / "step-00000004.pt").unlink()
            both = {"a": signs.reshape(2, 5), "b": signs.reshape(1, 10)}
            save_checkpoint(both, path, step=4)
    told = made / "s2/k=4/level-02/run.json"
    told.write_text(told.read_text().replace("finished", "running"))
    found = tickets(made)
    assert_allclose(found["test_error"].sel(chain="k=4/far", level=2), [0.4, 0.9])
    assert_allclose(found["effective_std"].sel(chain="k=4/far", level=2), [2, np.nan])
    expected = stats.pearsonr([0, 2, 1], [0.8, 0.6, 0.7])
    one = found.sel(chain="k=4", level=2)
    assert_allclose([one["correlation"], one["p_value"]], expected, atol=1e-7)


def test_distances_are_from_the_ends_and_the_starts_that_runs_tell_of(made):
    """Where a checkpoint was removed, no other one stands for it."""
    level(made / "s1/k=4/moved/level-02", first=4, start={"a": {}}, mask=mask_of(8, 2), error=0.3)
    for missing in (
        "level-00/step-00000020.pt",
        "k=4/level-01/step-00000020.pt",
        "k=4/moved/level-02/step-00000004.pt",
        "k=4/level-02/step-00000004.pt",
        "k=4/level-02/k=4/both-3/step-00000020.pt",
    ):
        path = made / "s1" / missing
        path.rename(made / "kept.pt")
        with pytest.raises(ValueError, match=rf"s1/{missing}: does not exist") as caught:
            tickets(made / "s1")
        assert str(caught.value).count(str(path)) == 1
        (made / "kept.pt").rename(path)
    assert_allclose(tickets(made / "s1")["effective_std"].sel(chain="k=4/moved", level=2), [0])


def test_what_is_not_over_has_no_error_and_a_name(made):
    shutil.rmtree(made / "s1/k=4/level-02")
    save_mask(mask_of(8, 2), made / "s1/k=4/level-02")
    told = made / "s2/k=4/level-02/run.json"
    told.write_text(told.read_text().replace("finished", "nonfinite"))
    shutil.rmtree(made / "s2/k=4/random")
    found = tickets(made)
    assert found["ended"].sel(level=2).values.tolist() == [
        ["running", "finished"],
        ["nonfinite", "missing"],
    ]
    one = found.sel(chain="k=4", level=2)
    assert_allclose(one["density"], [0.5, 0.5])
    for name in ("test_error", "train_error", "pruning_distance", "order_distance"):
        assert np.isnan(one[name]).all()


def test_folders_may_be_a_root_a_run_a_chain_or_a_control(made):
    whole = chains_in(made)
    assert whole[Place("s1", "k=4/random", 2)] == made / "s1/k=4/random/level-02"
    assert chains_in([made / "s1", made / "s2/k=4"]) == whole
    assert chains_in([str(made), made / "s1"]) == whole
    one = {place: path for place, path in whole.items() if place.run == "s2"}
    assert chains_in(made / "s2") == one
    assert chains_in(made / "s2/k=4") == one
    control = {place: path for place, path in one.items() if place.chain == "k=4/random"}
    assert chains_in(made / "s2/k=4/random") == control
    assert chains_in(made, chains=["*/random"]).keys() == {
        place for place in whole if place.chain == "k=4/random"
    }
    found = tickets(made / "s2/k=4/random")
    assert found["control"].values.tolist() == ["random"]
    assert_allclose(found["pruning_distance"].values, [[[np.nan, np.nan, np.sqrt(10)]]])


def test_a_chain_without_its_dense_network_has_the_rest(made):
    shutil.rmtree(made / "s1/level-00")
    found = tickets(made / "s1")
    assert found["run"].values.tolist() == ["s1"]
    assert_array_equal(found["ended"].sel(level=0), "missing")
    assert np.isnan(found["pruning_distance"]).all()
    assert_allclose(found["density"].sel(chain="k=4")[0], [np.nan, 0.8, 0.5])
    assert_allclose(found["order_distance"].sel(chain="k=4", level=2), 4 * np.sqrt(10))


# Folders that were trained ------------------------------------------------------------------------


def run(name, seed):
    inputs = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = Batches(inputs, inputs.flatten(1)[:, :3].argmax(1), batch_size=16)
    return Run(
        name=name, make_model=partial(models.mlp, 16, (12, 9), 3), data=data, test=data, epochs=2,
        batch_size=16, lr=0.1, seeds=Seeds.all(seed), checkpoints=(At([0, 2]),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds, two rewinding steps, three levels; controls, copies and perturbations of one."""
    folder = tmp_path_factory.mktemp("tickets")
    runs = [run(f"set/seed-{seed}", seed) for seed in (1, 2)]
    chains = [Chain(step=2), Chain(step=0, share=0.3)]
    found = iterative_pruning(runs, chains, folder, levels=3, **QUIET)
    controls, arms = [], {}
    for name, done in found.items():
        if name.endswith("k=2"):
            last, seed = done[3].run, name.partition("/k")[0]
            controls += [randomly_pruned(last), randomly_pruned(done[2].run), reinitialised(last)]
            points = [rewinding_point(folder / f"{seed}/level-00", step) for step in (2, 0)]
            every = perturbations(*points, points[1], done[3].mask, scales=(1.0, 2.0))
            states = {arm: every[arm] for arm in ARMS}
            for key, one in zip(states, perturbed_runs(last, states), strict=True):
                arms.setdefault(key, []).append(one)
            controls += children(last, 2, folder, seeds=(7, 8, 9), optimiser="reset")
    controls += [one for own in arms.values() for one in own]
    train_masked(controls, folder, **QUIET)
    return folder, found, arms


@pytest.fixture(scope="module")
def report(trained):
    return tickets(trained[0])


def test_a_trained_chain_is_what_its_levels_are(trained, report):
    folder, found, _ = trained
    assert report["run"].values.tolist() == ["seed-1", "seed-2"]
    assert report["chain"].values[:4].tolist() == [
        "k=0", "k=2", "k=2/fresh", "k=2/initial-signs",
    ]  # fmt: skip
    for name, done in found.items():
        seed, chain = name.split("/")[1:]
        dense = last_checkpoint(done[0].end)
        for one in done:
            row = report.sel(run=seed, chain=chain, level=one.number)
            assert float(row["density"]) == density(one.mask)
            record = results.load(folder / one.run.name / "record.h5")
            assert float(row["test_error"]) == record["test_error"].values[-1]
            if one.number:
                found_here = stability(dense, last_checkpoint(one.end), one.mask)
                assert_allclose([row["pruning_distance"], row["pruning_angle"]], found_here)
    random = report.sel(chain="k=2/random-layer-1")
    assert random["ended"].sel(run="seed-1").values.tolist() == [
        "finished", "missing", "finished", "finished",
    ]  # fmt: skip
    assert_array_equal(
        random["layer_density"].isel(level=[2, 3]),
        report["layer_density"].sel(chain="k=2").isel(level=[2, 3]),
    )
    assert np.isnan(random["effective_std"]).all()
    assert (report["order_distance"].sel(chain="k=2", level=3) > 0).all()
    assert np.isnan(report["order_distance"].sel(chain="k=0")).all()


def test_accuracy_against_effective_std_is_that_of_its_own_function(trained, report):
    folder, _, arms = trained
    own = against_effective_std(arms, folder)
    changes = report["effective_std"].sel(level=3)
    for arm in arms:
        assert_allclose(changes.sel(chain=f"k=2/{arm}"), own["effective_std"].sel(arm=arm))
    few = tickets(folder, chains=["k=2", *(f"k=2/{arm}" for arm in arms)])
    one = few.sel(chain="k=2", level=3)
    assert_allclose(one["correlation"], own["correlation"], rtol=1e-9)
    assert_allclose(one["p_value"], own["p_value"], rtol=1e-9)
    assert np.isnan(few["correlation"].where(few["control"] != "")).all()
    assert np.isnan(few["correlation"].sel(level=2)).all()


def test_the_chain_itself_is_a_point_unless_a_control_repeats_it(trained, report):
    few = tickets(trained[0], chains=["k=2", "k=2/fresh", "k=2/noise-*"])
    every = ["reinitialised-1", *ARMS]
    for one, points in ((few, ["", "fresh", "noise-1", "noise-2"]), (report, every)):
        one = one.sel(level=3)
        there = (one["of"] == "k=2") & one["control"].isin(points)
        chosen = one.sel(chain=there.values)[["effective_std", "test_error"]].mean("run")
        expected = stats.pearsonr(chosen["effective_std"], 1 - chosen["test_error"])
        own = one.sel(chain="k=2")
        assert_allclose([own["correlation"], own["p_value"]], expected, rtol=1e-9)


def test_a_report_is_a_file(trained, tmp_path):
    report = tickets(trained[0], chains=["k=?"])
    back = results.load(results.save(report, tmp_path / "l.h5"))
    for name in report.variables:
        assert_array_equal(back[name], report[name])


# Bad input ----------------------------------------------------------------------------------------


def test_folders_without_chains_say_what_was_looked_for(made, tmp_path):
    (tmp_path / "plain/run-1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"plain holds no chain: .* level-01, .* found run-1"):
        tickets([made / "s1", tmp_path / "plain"])
    with pytest.raises(ValueError, match="found no folders"):
        tickets(tmp_path / "plain/run-1")
    with pytest.raises(ValueError, match="there is no such folder"):
        tickets(tmp_path / "nowhere")
    shutil.rmtree(made / "s1/k=4")
    with pytest.raises(ValueError, match=r"s1 holds no chain: .* found level-00"):
        tickets(made / "s1")
    with pytest.raises(ValueError, match=r"no chain matches k=5 or lr; there are k=4, k=4/random"):
        tickets(made / "s2", chains=["k=5", "lr"])


def test_a_missing_level_is_that_of_the_chain(made):
    shutil.rmtree(made / "s2/k=4/level-01")
    with pytest.raises(ValueError, match=r"s2/k=4 has the levels 2 and lacks 1, from which"):
        tickets(made)


def test_runs_without_masks_are_named(made):
    (made / "s1/k=4/level-01/mask.npz").unlink()
    with pytest.raises(ValueError, match=r"s1/k=4/level-01 holds a run but no mask\.npz"):
        tickets(made)


@pytest.mark.parametrize("kept", [0, 1, 100, 300, -1])
def test_damaged_masks_are_named(made, kept):
    path = made / "s1/k=4/level-02/mask.npz"
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole) if kept < 0 else whole[:kept])
    with pytest.raises(ValueError, match=r"level-02/mask\.npz is damaged \(\w+\)\. Copy it again"):
        tickets(made)


def test_of_chains_that_have_not_begun_there_is_no_report(made):
    (made / "s1/k=8/level-01").mkdir(parents=True)
    assert tickets(made)["ended"].sel(run="s1", chain="k=8", level=1) == "missing"
    with pytest.raises(ValueError, match=r"no level of k=8 has begun: none has a mask\.npz"):
        tickets(made, chains=["k=8"])


def test_masks_of_other_shapes_are_named(made):
    def remade(path, mask):
        (path / "mask.npz").unlink()
        save_mask(mask, path)

    bad = made / "s2/k=4/level-02"
    remade(bad, {"a": mask_of(3, 3)["a"], "c": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"s2/k=4/level-02: .* another architecture.* c \(2, 2\)"):
        tickets(made)
    remade(bad, {"a": torch.ones(3, 5, dtype=torch.bool)})
    says = r"masks of .*s1/k=4/level-01 and .*s2/k=4/level-02 .* a is \(2, 5\) and \(3, 5\)"
    with pytest.raises(ValueError, match=says):
        tickets(made)


def test_a_chain_may_have_begun_with_another_number_of_runs(trained):
    folder, found, _ = trained
    short = replace(found["set/seed-1/k=2"][0].run, name="set/seed-3/level-00", seeds=Seeds.all(3))
    iterative_pruning(replace(short, name="set/seed-3"), Chain(step=2), folder, levels=1, **QUIET)
    report = tickets(folder, chains=["k=?"])
    own = report["ended"].sel(run="seed-3")
    assert own.sel(chain="k=0").values.tolist() == ["finished", *["missing"] * 3]
    assert own.sel(chain="k=2").values.tolist() == [*["finished"] * 2, *["missing"] * 2]
    shutil.rmtree(folder / "set/seed-3")
