"""What the tests of `results` and `execution` share; much of it runs in other processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr

VALUES = np.linspace(-1.0, 1.0, 12)
PLAN = {"task": "squares", "a_sha256": "0" * 64, "seed": 0}


def squares(t):
    """Numbers of several kinds along `t`, each with a value that depends on its point alone."""
    split, epoch = ["train", "test"], (100 * (t + 1)).astype(int)
    return xr.Dataset(
        {
            "loss": (("split", "t"), np.stack([np.exp(t), np.sin(7 * t)]), {"units": "nats"}),
            "gradient": (("t", "weight"), np.outer(t, np.arange(3.0)).astype(np.float32)),
            "wrong": ("t", (1000 * np.abs(t)).astype(np.int64)),
            "name": ("t", [f"{value:+.3g}" for value in t]),
            "weights": ("weight", np.arange(3)),
        },
        {"t": t, "split": split, "epoch": ("t", epoch)},
        attrs={"distance": 2.5, "note": None},
    )


def slow_squares(t):
    time.sleep(0.15 * len(t))
    return squares(t)


def sweep(path, compute=squares, values=VALUES, plan=PLAN, seconds=0.0, **options):
    """The sweep that is interrupted, killed and continued in the tests."""
    from landscape import results

    given = {"output": path, "plan": plan, "title": "Squares", "analysis": "squares"}
    return results.sweep(compute, {"t": values}, seconds=seconds, **given, **options)


def square(x):
    return x * x


def slow_square(x):
    time.sleep(0.1)
    return x * x


def refuse_three(x):
    if x == 3:
        raise ValueError("three is refused")
    return x * x


def die_at_three(x):
    """Ends the process that runs it, as the kernel does when memory is short."""
    if x == 3:
        os._exit(9)
    return x * x


def die_once_at_three(folder, x):
    marker = Path(folder, "died")
    if x == 3 and not marker.exists():
        marker.touch()
        os._exit(9)
    return x * x


def surroundings(_):
    """What a worker sees: its process, the GPUs it may use, the threads it may start."""
    time.sleep(0.2)
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return os.getpid(), *(os.environ.get(name) for name in names)


def distribute():
    """A local cluster that works until it is interrupted."""
    from landscape.execution import map_tasks, open_executor

    with open_executor(workers=2) as executor:
        for outcome in map_tasks(slow_square, list(range(1000)), executor=executor):
            print(outcome.index, flush=True)


def python(*arguments, **options):
    """Start this module as a program, with the same packages in reach."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **options)


def until(condition, seconds=90):
    """Wait for a condition."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


def same(a, b):
    """Bit for bit the same arrays, with the same names, dimensions and types."""
    assert set(a.variables) == set(b.variables)
    assert set(a.coords) == set(b.coords)
    for name in a.variables:
        x, y = a[name], b[name]
        assert x.dims == y.dims
        if x.dtype.kind in "OUT":
            assert x.values.tolist() == y.values.tolist()
        else:
            assert (x.dtype, x.values.tobytes()) == (y.dtype, y.values.tobytes())
    return True


if __name__ == "__main__":
    if sys.argv[1] == "distribute":
        distribute()
    else:
        sweep(sys.argv[1], slow_squares)
