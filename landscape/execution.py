"""Where do independent pieces of work run? Here, or on any `concurrent.futures.Executor`.

`map_tasks` is the only place that hands work out. A worker that dies costs its task a retry where
the executor can replace it (`dask.distributed`), and never the results of the others.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class WorkerLost(RuntimeError):  # noqa: N818
    """The executor broke down; what was finished before is kept, the rest is to be done again."""


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of task number `index`: a value, or the error that it ended with."""

    index: int
    value: R | None = None
    error: BaseException | None = None


def map_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    executor: Executor | None = None,
    retries: int = 2,
) -> Iterator[Outcome[R]]:
    """Apply a function to every task, and give outcomes in the order in which they complete.

    `executor=None` runs the tasks here, one after the other, and raises what they raise. With an
    executor, `function` must be importable on the workers and the tasks picklable; a task that
    raises is tried again up to `retries` times and then given back as an outcome with its error.
    Raises `WorkerLost` after the last outcome if the executor itself broke down.
    """
    if executor is None:
        for index, task in enumerate(tasks):
            yield Outcome(index, function(task))
        return
    tries = dict.fromkeys(range(len(tasks)), 0)
    waiting: dict[Future[R], int] = {
        executor.submit(function, task): index for index, task in enumerate(tasks)
    }
    lost: BaseException | None = None
    try:
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                index = waiting.pop(future)
                error = CancelledError() if future.cancelled() else future.exception()
                if error is None:
                    yield Outcome(index, future.result())
                elif _broken(error):
                    lost = error
                elif tries[index] < retries and not lost and not _killed(error):
                    tries[index] += 1
                    waiting[executor.submit(function, tasks[index])] = index
                else:
                    yield Outcome(index, error=error)
    finally:
        for future in waiting:
            future.cancel()
    if lost:
        raise WorkerLost(
            "the executor lost its workers before all tasks were done; run the same command "
            "again to go on from here"
        ) from lost


def _broken(error: BaseException) -> bool:
    """Whether the executor, not the task, failed: a broken pool, or a scheduler that is gone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"BrokenExecutor", "CancelledError", "FutureCancelledError"})


def _killed(error: BaseException) -> bool:
    """Whether the task killed its worker again and again, so that dask gave up on it."""
    return type(error).__name__ == "KilledWorker"


@contextmanager
def open_executor(
    *, workers: int | str = 0, scheduler: str | None = None
) -> Iterator[Executor | None]:
    """An executor from the options of the command line; None for work in this process.

    `workers`: a number of processes on this machine, or `"auto"`: one for each visible GPU, none
    without. `scheduler`: the address (`tcp://host:8786`) or scheduler file of a running
    `dask` cluster, which must be able to import what this process imports. Each worker has one
    thread, and one GPU if there are GPUs. Needs the extra `distributed`.
    """
    if workers == "auto":
        workers = len(_visible_gpus())
    if isinstance(workers, str):
        raise ValueError(f"workers must be a number or 'auto', got {workers!r}")
    if not workers and not scheduler:
        yield None
        return
    try:
        import dask
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "workers need dask.distributed: python -m pip install 'landscape[distributed]'"
        ) from error
    with dask.config.set({"distributed.scheduler.allowed-failures": 3}):
        if scheduler:
            where: dict[str, Any] = (
                {"scheduler_file": scheduler}
                if Path(scheduler).exists()
                else {"address": scheduler}
            )
            with Client(**where, set_as_default=False) as client:
                yield client.get_executor(pure=False)
        else:
            with (
                _local_cluster(workers) as cluster,
                Client(cluster, set_as_default=False) as client,
            ):
                yield client.get_executor(pure=False)


def _local_cluster(workers: int) -> Any:
    """Processes on this machine, reachable from this machine alone, each with a GPU of its own."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = _visible_gpus()
    common = {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "dashboard": False}
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    specifications = {}
    for number in range(workers):
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        specifications[number] = {"cls": Nanny, "options": {**common, "env": environment}}
    return SpecCluster(
        workers=specifications,
        scheduler={"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}},
        silence_logs="CRITICAL",
    )


def _visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
