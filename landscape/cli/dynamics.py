"""The verb about weights in motion: how far they are from their start, their end and each other."""

import argparse
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.cli.jobs import (
    Job,
    Source,
    duration,
    finish,
    job_of,
    plan,
    prepared,
    sources,
    sweep,
    tasks,
    writable,
)
from landscape.cli.runs import runs_of

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from landscape.states import State


def dynamics(options: argparse.Namespace) -> bool:
    """How do the weights move? Norms, distances, angles, signs and loss through training.

    Of one run or of several, each a folder of checkpoints.
    """
    output = writable(options.output)
    if options.gradients and not options.task:
        raise ValueError("--gradients needs --task, of whose loss they are")
    runs = runs_of(options.runs, options.pattern)
    names, steps = list(runs), next(iter(runs.values()))[1]
    files = [file for found, _ in runs.values() for file in found]
    references = {name: getattr(options, name) for name in ("initial", "final")}
    given = {name: Path(path) for name, path in references.items() if path}
    job = job_of(
        options, [*files, *given.values()], runs=names, steps=steps, references=list(given),
        gradients=options.gradients, seed=options.seed,
    )  # fmt: skip
    known = dict.fromkeys(name for task in tasks(job) for name in task.measures())
    if options.measure and options.measure not in known:
        known_names = ", ".join(known) or "those of a --task"
        raise ValueError(f"--measure must be one of {known_names}, got {options.measure!r}")
    _rows(job, None, steps[:1], with_task=False)  # wrong input shows before anything is written
    if options.dry_run:
        return _dry(job)
    labels = [f"{name} {step}".strip() for name in names for step in steps]
    result = sweep(
        options, job, _rows, {"step": steps}, plan=plan(job, [*labels, *given]),
        title=f"Weights at {_sizes(job)}", analysis="dynamics",
        width=sys.maxsize,  # each step by itself, whatever the strategy
        chunk=None if job.task else 1, tolerant=True,
    )  # fmt: skip
    if "loss" in result:
        from landscape import results
        from landscape.analyses.dynamics import with_landmarks

        chosen = {"threshold": options.threshold, "measure": options.measure}
        result = with_landmarks(result, **chosen)
        results.save(result, output)
    if not options.quiet and "total_weight_norm" in result:
        from landscape import tables

        print(tables.dynamics_table(result), file=sys.stderr)
    return finish(result, output)


def _rows(
    job: Job, strategy: str | None, values: "np.ndarray | list[int]", *, with_task: bool = True
) -> "xr.Dataset":
    from landscape.analyses.dynamics import dynamics_rows, over_runs

    steps, names, given = (job.setting(name) for name in ("steps", "runs", "references"))
    num, found = len(steps), sources(job)
    task = prepared(job, strategy) if job.task and with_task else None
    options = {"gradients": job.setting("gradients"), **job.policy()} if task else {}
    rows = [steps.index(int(value)) for value in values]
    of_runs = {}
    for number, name in enumerate(names):
        files = found[number * num : (number + 1) * num]
        ends = {"initial": files[0], "final": files[-1]}
        ends |= dict(zip(given, found[len(names) * num :], strict=True))
        of_runs[name] = dynamics_rows(
            task, files, rows=rows, steps=steps, initial=_kept(ends["initial"]),
            final=_kept(ends["final"]), seed=job.setting("seed"), **options,
        )  # fmt: skip
    return over_runs(of_runs) if len(names) > 1 else of_runs[names[0]]


@lru_cache(maxsize=2)
def _kept(source: Source) -> "State":
    """A reference, which many steps need."""
    return source.load()


def _dry(job: Job) -> bool:
    """Print how many checkpoints there are, and about how long they take."""
    steps = job.setting("steps")
    if job.task:
        prepared(job, None)
    start = time.perf_counter()
    _rows(job, None, steps[-1:])
    seconds = (time.perf_counter() - start) * len(steps)
    print(f"{_sizes(job)}\nabout {duration(seconds)}")
    return True


def _sizes(job: Job) -> str:
    steps, names = job.setting("steps"), job.setting("runs")
    return f"{len(steps):,} steps of {f'{len(names)} runs' if len(names) > 1 else 'one run'}"
