"""What does a result or a checkpoint say in a few lines of text?"""

import json
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import xarray as xr

from landscape.analyses.interpolation import barrier

KINDS = ("chord", "mean", "max")


def barrier_table(result: xr.Dataset) -> str:
    """The ends of a path, and its barriers by each definition: height, interval, position.

    Behind the values at the ends, in brackets, those with the checkpoints' own statistics.
    """
    barriers = {kind: barrier(result, kind) for kind in KINDS}
    measures = [str(n) for n in barriers["chord"] if f"{n}_position" in barriers["chord"]]
    splits = result["split"].values.tolist() if "split" in result.dims else [None]
    rows = [["", "start (own)", "end (own)", *(f"barrier ({kind})" for kind in KINDS), "at t"]]
    for measure in measures:
        for split in splits:
            where = {} if split is None else {"split": split}
            ends = [_end(result.sel(t=t, **where), measure) for t in (0.0, 1.0)]
            heights = [_height(barriers[kind].sel(where), measure) for kind in KINDS]
            position = float(barriers["chord"][f"{measure}_position"].sel(where))
            name = measure if split is None else f"{split} {measure}"
            rows.append([name, *ends, *heights, f"{position:.2f}"])
    return table(rows)


def result_text(result: xr.Dataset) -> str:
    """What is in a result and how it was made."""
    attrs = result.attrs
    provenance = json.loads(attrs.get("provenance", "{}"))
    lines = [f"{attrs.get('title', 'untitled')}  [{attrs.get('analysis', 'unknown analysis')}]", ""]
    rows = [["variable", "dimensions", "range", "description"]]
    for name, variable in result.variables.items():
        dims = " x ".join(f"{dim} {size}" for dim, size in variable.sizes.items()) or "single value"
        rows.append([str(name), dims, _range(variable), str(variable.attrs.get("long_name", ""))])
    lines += [table(rows), ""]
    if "status" in result:
        names = str(result["status"].attrs.get("flag_meanings", "")).split()
        codes, counts = np.unique(result["status"].values, return_counts=True)
        said = ", ".join(f"{n} {names[c]}" for c, n in zip(codes, counts, strict=True))
        lines += [f"points: {said}", ""]
    plan = json.loads(attrs.get("plan", "{}"))
    apart = ("title", "analysis", "provenance", "plan")
    made = {key: value for key, value in attrs.items() if key not in apart}
    made |= {f"plan: {key}": value for key, value in plan.items()}
    made |= {**provenance.pop("versions", {}), **provenance}
    lines += [mapping_text({key: value for key, value in made.items() if value not in ("", None)})]
    return "\n".join(lines)


def mapping_text(values: Mapping[str, Any]) -> str:
    """Names and values, one on each line and cut short."""
    return table([[str(key), shorten(str(value), 90)] for key, value in values.items()])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns of equal width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _end(point: xr.Dataset, measure: str) -> str:
    return f"{float(point[measure]):.4f} ({float(point[f'own_{measure}']):.4f})"


def _height(barriers: xr.Dataset, measure: str) -> str:
    text = f"{float(barriers[measure]):.4f}"
    if f"{measure}_low" in barriers:
        low, high = float(barriers[f"{measure}_low"]), float(barriers[f"{measure}_high"])
        text += f" [{low:.4f}, {high:.4f}]"
    return text


def _range(variable: xr.Variable) -> str:
    """The least and the largest finite value, or the first and the last text."""
    values = variable.values.ravel()
    if values.dtype.kind not in "fiu":
        return f"{values[0]} .. {values[-1]}" if values.size else ""
    finite = values[np.isfinite(values)]
    return f"{finite.min():.4g} .. {finite.max():.4g}" if finite.size else "no finite value"
