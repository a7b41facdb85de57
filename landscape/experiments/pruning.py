"""Which weights does a network need, and from when? Chains of pruning and rewinding.

A chain of iterative magnitude pruning (Frankle et al. 2019 and 2020, arXiv 1903.01611 and
1912.05671) begins with the dense network as level 0; each further level prunes the network of the
level before, by a mask, and trains what is left again, from step k.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import xarray as xr

from landscape import results
from landscape.checkpoints import Checkpoint, CheckpointError, checkpoints
from landscape.experiments.branches import checkpoint_at, fresh_seed, last_checkpoint
from landscape.experiments.comparisons import ablations, num_parameters
from landscape.experiments.masks import (
    MASK,
    Mask,
    Scope,
    Within,
    densities,
    density,
    full_mask,
    load_mask,
    pruned,
    save_mask,
    shuffled_mask,
)
from landscape.experiments.records import Ended, read_record, read_run
from landscape.experiments.runs import Branch, Run
from landscape.experiments.training import train
from landscape.states import State, Stored

Carried = Literal["carry", "reset"]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How each level prunes, and from where it trains again.

    Each level prunes the `share` of the remaining weights with the smallest magnitudes, over all
    layers or in each (`scope`), but none that match a pattern of `kept`. One level with a large
    share is one-shot pruning.

    `retrain` says what trains next, always with the learning rates of steps `step` to the end:
    `"rewind"`, the survivors with their values at that step of the dense network (0 are winning
    tickets); `"lr"`, the survivors as they are (learning-rate rewinding, Renda et al. 2020, arXiv
    2003.02389); `"fine-tune"`, these too, but with the last learning rate throughout. With
    `restart` the clock starts at 0 in place of `step`, and each level trains all steps. The
    optimiser starts anew unless it is carried, as may batch norm's statistics.
    """

    step: int = 0
    share: float = 0.2
    scope: Scope = "global"
    kept: tuple[str, ...] = ()
    retrain: Literal["rewind", "lr", "fine-tune"] = "rewind"
    restart: bool = False
    optimiser: Carried = "reset"
    batch_norm: Carried = "carry"
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")
        if self.retrain not in ("rewind", "lr", "fine-tune"):
            raise ValueError(f"retrain must be 'rewind', 'lr' or 'fine-tune', got {self.retrain!r}")
        if self.scope not in ("global", "layer"):
            raise ValueError(f"scope must be 'global' or 'layer', got {self.scope!r}")
        if not self.name:
            kind = "" if self.retrain == "rewind" else f"-{self.retrain}"
            object.__setattr__(self, "name", f"k={self.step}{kind}")


@dataclass(frozen=True, eq=False)
class Level:
    """A level of a chain: its run, the mask that it trained with, and how it ended."""

    number: int
    run: Run
    mask: Mask
    end: Ended


