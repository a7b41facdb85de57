"""Verbs about planes: surfaces, and the paths that training took in them."""

import argparse
import hashlib
import json
from collections.abc import Callable
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
    states,
    sweep,
    tasks,
    whole,
    writable,
)
from landscape.cli.runs import run_of

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from landscape.analyses.surface import SurfacePlan


def surface(options: argparse.Namespace) -> bool:
    """Evaluate a task on a plane: about one checkpoint, or through three."""
    output = writable(options.output)
    named = [_named(text) for text in options.mark]
    marks = dict(named)
    if len(marks) < len(named):
        raise ValueError(f"marks need names of their own, got {[name for name, _ in named]}")
    ranges = {axis: getattr(options, f"{axis}_range") for axis in "xyz"}
    files = [*options.checkpoints, *options.direction, *marks.values()]
    sizes = options.points if len(options.points) > 1 else options.points * options.dimensions
    job = job_of(
        options, files, num=len(options.checkpoints), directions=len(options.direction),
        marks=list(marks), sizes=sizes, extent=options.extent, margin=options.margin,
        ranges={axis: ends for axis, ends in ranges.items() if ends},
        normalise=options.normalise, seed=options.seed,
        curve=str(Path(options.curve).resolve()) if options.curve else None,
        refine=str(Path(options.refine).resolve()) if options.refine else None,
    )  # fmt: skip
    from landscape.analyses.surface import finished

    inputs = plan(job) | {f: _digest(options, f) for f in ("curve", "refine")}
    grid = _surface_plan(job)
    return _swept_surface(options, job, output, grid, inputs, lambda rows: finished(rows, grid))


def trajectory(options: argparse.Namespace) -> bool:
    """Where the checkpoints of a run lie in the plane of their principal components.

    The loss in that plane is evaluated too.
    """
    output = writable(options.output)
    files, steps = run_of(options.checkpoints, options.pattern)
    job = job_of(
        options, files, steps=steps, origin=options.origin, sizes=options.points,
        margin=options.margin, tsne=options.tsne, seed=options.seed, path_only=options.path_only,
    )  # fmt: skip
    from landscape.analyses.surface import finished
    from landscape.analyses.trajectory import with_surface

    if options.dry_run and options.path_only:
        print(f"{len(files)} checkpoints are read, and nothing is evaluated")
        return True
    inputs = plan(job, [str(step) for step in steps])
    if options.path_only:
        return finish(whole(options, inputs, lambda: _path(job)), output)
    path, grid = _path(job), _trajectory_plan(job)
    return _swept_surface(
        options, job, output, grid, inputs, lambda rows: with_surface(path, finished(rows, grid))
    )


def _swept_surface(
    options: argparse.Namespace,
    job: Job,
    output: Path,
    grid: "SurfacePlan",
    inputs: dict[str, Any],
    complete: "Callable[[xr.Dataset], xr.Dataset]",
) -> bool:
    """Evaluate the rows of a grid into the output, and add what belongs to the whole."""
    from landscape import results

    shape = " x ".join(str(len(axis)) for axis in grid.axes)
    width = 1
    for axis in grid.axes[1:]:
        width *= len(axis)
    if options.dry_run:
        return dry(job, width * len(grid.axes[0]))
    rows = sweep(
        options, job, _rows, {grid.family.coordinates[0]: grid.axes[0]},
        plan=inputs, title=f"Surface of {shape} points", analysis="surface", width=width,
    )  # fmt: skip
    if "axis" not in rows.dims and not has_failed(rows):  # otherwise it was complete before
        rows = complete(rows)
        results.save(rows, output)
    return finish(rows, output)


def _rows(job: Job, strategy: str | None, values: "np.ndarray") -> "xr.Dataset":
    from landscape.analyses.surface import surface_rows

    grid = _trajectory_plan(job) if "steps" in json.loads(job.settings) else _surface_plan(job)
    return surface_rows(prepared(job, strategy), grid, values, **job.policy())


@lru_cache(maxsize=1)
def _surface_plan(job: Job) -> "SurfacePlan":
    """The grid of a surface, from the checkpoints and settings of a job."""
    import numpy as np

    from landscape import results
    from landscape.analyses.connectivity import curve_of
    from landscape.analyses.surface import surface_plan
    from landscape.families import affine

    settings = json.loads(job.settings)
    num, several = settings["num"], settings["directions"]
    found = states(job)
    corners, directions = list(found[:num]), found[num : num + several]
    marks = dict(zip(settings["marks"], found[num + several :], strict=True))
    curve = None
    if settings["curve"]:
        if num < 2:
            raise ValueError("--curve needs the two checkpoints that it was trained between")
        curve = curve_of(results.load(settings["curve"]), corners[0], corners[1])
        if num == 2:
            corners.append(curve.controls[len(curve.controls) // 2])
    names = ["a", "b", "bend" if curve is not None and num == 2 else "c"]
    if directions and num != 1:
        raise ValueError(f"--direction goes with one checkpoint to start from, got {num}")
    if len(corners) not in (1, 3):
        raise ValueError(
            f"a surface is about one checkpoint or through three, got {num}; two need --curve"
        )
    what: Any = corners[0]
    if directions:
        what = affine(corners[0], *directions)
    elif len(corners) == 3:
        what, marks = corners, dict(zip(names, corners, strict=True)) | marks
    sizes = settings["sizes"]
    if len(corners) == 3 or directions:
        dims = len(directions) or 2
        sizes = sizes[:1] * dims if len(set(sizes)) == 1 else sizes
    if beyond := [axis for axis in settings["ranges"] if "xyz".index(axis) >= len(sizes)]:
        raise ValueError(
            f"--{beyond[0]}-range is for an axis that this surface of {len(sizes)} coordinates "
            "does not have; see --dimensions and --points"
        )
    axes = {
        axis: np.linspace(first, last, sizes["xyz".index(axis)])
        for axis, (first, last) in settings["ranges"].items()
    }
    normalise = None if settings["normalise"] == "none" else settings["normalise"]
    return surface_plan(
        what, model=tasks(job)[0].model,
        points=sizes if settings["refine"] is None else sizes[0], extent=settings["extent"],
        margin=settings["margin"], normalise=normalise, seed=settings["seed"], marks=marks,
        curve=curve, **axes,
        previous=results.load(settings["refine"]) if settings["refine"] else None,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _path(job: Job) -> "xr.Dataset":
    from landscape.analyses.trajectory import trajectory_path

    settings = json.loads(job.settings)
    return trajectory_path(
        sources(job, settings["steps"]), origin=settings["origin"], tsne=settings["tsne"],
        seed=settings["seed"],
    )  # fmt: skip


@lru_cache(maxsize=1)
def _trajectory_plan(job: Job) -> "SurfacePlan":
    from landscape.analyses.trajectory import trajectory_plan

    sizes = job.setting("sizes")
    return trajectory_plan(
        sources(job, job.setting("steps")), _path(job),
        points=sizes[0] if len(sizes) == 1 else sizes, margin=job.setting("margin"),
    )  # fmt: skip


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ValueError(f"--mark takes NAME=CHECKPOINT, got {text!r}")
    return name, path


def _digest(options: argparse.Namespace, name: str) -> str | None:
    """SHA-256 of a results file that is an input."""
    path = getattr(options, name)
    if path is None:
        return None
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such results file")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
