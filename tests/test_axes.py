import pytest

from landscape.maths.axes import (
    Axis,
    concatenation,
    cut,
    find,
    fix,
    join_versions,
    leaves,
    outer_factors,
    product,
    regroup,
    select,
    unify,
)


def sizes(axis):
    return [leaf.size for leaf in leaves(axis)]


def test_axes_that_are_one_are_refined_together():
    a, b = Axis(24), Axis(24)
    unify(a, b)
    heads, within = regroup([a], [4, 6])
    assert (find(heads).size, find(within).size) == (4, 6)
    assert list(leaves(b)) == [find(heads), find(within)]
    assert outer_factors(find(within)) == [find(heads)]


def test_two_views_of_one_axis_have_a_common_refinement():
    a, b = Axis(24), Axis(24)
    regroup([a], [4, 6])
    regroup([b], [2, 12])
    unify(a, b)
    assert sizes(a) == sizes(b) == [2, 2, 6]
    assert list(leaves(a)) == list(leaves(b))


def test_views_that_do_not_divide_each_other_are_fixed_as_far_as_they_reach():
    b, d = Axis(6), Axis(5)
    first, second = regroup([Axis(4), b, d], [6, 20])
    assert all(leaf.fixed for axis in (b, d, first, second) for leaf in leaves(axis))
    e, f = Axis(4), Axis(9)
    *_, last = regroup([e, Axis(6), f], [6, 4, 9])
    assert last is f
    assert not f.fixed


def test_sums_are_cut_where_either_is():
    a, b = Axis(12), Axis(12)
    assert [find(cut(a, *ends)).size for ends in ((0, 4), (4, 12))] == [4, 8]
    cut(b, 6, 12)
    unify(a, b)
    assert sizes(a) == sizes(b) == [4, 2, 6]
    assert list(leaves(a)) == list(leaves(b))
    whole = concatenation([cut(a, 4, 12), cut(a, 0, 4)])
    assert sizes(whole) == [2, 6, 4]


def test_a_product_meets_a_sum():
    a, b = Axis(12), Axis(12)
    regroup([a], [3, 4])
    cut(b, 0, 4)
    unify(a, b)  # the first of three, then the other two
    first, rest = find(b).parts
    assert sizes(first) == [4]
    assert sizes(rest) == [2, 4]
    assert next(leaves(first)) is list(leaves(rest))[1]


def test_what_is_fixed_stays_so_whatever_it_meets():
    a, b = Axis(12), Axis(12)
    regroup([a], [3, 4])
    fix(b)
    unify(b, a)
    assert all(leaf.fixed for leaf in leaves(a))
    with pytest.raises(ValueError, match="axes of 3 and 4 units cannot be one"):
        unify(Axis(3), Axis(4))


def test_versions_are_apart_until_they_are_joined():
    fused = Axis(12)
    three, units = regroup([fused], [3, 4])
    (first,), (second,) = (select([three, units], 0, index) for index in (0, 1))
    assert find(three).fixed
    assert find(first) is not find(second)
    assert find(select([three, units], 0, 0)[0]) is find(first)
    join_versions(find(units), find(three))
    assert find(first) is find(second) is find(units)


def test_a_product_of_one_is_itself():
    axis = Axis(5)
    assert product([Axis(1), axis, Axis(1)]) is axis
    assert product([]).size == 1
    assert concatenation([axis]) is axis
