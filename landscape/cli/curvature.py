"""Verbs about information in the weights: the Hessian and its relatives at checkpoints."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.jobs import (
    Job,
    dry,
    finish,
    job_of,
    plan,
    prepared,
    sources,
    sweep,
    whole,
    writable,
)
from landscape.cli.runs import run_of

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

WHAT = {
    "eigenvalues": ("num", "which", "layers", "tolerance"),
    "trace": ("method", "layers", "tolerance"),
    "density": ("num_probes", "num_steps", "log"),
}


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
