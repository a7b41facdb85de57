"""Nothing is lost with a worker, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import jobs
import psutil
import pytest
from jobs import python, same, sweep, until

from landscape import results
from landscape.execution import Outcome, WorkerLost, interrupts_kept, map_tasks, open_executor


def values(outcomes):
    """What came out, by index; every task must have come once and without an error."""
    outcomes = list(outcomes)
    assert [o.error for o in outcomes] == [None] * len(outcomes)
    assert sorted(o.index for o in outcomes) == list(range(len(outcomes)))
    return [o.value for o in sorted(outcomes, key=lambda o: o.index)]


# Here ---------------------------------------------------------------------------------------------


def test_tasks_run_here_one_by_one_as_they_are_asked_for():
    begun = []
    outcomes = map_tasks(lambda x: begun.append(x) or x * x, [3, 1, 2])
    assert begun == []
    assert next(outcomes) == Outcome(0, 9)
    assert begun == [3]
    assert list(outcomes) == [Outcome(1, 1), Outcome(2, 4)]


def test_errors_here_are_raised_as_they_are():
    outcomes = map_tasks(jobs.refuse_three, [2, 3, 4])
    assert next(outcomes).value == 4
    with pytest.raises(ValueError, match="three is refused"):
        next(outcomes)


# Any executor -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_every_task(threads):
    with ThreadPoolExecutor(threads) as executor:
        assert values(map_tasks(jobs.square, range(50), executor=executor)) == [
            x * x for x in range(50)
        ]


def test_outcomes_come_as_they_complete():
    with ThreadPoolExecutor(2) as executor:
        outcomes = map_tasks(time.sleep, [0.3, 0.0, 0.0], executor=executor)
        assert [o.index for o in outcomes] == [1, 2, 0]


def test_no_tasks_have_no_outcomes():
    with ThreadPoolExecutor(1) as executor:
        assert list(map_tasks(jobs.square, [], executor=executor)) == []


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_task_that_raises_is_tried_again(retries):
    calls = []

    def refuse_one(x):
        calls.append(x)
        if x == 1:
            raise ValueError(f"refused {calls.count(1)} times")
        return x

    with ThreadPoolExecutor(2) as executor:
        outcomes = list(map_tasks(refuse_one, range(3), executor=executor, retries=retries))
    assert sorted(calls) == [0, *[1] * (retries + 1), 2]
    (failed,) = (o for o in outcomes if o.error is not None)
    assert failed.index == 1
    assert failed.value is None
    assert str(failed.error) == f"refused {retries + 1} times"
    assert sorted(o.value for o in outcomes if o.error is None) == [0, 2]


def test_a_task_that_succeeds_in_the_end_has_no_error():
    calls = []

    def third_time(x):
        calls.append(x)
        if len(calls) < 3:
            raise OSError
        return x

    with ThreadPoolExecutor(1) as executor:
        assert list(map_tasks(third_time, [5], executor=executor)) == [Outcome(0, 5)]


def test_tasks_that_have_not_begun_are_cancelled_when_the_outcomes_are_given_up():
    begun = []

    def task(x):
        begun.append(x)
        time.sleep(0.05)

    with ThreadPoolExecutor(1) as executor:
        outcomes = map_tasks(task, range(100), executor=executor)
        next(outcomes)
        outcomes.close()
    assert len(begun) <= 4


def test_a_broken_pool_gives_what_it_has_and_is_then_lost():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        outcomes, index = map_tasks(jobs.die_at_three, range(6), executor=executor), []
        with pytest.raises(WorkerLost, match="lost its workers before all tasks were done; run"):
            index.extend(outcome.index for outcome in outcomes)
        assert index in ([], [0], [0, 1], [0, 1, 2])
        with pytest.raises(WorkerLost) as caught:
            list(map_tasks(jobs.square, range(3), executor=executor))  # it refuses new tasks
    assert isinstance(caught.value.__cause__, BrokenProcessPool)


class Breaking(Executor):
    """Does two tasks, refuses one, and then breaks."""

    def __init__(self):
        self.num = 0

    def submit(self, function, task):
        self.num += 1
        future = Future()
        if self.num <= 2:
            future.set_result(function(task))
        elif self.num == 3:
            future.set_exception(ValueError("refused"))
        elif self.num == 4:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            raise BrokenProcessPool
        return future


def test_all_that_was_done_comes_before_the_loss():
    outcomes = map_tasks(jobs.square, range(8), executor=Breaking())
    assert [next(outcomes).value for _ in range(2)] == [0, 1]
    with pytest.raises(WorkerLost):
        list(outcomes)


def test_a_sweep_keeps_what_was_done_before_the_loss(tmp_path):
    with pytest.raises(WorkerLost):
        sweep(tmp_path / "r.h5", executor=Breaking(), seconds=60.0)
    done = results.load(tmp_path / "r.h5")["status"] == results.STATUS.index("ok")
    assert done.values.tolist() == [True] * 2 + [False] * 10
    assert same(sweep(tmp_path / "r.h5"), sweep(tmp_path / "here.h5"))


# A cluster on this machine ------------------------------------------------------------------------


def no_process(pids):
    """Whether all of these processes have ended."""
    return not any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids)


def worker_pids(executor):
    return {pid for pid, *_ in values(map_tasks(jobs.surroundings, range(4), executor=executor))}


def listening(process):
    return {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}


def test_no_workers_are_no_executor(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    for workers in (0, "auto"):
        with open_executor(workers=workers) as executor:
            assert executor is None


@pytest.mark.parametrize("workers", [-1, "two"])
def test_a_wrong_number_of_workers_is_refused(workers):
    with (
        pytest.raises(ValueError, match=f"a number of processes or 'auto', got {workers!r}"),
        open_executor(workers=workers),
    ):
        pass


@pytest.mark.parametrize("options", [{"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}])
def test_a_missing_package_is_named_with_the_command(monkeypatch, options):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"pip install 'landscape\[distributed\]'"),
        open_executor(**options),
    ):
        pass


def test_each_worker_has_its_gpu_and_only_this_machine_reaches_it(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1,-1,2")
    with open_executor(workers="auto") as executor:
        seen = set(values(map_tasks(jobs.surroundings, range(6), executor=executor)))
        pids = {pid for pid, *_ in seen}
        assert sorted(gpu for _, gpu, _ in seen) == ["0", "1"]
        assert {threads for *_, threads in seen} == {str(max(1, os.cpu_count() // 2))}
        for process in (psutil.Process(), *map(psutil.Process, pids)):
            assert listening(process) == {"127.0.0.1"}
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0, 1,-1,2"
    until(lambda: no_process(pids))


def test_a_worker_that_is_killed_costs_nothing(tmp_path):
    with open_executor(workers=2) as executor:
        pids = worker_pids(executor)
        outcomes = map_tasks(jobs.slow_square, range(16), executor=executor)
        done = [next(outcomes) for _ in range(3)]
        os.kill(min(pids), signal.SIGKILL)
        assert values([*done, *outcomes]) == [x * x for x in range(16)]
        once = partial(jobs.die_once_at_three, tmp_path)
        assert values(map_tasks(once, range(6), executor=executor)) == [0, 1, 4, 9, 16, 25]
        outcomes = list(map_tasks(jobs.die_at_three, range(6), executor=executor))
        (failed,) = (o for o in outcomes if o.error is not None)
        assert failed.index == 3
        assert type(failed.error).__name__ == "KilledWorker"
        assert sorted(o.value for o in outcomes if o.error is None) == [0, 1, 4, 16, 25]
        result = sweep(tmp_path / "r.h5", executor=executor, chunk=2)
        pids |= worker_pids(executor)
        next(map_tasks(jobs.slow_square, range(100), executor=executor))  # and leave in the middle
    assert same(result, sweep(tmp_path / "here.h5"))
    until(lambda: no_process(pids))


def interrupt(stop):
    """Stop a run in the middle; its exit code, what it wrote, and the processes it had."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with python("distribute", start_new_session=True, **pipes) as run:
        try:
            run.stdout.readline()
            pids = [run.pid, *(p.pid for p in psutil.Process(run.pid).children(recursive=True))]
            stop(run)
            _, errors = run.communicate(timeout=90)
        finally:
            run.kill()
    assert len(pids) >= 3
    return run.returncode, errors, pids


