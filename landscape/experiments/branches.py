"""How does a run go on from another one? With exactly one thing changed, and all of it said."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from landscape.checkpoints import Checkpoint
from landscape.experiments.records import Ended
from landscape.experiments.runs import Branch, Run

VARIED = ("order", "augmentation", "both")


def children(
    parent: Run,
    step: int,
    folder: str | os.PathLike[str],
    *,
    seeds: Iterable[int] = (1, 2),
    vary: Literal["order", "augmentation", "both"] = "order",
    optimiser: Literal["carry", "reset"] = "carry",
    batch_norm: Literal["carry", "reset"] = "carry",
) -> list[Run]:
    """Copies of a run that go on from its checkpoint at a step with other chance (stability).

    Each child trains from `step` to the end of the parent's schedule; its order of the examples,
    its augmentations or both come from another seed, and nothing else is new: Frankle et al. 2020
    (arXiv 1912.05671, section 2). A child with the parent's own seed repeats the parent.

    `folder` is the one that the parent was trained in, and the children are for it too. Their names
    are `parent/k=STEP/order-1` and so on, in which `landscape instability` finds the step, and the
    trunk if the name of the parent has a part like `seed-1` or `trunk-1`. The optimiser is carried
    from parents with `keep_optimiser=True` and a checkpoint at `step`.

    Raises `ValueError` if `vary` is unknown, or `step` is none of the parent's checkpoints.
    """
    if vary not in VARIED:
        raise ValueError(f"vary must be one of {', '.join(VARIED)}, got {vary!r}")
    if step not in parent.checkpoint_steps or step >= parent.timeline.steps:
        raise ValueError(
            f"run {parent.name!r} leaves no checkpoint at step {step} to branch from; its steps "
            f"are {', '.join(map(str, sorted(parent.checkpoint_steps)[:8]))}, ... (before the "
            "last): add At([step]) to its checkpoints"
        )
    if optimiser == "carry" and step > parent.first_step and not parent.keep_optimiser:
        raise ValueError(
            f"run {parent.name!r} does not keep its optimiser: give it keep_optimiser=True, or "
            "branch with optimiser='reset'"
        )
    start = Branch(
        state=checkpoint_at(Path(folder) / parent.name, step),
        step=step,
        optimiser=optimiser,
        clock="continue",
        batch_norm=batch_norm,
    )
    varied = ("order", "augmentation") if vary == "both" else (vary,)
    return [
        replace(
            parent,
            name=f"{parent.name}/k={step}/{vary}-{seed}",
            start=start,
            seeds=replace(parent.seeds, **dict.fromkeys(varied, seed)),
        )
        for seed in seeds
    ]


def checkpoint_at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint that a run leaves in its folder at a step."""
    return Checkpoint(folder / f"step-{step:08d}.pt", step)


def last_checkpoint(end: Ended) -> Checkpoint:
    """The checkpoint with which a run ended."""
    return checkpoint_at(end.folder, end.step)


def fresh_seed(seed: int, number: int) -> int:
    """The seed of the `number`th new draw: `seed` itself at 0, else unlike all others."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) if number else seed
