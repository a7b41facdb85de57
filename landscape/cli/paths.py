"""Verbs about paths between two networks: straight, trained, and straight after alignment."""

import argparse
import json
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.jobs import (
    Job,
    dry,
    finish,
    job_of,
    plan,
    prepared,
    say,
    states,
    sweep,
    tasks,
    writable,
)
from landscape.cli.training import num_batches, recipe, trained, untrained

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr


# --- interpolate ----------------------------------------------------------------------------------


def interpolate(options: argparse.Namespace) -> bool:
    """Evaluate a task on the straight line between two checkpoints, or a path through more."""
    output = writable(options.output)
    ends = [options.a, options.b, *options.further]
    settings = {"keep_examples": options.keep_examples}
    layers = options.layers
    if layers and options.further:
        raise ValueError(f"--layers moves parts between two checkpoints, got {len(ends)}")
    if layers and len(layers) == 1 and layers[0] in ("each", "blocks"):
        layers = layers[0]
    extra = {"layers": layers, "diagnostics": options.diagnostics}
    job = job_of(options, ends, **settings, **{k: v for k, v in extra.items() if v})
    import numpy as np

    from landscape import tables

    first, last = options.range
    t = np.linspace(first, last, options.points)
    if options.further:
        t = np.union1d(t, np.linspace(0, 1, len(ends)))
    states(job)  # wrong input shows before anything is written
    width = _num_layers(job)
    if options.dry_run:
        return dry(job, len(t) * width)
    result = sweep(
        options, job, _line_points, {"t": t},
        plan=plan(job), title=f"Linear interpolation at {len(t)} points", analysis="interpolation",
        a=job.checkpoints[0], b=job.checkpoints[-1], width=width,
    )  # fmt: skip
    if {0.0, 1.0} <= set(t.tolist()) and not options.quiet and not options.layers:
        print(tables.barrier_table(result), file=sys.stderr)
    return finish(result, output)


def _line_points(job: Job, strategy: str | None, t: "np.ndarray") -> "xr.Dataset":
    from landscape.analyses.interpolation import interpolate

    a, b, *further = states(job)
    settings = json.loads(job.settings)
    return interpolate(
        prepared(job, strategy), a, b, *further, points=t, **job.policy(), **settings
    )


def _num_layers(job: Job) -> int:
    from landscape.analyses.interpolation import parts_of

    layers = json.loads(job.settings).get("layers")
    return len(parts_of(tasks(job)[0].model, layers)) if layers else 1


# --- connect --------------------------------------------------------------------------------------


def connect(options: argparse.Namespace) -> bool:
    """Train a curve of low loss between two checkpoints and evaluate a task along it.

    A stopped training goes on from its last epoch.
    """
    output = writable(options.output)
    autoneb = options.curve == "autoneb"
    if autoneb and options.start:
        raise ValueError("autoneb starts from the straight line: leave out --start")
    bends = options.bends or (3 if autoneb else max(1, len(options.start)))
    training = {
        "epochs": options.epochs, "batch_size": options.batch_size, "lr": options.lr,
        "weight_decay": options.weight_decay, "optimiser": options.optimiser,
        "optimiser_args": options.optimiser_args, "training_data": options.training_data,
        "seed": options.seed,
    }  # fmt: skip
    job = job_of(
        options, [options.a, options.b, *options.start], curve=options.curve, bends=bends,
        recipe=training, cycles=options.cycles if autoneb else None,
        diagnostics=options.diagnostics,
    )  # fmt: skip
    import numpy as np

    from landscape import tables

    made = recipe(job)
    untrained(job)  # wrong input shows before anything is written
    t = np.linspace(0, 1, options.points)
    if options.curve == "polychain":
        t = np.union1d(t, np.linspace(0, 1, bends + 2))
    if options.dry_run:
        steps = num_batches(job) * made.epochs * (options.cycles if autoneb else 1)
        where = f" at each of {bends + 2} pivots, and at more as they are added" if autoneb else ""
        print(f"training: {steps:,} mini-batches{where}; then")
        return dry(job, len(t))
    whole = plan(job)
    snapshots = output.with_name(f".{output.name}.training")
    if options.overwrite:
        snapshots.unlink(missing_ok=True)
    quiet = options.quiet
    result = sweep(
        options, job, partial(_curve_points, snapshots=str(snapshots), quiet=quiet), {"t": t},
        plan=whole, title=f"Trained curve ({options.curve}) at {len(t)} points",
        analysis="connect", a=job.checkpoints[0], b=job.checkpoints[1],
    )  # fmt: skip
    snapshots.unlink(missing_ok=True)
    if options.save_bends:
        _save_bends(result, job, Path(options.save_bends))
    if not quiet:
        print(tables.path_table(result), file=sys.stderr)
    complete = finish(result, output)
    if result.attrs["diverged"]:
        say(
            f"the training diverged in epoch {result.attrs['diverged']}; the result is the last "
            f"good curve. Try a lower --lr than {options.lr:g}"
        )
    return complete and not result.attrs["diverged"]


