"""Which parts of a result are drawn, and what are they called?"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

# What says how well a similarity of layers was measured.
QUALITY = {"rank", "other_rank", "condition", "other_condition", "num_forced", "exact"}

# What stands beside a measure or describes a point, and is not drawn for itself.
BESIDE = (
    "_stderr", "_low", "_high", "_position", "_examples", "_distance", "_chance", "_threshold",
    "_adjusted", "_unweighted",
)  # fmt: skip
POINTS = {"status", "evaluated", "arc_length", "weight_norm", "distance"}


def measures(result: xr.Dataset, dims: Collection[str]) -> list[str]:
    """The measures that vary along dimensions: those with a standard error, if any has one."""
    along = [str(name) for name in result.data_vars if set(dims) <= set(result[name].dims)]
    uncertain = [name for name in along if f"{name}_stderr" in result]
    return uncertain or [
        name
        for name in along
        if not (name in POINTS or name.startswith("own_") or name.endswith(BESIDE))
    ]


def similarities(result: xr.Dataset, dims: Collection[str]) -> list[str]:
    """The measures of similarity between layers that vary along dimensions."""
    return [
        str(name)
        for name, one in result.data_vars.items()
        if set(dims) <= set(one.dims) and one.dtype.kind == "f" and "direction" not in one.dims
        and not (name in POINTS | QUALITY or str(name).endswith(BESIDE))
    ]  # fmt: skip


def splits_of(result: xr.Dataset, y: str) -> list[str | None]:
    """The splits that a measure has values for; one that is None if it has none."""
    several = y in result and "split" in result[y].dims
    return [str(split) for split in result["split"].values] if several else [None]


def part(result: xr.Dataset, y: str, dims: Collection[str], split: str | None) -> xr.Dataset:
    """The result of one split, by default the first, sorted along dimensions that `y` must have.

    Raises `ValueError` for an unknown measure or split.
    """
    if y not in result or not set(dims) <= set(result[y].dims):
        along = ", ".join(map(repr, dims))
        known = ", ".join(measures(result, dims)) or "none"
        raise ValueError(f"the result has no {y!r} along {along}; it has {known}")
    splits = splits_of(result, y)
    if split is not None and split not in splits:
        raise ValueError(f"the result has no split {split!r}; it has {splits}")
    if splits != [None]:
        result = result.sel(split=splits[0] if split is None else split)
    return result.sortby([dim for dim in dims if result[dim].dtype.kind in "fiu"])


def field(
    result: xr.Dataset, y: str, dims: tuple[str, str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values over two dimensions, rows first, of a result that `part` gave.

    Values are NaN where they are not finite or pending; the second array says where they are
    finished and yet not finite. Raises `ValueError` if there are further dimensions.
    """
    values = result[y]
    if extra := set(values.dims) - set(dims):
        raise ValueError(f"{y!r} also varies along {', '.join(map(str, extra))}: select one first")
    array = values.transpose(*dims).values.astype(float)
    finished = np.ones(array.shape, bool)
    if "status" in result and set(result["status"].dims) <= set(values.dims):
        finished = (result["status"].broadcast_like(values).transpose(*dims) != 0).values
    finite = np.isfinite(array)
    return np.where(finite & finished, array, np.nan), finished & ~finite


def label(result: xr.Dataset, name: str) -> str:
    """The long name of a variable, with its units."""
    attrs = result[name].attrs
    text = str(attrs.get("long_name", name))
    return f"{text} ({attrs['units']})" if attrs.get("units") else text


def axis_label(result: xr.Dataset, axis: str) -> str:
    """The label of an axis of a plane: a principal component with its share, if it is one."""
    number = "xyz".index(axis)
    if "explained_variance" in result and number < result.sizes["component"]:
        share = 100 * float(result["explained_variance"][number])
        return f"PC {number + 1} ({share:.{0 if share >= 1 else 2}f} %)"
    return label(result, axis) if axis in result.variables else axis


def in_distances(result: xr.Dataset) -> bool:
    """Whether both axes of a plane are in real distances, so that angles mean something."""
    return all(result[axis].attrs.get("units") == "distance" for axis in ("x", "y"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside a path, that takes its place if all goes well."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
