"""The verb about representations: how alike the layers of checkpoints are."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.jobs import (
    Job,
    duration,
    finish,
    job_of,
    plan,
    say,
    sources,
    sweep,
    tasks,
    writable,
)
from landscape.cli.runs import last_of, networks_of, run_of, short_names

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from landscape.task import Task

COMPARISON = ("measure", "layers", "maps", "threshold", "weights", "blocks", "correlations")


def layers(options: argparse.Namespace) -> bool:
    """Compare what the layers of networks represent: CCA, SVCCA, PWCCA, CKA and others.

    Two checkpoints, all checkpoints against the final one, or all with each other.
    """
    output = writable(options.output)
    kind = "final" if options.against else options.between or "pair"
    if options.other_layers and kind != "pair":
        raise ValueError("--other-layers goes with two checkpoints alone")
    files, labels = _inputs(options, kind)
    settings = {name: getattr(options, name) for name in COMPARISON}
    job = job_of(
        options, files, **settings, kind=kind, split=options.split, labels=labels,
        debiased=not options.biased, other_layers=options.other_layers, size=options.batch_size,
    )  # fmt: skip
    from landscape.analyses.layers import HELD, layer_names

    names = layer_names(_task(job), sources(job)[0], **_options(job))
    other = {"layers": options.other_layers} if options.other_layers else {}
    layer_names(_task(job), sources(job)[-1], **_options(job) | other)  # wrong input shows now
    if options.dry_run:
        return _dry(job, kind, len(names), len(labels))
    first, second = short_names([files[0], files[-1]]) if kind == "pair" else ("", "")
    over: dict[str, Any] = {"run" if kind == "runs" else "step": labels}
    analysis = {"final": "layer convergence", "steps": "layer steps", "runs": "layer networks"}
    result = sweep(
        options, job, _rows, {"layer": names} if kind == "pair" else over,
        plan=plan(job), title=f"Comparison of {len(names)} layers",
        analysis=analysis.get(kind, "layers"),
        chunk={"pair": len(names), "final": 1}.get(kind, HELD), tolerant=kind == "final",
        first=first, second=second,
    )  # fmt: skip
    if not options.quiet:
        from landscape import tables

        print(tables.layers_table(result), file=sys.stderr)
        for note in result.attrs.get("notes", "").splitlines():
            say(note)
    return finish(result, output)


def _inputs(options: argparse.Namespace, kind: str) -> tuple[list[Path], list[Any]]:
    """The checkpoints, of which the reference is the last with --against, and their labels."""
    given, pattern = options.checkpoints, options.pattern
    if kind == "pair":
        files = [last_of(path, pattern) for path in given]
        if len(files) > 2 or (len(files) == 1 and files[0] != Path(given[0])):
            raise ValueError(
                f"got {', '.join(given)}: two checkpoints are compared layer by layer; add "
                "--against final, --between steps or --between runs for more"
            )
        return files, []
    if kind == "runs":
        named = networks_of(given, pattern)
        files, labels = list(named.values()), [name for (name,) in named]
    else:
        files, labels = run_of(given, pattern)
    if kind != "final" and len(files) < 2:
        raise ValueError(
            f"--between {kind} compares at least two checkpoints, got {given[0]} alone"
        )
    if kind == "final":
        final = options.against
        files.append(files[-1] if final == "final" else last_of(final, pattern))
    return files, labels


def _task(job: Job) -> "Task":
    """The task whose data the layers see."""
    found = tasks(job)
    split = job.setting("split")
    if split is None:
        return found[0]
    named = {task.name: task for task in found}
    if split not in named:
        raise ValueError(f"--split must be one of {', '.join(named)}, got {split!r}")
    return named[split]


def _options(job: Job) -> dict[str, Any]:
    """The options of a comparison."""
    import torch

    settings = json.loads(job.settings)
    return {name: settings[name] for name in (*COMPARISON, "debiased")} | {
        "batch_size": settings["size"],
        "device": job.device,
        "dtype": getattr(torch, job.dtype),
    }


def _rows(job: Job, strategy: str | None, values: "np.ndarray") -> "xr.Dataset":
    from landscape.analyses.layers import compare_layers, layer_convergence, layer_matrix

    task, found, how, kind = _task(job), sources(job), _options(job), job.setting("kind")
    if kind == "pair":
        other = job.setting("other_layers") or how["layers"]
        chosen = {**how, "layers": list(values), "other_layers": other}
        return compare_layers(task, found[0], found[-1], **chosen)
    labels = job.setting("labels")
    rows = [labels.index(value) for value in values.tolist()]
    if kind == "final":
        some = [found[row] for row in rows]
        return layer_convergence(task, some, found[-1], steps=values.tolist(), **how)
    dim = {"steps": "step", "runs": "run"}[kind]
    return layer_matrix(task, found, labels, dim=dim, rows=rows, **how)


def _dry(job: Job, kind: str, num_layers: int, num: int) -> bool:
    """Print how much is compared, and about how long it takes."""
    from landscape.analyses.layers import HELD, estimate

    pairs = {"pair": num_layers**2, "final": num * num_layers}.get(kind, num**2 * num_layers)
    passes = {"pair": 2, "final": 2 * num}.get(kind, (2 * -(-num // HELD) - 1) * num)
    width = {"pair": 2, "final": 2}.get(kind, min(num, 2 * HELD))
    needed = estimate(_task(job), sources(job)[0], width, joint=kind == "pair", **_options(job))
    seconds = passes * needed.seconds_per_pass + pairs * needed.seconds_per_pair
    print(
        f"{pairs:,} pairs of layers, {passes:,} passes of a network over the examples\n"
        f"about {duration(seconds)} and {needed.bytes / 2**20:,.0f} MiB for the joint moments"
    )
    return True
