import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.testing import assert_allclose, assert_array_equal

from landscape.maths.kernels import rsa
from landscape.maths.overlap import overlap, rows
from landscape.maths.similarity import (
    PROPERTIES,
    cca,
    cca_of,
    cka,
    procrustes,
    pwcca,
    pwcca_of,
    regression,
    svcca,
)

MEASURES = list(PROPERTIES)
LINEAR = [measure for measure in MEASURES if measure is not rsa]
ALL = {"shift", "isotropic scale", "neuron scale", "orthogonal map", "invertible map"}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def related(n=90, d=8, e=11, *, seed=0, unit=1.0):
    """Two sets of activations that share some of their variance, of unequal scales."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, 5)) * [3, 2, 1, 0.5, 0.2] * unit
    x, y = (base @ rng.normal(size=(5, w)) + 0.7 * rng.normal(size=(n, w)) * unit for w in (d, e))
    return x, y * np.linspace(0.3, 2, e) + 1


def complex_pair(n=60, d=5, e=7):
    x, y = related(n, d, e)
    u, v = related(n, d, e, seed=1)
    return x + 1j * u, y + 1j * v


def centred(x):
    return x - x.mean(0)


def correlations_by_qr(x, y):
    q, r = (np.linalg.qr(centred(one))[0] for one in (x, y))
    return np.linalg.svd(q.conj().T @ r, compute_uv=False)


def whitened(x):
    """Orthonormal columns by the inverse square root of the covariance, as textbooks have it."""
    x = centred(x)
    return x @ np.linalg.inv(scipy.linalg.sqrtm(x.conj().T @ x))


def moved(x, kind, seed=3):
    rng = np.random.default_rng(seed)
    width = x.shape[1]
    square = rng.normal(size=(width, width))
    return {
        "shift": lambda: x + 10 * rng.normal(size=width),
        "isotropic scale": lambda: 3.7e-3 * x,
        "neuron scale": lambda: x * np.exp(rng.normal(size=width)),
        "orthogonal map": lambda: x @ np.linalg.qr(square)[0],
        "invertible map": lambda: x @ (square + 3 * np.eye(width)),
    }[kind]()


# What each measure declares


@pytest.mark.parametrize("kind", sorted(ALL))
@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_declared_invariances_hold_and_no_others(measure, kind):
    held = PROPERTIES[measure]
    assert held.x | held.y <= ALL
    changes = {"x": [], "y": []}
    for seed in range(5):
        x, y = related(seed=seed)
        value = float(measure(x, y))
        changes["x"].append(abs(float(measure(moved(x, kind), y)) - value))
        changes["y"].append(abs(float(measure(x, moved(y, kind))) - value))
    for side, declared in (("x", held.x), ("y", held.y)):
        if kind in declared:
            assert max(changes[side]) < 1e-9
        else:
            assert max(changes[side]) > 1e-3


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_symmetry_is_as_declared(measure):
    pairs = [related(seed=seed) for seed in range(5)]
    change = max(abs(float(measure(x, y)) - float(measure(y, x))) for x, y in pairs)
    if PROPERTIES[measure].symmetric:
        assert change < 1e-9
    else:
        assert change > 1e-3


def test_distances_of_declared_metrics_obey_the_triangle_inequality():
    metrics = [measure for measure in MEASURES if PROPERTIES[measure].metric]
    assert metrics == [procrustes]
    for measure, seed in itertools.product(metrics, range(40)):
        n, rng = 12, np.random.default_rng(seed)
        mixture = rng.normal(size=(n, 4))
        sets = [
            mixture @ rng.normal(size=(4, d)) + rng.uniform() * rng.normal(size=(n, d))
            for d in (3, 4, 5)
        ]
        for x, y, z in itertools.permutations(sets):
            direct = measure(x, z).distance
            assert direct <= measure(x, y).distance + measure(y, z).distance + 1e-12


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_the_same_activations_are_exactly_one(measure):
    for x in (*related(), *related(500, 40, 30)):
        assert float(measure(x, x.copy())) == 1.0
        assert float(measure(x, torch.tensor(x))) == 1.0
    assert procrustes(x, x).distance == 0.0


# Each number against another way to compute it


def test_the_four_published_numbers_of_kornblith_et_al():
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    y = rng.randn(100, 10) + x
    assert_allclose(float(cka(x, y, debiased=False)), 0.55761, atol=5e-6)
    assert_allclose(float(cka(x, y)), 0.51346, atol=5e-6)
    assert_allclose(float(cka(x, y, kernel="rbf", debiased=False)), 0.65483, atol=5e-6)
    # theirs is not centred
    uncentred = np.linalg.qr(x)[0].T @ np.linalg.qr(y)[0]
    assert_allclose((uncentred**2).sum() / 10, 0.54312, atol=5e-6)
    assert_allclose(cca(x, y).mean_squared, 0.54540, atol=5e-6)


def test_cca_is_that_of_qr():
    for seed in range(5):
        x, y = related(300, 12, 20, seed=seed)
        found = cca(x, y)
        assert_allclose(found.correlations, correlations_by_qr(x, y), rtol=0, atol=1e-12)
        assert_allclose(float(found), correlations_by_qr(x, y).mean(), rtol=1e-12)
        assert_allclose(found.mean_squared, (correlations_by_qr(x, y) ** 2).mean(), rtol=1e-12)
        assert_array_equal(found.weights, np.full(12, 1 / 12))
        assert (found.num, found.rank_x, found.rank_y, found.num_forced) == (300, 12, 20, 0)


def test_cca_at_condition_one_million_is_that_of_qr():
    x, y = related(600, 16, 16)
    left, _, right = np.linalg.svd(centred(x), full_matrices=False)
    x = left * np.logspace(0, -6, 16) @ right
    found = cca(x, y)
    assert 1e4 < found.condition_x < 1e7
    assert_allclose(found.correlations, correlations_by_qr(x, y), rtol=0, atol=1e-9)


def test_cca_survives_an_invertible_map_of_condition_1e8():
    x, _ = related(400, 10)
    left, _, right = np.linalg.svd(normal(10, 10))
    assert_allclose(float(cca(x, x @ (left * np.logspace(0, -8, 10)) @ right)), 1, atol=1e-8)


@pytest.mark.parametrize("make", [related, complex_pair])
def test_pwcca_is_that_of_the_paper(make):
    for x, y in (make(), make()[::-1]):
        a, b = whitened(x), whitened(y)
        u, s, vh = np.linalg.svd(a.conj().T @ b, full_matrices=False)
        alpha = abs((a @ u).conj().T @ centred(x)).sum(1)
        beta = abs((b @ vh.conj().T).conj().T @ centred(y)).sum(1)
        by_x, by_y = np.average(s, weights=alpha), np.average(s, weights=beta)
        found = pwcca(x, y)
        assert_allclose([float(found), found.by_x, found.by_y], [by_x, by_x, by_y], rtol=1e-10)
        assert_allclose(found.weights, alpha / alpha.sum(), rtol=1e-8)
        assert_allclose(float(pwcca(x, y, weights="y")), by_y, rtol=1e-10)
        assert_allclose(float(pwcca(x, y, weights="both")), (by_x + by_y) / 2, rtol=1e-10)
        fewer = by_x if x.shape[1] < y.shape[1] else by_y
        assert_allclose(float(pwcca(x, y, weights="fewer")), fewer, rtol=1e-10)


def test_pwcca_by_both_sides_is_symmetric_and_by_y_turns_the_sides_round():
    x, y = related()
    for weights, other in (("both", "both"), ("fewer", "fewer"), ("x", "y")):
        forth, back = float(pwcca(x, y, weights=weights)), float(pwcca(y, x, weights=other))
        assert_allclose(forth, back, rtol=1e-12)


@pytest.mark.parametrize(("mass", "power"), [("variance", 2), ("sv", 1)])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_svcca_is_cca_of_the_leading_principal_directions(mass, power, threshold):
    x, y = related(120, 10, 14)
    reduced = []
    for one in (x, y):
        left, values, _ = np.linalg.svd(centred(one), full_matrices=False)
        shares = values**power / (values**power).sum()
        k = next(k for k in range(1, 20) if shares[:k].sum() >= threshold)
        reduced.append(left[:, :k] * values[:k])
    found = svcca(x, y, threshold=threshold, mass=mass)
    expected = correlations_by_qr(*reduced)
    assert (found.rank_x, found.rank_y) == tuple(one.shape[1] for one in reduced)
    assert_allclose(found.correlations, expected, rtol=0, atol=1e-12)
    assert_allclose(float(found), expected.mean(), rtol=1e-12)


def test_svcca_of_all_or_of_some_directions():
    x, y = related()
    for whole in (svcca(x, y, threshold=1), svcca(x, y, num_directions=99)):
        assert_allclose(whole.correlations, cca(x, y).correlations, atol=1e-12)
    found = svcca(x, y, num_directions=3)
    assert (found.rank_x, found.rank_y, len(found.correlations)) == (3, 3, 3)
    left, right = (np.linalg.svd(centred(one), full_matrices=False)[0][:, :3] for one in (x, y))
    assert_allclose(found.correlations, correlations_by_qr(left, right), atol=1e-12)


def hsic(k, l, debiased):  # noqa: E741
    """As it is defined: of doubly centred Grams, or of Grams without diagonals (Song et al.)."""
    n = len(k)
    if not debiased:
        centre = np.eye(n) - 1 / n
        return np.trace(centre @ k @ centre @ l).real
    k, l = (one - np.diag(np.diag(one)) for one in (k, l))  # noqa: E741
    ones = np.ones(n)
    value = np.trace(k @ l) + ones @ k @ ones * (ones @ l @ ones) / (n - 1) / (n - 2)
    return (value - 2 / (n - 2) * ones @ k @ l @ ones).real


def cka_of_grams(k, l, debiased):  # noqa: E741
    own = hsic(k, k, debiased) * hsic(l, l, debiased)
    return hsic(k, l, debiased) / np.sqrt(own)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("make", [related, complex_pair, lambda: related(20, 30, 50)])
def test_linear_cka_is_that_of_gram_matrices(make, debiased):
    x, y = make()
    # Song et al. write of symmetric Grams; for Hermitian ones a shift matters, unless centred first
    grams = [one @ one.conj().T for one in (map(centred, (x, y)) if np.iscomplexobj(x) else (x, y))]
    expected = cka_of_grams(*grams, debiased)
    assert_allclose(float(cka(x, y, debiased=debiased)), expected, rtol=1e-10)


def test_debiased_cka_is_the_mean_over_all_different_examples():
    x, y = related(7, 2, 3)

    def criterion(k, l):  # noqa: E741
        """The squared norm of the covariance; what appears twice in a product is independent."""
        quadruples = itertools.permutations(range(7), 4)
        terms = [k[i, j] * (l[j, i] - 2 * l[j, q] + l[q, r]) for i, j, q, r in quadruples]
        return np.mean(terms)

    k, l = x @ x.T, y @ y.T  # noqa: E741
    expected = criterion(k, l) / np.sqrt(criterion(k, k) * criterion(l, l))
    assert_allclose(float(cka(x, y)), expected, rtol=1e-9)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("n", [40, 41])
def test_rbf_cka_is_that_of_gram_matrices(n, debiased):
    grams = []
    for one in related(n):
        squares = ((one[:, None] - one) ** 2).sum(2)
        grams.append(np.exp(-squares / (2 * 0.8**2 * np.median(squares))))
    found = cka(*related(n), kernel="rbf", bandwidth=0.8, debiased=debiased)
    assert_allclose(float(found), cka_of_grams(*grams, debiased), rtol=1e-10)


@pytest.mark.parametrize("make", [related, complex_pair])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
def test_chance_of_cka_is_its_mean_over_all_orders(kernel, debiased, make):
    x, y = make(5, 3, 2)
    orders = itertools.permutations(range(5))
    mean = np.mean([
        float(cka(x, y[list(order)], kernel=kernel, debiased=debiased)) for order in orders
    ])  # fmt: skip
    found = cka(x, y, kernel=kernel, debiased=debiased)
    assert_allclose(mean, found.chance, atol=1e-12)
    assert_allclose(found.adjusted, (float(found) - mean) / (1 - mean), rtol=1e-9)
    assert (found.chance == 0) == debiased


def test_chance_of_cca_and_regression_is_the_mean_over_all_orders():
    x, y = related(6, 2, 3)
    orders = [list(order) for order in itertools.permutations(range(6))]
    for measure, squared in ((cca, "mean_squared"), (regression, "value")):
        mean = np.mean([getattr(measure(x, y[order]), squared) for order in orders])
        found = measure(x, y)
        assert_allclose(mean, found.chance, rtol=1e-10)
        assert_allclose(found.adjusted, (getattr(found, squared) - mean) / (1 - mean), rtol=1e-9)


@pytest.mark.parametrize(("d", "e"), [(4, 9), (9, 4)])
@pytest.mark.parametrize("measure", [cca, pwcca, svcca])
def test_independent_activations_are_at_chance(measure, d, e):
    found = [measure(normal(50, d, seed=s), normal(50, e, seed=s + 999)) for s in range(300)]
    squares = np.array([one.mean_squared for one in found])
    error = squares.std() / 300**0.5
    assert abs(squares.mean() - max(d, e) / 49) < 4 * error
    assert found[0].chance == 9 / 49
    assert abs(np.mean([one.adjusted for one in found])) < 4 * error / (1 - 9 / 49)
    assert float(found[0]) > 0.3  # the mean itself is far above


@pytest.mark.parametrize("make", [related, complex_pair, lambda: related(20, 30, 50)])
def test_procrustes_is_what_the_best_rotation_leaves(make):
    x, y = make()
    a, b = (centred(one) / np.linalg.norm(centred(one)) for one in (x, y))
    padded = np.concatenate([a, np.zeros((len(a), b.shape[1] - a.shape[1]))], axis=1)
    turn, nuclear = scipy.linalg.orthogonal_procrustes(b, padded)
    found = procrustes(x, y)
    assert_allclose(float(found), nuclear, rtol=1e-12)
    left = np.linalg.norm(b @ turn - padded) ** 2
    assert_allclose(found.squared_distance, left, rtol=1e-10)
    assert_allclose(found.distance, np.arccos(nuclear), rtol=1e-12)


def test_regression_is_that_of_least_squares():
    x, y = related()
    residual = np.linalg.lstsq(centred(x), centred(y))[1].sum()
    total = (centred(y) ** 2).sum()
    found = regression(x, y)
    assert_allclose(float(found), 1 - residual / total, rtol=1e-12)
    adjusted = 1 - residual / (len(x) - 1 - 8) / (total / (len(x) - 1))
    assert_allclose(found.adjusted, adjusted, rtol=1e-12)


@pytest.mark.parametrize("make", [related, complex_pair])
def test_variates_are_made_of_the_neurons_by_their_coefficients(make):
    x, y = make()
    x = np.concatenate([x, x[:, :1], np.full((len(x), 1), 0.1)], axis=1)
    found = cca(x, y, directions=True)
    directions = found.directions
    pairs = [
        (x, directions.coefficients_x, directions.variates_x),
        (y, directions.coefficients_y, directions.variates_y),
    ]
    count = len(found.correlations)
    for one, coefficients, variates in pairs:
        assert_allclose(centred(one) @ coefficients, variates, atol=1e-11)
        assert_allclose(variates.conj().T @ variates, np.eye(count), atol=1e-12)
    cross = directions.variates_x.conj().T @ directions.variates_y
    assert_allclose(cross, np.diag(found.correlations), atol=1e-12)
    coefficients = directions.coefficients_x
    assert_array_equal(coefficients[-1], 0)
    assert_allclose(coefficients[-2], coefficients[0], rtol=1e-9)
    assert cca(x, y).directions is None


def test_coefficients_of_neurons_of_very_unequal_scales():
    x, y = related()
    x = x * np.logspace(-12, 12, 8)
    directions = cca(x, y, directions=True).directions
    assert_allclose(centred(x) @ directions.coefficients_x, directions.variates_x, atol=1e-11)


def test_fourier_coefficients_keep_what_complex_maps_leave():
    x, y = complex_pair()
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(5, 5)) + 1j * rng.normal(size=(5, 5)))[0]
    for measure in (cca, svcca, cka, procrustes, regression):
        value = float(measure(x, y))
        assert 0 < value < 1
        assert_allclose(float(measure(x @ turn * 1j + (3 - 2j), y)), value, rtol=1e-10)
    expected = correlations_by_qr(x, y)
    assert_allclose(cca(x, y).correlations, expected, rtol=0, atol=1e-12)


# Data as layers give them


@pytest.mark.parametrize("measure", LINEAR, ids=lambda f: f.__name__)
def test_dead_neurons_offsets_and_tiny_scales_change_nothing(measure):
    x, y = related()
    value = float(measure(x, y))
    dead = np.insert(x, [0, 3], [0.0, 0.1], axis=1)
    assert_allclose(float(measure(dead, np.insert(y, 2, 1e6, axis=1))), value, rtol=1e-12)
    assert_allclose(float(measure(x + 1e6, y - 1e6)), value, rtol=1e-8)
    for scale in (1e-5, 1e-30, 1e30):
        assert_allclose(float(measure(scale * x, y)), value, rtol=1e-9)
        assert_allclose(float(measure(x, y * scale)), value, rtol=1e-9)


@pytest.mark.parametrize("measure", [cca, regression])
def test_copies_of_neurons_change_nothing(measure):
    x, y = related()
    doubled = np.concatenate([x, x[:, :3], x[:, 1:2] - 2 * x[:, 2:3]], axis=1)
    found = measure(doubled, y)
    assert found.rank_x == 8
    assert_allclose(float(found), float(measure(x, y)), rtol=1e-12)


def test_idle_neurons_count_in_the_mean_by_width_alone():
    x, y = related(90, 8, 11)
    found = cca(np.concatenate([x, x[:, :2]], axis=1), y)
    assert (found.width_x, found.rank_x) == (10, 8)
    assert_allclose(found.mean_by_width, 0.8 * float(found), rtol=1e-12)


def test_near_copies_are_one_direction_or_two_by_the_relative_cut():
    x, y = related(200)
    near = np.concatenate([x, x + 1e-7 * normal(200, 8, seed=9)], axis=1)
    assert cca(near, y).rank_x == 16
    cut = cca(near, y, rtol=1e-6)
    assert cut.rank_x == 8
    assert_allclose(float(cut), float(cca(x, y)), atol=1e-6)
    assert svcca(near, y, threshold=1, rtol=1e-6).rank_x == 8
    assert pwcca(near, y, rtol=1e-6).rank_x == regression(near, y, rtol=1e-6).rank_x == 8


def test_batch_norm_is_seen_by_cka_and_not_by_cca():
    x, y = related()
    gamma, beta = np.exp(normal(8)), normal(8, seed=1)
    normed = (x - x.mean(0)) / x.std(0) * gamma + beta
    assert_allclose(float(cca(normed, y)), float(cca(x, y)), rtol=1e-12)
    assert abs(float(cka(normed, y)) - float(cka(x, y))) > 1e-3
    gamma[2] = 0
    assert cca(x * gamma + beta, y).rank_x == 7


@pytest.mark.parametrize("measure", LINEAR, ids=lambda f: f.__name__)
def test_rounding_to_bfloat16_changes_ordinary_layers_little(measure):
    x, y = (torch.tensor(one).relu() for one in related(500, 20, 30, unit=3.0))
    rounded = float(measure(x.bfloat16(), y.bfloat16()))
    assert_allclose(rounded, float(measure(x.bfloat16().double(), y.bfloat16())), rtol=1e-6)
    assert_allclose(rounded, float(measure(x, y)), atol=2e-3)


@pytest.mark.parametrize("offset", [10, 100, 1000])
def test_debiased_cka_of_float32_with_offsets(offset):
    x, y = related(300, unit=0.5)
    exact = float(cka(x, y))
    shifted = [torch.tensor(one + offset * one.std(), dtype=torch.float32) for one in (x, y)]
    assert_allclose(float(cka(*shifted)), exact, atol=1e-7 * offset)


def test_debiased_cka_may_be_negative():
    values = [float(cka(normal(20, 30, seed=s), normal(20, 30, seed=s + 99))) for s in range(40)]
    assert min(values) < -0.05
    assert float(cka(normal(20, 30), normal(20, 30, seed=9), debiased=False)) > 0.4


def test_flattened_maps_have_more_neurons_than_examples():
    x, y = related(30, 4000, 5000)
    wide = [cka(x, y), cka(x, y, kernel="rbf"), procrustes(x, y)]
    left, right = (np.linalg.svd(centred(one), full_matrices=False) for one in (x, y))
    narrow = [left[0] * left[1], right[0] * right[1]]  # the same distances in 30 neurons
    for one, measure in zip(
        wide,
        [cka, lambda a, b: cka(a, b, kernel="rbf"), procrustes],
        strict=True,
    ):
        assert_allclose(float(one), float(measure(*narrow)), rtol=1e-9)
    found = svcca(x, y, num_directions=4)
    assert_allclose(found.correlations, correlations_by_qr(left[0][:, :4], right[0][:, :4]))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_integers_float32_lists_of_strides_and_read_only_arrays(measure):
    x, y = (np.round(20 * one) for one in related())
    value = float(measure(x, y))
    frozen = x[::-1][::-1].astype(np.float32)
    frozen.flags.writeable = False
    assert_allclose(float(measure(frozen, torch.tensor(y).int())), value, rtol=1e-12)
    assert_allclose(float(measure(x[::-1], y[::-1].copy())), value, rtol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_devices_agree(measure):
    x, y = related()
    there = [torch.tensor(one, device="cuda") for one in (x, y)]
    assert_allclose(float(measure(*there)), float(measure(x, y)), rtol=1e-11)


# What cannot be said


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_a_side_that_does_not_vary_is_nan_with_a_reason(measure):
    _, y = related()
    constant = np.full((90, 3), 0.1)
    for pair in ((constant, y), (y, constant)):
        found = measure(*pair)
        assert np.isnan(float(found))
        assert found.reason
    assert "no neuron of x varies" in cca(constant, y).reason
    assert np.isnan(cca(constant, y).mean_squared)
    assert np.isnan(cca(constant, y).mean_by_width)
    assert cca(y, y).reason == ""
    assert np.isnan(cca(constant[:10], y[:10]).adjusted)  # where any y would be at chance 1
    assert np.isnan(cka(y[:2], y[2:4], debiased=False).adjusted)


def test_correlations_that_are_forced():
    with pytest.raises(
        ValueError, match="30 examples for ranks 29 and 5 force 5 of 5 .* than 34 examples"
    ):
        cca(normal(30, 50), normal(30, 5))
    with pytest.raises(ValueError, match="regression explains any y: 30 examples for rank 29"):
        regression(normal(30, 50), normal(30, 5))
    assert regression(normal(30, 5), normal(30, 50)).chance == 5 / 29
    for measure in (cca, pwcca):
        with pytest.warns(UserWarning, match="40 examples for ranks 33 and 33 force 27 of 33"):
            found = measure(normal(40, 33), normal(40, 33, seed=1))
        assert found.num_forced == 27
        assert_allclose(found.correlations[:27], 1, rtol=1e-12)
        assert found.correlations[27] < 1
    with pytest.warns(UserWarning, match="svcca: 40 examples for ranks 25 and 25 force 11 of 25"):
        svcca(normal(40, 33), normal(40, 33, seed=1), num_directions=25)
    assert cca(normal(40, 20), normal(40, 19, seed=1)).num_forced == 0


def test_copies_do_not_count_as_forcing():
    x, y = related(30, 5, 6)
    assert cca(np.tile(x, (1, 9)), np.tile(y, (1, 9))).num_forced == 0


def test_a_basis_that_is_not_orthonormal_is_an_error_not_a_clamp():
    x, _ = related()
    shared = overlap(rows(x), rows(x))
    grown = replace(shared, whitened=shared.whitened * (1 + 1e-6))
    with pytest.raises(ArithmeticError, match=r"a similarity of 1.000001 .* at most 1 is possible"):
        cca_of(grown)
    assert float(pwcca_of(replace(grown, tolerance=1e-5))) == 1.0


def test_too_few_examples():
    with pytest.raises(ValueError, match="debiased CKA needs at least 4 examples, got 3"):
        cka(normal(3, 2), normal(3, 2))
    with pytest.raises(ValueError, match="debiased CKA needs at least 4 examples, got 3"):
        cka(normal(3, 2), normal(3, 2), kernel="rbf")
    assert 0 < float(cka(normal(3, 2), normal(3, 2, seed=1), debiased=False)) < 1


def test_debiased_cka_whose_own_criterion_is_not_positive():
    x = np.eye(6)  # all distances equal: nothing is left without the diagonal
    found = cka(x, normal(6, 3))
    assert np.isnan(float(found))
    assert "the independence criterion of x with itself is not positive" in found.reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: cca(x, y[:-1]), "the same examples in the same order, got 90 and 89 rows"),
        (lambda x, y: svcca(x, y, threshold=99), r"threshold must be in \(0, 1\], got 99"),
        (lambda x, y: svcca(x, y, num_directions=0), "num_directions must be at least 1, got 0"),
        (lambda x, y: svcca(x, y, mass="svd"), "mass must be 'variance' or 'sv', got 'svd'"),
        (lambda x, y: pwcca(x, y, weights="z"), "weights must be 'x', 'y', 'fewer' or 'both'"),
        (lambda x, y: cka(x, y, kernel="cubic"), "kernel must be 'linear' or 'rbf', got 'cubic'"),
        (lambda x, y: cka(x, y, kernel="rbf", bandwidth=0), "bandwidth must be positive, got 0"),
    ],
)
def test_options_that_do_not_exist(call, message):
    with pytest.raises(ValueError, match=message):
        call(*related())
