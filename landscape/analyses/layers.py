"""How alike are layers: of two networks, of a network and its end, of several steps or runs?

`compare_layers` compares each layer of one state with each of another; `layer_convergence` each
checkpoint with the final one, layer by layer; `layer_matrix` all states with each other, layer by
layer. The examples are seen once and never kept.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from landscape.analyses.layer_pairs import (
    Comparison,
    Found,
    Network,
    Variables,
    compared,
    moments_bytes,
    opened,
)
from landscape.engine import exact_arithmetic
from landscape.examples import Examples, arrange, pick_device, read, some
from landscape.maths.overlap import overlap, rows as rows_of
from landscape.results import dataset
from landscape.selection import Selector, frequencies, neurons
from landscape.states import State, Stored
from landscape.task import Task, random_state_kept, tasks_of

States = Sequence[State | Stored]

HELD = 16  # rows, and columns, of networks that are compared in one pass
LONG_NAMES = {
    "cca": "mean CCA correlation",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "cka": "linear CKA",
    "procrustes": "Procrustes similarity",
    "regression": "linear-regression $R^2$",
    "correlations": "canonical correlation",
    "num_forced": "correlations that are 1 whatever the data",
    "exact": "1 where a running QR was needed",
    "rank": "rank",
    "condition": "condition number at unit variance",
    "width": "neurons",
}
SUFFIXES = {
    "chance": "root mean square of independent layers",
    "stderr": "standard error (jackknife)",
    "adjusted": "above chance",
    "unweighted": "mean over frequencies",
    "by_frequency": "by frequency",
}


def compare_layers(
    task: Task | Sequence[Task],
    a: State | Stored,
    b: State | Stored | None = None,
    *,
    other_model: nn.Module | None = None,
    other_layers: Selector | None = None,
    **options: Any,
) -> xr.Dataset:
    """Compare each layer of one state with each layer of another (by default itself).

    Of several tasks the first gives the examples. `other_model`: a skeleton of b, if it is another
    network than the task's; `other_layers`: its layers, by default those of the same selection. The
    fields of `Comparison` are the options (`measure`, `layers`, `maps`, `blocks`, `device` ...).

    Returns, over (`layer`, `other_layer`), a variable for each measure with `*_stderr` (jackknife
    over blocks of examples) and, where chance is known, `*_adjusted` (1 stays 1, and chance becomes
    0; of CCA it is the mean squared correlation); `num_forced`, how many canonical correlations are
    1 whatever the data; `exact`, 1 where a running QR was needed; for each layer `rank`,
    `condition` and `width` (`other_...`); and `correlations` (..., `direction`) if asked for. In
    the form `"frequency"` a measure is the mean over frequencies weighted by multiplicity and
    power, `*_unweighted` that by multiplicity alone, `*_by_frequency` has each, and `correlations`
    are those at frequency zero. Where an example has several rows (positions, tokens), these are
    not independent: blocks of whole examples are left out, but chance counts rows.

    Raises `ValueError` for layers that cannot be found or compared (see `selection`), for too few
    examples, and if the joint moments of the layers would not fit into memory. Warns if some
    canonical correlations are forced, and if a measure is nan, as of layers that do not vary.
    """
    how = comparison(options)
    with _data(task, how) as (model, device, examples):
        first = opened(model, a, examples, how, device=device)
        second = opened(
            model if other_model is None else other_model, a if b is None else b, examples, how,
            device=device, layers=other_layers,
        )  # fmt: skip
        num, others = len(first.layers), len(second.layers)
        found = compared([first, second], [range(num + others)], examples, how)
        pairs = [(0, i, num + j) for i in range(num) for j in range(others)]
        table = found.table(pairs, (num, others))
        sides = found.sides(0)
    result = _labelled(
        found, table, {"layer": first.names, "other_layer": second.names},
        analysis="layers", title=f"{num} x {others} layers compared",
    )  # fmt: skip
    for prefix, each in (("", sides[:num]), ("other_", sides[num:])):
        for name in each[0]:
            values = [side[name] for side in each]
            result[prefix + name] = (f"{prefix}layer", values, {"long_name": LONG_NAMES[name]})
    return result


def layer_convergence(
    task: Task | Sequence[Task],
    checkpoints: States,
    final: State | Stored | None = None,
    *,
    steps: Sequence[int] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Compare each layer of each checkpoint with the same layer of the final one.

    `final`: by default the last checkpoint. `steps`: their training steps, by default those that
    the checkpoints know (`.step`), else 0, 1, ... The fields of `Comparison` are the options.

    Returns the measures of `compare_layers` over (`step`, `layer`); raises as it does.
    """
    how = comparison(options)
    labels = _labels(checkpoints, steps)
    rows: list[Variables] = []
    with _data(task, how) as (model, device, examples):
        end = checkpoints[-1] if final is None else final
        last = opened(model, end, examples, how, device=device)
        num = len(last.layers)
        for checkpoint in checkpoints:
            one = opened(model, checkpoint, examples, how, device=device)
            groups = [[i, num + i] for i in range(num)]
            found = compared([one, last], groups, examples, how)
            rows.append(found.table([(i, 0, 1) for i in range(num)], (1, num)))
    return _labelled(
        found, _joined(rows, 0), {"step": labels, "layer": last.names},
        analysis="layer convergence",
        title=f"{num} layers at {len(labels)} steps against the final state",
    )  # fmt: skip


