"""Which plot suits a result, how wide is it, and how is it written?"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure

from landscape.plots import dynamics, information_panels, layer_panels, panels, sparsity
from landscape.plots.parts import measures, replacing, similarities

STYLE = Path(__file__).with_name("paper.mplstyle")

SHARES = {"s1": "x", "s2": "y", "s3": "z"}  # a simplex is drawn as a plane or a volume is

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
    kind: str | None = None,
) -> Figure:
    """Draw the figure that suits a result, as wide as a venue's column.

    Along t, state or one axis of a surface: a panel of lines for each measure. Over a plane, a
    matrix of runs, or layers and t: a panel for each measure (rows) and split (columns), the same
    levels along a row; a volume has three slices as columns. Instability: a panel for each measure.
    A trajectory without a surface: its path. Similarities of layers: heat maps between layers, with
    spectra; panels by layer between steps or networks; lines to the final state. Fisher information
    through training: its curve over maps of the layers; of one state: points for tensors or
    modules. Eigenvalues, the largest one through training, spectral densities: one panel.
    Dynamics: a dashboard of the whole network. Chains of pruning: accuracy against sparsity, the
    layers' sparsity, stability by rewinding step, perturbations.

    `y`: the measures to draw, all by default. `venue`: a key of `WIDTHS`. `style`: a matplotlib
    style or style file instead of the package's own. `kind`: `"3d"` draws a plane as surfaces in
    three dimensions, `"tsne"` a trajectory's embedding, `"layers"` dynamics by layer, `"weights"`
    (with names of layers as `y`) how weights are distributed.

    Raises `ValueError` for a result that has no plot, and for an unknown measure, venue or kind.
    """
    if venue not in WIDTHS:
        raise ValueError(f"venue must be one of {', '.join(WIDTHS)}, got {venue!r}")
    if kind not in (None, "3d", "tsne", "layers", "weights"):
        raise ValueError(f"kind must be '3d', 'tsne', 'layers', 'weights' or None, got {kind!r}")
    with paper_style(style):
        result = result.rename(_on_axes(result))
        draw, names = _suited(result, kind)
        return draw(result, names if y is None else y, WIDTHS[venue])


def save_figure(
    fig: Figure,
    path: str | os.PathLike[str],
    *,
    subject: str = "",
    dpi: float | None = None,
    style: str | Path | None = None,
) -> Path:
    """Write a figure in the format of the file's ending; equal figures give equal bytes.

    `subject` goes into the metadata of PDF, SVG and PNG files, to say where the figure is from.
    `dpi`: dots per inch of what is made of pixels, by default those of the style (300).
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
    with replacing(path) as temporary, paper_style(style):
        fig.savefig(temporary, metadata=metadata.get(path.suffix), dpi=dpi)
    return path


@contextmanager
def paper_style(style: str | Path | None = None) -> Iterator[None]:
    """The style of the package, or another, for figures that are put together by hand."""
    import matplotlib.style

    with mpl.rc_context(), matplotlib.style.context(str(style or STYLE)):
        yield


