import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

from landscape.maths.traces import hutch_plus_plus, hutchinson, signs, xtrace

METHODS = (hutchinson, hutch_plus_plus, xtrace)
RANKS = torch.arange(1, 121, dtype=torch.float64)
SPECTRA = {
    "flat": 3 - RANKS / 60,
    "fast": 0.7**RANKS,
    "few large": torch.where(RANKS <= 5, 200 / RANKS, 0.3 * torch.cos(RANKS**2)),
}


def symmetric(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(normal)[0]
    return vectors * values @ vectors.T


def repeated(method, values, num, repeats, **options):
    """Errors, stated standard errors and degrees of freedom of many estimates."""
    matrix = symmetric(values)
    traces = [
        method(matrix.matmul, len(matrix), num_products=num, seed=seed, **options)
        for seed in range(repeats)
    ]
    errors = np.array([one.value for one in traces]) - values.sum().item()
    return errors, np.array([one.stderr for one in traces]), traces


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_estimates_are_unbiased_and_their_errors_are_as_stated(method, spectrum):
    repeats = 300
    errors, stated, traces = repeated(method, SPECTRA[spectrum], 30, repeats)
    actual = np.sqrt((errors**2).mean())
    assert abs(errors.mean()) < 3.5 * actual / repeats**0.5
    assert 0.85 < np.sqrt((stated**2).mean()) / actual < 1.4
    radius = stats.t.ppf(0.975, traces[0].degrees_of_freedom) * stated
    assert 0.88 < (abs(errors) <= radius).mean() < 0.995  # 0.95 +- 0.013 if all were normal


def test_the_variance_of_hutchinson_is_the_closed_form():
    matrix = symmetric(SPECTRA["few large"])
    off = (matrix - torch.diag(matrix.diagonal())).square().sum().item()
    errors, stated, _ = repeated(hutchinson, SPECTRA["few large"], 30, 400)
    assert_allclose((errors**2).mean(), 2 / 30 * off, rtol=0.25)
    assert_allclose((stated**2).mean(), 2 / 30 * off, rtol=0.1)


def test_fast_decay_is_where_sketches_win():
    rms = {}
    for spectrum in ("fast", "few large"):
        for method in METHODS:
            errors, _, traces = repeated(method, SPECTRA[spectrum], 42, 20)
            rms[method, spectrum] = np.sqrt((errors**2).mean())
            assert {one.num_products for one in traces} == {42}
    assert rms[hutch_plus_plus, "fast"] < 0.1 * rms[hutchinson, "fast"]
    assert rms[xtrace, "fast"] < 0.2 * rms[hutch_plus_plus, "fast"]
    assert rms[hutch_plus_plus, "few large"] < 0.1 * rms[hutchinson, "few large"]
    assert rms[xtrace, "few large"] < rms[hutch_plus_plus, "few large"]


@pytest.mark.parametrize("method", [hutch_plus_plus, xtrace])
def test_a_matrix_of_low_rank_is_found_exactly(method):
    values = torch.where(RANKS <= 5, RANKS, 0.0)
    trace = method(symmetric(values).matmul, 120, num_products=24)
    assert_allclose(trace.value, 15, rtol=1e-12)
    assert trace.stderr < 1e-12
    nothing = method(torch.zeros_like, 120, num_products=24)
    assert nothing.value == nothing.stderr == 0


@pytest.mark.parametrize("method", [hutch_plus_plus, xtrace])
def test_as_many_products_as_it_takes_give_the_trace_itself(method):
    matrix = symmetric(torch.linspace(-1, 2, 9).double())
    trace = method(matrix.matmul, 9, num_products=40)
    assert_allclose(trace.value, 4.5, rtol=1e-12)
    assert trace.stderr < 1e-13


def test_what_has_no_error_has_none():
    diagonal = torch.linspace(1, 2, 50).double()
    trace = hutchinson(lambda x: diagonal[:, None] * x, 50, num_products=2)
    assert_allclose([trace.value, trace.stderr], [75, 0], atol=1e-12)
    identity = xtrace(lambda x: 3 * x, 50, num_products=10)
    assert_allclose([identity.value, identity.stderr], [150, 0], atol=1e-10)


def test_xtrace_is_the_mean_over_probes_that_are_left_out_one_by_one():
    matrix, size = symmetric(SPECTRA["few large"]), 120
    seen = []

    def product(x):
        seen.append(x)
        return matrix @ x

    trace = xtrace(product, size, num_products=12, seed=3)
    probes, values = seen[0], []
    for i in range(6):
        others = torch.cat([probes[:, :i], probes[:, i + 1 :]], 1)
        q = torch.linalg.qr(matrix @ others)[0]
        rest = probes[:, i] - q @ (q.T @ probes[:, i])
        rest *= ((size - 5) / rest.square().sum()).sqrt()
        values.append(((q.T @ matrix @ q).trace() + rest @ matrix @ rest).item())
    assert_allclose(trace.value, np.mean(values), rtol=1e-11)
    assert_allclose(trace.stderr, 1.2 * np.std(values, ddof=1) / 6**0.5, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_is_met_and_holds(method):
    errors, stated, traces = repeated(
        method, SPECTRA["few large"], 12, 60, tolerance=0.03, max_products=2000
    )
    total = SPECTRA["few large"].sum().item()
    assert all(one.converged for one in traces)
    assert (stated <= 0.03 * np.array([one.value for one in traces])).all()
    assert np.sqrt((errors**2).mean()) < 1.2 * 0.03 * total  # 60 repeats
    most = max(one.num_products for one in traces)
    assert most <= (2000 if method is hutchinson else 40)
    matrix = symmetric(SPECTRA["few large"])
    cut = method(matrix.matmul, 120, num_products=6, tolerance=1e-9, max_products=12)
    assert not cut.converged
    assert cut.num_products == 12


@pytest.mark.parametrize("method", METHODS)
def test_more_products_change_nothing_that_was_done_before(method):
    """Growing in steps is the same as having all from the beginning."""
    matrix = symmetric(SPECTRA["few large"])
    grown = method(matrix.matmul, 120, num_products=12, tolerance=1e-9, max_products=48)
    whole = method(matrix.matmul, 120, num_products=48)
    assert grown.num_products == whole.num_products == 48
    assert_allclose(grown.value, whole.value, rtol=1e-10)
    assert_allclose(grown.stderr, whole.stderr, rtol=1e-6)


def test_blocks_have_their_own_traces_and_sum_to_the_total():
    matrix = symmetric(SPECTRA["few large"])
    blocks = {"a": slice(0, 30), "b": slice(30, 35), "c": slice(35, 120)}
    traces = [
        hutchinson(matrix.matmul, 120, num_products=30, blocks=blocks, seed=seed)
        for seed in range(200)
    ]
    for name, part in blocks.items():
        errors = np.array([one.blocks[name].value for one in traces])
        errors -= matrix.diagonal()[part].sum().item()
        stated = np.array([one.blocks[name].stderr for one in traces])
        assert abs(errors.mean()) < 3.5 * errors.std() / 200**0.5
        assert 0.9 < (abs(errors) <= stats.t.ppf(0.975, 29) * stated).mean() <= 0.99
    assert_allclose(sum(one.value for one in traces[0].blocks.values()), traces[0].value)


def test_probes_are_signs_that_come_from_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (next(signs(1000, seed, "cpu")) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert abs((first * other).mean()) < 0.1
    assert set(first.tolist()) == {-1.0, 1.0}
    assert torch.equal(torch.get_rng_state(), state)


def test_float32_products_are_summed_in_float64():
    matrix = symmetric(SPECTRA["flat"])
    for method in METHODS:
        single = method(lambda x: matrix.float() @ x.float(), 120)
        assert_allclose(single.value, method(matrix.matmul, 120).value, rtol=1e-6)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="num_products must be at least 4"):
        xtrace(lambda x: x, 10, num_products=3)
    with pytest.raises(ValueError, match="at most max_products, got 30 and 20"):
        hutchinson(lambda x: x, 10, max_products=20)
    with pytest.raises(ValueError, match="not finite"):
        hutch_plus_plus(lambda x: x / 0, 10)