def _curve_points(
    job: Job, strategy: str | None, t: "np.ndarray", *, snapshots: str, quiet: bool
) -> "xr.Dataset":
    """Some points of the trained curve; the first call trains it."""
    from landscape.analyses.connectivity import along, described
    from landscape.analyses.energy_path import Band, path_described

    family, last = trained(job, snapshots, quiet)
    made = recipe(job)
    result = along(
        prepared(job, strategy), family, t, made,
        diagnostics=job.setting("diagnostics"), **job.policy(),
    )  # fmt: skip
    if isinstance(last, Band):
        return path_described(result, last, made)
    return described(result, last, made, title="", curve=job.setting("curve"))


def _save_bends(result: "xr.Dataset", job: Job, folder: Path) -> None:
    """Write the trained bends as checkpoints; their step is their number on the curve."""
    from landscape.analyses.connectivity import curve_of
    from landscape.checkpoints import save_checkpoint

    family = curve_of(result, *states(job)[:2])
    for number, bend in enumerate(family.controls[1:-1], start=1):
        say(f"wrote {save_checkpoint(bend, folder, step=number).path}")


# --- align ----------------------------------------------------------------------------------------


def align(options: argparse.Namespace) -> bool:
    """Permute the units of the second network to match the first.

    The lines to both, raw and aligned, are evaluated.
    """
    output = writable(options.output)
    symmetries = None
    if options.symmetries:
        try:
            symmetries = json.loads(Path(options.symmetries).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{options.symmetries}: not JSON ({error})") from error
    job = job_of(
        options, [options.a, options.b], method=options.method, starts=options.starts,
        seed=options.seed, symmetries=symmetries, diagnostics=options.diagnostics,
    )  # fmt: skip
    import numpy as np

    from landscape import tables
    from landscape.checkpoints import save_checkpoint

    states(job)
    t = np.linspace(0, 1, options.points)
    if options.dry_run:
        return dry(job, 2 * len(t))
    result = sweep(
        options, job, _aligned_points, {"t": t},
        plan=plan(job), title=f"Raw and aligned lines at {len(t)} points", analysis="alignment",
        a=job.checkpoints[0], b=job.checkpoints[1], width=2,
    )  # fmt: skip
    if options.save:
        _, state = _alignment(job)
        say(f"wrote {save_checkpoint(state, options.save, step=0).path}")
    if not options.quiet:
        print(tables.barrier_table(result), file=sys.stderr)
    return finish(result, output)


def _aligned_points(job: Job, strategy: str | None, t: "np.ndarray") -> "xr.Dataset":
    from landscape.analyses.interpolation import interpolate

    found, state = _alignment(job)
    a, b = states(job)
    line = interpolate(
        prepared(job, strategy), a, b, points=t, align=state,
        diagnostics=job.setting("diagnostics"), **job.policy(),
    )  # fmt: skip
    return line.assign(found.data_vars).assign_attrs(found.attrs | line.attrs)


@lru_cache(maxsize=1)
def _alignment(job: Job) -> Any:
    """The permutations of an alignment, and the second state after them."""
    from landscape.analyses.alignment import aligned, find_permutations, symmetries_of

    a, b = states(job)
    ready = prepared(job, None)
    symmetries = symmetries_of(ready, a, job.setting("symmetries"))
    chosen = {name: job.setting(name) for name in ("method", "starts", "seed")}
    found = find_permutations(ready, a, b, symmetries=symmetries, **chosen)
    return found, aligned(b, found, symmetries)