def test_control_c_ends_every_process_without_noise():
    code, errors, pids = interrupt(lambda run: os.killpg(run.pid, signal.SIGINT))
    until(lambda: no_process(pids))
    assert code in (1, -signal.SIGINT)
    assert errors.count("Traceback") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")


class Interrupted:
    def __del__(self):
        raise KeyboardInterrupt


def drop_an_interrupt():
    with interrupts_kept():
        Interrupted()
        time.sleep(5)


def test_control_c_within_a_destructor_is_not_lost():
    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        drop_an_interrupt()
    assert sys.unraisablehook is before


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_run():
    code, _, pids = interrupt(lambda run: run.kill())
    until(lambda: no_process(pids))
    assert code == -signal.SIGKILL


# A cluster elsewhere ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and one worker, in threads of this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp",
        host="127.0.0.1", dashboard_address=None,
    ) as running:  # fmt: skip
        yield running


def test_a_scheduler_is_found_by_its_address(cluster):
    with open_executor(scheduler=cluster.scheduler_address) as executor:
        assert values(map_tasks(jobs.square, range(5), executor=executor)) == [0, 1, 4, 9, 16]


def test_a_scheduler_is_found_by_its_file(cluster, tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text(f'{{"address": "{cluster.scheduler_address}"}}')
    with open_executor(scheduler=str(file)) as executor:
        assert values(map_tasks(jobs.square, range(5), executor=executor)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        ("tcp://127.0.0.1:1", "Connection refused"),
        ("nowhere.json", "missing port number"),
        ("wrong.json", "Expecting value"),
        ("empty.json", "'address'"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_named_at_once(
    tmp_path, monkeypatch, scheduler, reason
):
    monkeypatch.chdir(tmp_path)
    Path("wrong.json").write_text("tcp://127.0.0.1")
    Path("empty.json").write_text("{}")
    begin = time.monotonic()
    with (
        pytest.raises(
            ConnectionError,
            match=f"no dask scheduler answers at {scheduler} .*{reason}.*: give the address that "
            "'dask scheduler' prints, such as tcp://host:8786, or its scheduler file",
        ),
        open_executor(scheduler=scheduler),
    ):
        pass
    assert time.monotonic() - begin < 6


@pytest.mark.slow
def test_the_commands_for_a_cluster_work_and_a_scheduler_that_dies_is_a_loss(tmp_path):
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    here = ["--host", "127.0.0.1", "--scheduler-file", str(file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = partial(subprocess.Popen, env=environment, stderr=subprocess.DEVNULL)
    scheduler = start([*dask, "scheduler", *here, "--port", "0", "--no-dashboard"])
    worker = start([*dask, "worker", *here, "--nthreads", "1", "--no-dashboard"])
    try:
        until(file.exists)
        with open_executor(scheduler=str(file)) as executor:
            assert same(sweep(tmp_path / "r.h5", executor=executor), sweep(tmp_path / "here.h5"))
            outcomes = map_tasks(jobs.slow_square, range(1000), executor=executor)
            next(outcomes)
            scheduler.kill()
            with pytest.raises(WorkerLost):
                list(outcomes)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
