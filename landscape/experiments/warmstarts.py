"""Where should training start when data arrive in pieces? From the weights at hand, or anew?

A round trains on all data so far, and each arm says how it starts from the round before (Ash &
Adams 2020, arXiv 1910.08475): where it stands, from new weights, or from shrunk weights with a
little of new ones. The rounds of all arms and seeds go to `train` together.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.datasets import Batches
from landscape.experiments.branches import fresh_seed, last_checkpoint
from landscape.experiments.probes import predictions
from landscape.experiments.records import Ended
from landscape.experiments.runs import Branch, During, Run
from landscape.experiments.training import train
from landscape.states import State, Stored, check_alike, loaded, match, weight_names

Carried = Literal["carry", "reset"]
Score = Callable[[Tensor], Tensor]


# Data in pieces -----------------------------------------------------------------------------------


def subsets(data: Batches, sizes: Iterable[int], *, seed: int = 0) -> list[Batches]:
    """The first examples of one random order, so many for each of `sizes`: nested sets.

    Raises `ValueError` for sizes outside 1 to the number of examples.
    """
    sizes = [int(size) for size in sizes]
    if not sizes or min(sizes) < 1 or max(sizes) > data.num_examples:
        raise ValueError(
            f"sizes must be 1 to {data.num_examples}, the number of examples, got {sizes}"
        )
    order = torch.randperm(data.num_examples, generator=torch.Generator().manual_seed(seed))
    return [data.subset(order[:size]) for size in sizes]


def arrivals(data: Batches, step: int, *, seed: int = 0) -> list[Batches]:
    """Training sets that grow by `step` examples until all are there; the last step may be smaller.

    Raises `ValueError` for a step outside 1 to the number of examples.
    """
    num = data.num_examples
    if not 1 <= step <= num:
        raise ValueError(f"step must be 1 to {num}, the number of examples, got {step}")
    return subsets(data, [*range(step, num, step), num], seed=seed)


# From one round to the next -----------------------------------------------------------------------


def shrink_perturb(
    state: State,
    fresh_state: State,
    shrink: float,
    perturb: float,
    *,
    batch_norm: Carried = "reset",
    names: Iterable[str] | None = None,
) -> State:
    """`shrink` times the weights plus `perturb` times fresh ones: theta <- lambda theta + gamma p.

    Ash & Adams 2020, section 4. `fresh_state` holds p: newly initialised weights, whose scale fits
    each tensor, or numbers of `gaussian`. With 1 and 0 the weights stay as they are, to the bit;
    with 0 and 1 they are the fresh ones. All other entries, batch norm's statistics among them, are
    those of `state` (`"carry"`) or of `fresh_state` (`"reset"`, as in the authors' program).
    `names` are the weights, by default all floating-point entries that are no statistics.

    Raises `ValueError` if the states differ in names or shapes, or `batch_norm` is unknown.
    """
    check_alike([state, fresh_state])
    if batch_norm not in ("carry", "reset"):
        raise ValueError(f"batch_norm must be 'carry' or 'reset', got {batch_norm!r}")
    result = dict(state if batch_norm == "carry" else fresh_state)
    for name in weight_names(state) if names is None else names:
        parts = [t * f for t, f in ((state[name], shrink), (fresh_state[name], perturb)) if f]
        result[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(state[name])
    return result


def gaussian(state: State, *, seed: int = 0, names: Iterable[str] | None = None) -> State:
    """The state with standard normal numbers as its weights; tied weights have the same.

    As `fresh_state` of `shrink_perturb`, `perturb` is the standard deviation of the noise. `names`
    are the weights, as there.
    """
    chance = torch.Generator().manual_seed(seed)
    drawn: dict[Any, Tensor] = {}
    result = dict(state)
    for name in weight_names(state) if names is None else names:
        tensor = state[name]
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if place not in drawn:
            drawn[place] = torch.randn(tensor.shape, generator=chance).to(tensor)
        result[name] = drawn[place]
    return result


@dataclass(frozen=True)
class Arm:
    """How a round starts from the one before it.

    `shrink`, `perturb` and `batch_norm` are as in `shrink_perturb`; `noise` says whether new
    weights or normal numbers are added. The optimiser is rebuilt in each round, as in the paper,
    unless it is carried, which only an arm that leaves the weights as they are can do. `changes`
    are fields of the run that hold `since` that round: 0 for all rounds, 1 for all but the first.
    """

    name: str
    shrink: float = 1.0
    perturb: float = 0.0
    noise: Literal["fresh_init", "gaussian"] = "fresh_init"
    optimiser: Carried = "reset"
    batch_norm: Carried = "reset"
    changes: Mapping[str, Any] = field(default_factory=dict)
    since: int = 1

    def __post_init__(self) -> None:
        if self.noise not in ("fresh_init", "gaussian"):
            raise ValueError(f"noise must be 'fresh_init' or 'gaussian', got {self.noise!r}")
        if self.optimiser == "carry" and (self.shrink, self.perturb) != (1, 0):
            raise ValueError(
                f"arm {self.name!r}: the optimiser cannot be carried to other weights; leave "
                "shrink=1 and perturb=0, or use optimiser='reset'"
            )


FRESH = Arm("fresh", shrink=0.0, perturb=1.0)
WARM = Arm("warm")
SHRINK_PERTURB = Arm("shrink-perturb", shrink=0.4, perturb=0.1)  # of the authors' README


def last_layer(patterns: Sequence[str], run: Run) -> Arm:
    """Warm start in which only parameters that match a pattern (as in `fnmatch`) move.

    Raises `ValueError` if a pattern matches no parameter, or all are left to move.
    """
    names = [name for name, _ in run.build().named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"the pattern {pattern!r} matches no parameter of {', '.join(names)}")
    held = [name for name in names if not any(fnmatchcase(name, p) for p in patterns)]
    if not held:
        raise ValueError(f"{', '.join(patterns)} match all parameters, and nothing would be held")
    return Arm("last-layer", changes={"frozen": (*run.frozen, *(During(name) for name in held))})


def regularised(weight_decay: float, start: Arm = WARM) -> Arm:
    """An arm with this weight decay in all rounds, the first included."""
    name = f"{start.name}-decay={weight_decay:g}"
    return replace(
        start, name=name, changes={**start.changes, "weight_decay": weight_decay}, since=0
    )


def started(run: Run, arm: Arm, state: State | Stored, *, number: int = 1) -> Run:
    """The run with the start that an arm gives it from a state, in round `number`.

    New weights of a round depend on the run's seed `init` and the number of the round alone, normal
    numbers on `noise` and the number. The optimiser can be carried from checkpoints of runs with
    `keep_optimiser=True`. Raises `ValueError` if the state does not fit the run's model.
    """
    changes = dict(arm.changes) if number >= arm.since else {}
    seeds = replace(run.seeds, init=fresh_seed(run.seeds.init, number))
    run = replace(run, seeds=seeds, **changes)
    if (arm.shrink, arm.perturb, arm.noise) == (0, 1, "fresh_init"):
        return replace(run, start=None)
    batch_norm, begin = arm.batch_norm, state
    if (arm.shrink, arm.perturb) != (1, 0):
        model = run.build()
        fresh: State = model.state_dict()
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        old, noise = match(loaded(state), model), fresh
        if arm.noise == "gaussian":
            noise = gaussian(fresh, seed=fresh_seed(run.seeds.noise, number), names=names)
        begin = shrink_perturb(
            old, noise, arm.shrink, arm.perturb, batch_norm=batch_norm, names=names
        )
        batch_norm = "carry"  # it is settled
    start = Branch(
        state=begin, step=0, optimiser=arm.optimiser, clock="continue", batch_norm=batch_norm
    )
    return replace(run, start=start)


# Experiments of several rounds --------------------------------------------------------------------

Rounds = dict[str, list[list[Ended]]]  # by arm: of each round, how each run ended


def in_rounds(
    runs: Run | Sequence[Run],
    sets: Sequence[Sequence[Batches]],
    arms: Sequence[Arm],
    folder: str | os.PathLike[str],
    **options: Any,
) -> Rounds:
    """Train each run in rounds, on the data of each round, for each arm.

    `sets` holds the training sets of each run in the order of the rounds, as from `arrivals`, or
    two for an experiment in two phases. Each round is a run of its own, named
    `name/arm/round-NUMBER`, which starts from the last checkpoint of the round before as the arm
    says (`started`), with a clock that starts at 0. The first round has nothing to start from and
    is trained once for all arms without changes in it, as `name/round-0`. A run's `stop`, such as
    `reached()`, ends its rounds; `epochs` is their cap. `options` are those of `train`; the same
    call goes on after an interruption.

    Returns, for each arm and round, how the runs ended. Raises `ValueError` if the sets are not one
    sequence for each run, of equal lengths, or arms share a name; and as `train`.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    lengths = {len(own) for own in sets}
    if len(sets) != len(runs) or len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"sets must be one sequence for each of {len(runs)} runs, of one length, got "
            f"{len(sets)} of lengths {sorted(lengths)}"
        )
    rounds: Rounds = {}
    for number, data in enumerate(zip(*sets, strict=True)):
        _add_round(rounds, runs, data, arms, number, folder, options)
    return rounds


