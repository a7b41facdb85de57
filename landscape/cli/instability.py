"""The verb about stability: barriers between many networks."""

import argparse
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.jobs import (
    Job,
    dry,
    finish,
    has_failed,
    job_of,
    plan,
    prepared,
    sources,
    sweep,
    tasks,
    writable,
)
from landscape.cli.runs import networks_of

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from landscape.analyses.instability import Pair


def instability(options: argparse.Namespace) -> bool:
    """From which step on is training stable to its own noise? Barriers between pairs of runs."""
    output = writable(options.output)
    named = networks_of(options.runs, options.pattern) if options.all_pairs else _children(options)
    names = list(named)
    job = job_of(options, list(named.values()), names=names, points=options.points)
    import numpy as np

    from landscape import results
    from landscape.analyses.instability import matrix_of, rehearsal, summarise

    pairs = _pairs(job)
    complete = matrix_of if options.all_pairs else summarise
    default = "chord" if options.all_pairs else "mean"
    summary = {"kind": options.kind or default, "threshold": options.threshold,
               "measure": options.measure}  # fmt: skip
    complete(rehearsal(tasks(job), pairs[:1], options.points), **summary)
    if options.dry_run:
        return dry(job, len(pairs) * options.points)
    curves = sweep(
        options, job, _pair_curves, {"pair": np.arange(len(pairs))},
        plan=plan(job, ["/".join(map(str, name)) for name in names]),
        title=f"Lines between {len(pairs)} pairs", analysis="instability", width=options.points,
    )  # fmt: skip
    if has_failed(curves):
        return finish(curves, output)
    result = complete(curves, **summary)
    results.save(result, output)
    if not options.quiet:
        _say_stability(result)
    return finish(result, output)


def _children(options: argparse.Namespace) -> "dict[tuple[Any, ...], Path]":
    """The last checkpoints of runs by step, trunk and run."""
    from landscape.children import children_of

    if len(options.runs) != 1:
        raise ValueError(
            f"instability takes one folder of runs, got {len(options.runs)}; to compare networks "
            "whatever they were branched from, add --all-pairs"
        )
    found = children_of(options.runs[0], options.pattern)
    return {(one.step, one.trunk, one.run): Path(one.state.path) for one in found}  # type: ignore[union-attr]


@lru_cache(maxsize=1)
def _pairs(job: Job) -> "list[Pair]":
    from landscape.analyses.instability import Child, named_pairs, pairs_of

    names, found = job.setting("names"), sources(job)
    if len(names[0]) == 1:
        return named_pairs(found, [name for (name,) in names])
    networks = zip(names, found, strict=True)
    return pairs_of([Child(step, trunk, run, state) for (step, trunk, run), state in networks])


def _pair_curves(job: Job, strategy: str | None, indices: "np.ndarray") -> "xr.Dataset":
    from landscape.analyses.instability import pair_curves

    pairs = [_pairs(job)[index] for index in indices]
    return pair_curves(prepared(job, strategy), pairs, points=job.setting("points"), **job.policy())


def _say_stability(result: "xr.Dataset") -> None:
    from landscape import tables

    table = tables.basin_table if "basin" in result else tables.instability_table
    print(table(result), file=sys.stderr)
