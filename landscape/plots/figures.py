"""Which plot suits a result, how wide is it, and how is it written?"""

import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure

from landscape.plots.lines import lines

STYLE = Path(__file__).with_name("paper.mplstyle")

# Widths of a column in inches, as the authors' kits of the venues set them.
WIDTHS = {
    "icml": 3.25,
    "cvpr": 3.25,
    "aaai": 3.3,
    "ieee": 3.5,
    "nature": 3.5,
    "neurips": 5.5,
    "iclr": 5.5,
    "jmlr": 6.0,
    "tmlr": 6.5,
}


def figure(
    result: xr.Dataset,
    *,
    y: list[str] | None = None,
    venue: str = "neurips",
    style: str | Path | None = None,
) -> Figure:
    """Draw the figure that suits a result, one panel for each measure, as wide as a venue's column.

    `y`: the measures to draw, all by default. `venue`: a key of `WIDTHS`. `style`: a matplotlib
    style or style file instead of the package's own.

    Raises `ValueError` for a result that has no plot, and for an unknown measure or venue.
    """
    if venue not in WIDTHS:
        raise ValueError(f"venue must be one of {', '.join(WIDTHS)}, got {venue!r}")
    along = [dim for dim in ("t", "state") if dim in result.dims]
    measures = [str(n) for n in result.data_vars if f"{n}_stderr" in result] if y is None else y
    if not along or not measures:
        raise ValueError(
            f"there is no plot for the analysis {result.attrs.get('analysis')!r} with dimensions "
            f"{', '.join(map(str, result.sizes)) or 'none'}; known: results along t or state"
        )
    with mpl.rc_context(), _style(style):
        height = 0.62 * WIDTHS[venue] / len(measures) + 0.35
        fig = Figure(figsize=(WIDTHS[venue], height))
        panels = fig.subplots(1, len(measures), squeeze=False)[0]
        for ax, measure in zip(panels, measures, strict=True):
            lines(result, ax, y=measure, x=along[0])
            if along[0] == "t" and _has_ends(result):
                _chords(result, ax, measure)
        if "split" in result.dims:
            panels[0].legend()
        return fig


def save_figure(
    fig: Figure,
    path: str | os.PathLike[str],
    *,
    subject: str = "",
    style: str | Path | None = None,
) -> Path:
    """Write a figure in the format of the file's ending; equal figures give equal bytes.

    `subject` goes into the metadata of PDF, SVG and PNG files, to say where the figure is from.
    Raises `ValueError` for a format that matplotlib cannot write.
    """
    path = Path(path)
    metadata: dict[str, dict[str, Any]] = {
        ".pdf": {"CreationDate": None, "Subject": subject or None},
        ".svg": {"Date": None, "Description": subject or None},
        ".png": {"Description": subject or None},
    }
    known = fig.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".") not in known:
        raise ValueError(f"{path}: the ending must be one of {', '.join(sorted(known))}")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        with mpl.rc_context(), _style(style):
            fig.savefig(temporary, metadata=metadata.get(path.suffix))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _style(style: str | Path | None) -> Any:
    import matplotlib.style

    return matplotlib.style.context(str(style or STYLE))


def _has_ends(result: xr.Dataset) -> bool:
    return {0.0, 1.0} <= set(result["t"].values.tolist())


def _chords(result: xr.Dataset, ax: Any, measure: str) -> None:
    """Dotted straight lines between the two ends: what a path without a barrier stays below."""
    ends = result[measure].sel(t=[0.0, 1.0]).transpose(..., "t").values.reshape(-1, 2)
    for chord in ends:
        ax.plot([0, 1], chord, ":", color="0.6", linewidth=0.8, zorder=0)
