import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from landscape.maths.accumulator import Accumulator
from landscape.maths.moments import needs_exact
from landscape.maths.overlap import overlap, rows


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def layers(n=1200, widths=(8, 13, 3), *, condition=1.0, offset=3.0, seed=0, is_complex=False):
    """Layers that share six causes; the singular values of each have the ratio `condition`."""
    causes = normal(n, 6, seed=seed)
    found = []
    for k, width in enumerate(widths):
        own = normal(n, width, seed=100 * seed + k + 1)
        mixed = own + 0.7 * causes @ normal(6, width, seed=50 + k)
        if is_complex:
            mixed = torch.complex(mixed, mixed.roll(1, 1) + normal(n, width, seed=70 + k))
        left, _, right = torch.linalg.svd(mixed - mixed.mean(0), full_matrices=False)
        values = torch.logspace(0, -np.log10(condition), left.shape[1], dtype=torch.float64)
        found.append((left * values.to(left.dtype)) @ right + offset)
    return found


def gathered(blocks, *, batch=100, **options):
    accumulator = Accumulator(**options)
    for start in range(0, len(blocks[0]), batch):
        accumulator.add([block[start : start + batch] for block in blocks])
    return accumulator.finish()


def pairs_of(moments, blocks):
    """Every pair, from moments and from the rows."""
    sides = [rows(block) for block in blocks]
    for i, x in enumerate(sides):
        for j, y in enumerate(sides):
            yield moments.overlap(i, j), overlap(x, y)


def correlations(found):
    return torch.linalg.svdvals(found.whitened)


def nuclear(found):
    return torch.linalg.svdvals(found.x.loadings.mH @ found.whitened @ found.y.loadings).sum()


def debiased_cka(found):
    """Song et al. 2012, equation 5, on the Gram matrices of centred rows, with a linear kernel."""
    n = found.num

    def hsic(cross, diagonal, x, y):
        traces = (x.values.square().sum(), y.values.square().sum())
        return cross - n / (n - 2) * diagonal + traces[0] * traces[1] / ((n - 1) * (n - 2))

    both = [hsic(side.squared_gram, side.squared_rows, side, side) for side in (found.x, found.y)]
    cross = hsic(found.squared_cross, found.squared_rows, found.x, found.y)
    return cross / (both[0] * both[1]).sqrt()


def debiased_cka_of_rows(x, y):
    """The definition: Gram matrices without their diagonals, U-centred."""
    grams = []
    for block in (x, y):
        gram = (block @ block.mH).real.clone()
        gram.fill_diagonal_(0)
        n = len(gram)
        sums = gram.sum(0) / (n - 2)
        gram = gram - sums - sums[:, None] + gram.sum() / ((n - 1) * (n - 2))
        grams.append(gram.fill_diagonal_(0))
    products = [(a * b).sum() for a, b in ((grams[0],) * 2, (grams[1],) * 2, grams)]
    return products[2] / (products[0] * products[1]).sqrt()


def check(found, expected, rtol):
    assert_allclose(correlations(found), correlations(expected), rtol=0, atol=rtol)
    assert_allclose(nuclear(found), nuclear(expected), rtol=rtol)
    assert (found.num, found.x.rank, found.y.rank) == (
        expected.num,
        expected.x.rank,
        expected.y.rank,
    )
    assert_allclose(found.squared_cross, expected.squared_cross, rtol=rtol)
    assert_allclose(found.squared_rows, expected.squared_rows, rtol=rtol)
    for side, twin in ((found.x, expected.x), (found.y, expected.y)):
        assert_allclose(side.values, twin.values, rtol=rtol)
        assert_allclose(side.squared_gram, twin.squared_gram, rtol=rtol)
        assert_allclose(side.squared_rows, twin.squared_rows, rtol=rtol)
        assert_allclose(side.condition, twin.condition, rtol=rtol)
        products = side.loadings.mH @ side.loadings
        assert_allclose(
            products, twin.loadings.mH @ twin.loadings, atol=rtol * float(products.abs().max())
        )


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
def test_pairs_are_those_of_the_rows(exact, is_complex):
    blocks = layers(is_complex=is_complex)
    for found, expected in pairs_of(gathered(blocks, exact=exact), blocks):
        check(found, expected, 1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_debiased_cka_of_moments_is_that_of_the_whole_gram_matrices(exact):
    blocks = layers(400, offset=30.0)
    moments = gathered(blocks, exact=exact)
    for i, x in enumerate(blocks):
        for j, y in enumerate(blocks):
            expected = debiased_cka_of_rows(x, y)
            assert_allclose(debiased_cka(moments.overlap(i, j)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("condition", "error", "exact_error"),
    [(1e2, 1e-11, 1e-13), (1e4, 1e-7, 1e-11), (1e6, np.inf, 1e-9)],
)
def test_what_covariances_lose_is_the_square_of_the_condition(condition, error, exact_error):
    blocks = layers(condition=condition, offset=1.0)
    moments, exact = gathered(blocks), gathered(blocks, exact=True)
    for found, expected in pairs_of(exact, blocks):
        assert_allclose(correlations(found), correlations(expected), rtol=0, atol=exact_error)
    assert needs_exact(exact) == []
    if condition == 1e6:
        assert needs_exact(moments) == [0, 1, 2]
        assert needs_exact(gathered([block[:400] for block in blocks])) == [0, 1, 2]
        return
    assert needs_exact(moments) == []
    assert_allclose(moments.conditions, exact.conditions, rtol=1e-3)
    for found, expected in pairs_of(moments, blocks):
        assert_allclose(correlations(found), correlations(expected), rtol=0, atol=error)
        assert correlations(found).max() < 1 + found.tolerance


def test_products_in_single_precision_serve_below_a_condition_of_a_hundred():
    blocks = layers(condition=20.0, offset=1e3)
    moments = gathered(blocks, dtype=torch.float32)
    assert needs_exact(moments) == []
    for found, expected in pairs_of(moments, blocks):
        assert_allclose(correlations(found), correlations(expected), rtol=0, atol=3e-5)
        assert correlations(found).max() < 1 + found.tolerance
        assert_allclose(found.squared_cross, expected.squared_cross, rtol=1e-6)
        assert_allclose(found.squared_rows, expected.squared_rows, rtol=1e-6)
        assert_allclose(nuclear(found), nuclear(expected), rtol=1e-6)
    assert needs_exact(gathered(layers(condition=1e3), dtype=torch.float32)) == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"dtype": torch.float32}])
