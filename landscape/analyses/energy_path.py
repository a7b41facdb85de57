"""Which path between two solutions stays lowest? A chain of pivots, relaxed and refined (AutoNEB).

The nudged elastic band moves each pivot down the gradient perpendicular to the chain and keeps the
pivots equidistant; a new pivot is inserted where the loss between two pivots is too high.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from landscape.analyses.connectivity import (
    Array,
    along,
    curve_between,
    described,
    rows_of,
    with_rows,
)
from landscape.descent import (
    FlatModel,
    Recipe,
    Snapshot,
    Trainable,
    descend,
    flat_model,
    recipe_of,
    shuffled,
)
from landscape.evaluation import Prepared, Tasks, evaluate, placing, prepare
from landscape.families import Family, polychain
from landscape.states import State, flatten, match
from landscape.task import Task, training_task


@dataclass(frozen=True, eq=False)
class Band:
    """A chain after some cycles, from which the search goes on; plain values, on the CPU.

    `rows` (n, P) are the pivots that the next cycle begins with, `losses` those of each epoch so
    far, `numbers` the pivots in each cycle. `diverged` is 0, or the epoch where the search ended.
    """

    rows: Tensor
    losses: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    diverged: int = 0


def minimum_energy_path(
    task: Tasks,
    a: State,
    b: State,
    *,
    cycles: int = 4,
    pivots: int = 3,
    threshold: float = 0.2,
    sub_pivots: int = 9,
    max_pivots: int = 20,
    points_per_segment: int = 10,
    diagnostics: bool = False,
    band: Band | None = None,
    on_band: Callable[[Band], None] | None = None,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """Find a path of low loss between two states by AutoNEB (Draxler et al. 2018, section 3).

    Main arguments. The path starts straight with `pivots` pivots between the ends, and has `cycles`
    cycles of `epochs` epochs each (a field of `descent.Recipe`, as are `lr`, `batch_size`,
    `weight_decay` and `seed`). In a step all pivots see the same mini-batch; each moves against its
    gradient perpendicular to the tangent, which points to the neighbour of higher loss, after the
    pivots were spaced evenly along the chain (springs of infinite strength). After each cycle but
    the last, the loss is evaluated at `sub_pivots` points within each segment; where it exceeds the
    straight line between its pivots by more than `threshold` times the range of losses on the
    path, a pivot is inserted at the worst point, up to `max_pivots`.

    Other arguments. The result has `points_per_segment` points in each segment. `band`: of an
    earlier call with the same arguments, from which the search goes on; `on_band` sees one after
    each cycle. `diagnostics` is as in `connect`. Further options go to `evaluate`.

    Returns what `connect` returns, with the pivots as `bends`, and `num_pivots` for each cycle.
    """
    recipe = recipe_of(options)
    ready = prepare(task, polychain(a, b), **placing(options))
    search: dict[str, Any] = {"cycles": cycles, "threshold": threshold, "sub_pivots": sub_pivots}
    family, band = find_path(
        ready, a, b, recipe, pivots=pivots, max_pivots=max_pivots, band=band, on_band=on_band,
        progress=progress, **search, **options,
    )  # fmt: skip
    t = np.linspace(0, 1, points_per_segment * (len(family.controls) - 1) + 1)
    result = along(ready, family, t, recipe, diagnostics=diagnostics, **options)
    return path_described(result, band, recipe)


def find_path(
    ready: Prepared,
    a: State,
    b: State,
    recipe: Recipe,
    *,
    cycles: int = 4,
    pivots: int = 3,
    threshold: float = 0.2,
    sub_pivots: int = 9,
    max_pivots: int = 20,
    band: Band | None = None,
    on_band: Callable[[Band], None] | None = None,
    progress: bool | None = False,
    **options: Any,
) -> tuple[Family, Band]:
    """The search of `minimum_energy_path`: the path, and how it was found."""
    model = training_task(ready.tasks).model
    bends = pivots if band is None else len(band.rows)
    family = curve_between(a, b, curve="polychain", bends=bends)
    if band is None:
        band = Band(torch.empty(0))
    else:
        family = with_rows(family, band.rows, model)
    while len(band.numbers) < cycles and not band.diverged:
        cycle = len(band.numbers)
        seeded = dataclasses.replace(recipe, seed=recipe.seed + cycle)
        numbers = [*band.numbers, len(family.controls) - 2]
        family, last = relax(ready, family, seeded, progress=progress)
        diverged = len(band.losses) + last.diverged if last.diverged else 0
        if cycle < cycles - 1 and not diverged:
            room = max(0, max_pivots - numbers[-1])
            family = _refined(ready, family, threshold, sub_pivots, room, options)
        rows = _rows(family, model, ready.dtype)
        band = Band(rows, band.losses + last.losses, numbers, diverged)
        if on_band is not None:
            on_band(band)
    return family, band


def path_described(result: xr.Dataset, band: Band, recipe: Recipe) -> xr.Dataset:
    """The points of a path, with what is known of the search."""
    words = {"long_name": "pivots between the ends"}
    result["num_pivots"] = ("cycle", band.numbers, words)
    title = f"Minimum-energy path with {result.sizes['bend']} pivots"
    last = Snapshot(len(band.losses), band.rows, band.losses, band.diverged)
    return described(result, last, recipe, title=title, curve="polychain")


def relax(
    ready: Prepared, family: Family, recipe: Recipe, *, progress: bool | None = False
) -> tuple[Family, Snapshot]:
    """One cycle of the nudged elastic band: the chain with its inner pivots moved."""
    task = training_task(ready.tasks)
    flat = flat_model(task, family.controls[0], recipe, device=ready.device, dtype=ready.dtype)
    chain = rows_of(family.controls, flat, task)

    def step(train: Trainable, generator: torch.Generator, inputs: Any, targets: Any) -> Tensor:
        chain[1:-1] = train.rows
        train.rows.copy_(_even(chain))
        chain[1:-1] = train.rows
        losses = torch.stack([
            _loss_at(flat, row, task, inputs, targets, gradient)
            for row, gradient in zip(chain, [None, *train.gradients, None], strict=True)
        ])  # fmt: skip
        for number, gradient in enumerate(train.gradients, start=1):
            up = losses[number + 1] > losses[number - 1]
            ahead, behind = chain[number + 1] - chain[number], chain[number] - chain[number - 1]
            tangent = torch.where(up, ahead, behind)
            along = torch.dot(gradient, tangent) / torch.dot(tangent, tangent).clamp(min=1e-30)
            gradient.sub_(along * tangent)
        return losses.max()

    batches = shuffled(task, recipe, device=ready.device, dtype=ready.dtype)
    last = descend(flat, chain[1:-1], batches, recipe, step, progress=progress, title="band")
    return with_rows(family, last.rows, task.model), last


def _rows(family: Family, model: nn.Module, dtype: torch.dtype) -> Tensor:
    """The pivots between the ends as rows (n, P)."""
    states = [match(state, model) for state in family.controls[1:-1]]
    return flatten(states, [name for name, _ in model.named_parameters()], dtype=dtype)


def _loss_at(
    flat: FlatModel, row: Tensor, task: Task, inputs: Any, targets: Any, gradient: Tensor | None
) -> Tensor:
    """The loss of a mini-batch at one pivot; its gradient is copied where one is wanted."""
    flat.weights.copy_(row)
    loss = flat.loss_and_gradient(task, inputs, targets)
    if gradient is not None:
        gradient.copy_(flat.gradient)
    return loss


def _even(chain: Tensor) -> Tensor:
    """The inner pivots (n, P) moved along the chain (n + 2, P) to equal distances."""
    lengths = (chain[1:] - chain[:-1]).norm(dim=1).double().cpu().numpy()
    at = np.concatenate([[0.0], lengths.cumsum()])
    if not np.isfinite(at[-1]):  # it diverges, which ends the epoch
        return chain[1:-1]
    wanted = np.linspace(0, at[-1], len(chain))[1:-1]
    left = np.clip(np.searchsorted(at, wanted, side="right") - 1, 0, len(lengths) - 1)
    rest = (wanted - at[left]) / np.maximum(lengths[left], 1e-30)
    share = torch.as_tensor(rest).to(chain)[:, None]
    index = torch.as_tensor(left, device=chain.device)
    return torch.lerp(chain[index], chain[index + 1], share)


def _refined(
    ready: Prepared,
    family: Family,
    threshold: float,
    sub_pivots: int,
    room: int,
    options: dict[str, Any],
) -> Family:
    """The chain with pivots inserted where the loss between two of them is too high."""
    num = len(family.controls) - 1
    steps = sub_pivots + 1
    result = evaluate(ready, family, np.linspace(0, 1, num * steps + 1), **options)
    name = training_task(ready.tasks).name
    losses = (result.sel(split=name) if "split" in result.dims else result)["loss"].values
    positions = insertions(losses, steps, threshold)[:room]
    states = {float(knot): c for knot, c in zip(np.arange(num + 1.0), family.controls, strict=True)}
    states |= {position: family.at(position / num) for position in positions}
    return polychain(*(states[position] for position in sorted(states)))


def insertions(losses: Array, steps: int, threshold: float) -> list[float]:
    """Where new pivots belong, in units of segments, the worst first.

    `losses` are those at `steps` points per segment, and at the last pivot.
    """
    pivots = losses[::steps]
    inner = np.stack([losses[i : i + steps] for i in range(0, len(losses) - 1, steps)])
    line = pivots[:-1, None] + np.diff(pivots)[:, None] * np.arange(steps) / steps
    excess = inner - line
    worst = excess.argmax(1)
    heights = excess.max(1)
    order = np.argsort(-heights, kind="stable")
    limit = threshold * (losses.max() - losses.min())
    return [float(i + worst[i] / steps) for i in order if heights[i] > limit]