def iterative_pruning(
    runs: Run | Sequence[Run],
    chains: Chain | Sequence[Chain],
    folder: str | os.PathLike[str],
    *,
    levels: int,
    **options: Any,
) -> dict[str, list[Level]]:
    """Train each run densely, then prune and train it again, `levels` times for each chain.

    The dense networks are `name/level-00` in `folder`, one for all chains of a run; level 3 of a
    chain is the run `name/CHAIN/level-03`, with its mask beside the checkpoints (`load_mask`). All
    runs and chains train a level together, those of one `step` stacked; `options` are those of
    `train`. After level r a share (1 - share) ** r of the weights survives, up to one weight. Each
    level has its own order of the data and its own augmentations, and all else is that of the run.

    The same call goes on after an interruption, at any level, and more levels may be asked for. A
    chain whose run is no longer finite ends there, and the others go on. Returns the levels of each
    chain by its folder, `name/CHAIN`, from level 0.

    Raises `ValueError` if the dense run leaves no checkpoint at a step, chains share a name, a
    level before others is missing in a folder, or a level would empty a layer; and as `train`.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    chains = [chains] if isinstance(chains, Chain) else list(chains)
    _check_chains(runs, chains, Path(folder), levels)
    dense = [replace(run, name=f"{run.name}/level-00") for run in runs]
    found = {
        f"{run.name}/{chain.name}": [Level(0, own, full_mask(own.build(), kept=chain.kept), end)]
        for run, own, end in zip(runs, dense, train(dense, folder, **options), strict=True)
        for chain in chains
    }
    of_chain = {f"{run.name}/{chain.name}": chain for run in runs for chain in chains}
    for number in range(1, levels + 1):
        wanted = {
            name: _next(of_chain[name], name, done, Path(folder))
            for name, done in found.items()
            if len(done) == number and done[-1].end.status != "nonfinite"
        }
        ends = train_masked(list(wanted.values()), folder, **options)
        for (name, run), end in zip(wanted.items(), ends, strict=True):
            found[name].append(Level(number, run, run.masks, end))
    return found


def train_masked(
    runs: Sequence[Run], folder: str | os.PathLike[str], **options: Any
) -> list[Ended]:
    """`train`, with the mask of each run beside its checkpoints. Raises as `save_mask`, `train`."""
    for run in runs:
        save_mask(run.masks, Path(folder) / run.name)
    return train(runs, folder, **options)


def rewound(
    run: Run,
    mask: Mask,
    state: State | Stored,
    step: int,
    *,
    optimiser: Carried = "reset",
    batch_norm: Carried = "carry",
) -> Run:
    """The run with a mask, from a state on, with the clock at `step`.

    Survivors begin with their values in the state, such as `rewinding_point(folder, step)`; all
    other prunable weights are 0 at every step, and so is their momentum.
    """
    start = Branch(
        state=state, step=step, optimiser=optimiser, clock="continue", batch_norm=batch_norm
    )
    return replace(run, masks=mask, start=start)


def rewinding_point(folder: str | os.PathLike[str], step: int) -> Checkpoint:
    """The checkpoint of a run's folder at a step.

    Raises `ValueError` if there is none, and says at which steps there are.
    """
    point = checkpoint_at(Path(folder), step)
    if point.path.exists():
        return point
    try:
        there = ", ".join(str(one.step) for one in checkpoints(folder))
    except CheckpointError:
        there = ""
    raise ValueError(_no_checkpoint(str(folder), step, there))


def levels_in(folder: str | os.PathLike[str]) -> dict[int, str]:
    """The levels that the folder of a chain holds, from 1 on, and the status of each.

    The status is that of `run.json`: `"running"` is a level that is not finished. Level 0, the
    dense network, lies beside the chains. Raises `ValueError` if there are none or one is missing.
    """
    paths = {_level_number(path.name): path for path in Path(folder).glob("level-[0-9]*")}
    numbers = sorted(number for number in paths if number > 0)
    missing = sorted(set(range(1, max(numbers, default=0))) - set(numbers))
    if missing:
        raise ValueError(
            f"the chain {folder} has the levels {', '.join(map(str, numbers))} and lacks "
            f"{', '.join(map(str, missing))}, from which the next ones come. Put back what is "
            f"missing, or remove the levels after {missing[0]} to train them anew"
        )
    if not numbers:
        raise ValueError(f"{folder} holds no levels of a chain (folders level-01, level-02, ...)")
    return {number: read_run(paths[number]).get("status", "running") for number in numbers}


# Controls -----------------------------------------------------------------------------------------


def started_from(run: Run, label: str, state: State | Stored) -> Run:
    """The run of a level with another state at its start: `chain/LABEL/level-03`.

    Mask, clock and seeds stay; the optimiser starts anew. Batch norm's statistics are those of the
    state. Raises `ValueError` for a run that does not start from a state.
    """
    if run.start is None:
        raise ValueError(f"run {run.name!r} starts from no state; give the run of a level above 0")
    start = replace(run.start, state=state, optimiser="reset", batch_norm="carry")
    return replace(run, name=_beside(run, label), start=start)


def reinitialised(run: Run, *, number: int = 1) -> Run:
    """The run of a level with new initial weights: `chain/reinitialised-NUMBER/level-03`.

    The mask stays, and the clock starts where it does for the level. The weights are the `number`th
    new draw of the run's seed `init`. Raises as `started_from`.
    """
    seeds = replace(run.seeds, init=fresh_seed(run.seeds.init, number))
    fresh = replace(run, seeds=seeds).build().state_dict()
    return replace(started_from(run, f"reinitialised-{number}", fresh), seeds=seeds)


def randomly_pruned(run: Run, *, within: Within = "layer", number: int = 1) -> Run:
    """The run of a level that rewinds, with a random mask: `chain/random-WITHIN-NUMBER/level-03`.

    The mask is that of the level, permuted as in `shuffled_mask`: the `number`th draw of the run's
    seed `noise`. Weights are those of the dense network at the level's first step.
    """
    seed = fresh_seed(run.seeds.noise, number)
    mask = shuffled_mask(run.masks, within=within, seed=seed)
    return replace(run, name=_beside(run, f"random-{within}-{number}"), masks=mask)


def smaller_dense(run: Run, *, tolerance: float = 0.1, **flags: Iterable[Any]) -> Run:
    """A dense network with as many parameters as a level has left: `chain/smaller/of-level-03`.

    Of the networks that `make_model` makes with each combination of the flags (as in `ablations`),
    such as `hidden=[(n, n) for n in range(1, 129)]` or `width=range(1, 17)`, the one whose number
    of parameters is nearest to that of the level's which are not pruned. It trains all steps from
    initial weights of its own; data, seeds and learning rates are those of the level.

    Raises `ValueError` for a run without masks, or if no number is within a share `tolerance` of
    the one wanted; and as `ablations`.
    """
    if not run.masks:
        raise ValueError(f"run {run.name!r} has no masks; give the run of a level above 0")
    wanted = num_parameters(run) - sum(int((one == 0).sum()) for one in run.masks.values())
    whole = replace(run, masks={}, start=None)
    sizes = {one: num_parameters(one) for one in ablations(whole, **flags)}
    nearest = min(sizes, key=lambda one: abs(sizes[one] - wanted))
    if abs(sizes[nearest] - wanted) > tolerance * wanted:
        raise ValueError(
            f"no network is about as small as {run.name!r}, which has {wanted} parameters left: of "
            f"those with the {' and '.join(flags)} given, the nearest has {sizes[nearest]}. Give "
            f"more choices, or a tolerance above {tolerance:g}"
        )
    path = PurePosixPath(_beside(run, "smaller"))
    return replace(nearest, name=str(path.with_name(f"of-{path.name}")))  # no level: it has no mask


# What came of it ----------------------------------------------------------------------------------


def sparsity_curve(
    names: Sequence[str | Run | Level], folder: str | os.PathLike[str]
) -> xr.Dataset:
    """Accuracy against density, one row for each run: levels of chains, and their controls.

    Variables over `run`, `nan` for what a run does not have: `density` of the prunable weights, 1
    for a dense network; `layer_density` (run, layer); `test_error` and `train_error` of the last
    epoch that has them. Coordinates: `chain`, the folder of a run's level, and the number `level`.
    """
    own = [_name(name) for name in names]
    paths = [Path(folder) / name for name in own]
    masks = [load_mask(path) if (path / MASK).exists() else {} for path in paths]
    layers = list(dict.fromkeys(layer for mask in masks for layer in mask))
    shares = [densities(mask) for mask in masks]
    errors = [_last_errors(path) for path in paths]
    dense = [1.0 if read_run(path) else math.nan for path in paths]
    by_layer = [
        [one.get(layer, none) for layer in layers] for one, none in zip(shares, dense, strict=True)
    ]
    return results.dataset(
        {
            "density": (
                "run",
                [density(mask) if mask else none for mask, none in zip(masks, dense, strict=True)],
                {"long_name": "density"},
            ),
            "layer_density": (
                ("run", "layer"),
                np.array(by_layer).reshape(len(own), len(layers)),
                {"long_name": "density of the layer"},
            ),
            "test_error": ("run", [e[0] for e in errors], {"long_name": "test error"}),
            "train_error": ("run", [e[1] for e in errors], {"long_name": "training error"}),
        },
        {
            "run": own,
            "layer": layers,
            "chain": ("run", [str(PurePosixPath(name).parent) for name in own]),
            "level": ("run", [_level_number(name) for name in own]),
        },
        analysis="sparsity",
        title=f"accuracy against density of {len(own)} runs",
    )


# Helpers ------------------------------------------------------------------------------------------


def _check_chains(runs: Sequence[Run], chains: Sequence[Chain], folder: Path, levels: int) -> None:
    """Refuse what could not be trained to its end, before anything is."""
    names = [chain.name for chain in chains]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"chains need names of their own, got {names}")
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    for run in runs:
        if run.masks:
            raise ValueError(f"run {run.name!r} has masks already; chains begin with dense runs")
        for chain in chains:
            steps = run.checkpoint_steps - {run.timeline.steps}
            if chain.step not in steps:
                shown = ", ".join(map(str, sorted(steps)[:8])) + (", ..." if len(steps) > 8 else "")
                raise ValueError(_no_checkpoint(run.name, chain.step, f"{shown} (before the end)"))
            if chain.optimiser == "carry" and not run.keep_optimiser:
                raise ValueError(
                    f"run {run.name!r} does not keep its optimiser, which chain {chain.name!r} "
                    "carries: give it keep_optimiser=True, or the chain optimiser='reset'"
                )
            if any((folder / run.name / chain.name).glob("level-[0-9]*")):
                levels_in(folder / run.name / chain.name)


def _no_checkpoint(name: str, step: int, there: str) -> str:
    return (
        f"{name} leaves no checkpoint at step {step} to rewind to; there are those of steps "
        f"{there or 'none'}. Rewind to one of them, or add At([{step}]) to its checkpoints"
    )


def _next(chain: Chain, name: str, done: Sequence[Level], folder: Path) -> Run:
    """The run of the next level of a chain."""
    dense, before, number = done[0].run, done[-1], len(done)
    trained = last_checkpoint(before.end)
    try:
        mask = pruned(trained, before.mask, (1 - chain.share) ** number, scope=chain.scope)
    except ValueError as error:
        raise ValueError(f"level {number} of {name} cannot be pruned: {error}") from error
    seeds = replace(
        dense.seeds,
        order=fresh_seed(dense.seeds.order, number),
        augmentation=fresh_seed(dense.seeds.augmentation, number),
        dropout=fresh_seed(dense.seeds.dropout, number),
    )
    rewinds = chain.retrain == "rewind"
    run = rewound(
        replace(dense, name=f"{name}/level-{number:02d}", seeds=seeds),
        mask,
        rewinding_point(folder / dense.name, chain.step) if rewinds else trained,
        0 if chain.restart else chain.step,
        optimiser=chain.optimiser,
        batch_norm=chain.batch_norm,
    )
    if chain.retrain == "fine-tune" and callable(run.lr):
        last = run.timeline.steps - 1
        return replace(run, lr=float(run.lr(dense.lr_clock(last))))
    return run


def _beside(run: Run, label: str) -> str:
    """The name of a control: in a folder of its own within that of the chain."""
    path = PurePosixPath(run.name)
    return str(path.parent / label / path.name)


def _name(one: str | Run | Level) -> str:
    return one if isinstance(one, str) else one.name if isinstance(one, Run) else one.run.name


def _level_number(name: str) -> int:
    _, _, number = PurePosixPath(name).name.partition("level-")
    return int(number) if number.isdigit() else -1


def _last_errors(folder: Path) -> tuple[float, float]:
    """The last test and training error of a run's record."""
    record = read_record(folder)
    if not record:
        return math.nan, math.nan
    return _last(record["test_error"]), _last(record["train_error"])


def _last(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else math.nan
