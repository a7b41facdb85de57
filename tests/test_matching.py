from itertools import permutations, product

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from landscape.maths.matching import (
    Block,
    Units,
    assignment,
    compose,
    match,
    nested_assignment,
)


def best_of(gain):
    """The largest sum over all permutations, one by one."""
    n = len(gain)
    return max(gain[range(n), list(p)].sum() for p in permutations(range(n)))


def numbers(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


def value(blocks):
    return sum(float((block.a * block.b).sum()) for block in blocks)


def test_an_assignment_is_the_best_of_all_permutations():
    for seed in range(20):
        gain = np.random.default_rng(seed).normal(size=(5, 5))
        found = assignment(gain)
        assert_array_equal(np.sort(found), range(5))
        assert_allclose(gain[range(5), found].sum(), best_of(gain), rtol=1e-12)
    stack = np.random.default_rng(0).normal(size=(3, 4, 4))
    assert_array_equal(assignment(stack), [assignment(one) for one in stack])


def test_a_nested_assignment_is_the_best_of_all_heads_and_dimensions():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        outer, inner = rng.normal(size=(3, 3)), rng.normal(size=(2, 3, 3, 3, 3))
        heads, dims = nested_assignment(outer, inner)
        found = sum(outer[i, heads[i]] for i in range(3)) + sum(
            inner[c, i, heads[i], k, dims[c][i, k]]
            for c, i, k in product(range(2), range(3), range(3))
        )
        best = max(
            sum(outer[i, p[i]] + sum(best_of(gain[i, p[i]]) for gain in inner) for i in range(3))
            for p in permutations(range(3))
        )
        assert_allclose(found, best, rtol=1e-12)


def test_two_groups_reach_the_best_of_all_pairs_of_permutations():
    groups = {"x": Units(4), "y": Units(3)}
    for seed in range(5):
        shapes = [((4, 5), ("x", None)), ((3, 4), ("y", "x")), ((2, 3), (None, "y"))]
        blocks = [
            Block(numbers(*shape, seed=seed), numbers(*shape, seed=seed + 50), axes)
            for shape, axes in shapes
        ]
        found = match(blocks, groups, starts=20)
        best = max(
            value([
                Block(blocks[0].a, blocks[0].b[list(p)], ()),
                Block(blocks[1].a, blocks[1].b[list(q)][:, list(p)], ()),
                Block(blocks[2].a, blocks[2].b[:, list(q)], ()),
            ])
            for p, q in product(permutations(range(4)), permutations(range(3)))
        )  # fmt: skip
        assert_allclose(max(values[-1] for values in found.values), best, rtol=1e-12)
        assert max(values[-1] for values in found.values) == found.values[found.best][-1]


def test_the_sum_never_falls_and_is_that_of_the_permutations():
    groups = {"h": Units(4), "d": Units(3, ("h",)), "x": Units(6)}
    blocks = [
        Block(numbers(4, 3, 6), numbers(4, 3, 6, seed=1), ("h", "d", "x")),
        Block(numbers(6, 6, seed=2), numbers(6, 6, seed=3), ("x", "x")),
        Block(numbers(6, 2, seed=4), numbers(6, 2, seed=5), ("x", None)),
    ]
    found = match(blocks, groups, starts=4, tolerance=0.0)
    for values in found.values:
        assert np.all(np.diff(values) >= -1e-12)
    h, d, x = (found.permutations[name] for name in "hdx")
    moved = [
        Block(blocks[0].a, blocks[0].b[h[:, None], d][:, :, x], ()),
        Block(blocks[1].a, blocks[1].b[x][:, x], ()),
        Block(blocks[2].a, blocks[2].b[x], ()),
    ]
    assert_allclose(value(moved), found.values[found.best][-1], rtol=1e-12)


@pytest.mark.parametrize("axes", [("h", "d"), ("d", "h"), ("g", "h")])
def test_units_within_units_come_back(axes):
    groups = {
        "h": Units(3),
        "d": Units(4, ("h",)),
        "g": Units(2, ("h",)),
        "n": Units(3, fixed=True),
    }
    rng = np.random.default_rng(0)
    h, d, g = rng.permutation(3), rng.permuted(np.tile(range(4), (3, 1)), axis=1), None
    g = rng.permuted(np.tile(range(2), (3, 1)), axis=1)
    whole = numbers(3, 4, 2, 5)  # both inner groups in one array: no closed form
    line = np.arange(5)
    moved = whole[np.ix_(h, range(4), range(2), line)]
    for i in range(3):
        moved[i] = moved[i][d[i]][:, g[i]]
    found = match([Block(whole, moved, ("h", "d", "g", None))], groups, starts=3).permutations
    back = moved[found["h"]]
    for i in range(3):
        back[i] = back[i][found["d"][i]][:, found["g"][i]]
    assert_array_equal(back, whole)


def test_composing_is_permuting_twice():
    groups = {"h": Units(3), "d": Units(4, ("h",))}
    rng = np.random.default_rng(0)
    first, second = (
        {"h": rng.permutation(3), "d": rng.permuted(np.tile(range(4), (3, 1)), axis=1)}
        for _ in range(2)
    )
    array = numbers(3, 4)
    once = array[first["h"][:, None], first["d"]]
    twice = once[second["h"][:, None], second["d"]]
    both = compose(first, second, groups)
    assert_array_equal(array[both["h"][:, None], both["d"]], twice)


def test_stopping_does_not_depend_on_the_scale_of_the_weights():
    groups = {"x": Units(8), "y": Units(8)}
    pairs = [(numbers(8, 8, seed=s), numbers(8, 8, seed=s + 9)) for s in range(3)]
    axes = [("x", None), ("y", "x"), (None, "y")]
    runs = []
    for scale in (1e-9, 1.0, 1e9):
        blocks = [Block(a, scale * b, x) for (a, b), x in zip(pairs, axes, strict=True)]
        runs.append(match(blocks, groups, starts=3, seed=2))
    for run in runs:
        assert [len(values) for values in run.values] == [len(v) for v in runs[1].values]
        assert_array_equal(run.permutations["x"], runs[1].permutations["x"])


def test_gains_that_are_no_numbers():
    with pytest.raises(ValueError, match="the gains are not finite; look for NaN"):
        assignment(np.array([[0.0, np.nan], [1.0, 0.0]]))
