import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from test_connectivity import at, double, point_task

from landscape.analyses.connectivity import curve_of
from landscape.analyses.energy_path import _even, insertions, minimum_energy_path
from landscape.analyses.interpolation import interpolate


def pass_over(outputs, targets):
    """Two valleys at (-1, 0) and (1, 0), joined by a pass of height 1 at (0, 1)."""
    x, y = outputs.T
    return (x**2 - 1) ** 2 + 10 * (y - (1 - x**2)) ** 2


def test_the_path_leads_over_the_pass():
    task, a, b = point_task(pass_over), at(-1.0, 0.0), at(1.0, 0.0)
    line = interpolate(task, a, b, points=21, **double)
    assert_allclose(line["loss"].max(), 11)
    seen = []
    result = minimum_energy_path(
        task, a, b, epochs=150, lr=0.01, batch_size=4, cycles=4, max_pivots=12,
        on_band=seen.append, **double,
    )  # fmt: skip
    assert_allclose(result["loss"].max(), 1.0, atol=0.05)
    numbers = result["num_pivots"].values
    assert numbers[0] == 3
    assert numbers[-1] == result.sizes["bend"] > 3
    assert [one.numbers for one in seen] == [list(numbers[: i + 1]) for i in range(4)]
    family = curve_of(result, a, b)
    assert torch.equal(family.controls[0]["w"], a["w"])
    steps = np.diff(
        result["arc_length"].sel(t=np.linspace(0, 1, numbers[-1] + 2), method="nearest")
    )
    assert steps.max() / steps.min() < 1.3  # the last step moved the pivots after they were spaced


def test_pivots_are_spaced_evenly_along_the_chain():
    chain = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    expected = [[1.0, 2 / 3], [1.0, 1 + 4 / 3]]
    assert_allclose(_even(chain), expected, rtol=1e-12)
    assert_allclose(_even(torch.zeros(4, 2)), 0)


def test_pivots_are_inserted_where_the_loss_rises_most():
    # two segments of four steps: the first rises by 1 above its line at 1/2, the second by 0.1
    losses = np.array([0.0, 0.5, 1.0, 0.4, 0.0, 0.35, 0.6, 0.75, 1.0])
    assert insertions(losses, 4, 0.2) == [0.5]
    assert insertions(losses, 4, 0.05) == [0.5, 1.25]
    assert insertions(np.zeros(9), 4, 0.2) == []


def test_a_path_that_diverges_keeps_the_last_good_pivots():
    task = point_task(lambda outputs, targets: outputs.square().sum(1) ** 2)
    result = minimum_energy_path(
        task, at(-1.0, 1.0), at(1.0, 0.5), epochs=5, lr=1e20, batch_size=4, **double
    )
    assert result.attrs["diverged"] > 0
    assert_allclose(result["bends"].values[1], [0, 0.75])  # as it was at the start
    assert np.isfinite(result["loss"]).all()


def test_a_stopped_search_goes_on_to_the_same_path():
    task, a, b = point_task(pass_over), at(-1.0, 0.0), at(1.0, 0.0)
    options = {"epochs": 5, "lr": 0.01, "batch_size": 4, "cycles": 3, **double}
    seen = []
    whole = minimum_energy_path(task, a, b, on_band=seen.append, **options)
    resumed = minimum_energy_path(task, a, b, band=seen[0], **options)
    assert_array_equal(resumed["bends"], whole["bends"])
    assert_array_equal(resumed["training_loss"], whole["training_loss"])
    assert whole.sizes["epoch"] == 15


def test_no_pivot_is_inserted_beyond_the_limit_and_one_is_needed():
    task, a, b = point_task(pass_over), at(-1.0, 0.0), at(1.0, 0.0)
    options = {"epochs": 1, "lr": 1e-6, "batch_size": 4, "cycles": 3, **double}
    result = minimum_energy_path(task, a, b, pivots=2, max_pivots=1, threshold=0.0, **options)
    assert result["num_pivots"].values.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="at least one bend, got 0"):
        minimum_energy_path(task, a, b, pivots=0, **options)
