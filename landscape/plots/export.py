"""How does a surface get into a viewer: ParaView and its like, or a browser without a network?"""

import base64
import importlib
import os
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from landscape.plots.levels import level_texts, levels_for
from landscape.plots.overlays import PATH
from landscape.plots.parts import axis_label, label, measures, part, replacing, splits_of
from landscape.plots.surfaces import on_surface, plane_of

HIDDEN = 2  # vtkDataSetAttributes::HIDDENPOINT


def write_vts(
    result: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    y: str | None = None,
    split: str | None = None,
    log: bool = False,
    scale: float = 1.0,
) -> Path:
    """Write a surface as a VTK structured grid (XML, `.vts`), for ParaView, VisIt and PyVista.

    Points are at (x, y, z) with z = scale * value of the measure `y` (the first by default) of a
    split (the first by default); with `log`, z = scale * ln(1 + value - smallest value). A result
    over (x, y, z) is written as a volume in these coordinates, without `y`, `log` and `scale`. All
    measures of all splits are point data (`loss`, `loss_train`, ...), as is `status`. Points whose
    value is pending or not finite are hidden (`vtkGhostType`), and lie at the largest z.

    Raises `ValueError` if the result has no measure over x and y, no value of it is finite, or the
    path does not end in `.vts`.
    """
    path = Path(path)
    if path.suffix != ".vts":
        raise ValueError(f"{path}: a VTK structured grid has the ending .vts")
    axes = [axis for axis in "xyz" if axis in result.dims]
    names = measures(result, axes)
    if len(axes) < 2 or not names:
        raise ValueError(f"only a surface over x and y (and z) can be written, got {result.sizes}")
    result = result.sortby(axes)
    y = names[0] if y is None else y
    if len(axes) == 2:
        chosen, values, _ = plane_of(result, y, split)
        lost = np.isnan(values)
        if lost.all():
            raise ValueError(f"no value of {y!r} is finished and finite: there is no height")
        height = np.log1p(values - np.nanmin(values)) if log else values
        height = scale * np.where(lost, np.nanmax(height), height)
        across, up = np.meshgrid(chosen["x"].values, chosen["y"].values)
        positions = np.stack([across, up, height], axis=-1)
    else:
        chosen = part(result, y, axes, split)
        lost = ~np.isfinite(chosen[y].transpose("z", "y", "x").values)
        grids = np.meshgrid(*(chosen[axis].values for axis in "zyx"), indexing="ij")
        positions = np.stack(grids[::-1], axis=-1)
    arrays = {
        (name if one is None else f"{name}_{one}"): part(result, name, axes, one)[name]
        for name in names
        for one in splits_of(result, name)
    }
    if "status" in result:
        arrays["status"] = part(result, y, axes, split)["status"]
    data = {name: array.transpose(*axes[::-1]).values for name, array in arrays.items()}
    data["vtkGhostType"] = np.where(lost, HIDDEN, 0).astype(np.uint8)
    extent = " ".join(f"0 {size - 1}" for size in [*(result.sizes[a] for a in axes), 1][:3])
    lines = [
        '<?xml version="1.0"?>',
        '<VTKFile type="StructuredGrid" version="1.0" byte_order="LittleEndian" '
        'header_type="UInt64">',
        f'<StructuredGrid WholeExtent="{extent}"><Piece Extent="{extent}">',
        f"<PointData Scalars={quoteattr(y if y in data else next(iter(data)))}>",
        *(_array(name, values) for name, values in data.items()),
        "</PointData><Points>",
        _array("Points", positions, components=3),
        "</Points></Piece></StructuredGrid></VTKFile>",
        "",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines))
    return path


def write_html(
    result: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    y: str | None = None,
    split: str | None = None,
    title: str | None = None,
) -> Path:
    """Write a surface as one HTML file that can be turned and zoomed without a network.

    The height is the value of the measure `y` of a split (the first by default); the colours are
    logarithmic above the minimum, as in `contours`. Marks, the curve and the path lie on the
    surface. Needs plotly (`pip install 'landscape[html]'`). Equal results give equal files.

    Raises `ModuleNotFoundError` without plotly, and `ValueError` if there is no measure over x, y.
    """
    try:
        plotly: Any = importlib.import_module("plotly.graph_objects")
    except ImportError:
        raise ModuleNotFoundError(
            "an interactive surface needs plotly: pip install 'landscape[html]'"
        ) from None
    names = measures(result, ("x", "y"))
    if not names:
        raise ValueError(f"only a surface over x and y can be written, got {dict(result.sizes)}")
    y = names[0] if y is None else y
    chosen, values, _ = plane_of(result, y, split)
    levels = levels_for([values])
    first = levels[1] - levels[0]  # colours are linear below the first step, logarithmic beyond
    surface = plotly.Surface(
        x=chosen["x"].values,
        y=chosen["y"].values,
        z=values,
        surfacecolor=np.log(values - levels[0] + first),
        colorscale="Viridis",
        cmin=float(np.log(first)),
        cmax=float(np.log(levels[-1] - levels[0] + first)),
        colorbar={
            "title": {"text": label(result, y)},
            "tickvals": np.log(levels - levels[0] + first).tolist(),
            "ticktext": level_texts(levels),
        },
        hovertemplate="x %{x:.4g}<br>y %{y:.4g}<br>" + y + " %{z:.6g}<extra></extra>",
    )
    traces = [surface]
    for name, style in (
        ("curve", {"mode": "lines", "line": {"color": "black", "width": 5}}),
        ("path", {"mode": "lines+markers", "line": {"color": PATH, "width": 5},
                  "marker": {"color": PATH, "size": 3}}),
        ("mark", {"mode": "markers+text", "marker": {"color": "black", "size": 5}}),
    ):  # fmt: skip
        if f"{name}_x" in result:
            where = result[f"{name}_x"].values, result[f"{name}_y"].values
            text = {"mark": "mark", "path": "step", "curve": "curve_t"}[name]
            height = on_surface(chosen, values, *where)
            values_of = result[text].values
            words = [f"{one:.4g}" if name == "curve" else escape(str(one)) for one in values_of]
            traces.append(
                plotly.Scatter3d(x=where[0], y=where[1], z=height, text=words, name=name, **style)
            )
    figure = plotly.Figure(traces)
    names_of_axes = {"x": axis_label(result, "x"), "y": axis_label(result, "y")}
    names_of_axes["z"] = label(result, y)
    figure.update_layout(
        title=str(result.attrs.get("title", "")) if title is None else title,
        scene={f"{axis}axis": {"title": {"text": text}} for axis, text in names_of_axes.items()},
        showlegend=False,
        template="plotly_white",
    )
    with replacing(Path(path)) as temporary:
        text = figure.to_html(include_plotlyjs=True, full_html=True, div_id="landscape")
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _array(name: str, values: NDArray[Any], components: int = 1) -> str:
    """A DataArray element: the number of bytes and the bytes, in base64."""
    kind = "UInt8" if values.dtype == np.uint8 else "Float64"
    raw = np.ascontiguousarray(values, "<f8" if kind == "Float64" else np.uint8).tobytes()
    text = base64.b64encode(np.array(len(raw), "<u8").tobytes() + raw).decode()
    return (
        f"<DataArray type={quoteattr(kind)} Name={quoteattr(name)} "
        f'NumberOfComponents="{components}" format="binary">{text}</DataArray>'
    )