@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_offsets_and_scales_of_neurons_change_no_correlations(options, scale):
    blocks = layers()
    moved = [blocks[0] * scale, blocks[1].clone(), blocks[2] + 1e6]
    moved[1][:, 4] *= scale
    error = 1e-5 if options.get("dtype") == torch.float32 else 1e-9
    moments, still = gathered(moved, **options), gathered(blocks, **options)
    for i in range(3):
        for j in range(3):
            found, expected = moments.overlap(i, j), still.overlap(i, j)
            assert_allclose(correlations(found), correlations(expected), rtol=0, atol=error)
    assert_allclose(
        debiased_cka(moments.overlap(0, 2)), debiased_cka(still.overlap(0, 2)), atol=error
    )


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"dtype": torch.float32}])
def test_constant_and_duplicate_neurons_change_nothing(options):
    blocks = layers()
    constant = torch.full((1200, 1), 0.1, dtype=torch.float64)
    wider = torch.cat([blocks[0], constant * 1e6, blocks[0][:, :3] * 7 + 2, constant * 0], 1)
    moments = gathered([wider, *blocks], **options)
    assert moments.side(0).rank == 8
    atol = 1e-5 if options.get("dtype") == torch.float32 else 1e-12
    for j in (2, 3):
        found, expected = moments.overlap(0, j), moments.overlap(1, j)
        assert_allclose(correlations(found), correlations(expected), rtol=0, atol=atol)
        assert_allclose(found.x.loadings[:, 8], 0, atol=1e-14)
    dead = gathered([constant.expand(-1, 4), blocks[0]], **options)
    assert dead.side(0).rank == 0
    assert np.isnan(dead.conditions[0])
    assert dead.overlap(0, 1).whitened.shape == (0, 8)


def test_layers_without_a_change_in_the_first_rows_are_not_constant():
    late = layers(6000)
    late[0][:4000] = 0.0
    for found, expected in pairs_of(gathered(late), late):
        check(found, expected, 1e-10)


def test_directions_that_covariances_cannot_see_ask_for_a_second_pass():
    blocks = layers()
    near = torch.cat([blocks[0], blocks[0][:, :1] + 1e-8 * normal(1200, 1, seed=9)], 1)
    moments = gathered([near, blocks[1], near.float()])
    assert moments.side(0).rank == 8
    assert needs_exact(moments) == [0]  # float32 holds no more than that
    exact = gathered([near, blocks[1], near.float()], exact=True)
    assert [exact.side(i).rank for i in range(3)] == [9, 13, 8]
    assert exact.conditions[0] > 1e6
    assert_allclose(
        correlations(exact.overlap(0, 1)),
        correlations(overlap(rows(near), rows(blocks[1]))),
        rtol=0,
        atol=1e-7,
    )


def test_fewer_examples_than_neurons_have_a_rank_of_one_less():
    blocks = layers(12, (20, 5))
    for options in ({}, {"exact": True}):
        moments = gathered(blocks, **options)
        assert [moments.side(i).rank for i in range(2)] == [11, 5]
        assert needs_exact(moments) == []
        for found, expected in pairs_of(moments, blocks):
            check(found, expected, 1e-9)


@pytest.mark.parametrize("exact", [False, True])
def test_a_block_of_images_can_be_left_out(exact):
    blocks = layers(630)
    moments = gathered(blocks, batch=64, exact=exact, num_blocks=4, rows_per_image=9)
    assert moments.block_sizes == (162, 162, 153, 153)
    check(moments.overlap(0, 1), gathered(blocks, exact=exact).overlap(0, 1), 1e-12)
    for left_out in range(4):
        kept = torch.arange(630) // 9 % 4 != left_out
        rest = [block[kept] for block in blocks]
        for found, expected in pairs_of(moments.without(left_out), rest):
            check(found, expected, 1e-12)
    with pytest.raises(ValueError, match="no block 4 to leave out of 4"):
        moments.without(4)
    with pytest.raises(ValueError, match="no block 0 to leave out of 0; set num_blocks"):
        moments.without(0).without(0)


@pytest.mark.parametrize("exact", [False, True])
def test_a_neuron_that_lives_in_one_block_is_dead_without_it(exact):
    blocks = layers(600)
    blocks[0][torch.arange(600) % 3 != 1, 2] = 0.001
    moments = gathered(blocks, num_blocks=3, exact=exact)
    assert [moments.side(0).rank, moments.without(0).side(0).rank] == [8, 8]
    assert moments.without(1).side(0).rank == 7
