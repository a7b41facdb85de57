import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr, spearmanr

from landscape.maths import kernels
from landscape.maths.kernels import median_squared_distance, rbf_hsic, rsa
from landscape.maths.similarity import cka


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def related(n=25, d=6, e=9):
    base = normal(n, 4)
    return base @ normal(4, d, seed=1) + 1, base @ normal(4, e, seed=2) + normal(n, e, seed=3)


COMPARISONS = {
    "pearson": lambda a, b: pearsonr(a, b)[0],
    "spearman": lambda a, b: spearmanr(a, b)[0],
    "cosine": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
}
METRICS = {
    "correlation": "correlation",
    "euclidean": "euclidean",
    "squared euclidean": "sqeuclidean",
}


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("dissimilarity", METRICS)
def test_rsa_is_that_of_scipy(dissimilarity, comparison):
    x, y = related()
    expected = COMPARISONS[comparison](*(pdist(one, METRICS[dissimilarity]) for one in (x, y)))
    found = rsa(x, torch.tensor(y), dissimilarity=dissimilarity, comparison=comparison)
    assert_allclose(float(found), expected, rtol=1e-10)
    assert (found.num, found.dissimilarity, found.comparison) == (25, dissimilarity, comparison)


def test_ties_have_mean_ranks():
    x, y = (np.round(one) for one in related())
    distances = [pdist(one, "sqeuclidean") for one in (x, y)]
    assert len(np.unique(distances[0])) < len(distances[0])
    found = rsa(x, y, dissimilarity="squared euclidean")
    assert_allclose(float(found), spearmanr(*distances)[0], rtol=1e-10)


def test_euclidean_dissimilarities_see_no_shift_and_no_rotation():
    x, y = related()
    turn = np.linalg.qr(normal(6, 6))[0]
    for kind in ("euclidean", "squared euclidean"):
        options = {"dissimilarity": kind, "comparison": "pearson"}
        value = float(rsa(x, y, **options))
        assert_allclose(float(rsa(x @ turn * 1e-5, y, **options)), value, rtol=1e-9)
        assert_allclose(float(rsa(x + 1e6, y, **options)), value, rtol=1e-7)


def test_biased_linear_cka_is_the_whitened_cosine_of_squared_distances():
    """Diedrichsen et al. 2020: distances whitened by their covariance for independent noise."""
    x, y = related(8, 3, 5)
    pairs = list(itertools.combinations(range(8), 2))
    contrasts = np.array([np.eye(8)[i] - np.eye(8)[j] for i, j in pairs])
    covariance = (contrasts @ contrasts.T) ** 2
    a, b = (pdist(one, "sqeuclidean") for one in (x, y))
    whitened = np.linalg.solve(covariance, np.stack([a, b], 1))
    cosine = a @ whitened[:, 1] / np.sqrt((a @ whitened[:, 0]) * (b @ whitened[:, 1]))
    assert_allclose(float(cka(x, y, debiased=False)), cosine, rtol=1e-10)


def test_the_median_counts_the_zero_distances_of_examples_to_themselves(monkeypatch):
    monkeypatch.setattr(kernels, "ENTRIES", 15)  # several blocks
    for n in (4, 9, 20, 21):
        x = normal(n, 3)
        squares = ((x[:, None] - x) ** 2).sum(2)
        assert_allclose(median_squared_distance(torch.tensor(x)), np.median(squares), rtol=1e-12)


def test_order_statistics_are_those_of_sorting():
    values = np.concatenate([10.0 ** normal(300), [0, 0, 0, 1, 1, 5e-324, 1e308]])
    blocks = [torch.tensor(part) for part in np.array_split(values, 4)]
    found = [kernels._order_statistic(lambda: iter(blocks), k) for k in range(len(values))]
    assert_array_equal(found, np.sort(values))


@pytest.mark.parametrize("debiased", [True, False])
def test_blocks_change_nothing(monkeypatch, debiased):
    x, y = related()
    whole = rbf_hsic(x, y, bandwidth=0.7, debiased=debiased)
    monkeypatch.setattr(kernels, "ENTRIES", 60)
    parts = rbf_hsic(x, y, bandwidth=0.7, debiased=debiased)
    for name in ("cross", "x", "y", "trace_x", "trace_y"):
        assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-11)


def test_the_rbf_kernel_sees_no_shift_scale_or_rotation():
    x, y = related()
    turn = np.linalg.qr(normal(6, 6))[0]
    for debiased in (True, False):
        options = {"kernel": "rbf", "debiased": debiased}
        value = float(cka(x, y, **options))
        assert_allclose(float(cka(x @ turn * 1e-30, y, **options)), value, rtol=1e-9)
        assert_allclose(float(cka(x + 1e6, y, **options)), value, rtol=1e-7)
        assert_allclose(float(cka(y, x, **options)), value, rtol=1e-12)
        assert float(cka(x, x.copy(), **options)) == 1.0


def test_a_wide_rbf_kernel_is_the_linear_one():
    """Kornblith et al. 2019, section 4: the error falls with the square of the width."""
    x, y = related()
    linear = float(cka(x, y))
    errors = [
        abs(float(cka(x, y, kernel="rbf", bandwidth=width)) - linear) for width in (20, 40, 80)
    ]
    assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.02)


def test_what_has_no_dissimilarities_is_nan_with_a_reason():
    x, _ = related()
    with_dead = np.concatenate([x[:-1], np.full((1, 6), 3.0)])
    found = rsa(x, with_dead)
    assert np.isnan(float(found))
    assert "y has examples in which all neurons are the same" in found.reason
    found = rsa(np.eye(25), x, dissimilarity="euclidean", comparison="pearson")
    assert np.isnan(float(found))
    assert found.reason == "all dissimilarities of x are the same"
    found = cka(np.repeat([[0.0], [1]], [20, 5], axis=0), x, kernel="rbf")
    assert np.isnan(float(found))
    assert found.reason == "at least half of the distances of x are zero: no bandwidth"


def test_options_that_do_not_exist():
    x, y = related()
    with pytest.raises(ValueError, match="dissimilarity must be 'correlation', .* got 'cosine'"):
        rsa(x, y, dissimilarity="cosine")
    with pytest.raises(ValueError, match="comparison must be 'spearman', .* got 'kendall'"):
        rsa(x, y, comparison="kendall")
    with pytest.raises(ValueError, match="expected at least 3 examples, got 2"):
        rsa(x[:2], y[:2])
    with pytest.raises(ValueError, match="same order, got 25 and 24 rows"):
        rsa(x, y[1:])
    with pytest.raises(ValueError, match="same order, got 25 and 24 rows"):
        cka(x, y[1:], kernel="rbf")
