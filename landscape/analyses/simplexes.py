"""Do solutions lie on a common low-loss volume? A complex of simplexes that share trained vertices.

With one trained vertex it is the polygonal chain through it; with more it has a volume, which
training keeps large.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.analyses.connectivity import (
    Array,
    described,
    rows_of,
    weights_of,
    with_rows,
)
from landscape.descent import Trainable, descend, flat_model, recipe_of, shuffled
from landscape.evaluation import Tasks, evaluate, placing, prepare
from landscape.families import Family, simplex
from landscape.states import State, check_alike, inner_products
from landscape.task import training_task


def simplexes(
    task: Tasks,
    modes: Sequence[State],
    *,
    connectors: int = 1,
    volume_weight: float = 1e-3,
    num_samples: int = 100,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """Train vertices that connect modes through simplexes of low loss, and sample the loss there.

    The complex is the union, over the modes, of the simplex of that mode and all `connectors`
    (Benton et al. 2021, section 4: SPRO). Training minimises the mean loss at uniform random
    points, one for each mini-batch, less `volume_weight` times the logarithm of the complex's
    volume. The modes stay as they are; connectors start near their mean.

    The fields of `descent.Recipe` are options, the others go to `evaluate`. Returns loss and
    metrics at `num_samples` random points of the complex (dimension `point`), their `shares` of the
    vertices, `volume` (the sum over simplexes, in units of distance to the power `connectors`),
    `training_loss` for each epoch, and the connectors as `bends` (bend, weight).

    Raises `ValueError` for fewer than two modes, no connector, modes of unlike architectures, and
    modes that are all the same.
    """
    recipe = recipe_of(options)
    num = len(modes)
    if num < 2 or connectors < 1:
        raise ValueError(
            f"a complex needs at least two modes and one connector, got {num} and {connectors}"
        )
    check_alike(modes)
    family = simplex(*modes, *[modes[0]] * connectors)
    ready = prepare(task, family, **placing(options))
    main = training_task(ready.tasks)
    flat = flat_model(main, modes[0], recipe, device=ready.device, dtype=ready.dtype)
    fixed = rows_of(modes, flat, main)

    def step(train: Trainable, generator: torch.Generator, inputs: Any, targets: Any) -> Tensor:
        shares = torch.as_tensor(_draw(generator, num, connectors)).to(fixed)
        torch.mv(train.rows.T, shares[num:], out=flat.weights)
        flat.weights.addmv_(fixed.T, shares[:num])
        loss = flat.loss_and_gradient(main, inputs, targets)
        torch.outer(shares[num:], flat.gradient, out=train.gradients)
        train.gradients.sub_(volume_weight * log_volume_gradient(fixed, train.rows))
        return loss

    batches = shuffled(main, recipe, device=ready.device, dtype=ready.dtype)
    starts = _starts(fixed, connectors, recipe.seed)
    last = descend(flat, starts, batches, recipe, step, progress=progress, title="simplex")
    free = np.arange(num + connectors) >= num
    family = with_rows(family, last.rows, main.model, free)
    generator = torch.Generator().manual_seed(recipe.seed)
    shares = np.stack([_draw(generator, num, connectors) for _ in range(num_samples)])
    result = evaluate(ready, family, shares[:, 1:], scattered=True, **options)
    names = [name for name, _ in main.model.named_parameters()]
    result["shares"] = (("point", "vertex"), shares, {"long_name": "shares of the vertices"})
    words = {"long_name": "volume of the complex"}
    result["volume"] = ((), volume(family, names, num), words)
    rows = last.rows.numpy()
    result["bends"] = (("bend", "weight"), rows, {"long_name": "parameters of the connectors"})
    result.attrs |= {"weights": weights_of(main.model), "volume_weight": volume_weight}
    title = f"{num} simplexes with {connectors} common vertices"
    return described(result, last, recipe, title=title).assign_attrs(analysis="simplexes")


def volume(family: Family, names: Sequence[str], modes: int) -> float:
    """The volume of the complex of a simplex family: the sum over its first `modes` vertices."""
    connectors = list(family.controls[modes:])
    volumes = []
    for mode in family.controls[:modes]:
        products = inner_products(connectors, names, origin=mode)
        sign, log = np.linalg.slogdet(products)
        volumes.append(np.exp(log / 2) if sign > 0 else 0.0)
    return float(np.sum(volumes) / math.factorial(len(connectors)))


def log_volume_gradient(fixed: Tensor, connectors: Tensor) -> Tensor:
    """Gradient (k, P) of the log volume of the complex with regard to its connectors (k, P).

    With D the connectors less a mode, the simplex has volume sqrt(det D D') / k! and its logarithm
    the gradient (D D')^-1 D; simplexes count by their share of the volume.
    """
    total, logs, parts = torch.zeros_like(connectors), [], []
    for mode in fixed:
        displacement = connectors - mode
        products = (displacement @ displacement.T).double()
        products = products + 1e-12 * products.trace() * torch.eye(len(products)).to(products)
        logs.append(torch.logdet(products) / 2)
        parts.append(torch.linalg.solve(products, displacement.double()).to(total))
    for share, part in zip(torch.stack(logs).softmax(0), parts, strict=True):
        total += share.to(total) * part
    return total


def _starts(modes: Tensor, connectors: int, seed: int) -> Tensor:
    """The mean of the modes (m, P), moved a tenth of their spread in random directions."""
    middle = modes.mean(0)
    spread = (modes - middle).norm(dim=1).mean()
    if spread == 0:
        raise ValueError("the modes are all one and the same network: there is nothing to connect")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(connectors, len(middle), generator=generator).to(modes)
    return middle + 0.1 * spread * directions / directions.norm(dim=1, keepdim=True)


def _draw(generator: torch.Generator, modes: int, connectors: int) -> Array:
    """Shares (modes + connectors,) of a uniform random point in the simplex of a random mode."""
    mode = int(torch.randint(modes, (1,), generator=generator))
    uniform = torch.rand(connectors + 1, generator=generator, dtype=torch.float64)
    exponential = -uniform.clamp(min=1e-300).log()
    shares = np.zeros(modes + connectors)
    shares[[mode, *range(modes, modes + connectors)]] = exponential / exponential.sum()
    return shares
