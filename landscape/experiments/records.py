"""What does a run leave behind? Checkpoints, `run.json`, `record.h5`, and how to go on.

`run.json` holds the settings of the run, what it ran with, its status and last good step. While a
run is not finished, the file `step-00000012.resume` holds all that is needed to go on to the same
weights: moments of the optimiser, memories of hooks, the record so far. On request these files are
kept for each checkpoint.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import torch
import xarray as xr
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from landscape import results
from landscape.experiments.runs import Run
from landscape.experiments.settings import differences

ENDS = ("finished", "stopped", "nonfinite")
MEASURES = {
    "train_loss": "training loss, mean over the batches of the epoch",
    "train_error": "training error, mean over the batches of the epoch",
    "test_loss": "test loss",
    "test_error": "test error",
    "lr": "learning rate at the last step",
    "gradient_norm": "norm of the gradient at the last step",
    "weight_norm": "norm of the parameters",
    "seconds": "time of the steps, without evaluation and checkpoints",
}


class RunError(ValueError):
    """A run's folder cannot be used; the message says what differs and what to do."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: `"finished"`, `"stopped"` by its rule, or `"nonfinite"`; the message.

    `step` is the last good one: that of the last checkpoint.
    """

    name: str
    folder: Path
    status: str
    step: int
    message: str = ""


def read_run(folder: Path) -> dict[str, Any]:
    """What `run.json` says; empty without one. Raises `RunError` if it cannot be read."""
    path = folder / "run.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); choose another folder") from error
    return found


def check_same(now: Mapping[str, Any], folder: Path, found: Mapping[str, Any]) -> None:
    """Raise `RunError` unless a folder is new or holds the run with these settings."""
    now = json.loads(json.dumps(now))
    if found:
        differing = differences(found.get("settings", {}), now)
        if differing:
            lines = [f"  {key}: {_short(a)} -> {_short(b)}" for key, (a, b) in differing.items()]
            raise RunError(
                f"{folder} holds another run and is left as it is. What differs:\n"
                + "\n".join(lines)
                + "\nChoose another folder, or remove this one."
            )
    elif folder.is_dir() and any(folder.glob("step-*")):
        raise RunError(
            f"{folder} holds checkpoints of something else (there is no run.json); "
            "choose another folder"
        )


def write_run(folder: Path, name: str, settings: Mapping[str, Any], **entries: Any) -> None:
    """Write `run.json`, whole or not at all; entries that it has already stay."""
    kept = read_run(folder) | {"name": name, "settings": settings}
    kept |= {"versions": results.provenance(), **entries}
    written(folder / "run.json", lambda path: path.write_text(json.dumps(kept, indent=1)))


def ended(name: str, folder: Path, found: Mapping[str, Any]) -> Ended | None:
    """How a run ended, if it has."""
    if found.get("status") not in ENDS:
        return None
    return Ended(name, folder, found["status"], found["step"], found.get("message", ""))


def resumable(folder: Path) -> set[int]:
    """The steps from which a run can go on."""
    return {int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.resume")}


def save_kept(kept: Mapping[str, Any], folder: Path, step: int) -> None:
    """Write all that is needed to go on from a step."""
    written(folder / f"step-{step:08d}.resume", lambda path: torch.save(dict(kept), path))


def load_kept(folder: Path, step: int) -> dict[str, Any]:
    """All that is needed to go on from a step. Raises `RunError` if nothing was kept."""
    path = folder / f"step-{step:08d}.resume"
    if not path.exists():
        raise RunError(
            f"{path} does not exist: only runs with keep_optimiser=True keep the state of the "
            "optimiser at each checkpoint. Train the run so, or branch with optimiser='reset'."
        )
    kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return kept


def forget(folder: Path, *, but: Collection[int] = ()) -> None:
    """Remove what was kept to go on, but for some steps."""
    for step in resumable(folder) - set(but):
        (folder / f"step-{step:08d}.resume").unlink(missing_ok=True)


def save_record(run: Run, rows: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write the record of all epochs as `record.h5`, which `results.load` reads."""
    record = results.dataset(
        {
            name: ("epoch", [row[name] for row in rows], {"long_name": text})
            for name, text in MEASURES.items()
        },
        {
            "epoch": ("epoch", [row["epoch"] for row in rows], {"long_name": "epochs passed"}),
            "step": ("epoch", [row["step"] for row in rows], {"long_name": "steps taken"}),
        },
        analysis="run",
        title=f"training of {run.name}",
    )
    record["seconds"].attrs["units"] = "s"
    with explained(folder):
        written(folder / "record.h5", partial(_write_hdf5, record))


def _write_hdf5(record: xr.Dataset, path: Path) -> None:
    """The same file that xarray would write, in a tenth of its time: a sweep writes one a run."""
    with h5py.File(path, "w") as file:
        file.attrs.update(record.attrs)
        file["epoch"] = record["epoch"].values
        file["epoch"].make_scale("epoch")
        for name in [*record.data_vars, "step"]:
            file[name] = record[name].values
            file[name].dims[0].attach_scale(file["epoch"])
        for name in record.data_vars:
            file[name].attrs["coordinates"] = "step"
        for name, variable in record.variables.items():
            file[name].attrs.update(variable.attrs)


def read_record(folder: Path) -> dict[str, NDArray[Any]]:
    """The columns of a run's record (epoch,), by name, in a tenth of the time of `results.load`.

    Empty if there is none. Raises `RunError` for a damaged file.
    """
    path = folder / "record.h5"
    if not path.exists():
        return {}
    try:
        with h5py.File(path) as file:
            return {name: file[name][()] for name in file}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # as h5py does
        raise RunError(f"{path} is damaged: {error}. Train the run again, elsewhere") from error


def written(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place and put it there at once."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make the folder of a run and hold its lock, which the kernel frees however a process ends."""
    lock = FileLock(folder / ".run.lock")
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{folder} is being trained by another process; wait for it, or stop it"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what an error of the operating system means for a run."""
    try:
        yield
    except (OSError, results.ResultError) as error:
        raise RunError(
            f"{folder} could not be written: {getattr(error, 'strerror', None) or error}. The last "
            "checkpoint there is complete; mend this and train again to go on from it"
        ) from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 70 else text[:67] + "..."
