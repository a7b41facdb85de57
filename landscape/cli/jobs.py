"""How does a verb read its inputs, and how is its work cut, resumed and spread over workers?

A `Job` is all that a point is computed from, as text and numbers, so that a worker can read the
same inputs. Verbs give a function of a job and some values; `sweep` does the rest.
"""

import argparse
import json
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from landscape.evaluation import Prepared
    from landscape.states import State
    from landscape.task import Task


@dataclass(frozen=True)
class Job:
    """All that a result is computed from, for this process or a worker.

    Mappings are JSON text, so that a job can be hashed. `settings` are those of the verb. What was
    read for a job is kept; `command` is another text for each command, so that nothing is taken
    over from an earlier one, whose files may have changed (a worker of a cluster outlives both).
    """

    command: str

    task: str
    task_args: str
    checkpoints: tuple[str, ...]
    loading: str
    device: str
    dtype: str
    batch_norm: str | None
    batch_norm_examples: int | None
    examples: int | None
    settings: str

    def setting(self, name: str) -> Any:
        """One of the settings of the verb."""
        return json.loads(self.settings)[name]

    def policy(self) -> dict[str, Any]:
        """How batch norm is treated, as keywords of `evaluate`."""
        return {"batch_norm": self.batch_norm, "batch_norm_examples": self.batch_norm_examples}


Compute = Callable[[Job, str | None, "np.ndarray"], "xr.Dataset"]


@dataclass(frozen=True)
class Source:
    """A checkpoint that is read, and matched with the model of the task if any, when needed."""

    path: str
    job: Job
    step: int | None = None

    def load(self) -> "State":
        """The state."""
        from landscape.checkpoints import load_state

        model = next((task.model for task in tasks(self.job)), None)
        return load_state(self.path, model=model, **json.loads(self.job.loading))


def job_of(options: argparse.Namespace, checkpoints: Sequence[str | Path], **settings: Any) -> Job:
    """The job that the options of a verb mean."""
    loading = {
        "key": options.state_key,
        "strip_prefix": options.strip_prefix,
        "allow_missing": options.allow_missing,
        "allow_nonfinite": options.allow_nonfinite,
    }
    return Job(
        uuid.uuid4().hex,
        _absolute_task(options.task or ""),
        json.dumps(options.task_args),
        tuple(str(Path(path).resolve()) for path in checkpoints),
        json.dumps(loading),
        options.device,
        options.dtype,
        options.batch_norm,
        options.batch_norm_examples,
        options.examples,
        json.dumps(settings),
    )


@lru_cache(maxsize=1)
def tasks(job: Job) -> tuple["Task", ...]:
    """The tasks, with some of their examples if a preview is wanted; none if none is named."""
    from landscape.task import load_tasks

    if not job.task:
        return ()
    found = load_tasks(job.task, json.loads(job.task_args))
    if job.examples is None:
        return found
    from landscape.analyses.surface import few_examples

    return few_examples(found, job.examples)


def sources(job: Job, steps: Sequence[int | None] | None = None) -> list[Source]:
    """The checkpoints of a job, to be read one by one."""
    steps = steps or [None] * len(job.checkpoints)
    return [Source(path, job, step) for path, step in zip(job.checkpoints, steps, strict=True)]


@lru_cache(maxsize=1)
def states(job: Job) -> tuple["State", ...]:
    """All states of a job, in memory; read once and kept."""
    return tuple(source.load() for source in sources(job))


@lru_cache(maxsize=1)
def prepared(job: Job, strategy: str | None) -> "Prepared":
    """The tasks with their data on the device; on a worker, read once and kept."""
    import torch

    from landscape.evaluation import prepare
    from landscape.strategy import Strategy

    return prepare(
        tasks(job),
        [sources(job)[0].load()],
        device=job.device,
        dtype=getattr(torch, job.dtype),
        strategy=Strategy(**json.loads(strategy)) if strategy else None,
        **job.policy(),
    )


def plan(job: Job, names: Sequence[str] | None = None) -> dict[str, Any]:
    """What the results depend on; where the inputs lie does not matter, what is in them does."""
    from landscape.checkpoints import sha256
    from landscape.task import data_sha256

    names = names or [chr(ord("a") + number) for number in range(len(job.checkpoints))]
    digests = {name: sha256(path) for name, path in zip(names, job.checkpoints, strict=True)}
    few = len(digests) <= 4
    return {
        "task": Path(job.task).name,
        "task_args": json.loads(job.task_args),
        **({f"{n}_sha256": d for n, d in digests.items()} if few else {"sha256": digests}),
        "data_sha256": {task.name: data_sha256(task.data) for task in tasks(job)},
        "loading": json.loads(job.loading),
        "dtype": job.dtype,
        **job.policy(),
        **({} if job.examples is None else {"examples": job.examples}),
        **json.loads(job.settings),
    }


