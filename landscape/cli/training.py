"""How does the training of a curve survive a stop? By a snapshot beside the output."""

import dataclasses
import json
import os
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.jobs import Job, plan, prepared, states

if TYPE_CHECKING:
    from landscape.analyses.energy_path import Band
    from landscape.descent import Recipe, Snapshot
    from landscape.families import Family

EVERY = 10.0  # seconds between two snapshots on disk


@lru_cache(maxsize=1)
def trained(job: Job, snapshots: str, quiet: bool) -> "tuple[Family, Snapshot | Band]":
    """The trained curve of a job, and how it was trained; goes on from a snapshot."""
    from landscape.analyses.connectivity import train
    from landscape.analyses.energy_path import Band, find_path
    from landscape.descent import Snapshot

    a, b, *_ = states(job)
    ready, made = prepared(job, None), recipe(job)
    path, wanted = Path(snapshots), json.dumps(plan(job), sort_keys=True)
    keep, found = _Keeper(path, wanted), _read(path, wanted)
    progress = False if quiet else None
    result: tuple[Family, Snapshot | Band]
    if job.setting("curve") == "autoneb":
        result = find_path(
            ready, a, b, made, cycles=job.setting("cycles"), pivots=job.setting("bends"),
            band=Band(**found) if found else None, on_band=keep, progress=progress, **job.policy(),
        )  # fmt: skip
    else:
        snapshot = Snapshot(**found) if found else None
        result = train(
            ready, untrained(job), made, snapshot=snapshot, on_snapshot=keep, progress=progress
        )
    keep.write(result[1])
    return result


def untrained(job: Job) -> "Family":
    """The curve before its training."""
    from landscape.analyses.connectivity import curve_between

    a, b, *start = states(job)
    curve = job.setting("curve").replace("autoneb", "polychain")
    return curve_between(a, b, curve=curve, bends=job.setting("bends"), start=start or None)


def num_batches(job: Job) -> int:
    """Mini-batches in an epoch."""
    from landscape.descent import shuffled
    from landscape.task import training_task

    ready = prepared(job, None)
    task = training_task(ready.tasks)
    return len(shuffled(task, recipe(job), device=ready.device, dtype=ready.dtype))


@lru_cache(maxsize=1)
def recipe(job: Job) -> "Recipe":
    """How the curve of a job is trained."""
    import torch

    from landscape.descent import Recipe

    given = job.setting("recipe")
    optimiser = None
    if given["optimiser"]:
        kinds: dict[str, Any] = {
            name: kind
            for name, kind in vars(torch.optim).items()
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        }
        if given["optimiser"] not in kinds:
            raise ValueError(
                f"--optimiser must be a class of torch.optim, such as {', '.join(sorted(kinds))}; "
                f"got {given['optimiser']!r}"
            )
        optimiser = partial(kinds[given["optimiser"]], lr=given["lr"], **given["optimiser_args"])
        optimiser([torch.nn.Parameter(torch.zeros(1))])  # refuses arguments that it does not know
    elif given["optimiser_args"]:
        raise ValueError("--optimiser-args needs an --optimiser")
    data = _data(given["training_data"]) if given["training_data"] else None
    plain = {k: given[k] for k in ("epochs", "batch_size", "lr", "weight_decay", "seed")}
    return Recipe(**plain, optimiser=optimiser, data=data)


def _data(spec: str) -> Any:
    """The batches that a function gives, named as tasks are."""
    from landscape.task import load_function

    return load_function(spec)()


@dataclasses.dataclass
class _Keeper:
    """Writes snapshots to disk, but not more often than every few seconds."""

    path: Path
    plan: str
    written: float = -EVERY

    def __call__(self, snapshot: Any) -> None:
        if time.monotonic() - self.written >= EVERY:
            self.write(snapshot)
            self.written = time.monotonic()

    def write(self, snapshot: Any) -> None:
        import torch

        fields = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(snapshot)}
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save({"plan": self.plan, "fields": fields}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path, plan: str) -> dict[str, Any] | None:
    """The fields of a snapshot of the same plan, if there is one."""
    import torch

    if not path.is_file():
        return None
    found = torch.load(path, weights_only=True)
    return found["fields"] if found["plan"] == plan else None
