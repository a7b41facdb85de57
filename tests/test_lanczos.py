import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from landscape.maths.lanczos import density, smooth, spectral_sum, top_eigenvalues
from landscape.maths.traces import hutchinson

GENERATOR = torch.Generator().manual_seed(1)
BULK = 0.3 * torch.randn(195, generator=GENERATOR, dtype=torch.float64)
VALUES = torch.cat([torch.tensor([10.0, 7, -6, 3, 2], dtype=torch.float64), BULK])
FALLING = VALUES.sort(descending=True).values.numpy()
WANTED = {
    "largest": FALLING[:4],
    "magnitude": np.array([10.0, 7, -6, 3]),
    "both ends": np.concatenate([FALLING[:4], FALLING[::-1][:4]]),
}


def symmetric(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(normal)[0]
    return vectors * torch.as_tensor(values, dtype=torch.float64) @ vectors.T


MATRIX = symmetric(VALUES)


@pytest.mark.parametrize("memory", [2**30, 8 * 200 * 26])
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("which", WANTED)
def test_eigenvalues_are_those_of_the_dense_matrix(which, block, memory):
    found = top_eigenvalues(
        MATRIX.matmul, 200, 4, which=which, block=block, memory=memory, max_products=800
    )
    assert found.converged.all()
    assert_allclose(found.values, WANTED[which], rtol=1e-6)
    if which == "both ends" or memory == 2**30:
        assert (found.num_restarts > 0) == (memory < 2**30)
    residuals = MATRIX @ found.vectors - found.vectors * torch.as_tensor(found.values)
    assert_allclose(residuals.norm(dim=0), found.residuals, rtol=1e-3, atol=1e-13)
    assert (found.residuals <= 1e-4 * abs(found.values)).all()
    gram = (found.vectors.T @ found.vectors).numpy()
    assert_allclose(gram, np.eye(len(found.values)), atol=1e-12)
    assert found.asymmetry < 1e-14


def test_a_residual_bounds_the_error_and_its_square_is_the_error():
    for tolerance in (1e-1, 1e-2, 1e-3):
        found = top_eigenvalues(MATRIX.matmul, 200, 2, tolerance=tolerance)
        errors = abs(found.values - WANTED["largest"][:2])
        assert (errors <= found.residuals).all()
        assert (errors <= 1.5 * found.residuals**2 / 3).all()  # the gap is 3


def test_products_are_few_and_counted():
    calls = []

    def product(x):
        calls.append(x.shape[1])
        return MATRIX @ x

    found = top_eigenvalues(product, 200, 3, which="magnitude")
    assert sum(calls) == found.num_products <= 20
    again = top_eigenvalues(product, 200, 3, which="magnitude")
    assert_allclose(again.values, found.values, rtol=0)
    other = top_eigenvalues(product, 200, 3, which="magnitude", seed=1)
    assert_allclose(other.values, found.values, rtol=1e-6)
    stopped = top_eigenvalues(product, 200, 3, max_products=5)
    assert stopped.num_products == 5
    assert not stopped.converged.all()


def test_one_start_shows_a_multiple_eigenvalue_once_and_a_block_shows_it_more_often():
    values = [5.0, 5, 5, 4, 4] + [1 / k for k in range(1, 46)]
    matrix = symmetric(values)
    single = top_eigenvalues(matrix.matmul, 50, 3)
    assert_allclose(single.values, [5, 4, 1], rtol=1e-6)
    assert single.converged.all()
    double = top_eigenvalues(matrix.matmul, 50, 5, block=2)
    assert_allclose(double.values, [5, 5, 4, 4, 1], rtol=1e-6)
    triple = top_eigenvalues(matrix.matmul, 50, 5, block=3)
    assert_allclose(triple.values, [5, 5, 5, 4, 4], rtol=1e-6)


@pytest.mark.parametrize("block", [1, 2])
def test_an_exhausted_space_goes_on_with_new_vectors(block):
    """A matrix of few distinct values exhausts its Krylov spaces, which then start anew."""
    matrix = symmetric([2.0] * 3 + [1.0] * 4 + [0.0] * 13)
    found = top_eigenvalues(matrix.matmul, 20, 20, block=block)
    assert_allclose(found.values, [2.0] * 3 + [1.0] * 4 + [0.0] * 13, atol=1e-12)
    assert found.num_products == 20
    zero = top_eigenvalues(torch.zeros_like, 20, 2)
    assert_allclose(zero.values, 0)
    assert zero.converged.all()


def test_clusters_are_resolved():
    values = np.concatenate([1 + 1e-6 * np.arange(5), np.linspace(0, 0.9, 95)])
    matrix = symmetric(values)
    found = top_eigenvalues(matrix.matmul, 100, 5, tolerance=1e-9, max_products=100)
    assert_allclose(found.values, np.sort(values)[::-1][:5], rtol=1e-12)


def test_float32_products_do_not_cost_orthogonality():
    found = top_eigenvalues(lambda x: MATRIX.float() @ x.float(), 200, 4, tolerance=1e-3)
    assert_allclose(found.values, WANTED["largest"], rtol=1e-5)
    assert_allclose((found.vectors.T @ found.vectors).numpy(), np.eye(4), atol=1e-12)
    assert 1e-12 < found.asymmetry < 1e-5


def test_what_is_no_symmetric_matrix_is_refused():
    skew = MATRIX + 0.1 * torch.tril(torch.ones(200, 200, dtype=torch.float64))
    with pytest.raises(ValueError, match="the product is not symmetric"):
        top_eigenvalues(skew.matmul, 200, 2)
    with pytest.raises(ValueError, match="not finite"):
        top_eigenvalues(lambda x: x * torch.nan, 200, 2)
    with pytest.raises(ValueError, match="a matrix of 3 rows has 3 eigenvalues, got num=2"):
        top_eigenvalues(lambda x: x, 3, 2, which="both ends")
    with pytest.raises(ValueError, match="which must be one of 'largest'"):
        top_eigenvalues(lambda x: x, 3, 2, which="smallest")
    with pytest.raises(ValueError, match="got max_products=2"):
        top_eigenvalues(lambda x: x, 30, 3, max_products=2)


def test_a_quadrature_is_exact_for_polynomials():
    few = density(MATRIX.matmul, 200, num_probes=5, num_steps=4)
    assert few.num_products == 20
    assert_allclose(few.weights.sum(1), 1, rtol=1e-12)
    power, probes = torch.eye(200, dtype=torch.float64), 200**0.5
    for degree in range(8):
        exact = spectral_sum(few, lambda x, degree=degree: x**degree)
        estimate = hutchinson(power.matmul, 200, num_products=5)  # the same probes
        assert_allclose(exact.value, estimate.value, rtol=1e-10)
        assert_allclose(exact.stderr, estimate.stderr, rtol=1e-8, atol=1e-9 * probes)
        power = power @ MATRIX


def test_functions_of_the_spectrum_have_their_stated_error():
    found = density(MATRIX.matmul, 200, num_probes=40, num_steps=30)
    for function in (lambda x: x, np.square, lambda x: x**2 / (x**2 + 0.1), np.exp):
        sums = spectral_sum(found, function)
        assert abs(sums.value - function(VALUES.numpy()).sum()) < 3 * sums.stderr
    assert np.isnan(spectral_sum(density(MATRIX.matmul, 200, num_probes=1), np.abs).stderr)


def test_a_small_space_is_exhausted_and_exact():
    values = np.array([2.0] * 5 + [-1.0] * 5)
    found = density(symmetric(values).matmul, 10, num_probes=30, num_steps=80)
    assert found.num_products == 60  # two distinct values: two steps for each probe
    assert_allclose(spectral_sum(found, np.exp).value, np.exp(values).sum(), rtol=0.1)
    assert_allclose(np.unique(found.nodes.round(9)), [-1, 2])


def test_a_smoothed_density_is_the_convolved_spectrum():
    found = density(MATRIX.matmul, 200, num_probes=30, num_steps=40)
    grid = np.linspace(-2, 2, 81)
    smoothed = smooth(found, grid, width=0.2)
    kernels = np.exp(-0.5 * ((grid[:, None] - VALUES.numpy()) / 0.2) ** 2)
    exact = kernels.mean(1) / (0.2 * (2 * np.pi) ** 0.5)
    assert (abs(smoothed.density - exact) < 4 * smoothed.stderr + 1e-6).all()
    assert (smoothed.stderr < 0.03).all()


def test_densities_integrate_to_one_and_have_the_mean_and_width_they_state():
    found = density(MATRIX.matmul, 200)
    whole = smooth(found)
    assert_allclose(np.trapezoid(whole.density, whole.grid), 1, rtol=1e-6)
    mean = np.trapezoid(whole.density * whole.grid, whole.grid)
    assert_allclose(200 * mean, hutchinson(MATRIX.matmul, 200, num_products=10).value, rtol=1e-6)
    square = np.trapezoid(whole.density * whole.grid**2, whole.grid)
    expected = spectral_sum(found, np.square).value / 200 + whole.width**2
    assert_allclose(square, expected, rtol=1e-6)
    assert_allclose(whole.width, 0.01 * 16, rtol=1e-6)


def test_on_a_log_scale_both_signs_and_what_is_near_zero_make_one():
    values = np.concatenate([[1e-12] * 40, 10.0 ** np.linspace(-4, 2, 50), [-1.0] * 10])
    found = density(lambda x: torch.as_tensor(values)[:, None] * x, 100, num_steps=70)
    smoothed = smooth(found, log=True)
    positive, negative = np.trapezoid(smoothed.density, np.log10(smoothed.grid))
    assert_allclose(positive + negative + smoothed.near_zero, 1, rtol=1e-4)
    assert_allclose([positive, negative, smoothed.near_zero], [0.5, 0.1, 0.4], atol=0.02)
    peak = smoothed.grid[smoothed.density[1].argmax()]
    assert_allclose(peak, 1, rtol=0.05)
    with pytest.raises(ValueError, match="width must be positive"):
        smooth(found, width=0)
