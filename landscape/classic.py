"""What is in the surface files of Li et al.'s tool, and how do they become results of ours?

The tool of "Visualizing the Loss Landscape of Neural Nets" (2018) writes HDF5 without attributes:
`xcoordinates` and perhaps `ycoordinates`, `train_loss`, `train_acc` in percent and perhaps
`test_loss`, `test_acc`, with -1 where nothing was computed yet.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from landscape.results import STATUS, dataset

Array = NDArray[np.float64]
UNFILLED = -1.0
SPLITS = ("train", "test")


def is_classic(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a surface of Li et al.'s tool: HDF5 with coordinates and a loss."""
    path = Path(path)
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return "xcoordinates" in file and any(f"{split}_loss" in file for split in SPLITS)


def read_surface(
    path: str | os.PathLike[str], *, projection: str | os.PathLike[str] | None = None
) -> xr.Dataset:
    """Read a surface file of Li et al.'s tool, one- or two-dimensional.

    Returns `loss` and, where accuracies are there, `error` = 1 - accuracy / 100 over (split, x) or
    (split, x, y), and `status`: pending where both are -1 in any split, nonfinite where a value is.
    A split that has no value at all is left out. There are no standard errors in these files. The
    axes are multiples of the tool's directions, not distances.

    A surface of nx by ny points is stored with the shape (nx, ny), but in the order in which the
    points were evaluated, x fastest; here it is put right, so that `loss.sel(x=..., y=...)` is the
    loss there. Where nx = ny, that is a transposition.

    `projection`: a projection file (`proj_xcoord`, `proj_ycoord`), whose points become `path_x` and
    `path_y` along `step`, which counts them from 0: the file does not say which steps they are, nor
    how far they are from the plane.

    Raises `ValueError` if a file is not of that kind, or its sizes contradict each other.
    """
    path = Path(path)
    if not is_classic(path):
        raise ValueError(
            f"{path} is no surface file of Li et al.'s tool: that is HDF5 with 'xcoordinates' and "
            f"'train_loss'{_found(path)}"
        )
    stored = _arrays(path)
    axes = {axis: stored[f"{axis}coordinates"] for axis in "xy" if f"{axis}coordinates" in stored}
    shape = tuple(len(axis) for axis in axes.values())
    values = _values(path, stored, shape)
    unfilled = {
        split: np.logical_and.reduce([values[n] == UNFILLED for n in _of(values, split)])
        for split in SPLITS
        if f"{split}_loss" in values
    }
    splits = [split for split, empty in unfilled.items() if not empty.all()] or [*unfilled][:1]
    for split in splits:
        for name in _of(values, split):
            values[name] = np.where(unfilled[split], np.nan, values[name])
    variables: dict[str, Any] = {
        "loss": (("split", *axes), np.stack([values[f"{split}_loss"] for split in splits]))
    }
    if any(f"{split}_acc" in values for split in splits):
        none = np.full(shape, np.nan)
        accuracy = np.stack([values.get(f"{split}_acc", none) for split in splits])
        variables["error"] = (("split", *axes), 1 - accuracy / 100)
    present = np.stack([values[name] for split in splits for name in _of(values, split)])
    status = np.where(np.isfinite(present).all(0), STATUS.index("ok"), STATUS.index("nonfinite"))
    pending = np.logical_or.reduce([unfilled[split] for split in splits])
    status = np.where(pending, STATUS.index("pending"), status).astype(np.uint8)
    variables["status"] = (tuple(axes), status)
    coords: dict[str, Any] = {
        axis: (axis, along, {"long_name": f"{axis}, in multiples of the direction", "units": ""})
        for axis, along in axes.items()
    }
    coords["split"] = splits
    if projection is not None:
        variables |= _path(Path(projection))
        coords["step"] = np.arange(len(variables["path_x"][1]))
    return dataset(
        variables,
        coords,
        analysis="surface",
        title=f"Surface of {' x '.join(map(str, shape))} points, read from {path.name}",
        source=path.name,
    )


def _arrays(path: Path) -> dict[str, Array]:
    """The numeric arrays of a file."""
    with h5py.File(path) as file:
        return {
            name: item[()].astype(np.float64)
            for name, item in file.items()
            if isinstance(item, h5py.Dataset) and item.ndim and item.dtype.kind in "fiu"
        }


def _values(path: Path, stored: dict[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
    """Losses and accuracies (x, y), out of the order in which they were evaluated."""
    values = {name: one for name, one in stored.items() if name.endswith(("_loss", "_acc"))}
    for name, array in values.items():
        if array.size != np.prod(shape):
            raise ValueError(
                f"{path}: {name} has the shape {array.shape}, the coordinates make "
                f"{' x '.join(map(str, shape))} points: the file was begun with other ones"
            )
    return {name: one.ravel().reshape(shape[::-1]).T for name, one in values.items()}


def _of(values: dict[str, Array], split: str) -> list[str]:
    return [name for name in (f"{split}_loss", f"{split}_acc") if name in values]


def _path(projection: Path) -> dict[str, Any]:
    """The points of a projection file."""
    stored = _arrays(projection) if h5py.is_hdf5(projection) else {}
    names = ("proj_xcoord", "proj_ycoord")
    if not set(names) <= set(stored):
        raise ValueError(
            f"{projection} is no projection file of Li et al.'s tool: that is HDF5 with "
            f"'proj_xcoord' and 'proj_ycoord'{_found(projection)}"
        )
    x, y = (stored[name].ravel() for name in names)
    if len(x) != len(y):
        raise ValueError(f"{projection}: {len(x)} x coordinates and {len(y)} y coordinates")
    return {"path_x": ("step", x), "path_y": ("step", y)}


def _found(path: Path) -> str:
    """What a file holds instead, in words."""
    if not path.is_file():
        return "; there is no such file"
    if not h5py.is_hdf5(path):
        return "; this is no HDF5"
    with h5py.File(path) as file:
        return f"; this one has {', '.join(file) or 'nothing'}"
