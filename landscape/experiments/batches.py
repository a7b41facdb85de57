"""Which examples does each run see at each step? All of it is settled before an epoch begins.

The versions of the training sets of a stack lie on the device, one behind the other; which version
and which example stands at each place of an epoch is one table of indices, so that a batch of all
runs is one gather. The order of an epoch comes from the run's seed and the number of the epoch
alone, and so do the parameters of augmentations.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from landscape.datasets import Batches
from landscape.experiments.runs import Run, Window
from landscape.experiments.settings import described
from landscape.task import map_tensors

ORDER, AUGMENTATION, DROPOUT = range(3)  # what a seed is for


def generator(seed: int, *key: int) -> torch.Generator:
    """A generator for one purpose, on the CPU, whatever was drawn before."""
    return torch.Generator().manual_seed(derived(seed, *key))


def reseed(seed: int, device: torch.device) -> None:
    """Seed the global generators that a model on this device draws from, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@cache
def derived(seed: int, *key: int) -> int:
    """A seed for one purpose."""
    return int(np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True, eq=False)
class Pool:
    """What a stack of runs may see."""

    inputs: Tensor  # (versions * N, ...): the versions of the training sets, one behind the other
    targets: Tensor
    num: int  # N, the examples of each version
    versions: Mapping[str, list[tuple[int, int]]]  # by run: from which step which version is shown
    changes: Sequence[tuple[Any, int, Mapping[str, Window]]]  # augmentations, and when by run


def pooled(runs: Sequence[Run], device: torch.device) -> Pool:
    """All versions that runs see, on the device; equal ones are kept once.

    Raises `ValueError` if a view changes the number of the examples, or the versions of several
    runs do not fit together.
    """
    found: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    plain: dict[int, tuple[Tensor, Tensor]] = {}
    versions = {}
    for run in runs:
        keys = {_key(run, step): (run, step) for step in sorted({0, *_bounds(run)})}
        for key, (_, step) in keys.items():
            if key not in found:
                if id(run.data) not in plain:
                    plain[id(run.data)] = whole(run.data, device)
                found[key] = _viewed(run, step, plain[id(run.data)])
        numbers = {key: number for number, key in enumerate(found)}
        versions[run.name] = [
            (step, numbers[_key(run, step)]) for step in sorted({0, *_bounds(run)})
        ]
    pairs = list(found.values())
    return Pool(
        _joined([inputs for inputs, _ in pairs], "inputs"),
        _joined([targets for _, targets in pairs], "targets"),
        runs[0].data.num_examples,
        versions,
        _changes(runs),
    )


def pooled_plain(data: Mapping[str, Batches], device: torch.device) -> Pool:
    """The data of each run as they are."""
    own = {id(one): one for one in data.values()}
    pairs = [whole(one, device) for one in own.values()]
    numbers = {key: number for number, key in enumerate(own)}
    return Pool(
        _joined([inputs for inputs, _ in pairs], "inputs"),
        _joined([targets for _, targets in pairs], "targets"),
        next(iter(own.values())).num_examples,
        {name: [(0, numbers[id(one)])] for name, one in data.items()},
        [],
    )


