import numpy as np
import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose
from test_connectivity import at, double, point_task, square

from landscape.analyses.connectivity import curve_of
from landscape.analyses.simplexes import _draw, log_volume_gradient, simplexes, volume
from landscape.families import simplex


def test_the_volume_is_that_of_right_triangles():
    names = ["w"]
    points = [{"w": torch.tensor(w)} for w in ([0.0, 0, 0], [0.0, 0, 1], [3.0, 0, 0], [0.0, 4, 0])]
    origin, above, *legs = points
    assert_allclose(volume(simplex(origin, *legs), names, 1), 6)
    other = np.linalg.norm(np.cross([3, 0, -1], [0, 4, -1])) / 2
    assert_allclose(volume(simplex(origin, above, *legs), names, 2), 6 + other)
    assert volume(simplex(origin, above, legs[0], legs[0]), names, 2) == 0


def test_the_gradient_of_the_log_volume_is_that_of_autograd():
    generator = torch.Generator().manual_seed(0)
    modes = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    connectors = torch.randn(2, 6, generator=generator, dtype=torch.float64).requires_grad_()
    products = [(connectors - mode) @ (connectors - mode).T for mode in modes]
    torch.stack([torch.linalg.det(one).sqrt() for one in products]).sum().log().backward()
    assert_allclose(
        log_volume_gradient(modes, connectors.detach()), connectors.grad, rtol=1e-8, atol=1e-10
    )


def test_random_points_are_uniform_in_the_simplexes():
    generator = torch.Generator().manual_seed(0)
    shares = np.stack([_draw(generator, 2, 2) for _ in range(4000)])
    assert_allclose(shares.sum(1), 1)
    assert ((shares[:, :2] > 0).sum(1) == 1).all()  # one mode each
    # Dirichlet(1, 1, 1): mean 1/3 and variance 1/18 of each share
    assert_allclose(shares[:, 2:].mean(0), 1 / 3, atol=4 * (1 / 18 / 4000) ** 0.5)
    assert_allclose(shares[:, 2:].var(0), 1 / 18, rtol=0.1)


def test_connectors_find_the_low_volume():
    def ring(outputs, targets):  # low at distance 1 from the origin
        return (outputs.norm(dim=1) - 1).square()

    task, modes = point_task(ring), [at(-1.0, 0.0), at(1.0, 0.0)]
    options = {"epochs": 300, "lr": 0.1, "batch_size": 4, "num_samples": 50, "volume_weight": 0.0}
    result = simplexes(task, modes, **options, **double)
    assert_allclose(abs(result["bends"].values[0]), [0, 1.2], atol=0.2)
    assert result["loss"].mean() < 0.05
    chain = np.linalg.norm(result["bends"].values[0] - [[-1, 0], [1, 0]], axis=1).sum()
    assert_allclose(result["volume"], chain)


def test_the_weight_of_the_volume_holds_it_open():
    modes = [at(-1.0, 0.0), at(1.0, 0.0)]
    volumes = [
        float(simplexes(point_task(square), modes, connectors=2, epochs=100, batch_size=4, lr=0.05,
                        num_samples=2, volume_weight=weight, **double)["volume"])
        for weight in (1e-4, 0.1)
    ]  # fmt: skip
    assert volumes[1] > 2 * volumes[0]


def test_a_complex_needs_modes_and_connectors():
    with pytest.raises(ValueError, match="at least two modes and one connector, got 1 and 1"):
        simplexes(point_task(square), [at(0.0, 0.0)])
    with pytest.raises(ValueError, match="got 2 and 0"):
        simplexes(point_task(square), [at(0.0, 0.0), at(1.0, 0.0)], connectors=0)
    with pytest.raises(ValueError, match="one and the same network"):
        simplexes(point_task(square), [at(1.0, 0.0), at(1.0, 0.0)])
    with pytest.raises(ValueError, match="holds no bends of a curve"):
        curve_of(simplexes(point_task(square), [at(1.0, 0.0), at(0.0, 1.0)], epochs=1),
                 at(1.0, 0.0), at(0.0, 1.0))  # fmt: skip


def test_points_in_a_simplex_are_inside_but_for_rounding():
    case = CASES["residual"]
    options = {"connectors": 2, "epochs": 1, "batch_norm": "interpolate", "num_samples": 40}
    result = simplexes(case.task(), case.states(3), **options)
    assert (1 - result["shares"][:, 1:].values.sum(1)).min() < 0  # below 0 in the last digit
    assert np.isfinite(result["loss"]).all()
