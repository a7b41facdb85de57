"""How are results kept? As labelled datasets, one HDF5 file for each analysis.

A file is published by writing a complete image beside it and renaming: whenever the process or the
machine dies, the file on disk is a complete one. `sweep` commits after each chunk of work and goes
on from there when the same call is made again.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike
from tqdm import tqdm

from landscape.execution import map_tasks

SCHEMA_VERSION = 1
STATUS = ("pending", "ok", "nonfinite", "failed")
REQUIRED = ("title", "analysis", "schema_version", "created", "provenance")


class ResultError(ValueError):
    """A results file cannot be written, read or continued; the message says what to do."""


# --- datasets -------------------------------------------------------------------------------------


def dataset(
    variables: Mapping[str, Any],
    coords: Mapping[str, Any],
    *,
    analysis: str,
    title: str,
    **attrs: Any,
) -> xr.Dataset:
    """A labelled result: every analysis ends here.

    `variables` and `coords` are as in `xarray.Dataset`. `title` says in a few words what was done,
    `analysis` names the kind of result. Further `attrs` that HDF5 cannot hold (None, bool, dict,
    list) are stored as JSON text.
    """
    result = xr.Dataset(dict(variables), dict(coords))
    for name, variable in result.variables.items():
        variable.attrs.setdefault("long_name", str(name).replace("_", " "))
    if "status" in result:
        result["status"].attrs |= {
            "long_name": "status",
            "flag_values": np.arange(len(STATUS), dtype=np.uint8),
            "flag_meanings": " ".join(STATUS),
        }
    return result.assign_attrs(
        title=title,
        analysis=analysis,
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        provenance=json.dumps(provenance()),
        **{key: _plain(value) for key, value in attrs.items()},
    )


def provenance() -> dict[str, Any]:
    """What produced a result: versions, platform and the git revision of the working folder."""
    packages = ("landscape", "torch", "numpy", "scipy", "xarray", "h5py")
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "versions": versions | {"python": platform.python_version()},
        "platform": platform.platform(),
        "git": _git_revision(),
    }


def problems(result: xr.Dataset) -> list[str]:
    """Where a dataset departs from the schema, in words; empty if it does not."""
    found = [f"the attribute {name!r} is missing" for name in REQUIRED if name not in result.attrs]
    if result.attrs.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
        found.append(f"schema version {result.attrs['schema_version']} is newer than this program")
    for name, variable in result.variables.items():
        if "long_name" not in variable.attrs:
            found.append(f"the variable {str(name)!r} has no long_name")
    if "status" in result:
        for code, count in zip(*np.unique(result["status"], return_counts=True), strict=True):
            if int(code) >= len(STATUS):
                found.append(f"{count} points have the unknown status {code}")
            elif STATUS[int(code)] != "ok":
                found.append(f"{count} points are {STATUS[int(code)]}")
    return found


# --- files ----------------------------------------------------------------------------------------


def save(result: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a dataset as one HDF5 file, at once or not at all. An existing file is replaced.

    Raises `ResultError` if the folder is missing or another process writes to the same file.
    """
    path = Path(path)
    with _only_writer(path):
        _publish(result, path)
    return path


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a result into memory; the file is closed afterwards.

    Raises `ResultError` if there is no such file, or it is no result of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise ResultError(f"{path}: no such results file")
    try:
        result = xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError) as error:
        raise ResultError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as HDF5: {error}"
        ) from error
    version = result.attrs.get("schema_version")
    if version is None:
        raise ResultError(f"{path} is HDF5 but no landscape result: 'schema_version' is missing")
    if version > SCHEMA_VERSION:
        raise ResultError(
            f"{path} has schema version {version}, this program knows {SCHEMA_VERSION}: "
            "update landscape"
        )
    return result


# --- resumable work -------------------------------------------------------------------------------


def sweep(
    compute: Callable[[np.ndarray], xr.Dataset],
    over: Mapping[str, ArrayLike],
    *,
    output: str | os.PathLike[str],
    plan: Mapping[str, Any],
    title: str,
    analysis: str,
    chunk: int = 1,
    seconds: float = 1.0,
    executor: Executor | None = None,
    progress: bool | None = False,
    overwrite: bool = False,
    **attrs: Any,
) -> xr.Dataset:
    """Compute a dataset along one dimension, chunk by chunk, into a file that is always complete.

    `over` names the dimension and its values. `compute(values)` gives a dataset for some of them;
    variables with that dimension are put together, others must not depend on the chunk. The first
    commit, with every point pending, comes before any work; then there is one after each chunk of
    about `seconds` (a multiple of `chunk` values). `plan` says what the result depends on
    (arguments, hashes of inputs); the same call goes on where an earlier one ended, and another
    plan is refused. With an `executor`, chunks of `chunk` values go to its workers. Points whose
    task failed there have the status failed, and are tried again by the next call.

    Raises `ResultError` for another plan, a second writer or an output that cannot be written;
    `WorkerLost` if the executor broke down, with everything finished before on disk.
    """
    ((dim, values),) = ((name, np.asarray(axis)) for name, axis in over.items())
    path = Path(output)
    plan = json.loads(json.dumps(plan, default=str)) | {dim: values.tolist()}
    empty = dataset(
        {"status": (dim, np.zeros(len(values), np.uint8))},
        {dim: values},
        title=title,
        analysis=analysis,
        command=" ".join(sys.argv),
        plan=plan,
        plan_hash=_digest(plan),
        **attrs,
    )
    with _only_writer(path):
        result = empty if overwrite or not path.exists() else _continued(path, plan, dim)
        _publish(result, path)
        pending = _pending(result, dim)
        bar = tqdm(
            total=len(values),
            initial=len(values) - len(pending),
            desc=analysis,
            unit="point",
            disable=None if progress is None else not progress,
            file=sys.stderr,
        )
        with bar:
            done = _chunks(compute, values, pending, chunk, seconds, executor)
            for indices, part in done:
                result = _merged(result, part, dim, indices, len(values))
                _publish(result, path)
                bar.update(len(indices))
    return result


