import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from landscape.maths.minibatch import minibatch_cka
from landscape.maths.similarity import cka


def layers(n, widths, *, seed=0):
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(1)
    causes = rng.normal(size=(n, 3))
    return [
        torch.from_numpy(causes @ mixing.normal(size=(3, d)) + rng.normal(size=(n, d)))
        for d in widths
    ]


@pytest.mark.parametrize("n", [4, 5, 64, 131, 300])
def test_one_batch_gives_the_debiased_value_of_its_rows(n):
    xs, ys = layers(n, (5, 9, 40)), layers(n, (7, 3))
    found = minibatch_cka([(xs, ys)])
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            assert_allclose(found[i, j], float(cka(x, y)), rtol=1e-9, equal_nan=True)
    same = minibatch_cka([(xs, xs)])
    assert_allclose(same, same.T, rtol=1e-12)
    assert_allclose(same.diagonal(), 1, rtol=1e-12)


def criterion(x, y):
    """Song et al. 2012, equation 4, over distinct examples i, j, q, r."""
    k, l = (block @ block.T for block in (x, y))  # noqa: E741
    n, found = len(x), np.zeros(3)
    for i in range(n):
        for j in range(n):
            for q in range(n):
                if len({i, j, q}) < 3:
                    continue
                found[1] += k[i, j] * l[i, q]
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        found[2] += k[i, j] * l[q, r]
            if i != j:
                found[0] += k[i, j] * l[i, j]
    pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
    return found[0] / pairs - 2 * found[1] / triples + found[2] / triples / (n - 3)


def test_batches_are_added_before_the_ratio_with_the_weight_of_their_pairs():
    sizes, sums = (6, 9, 3, 5), np.zeros(3)
    batches = [(layers(n, (2,), seed=n), layers(n, (4,), seed=n)) for n in sizes]
    for (x,), (y,) in batches:
        n = len(x)
        if n > 3:
            arrays = [(x, y), (x, x), (y, y)]
            sums += [n * (n - 3) * criterion(a.numpy(), b.numpy()) for a, b in arrays]
    expected = sums[0] / np.sqrt(sums[1] * sums[2])
    assert_allclose(minibatch_cka(batches), [[expected]], rtol=1e-10)


def test_offsets_and_single_precision_cost_few_digits():
    xs, ys = layers(200, (5, 9)), layers(200, (7,))
    expected = minibatch_cka([(xs, ys)])
    moved = [((block + 1000).float() for block in blocks) for blocks in (xs, ys)]
    found = minibatch_cka([tuple(list(blocks) for blocks in moved)])
    assert_allclose(found, expected, atol=2e-4)
    half = [[block.bfloat16() for block in blocks] for blocks in (xs, ys)]
    assert_allclose(minibatch_cka([half]), expected, atol=5e-3)


def test_layers_without_variance_have_no_value():
    xs = [torch.ones(10, 3), *layers(10, (4,))]
    found = minibatch_cka([(xs, xs[1:])])
    assert np.isnan(found[0, 0])
    assert_allclose(found[1, 0], 1)


def test_batches_that_do_not_fit_are_refused():
    (x,), (y,) = layers(10, (3,)), layers(9, (3,))
    with pytest.raises(ValueError, match=r"same examples, got \[9, 10\] rows"):
        minibatch_cka([([x], [y])])
    with pytest.raises(ValueError, match="batches of at least four examples, got none"):
        minibatch_cka([([x[:3]], [y[:3]])])


def test_activations_that_are_complex_or_not_finite_are_refused():
    x, y = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    bad = y.clone()
    bad[2, 1] = float("inf")
    message = "layer 1 of the second network are not finite in batch 1 "
    with pytest.raises(ValueError, match=message):
        minibatch_cka([([x], [x, y]), ([x], [x, bad])])
    with pytest.raises(ValueError, match="real activations, got complex"):
        minibatch_cka([([x], [y.to(torch.complex64)])])
