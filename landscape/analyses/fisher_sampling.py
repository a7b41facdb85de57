"""How is a mean over examples and labels of squared gradients had from few backward passes?

All examples go forward, and a few go backward: drawn in proportion to the uncertainty that the
forward pass shows, in pairs from strata, so that the standard error is estimated without bias.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from landscape.analyses.fisher_gradients import Points, Probe, check_finite, pulled, uncertainties

Array = NDArray[np.float64]

NUM_BACKWARDS = 256  # for labels that are drawn
NUM_EXAMPLES = 128  # that go backward at first for other labels
DRAWS = 2  # of labels of an example: the least that shows how much they differ
TWICE = 4  # one stratum of so many has two draws for each example
UNIFORM = 0.1  # share of the examples that are drawn whatever their uncertainty
GROWTH = 4  # by which a sample grows at most before its standard error is looked at again


@dataclass(frozen=True, eq=False)
class Estimate:
    """Means over examples and labels (tensors + 1,), the last one for all tensors together.

    `labels` and `examples` are the variances that come from drawn labels and drawn examples.
    """

    values: Array
    labels: Array
    examples: Array
    num_backwards: int

    @property
    def relative_stderr(self) -> float:
        """The standard error of the total as a share of it."""
        variance = self.labels[-1] + self.examples[-1]
        return float(np.sqrt(variance) / self.values[-1]) if variance > 0 else 0.0


def planned(probe: Probe) -> tuple[Points, int, Array]:
    """Points that go backward, draws of labels for each, and the sizes they were drawn by.

    All examples, without sizes, if there are no more than were asked for.
    """
    how, num = probe.how, probe.examples.num
    if how.labels == "sampled":
        most = how.num_backwards or NUM_BACKWARDS
        wanted, draws = most * TWICE // (TWICE + 1), max(DRAWS, most // num)
    else:
        most = how.num_backwards or NUM_EXAMPLES * probe.num_cotangents
        wanted, draws = most // probe.num_cotangents, 1
    wanted = 2 * max(2, wanted // 2)
    if wanted >= num or (how.labels != "sampled" and how.num_backwards is how.tolerance is None):
        return _everything(num), draws, np.zeros(0)
    sizes = uncertainties(probe)
    return drawn_points(sizes, wanted, seed=how.seed), 1, sizes


def some_points(points: Points, num: int) -> Points:
    """The first points; a mean over all of them it no longer is."""
    return Points(points.numbers[:num], points.occurrences[:num], points.weights[:num])


def _everything(num: int) -> Points:
    return Points(np.arange(num), np.zeros(num, np.int64), np.full(num, 1 / num))


def estimated(probe: Probe) -> Estimate:
    """Means of squared norms, by the plan, and on until the tolerance is met.

    What comes on top has draws of its own. Where as many examples would go backward as there are,
    all do; where as many labels would be drawn as there are, the mean over all is taken.
    """
    how, num = probe.how, probe.examples.num
    points, draws, sizes = planned(probe)
    found, spent, rounds = _estimate(probe, points, draws, 0), len(points.numbers), 1
    while points.strata is not None and _too_wide(found, how.tolerance):
        further = 2 * max(8, _further(found, how.tolerance, spent) // 2)
        if spent + further >= num:
            points, draws = _everything(num), DRAWS
            found = _estimate(probe, points, draws, 0)
            break
        more = drawn_points(sizes, further, seed=how.seed, salt=rounds)
        found = _together(found, _estimate(probe, more, 1, rounds), spent / (spent + further))
        spent, rounds = spent + further, rounds + 1
    while points.strata is None and _too_wide(found, how.tolerance):
        further = max(DRAWS, _further(found, how.tolerance, draws))
        if draws + further >= probe.num_cotangents:
            return _estimate(replace(probe, how=replace(how, labels="exact")), points, 1, 0)
        more_labels = _estimate(probe, points, further, rounds)
        found = _together(found, more_labels, draws / (draws + further))
        draws, rounds = draws + further, rounds + 1
    return found


def _too_wide(found: Estimate, tolerance: float | None) -> bool:
    return tolerance is not None and found.relative_stderr > tolerance


def _further(found: Estimate, tolerance: float | None, spent: int) -> int:
    """How much more of what was spent should meet the tolerance, with some to spare."""
    assert tolerance is not None
    ratio = 1.1 * (found.relative_stderr / tolerance) ** 2 - 1
    return math.ceil(spent * min(ratio, GROWTH))


def _together(a: Estimate, b: Estimate, share: float) -> Estimate:
    """Two independent estimates, the first with this share of the weight."""
    other = 1 - share
    return Estimate(
        share * a.values + other * b.values,
        share**2 * a.labels + other**2 * b.labels,
        share**2 * a.examples + other**2 * b.examples,
        a.num_backwards + b.num_backwards,
    )


def _estimate(probe: Probe, points: Points, draws: int, salt: int) -> Estimate:
    """The sum over points, and the variances that differences show.

    Points of strata have one draw each, and in every fourth stratum a second one; points that are
    all examples have `draws`.
    """
    if points.strata is not None:
        return _estimate_by_pairs(probe, points, salt)
    size = len(probe.names) + 1
    values, labels, spent = np.zeros(size), np.zeros(size), 0
    for _, terms in _terms(probe, points, draws, salt):
        sums = terms.mean(0) if probe.how.labels == "sampled" else terms.sum(0)
        values += sums.sum(0)
        spent += terms.shape[0] * terms.shape[1]
        if probe.how.labels == "sampled":
            labels += ((terms - sums) ** 2).sum((0, 1)) / (draws * (draws - 1))
    return Estimate(values, labels, np.zeros(size), spent)


def _estimate_by_pairs(probe: Probe, points: Points, salt: int) -> Estimate:
    assert points.strata is not None
    terms, spent = _sums(probe, points, salt)
    labels = np.zeros(terms.shape[1])
    if probe.how.labels == "sampled":
        again = np.flatnonzero(points.strata % TWICE == 0)
        second = Points(
            points.numbers[again], points.occurrences[again] + len(terms), points.weights[again]
        )
        others, more = _sums(probe, second, salt)
        spread = ((terms[again] - others) ** 2).sum(0) / 2  # the variance of single draws
        labels = spread / 2 + spread * (len(terms) / len(again) - 1)
        terms[again] = (terms[again] + others) / 2
        spent += more
    pairs = terms[np.argsort(points.strata, kind="stable")].reshape(-1, 2, terms.shape[1])
    both = ((pairs[:, 0] - pairs[:, 1]) ** 2).sum(0)  # its mean is the variance of sums of two
    return Estimate(terms.sum(0), labels, np.maximum(both - labels, 0), spent)


def _sums(probe: Probe, points: Points, salt: int) -> tuple[Array, int]:
    """Weighted squared norms (n, tensors + 1) of points with one draw, and backward passes."""
    sums, spent = np.zeros((len(points.numbers), len(probe.names) + 1)), 0
    for part, terms in _terms(probe, points, 1, salt):
        sums[part] += terms.sum(0)
        spent += terms.shape[0] * terms.shape[1]
    return sums, spent


def _terms(probe: Probe, points: Points, draws: int, salt: int) -> Iterator[tuple[slice, Array]]:
    """Weighted squared norms (k, n, tensors + 1) of some points at a time; the last is the total.

    Over k cotangents they add up, or if labels are drawn, each is an estimate.
    """
    for part, backward in pulled(probe, points, draws, salt):
        norms = torch.stack([backward.norms[name] for name in probe.names], -1).cpu().numpy()
        check_finite(probe.task, norms, points.numbers[part], "gradient")
        norms = np.concatenate([norms, norms.sum(-1, keepdims=True)], -1)
        yield part, norms * points.weights[part, None]


def drawn_points(sizes: Array, num: int, *, seed: int = 0, salt: int = 0) -> Points:
    """`num` (even) examples, drawn with chances in proportion to size, mixed with equal ones.

    The examples lie side by side on a line, each as long as its chance; the line is cut into
    num / 2 equal strata, and two points fall anywhere in each. A mean weighted by one over the
    chance is unbiased (Hansen and Hurwitz 1943), and the differences within strata show its
    variance without bias. An example that fills strata by itself adds none to it.
    """
    count, total = len(sizes), sizes.sum()
    shares = np.full(count, 1 / count)
    if total > 0:
        shares = (1 - UNIFORM) * sizes / total + UNIFORM * shares
    order = np.argsort(sizes, kind="stable")
    ends = shares[order].cumsum()
    strata = np.arange(num) // 2
    uniforms = np.random.default_rng([seed, salt]).random(num)
    places = np.searchsorted(ends, (strata + uniforms) / (num // 2) * ends[-1], side="right")
    numbers = order[np.minimum(places, count - 1)]
    by_number = np.argsort(numbers, kind="stable")
    numbers, strata = numbers[by_number], strata[by_number]
    occurrences = np.arange(num) - np.searchsorted(numbers, numbers)
    return Points(numbers, occurrences, 1 / (num * count * shares[numbers]), strata)