def _chunks(
    compute: Callable[[np.ndarray], xr.Dataset],
    values: np.ndarray,
    pending: np.ndarray,
    chunk: int,
    seconds: float,
    executor: Executor | None,
) -> Iterator[tuple[np.ndarray, xr.Dataset | BaseException]]:
    """Pairs of indices and what was computed for them; here in chunks that grow to `seconds`."""
    if executor is not None:
        parts = [pending[i : i + chunk] for i in range(0, len(pending), chunk)]
        for outcome in map_tasks(compute, [values[part] for part in parts], executor=executor):
            result = outcome.value if outcome.error is None else outcome.error
            assert result is not None
            yield parts[outcome.index], result
        return
    size, start = chunk, 0
    while start < len(pending):
        indices = pending[start : start + size]
        begin = time.perf_counter()
        part = compute(values[indices])
        rate = (time.perf_counter() - begin) / len(indices)
        yield indices, part
        start += size
        size = chunk * max(1, math.ceil(seconds / max(rate, 1e-9) / chunk))
        size = min(size, chunk * max(1, math.ceil(len(values) / chunk)))


def _pending(result: xr.Dataset, dim: str) -> np.ndarray:
    """Indices along the dimension of points that are pending or failed."""
    todo = result["status"].isin([STATUS.index("pending"), STATUS.index("failed")])
    return np.flatnonzero(todo.any([d for d in todo.dims if d != dim]).values)


def _merged(
    result: xr.Dataset,
    part: xr.Dataset | BaseException,
    dim: str,
    indices: np.ndarray,
    num: int,
) -> xr.Dataset:
    """The result with a computed part put in its place."""
    result = result.copy()
    if isinstance(part, BaseException):
        status = result["status"].copy()
        status.loc[{dim: result[dim][indices]}] = STATUS.index("failed")
        failures = json.loads(result.attrs.get("failures", "[]"))
        failures.append({"points": indices.tolist(), "error": f"{type(part).__name__}: {part}"})
        return result.assign(status=status).assign_attrs(failures=json.dumps(failures))
    for name, variable in part.variables.items():
        if name == dim:
            result[dim].attrs |= variable.attrs
        elif dim not in variable.dims:
            result[name] = variable
        else:
            axis = variable.dims.index(dim)
            if name not in result.variables or result[name].dims != variable.dims:
                result[name] = _blank(variable, axis, num)
            result[name].values[(slice(None),) * axis + (indices,)] = variable.values
    kept = {"plan", "plan_hash", "command", "title", "analysis", "created"}
    new = {key: value for key, value in part.attrs.items() if key not in kept}
    return result.assign_attrs(new)


def _blank(variable: xr.Variable, axis: int, num: int) -> xr.Variable:
    """A variable of full length: NaN, or zero (pending) where the type has no NaN."""
    shape = (*variable.shape[:axis], num, *variable.shape[axis + 1 :])
    fill = np.nan if np.issubdtype(variable.dtype, np.floating) else 0
    return xr.Variable(variable.dims, np.full(shape, fill, variable.dtype), variable.attrs)


def _continued(path: Path, plan: Mapping[str, Any], dim: str) -> xr.Dataset:
    """The result of an earlier call with the same plan."""
    result = load(path)
    earlier = json.loads(result.attrs.get("plan", "{}"))
    differing = [key for key in sorted({*earlier, *plan}) if earlier.get(key) != plan.get(key)]
    if differing:
        lines = [
            f"  {key}: {_short(earlier.get(key))} -> {_short(plan.get(key))}" for key in differing
        ]
        raise ResultError(
            f"{path} was made by another plan and is left as it is. What differs:\n"
            + "\n".join(lines)
            + "\nChoose another output, or start anew with --overwrite (overwrite=True)."
        )
    return result


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of an output; the kernel frees it when the process ends in any way."""
    if not path.parent.is_dir():
        raise ResultError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise ResultError(f"{path} is a folder; name a file such as {path / 'result.h5'}")
    lock_path = path.with_name(f".{path.name}.lock")
    owner_path = path.with_name(f".{path.name}.owner")
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = owner_path.read_text() if owner_path.exists() else "another process"
        raise ResultError(f"{path} is being written by {owner}; wait for it, or stop it") from None
    except OSError as error:
        raise ResultError(f"{path.parent} cannot be written to: {error.strerror}") from error
    try:
        owner_path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        for stale in path.parent.glob(f".{path.name}.*.tmp"):
            stale.unlink()
        yield
    finally:
        owner_path.unlink(missing_ok=True)
        lock.release()


def _publish(result: xr.Dataset, path: Path) -> None:
    """Replace the file by a complete new one; whatever happens, the old or the new one is there."""
    image = result.to_netcdf(engine="h5netcdf")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResultError(
            f"{path} could not be written: {error.strerror}; what was there before is unharmed"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _plain(value: Any) -> Any:
    """A value that an HDF5 attribute can hold."""
    return (
        value
        if isinstance(value, str | int | float) and not isinstance(value, bool)
        else json.dumps(value)
    )


def _digest(plan: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _git_revision() -> str:
    """The revision of the working folder, with `-dirty` where it differs; empty without git."""
    call: Sequence[str] = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
