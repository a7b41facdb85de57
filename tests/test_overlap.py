import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from landscape.maths.overlap import as_matrix, centred, overlap, relative_cut, rows


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def complex_normal(*shape, seed=0):
    return normal(*shape, seed=seed) + 1j * normal(*shape, seed=seed + 99)


CASES = {
    "tall": lambda seed: normal(40, 6 + seed, seed=seed) + 3,
    "wide": lambda seed: normal(10, 25 + seed, seed=seed),
    "one wide": lambda seed: normal(10, 4 + 20 * seed, seed=seed),
    "complex": lambda seed: complex_normal(30, 5 + seed, seed=seed),
    "complex and wide": lambda seed: complex_normal(10, 15 + seed, seed=seed),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_side_is_what_the_centred_rows_say(make):
    given = make(0)
    x = given - given.mean(0)
    one = rows(given)
    basis, side = one.basis.numpy(), one.side
    rank = min(x.shape[1], len(x) - 1)
    assert (side.num, side.rank, side.width) == (len(x), rank, x.shape[1])
    assert_allclose(one.centred, x, atol=1e-12)
    assert_allclose(basis.conj().T @ basis, np.eye(rank), atol=1e-12)
    assert_allclose(basis @ side.loadings.numpy(), x, atol=1e-11)
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    assert_allclose(side.values, values[:rank], rtol=1e-10)
    principal = basis @ side.components.numpy()
    assert_allclose(abs((principal.conj() * left[:, :rank]).sum(0)), 1, rtol=1e-9)
    scaled = np.linalg.svd(x / x.std(0), compute_uv=False)[:rank]
    assert_allclose(side.condition, scaled[0] / scaled[-1], rtol=1e-9)
    assert_allclose(side.squared_gram, (abs(x @ x.conj().T) ** 2).sum(), rtol=1e-12)
    assert_allclose(side.squared_rows, ((abs(x) ** 2).sum(1) ** 2).sum(), rtol=1e-12)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_an_overlap_is_what_the_two_sets_of_centred_rows_say(make):
    x, y = rows(make(0)), rows(make(1))
    shared = overlap(x, y)
    a, b = (side.centred.numpy() for side in (x, y))
    assert shared.num == len(a)
    assert_allclose(shared.whitened, x.basis.mH @ y.basis, atol=1e-14)
    assert_allclose(shared.squared_cross, (abs(a.conj().T @ b) ** 2).sum(), rtol=1e-12)
    lengths = [(abs(one) ** 2).sum(1) for one in (a, b)]
    assert_allclose(shared.squared_rows, (lengths[0] * lengths[1]).sum(), rtol=1e-12)


def test_the_rank_counts_directions_above_the_relative_cut():
    x = normal(50, 4)
    copies = np.concatenate([x, x * [1e-8, 1, 1e8, -3], x + 5, x @ normal(4, 3, seed=1)], axis=1)
    assert rows(copies).side.rank == 4
    near = np.concatenate([x, x + 1e-7 * normal(50, 4, seed=2)], axis=1)
    assert rows(near).side.rank == 8
    assert rows(near, rtol=1e-6).side.rank == 4
    assert rows(near.astype(np.float32)).side.rank == 4
    assert rows(x.astype(np.float32)).side.rank == 4


def test_constant_neurons_become_exact_zeros_whatever_their_value():
    x = normal(50, 5)
    x[:, 1], x[:, 3] = 0.1, 1e9
    x[::2, 3] = np.nextafter(1e9, 2e9)
    assert_array_equal(centred(x)[:, [1, 3]], 0)
    assert rows(x).side.rank == 3
    single = np.full((50, 1), 7, np.float32)
    single[::2] = np.nextafter(np.float32(7), np.float32(8))
    assert rows(single).side.rank == 0
    assert np.isnan(rows(single).side.condition)
    assert rows(single.astype(np.float64)).side.rank == 1


def test_the_mean_is_exact_below_a_large_offset():
    x = np.round(normal(400, 3) * 2**20) / 2**20  # no digit is lost when the offset is added
    assert_allclose(centred(x + 2.0**30), x - x.mean(0), rtol=0, atol=1e-15)


def test_activations_are_neither_changed_nor_kept():
    x = torch.tensor(normal(20, 3), requires_grad=True)
    before = x.detach().clone()
    found = rows(x)
    assert not found.centred.requires_grad
    assert torch.equal(x, before)
    array = normal(20, 3)
    as_matrix(array).zero_()
    assert array.any()


def test_the_cut_knows_how_exact_a_dtype_is():
    cuts = [relative_cut(d) for d in (torch.float64, torch.int32, torch.complex128)]
    assert cuts == [1e-10] * 3
    single = relative_cut(torch.float32)
    assert 1e-7 < single < 2e-6
    assert relative_cut(torch.complex64) == single
    assert relative_cut(torch.bfloat16) == 2**-7
    assert relative_cut(torch.float16) == 2**-10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (normal(4), r"x must be .* \(examples, neurons\) .* got shape \(4,\); flatten or average"),
        (normal(4, 3, 2), r"got shape \(4, 3, 2\)"),
        (normal(1, 3), "at least two examples"),
        (normal(3, 0), "at least two examples"),
        (np.array([[0.0, 1], [np.nan, np.inf], [1, 2]]), "x has values .* not finite in 1 of 3"),
    ],
)
def test_what_are_no_activations(given, message):
    with pytest.raises(ValueError, match=message):
        rows(given)


def test_sets_of_different_examples_have_no_overlap():
    with pytest.raises(ValueError, match="same examples in the same order, got 5 and 6 rows"):
        overlap(rows(normal(5, 2)), rows(normal(6, 2)))