def queried(
    runs: Run | Sequence[Run],
    arms: Sequence[Arm],
    folder: str | os.PathLike[str],
    *,
    first: int,
    budget: int,
    rounds: int,
    score: Score | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Rounds, list[Tensor]]:
    """Rounds in which the network asks for labels: pool-based active learning.

    Each run begins with `first` examples of its data, drawn by `seed`; in each further round the
    `budget` examples that are unlabelled and have the highest `score(outputs) -> (N,)` are added:
    by default those with the least confident answers. The scores are those of the networks of the
    first arm, and all arms are trained on the same examples.

    Returns the rounds as `in_rounds` does, and for each run the examples in the order in which they
    were labelled. Raises `ValueError` if there are too few examples, and as `train`.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    score = score or least_confident
    needed = first + budget * (rounds - 1)
    least = min(run.data.num_examples for run in runs)
    if first < 1 or budget < 1 or rounds < 1 or needed > least:
        raise ValueError(
            f"{rounds} rounds that begin with {first} examples and add {budget} need {needed}, and "
            f"there are {least}; all three must be at least 1"
        )
    labelled = []
    for run in runs:
        chance = torch.Generator().manual_seed(seed)
        labelled.append(torch.randperm(run.data.num_examples, generator=chance)[:first])
    found: Rounds = {}
    for number in range(rounds):
        if number:
            ends = found[arms[0].name][-1]
            for row, (run, end) in enumerate(zip(runs, ends, strict=True)):
                where = options.get("device", "auto")
                outputs = predictions(run.build(), last_checkpoint(end), run.data, device=where)
                values = score(outputs).double()
                values[labelled[row]] = -torch.inf
                asked = values.sort(descending=True, stable=True).indices[:budget]
                labelled[row] = torch.cat([labelled[row], asked])
        data = [run.data.subset(index) for run, index in zip(runs, labelled, strict=True)]
        _add_round(found, runs, data, arms, number, folder, options)
    return found, labelled


def least_confident(outputs: Tensor) -> Tensor:
    """1 less the largest probability (N,) of logits (N, classes)."""
    return 1 - outputs.softmax(-1).amax(-1)


def reached(train_accuracy: float = 0.99) -> Callable[[Mapping[str, float]], bool]:
    """A rule for `stop`: end the run after an epoch with that training accuracy.

    The accuracy is that of the record: over the batches of the epoch, as they were trained on.
    Raises `ValueError` for an accuracy that is not above 0 and at most 1.
    """
    if not 0 < train_accuracy <= 1:
        raise ValueError(f"train_accuracy must be above 0 and at most 1, got {train_accuracy}")
    return partial(_has_reached, train_accuracy)


def _add_round(
    rounds: Rounds,
    runs: Sequence[Run],
    data: Sequence[Batches],
    arms: Sequence[Arm],
    number: int,
    folder: str | os.PathLike[str],
    options: Mapping[str, Any],
) -> None:
    """Train one round of all arms, and add how it ended."""
    if len({arm.name for arm in arms}) < len(arms) or not arms:
        raise ValueError(f"arms need names of their own, got {[arm.name for arm in arms]}")
    wanted: dict[str, Run] = {}
    names: dict[str, list[str]] = {arm.name: [] for arm in arms}
    for arm in arms:
        for row, run in enumerate(runs):
            own = replace(run, data=data[row])
            if number:
                name = f"{run.name}/{arm.name}/round-{number}"
                before = last_checkpoint(rounds[arm.name][-1][row])
                own = started(replace(own, name=name), arm, before, number=number)
            elif arm.changes and arm.since == 0:
                own = replace(own, name=f"{run.name}/{arm.name}/round-0", **arm.changes)
            else:
                own = replace(own, name=f"{run.name}/round-0")
            wanted.setdefault(own.name, own)
            names[arm.name].append(own.name)
    ends = {end.name: end for end in train(list(wanted.values()), folder, **options)}
    for arm in arms:
        rounds.setdefault(arm.name, []).append([ends[name] for name in names[arm.name]])


def _has_reached(train_accuracy: float, row: Mapping[str, float]) -> bool:
    return 1 - row["train_error"] >= train_accuracy - 1e-9
