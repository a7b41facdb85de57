import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from landscape.maths.moments import Accumulator, memory_bytes, needs_exact
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
        values = torch.logspace(0, -np.log10(condition), width, dtype=torch.float64)
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