def shown_to(names: Sequence[str], pool: Pool, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All that a pool holds for each run, in order: inputs and targets (n, batch, ...)."""
    device = pool.inputs.device
    version = torch.tensor([pool.versions[name][0][1] for name in names], device=device)[:, None]
    for places in torch.arange(pool.num, device=device).split(size):
        index = version * pool.num + places
        yield pool.inputs[index], pool.targets[index]


def _viewed(run: Run, step: int, plain: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The training set as a run sees it at a step."""
    x, y = plain
    for view in _active(run, step):
        x, y = view(x, y)
    if len(x) != run.data.num_examples or len(y) != len(x):
        raise ValueError(
            f"run {run.name!r}: a view must give as many examples as it got "
            f"({run.data.num_examples}), got {len(x)} inputs and {len(y)} targets"
        )
    return x, y


def _joined(tensors: list[Tensor], what: str) -> Tensor:
    kinds = {f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors}
    if len(kinds) > 1:
        raise ValueError(
            f"all versions of a training set must be of one shape and dtype, got {what} of "
            f"{' and '.join(sorted(kinds))}; give them the same form throughout"
        )
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def whole(data: Batches, device: torch.device) -> tuple[Tensor, Tensor]:
    """Transformed inputs and targets of all examples, on the device."""
    inputs, targets = data.inputs.to(device), data.targets.to(device)
    return (data.transform(inputs) if data.transform else inputs), targets


def epoch_batches(
    pool: Pool, runs: Sequence[Run], epoch: int, first: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (n, batch, ...) of the steps of an epoch, from step `first` on."""
    begin, end = runs[0].timeline.starts[epoch : epoch + 2]
    steps = range(begin, end)
    places = _places(runs[0], epoch, len(steps))
    index = _orders(runs, epoch, pool.num)
    for row, run in zip(index, runs, strict=True):
        for step, version in _shown(pool.versions[run.name], steps):
            start = int(places[step - begin][0])
            row[start:] = row[start:] % pool.num + version * pool.num
    index = index.to(device)
    changes = list(_drawn(pool, runs, epoch, steps, device))
    for step in range(first, end):
        place = slice(places[step - begin][0], places[step - begin][-1] + 1)
        inputs, targets = pool.inputs[index[:, place]], pool.targets[index[:, place]]
        for augmentation, rows_on, draws in changes:
            rows = rows_on[step - begin]
            if rows is not None:
                drawn = _indexed(draws, (slice(None), place))
                inputs, targets = _changed(augmentation, rows, drawn, inputs, targets)
        yield inputs, targets


def _places(run: Run, epoch: int, num_steps: int) -> list[NDArray[np.int64]]:
    """Which places of the order of an epoch make each batch."""
    places = np.arange(run.data.num_examples)
    if run.last_batch == "even":
        return np.array_split(places, num_steps)
    size = run.batch_size_at(epoch)
    return np.split(places, range(size, len(places), size))


def _orders(runs: Sequence[Run], epoch: int, num: int) -> Tensor:
    """The order (n, N) of the examples in an epoch."""
    seeds = {run.seeds.order for run in runs}
    orders = {s: torch.randperm(num, generator=generator(s, ORDER, epoch)) for s in seeds}
    return torch.stack([orders[run.seeds.order] for run in runs])


def _shown(versions: list[tuple[int, int]], steps: range) -> Iterator[tuple[int, int]]:
    """The first step and those at which the version changes within an epoch, and the versions."""
    yield steps[0], [number for step, number in versions if step <= steps[0]][-1]
    yield from ((step, number) for step, number in versions if step in steps[1:])


def _changes(runs: Sequence[Run]) -> list[tuple[Any, int, dict[str, Window]]]:
    """Equal augmentations of several runs together, in the order in which a run has them."""
    changes: dict[tuple[int, str], tuple[Any, int, dict[str, Window]]] = {}
    for run in runs:
        for number, timed in enumerate(run.augmentations):
            key = (number, json.dumps(described(timed.what)))
            changes.setdefault(key, (timed.what, number, {}))[2][run.name] = timed.window
    return [changes[key] for key in sorted(changes, key=lambda key: key[0])]


def _drawn(
    pool: Pool, runs: Sequence[Run], epoch: int, steps: range, device: torch.device
) -> Iterator[tuple[Any, list[Any], Any]]:
    """The augmentations of an epoch: the rows that each is on for at each step, and its draws."""
    for augmentation, number, windows in pool.changes:
        on = np.zeros((len(steps), len(runs)), bool)
        for row, run in enumerate(runs):
            if run.name in windows:
                first, behind = windows[run.name].within(run.timeline)
                on[:, row] = (np.array(steps) >= first) & (np.array(steps) < behind)
        if on.any():
            seeds = [run.seeds.augmentation for run in runs]
            drawn = {
                seed: augmentation.draw(generator(seed, AUGMENTATION, epoch, number), pool.num)
                for seed in {seed for row, seed in enumerate(seeds) if on[:, row].any()}
            }
            some = next(iter(drawn.values()))  # stands for runs that have none
            own = [drawn.get(seed, some) for seed in seeds]
            draws = tree_map(lambda *tensors: torch.stack(tensors).to(device), *own)
            yield augmentation, [_rows_on(row) for row in on], draws


def _indexed(draws: Any, index: Any) -> Any:
    return map_tensors(lambda tensor: tensor[index], draws)


def _rows_on(on: np.ndarray) -> Any:
    """None if an augmentation is off for all runs, a full slice if on for all, or the rows."""
    return slice(None) if on.all() else torch.from_numpy(np.flatnonzero(on)) if on.any() else None


def _changed(
    augmentation: Any, rows: Any, draws: Any, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The batches with an augmentation applied to some rows; the others are not touched."""
    if isinstance(rows, slice):
        changed: tuple[Tensor, Tensor] = augmentation.apply(inputs, targets, draws)
        return changed
    x, y = inputs[rows], targets[rows]
    new_x, new_y = augmentation.apply(x, y, _indexed(draws, rows))
    if not isinstance(new_y, Tensor) or (new_y.shape, new_y.dtype) != (y.shape, y.dtype):
        raise ValueError(
            f"{augmentation!r} changes the form of the targets for some runs of a stack only; give "
            "all targets that form by a view, or train with stack=1"
        )
    inputs[rows], targets[rows] = new_x, new_y
    return inputs, targets


def _active(run: Run, step: int) -> list[Any]:
    """The views that are on at a step."""
    return [timed.what for timed in run.views if run.clock(step) in timed.window]


def _bounds(run: Run) -> set[int]:
    """The steps at which a view begins or ends."""
    bounds = {step for timed in run.views for step in timed.window.within(run.timeline)}
    return bounds - {run.timeline.steps}


def _key(run: Run, step: int) -> tuple[int, str]:
    return id(run.data), json.dumps(described(_active(run, step)))