def layer_matrix(
    task: Task | Sequence[Task],
    states: States,
    labels: Sequence[Any] | None = None,
    *,
    dim: str = "step",
    rows: Sequence[int] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Compare states of one network with each other, layer by layer.

    `dim`: what they are, `"step"` for checkpoints of a run or `"run"` for networks; `labels`: their
    steps or names. `rows`: only the comparisons of these (by number) with all. The fields of
    `Comparison` are the options. At most 32 networks are in memory at a time.

    Returns the measures of `compare_layers` over (`layer`, `step`, `other_step`), or `run`; raises
    as it does.
    """
    if dim not in ("step", "run"):
        raise ValueError(f"dim must be 'step' or 'run', got {dim!r}")
    labels = _labels(states, labels)
    how = comparison(options)
    chosen = list(range(len(states)) if rows is None else rows)
    if not chosen or not {*chosen} <= {*range(len(states))}:
        raise ValueError(f"rows must be numbers of the {len(states)} states, got {chosen}")
    bands: list[Variables] = []
    with _data(task, how) as (model, device, examples):
        networks: dict[int, Network] = {}
        for band in _bands(chosen):
            parts = []
            for others in _bands(range(len(states))):
                networks = {
                    k: networks[k] if k in networks
                    else opened(model, states[k], examples, how, device=device)
                    for k in dict.fromkeys((*band, *others))
                }  # fmt: skip
                places = {k: place for place, k in enumerate(networks)}
                names = next(iter(networks.values())).names
                groups = [[p * len(names) + i for p in places.values()] for i in range(len(names))]
                found = compared(list(networks.values()), groups, examples, how)
                pairs = [
                    (i, places[a], places[b]) for i in range(len(names)) for a in band
                    for b in others
                ]  # fmt: skip
                parts.append(found.table(pairs, (len(names), len(band), len(others))))
            bands.append(_joined(parts, 2))
    kind, of = {"step": ("layer steps", "checkpoints"), "run": ("layer networks", "runs")}[dim]
    coords = {"layer": names, dim: [labels[k] for k in chosen], f"other_{dim}": labels}
    title = f"{len(names)} layers of {len(labels)} {of} compared"
    return _labelled(found, _joined(bands, 1), coords, analysis=kind, title=title)


def layer_names(task: Task | Sequence[Task], state: State | Stored, **options: Any) -> list[str]:
    """The names of the layers that a comparison of this state would have."""
    how = comparison(options)
    with _data(task, how) as (model, device, examples):
        return opened(model, state, examples, how, device=device).names


@dataclass(frozen=True)
class Estimate:
    """What a comparison costs: bytes of joint moments, seconds a network's pass, and a pair."""

    bytes: int
    seconds_per_pass: float
    seconds_per_pair: float


def estimate(
    task: Task | Sequence[Task],
    state: State | Stored,
    num_networks: int = 2,
    *,
    joint: bool = True,
    **options: Any,
) -> Estimate:
    """Time a comparison of a state with itself on some of the examples.

    `num_networks` share their moments: of all layers `joint`, or layer by layer. What is done once
    for each comparison, as whitening, counts to the pass.
    """
    how = comparison(options)
    with _data(task, how) as (model, device, examples):
        few_examples = some(examples, slice(0, 2048), "contiguous", how.dtype)
        one = opened(model, state, examples, how, device=device)
        num = len(one.layers)
        groups = [list(range(2 * num))] if joint else [[i, num + i] for i in range(num)]
        times = [time.perf_counter()]
        found = compared([one, one], groups, few_examples, how)
        times.append(time.perf_counter())
        layers = np.unique(np.linspace(0, num - 1, 4).round().astype(int))
        pairs = [(0, i, num + i) if joint else (i, 0, 1) for i in layers]
        for some_pairs in (pairs, pairs, 3 * pairs):  # the first whitens what the others share
            found.table(some_pairs, (len(some_pairs),))
            times.append(time.perf_counter())
    summed, first, second, thrice = np.diff(times)
    each = max(0.0, thrice - second) / (2 * len(pairs))
    once = max(0.0, first - each * len(pairs)) * (1 if joint else num / len(pairs))
    widths = [neurons(layer, found.maps) for layer in one.layers]
    sizes = [widths * num_networks] if joint else [[width] * num_networks for width in widths]
    needed = moments_bytes(sizes, how, found.maps)
    passed = summed / 2 * examples.num / few_examples.num + once / 2
    return Estimate(needed, float(passed), float(each))


def comparison(options: dict[str, Any]) -> Comparison:
    """The options of a comparison.

    Raises `ValueError` for an unknown measure, and for what a measure of ours refuses, before any
    network has run: it is tried on two neurons.
    """
    how = Comparison(**options)
    if how.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {how.batch_size}")
    measures = how.measures()
    if not isinstance(how.measure, Mapping):
        few = rows_of(torch.eye(8, dtype=torch.float64)[:, :2])
        for measure in measures.values():
            measure(overlap(few, few))
    return how


def steps_of(states: States) -> list[int]:
    """The training steps that checkpoints know; 0, 1, ... for states."""
    known = [getattr(state, "step", None) for state in states]
    return list(range(len(states))) if None in known else [int(step) for step in known]  # type: ignore[arg-type]


def _labels(states: States, labels: Sequence[Any] | None) -> list[Any]:
    """A label for each state. Raises `ValueError` if there is none, or labels do not fit."""
    if not len(states):
        raise ValueError("no states to compare: give at least one")
    found = steps_of(states) if labels is None else list(labels)
    if len(found) != len(states) or len(set(found)) < len(found):
        raise ValueError(
            f"each of the {len(states)} states needs a step or name of its own, got {found}"
        )
    return found


def _bands(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + HELD] for start in range(0, len(numbers), HELD)]


