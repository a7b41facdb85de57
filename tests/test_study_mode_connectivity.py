"""Mode connectivity: verdicts and derived numbers of the study on made-up results."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose
from scipy import stats

import mode_connectivity as study
from landscape import models
from landscape.datasets import Batches
from shared import Settings

OF = ["start", "end", "min", "max", "mean", "arc"]


def paths(line, curve):
    """Results of paths whose largest train errors are given for each pair; test errors are 0."""
    errors = np.zeros((1, len(line), len(study.PATHS), 2, len(OF)))
    errors[0, :, 0, 0, OF.index("max")] = line
    errors[0, :, 1, 0, OF.index("max")] = curve
    dims = ("problem", "pair", "path", "split", "of")
    coords = {"problem": ["a"], "path": list(study.PATHS), "split": ["train", "test"], "of": OF}
    return xr.Dataset({"error_summary": (dims, errors)}, coords)


def barriers(line, left, wider=("", ""), num_pairs=None):
    """Results of barriers: line (problem, pair) and left (problem, pair, way)."""
    line = np.asarray(line, float)
    variables = {
        "line": (("problem", "pair"), line),
        "left": (("problem", "pair", "way"), np.asarray(left, float)),
        "wider": (("problem", "pair"), [[name] * line.shape[1] for name in wider[: len(line)]]),
        "num_pairs": ("problem", num_pairs or [line.shape[1]] * len(line)),
    }
    return xr.Dataset(variables, {"problem": list("ab"[: len(line)]), "way": list(study.WAYS)})


def test_d1b_asks_for_five_points_of_each_pair():
    claim = study.curve_finder(paths([0.16, 0.30], [0.10, 0.05]), "a")
    assert claim.verdict == "shows"
    assert_allclose(claim.mean, (6 + 25) / 2)
    claim = study.curve_finder(paths([0.149, 0.90], [0.10, 0.05]), "a")
    assert claim.verdict == "does not show"  # 4.9 points, though the mean is 45
    assert_allclose(claim.mean, (4.9 + 85) / 2)
    few = np.arange(20)  # of 900 images are wrong on the curve, and 45 or 46 more on the line
    assert study.curve_finder(paths((few + 45 + few % 2) / 900, few / 900), "a").verdict == "shows"


def test_worst_error_is_counted_from_the_mean_of_the_ends():
    result = paths([0.5, 0.5], [0.1, 0.1])
    own = result["error_summary"].loc[{"split": "test", "path": "polychain"}]
    own.loc[{"of": "start"}], own.loc[{"of": "end"}], own.loc[{"of": "max"}] = 0.02, 0.04, 0.05
    assert_allclose(study.above_ends(result, "a", "polychain"), [2.0, 2.0])


def test_shares_of_the_barrier_are_those_of_each_pair():
    result = barriers([[2.0, 0.5], [4.0, np.nan]], [
        [[1.0, 0.5, 0.0], [1.0, 0.25, 0.05]], [[1.0, 1.0, 0.4], [np.nan] * 3],
    ], num_pairs=[2, 1])  # fmt: skip
    assert_allclose(study.removed(result, "a", "aligned"), [50, -100])
    assert_allclose(study.removed(result, "a", "aligned, REPAIR"), [75, 50])
    assert_allclose(study.removed(result, "a", "Bezier"), [100, 90])
    assert_allclose(study.removed(result, "b", "Bezier"), [90])


def test_a_line_without_a_barrier_leaves_nothing_to_remove():
    result = barriers([[0.0, 1.0]], [[[0.3, 0.3, 0.3], [0.5, 0.5, 0.5]]])
    assert_allclose(study.removed(result, "a", "aligned"), [0, 50])


def test_the_largest_rise_is_relative_to_the_previous_point():
    losses = [[[2.0, 1.0, 1.1, 0.5], [2.0, 1.0, 0.9, 0.81]]]
    result = xr.Dataset({"loss": (("problem", "pair", "t"), losses)}, {"problem": ["a"]})
    assert_allclose(study.largest_rises(result, "a"), [10, -10])


def test_pairs_that_share_networks_are_no_independent_values():
    own = np.random.default_rng(0).uniform(size=8)
    raw = own[:, None] + own
    square = np.stack([raw, 0.25 * raw])
    result = xr.Dataset({"loss": (("alignment", "run", "other_run"), square)})
    both, aligned, share = study.means_of(result)
    values = raw[np.triu_indices(8, 1)]
    assert_allclose([both.mean, aligned.mean], [values.mean(), 0.25 * values.mean()])
    assert_allclose([share.mean, share.low, share.high], 75)
    naive = stats.t.ppf(0.975, 27) * stats.sem(values)
    assert both.high - both.low > 1.5 * 2 * naive
    assert both.low < both.mean < both.high
    assert both.num == 8


def test_width_compares_the_same_pairs():
    result = barriers([[1.0, 1.0]] * 2, [
        [[1.0, 0.6, 0.0], [1.0, 0.5, 0.0]], [[1.0, 0.3, 0.0], [1.0, 0.1, 0.0]],
    ], wider=("b", ""))  # fmt: skip
    flat = np.ones((1, 2, 3))
    claims = study.judge({
        "paths": paths([0.1, 0.2], [0.0, 0.0]), "barriers": result,
        "initial": xr.Dataset({"loss": (("problem", "pair", "t"), flat)}, {"problem": ["a"]}),
        "matrix": xr.Dataset({"loss": (("alignment", "run", "other_run"), np.ones((2, 3, 3)))}),
    })  # fmt: skip
    (claim,) = (one for one in claims if one.criterion == "alignment and width")
    assert claim.quantity.startswith("b - a")
    assert_allclose(claim.mean, 35)
    assert_allclose(claim.p, stats.ttest_rel([70, 90], [40, 50]).pvalue)


def test_problems_with_fewer_pairs_are_padded():
    few = replace(study.small()[0], name="a", num_pairs=1)
    many = replace(few, name="b", num_pairs=3)
    found = study.over_pairs(
        Settings("s", first_seed=7), [few, many],
        lambda settings, problem, seed: xr.Dataset({"x": ((), float(seed))}),
    )  # fmt: skip
    assert found["num_pairs"].values.tolist() == [1, 3]
    nan = np.nan
    assert_allclose(found["x"].transpose("problem", "pair"), [[7, nan, nan], [7, 8, 9]])


def test_pairs_share_no_network_with_each_other_or_another_seed_set():
    problem = study.small(tiny=True)[0]
    inits = [
        run.seeds.init for seed in (*range(1, 9), *range(101, 109)) for run in problem.pair(seed)
    ]
    assert len(set(inits)) == len(inits) == 32
    one, other = problem.pair(3)
    assert torch.equal(one.data.inputs, other.data.inputs)
    assert not torch.equal(one.data.inputs, problem.pair(4)[0].data.inputs)


def test_images_are_another_draw_for_each_seed_and_split():
    (train, test), (other, _) = (study.synthetic(draw, 40) for draw in (1, 2))
    assert train.num_examples == test.num_examples == 40
    assert not torch.equal(train.inputs, other.inputs)
    assert not torch.equal(train.inputs, test.inputs)
    assert train.transform == test.transform


def test_wider_networks_differ_in_width_alone():
    problems = {one.name: one for one in study.small()}
    for problem in problems.values():
        if problem.wider:
            wide = problems[problem.wider]
            assert (wide.training, wide.curve, wide.data) == (
                problem.training, problem.curve, problem.data,
            )  # fmt: skip
            weights = [one.make_model(seed=0).state_dict() for one in (problem, wide)]
            assert weights[0].keys() == weights[1].keys()
            first = next(iter(weights[0]))
            assert len(weights[1][first]) == 4 * len(weights[0][first])


def test_epochs_are_those_of_networks_and_curves():
    problem = study.Problem(
        "a", partial(models.mlp, 4, (3,)), tiny_data, 2, {"epochs": 3}, {"epochs": 10}, 5
    )
    along = replace(problem, neb={"epochs": 2, "cycles": 4})
    both = 10 + (2 * 10 + 5 * 2 * 4)
    assert study.total_epochs(problem.pair(1), [problem, along]) == 2 * 3 + both


def tiny_data(draw):
    data = Batches(torch.zeros(200, 4), torch.arange(200) % 3)
    return data, data


def test_augmented_batches_are_the_images_moved_and_flipped():
    images = torch.zeros(10, 1, 12, 12)
    images[:, 0, 6, 6] = torch.arange(1.0, 11.0)  # a bright pixel, which stays within the frame
    batches = study.Augmented(Batches(images, torch.arange(10)), 4)
    assert len(batches) == 3
    torch.manual_seed(0)
    first = list(batches)
    torch.manual_seed(0)
    again = list(batches)
    for (inputs, targets), (same, _) in zip(first, again, strict=True):
        assert torch.equal(inputs, same)
        assert_allclose(inputs.amax((1, 2, 3)), targets + 1.0)
        rows, columns = (inputs[:, 0].amax(over).argmax(1) for over in (2, 1))
        assert ((rows - 6).abs() <= 4).all()
        assert ((columns - 5.5).abs() <= 4.5).all()
    assert sorted(torch.cat([targets for _, targets in first]).tolist()) == list(range(10))
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(first, list(batches), strict=True))


def test_the_full_scale_needs_images():
    with pytest.raises(ValueError, match="needs CIFAR-10"):
        study.full(Settings("s", "full"))
