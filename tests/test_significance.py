import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from landscape.maths.accumulator import Accumulator
from landscape.maths.overlap import overlap, rows
from landscape.maths.significance import (
    Null,
    jackknife,
    jackknife_estimate,
    jackknife_moments,
    permutation_null,
)


def mean_cca(found):
    return float(torch.linalg.svdvals(found.whitened).mean())


def biased_cka(found):
    sides = found.x.squared_gram * found.y.squared_gram
    return float(found.squared_cross / sides.sqrt())


def debiased_cka(found):
    n = found.num

    def hsic(cross, diagonal, x, y):
        traces = x.values.square().sum() * y.values.square().sum()
        return float(cross - n / (n - 2) * diagonal + traces / ((n - 1) * (n - 2)))

    x, y = (hsic(s.squared_gram, s.squared_rows, s, s) for s in (found.x, found.y))
    return hsic(found.squared_cross, found.squared_rows, found.x, found.y) / (x * y) ** 0.5


MEASURES = [mean_cca, biased_cka, debiased_cka]


def pair(n=90, widths=(4, 6), *, shared=0.0, seed=0, rows_per_image=1):
    """Two sets with noise of each image and each row, and causes that both share."""
    rng, weights = np.random.default_rng(seed), np.random.default_rng(7)
    causes = rng.normal(size=(n // rows_per_image, 3))
    found = []
    for width in widths:
        of_image = shared * causes @ weights.normal(size=(3, width)) + rng.normal(
            size=(n // rows_per_image, width)
        )
        noise = 0.3 if rows_per_image > 1 else 0.0
        repeated = of_image.repeat(rows_per_image, axis=0)
        found.append(repeated + noise * rng.normal(size=(n, width)))
    return found


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("groups", [None, np.arange(90) // 3])
def test_draws_are_the_measure_of_rows_in_another_order(measure, groups):
    x, y = pair(shared=1.0)
    null = permutation_null(x, y, measure, groups=groups, num=5, seed=3)
    assert null.value == measure(overlap(rows(x), rows(y)))
    generator = np.random.default_rng(3)
    blocks = np.arange(90).reshape(-1, 1 if groups is None else 3)
    for draw in null.draws:
        order = blocks[generator.permutation(len(blocks))].ravel()
        assert_allclose(draw, measure(overlap(rows(x), rows(y[order]))), rtol=1e-10)


def test_rows_of_an_image_need_not_follow_each_other():
    x, y = pair(rows_per_image=3)
    images = np.arange(90) // 3
    apart = np.arange(90).reshape(30, 3).T.ravel()
    expected = permutation_null(x, y, mean_cca, groups=images, num=9)
    found = permutation_null(x[apart], y[apart], mean_cca, groups=images[apart], num=9)
    assert_allclose(found.draws, expected.draws, rtol=1e-10)


def rate(measure, *, by_image, rows_per_image=1, num=400):
    """How often 5 % are reached by data that share nothing."""
    hits = 0
    for seed in range(num):
        x, y = pair(60, (3, 4), seed=seed, rows_per_image=rows_per_image)
        groups = np.arange(60) // rows_per_image if by_image else None
        null = permutation_null(x, y, measure, groups=groups, num=19, seed=seed)
        hits += null.p_value <= 0.05
    return hits


@pytest.mark.parametrize("measure", [mean_cca, debiased_cka])
@pytest.mark.parametrize("rows_per_image", [1, 4])
def test_false_positives_are_as_rare_as_is_said(measure, rows_per_image):
    hits = rate(measure, by_image=True, rows_per_image=rows_per_image, num=200)
    assert stats.binomtest(hits, 200, 0.05).pvalue > 0.001


def test_rows_of_an_image_are_no_examples_of_their_own():
    assert rate(mean_cca, by_image=False, rows_per_image=4, num=50) > 25


def test_what_is_shared_is_found_and_scored_from_chance_to_one():
    x, y = pair(shared=2.0)
    null = permutation_null(x, y, mean_cca, num=99)
    assert null.p_value == 0.01
    assert null.mean < 0.4 < null.value
    assert_allclose(null.score, (null.value - null.mean) / (1 - null.mean))
    assert_allclose(permutation_null(x, x @ np.diag([1, 2, 3, 4]), mean_cca, num=9).score, 1)
    assert_array_equal(permutation_null(x, y, mean_cca, num=99).draws, null.draws)


def test_chance_is_that_of_independent_data():
    """The mean squared correlation of independent data is max(d1, d2) / (n - 1)."""

    def mean_square(found):
        return float(found.whitened.square().sum()) / min(found.whitened.shape)

    null = permutation_null(*pair(400, (5, 20)), mean_square, num=100)
    assert abs(null.mean - 20 / 399) < 5 * null.deviation / 10
    assert_allclose(null.deviation, null.draws.std(ddof=1))


def test_p_values_count_the_given_pairing():
    assert Null(2.0, np.array([1.0, 2.0, 3.0])).p_value == 0.75
    assert Null(5.0, np.array([1.0, 2.0, 3.0])).p_value == 0.25


def test_where_chance_alone_is_one_there_is_no_score():
    assert np.isnan(Null(1.0, np.ones(5)).score)
    assert Null(0.5, np.array([0.0, 0.0])).score == 0.5


def test_leaving_out_single_examples_gives_the_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=(30, 2))
    left_out = (values.sum(0) - values) / 29
    found = jackknife_estimate(values.mean(0), left_out, [1] * 30, level=0.9)
    assert_allclose(found.stderr, values.std(0, ddof=1) / 30**0.5)
    for k in range(2):
        expected = stats.ttest_1samp(values[:, k], 0).confidence_interval(0.9)
        assert_allclose([found.low[k], found.high[k]], expected)


def test_blocks_of_unequal_sizes_have_the_variance_of_a_mean_on_average():
    rng, sizes = np.random.default_rng(1), np.array([5, 9, 2, 8, 6, 4])
    squares = []
    for _ in range(4000):
        sums = rng.normal(size=6) * np.sqrt(sizes)
        left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
        found = jackknife_estimate(np.array(sums.sum() / sizes.sum()), left_out, sizes)
        squares.append(float(found.stderr) ** 2)
    assert_allclose(np.mean(squares), 1 / sizes.sum(), rtol=0.06)


@pytest.mark.parametrize("measure", MEASURES)
def test_moments_and_rows_leave_out_the_same(measure):
    x, y = pair(shared=1.0, n=96, rows_per_image=4)
    accumulator = Accumulator(num_blocks=5, rows_per_image=4)
    accumulator.add([torch.from_numpy(x), torch.from_numpy(y)])

    def statistic(moments):
        return [[measure(moments.overlap(i, j)) for j in range(2)] for i in range(2)]

    found = jackknife_moments(accumulator.finish(), statistic)
    expected = jackknife(x, y, measure, num_blocks=5, groups=np.arange(96) // 4)
    tensors = [torch.from_numpy(block) for block in (x, y)]
    same = jackknife(*tensors, measure, num_blocks=5, groups=np.arange(96) // 4)
    assert_array_equal(same.stderr, expected.stderr)
    assert found.stderr.shape == (2, 2)
    for name in ("value", "stderr", "low", "high"):
        assert_allclose(getattr(found, name)[0, 1], getattr(expected, name), rtol=1e-9)
    assert_allclose(found.stderr.diagonal(), 0, atol=1e-12)


def simulated(measure, *, num, n=200, rows_per_image=1, by_image=True):
    values, lows, highs = [], [], []
    for seed in range(num):
        x, y = pair(n, (6, 6), shared=0.6, seed=seed, rows_per_image=rows_per_image)
        blocks = {"num_blocks": 15, "rows_per_image": rows_per_image if by_image else 1}
        accumulator = Accumulator(**blocks)
        accumulator.add([torch.from_numpy(x), torch.from_numpy(y)])
        moments = accumulator.finish()
        found = jackknife_moments(moments, lambda moments: measure(moments.overlap(0, 1)))
        values.append(found.value)
        lows.append(found.low)
        highs.append(found.high)
    return np.array(values), np.array(lows), np.array(highs)


@pytest.mark.parametrize(
    ("measure", "least", "most"), [(debiased_cka, 0.9, 0.99), (mean_cca, 0.95, 1.0)]
)
def test_intervals_hold_the_expected_value_as_often_as_is_said(measure, least, most):
    values, lows, highs = simulated(measure, num=200)
    held = (lows <= values.mean()) & (values.mean() <= highs)
    assert least <= held.mean() <= most


def test_leaving_out_rows_of_images_is_too_sure():
    held = []
    for by_image in (True, False):
        values, lows, highs = simulated(
            debiased_cka, num=100, n=900, rows_per_image=9, by_image=by_image
        )
        held.append(((lows <= values.mean()) & (values.mean() <= highs)).mean())
    assert held[0] > 0.88
    assert held[1] < 0.75


def test_resampling_with_replacement_misses_the_value_itself():
    """Copies of an example match each other: why there is no bootstrap here."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 200, 20))

    def mean_square(found):
        return float(found.whitened.square().mean(1).sum())

    for measure in (mean_square, debiased_cka):
        value = measure(overlap(rows(x), rows(y)))
        drawn = rng.integers(200, size=(200, 200))
        resampled = [measure(overlap(rows(x[order]), rows(y[order]))) for order in drawn]
        assert np.quantile(resampled, 0.025) > value
        found = jackknife(x, y, measure)
        assert found.low < value < found.high


def test_what_has_no_answer_is_refused():
    x, y = pair()
    with pytest.raises(ValueError, match="at least 2 permutations, got 1"):
        permutation_null(x, y, mean_cca, num=1)
    with pytest.raises(ValueError, match="as many rows each, got 23 with 2 to 4 rows"):
        permutation_null(x, y, mean_cca, groups=np.arange(90) // 4)
    with pytest.raises(ValueError, match="at least two with as many rows each, got 1"):
        permutation_null(x, y, mean_cca, groups=np.zeros(90))
    with pytest.raises(ValueError, match=r"each of the 90 rows, got \(89,\)"):
        permutation_null(x, y, mean_cca, groups=np.arange(89))
    with pytest.raises(ValueError, match="same examples in the same order, got 90 and 89"):
        permutation_null(x, y[:89], mean_cca)
    with pytest.raises(ValueError, match=r"2 to the number of images \(9\), got 20"):
        jackknife(x, y, mean_cca, groups=np.arange(90) // 10)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        jackknife(x, y, mean_cca, level=95)
    accumulator = Accumulator()
    accumulator.add([torch.from_numpy(x)])
    with pytest.raises(ValueError, match="no blocks to leave out: set num_blocks"):
        jackknife_moments(accumulator.finish(), lambda moments: moments.num)
