"""How are results kept? As labelled datasets, one HDF5 file for each analysis.

A file is published by writing a complete image beside it and renaming: whenever the process or the
machine dies, the file on disk is a complete one. `sweep` commits after each chunk of work and goes
on from there when the same call is made again.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike
from tqdm import tqdm

from landscape.execution import map_tasks

SCHEMA_VERSION = 1  # the archive of the tests holds a file of each
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
    `analysis` names the kind of result. Further `attrs` other than text and numbers (None, bool,
    dict, list, ...) are stored as JSON text.
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
        **_plain(attrs),
    )


def provenance() -> dict[str, Any]:
    """What produced a result: versions, platform and the git revision of the working folder."""
    return {
        "versions": {**_versions(), "python": platform.python_version()},
        "platform": platform.platform(),
        "git": _git_revision(),
    }


def problems(result: xr.Dataset) -> list[str]:
    """Where a dataset departs from the schema, in words; empty if it does not."""
    found = [f"the attribute {name!r} is missing" for name in REQUIRED if name not in result.attrs]
    if not _known(result.attrs.get("schema_version", SCHEMA_VERSION)):
        found.append(
            f"the schema version is {result.attrs['schema_version']}, not {SCHEMA_VERSION}"
        )
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

    Raises `ResultError` if the folder is missing, the disk is full, or another process writes to
    the same file.
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
    except Exception as error:  # damaged HDF5 raises nearly anything
        raise ResultError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as HDF5; it is damaged, or "
            f"something else ({type(error).__name__}: {error})"
        ) from error
    version = result.attrs.get("schema_version")
    if version is None:
        raise ResultError(f"{path} is HDF5 but no landscape result: 'schema_version' is missing")
    if not _known(version):
        raise ResultError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: "
            "install a newer landscape"
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
    tolerant: bool = False,
    **attrs: Any,
) -> xr.Dataset:
    """Compute a dataset along one dimension, chunk by chunk, into a file that is always complete.

    `over` names the dimension and its values. `compute(values)` gives a dataset for some of them;
    variables with that dimension are put together, others must not depend on the chunk. Without a
    `status` of its own, what is computed is ok. The first commit, with every point pending, comes
    before any work; then there is one after each chunk of about `seconds` (a multiple of `chunk`
    values). `plan` says what the result depends on (arguments, hashes of inputs); the same call
    goes on where an earlier one ended, and another plan is refused unless `overwrite`.

    With an `executor`, chunks of `chunk` values go to its workers, and commits are `seconds` apart.
    Points whose task failed there have the status failed, the attribute `failures` says why, and
    the next call tries them again. If `tolerant`, that also holds for work in this process.

    Raises `ResultError` for another plan, a second writer or an output that cannot be written;
    `WorkerLost` if the executor broke down, with everything finished before on disk.
    """
    if len(over) != 1 or chunk < 1:
        raise ValueError(
            f"a sweep is over one dimension in chunks of at least 1, got {list(over)} and {chunk}"
        )
    ((dim, values),) = ((name, np.asarray(axis)) for name, axis in over.items())
    path = Path(output)
    plan = {
        **json.loads(json.dumps(plan, default=str)),
        dim: values.tolist(),
        "schema_version": SCHEMA_VERSION,
    }
    empty = dataset(
        {"status": (dim, np.zeros(len(values), np.uint8))},
        {dim: values},
        title=title,
        analysis=analysis,
        command=_command(),
        plan=plan,
        plan_hash=_digest(plan),
        **attrs,
    )
    with _only_writer(path):
        anew = overwrite or not path.exists() or _is_blank(path)
        result = empty if anew else _continued(path, plan, dim)
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
        done = _chunks(compute, values, pending, chunk, seconds, executor, tolerant)
        with bar, contextlib.closing(done):
            committed, behind = time.perf_counter(), False
            try:
                for indices, part in done:
                    result, behind = _merged(result, part, dim, indices, len(values)), True
                    if executor is None or time.perf_counter() - committed >= seconds:
                        behind = False  # also if this fails: then there is no use in a second try
                        _publish(result, path)
                        committed = time.perf_counter()
                    bar.update(len(indices))
            finally:
                if behind:
                    _publish(result, path)
    return result


def _chunks(
    compute: Callable[[np.ndarray], xr.Dataset],
    values: np.ndarray,
    pending: np.ndarray,
    chunk: int,
    seconds: float,
    executor: Executor | None,
    tolerant: bool,
) -> Generator[tuple[np.ndarray, xr.Dataset | BaseException], None, None]:
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
        part: xr.Dataset | BaseException
        try:
            part = compute(values[indices])
        except Exception as error:
            if not tolerant:
                raise
            if len(indices) > chunk:  # one of them; the others are good
                size = chunk
                continue
            part = error
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
        result["status"][{dim: indices}] = STATUS.index("failed")
        failures = json.loads(result.attrs.get("failures", "[]"))
        failures.append({"points": indices.tolist(), "error": f"{type(part).__name__}: {part}"})
        return result.assign_attrs(failures=json.dumps(failures))
    if "status" not in part:
        part = part.assign(status=(dim, np.full(len(indices), STATUS.index("ok"), np.uint8)))
    for name, variable in part.variables.items():
        if name == dim:
            result[dim].attrs |= variable.attrs
        elif dim not in variable.dims:
            result[name] = variable
        else:
            full = _full(result.variables.get(name), variable, dim, num)
            full[{dim: indices}] = variable.values
            result[name] = full
    kept = {"plan", "plan_hash", "command", "title", "analysis", "created"}
    new = {key: value for key, value in part.attrs.items() if key not in kept}
    return result.set_coords(part.coords).assign_attrs(_plain(new))


def _full(earlier: xr.Variable | None, part: xr.Variable, dim: str, num: int) -> xr.Variable:
    """A variable of full length that can hold a part: as it was, or blank (NaN, 0, "") if new."""
    sizes = dict(part.sizes) | {dim: num}
    if earlier is None:
        fill = np.nan if part.dtype.kind in "fc" else "" if part.dtype.kind in "OUST" else 0
        return xr.Variable(part.dims, np.full(tuple(sizes.values()), fill, part.dtype), part.attrs)
    full = earlier.set_dims(sizes).transpose(*part.dims).copy()
    return full.astype(np.result_type(full.dtype, part.dtype))


def _is_blank(path: Path) -> bool:
    """Whether a file is the result of a sweep that ended before its first point."""
    try:
        found = load(path)
    except ResultError:
        return False
    return "status" in found and bool((found["status"] == STATUS.index("pending")).all())


def _continued(path: Path, plan: Mapping[str, Any], dim: str) -> xr.Dataset:
    """The result of an earlier call with the same plan; what failed then is pending again."""
    result = load(path)
    check_plan(result, plan, path)
    result.attrs.pop("failures", None)
    again = result["status"] == STATUS.index("failed")
    return result.assign(status=result["status"].where(~again, STATUS.index("pending")))


def check_plan(result: xr.Dataset, plan: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise `ResultError` unless the result in a file was made by this plan."""
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


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of an output; the kernel frees it when the process ends in any way."""
    if not path.parent.is_dir():
        raise ResultError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise ResultError(f"{path} is a folder; name a file such as {path / 'result.h5'}")
    if path.exists() and not path.is_file():
        raise ResultError(f"{path} is a device or a pipe; a result needs a file of its own")
    owner = path.with_name(f".{path.name}.owner")  # beside the lock, which locking may truncate
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        with contextlib.suppress(OSError):
            who = owner.read_text() or who
        raise ResultError(f"{path} is being written by {who}; wait for it, or stop it") from None
    except OSError as error:
        raise ResultError(f"{path.parent} cannot be written to: {error.strerror}") from error
    try:
        with _explained(path):
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                stale.unlink()
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _publish(result: xr.Dataset, path: Path) -> None:
    """Replace the file by a complete new one; whatever happens, the old or the new one is there."""
    image = result.to_netcdf(engine="h5netcdf")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path):
        try:
            with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
                while len(image):
                    image = image[os.write(file, image) :]
                os.fsync(file)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        with _opened(path.parent, os.O_RDONLY) as folder:
            os.fsync(folder)  # the new name itself


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags, 0o666)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say what an error of the operating system means for a results file."""
    try:
        yield
    except OSError as error:
        raise ResultError(
            f"{path} could not be written: {error.strerror or error}. What was on disk before is "
            "complete; mend this and run the same command again"
        ) from error


def _known(version: Any) -> bool:
    """Whether this program can read a schema version."""
    return isinstance(version, int | np.integer) and bool(1 <= version <= SCHEMA_VERSION)


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes that HDF5 can hold: text and numbers as they are, all else as JSON text."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if isinstance(value, str | float):
            return value
        small = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        return value if small else json.dumps(value, default=str)

    return {str(key): plain(value) for key, value in attrs.items()}


def _command() -> str:
    """The command of this process, without the folder that the program lies in."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *sys.argv[1:]])


def _digest(plan: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 70 else text[:67] + "..."


@cache
def _versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on; of those that are installed."""
    versions = {}
    for package in ("landscape", "torch", "numpy", "scipy", "xarray", "h5py"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


@cache
def _git_revision() -> str:
    """The revision of the working folder, with `-dirty` where it differs; empty without git."""
    call: Sequence[str] = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