def _suited(result: xr.Dataset, kind: str | None) -> tuple[panels.Draw, list[str]]:
    """What draws a result, and the measures that it has: the first choice that fits."""
    dims = {str(dim) for dim in result.dims}
    choices: list[tuple[str | None, panels.Draw, list[str]]] = [
        ("3d", panels.surfaces, measures(result, ("x", "y")) if "z" not in dims else []),
        ("tsne", partial(panels.trajectory, view="tsne"), ["tsne"] * ("tsne_x" in result)),
        *_moving(result),
        (None, sparsity.report, sparsity.report_panels(result)),
        (None, panels.instabilities, _unstable(result)),
        (None, information_panels.over_training, _through_training(result)),
        (None, information_panels.one_state, _of_one_state(result)),
        (None, information_panels.of_spectrum, _spectrum(result)),
        (None, layer_panels.similar, _between_layers(result)),
        (None, layer_panels.by_layer, _over_pairs(result)),
        (None, layer_panels.converging, similarities(result, ("step", "layer"))),
        (None, panels.matrices, measures(result, ("run", "other_run"))),
        (None, panels.slices, measures(result, ("x", "y", "z"))),
        (None, panels.planes, measures(result, ("x", "y"))),
        (None, partial(panels.trajectory, view="pca"), ["path"] * ("path_y" in result)),
        (None, partial(panels.trajectory, view="tsne"), ["tsne"] * ("tsne_x" in result)),
        (None, panels.heatmaps, measures(result, ("layer", "t"))),
        *((None, partial(panels.along, x=x), measures(result, (x,))) for x in ("t", "state", "x")),
        (None, partial(panels.along, x="step"), _along_steps(result)),
    ]
    for wanted, draw, names in choices:
        if wanted == kind and names:
            return draw, names
    what = "plot" if kind is None else f"plot of kind {kind!r}"
    known = {
        None: "results along t, state or x, over x and y (and z), over layer and t, matrices over "
        "run and other_run, instability by branch step, trajectories, similarities of layers, "
        "Fisher information over tensors (and steps), eigenvalues, spectral densities, dynamics, "
        "chains of pruning, perturbations",
        "3d": "surfaces over x and y",
        "tsne": "trajectories with tsne_x and tsne_y",
        "layers": "dynamics",
        "weights": "dynamics",
    }[kind]
    if kind is None and not dims:
        raise ValueError(
            f"the analysis {result.attrs.get('analysis')!r} gives single numbers, of which there "
            "is no plot: `landscape info` prints them"
        )
    raise ValueError(
        f"there is no {what} for the analysis {result.attrs.get('analysis')!r} with dimensions "
        f"{', '.join(map(str, result.sizes))}; known: {known}"
    )


def _on_axes(result: xr.Dataset) -> dict[str, str]:
    """New names for the coordinates of a simplex and what lies on it."""
    prefixes = ("", "mark_", "curve_", "path_")
    names = {f"{one}{share}": f"{one}{axis}" for one in prefixes for share, axis in SHARES.items()}
    return {old: new for old, new in names.items() if old in result.variables}


def _moving(result: xr.Dataset) -> list[tuple[str | None, panels.Draw, list[str]]]:
    """What draws the dynamics of weights, if a result has them."""
    if "weight_quantile" not in result:
        return []
    return [
        (None, dynamics.dashboard, dynamics.dashboard_panels(result)),
        ("layers", dynamics.layer_curves, dynamics.moving(result)),
        ("weights", dynamics.distributions, list(map(str, result["layer"].values))),
    ]


def _unstable(result: xr.Dataset) -> list[str]:
    """The measures whose instability a result holds."""
    names = map(str, result.data_vars)
    return [n.removesuffix("_instability") for n in names if n.endswith("_instability")]


def _between_layers(result: xr.Dataset) -> list[str]:
    """The similarities between all pairs of layers, and the correlations of those with one name."""
    names = similarities(result, ("layer", "other_layer"))
    shared = "other_layer" in result and result["layer"].isin(result["other_layer"]).any()
    spectra = "correlations" in result and bool(shared)
    return [*names, *["correlations"] * spectra]


def _over_pairs(result: xr.Dataset) -> list[str]:
    """The similarities between steps, or between networks, of one or more layers."""
    if "other_step" in result.dims:
        return similarities(result, ("step", "other_step"))
    networks = "layer" in result.dims or result.attrs.get("analysis") == "layer networks"
    return similarities(result, ("run", "other_run")) if networks else []


def _through_training(result: xr.Dataset) -> list[str]:
    """What a result has of traces by layers along steps: total, layers, shares if all are so."""
    dims = {*result["trace"].dims} if "trace" in result else set()
    if "total" not in result or not ("step" in dims and {"tensor", "block"} & dims):
        return []
    return ["total", "trace"] + ["shares"] * (not (result["trace"] < 0).any())


def _along_steps(result: xr.Dataset) -> list[str]:
    """What is drawn against steps alone: a path in one dimension, or a trace."""
    return [name for name in ("path_x", "trace") if name in result and "step" in result[name].dims]


def _of_one_state(result: xr.Dataset) -> list[str]:
    """The trace over tensors or blocks."""
    dims = {*result["trace"].dims} if "trace" in result else set()
    return ["trace"] * bool({"tensor", "block"} & dims)


def _spectrum(result: xr.Dataset) -> list[str]:
    """Eigenvalues along their index, or their density."""
    known = {"eigenvalue": "index", "density": "eigenvalue"}
    return [name for name, dim in known.items() if name in result and dim in result[name].dims]
