"""Where do independent pieces of work run? Here, or on any `concurrent.futures.Executor`.

`map_tasks` is the only place that hands work out. A worker that dies costs its task a retry where
the executor can replace it (`dask.distributed`), and never the results of the others.
"""

import _thread
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue
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
    finished: SimpleQueue[Future[R]] = SimpleQueue()
    running: dict[Future[R], int] = {}
    tries = [0] * len(tasks)
    lost: BaseException | None = None

    def submit(index: int) -> None:
        future = _submitted(executor, function, tasks[index])
        running[future] = index
        future.add_done_callback(finished.put)

    try:
        for index in range(len(tasks)):
            submit(index)
        while running:
            future = finished.get()
            index = running.pop(future)
            error = CancelledError() if future.cancelled() else future.exception()
            if error is None:
                yield Outcome(index, future.result())
            elif isinstance(error, BrokenExecutor | CancelledError):  # not the task's fault
                lost = error
            elif tries[index] < retries and not lost and not _killed(error):
                tries[index] += 1
                submit(index)
            else:
                yield Outcome(index, error=error)
    finally:
        for future in list(running):
            future.cancel()
    if lost:
        raise WorkerLost(
            "the executor lost its workers before all tasks were done; run the same command "
            "again to go on from here"
        ) from lost


def _submitted(executor: Executor, function: Callable[[T], R], task: T) -> Future[R]:
    """The future of a task; one that has failed already if the executor is broken."""
    try:
        return executor.submit(function, task)
    except BrokenExecutor as error:
        future: Future[R] = Future()
        future.set_exception(error)
        return future


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

    Raises `ConnectionError` if no scheduler answers within 5 seconds.
    """
    if workers == "auto":
        workers = len(_visible_gpus())
    if isinstance(workers, str) or workers < 0:
        raise ValueError(f"workers must be a number of processes or 'auto', got {workers!r}")
    if not workers and not scheduler:
        yield None
        return
    try:
        import dask
        import distributed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "workers need dask.distributed: python -m pip install 'landscape[distributed]'"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupts_kept())
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 3}))
        if scheduler:
            client = stack.enter_context(_connected(scheduler))
        else:
            cluster = stack.enter_context(_local_cluster(workers))
            client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
        yield client.get_executor(pure=False)


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise a Control-C again that reaches a destructor, where Python would drop it.

    Futures of dask do much of their work there.
    """
    before = sys.unraisablehook

    def again(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()  # once the destructor is left
        else:
            before(dropped)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _connected(scheduler: str) -> Any:
    """A client of a running scheduler, which is named by its address or by a file."""
    from distributed import Client
    from distributed.comm import get_address_host_port

    try:
        is_file = Path(scheduler).is_file()
        address = json.loads(Path(scheduler).read_text())["address"] if is_file else scheduler
        socket.create_connection(get_address_host_port(address), timeout=5).close()
        return Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConnectionError(
            f"no dask scheduler answers at {scheduler} ({error}): give the address that "
            "'dask scheduler' prints, such as tcp://host:8786, or its scheduler file"
        ) from error


def _local_cluster(workers: int) -> Any:
    """Processes on this machine, reachable from this machine alone, each with a GPU of its own."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = _visible_gpus()
    here = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    common = here | {
        "nthreads": 1,
        "memory_limit": 0,
        "silence_logs": logging.CRITICAL,
        "preload": [__name__],  # dask calls `dask_setup` below
    }
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    specifications = {}
    for number in range(workers):
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        specifications[number] = {"cls": Nanny, "options": common | {"env": environment}}
    return SpecCluster(
        workers=specifications,
        scheduler={"cls": Scheduler, "options": here},
        silence_logs=logging.CRITICAL,
    )


def dask_setup(_worker: Any) -> None:
    """Let a worker ignore Control-C, which reaches all processes: the main one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:  # CUDA stops at the first name that is no device
        names = [name.strip() for name in named.split(",")]
        return list(takewhile(lambda name: name not in ("", "-1"), names))
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
