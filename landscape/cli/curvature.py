"""Verbs about information in the weights: Fisher information, and the curvature of the loss."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.jobs import (
    Job,
    dry,
    duration,
    finish,
    job_of,
    plan,
    prepared,
    sources,
    sweep,
    tasks,
    whole,
    writable,
)
from landscape.cli.runs import run_of, runs_of

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

WHAT = {
    "eigenvalues": ("num", "which", "layers", "tolerance"),
    "trace": ("method", "layers", "tolerance"),
    "density": ("num_probes", "num_steps", "log"),
}


SAMPLING = ("labels", "likelihood", "num_backwards", "tolerance", "seed")


def fisher(options: argparse.Namespace) -> bool:
    """How much information do the weights hold? The trace of the Fisher information.

    By layer, at a checkpoint or through the training of one run or several.
    """
    output = writable(options.output)
    named = runs_of(options.checkpoints, options.pattern)
    files = [file for run, _ in named.values() for file in run]
    steps: list[float] = list(next(iter(named.values()))[1])
    if options.steps_per_epoch:
        steps = [step / options.steps_per_epoch for step in steps]
    unknown = {run for run, *_ in options.deficit} - {"", *named}
    if unknown:
        raise ValueError(
            f"--deficit names {', '.join(unknown)}, but the runs are {', '.join(named)}"
        )
    job = job_of(
        options, files, steps=steps, runs=list(named), statistics=options.statistics,
        **{name: getattr(options, name) for name in SAMPLING},
    )  # fmt: skip
    for number in range(len(named)):
        sources(job)[number * len(steps)].load()  # wrong input shows before anything is written
    if options.dry_run:
        return _dry_fisher(job, len(files))
    from landscape import results, tables
    from landscape.analyses.fisher_training import with_peaks

    if len(files) == 1:
        found = whole(options, plan(job), lambda: _at_one(job))
        if not options.quiet:
            print(tables.fisher_table(found), file=sys.stderr)
        return finish(found, output)
    found = sweep(
        options, job, _information, {"step": steps},
        plan=plan(job, [f"{run} {step}".strip() for run in named for step in steps]),
        title=f"Fisher information at {len(steps)} checkpoints", analysis="fisher over training",
        chunk=1, units="epochs" if options.steps_per_epoch else "steps",
    )  # fmt: skip
    if "total" in found:
        found = with_peaks(_with_deficits(found, options.deficit))
        results.save(found, output)
        if not options.quiet:
            print(tables.fisher_table(found), file=sys.stderr)
    return finish(found, output)


def hessian(options: argparse.Namespace) -> bool:
    """How curved is the loss? Eigenvalues, trace or spectral density of the Hessian.

    At a checkpoint, or at every checkpoint of a run.
    """
    output = writable(options.output)
    single = len(options.checkpoints) == 1 and not Path(options.checkpoints[0]).is_dir()
    files, steps = run_of(options.checkpoints, options.pattern)
    if options.what == "density" and not single:
        raise ValueError("a density belongs to one checkpoint: their eigenvalues have no one grid")
    settings = {name: getattr(options, name) for name in WHAT[options.what]}
    if settings.get("tolerance", 0) is None:
        del settings["tolerance"]
    if settings.get("layers"):
        settings["layers"] = _one(settings["layers"])
    job = job_of(
        options, files, what=options.what, steps=None if single else steps, chosen=settings,
        matrix=options.matrix, seed=options.seed, rate=options.learning_rate,
    )  # fmt: skip
    sources(job)[0].load()  # wrong input shows before anything is written
    if options.dry_run:
        print(f"products with the {options.matrix}: each about 2.5 times a training step's work")
        return dry(job, len(files))
    from landscape import tables

    if single:
        result = whole(options, plan(job), lambda: _at(job, None, 0))
    else:
        analysis = {"eigenvalues": "eigenvalues", "trace": "hessian trace"}[options.what]
        result = sweep(
            options, job, _steps, {"step": steps}, plan=plan(job, [str(step) for step in steps]),
            title=f"{options.matrix.capitalize()} at {len(steps)} checkpoints", analysis=analysis,
            chunk=1, tolerant=True,
        )  # fmt: skip
    if not options.quiet and {"eigenvalue", "density"} & set(result.data_vars):
        print(tables.spectrum_table(result), file=sys.stderr)
    elif not options.quiet and not result["trace"].dims:
        print(f"trace {result['trace']:.6g} +- {result['trace_stderr']:.2g}", file=sys.stderr)
    return finish(result, output)


def _information(job: Job, strategy: str | None, values: "np.ndarray") -> "xr.Dataset":
    """The Fisher information of all runs at some steps."""
    import xarray as xr

    from landscape.analyses.fisher_training import fisher_over_training

    steps, runs, found = job.setting("steps"), job.setting("runs"), sources(job)
    chosen = [steps.index(value) for value in values.tolist()]
    each = [
        fisher_over_training(
            tasks(job), [found[number * len(steps) + k] for k in chosen], steps=values.tolist(),
            **_sampling(job),
        )
        for number in range(len(runs))
    ]  # fmt: skip
    if runs == [""]:
        return each[0]
    dim = xr.DataArray(runs, dims="run", name="run")
    varying = [str(name) for name, one in each[0].data_vars.items() if "step" in one.dims]
    return xr.concat(
        each, dim, data_vars=varying, coords="minimal", compat="override", combine_attrs="override"
    )


def _at_one(job: Job) -> "xr.Dataset":
    """The Fisher information of a single checkpoint."""
    from landscape.analyses.fisher import fisher_trace

    chosen = _sampling(job)
    for name, what in (("labels", "labels"), ("batch_norm", "statistics of batch norm")):
        if isinstance(chosen[name], list):
            raise ValueError(f"a single checkpoint takes one kind of {what}, got {chosen[name]}")
    return fisher_trace(tasks(job), sources(job)[0], **chosen)


def _sampling(job: Job) -> dict[str, Any]:
    """The options of the Fisher information."""
    import torch

    chosen = {name: job.setting(name) for name in SAMPLING}
    statistics = job.setting("statistics")
    return chosen | {
        "labels": _one(chosen["labels"]),
        "batch_norm": _one(statistics) if statistics else None,
        "batch_norm_examples": job.batch_norm_examples,
        "device": job.device,
        "dtype": getattr(torch, job.dtype),
    }


def _one(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _with_deficits(result: "xr.Dataset", windows: list[tuple[str, float, float]]) -> "xr.Dataset":
    """The result with the windows of deficits: of each run, or of all."""
    import numpy as np

    if not windows:
        return result
    of = {run: (first, last) for run, first, last in windows}
    if "run" not in result.dims:
        return result.assign_attrs(deficit_start=of[""][0], deficit_end=of[""][1])
    ends = [of.get(str(run), of.get("", (np.nan, np.nan))) for run in result["run"].values]
    starts, stops = zip(*ends, strict=True)
    return result.assign(deficit_start=("run", list(starts)), deficit_end=("run", list(stops)))


def _dry_fisher(job: Job, num: int) -> bool:
    """Print how many checkpoints there are, and about what they cost."""
    from landscape.analyses.fisher_training import estimate

    needed = estimate(tasks(job), sources(job)[-1], **_sampling(job))
    print(
        f"{num:,} checkpoints, about {duration(num * needed.seconds)} "
        f"and {needed.bytes / 2**20:,.0f} MiB"
    )
    return True


def _steps(job: Job, strategy: str | None, values: "np.ndarray") -> "xr.Dataset":
    import xarray as xr

    steps = job.setting("steps")
    found = [_at(job, strategy, steps.index(value)) for value in values.tolist()]
    return xr.concat(
        found, xr.DataArray(values, dims="step", name="step"), combine_attrs="override"
    )


def _at(job: Job, strategy: str | None, number: int) -> "xr.Dataset":
    """The result for one of the checkpoints."""
    from landscape.analyses import hessian as analyses

    settings: dict[str, Any] = json.loads(job.settings)
    compute = getattr(analyses, f"hessian_{settings['what']}")
    chosen = {name: value for name, value in settings["chosen"].items() if value is not None}
    result: xr.Dataset = compute(
        prepared(job, strategy), sources(job)[number], matrix=settings["matrix"],
        seed=settings["seed"], **chosen, **job.policy(),
    )  # fmt: skip
    if settings["rate"]:
        result["learning_rate"] = settings["rate"]
    return result