def sweep(
    options: argparse.Namespace,
    job: Job,
    compute: Compute,
    over: Mapping[str, Any],
    *,
    plan: Mapping[str, Any],
    title: str,
    analysis: str,
    width: int = 1,
    chunk: int | None = None,
    tolerant: bool = False,
    **attrs: Any,
) -> "xr.Dataset":
    """Compute a result along one dimension into the output, or go on with it.

    Each value of the dimension stands for `width` points. Workers all use one strategy. Work that
    has no use for a strategy says how many values are a `chunk`.
    """
    from landscape import execution, results

    output = Path(options.output)
    resumed = output.exists() and not options.overwrite
    strategy = results.load(output).attrs.get("strategy") if resumed else None
    workers = getattr(options, "workers", 0), getattr(options, "scheduler", None)
    with execution.open_executor(workers=workers[0], scheduler=workers[1]) as executor:
        if (
            executor is not None and strategy is None and chunk is None
        ):  # the workers must not choose each their own
            strategy = json.dumps(asdict(prepared(job, None).strategy))
        used = json.loads(strategy or "{}")
        if chunk is None:
            chunk = max(1, used["points"] // width) if used.get("vectorised") else 1
        return results.sweep(
            partial(compute, job, strategy),
            over,
            output=output,
            plan=plan,
            title=title,
            analysis=analysis,
            chunk=chunk,
            executor=executor,
            progress=False if options.quiet else None,
            overwrite=options.overwrite,
            tolerant=tolerant,
            **attrs,
        )


def whole(
    options: argparse.Namespace, plan: Mapping[str, Any], compute: "Callable[[], xr.Dataset]"
) -> "xr.Dataset":
    """A result that is computed at one go into the output; one that is there stays as it is."""
    from landscape import results

    output = Path(options.output)
    plan = {**plan, "schema_version": results.SCHEMA_VERSION}
    if output.exists() and not options.overwrite:
        found = results.load(output)
        results.check_plan(found, json.loads(json.dumps(plan, default=str)), output)
        return found
    result = compute().assign_attrs(plan=json.dumps(plan, default=str))
    results.save(result, output)
    return result


def has_failed(result: "xr.Dataset") -> bool:
    """Whether points failed on a worker; the same command tries them again."""
    from landscape.results import STATUS

    return bool((result["status"] == STATUS.index("failed")).any())


def finish(result: "xr.Dataset", output: Path) -> bool:
    """Say where the result is, and which of its points are not what they should be."""
    from landscape.results import STATUS

    print(output)
    if "status" not in result:
        return True
    names = {"nonfinite": "non-finite", "failed": "failed"}
    bad = {names[n]: int((result["status"] == STATUS.index(n)).sum()) for n in names}
    said = ", ".join(f"{count} {name}" for name, count in bad.items() if count)
    if said:
        say(f"finished, but of {result['status'].size} points {said}")
    for failure in json.loads(result.attrs.get("failures", "[]")):
        say(f"points {failure['points']}: {failure['error']}")
    return not said


def cost(job: Job, num: int) -> str:
    """Forward passes and estimated seconds for so many points."""
    ready = prepared(job, None)
    evaluated = sum(examples.num for examples in ready.examples)
    from landscape.normalisation import RECALIBRATING, batch_norms, check_policy

    model = ready.tasks[0].model
    passes = 0.0
    if check_policy(model, job.batch_norm) in RECALIBRATING:
        complete = ready.strategy.moment_batch >= ready.moments.num
        passes = 1.0 if complete else (len(batch_norms(model)) + 1) / 2
    recalibrated = round(passes * ready.moments.num)
    forwards = num * (evaluated + recalibrated)
    seconds = forwards * ready.strategy.seconds
    return (
        f"{num:,} points x ({evaluated:,} examples evaluated + {recalibrated:,} for batch norm) = "
        f"{forwards:,} forward passes of one example\n"
        f"about {duration(seconds)} on {ready.device} ({ready.strategy})"
    )


def dry(job: Job, num: int) -> bool:
    """Print what so many points would cost."""
    print(cost(job, num))
    return True


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def writable(path: str) -> Path:
    """The path of an output; an error at once if it cannot be written."""
    output = Path(path)
    if not output.parent.is_dir():
        raise ValueError(f"{output}: the folder {output.parent} does not exist; create it first")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file in it")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise ValueError(f"{output.parent} cannot be written to: {error.strerror}") from error
    return output


def say(text: str) -> None:
    """A line for people, on standard error."""
    print(f"landscape: {text}", file=sys.stderr, flush=True)


def _absolute_task(spec: str) -> str:
    place, colon, name = spec.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if colon and place.endswith(".py") else spec