@contextmanager
def _data(
    task: Task | Sequence[Task], how: Comparison
) -> Iterator[tuple[nn.Module, torch.device, Examples]]:
    """The model, the device and the examples on it, with exact arithmetic; of the first task."""
    one, device = tasks_of(task)[0], pick_device(how.device)
    with exact_arithmetic(), random_state_kept():
        examples = arrange(read(one.data, device), "contiguous", how.dtype)
        if how.blocks > examples.num:
            raise ValueError(
                f"blocks must be at most the number of examples, {examples.num}, as whole examples "
                f"are left out, got {how.blocks}"
            )
        yield one.model, device, examples


def _joined(tables: Sequence[Variables], axis: int) -> Variables:
    """Tables one after the other along an axis."""
    return {name: np.concatenate([t[name] for t in tables], axis=axis) for name in tables[0]}


def _labelled(
    found: Found, table: Variables, coords: dict[str, Any], *, analysis: str, title: str
) -> xr.Dataset:
    """A dataset of the variables over the coordinates, with how it was made."""
    how, dims = found.how, tuple(coords)
    further = {"correlations": ("direction",)}
    if found.by_frequency:
        places, counts = frequencies(found.maps)
        coords = coords | {"frequency": [" ".join(map(str, place)) for place in places.tolist()]}
        further |= {f"{name}_by_frequency": ("frequency",) for name in found.measures}
    variables: dict[str, Any] = {
        name: ((*dims, *further.get(name, ())), values, {"long_name": _long_name(name, how)})
        for name, values in table.items()
    }
    if found.by_frequency:
        variables["multiplicity"] = ("frequency", counts, {"long_name": "multiplicity"})
    result = dataset(
        variables, coords, analysis=analysis, title=title,
        num_rows=found.num_rows, maps=found.maps, blocks=how.blocks, threshold=how.threshold,
        weights=how.weights, debiased=int(how.debiased),
        notes="\n".join(found.notes),
    )  # fmt: skip
    return result


def _long_name(name: str, how: Comparison) -> str:
    """What a variable is called in figures."""
    for suffix, words in SUFFIXES.items():
        if name.endswith(f"_{suffix}"):
            return f"{_long_name(name.removesuffix(f'_{suffix}'), how)}, {words}"
    if name == "cka" and how.debiased:
        return "debiased CKA"
    return LONG_NAMES.get(name, name.replace("_", " "))
